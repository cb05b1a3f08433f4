"""`Losses`: what each code costs each weight of a model, and the model with the codes that are chosen."""

import glob
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from modelopt_rs.containers.container import Access
from modelopt_rs.containers.registry import open_source
from modelopt_rs.errors import OptionError
from modelopt_rs.operations.quantize import planner
from modelopt_rs.operations.skeleton import Writing, perform
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.loaders import groups_alike, is_expert
from modelopt_rs.planning.loss_table import FLOAT, Coded, LossTable, TensorLosses, role_of, shared_group
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.planning.sensitivity import Measured, layer_error
from modelopt_rs.report.reports import Report, TensorReport
from modelopt_rs.report.run import relative_error
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.memory import tile_bytes
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Copy, Transform
from modelopt_rs.transforms.together import Together

__all__ = ["CODES", "Losses"]

CODES: Final[Mapping[str, tuple[int, int | None]]] = {
    "8g32": (8, 32),
    "8": (8, None),
    "4g16": (4, 16),
    "4": (4, None),
    "4g64": (4, 64),
    "4g128": (4, 128),
    "2": (2, None),
}
"""What weights can get: bits, and elements that share a scale where it is not what fits them."""

STAYS: Final = "least loss at this size"  # why a weight has no code: nobody has excluded it
LARGEST: Final = 2**28  # bytes of a graph that is made and run with several answers
# About how far weights are off in so many bits: before they are measured.
USUAL: Final = {8: 0.007, 4: 0.08, 2: 0.33}
# Bytes that a header, or a graph, has for each tensor besides its name.
ENTRY, GRAPH_ENTRY = 80, 24
# Those of the nodes that take a weight's codes in the place of one that took the weight: some more than there are.
NODES = 200


