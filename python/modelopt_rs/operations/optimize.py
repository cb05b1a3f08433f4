"""`optimize_file`: a model file of a given size, with the bits of each weight where they matter most."""

import glob
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from modelopt_rs.arguments import check_types
from modelopt_rs.containers.atomic import write_whole
from modelopt_rs.errors import OptionError
from modelopt_rs.operations.quantize import planner
from modelopt_rs.operations.skeleton import Writing, perform
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.loss_table import FLOAT, Coded, LossTable, TensorLosses, role_of, shared_group
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import DEFAULT_RUN, RunOptions
from modelopt_rs.planning.sensitivity import layer_error
from modelopt_rs.report.reports import Report
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Copy, Transform

__all__ = ["optimize_file"]

CODES: Final[Mapping[str, tuple[int, int | None]]] = {
    "8": (8, None),
    "4": (4, None),
    "4g64": (4, 64),
    "4g128": (4, 128),
    "2": (2, None),
}
"""What weights can get: bits, and elements that share a scale where it is not what fits them."""

# Bytes that a header, or a graph, has for each tensor besides its name.
ENTRY, GRAPH_ENTRY = 80, 24
# Those of the nodes that take a weight's codes in the place of one that took the weight: some more than there are.
NODES = 200


def optimize_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    target_size: int | str | None = None,
    target_bpw: float | None = None,
    max_loss: float | None = None,
    priors: Mapping[str, float] | None = None,
    table: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    nonfinite: str = "raise",
    only_dequantize: bool = False,
    max_memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    dry_run: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    durable: bool = True,
    onnx: OnnxOptions | None = None,
    run: RunOptions | None = DEFAULT_RUN,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantize a model to a size: each weight gets 8, 4 (in groups of 32, 64 or 128) or 2 bits or stays, at least loss.

    The relative error of every weight in every code is measured over all its rows, with the encoders that write them
    (scales are searched). The loss is the sum of their squares, each times the weight's elements and its prior; its
    least value within the size is found by Lagrange and branch and bound. Weights that runtimes fuse (query, key and
    value; gate and up; experts) share their codes. Mixed bits have no zero points where transformers would not read
    them. The source is read once for each code.

    Parameters
    ----------
    source_path, out_path : path
        As for `quantize_file`.
    target_size : int or str, optional
        The most bytes of the file, or of the weights of a directory.
    target_bpw : float, optional
        Instead: bits for each weight that can be coded.
    max_loss : float, optional
        Refuse to write if the root of the mean of squared relative errors, each counted as its prior says, is larger.
    priors : mapping of str to float, optional
        Of the weights that a glob matches; the first that matches counts. By default 4 for the values
        of attention, 3 for heads, 2.5 for embeddings, 1 for others.
    table : path, optional
        A JSON file with what was measured: read if it is there, else written, so that another size takes milliseconds
        to find. It must be of this model and these options; that weights have changed is not seen.
    include, exclude, nonfinite, only_dequantize, max_memory, threads, dry_run, verify, overwrite, durable, onnx, run,
    allow_symlinks_under, progress
        As for `quantize_file`.

    Returns
    -------
    Report
        Its `options` have under "allocation" the smallest and the largest size that could be had, the size, the loss,
        and how much less it could be at most (`gap`).

    Raises
    ------
    OptionError
        If not one of `target_size` and `target_bpw` is given, or it can't be had, or the loss is above `max_loss`.
    FormatError
        If the source or the table is malformed.
    OSError
        If the operating system refuses to read or write.

    References
    ----------
    Malinovskii et al. 2024, "Pushing the Limits of Large Language Model Quantization via the Linearity Theorem" (arXiv
    2411.17525), on losses as sums of squared relative errors.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> w = np.random.default_rng(0).normal(size=(4, 256, 256)).astype(np.float32)
    >>> infos = [mo.files.TensorInfo(f"{i}.fc.weight", "F32", w[i].shape, w[i].nbytes) for i in range(4)]
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/model.safetensors", infos) as sink:
    ...         for info, each in zip(infos, w):
    ...             sink.write(info.name, each)
    ...         sink.commit()
    ...     report = mo.optimize_file(f"{d}/model.safetensors", f"{d}/small.safetensors", target_size=200_000)
    >>> report.options["allocation"]["size"] <= 200_000
    True
    """
    check_types(optimize_file, locals())
    max_memory = bytes_of("max_memory", max_memory)
    target_size = None if target_size is None else bytes_of("target_size", target_size)
    _check(target_size, target_bpw, max_loss, priors or {})
    options = QuantizeOptions(
        include=include, exclude=exclude, nonfinite=nonfinite, only_dequantize=only_dequantize, uniform=True
    )
    writing = Writing(
        max_memory=max_memory,
        threads=threads,
        dry_run=dry_run,
        verify=verify,
        overwrite=overwrite,
        durable=durable,
        allow_symlinks_under=allow_symlinks_under,
        progress=progress,
    )
    work = _Work(source_path, out_path, options, onnx, writing)
    losses = work.sizes()
    size = _size(losses, target_size, target_bpw)
    if table is None or not Path(table).exists():
        losses = work.measured(losses)
        if table is not None:
            write_whole(table, losses.to_json().encode())
    else:
        read = LossTable.from_json(Path(table).read_text(), str(table))
        read.check_of(losses.of, str(table))
        losses = read
    codes, found = losses.allocate(size, priors or {})
    loss = losses.loss(found, priors or {})
    if max_loss is not None and loss > max_loss:
        raise OptionError(f"max_loss must be at least {loss:.4g} for this size, got {max_loss:g}")
    floor, ceiling = losses.range()
    said = {"floor": floor, "ceiling": ceiling, "size": losses.fixed + found.nbytes, "loss": loss, "gap": found.gap}
    asked = {"target_size": target_size, "target_bpw": target_bpw, "max_loss": max_loss, "priors": dict(priors or {})}
    report = work.written(codes, run)
    return replace(report, command="optimize", options={**report.options, **asked, "allocation": said})


def _check(size: int | None, bpw: float | None, max_loss: float | None, priors: Mapping[str, float]) -> None:
    if (size is None) == (bpw is None):
        raise OptionError(f"one of target_size and target_bpw must be given, got {'none' if size is None else 'both'}")
    for name, value in (("target_size", size), ("target_bpw", bpw), ("max_loss", max_loss)):
        if value is not None and not value > 0:
            raise OptionError(f"{name} must be above 0, got {value}")
    for pattern, prior in priors.items():
        if not 0 <= prior < float("inf"):
            raise OptionError(f"priors {pattern!r} must be finite and not negative, got {prior}")


def _size(table: LossTable, size: int | None, bpw: float | None) -> int:
    """Return the most bytes, if they can be had."""
    floor, ceiling = table.range()
    if size is not None:
        if not floor <= size < ceiling:
            raise OptionError(
                f"target_size must be from {floor:,} to {ceiling - 1:,} bytes for this model, got {size:,}"
            )
        return size
    assert bpw is not None
    bits = [8 * (bytes_ - table.fixed) / max(table.elements, 1) for bytes_ in (floor, ceiling)]
    if not bits[0] <= bpw < bits[1]:
        raise OptionError(f"target_bpw must be from {bits[0]:.3f} to below {bits[1]:.3f} for this model, got {bpw:g}")
    return table.fixed + int(bpw * table.elements / 8)


@dataclass(frozen=True, slots=True)
class _Work:
    """One model, how it is read and written, and what is asked of all its weights."""

    source: str | os.PathLike[str]
    output: str | os.PathLike[str]
    options: QuantizeOptions
    onnx: OnnxOptions | None
    writing: Writing

    def _with(self, source: Source, **changes: Any) -> QuantizeOptions:
        """Return the options; mixed bits have no zero points where there is a config for loaders."""
        loaded = source.graph is None and bool(source.config) and not self.options.only_dequantize
        return replace(self.options, scheme="symmetric" if loaded else None, **changes)

    def sizes(self) -> LossTable:
        """Return the table without errors: plans alone, nothing is read."""
        found = {code: self._planned(code, measure=False) for code in CODES}
        coded = {name: sizes for each in found.values() for name, sizes in each.codes.items()}
        rest = next(iter(found.values()))
        tensors = {}
        for name in coded:
            element = rest.elements[name]
            codes = {FLOAT: Coded(rest.copied[name], 0.0)}
            codes |= {code: each.codes[name] for code, each in found.items() if name in each.codes}
            group = name if rest.has_graph else shared_group(name)
            tensors[name] = TensorLosses(element, role_of(name), group, codes)
        fixed = rest.overhead + sum(nbytes for name, nbytes in rest.copied.items() if name not in coded)
        return LossTable(rest.fingerprint, fixed, tensors)

    def measured(self, table: LossTable) -> LossTable:
        """Return the table with errors."""
        tensors = dict(table.tensors)
        for code in CODES:
            for name, coded in self._planned(code, measure=True).codes.items():
                tensors[name] = replace(tensors[name], codes={**tensors[name].codes, code: coded})
        return replace(table, tensors=tensors)

    def _planned(self, code: str, measure: bool) -> "_Planned":
        found: list[_Planned] = []

        def plan(source: Source, execution: Execution) -> FilePlan:
            bits, group_size = CODES[code]
            options = self._with(source, bits=bits, group_size=group_size)
            made = planner(options, self.onnx, None)(source, execution)
            found.append(_Planned.of(source, made, f"{self.options} {self.onnx}"))
            if measure:
                found[0].measure(made, execution)
            return made

        perform(self.source, self.output, plan, replace(self.writing, dry_run=True))
        return found[0]

    def written(self, codes: Mapping[str, str], run: RunOptions | None) -> Report:
        """Write the model."""
        coded = {glob.escape(name): CODES[code] for name, code in codes.items() if code != FLOAT}
        bits_of = {name: bits for name, (bits, _) in coded.items()}
        size_of = {name: size for name, (_, size) in coded.items() if size is not None}
        left = [glob.escape(name) for name, code in codes.items() if code == FLOAT]

        def plan(source: Source, execution: Execution) -> FilePlan:
            options = self._with(source, bits_of=bits_of, group_size_of=size_of, exclude=[*self.options.exclude, *left])
            return planner(options, self.onnx, run)(source, execution)

        report: Report = perform(self.source, self.output, plan, self.writing)
        return report


@dataclass(slots=True)
class _Planned:
    """What a plan makes of a model."""

    codes: dict[str, Coded]
    copied: dict[str, int]
    elements: dict[str, int]
    overhead: int
    fingerprint: str
    has_graph: bool

    @classmethod
    def of(cls, source: Source, plan: FilePlan, options: str) -> "_Planned":
        infos, has_graph = plan.view.tensors, source.graph is not None
        entry, nodes = (GRAPH_ENTRY, NODES) if has_graph else (ENTRY, 0)
        coded = {name: each for name, each in plan.transforms.items() if not isinstance(each, Copy)}
        # Nodes and what they give have names that are made of those of the weights.
        codes = {
            name: Coded(_bytes(each, entry) + nodes + (6 * len(name) if has_graph else 0), 0.0)
            for name, each in coded.items()
        }
        copied = {name: _bytes(Copy(info), entry) for name, info in infos.items()}
        elements = {name: math.prod(info.shape) for name, info in infos.items()}
        said = [(name, info.dtype, info.shape) for name, info in infos.items()]
        of = hashlib.sha256(f"{said} {source.nbytes} {options}".encode()).hexdigest()
        inside = sum(info.nbytes for info in source.tensors.values())
        # A graph is there besides its tensors; what a header is, the names say.
        overhead = source.nbytes - inside - sum(len(name) + entry for name in infos) if has_graph else 8 + ENTRY
        return cls(codes, copied, elements, overhead, of, has_graph)

    def measure(self, plan: FilePlan, execution: Execution) -> None:
        """Take every weight through what codes it; nothing is written."""
        execution.total = sum(plan.view.tensors[name].nbytes * plan.transforms[name].sweeps for name in self.codes)
        for name, coded in self.codes.items():
            transform: Any = plan.transforms[name]
            for _ in TensorJob(plan.view, name, transform).run(execution):
                pass
            self.codes[name] = replace(coded, error=layer_error(transform.figures))


def _bytes(transform: Transform, entry: int) -> int:
    return sum(info.nbytes + len(info.name) + entry for info in transform.outputs)
