"""The passes of cropping: the importance of units tile by tile, and tiles without what goes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.dtypes import FLOATS
from modelopt_rs.errors import quote
from modelopt_rs.prune.coupling import Group, UnitSlices
from modelopt_rs.prune.crop import take
from modelopt_rs.prune.importance import BlockNorms, Join, Scores, importance, unit_norms
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.model import Source, TensorInfo
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["Crop", "Measure", "Scorer"]


class Scorer:
    """The importance of the units of groups, in one pass over their scored tensors: the bits of `prune.plan_crop`.

    Parameters
    ----------
    source : Source
    groups : sequence of Group
        Groups that `check_groups` has passed, whose scored members are of floats.
    norm : {1, 2, inf}
    nan : {"raise", "remove"}
        Whether a unit with a NaN is an error.
    execution : Execution
    """

    def __init__(self, source: Source, groups: Sequence[Group], norm: float, nan: str, execution: Execution) -> None:
        self._source, self._norm, self._nan, self._execution = source, norm, nan, execution
        self._joins = {group.name: Join(norm) for group in groups}
        # Parts are joined in the order of the members, whatever the order of the file.
        self._next = dict.fromkeys(self._joins, 0)
        self._waiting: dict[str, dict[int, Scores]] = {name: {} for name in self._joins}
        self._cuts: dict[str, list[tuple[UnitSlices, int]]] = {}
        for group in groups:
            for place, member in enumerate(member for member in group.members if member.scored):
                axis = int(member.axis) % len(source.tensors[member.name].shape)
                self._cuts.setdefault(member.name, []).append((UnitSlices(group, member, axis), place))

    def bytes_to_read(self) -> int:
        """Return how many bytes the pass reads."""
        return sum(self._source.tensors[name].nbytes for name in self._cuts)

    def scores(self) -> dict[str, Scores]:
        """Read the tensors; return the importance of each unit, by group.

        Raises
        ------
        OptionError
            If a block of rows does not fit the memory.
        ValueError
            If a unit has a NaN, with the tensor that it is in.
        """
        for name, info in self._source.tensors.items():
            cuts = self._cuts.get(name, [])
            if not cuts:
                continue
            measure = Measure(info, [cut for cut, _ in cuts], self._norm, self._execution.threads)
            for _ in TensorJob(self._source, name, measure).run(self._execution):
                pass
            for (cut, place), part in zip(cuts, measure.parts(), strict=True):
                self._check(cut, part)
                self._take_in(cut.group.name, place, part)
        return {name: join.norms() for name, join in self._joins.items()}

    def _check(self, cut: UnitSlices, part: Scores) -> None:
        bad = np.flatnonzero(np.isnan(part))
        if self._nan == "raise" and len(bad):
            where = f"{self._source.path}: tensor {quote(cut.member.name)}"
            unit = f"unit {bad[0]:,} of group {quote(cut.group.name)}"
            raise ValueError(
                f"{where}: {unit} has a NaN; nonfinite='remove' (--nonfinite remove) removes such units first"
            )

    def _take_in(self, group: str, place: int, part: Scores) -> None:
        waiting = self._waiting[group]
        waiting[place] = part
        while self._next[group] in waiting:
            self._joins[group].add(waiting.pop(self._next[group]))
            self._next[group] += 1


class Measure(Transform):
    """The transform that writes nothing: the norms of units of one tensor.

    Parameters
    ----------
    info : TensorInfo
        Of floats.
    cuts : sequence of UnitSlices
        Where its units lie.
    norm : {1, 2, inf}
    threads : int or None
    """

    outputs: Sequence[TensorInfo] = ()

    def __init__(self, info: TensorInfo, cuts: Sequence[UnitSlices], norm: float, threads: int | None) -> None:
        self._info, self._cuts, self._norm, self._threads = info, cuts, norm, threads
        self._dtype = FLOATS[info.dtype]
        self._of_rows: list[Array] = []
        self._blocks = {
            i: BlockNorms(len(cut.range), norm, self._dtype, threads)
            for i, cut in enumerate(cuts)
            if 0 < cut.axis == len(info.shape) - 1
        }
        self.row_multiple = max((blocks.rows for blocks in self._blocks.values()), default=1)
        # The norms of rows; columns that are not all of a row are copied.
        copied = info.row_nbytes if any(len(cuts[i].range) < info.columns for i in self._blocks) else 0
        self.buffers = (Buffer("f8", 1), Buffer("u1", copied))

    def __call__(self, array: Array) -> Rows:
        """Take in a tile."""
        if len(self._blocks) < len(self._cuts):
            self._of_rows.append(_core.norm(array, (1,), False, self._norm, self._dtype, self._threads))
        for i, blocks in self._blocks.items():
            along = self._cuts[i].range
            blocks.add(array[:, along.start : along.stop])
        return []

    def parts(self) -> list[Scores]:
        """Return the norm of each unit of each cut."""
        if not self._info.nbytes:
            return [np.zeros(cut.group.units) for cut in self._cuts]
        of_rows = np.concatenate(self._of_rows) if self._of_rows else np.zeros(0)
        parts = []
        for i, cut in enumerate(self._cuts):
            if i in self._blocks:
                norms = self._blocks[i].norms()
            else:
                norms = self._along(of_rows, cut.axis)[cut.range.start : cut.range.stop]
            parts.append(unit_norms(norms, cut.member.size, self._norm, self._threads))
        return parts

    def _along(self, of_rows: Array, axis: int) -> Array:
        """Return the norms of slices along one of the axes that rows lie on."""
        axes = self._info.shape[:-1]
        if len(axes) < 2:
            return of_rows
        return importance(of_rows.reshape(axes), axis, norm=self._norm, threads=self._threads)


class Crop(Transform):
    """Tiles without the rows and columns that go, then another transform.

    Parameters
    ----------
    info : TensorInfo
    stays : mapping of int to ndarray of bool
        By axis the indices that stay.
    then : Transform
        What becomes of the smaller tensor.
    threads : int or None
    """

    def __init__(
        self, info: TensorInfo, stays: Mapping[int, NDArray[np.bool_]], then: Transform, threads: int | None
    ) -> None:
        self._info, self._then, self._threads = info, then, threads
        last = max(1, len(info.shape) - 1)
        self._rows = _rows(info.shape[:last], stays)
        self._columns = np.flatnonzero(stays[last]) if last in stays else None
        self.outputs = then.outputs
        self.sweeps = then.sweeps
        # Where rows go, tiles of as many as the other transform wants are put together here.
        self.row_multiple = then.row_multiple if self._rows is None else 1
        gathered = (self._rows is not None) + (self._columns is not None) + (self.row_multiple < then.row_multiple)
        self.buffers = (Buffer("u1", gathered * info.row_nbytes), *then.buffers)
        self._done = 0
        self._left: Array | None = None

    def begin(self, rows: int) -> None:
        """Get the other transform ready."""
        self._then.begin(rows + self._then.row_multiple - 1)

    def __call__(self, array: Array) -> Rows:
        """Crop a tile."""
        first, self._done = self._done, self._done + len(array)
        if self._rows is not None:
            array = take(array, np.flatnonzero(self._rows[first : self._done]), 0, threads=self._threads)
        if self._columns is not None:
            array = take(array, self._columns, 1, threads=self._threads)
        if self.row_multiple < self._then.row_multiple:
            array = self._in_units(array)
        return self._then(array) if len(array) else []

    def _in_units(self, array: Array) -> Array:
        """Return as many rows as make whole units of the other transform, at the end all; keep the others."""
        if self._left is not None:
            array = np.concatenate([self._left, array])
        whole = (
            len(array)
            if self._done == self._info.rows
            else len(array) // self._then.row_multiple * self._then.row_multiple
        )
        self._left = array[whole:].copy()
        return array[:whole]

    def end(self) -> Rows:
        """Return what the other transform has left."""
        self._done, self._left = 0, None
        return self._then.end()


def _rows(axes: tuple[int, ...], stays: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    """Return which rows stay of a tensor whose rows lie on these axes; None for all."""
    if not any(axis in stays for axis in range(len(axes))):
        return None
    rows = np.ones(axes, np.bool_)
    for axis in range(len(axes)):
        if axis in stays:
            rows &= stays[axis].reshape([-1 if i == axis else 1 for i in range(len(axes))])
    return rows.ravel()