@dataclass(frozen=True, slots=True)
class Losses:
    """One model, how it is read and written, and what is asked of all its weights."""

    source: str | os.PathLike[str]
    output: str | os.PathLike[str]
    options: QuantizeOptions
    onnx: OnnxOptions | None
    run: RunOptions | None
    writing: Writing

    def sizes(self) -> LossTable:
        """Return the table without errors: plans alone, no weight is read."""
        with self._open() as source:
            roles, options = _roles(source), self._with(source)
            config = {} if options.only_dequantize or source.graph is not None else source.config or {}
        with ExitStack() as stack:
            found = self._plans(stack, self._execution())
            coded = {name: sizes for each in found.values() for name, sizes in each.codes.items()}
            rest = next(iter(found.values()))
            tensors = {}
            for name in coded:
                codes = {FLOAT: Coded(rest.copied[name], 0.0)}
                codes |= {code: each.codes[name] for code, each in found.items() if name in each.codes}
                group = name if rest.has_graph else shared_group(name)
                tensors[name] = TensorLosses(rest.elements[name], roles.get(name) or role_of(name), group, codes)
            # What computes coded weights of a graph is gone: as floats they stand for it.
            there = set(rest.plan.transforms if rest.has_graph else rest.copied) - set(coded)
            fixed = rest.overhead + sum(rest.copied[name] for name in there)
            alike = groups_alike(dict.fromkeys(coded, options.spec), options.layout.name, config)
            names = tuple(name for _, names in alike for name in names if not is_expert(name))  # they are a group
            return LossTable(rest.fingerprint, fixed, tensors, names)

    def check(self, table: LossTable, size: int) -> None:
        """Refuse what could not be written, before weights are measured: bits are given as if all were alike."""
        usual = {
            name: replace(each, codes={code: _usual(code, coded) for code, coded in each.codes.items()})
            for name, each in table.tensors.items()
        }
        codes, _ = replace(table, tensors=usual).allocate(size, {})
        self._perform(codes, None, replace(self.writing, dry_run=True))

    def measured(self, table: LossTable) -> LossTable:
        """Return the table with errors: each tile of a weight is read once, and taken through all codes.

        Of an ONNX model that may be run it is measured too what errors do to its outputs.
        """
        execution = self._execution(self.writing.progress)
        with ExitStack() as stack:
            plans = self._plans(stack, execution)
            names = list(table.tensors)
            view = next(iter(plans.values())).plan.view
            has_graph = view.graph is not None
            nbytes = sum(view.tensors[name].nbytes for name in names)
            execution.total = 2 * nbytes if has_graph and self.run is not None else nbytes
            found = {name: dict(table.tensors[name].codes) for name in names}
            for name in names:
                transforms = {code: each.transform(name) for code, each in plans.items() if name in each.codes}
                for code, error in _errors(view, name, transforms, execution).items():
                    found[name][code] = replace(found[name][code], error=error)
        if has_graph and self.run is not None:
            found = self._with_outputs(found, execution)
        return replace(table, tensors={name: replace(each, codes=found[name]) for name, each in table.tensors.items()})

    def nbytes(self, codes: Mapping[str, str], otherwise: int) -> int:
        """Return the bytes of an ONNX model with these codes, exactly; of others what the table says."""
        found = [otherwise]

        def measured(source: Source, plan: FilePlan) -> None:
            if source.graph is not None:
                found[0] = _whole(source, plan)

        self._perform(codes, None, replace(self.writing, dry_run=True), measured)
        return found[0]

    def is_seen(self) -> bool:
        """Whether the outputs of what is written can be seen: of a graph that may be run, and isn't too large."""
        # What an iterator has is good for one pass, which is that of the last check.
        if self.run is None or isinstance(self.run.inputs, Iterator):
            return False
        with self._open() as source:
            return source.graph is not None and source.nbytes <= LARGEST

    def off(self, codes: Mapping[str, str]) -> float | None:
        """Return how far the outputs of the model with these codes are off, as a report of it says; None: not seen.

        It is the root of the mean, over all outputs of floats, of their squared relative errors.
        """
        assert self.run is not None
        quiet = replace(self.writing, dry_run=False, overwrite=False, verify=False, durable=False, progress=None)
        with tempfile.TemporaryDirectory(prefix="modelopt-rs-") as folder:
            work = replace(self, output=Path(folder, Path(self.output).name))
            found = work._perform(codes, replace(self.run, rounds=0, memory=False, max_error=None), quiet).run
        return None if found is None else relative_error(found)

    def written(self, codes: Mapping[str, str]) -> Report:
        """Write the model."""
        report = self._perform(codes, self.run, self.writing)
        return replace(report, tensors=tuple(_with_reason(each, codes) for each in report.tensors))

    def _with_outputs(self, found: dict[str, dict[str, Coded]], execution: Execution) -> dict[str, dict[str, Coded]]:
        """Return the codes with what each does to the outputs of an ONNX model."""
        from modelopt_rs.onnx.measure.layer_inputs import Data
        from modelopt_rs.onnx.measure.output_errors import output_errors

        with self._open() as source:
            seen = output_errors(source, found, Data(None, self.run), execution)
        return {
            name: {
                code: coded if name not in seen else replace(coded, output=coded.error * _more(seen[name], code))
                for code, coded in codes.items()
            }
            for name, codes in found.items()
        }

    def _execution(self, progress: Any = None) -> Execution:
        writing = self.writing
        return Execution(
            writing.max_memory, writing.threads, progress, 0, source=str(self.source), output=str(self.output),
            dry_run=True, overwrite=writing.overwrite,
        )  # fmt: skip

    def _open(self) -> Source:
        return open_source(self.source, Access(allow_symlinks_under=self.writing.allow_symlinks_under))

    def _plans(self, stack: ExitStack, execution: Execution) -> "dict[str, _Planned]":
        """Plan each code; a graph is edited by a plan, and so opened for each."""
        found: dict[str, _Planned] = {}
        source = stack.enter_context(self._open())
        for code, (bits, group_size) in CODES.items():
            if source.graph is not None and found:
                source = stack.enter_context(self._open())
            options = self._with(source, bits=bits, group_size=group_size)
            plan = planner(options, self.onnx, None)(source, execution)
            run = self.run if source.graph is not None else None
            found[code] = _Planned.of(source, plan, f"{self.options} {self.onnx} {_said(run)}")
        return found

    def _with(self, source: Source, **changes: Any) -> QuantizeOptions:
        """Return the options; mixed bits have no zero points where there is a config for loaders."""
        loaded = source.graph is None and bool(source.config) and not self.options.only_dequantize
        return replace(self.options, scheme="symmetric" if loaded else None, **changes)

    def _perform(
        self,
        codes: Mapping[str, str],
        run: RunOptions | None,
        writing: Writing,
        see: Callable[[Source, FilePlan], None] = lambda source, plan: None,
    ) -> Report:
        coded = {glob.escape(name): CODES[code] for name, code in codes.items() if code != FLOAT}
        bits_of = {name: bits for name, (bits, _) in coded.items()}
        size_of = {name: size for name, (_, size) in coded.items() if size is not None}
        left = [glob.escape(name) for name, code in codes.items() if code == FLOAT]

        def plan(source: Source, execution: Execution) -> FilePlan:
            options = self._with(source, bits_of=bits_of, group_size_of=size_of, exclude=[*self.options.exclude, *left])
            made = planner(options, self.onnx, run)(source, execution)
            see(source, made)
            return made

        report: Report = perform(self.source, self.output, plan, writing)
        return report


