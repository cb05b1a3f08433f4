"""Units that say least to the layers behind them while calibration data run, and what makes up for those that go."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.dtypes import FLOATS, widened
from modelopt_rs.errors import OptionError
from modelopt_rs.prune.coupling import Group, Member
from modelopt_rs.prune.importance import Scores
from modelopt_rs.prune.repair import InputStats
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Transform
from modelopt_rs.transforms.repair import Repair

__all__ = ["UnitInputs", "check_no_hidden", "takers"]


class UnitInputs:
    """What goes into the layers that take the units of groups.

    Parameters
    ----------
    source : Source
        The model before it is cropped.
    groups : iterable of Group
    axes : mapping
        By name of a weight that takes units the axis of its outputs, and that of its inputs.
    norms, sums : callable
        Return the `ColumnNorms` and the `Hessian` of the inputs of a weight, in a list.
    """

    def __init__(
        self,
        source: Source,
        groups: Sequence[Group],
        axes: Mapping[str, tuple[int, int]],
        norms: Callable[[str], Sequence[ColumnNorms | Hessian]],
        sums: Callable[[str], Sequence[ColumnNorms | Hessian]],
    ) -> None:
        self._source, self._axes, self._norms, self._sums = source, axes, norms, sums
        self._groups = {group.name: group for group in groups}
        self._members: dict[str, list[tuple[str, Member]]] = {name: [] for name in axes}
        for group in groups:
            for member in group.members:
                if member.name in axes and member.axis % len(source.tensors[member.name].shape) == axes[member.name][1]:
                    self._members[member.name].append((group.name, member))

    def scores(self, scores: Mapping[str, Scores]) -> dict[str, Scores]:
        """Return the importance of units: ``sqrt(sum |w[:, j]|² |x[j]|²)`` over their inputs `j` to layers behind.

        Of groups that no layer takes whose inputs are seen it is as it was.
        """
        energy: dict[str, Scores] = {}
        for name, members in self._members.items():
            wanted = [(group, member) for group, member in members if group in scores]
            if not wanted:
                continue
            out_axis, in_axis = self._axes[name]
            read = widened(self._source.read(name), self._source.tensors[name].dtype)
            weight = np.moveaxis(read, (out_axis, in_axis), (0, -1)).astype(np.float64)
            [norms] = self._norms(name)
            assert isinstance(norms, ColumnNorms)
            if not norms.count:  # no sample reaches this layer: it says nothing of its units
                continue
            each = np.square(weight).sum(axis=0).reshape(-1) * np.square(norms.norms.astype(np.float64))
            each = each.reshape(-1, weight.shape[-1]).sum(axis=0)
            for group, member in wanted:
                units = self._groups[group].units
                own = each[member.offset : member.offset + units * member.size].reshape(units, -1).sum(axis=1)
                energy[group] = energy[group] + own if group in energy else own
        return {**scores, **{group: np.sqrt(found) for group, found in energy.items()}}

    def repair(self, name: str, stays: Mapping[int, NDArray[np.bool_]], then: Transform) -> Transform:
        """Return the transform that makes up for what goes of a weight's inputs before `then` crops it."""
        if name not in self._axes or self._axes[name][1] not in stays:
            return then

        def stats() -> InputStats | None:
            [hessian] = self._sums(name)
            assert isinstance(hessian, Hessian)
            return hessian.stats

        return Repair(self._source.tensors[name], self._axes[name], stays[self._axes[name][1]], stats, then)


def takers(source: Source, groups: Sequence[Group], dtypes: Sequence[str] = tuple(FLOATS)) -> Iterator[tuple[str, int]]:
    """Yield the weights that have units of groups along an axis, and the axis, in the order of the file."""
    axes = {
        (member.name, member.axis % len(source.tensors[member.name].shape))
        for group in groups
        for member in group.members
        if member.name in source.tensors
    }
    for name, info in source.tensors.items():
        if info.dtype in dtypes and len(info.shape) > 1:
            yield from ((name, axis) for axis in range(len(info.shape)) if (name, axis) in axes)


def check_no_hidden(has_hidden: bool, others: str) -> None:
    """Refuse units of the width of a model.

    Raises
    ------
    OptionError
        If there are: norms between divide by what goes.
    """
    if has_hidden:
        raise OptionError(
            f"what must be of {others} with calibrate, got 'hidden', which 'all' has too: norms divide by all of it"
        )
