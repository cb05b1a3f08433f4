"""How the weights of the tensors that lost most are spread, read from a model and what was made of it."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import reduce
from modelopt_rs._types import Array
from modelopt_rs.containers.container import Access
from modelopt_rs.containers.registry import open_source
from modelopt_rs.dtypes import FLOATS, widened
from modelopt_rs.layouts.view import plain
from modelopt_rs.report.distribution import Distribution
from modelopt_rs.report.reports import CompareReport, InspectReport, Report
from modelopt_rs.stream.model import Source

__all__ = ["distributions"]

BINS = 160
WORST = 3  # tensors that are drawn
GROUP = 32  # weights whose levels are shown: the usual group
# Numbers of a tensor that are read: a picture needs no more, and memory stays bounded.
SAMPLE = 1 << 22


def distributions(
    report: Report | CompareReport | InspectReport, *, allow_symlinks_under: str | os.PathLike[str] | None = None
) -> tuple[Distribution, ...]:
    """Count the weights of the tensors that lost most, before and after.

    Parameters
    ----------
    report : Report, CompareReport or InspectReport
        Whose files are still there; of a dry run, and of `inspect_file`, nothing is counted.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory.

    Returns
    -------
    tuple of Distribution
        Of tensors that are very large their first rows.
    """
    if isinstance(report, InspectReport) or (isinstance(report, Report) and (report.dry_run or not report.output)):
        return ()
    before, after = (report.a, report.b) if isinstance(report, CompareReport) else (report.source, report.output)
    if _gone(before, after):
        return ()
    lossy = [t for t in report.tensors if t.sqnr_db is not None and math.isfinite(t.sqnr_db)]
    worst = sorted(lossy, key=lambda t: t.sqnr_db or 0.0)[:WORST]
    access = Access(allow_symlinks_under=allow_symlinks_under)
    with ExitStack() as stack:
        old, new = (stack.enter_context(open_source(path, access)) for path in (before, after))
        graphs = old.graph is not None
        left, right = (old, new) if graphs else (plain(old), plain(new))
        pairs = ((tensor.name, _pair(left, right, tensor.name)) for tensor in worst)
        return tuple(_count(name, *pair) for name, pair in pairs if pair is not None)


def _gone(before: str, after: str) -> bool:
    """Whether there are no longer two models: a file has gone, or the new one has taken the old one's place."""
    try:
        return Path(before).samefile(after)
    except FileNotFoundError:
        return True


def _pair(left: Source, right: Source, name: str) -> tuple[Array, Array] | None:
    """Return a tensor of both models as plain numbers in rows; None where they can't be laid beside each other."""
    info = left.tensors.get(name)
    if info is None or info.dtype not in FLOATS or not info.shape or not info.nbytes:
        return None
    rows = max(min(SAMPLE // max(info.columns, 1), info.rows), 1)
    x = _rows(left, name, rows)
    # What shares a scale in a kernel lies along several axes.
    whole = (info.shape[0], -1) if len(info.shape) > 2 and rows == info.rows else x.shape
    x = x.reshape(whole)
    other = right.tensors.get(name)
    if other is not None:
        same = other.shape == info.shape and other.dtype in FLOATS
        return (x, _rows(right, name, rows).reshape(whole)) if same else None
    return (
        None if left.graph is None else next(((x, y[:rows].reshape(whole)) for y in _of_codes(left, right, name)), None)
    )


def _rows(source: Source, name: str, rows: int) -> Array:
    info = source.tensors[name]
    tiles = source.tiles(name, rows * info.row_nbytes, range(rows))
    return np.concatenate([widened(tile.array, info.dtype) for tile in tiles]).reshape(rows, info.columns)


def _of_codes(left: Source, right: Source, name: str) -> Iterator[Array]:
    from modelopt_rs.onnx.dense import dense_weights

    for weight in dense_weights(left.graph, right.graph):
        if weight.name == name and math.prod(weight.shape) <= SAMPLE and (dense := weight.read()) is not None:
            yield np.ascontiguousarray(dense).reshape(left.tensors[name].rows, left.tensors[name].columns)


def _count(name: str, x: Array, y: Array) -> Distribution:
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(finite, x, 0), np.where(finite, y, 0).astype(x.dtype, copy=False)
    # Where all but one in a thousand are: one weight far outside would leave one bin for all others.
    reach = 1.5 * float(reduce.quantile(np.abs(x), 0.999)) or float(reduce.absmax(x)) or 1.0
    before, edges = reduce.histogram(x, BINS, (-reach, reach))
    after, _ = reduce.histogram(y, BINS, (-reach, reach))
    return Distribution(name, edges, before, after, _levels(x, y))


def _levels(x: Array, y: Array) -> NDArray[np.float64]:
    """Return the different numbers of the group whose largest weight is middling.

    Groups lie along the rows, or along the columns: where they have the fewer numbers.
    """
    long = [(a, b) for a, b in ((x, y), (x.T, y.T)) if a.shape[1] >= min(GROUP, max(x.shape))]
    return min((_middling(a, b) for a, b in long), key=len)


def _middling(x: Array, y: Array) -> NDArray[np.float64]:
    group = min(GROUP, x.shape[1])
    largest = np.abs(x[:, : x.shape[1] // group * group]).reshape(len(x), -1, group).max(axis=2)
    middling = np.argsort(largest, axis=None)[largest.size // 2]
    row, first = divmod(int(middling) * group, largest.shape[1] * group)
    return np.unique(y[row, first : first + group]).astype(np.float64)
