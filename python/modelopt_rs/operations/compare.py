"""`compare_files`: how far one model file is from another, quantized or not: by tensors, ONNX models by outputs too."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import check_types
from modelopt_rs.containers.container import Access
from modelopt_rs.containers.registry import open_source
from modelopt_rs.dtypes import FLOATS, INTEGERS, widened
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.layouts.view import plain
from modelopt_rs.planning.run import DEFAULT_RUN, RunOptions, check_not_run
from modelopt_rs.report.peak import peak_memory
from modelopt_rs.report.reports import CompareReport, TensorDifference
from modelopt_rs.report.run import RunReport
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of, tile_bytes
from modelopt_rs.stream.model import Source, TensorInfo, Tile

if TYPE_CHECKING:
    from modelopt_rs.onnx.dense import DenseWeight

__all__ = ["compare_files"]

SMALL = 1 << 20
HELD = 16  # bytes for each number of a weight that is made of codes: codes, numbers, both turned, and a tile


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    max_memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    run: RunOptions | None = DEFAULT_RUN,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CompareReport:
    """Compare two model files tensor by tensor; a quantized one is dequantized on the way.

    A weight of an ONNX model that the other one has as codes is compared with the numbers that these stand for; what
    both have as codes is compared only where it is the same. Two
    ONNX models are also run on the same inputs.

    Parameters
    ----------
    a, b : path
        A safetensors file, a Hugging Face model directory, a sharded checkpoint, a file of torch or Keras, or an ONNX
        model each; `a` is the reference.
    max_memory : int or str
        The most bytes, as a number or a text such as "64MiB", that the tiles of both may take.
    threads : int, optional
        Threads to compute with; never changes a result.
    run : RunOptions or None
        Of two ONNX models: on which inputs they are run; None: not run.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory, as in a hub's cache.
    progress : callable, optional
        Called with (bytes of `a` done, bytes in all, tensor name) as the work goes on.

    Returns
    -------
    CompareReport
        For each tensor that both have in the same shape: SQNR in dB (infinite where equal), the largest error
        and the cosine; the totals are over those of floats that differ,
        of integers where no float does (NaN where nothing could be compared). Names that only one has, and shapes that
        differ, are listed. Of two ONNX models also the size
        of both, how far the outputs are apart, and the latency.

    Raises
    ------
    FormatError
        If a file is malformed, or onnxruntime refuses an ONNX model.
    ValueError
        If the inputs don't fit the models, (`OptionError`) `run` is given for others than two ONNX models, or others
        have no tensor of the same name, or (`MaxErrorExceeded`) outputs are further off than `run` allows.
    OSError
        If the operating system refuses to read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> x = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    >>> info = mo.files.TensorInfo("fc.weight", "F32", x.shape, x.nbytes)
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/a.safetensors", [info]) as sink:
    ...         sink.write("fc.weight", x)
    ...         sink.commit()
    ...     _ = mo.quantize_file(f"{d}/a.safetensors", f"{d}/b.safetensors", bits=8)
    ...     report = mo.compare_files(f"{d}/a.safetensors", f"{d}/b.safetensors")
    >>> report.sqnr_db > 40
    True
    """
    check_types(compare_files, locals())
    max_memory = bytes_of("max_memory", max_memory)
    start = time.perf_counter()
    access = Access(allow_symlinks_under=allow_symlinks_under)
    with open_source(a, access) as stored_a, open_source(b, access) as stored_b:
        others = [source for source in (stored_a, stored_b) if source.graph is None]
        if others:
            check_not_run(others[0], run)
        left, right = _plain(stored_a, threads), _plain(stored_b, threads)
        codes = _check_names(left, right) if others else _codes(left, right)
        infos = {**right.tensors, **left.tensors}
        known = [name for name, info in left.tensors.items() if _alike(info, right.tensors.get(name))]
        nbytes = sum(infos[name].nbytes for name in (*known, *(each.weight.name for each in codes)))
        execution = Execution(max_memory, threads, progress, nbytes)
        figures = {name: _compare(left, right, name, execution) for name in known}
        unknown = [] if others else _codes_of_both(left, right, figures)
        figures |= {each.weight.name: f for each in codes if (f := _of_codes(each, execution)) is not None}
        large = [w for w, *_ in codes if w.name not in figures and HELD * math.prod(w.shape) > max_memory]
        left_out = _left_out(left, right, figures, [each.weight for each in codes], large)
        tensors = tuple(_difference(infos[name], f) for name, f in figures.items())
        notes = [(stored.path, note) for stored in (stored_a, stored_b) for note in stored.notes]
        notes += [(stored_b.path, _too_large(w)) for w in large]
        notes += [(stored_b.path, _in_words(unknown))] if unknown else []
        file_bytes = stored_a.nbytes, stored_b.nbytes
        ran = None if others or run is None else _run(a, b, run, execution)
    # Position ids and the like would drown the weights in the sums, and so would what nobody has changed.
    changed = {name: f for name, f in figures.items() if f.dd != 0.0}
    floats = [f for name, f in changed.items() if infos[name].dtype in FLOATS]
    whole = sum(floats or changed.values(), ErrorFigures())
    return CompareReport(
        a=str(a),
        b=str(b),
        sqnr_db=whole.sqnr_db if figures else math.nan,
        max_error=whole.max_error if figures else math.nan,
        cosine=whole.cosine if figures else math.nan,
        worst_tensor=min(figures, key=lambda name: figures[name].sqnr_db, default=None),
        **left_out,
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
        tensors=tensors,
        file_bytes=file_bytes,
        run=ran,
        changed=len(changed),
        warnings=tuple(f"{path}: {note}" for path, note in notes),
    )


def _check_names(a: Source, b: Source) -> list["_Coded"]:
    """Refuse models of which nothing can be compared; of others than two ONNX models no weight is made of codes."""
    if a.tensors and b.tensors and a.tensors.keys().isdisjoint(b.tensors):
        one, other = quote(str(a.path)), quote(str(b.path))
        fix = "an export has names of its own; compare two ONNX models, or two checkpoints"
        fix = "" if (a.graph is None) == (b.graph is None) else f": {fix}"
        raise OptionError(f"b must have a tensor of a name that a has, got {other}, which has none of {one}{fix}")
    return []


def _alike(info: TensorInfo, other: TensorInfo | None) -> bool:
    return other is not None and info.shape == other.shape and _readable(info) and _readable(other)


def _difference(info: TensorInfo, figures: ErrorFigures) -> TensorDifference:
    return TensorDifference(info.name, info.shape, figures.sqnr_db, figures.max_error, figures.cosine)


def _too_large(weight: "DenseWeight") -> str:
    needs = f"{HELD * math.prod(weight.shape):,} bytes"
    return f"{quote(weight.name)} is not compared: its codes as numbers take {needs}; give max_memory (--max-memory)"


def _left_out(
    left: Source,
    right: Source,
    figures: Mapping[str, ErrorFigures],
    codes: "Sequence[DenseWeight]",
    large: "Sequence[DenseWeight]",
) -> dict[str, Any]:
    """Return what was not compared: names that one has alone, but those that stand for weights, and others."""
    skipped = tuple(w.name for w in large)
    parts = {part for w in codes if w.name in figures or w.name in skipped for part in w.parts}
    both = {
        name: (info.shape, right.tensors[name].shape) for name, info in left.tensors.items() if name in right.tensors
    }
    return {
        "only_in_a": tuple(name for name in left.tensors if name not in {*both, *figures, *skipped, *parts}),
        "only_in_b": tuple(name for name in right.tensors if name not in {*both, *figures, *skipped, *parts}),
        "shape_mismatches": tuple((name, *shapes) for name, shapes in both.items() if shapes[0] != shapes[1]),
        "not_compared": tuple(name for name, (a, b) in both.items() if a == b and name not in figures) + skipped,
    }


def _plain(source: Source, threads: int | None) -> Source:
    """Return a view of a model with plain weights; of an ONNX model it is itself: there the graph dequantizes."""
    return source if source.graph is not None else plain(source, threads=threads)


def _run(a: str | os.PathLike[str], b: str | os.PathLike[str], options: RunOptions, execution: Execution) -> RunReport:
    from modelopt_rs.onnx.run.pair import run_pair

    return run_pair(a, b, options, threads=execution.threads, max_memory=execution.max_memory)


class _Coded(NamedTuple):
    """A weight that one model has as codes, the model that has its numbers, and whether the codes are the reference."""

    weight: "DenseWeight"
    plain: Source
    is_reference: bool


def _codes(left: Source, right: Source) -> list[_Coded]:
    """Return the weights that one of two models has as codes and the other as numbers."""
    from modelopt_rs.onnx.dense import dense_weights

    found = [_Coded(each, left, False) for each in dense_weights(left.graph, right.graph)]
    found += [_Coded(each, right, True) for each in dense_weights(right.graph, left.graph)]
    return [
        each
        for each in found
        if each.weight.name in each.plain.tensors and _readable(each.plain.tensors[each.weight.name])
    ]


def _codes_of_both(left: Source, right: Source, figures: dict[str, ErrorFigures]) -> list[str]:
    """Return the weights that both have as codes, and not the same: what codes are apart says nothing of them."""
    here, there = left.graph.graph.initializers, right.graph.graph.initializers
    found = []
    for codes in here:
        name = codes.removesuffix("_quantized")
        parts = [f"{name}{part}" for part in ("_quantized", "_scale", "_zero_point")]
        if name == codes or any(part not in graph for graph in (here, there) for part in parts[:2]):
            continue
        if any(_differ(here.get(part), there.get(part), figures.get(part)) for part in parts):
            found.append(name)
            for part in parts:
                figures.pop(part, None)
    return found


def _differ(one: Any, other: Any, figures: ErrorFigures | None) -> bool:
    """Whether two initializers are known to differ: by their figures, their form, or, of few bytes, by these."""
    if one is None or other is None:
        return one is not other
    if figures is not None:
        return figures.dd != 0.0
    a, b = one.const_value, other.const_value
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return True
    return a.nbytes <= SMALL and bool(a.tobytes() != b.tobytes())


def _in_words(names: Sequence[str]) -> str:
    weights = "1 weight" if len(names) == 1 else f"{len(names):,} weights"
    fix = "compare each model with the one that it was made of"
    return f"{weights} (as {quote(names[0])}) have other codes in both, which can't be compared: {fix}"


def _of_codes(coded: _Coded, execution: Execution) -> ErrorFigures | None:
    """Compare a weight with the codes that were made of it; None where they are of no form that is known."""
    weight, plain, is_reference = coded
    info, figures = plain.tensors[weight.name], ErrorFigures()
    most, size, done = execution.max_memory // HELD, math.prod(info.shape), 0
    if size > most:  # the codes are held whole beside a block of numbers
        most = (execution.max_memory - weight.nbytes) // HELD
    most = max(most, 0)
    for axis, at, dense in weight.blocks(most) if size and most else ():
        is_whole = dense.size == size
        rows = dense.reshape(info.rows, info.columns) if is_whole else dense
        end = at + rows.shape[axis]
        for tile in plain.tiles(weight.name, most):
            first, x = tile.first_row, _float(tile.array, info.dtype)
            begin, stop = (first, first + len(x)) if axis else (max(at, first), min(end, first + len(x)))
            if begin < stop:
                x = x[:, at:end] if axis else x[begin - first : stop - first]
                y = rows[begin:stop] if axis else rows[begin - at : stop - at]
                pair = (np.ascontiguousarray(x), np.ascontiguousarray(y, x.dtype))
                one, other = pair[is_reference], pair[not is_reference]
                figures += ErrorFigures(*_core.error_stats(one, other, None, execution.threads))
        execution.advance(info.nbytes * dense.size // size, weight.name)
        done += dense.size
    return figures if done else None


def _readable(info: TensorInfo) -> bool:
    return info.dtype in FLOATS or info.dtype in INTEGERS


def _compare(left: Source, right: Source, name: str, execution: Execution) -> ErrorFigures:
    a, b = left.tensors[name], right.tensors[name]
    if a.nbytes == 0:
        return ErrorFigures()
    # Tiles of both with the same rows, and what `_float` makes of them.
    held = [*left.buffers(name), *right.buffers(name), Buffer("u1", b.row_nbytes), Buffer("f8", 2 * a.columns)]
    rows = tile_bytes(a, held, execution.max_memory) // a.row_nbytes
    figures = ErrorFigures()
    for one, other in _aligned(left.tiles(name, rows * a.row_nbytes), right.tiles(name, rows * b.row_nbytes)):
        x, y = _float(one, a.dtype), _float(other, b.dtype)
        figures += ErrorFigures(*_core.error_stats(x, y, None, execution.threads))
        execution.advance(one.nbytes, name)
    return figures


def _aligned(left: Iterator[Tile], right: Iterator[Tile]) -> Iterator[tuple[Array, Array]]:
    """Yield the same rows of both, however each is cut."""
    one = other = None
    while True:
        one = next(left, None) if one is None else one
        other = next(right, None) if other is None else other
        if one is None or other is None:
            return
        n = min(len(one.array), len(other.array))
        yield one.array[:n], other.array[:n]
        one, other = (Tile(t.first_row + n, t.array[n:]) if len(t.array) > n else None for t in (one, other))


def _float(array: Array, dtype: str) -> Array:
    """Return a tile in a dtype that NumPy and the core both have."""
    return widened(array, dtype) if dtype in FLOATS else array.astype(np.float64)
