"""The transforms of pruning: zeros in the place of weights, tile by tile, and weights without their zeros."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import PruneOptions as How
from modelopt_rs.files import Source, TensorInfo
from modelopt_rs.files.bitmask import bitmask_tensors
from modelopt_rs.files.model import FLOATS, Array
from modelopt_rs.pipeline.prune_plan import PLAIN, Layout, PruneOptions
from modelopt_rs.pipeline.ranking import Cut, bytes_to_rank, find_cut
from modelopt_rs.pipeline.tiles import Road
from modelopt_rs.pipeline.transform import Copy, Transform, apply
from modelopt_rs.prune.sparse import compress_rows

__all__ = ["Bitmask", "Prune", "Pruner"]

COPIED_BYTES = 2**20

# Prunes the next tile of a tensor, in place.
Step: TypeAlias = Callable[[Array], None]


class Pruner:
    """How the tensors that were chosen are pruned, in one pass over them in their order.

    Parameters
    ----------
    source : Source
    chosen : sequence of TensorInfo
        Tensors that `prune_plan.why_not` has nothing against, in the order in which they are pruned.
    options : PruneOptions
    road : Road
    layouts : mapping, optional
        How each of them lies; by default as (out, in).
    found : dict, optional
        The cuts that an earlier pass has found.
    """

    def __init__(
        self,
        source: Source,
        chosen: Sequence[TensorInfo],
        options: PruneOptions,
        road: Road,
        layouts: Mapping[str, Layout] | None = None,
        found: dict[str, Cut] | None = None,
    ) -> None:
        self._source, self._chosen, self._options, self._road = source, chosen, options, road
        self._layouts = {} if layouts is None else layouts
        self._found: dict[str, Cut] = {} if found is None else found
        self._cuts: dict[str, Cut] = {}

    def again(self) -> "Pruner":
        """Return one for another pass."""
        return Pruner(self._source, self._chosen, self._options, self._road, self._layouts, self._found)

    def bytes_to_read(self) -> int:
        """Return how many bytes are read before the pass that prunes."""
        if self._options.sparsity is None or self._options.scope == "row":
            return 0
        if self._options.scope == "global":
            return bytes_to_rank(self._chosen)
        return sum(bytes_to_rank([info]) for info in self._chosen)

    def unit(self, info: TensorInfo) -> int:
        """Return how many rows must come together."""
        layout, output = self._layouts.get(info.name, PLAIN), info.rows // info.shape[0]
        if self._options.group is not None:
            return output * (self._options.group if layout.in_axis == 0 else 1)
        if self._options.scope == "row":
            return output if layout.out_axis == 0 else info.rows
        return 1

    def step(self, info: TensorInfo) -> Step:
        """Return what prunes the tiles of a tensor."""
        options, threads, dtype = self._options, self._road.threads, FLOATS[info.dtype]
        # In place, so that NaN must be looked for first.
        layout = self._layouts.get(info.name, PLAIN)
        how = ("raise-first" if options.nan == "raise" else options.nan, dtype, threads)
        if options.keep is not None and options.group is not None:
            assert layout.in_axis is not None
            return partial(_prune_groups, info.shape, layout.in_axis, (options.keep, options.group), how)
        assert options.sparsity is not None
        if options.scope == "row":
            assert layout.out_axis is not None
            return partial(_prune_rows, info.shape, layout.out_axis, options.sparsity, how)
        return partial(self._cut(info, options.sparsity), dtype=dtype, threads=threads)

    def _cut(self, info: TensorInfo, sparsity: float) -> Cut:
        together = self._options.scope == "global"
        key, tensors = ("", self._chosen) if together else (info.name, [info])
        if key not in self._found:
            self._found[key] = find_cut(self._source, tensors, sparsity, self._options.nan, self._road)
        # A copy: it counts the ties that have gone in this pass.
        return self._cuts.setdefault(key, replace(self._found[key]))

    def measure(self) -> dict[str, tuple[int, int]]:
        """Prune and write nothing; return by name how many zeros there are before and after."""
        transforms = {info.name: Prune(info, self, Copy(info), self._road.threads) for info in self._chosen}
        for name, transform in transforms.items():
            for _ in apply(self._source, name, transform, self._road):
                pass
        return {name: transform.zeros for name, transform in transforms.items()}


def _prune_rows(shape: tuple[int, ...], axis: int, sparsity: float, how: How, array: Array) -> None:
    outputs = np.moveaxis(array.reshape(-1, *shape[1:]), axis, 0)
    size = outputs[0].size
    # Where outputs are columns some at a time are copied to where they lie in a row.
    step = len(outputs) if axis == 0 else max(1, COPIED_BYTES // (size * array.itemsize))
    for first in range(0, len(outputs), step):
        part = outputs[first : first + step]
        rows = np.ascontiguousarray(part).reshape(-1, size)
        _core.magnitude(rows, sparsity, 1, rows, how)
        if axis:
            part[...] = rows.reshape(part.shape)


def _prune_groups(shape: tuple[int, ...], axis: int, share: tuple[int, int], how: How, array: Array) -> None:
    outputs = array.reshape(-1, *shape[1:])
    _core.n_of_m(outputs, *share, axis, outputs, how)


class Prune:
    """Weights to zeros, then another transform.

    Attributes
    ----------
    zeros : (int, int)
        How many zeros there have been before and after.
    """

    def __init__(self, info: TensorInfo, pruner: Pruner, then: Transform, threads: int | None) -> None:
        self._info, self._pruner, self._then, self._threads = info, pruner, then, threads
        self.outputs = then.outputs
        self.bytes_per_row = then.bytes_per_row
        self.unit = math.lcm(pruner.unit(info), then.unit)
        self.kept, self.passes = then.kept, then.passes
        self.zeros = (0, 0)

    def begin(self, rows: int) -> None:
        """Find the cut, where there is one."""
        self._step = self._pruner.step(self._info)
        self._then.begin(rows)

    def __call__(self, array: Array) -> Sequence[tuple[str, Array]]:
        """Prune a tile."""
        before = self._count(array)
        self._step(array)
        self.zeros = (self.zeros[0] + before, self.zeros[1] + self._count(array))
        return self._then(array)

    def _count(self, array: Array) -> int:
        return array.size - int(_core.count_nonzero(array, None, False, FLOATS[self._info.dtype], self._threads))

    def end(self) -> Sequence[tuple[str, Array]]:
        """Return what the other transform has left."""
        return self._then.end()


class Bitmask:
    """Rows to the values that are not zero and a bit for each.

    Parameters
    ----------
    info : TensorInfo
        A weight of at least two axes.
    nonzero : int
        How many of its values are not zero.
    threads : int or None
    """

    kept = 0
    passes = 1

    def __init__(self, info: TensorInfo, nonzero: int, threads: int | None) -> None:
        self._info, self._threads = info, threads
        self.outputs: Sequence[TensorInfo] = bitmask_tensors(info, nonzero)
        self.unit = info.rows // info.shape[0]
        # Values, bits, and offsets as they are made and as they are written.
        self.bytes_per_row = info.row_nbytes + -(-info.columns // 8) + 16
        self._done = 0

    def begin(self, rows: int) -> None:
        """Do nothing."""

    def __call__(self, array: Array) -> Sequence[tuple[str, Array]]:
        """Compress a tile."""
        outputs = array.reshape(-1, math.prod(self._info.shape[1:]))
        small = compress_rows(outputs, dtype=FLOATS[self._info.dtype], threads=self._threads)
        offsets = small.row_offsets[:-1] + self._done
        self._done += len(small.values)
        names = [output.name for output in self.outputs]
        return list(zip(names, (small.values, small.bitmask, offsets), strict=False))

    def end(self) -> Sequence[tuple[str, Array]]:
        """Return the shape."""
        return [(self.outputs[-1].name, np.array(self._info.shape, np.int64))]
