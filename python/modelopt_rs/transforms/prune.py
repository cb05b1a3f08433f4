"""The transforms of pruning: zeros in the place of weights, tile by tile."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs._types import PruneCall as How
from modelopt_rs.dtypes import FLOATS
from modelopt_rs.planning.prune import PLAIN, PruneOptions, WeightAxes
from modelopt_rs.prune.sparsegpt import Hessian, sparsegpt
from modelopt_rs.prune.wanda import ColumnNorms, wanda
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.model import Source, TensorInfo
from modelopt_rs.stream.transform import Copy, Rows, Transform
from modelopt_rs.transforms.ranking import Ranking, SharedThreshold, Threshold, bytes_to_rank, rank_together

__all__ = ["Inputs", "Prune", "Pruner"]

COPIED_BYTES = 2**20

# Prunes the next tile of a tensor, in place.
Step: TypeAlias = Callable[[Array], None]
# Returns what is known of the inputs of a weight: one for each group of a convolution, else one.
Inputs: TypeAlias = Callable[[str], Sequence[ColumnNorms | Hessian]]


class Pruner:
    """How the tensors that were chosen are pruned, in one pass over them in their order.

    Parameters
    ----------
    source : Source
    chosen : sequence of TensorInfo
        Tensors that `planning.prune.why_not` has nothing against, in the order in which they are pruned.
    options : PruneOptions
    execution : Execution
    axes : mapping or None
        How each of them lies; None: as (out, in).
    inputs : callable or None
        For methods that need them: the statistics of the inputs of a weight.
    """

    def __init__(
        self,
        source: Source,
        chosen: Sequence[TensorInfo],
        options: PruneOptions,
        execution: Execution,
        axes: Mapping[str, WeightAxes] | None,
        inputs: Inputs | None,
    ) -> None:
        self._inputs = inputs
        self._source, self._chosen, self._options, self._execution = source, chosen, options, execution
        self._axes = {} if axes is None else axes
        self._found: dict[str, tuple[int, int, int]] = {}  # by tensor; "" is of all together

    def bytes_to_read(self) -> int:
        """Return how many bytes are read before anything is written."""
        read = bytes_to_rank(self._chosen) if self._options.scope == "global" else 0
        if self._options.format == "bitmask":
            copies = {info.name: Copy(info) for info in self._chosen}
            sweeps = {info.name: self._transform(info, None, copies).sweeps for info in self._chosen}
            read += sum(
                info.nbytes * (1 if self._options.scope == "global" else sweeps[info.name]) for info in self._chosen
            )
        return read

    def transforms(self, then: Mapping[str, Transform]) -> dict[str, "Prune"]:
        """Return what prunes each tensor, and hands it to its other transform; the ranking of all is made first."""
        options, shared = self._options, None
        if options.scope == "global" and self._chosen:
            if "" not in self._found:
                sparsity = options.sparsity or 0.0
                self._found[""] = rank_together(
                    self._source, self._chosen, sparsity, options.nonfinite, self._execution
                )
            shared = SharedThreshold(*self._found[""])
        return {info.name: self._transform(info, shared, then) for info in self._chosen}

    def _transform(self, info: TensorInfo, shared: Threshold | None, then: Mapping[str, Transform]) -> "Prune":
        known = Threshold(*self._found[info.name]) if info.name in self._found else shared
        axes = self._axes.get(info.name, PLAIN)
        inputs = None if self._inputs is None else partial(self._inputs, info.name)
        return Prune(info, self._options, axes, known, then[info.name], self._execution.threads, inputs)

    def measure(self) -> dict[str, tuple[int, int]]:
        """Prune and write nothing; return by name how many zeros there are before and after."""
        transforms = self.transforms({info.name: Copy(info) for info in self._chosen})
        for name, transform in transforms.items():
            for _ in TensorJob(self._source, name, transform).run(self._execution):
                pass
            if transform.ranked is not None:
                self._found[name] = transform.ranked
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


def _prune_by_inputs(
    shape: tuple[int, ...],
    axes: tuple[int, int],
    options: PruneOptions,
    how: How,
    inputs: Callable[[], Sequence[ColumnNorms | Hessian]],
    array: Array,
) -> None:
    """Prune a whole weight as (out, in): a convolution's inputs are its kernel's positions, of each the channels."""
    outputs = np.moveaxis(array.reshape(shape), axes, (0, -1))
    matrix = np.ascontiguousarray(outputs).reshape(len(outputs), -1)
    statistics = inputs()
    if any(each.count == 0 for each in statistics):  # no sample reaches the layer: nothing says what matters in it
        return
    rows = len(matrix) // len(statistics)
    share = {"sparsity": options.sparsity, "n": options.n, "m": options.m}
    for place, each in enumerate(statistics):
        part = matrix[place * rows : (place + 1) * rows]
        more: Any = {**share, "nonfinite": options.nonfinite, "dtype": how[1], "threads": how[2], "out": part}
        if isinstance(each, Hessian):
            sparsegpt(part, each, **more)
        else:
            wanda(part, each, **more)
    outputs[...] = matrix.reshape(outputs.shape)


class Prune(Transform):
    """Weights to zeros, then another transform.

    Parameters
    ----------
    info : TensorInfo
    options : PruneOptions
    axes : WeightAxes
        How the weight lies.
    threshold : Threshold or None
        What goes of all tensors together. None: the sweeps before the last one rank this tensor, where it must be.
    then : Transform
        Of one sweep.
    threads : int or None
    inputs : callable, optional
        For methods that need them: returns the statistics of the weight's inputs.

    Attributes
    ----------
    zeros : (int, int)
        How many zeros there have been before and after.
    ranked : (int, int, int) or None
        The threshold that was found in the sweeps before the last: its bits, key and ties.
    """

    def __init__(
        self,
        info: TensorInfo,
        options: PruneOptions,
        axes: WeightAxes,
        threshold: Threshold | None,
        then: Transform,
        threads: int | None,
        inputs: Callable[[], Sequence[ColumnNorms | Hessian]] | None = None,
    ) -> None:
        self._inputs = inputs
        self._info, self._options, self._axes, self._then, self._threads = info, options, axes, then, threads
        self._threshold = threshold
        self.outputs = then.outputs
        self.buffers = (*then.buffers, *self._held())
        self.row_multiple = math.lcm(self._rows_together(), then.row_multiple)
        self.sweeps = then.sweeps
        if self._is_ranked() and threshold is None:
            self.sweeps += self._ranking().sweeps
        self.zeros = (0, 0)
        self.ranked: tuple[int, int, int] | None = None

    def _is_ranked(self) -> bool:
        options = self._options
        return options.sparsity is not None and options.scope != "row" and not options.calibrated

    def _held(self) -> list[Buffer]:
        """Return what a method that needs inputs holds: a copy of the weight, the sums of its inputs."""
        if not self._options.calibrated or self._axes.out_axis is None:
            return []
        columns = math.prod(self._info.shape) // self._info.shape[self._axes.out_axis]
        copy = Buffer("f4", 2 * math.prod(self._info.shape), per=0)
        # Of a Hessian also its matrix and its factor.
        return [copy, Buffer("f8", 3 * columns**2 if self._options.method == "sparsegpt" else columns, per=0)]

    def _ranking(self) -> Ranking:
        return Ranking([self._info], self._options.sparsity or 0.0, self._options.nonfinite, self._threads)

    def _rows_together(self) -> int:
        """Return how many rows must come together."""
        output = self._info.rows // self._info.shape[0]
        if self._options.calibrated:
            return self._info.rows
        if self._options.m is not None:
            return output * (self._options.m if self._axes.in_axis == 0 else 1)
        if self._options.scope == "row":
            return output if self._axes.out_axis == 0 else self._info.rows
        return 1

    def begin(self, rows: int) -> None:
        """Get ready to rank, where that must be, and to prune."""
        self._counting = self._ranking() if self._is_ranked() and self._threshold is None else None
        self._left = self.sweeps - self._then.sweeps
        self._step = self._choose_step()
        self._then.begin(rows)

    def _choose_step(self) -> Step:
        """Return what prunes a tile."""
        options, shape, dtype = self._options, self._info.shape, FLOATS[self._info.dtype]
        # In place, so that NaN must be looked for first.
        how = ("raise-first" if options.nonfinite == "raise" else options.nonfinite, dtype, self._threads)
        if self._inputs is not None:
            assert self._axes.out_axis is not None
            assert self._axes.in_axis is not None
            return partial(
                _prune_by_inputs, shape, (self._axes.out_axis, self._axes.in_axis), options, how, self._inputs
            )
        if options.n is not None and options.m is not None:
            assert self._axes.in_axis is not None
            return partial(_prune_groups, shape, self._axes.in_axis, (options.n, options.m), how)
        if options.scope == "row":
            assert self._axes.out_axis is not None
            return partial(_prune_rows, shape, self._axes.out_axis, options.sparsity or 0.0, how)
        return self._prune_by_threshold

    def _prune_by_threshold(self, array: Array) -> None:
        assert self._threshold is not None
        self._threshold.prune(array, FLOATS[self._info.dtype], self._threads)

    def __call__(self, array: Array) -> Rows:
        """Count a tile in the sweeps that rank, prune it in the last."""
        if self._left and self._counting is not None:
            self._counting.count(array, FLOATS[self._info.dtype])
            return []
        before = self._count(array)
        self._step(array)
        self.zeros = (self.zeros[0] + before, self.zeros[1] + self._count(array))
        return self._then(array)

    def _count(self, array: Array) -> int:
        return array.size - int(_core.count_nonzero(array, None, False, FLOATS[self._info.dtype], self._threads))

    def end(self) -> Rows:
        """End a sweep; return what the other transform has left."""
        if self._left and self._counting is not None:
            self._counting.end_pass()
            self._left -= 1
            if not self._left:
                self.ranked = self._counting.threshold()
                self._threshold = Threshold(*self.ranked)
            return []
        return self._then.end()

    def starts(self, row: int) -> Mapping[str, int] | None:
        """Return where the other transform begins; what is ranked is ranked whole."""
        return self._then.starts(row) if row == 0 or not self._is_ranked() else None
