"""`optimize_file`: a model file of a given size, with the bits of each weight where they matter most."""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from modelopt_rs.arguments import check_types
from modelopt_rs.containers.atomic import write_whole
from modelopt_rs.containers.checkpoint_sink import refuse_same
from modelopt_rs.containers.container import check_place
from modelopt_rs.containers.registry import container_at
from modelopt_rs.errors import OptionError, UnsupportedError
from modelopt_rs.operations.answers import best_answer
from modelopt_rs.operations.losses import Losses
from modelopt_rs.operations.skeleton import Writing
from modelopt_rs.planning.allocation import Allocation
from modelopt_rs.planning.loss_table import Answer, LossTable
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import DEFAULT_RUN, RunOptions
from modelopt_rs.report.reports import Report
from modelopt_rs.stream.execution import Progress
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of

__all__ = ["optimize_file"]


TRIES: Final = 4
"""How often a graph is made to see its size."""

NEAR: Final = 0.0005
"""What part of a size may be left over without another try."""


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
    """Quantize a model to a size: each weight gets 8, 4 (in groups of 16 to 128) or 2 bits or stays, at least loss.

    The relative error of every weight in every code is measured over all its rows, with the encoders that write them
    (scales are searched), in one pass. The loss is the sum of their squares, each times the weight's elements (of a
    table or a head at most those of the largest layer) and its prior; its least value within the size is found by
    Lagrange and branch and bound. An ONNX model is run besides, on the inputs that `run` gives or makes up, with one
    weight after the other rounded: what that does to its outputs counts in the place of elements and priors (at least
    a tenth of them). Of this answer, those of uniform bits, and up to eight that have another code for some weight
    than the best of these, and what of these changes helps put together, each made and run whole (models up to 256
    MiB, where no priors are given), that is written whose outputs are least off (scores where they are probabilities)
    on the inputs that are given, or 16 to 256 that are made up: by these none is worse than uniform bits. Of a
    directory, which isn't run, no weight is further off than by uniform bits of that size, unless that makes the loss
    clearly less: also if layers count otherwise than is thought. Weights that runtimes fuse (query, key and value;
    gate and up; experts) share their codes; what transformers reads only where all weights are coded alike gets one,
    or stays. Mixed bits have no zero points where transformers would not read them; all weights in one code may have
    them.

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
        Of the weights that a glob matches; the first that matches counts, also where outputs were measured. By default
        4 for the values of attention, 3 for heads, 1 for others.
    table : path, optional
        A JSON file with what was measured: read if it is there, else written, so that another size takes milliseconds
        to find. It must be of this model and these options; that weights have changed is not seen. It remembers
        answers: a larger size gets none that is worse than that to a smaller one.
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
    if table is not None and not Path(table).parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such directory for the table", str(Path(table).parent))
    work = Losses(source_path, out_path, options, onnx, run, writing)
    given = priors or {}
    with work.planned() as plans:
        losses = work.sizes(plans)
        size = _size(source_path, losses, target_size, target_bpw)
        if not dry_run:
            if Path(source_path).is_dir():
                refuse_same(source_path, out_path)
            check_place(out_path, overwrite, directory=_is_checkpoint(source_path))
        if table is not None and Path(table).exists():
            losses = _read(table, losses)
        else:
            work.check(losses, size)
            losses = work.measured(losses, plans)
            if table is not None:
                write_whole(table, losses.to_json().encode())
    del plans
    answer, found = _answered(work, losses, _size(source_path, losses, target_size, target_bpw), given, table)
    loss = losses.loss(found, given)
    if max_loss is not None and loss > max_loss:
        raise OptionError(f"max_loss must be at least {loss:.4g} for this size, got {max_loss:g}")
    floor, ceiling = losses.range()
    said = {"floor": floor, "ceiling": ceiling, "size": answer.nbytes, "loss": loss, "gap": found.gap}
    asked = {"target_size": target_size, "target_bpw": target_bpw, "max_loss": max_loss, "priors": dict(given)}
    report = work.written(answer.codes)
    return replace(report, command="optimize", options={**report.options, **asked, "allocation": said})


def _answered(
    work: Losses, losses: LossTable, size: int, given: Mapping[str, float], table: str | os.PathLike[str] | None
) -> tuple[Answer, Allocation]:
    """Return the answer that is written, with its loss; the table remembers what was looked at."""
    codes, found, nbytes = _fitting(work, losses, size, given)
    answer, seen = best_answer(work, losses, Answer(codes, nbytes), size, given)
    if table is not None and seen != losses:
        write_whole(table, seen.to_json().encode())
    return answer, replace(found, loss=losses.loss_of(answer.codes, given))


def _fitting(
    work: Losses, losses: LossTable, size: int, priors: Mapping[str, float]
) -> tuple[dict[str, str], Allocation, int]:
    """Return the best codes with which the model is at most of this size, and its bytes.

    What the nodes of a graph take is only known of one that is made: what that has too much or too little, the budget
    for the next has less or more.
    """
    best: tuple[dict[str, str], Allocation, int] | None = None
    budget = size
    for _ in range(TRIES):
        if budget < losses.range()[0]:
            break
        codes, found = losses.allocate(budget, priors)
        nbytes = work.nbytes(codes, losses.fixed + found.nbytes)
        if nbytes <= size and (best is None or found.loss < best[1].loss):
            best = codes, found, nbytes
        if 0 <= size - nbytes <= NEAR * size:
            break
        # From what was estimated, not from the budget: what it leaves over is no error.
        budget = size + losses.fixed + found.nbytes - nbytes
    if best is None:
        raise OptionError(f"target_size must be larger for this model, got {size:,}: its nodes take more")
    return best


def _is_checkpoint(path: str | os.PathLike[str]) -> bool:
    return container_at(Path(path)).name == "checkpoint"


def _read(path: str | os.PathLike[str], losses: LossTable) -> LossTable:
    """Read what was measured of this model."""
    read = LossTable.from_json(Path(path).read_text(), str(path))
    read.check_of(losses.of, str(path))
    return read


def _check(size: int | None, bpw: float | None, max_loss: float | None, priors: Mapping[str, float]) -> None:
    if (size is None) == (bpw is None):
        raise OptionError(f"one of target_size and target_bpw must be given, got {'none' if size is None else 'both'}")
    for name, value in (("target_size", size), ("target_bpw", bpw), ("max_loss", max_loss)):
        if value is not None and not value > 0:
            raise OptionError(f"{name} must be above 0, got {value}")
    for pattern, prior in priors.items():
        if not 0 <= prior < float("inf"):
            raise OptionError(f"priors {pattern!r} must be finite and not negative, got {prior}")


def _what_stays(table: LossTable) -> str:
    """Say what could still be had, where what is left alone by default is much of the least that is possible."""
    if 3 * table.fixed < table.range()[0]:
        return ""
    return (
        f"; {table.fixed:,} of them are of tensors that stay as they are, such as embeddings: include (--include) some"
    )


def _size(path: str | os.PathLike[str], table: LossTable, size: int | None, bpw: float | None) -> int:
    """Return the most bytes, if they can be had: before weights are measured, and of the codes that they then have."""
    if not table.elements:
        raise UnsupportedError(f"{os.fspath(path)}: no weight of it can have fewer bits; quantize says why")
    floor, ceiling = table.range()
    if size is not None:
        if not floor <= size < ceiling:
            asked = f"target_size must be from {floor:,} to {ceiling - 1:,} bytes for this model, got {size:,}"
            raise OptionError(asked + (_what_stays(table) if size < floor else ""))
        return size
    assert bpw is not None
    bits = [8 * (bytes_ - table.fixed) / max(table.elements, 1) for bytes_ in (floor, ceiling)]
    if not bits[0] <= bpw < bits[1]:
        raise OptionError(f"target_bpw must be from {bits[0]:.3f} to below {bits[1]:.3f} for this model, got {bpw:g}")
    return table.fixed + int(bpw * table.elements / 8)