def _with_reason(each: TensorReport, codes: Mapping[str, str]) -> TensorReport:
    return replace(each, reason=STAYS) if codes.get(each.name) == FLOAT else each


def _usual(code: str, coded: Coded) -> Coded:
    return coded if code == FLOAT else replace(coded, error=USUAL[CODES[code][0]])


def _more(seen: Mapping[int, float], code: str) -> float:
    """Return by how much an error is more at the outputs: of bits that were not tried as of the nearest."""
    bits = 8 if code == FLOAT else CODES[code][0]
    return seen[min(seen, key=lambda tried: abs(tried - bits))]


def _roles(source: Source) -> Mapping[str, str]:
    if source.graph is None:
        return {}
    from modelopt_rs.onnx.measure.output_errors import roles

    return roles(source.graph)


def _said(run: RunOptions | None) -> str:
    """Return what it is measured on, in words."""
    if run is None:
        return "not run"
    inputs = run.inputs if isinstance(run.inputs, (str, os.PathLike)) else type(run.inputs).__name__
    return f"{inputs} {dict(run.dims)} {run.samples} {run.seed}"


def _errors(view: Source, name: str, transforms: Mapping[str, Measured], execution: Execution) -> dict[str, float]:
    """Take a weight through all that code it: each tile once, or once for each where memory isn't enough for all."""
    info = view.tensors[name]
    together: list[Transform] = [Together(list(transforms.values()))]
    try:
        for each in together:
            buffers = [*view.buffers(name), *each.buffers]
            tile_bytes(info, buffers, execution.max_memory, row_multiple=each.row_multiple)
    except OptionError:
        together = list(transforms.values())
    quiet = replace(execution, progress=None, done=0)
    for each in together[1:]:
        _run(view, name, each, quiet)
    _run(view, name, together[0], execution)
    return {code: layer_error(each.figures) for code, each in transforms.items()}


def _run(view: Source, name: str, transform: Transform, execution: Execution) -> None:
    for _ in TensorJob(view, name, transform).run(execution):
        pass


@dataclass(slots=True)
class _Planned:
    """What a plan makes of a model."""

    plan: FilePlan
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
        if has_graph and codes:
            # What nodes take is known of the graph with all weights in this code: each gets its share of that.
            about = overhead + sum(codes[name].nbytes if name in codes else copied[name] for name in plan.transforms)
            share = (_whole(source, plan) - about) // len(codes)
            codes = {name: replace(each, nbytes=each.nbytes + share) for name, each in codes.items()}
        return cls(plan, codes, copied, elements, overhead, of, has_graph)

    def transform(self, name: str) -> Any:
        """Return what codes a weight."""
        return self.plan.transforms[name]


def _whole(source: Source, plan: FilePlan) -> int:
    """Return the bytes of the file that a plan would make of an ONNX model."""
    from modelopt_rs.containers.onnx.layout import inline, to_proto

    infos = [info for each in plan.transforms.values() for info in each.outputs]
    return inline(to_proto(source.graph, infos), infos).nbytes


def _bytes(transform: Transform, entry: int) -> int:
    return sum(info.nbytes + len(info.name) + entry for info in transform.outputs)
