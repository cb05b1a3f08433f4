"""Which slices of which tensors live and die together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.arguments import listed, shown
from modelopt_rs.errors import ArgumentError, check_mapping

__all__ = ["Group", "Member", "Shaped", "UnitSlices", "check_ascending", "check_groups", "cuts_of", "integers"]


class Shaped(Protocol):
    """An array, or a tensor of a file: all that groups look at."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How long each axis is."""

    @property
    def nbytes(self) -> int:
        """How many bytes all numbers take."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where the units of a group lie in one tensor.

    Unit `u` takes the indices from ``offset + u * size`` to ``offset + (u + 1) * size`` of `axis`. A tensor may be
    member several times: on several axes, or at several offsets (a fused projection of queries, keys and values).

    Attributes
    ----------
    name : str
        The tensor's name.
    axis : int
        Its axis; negative counts from the end.
    offset : int
        Where unit 0 begins.
    size : int
        Consecutive indices of one unit: the width of a head, or height times width of an image that is flattened.
    scored : bool
        Whether its numbers count for the importance of a unit: weights do, biases and norms as a rule don't.
    """

    name: str
    axis: int
    offset: int = 0
    size: int = 1
    scored: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"Member: name must be a string, got {type(self.name).__name__}")
        for what, lowest in (("axis", None), ("offset", 0), ("size", 1)):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"Member: {what} must be an integer, got {shown(value)}")
            if lowest is not None and value < lowest:
                raise ValueError(f"Member: {what} must be at least {lowest}, got {value}")


@dataclass(frozen=True, slots=True)
class Group:
    """Units whose slices live and die together.

    Attributes
    ----------
    name : str
        Names the group in `keep` and in the report.
    units : int
        How many there are.
    members : tuple of Member
        Where they lie.
    blocks : int
        The units are this many equal blocks that follow each other, and each keeps the same number: query heads that
        share a key-value head, channels of a grouped convolution.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> hidden = (mo.prune.Member("0.weight", 0), mo.prune.Member("2.weight", 1))
    >>> mo.prune.Group("hidden", 64, hidden).units
    64
    """

    name: str
    units: int
    members: tuple[Member, ...]
    blocks: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"Group: name must be a string, got {type(self.name).__name__}")
        for what in ("units", "blocks"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"Group {self.name!r}: {what} must be an integer, got {shown(value)}")
            if value < 1:
                raise ValueError(f"Group {self.name!r}: {what} must be at least 1, got {value}")
        if self.units % self.blocks:
            raise ValueError(f"Group {self.name!r}: blocks must divide the {self.units} units, got {self.blocks}")
        object.__setattr__(self, "members", tuple(listed(f"Group {self.name!r}", "members", self.members, "Member")))
        if not self.members:
            raise ValueError(f"Group {self.name!r}: members must not be empty, got ()")
        for member in self.members:
            if not isinstance(member, Member):
                raise TypeError(f"Group {self.name!r}: members must be of Member, got {type(member).__name__}")


@dataclass(frozen=True, slots=True)
class UnitSlices:
    """One member in its tensor, checked: `axis` is counted from the front."""

    group: Group
    member: Member
    axis: int

    @property
    def range(self) -> range:
        """The indices that all units take."""
        return range(self.member.offset, self.member.offset + self.group.units * self.member.size)


def integers(function: str, name: str, given: Any) -> NDArray[Any]:
    """Return integers in one axis."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):  # of what is no array, or a ragged list
        raise TypeError(f"{function}: {name} must be a 1-d array of integers, got {shown(given)}") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        got = f"{array.dtype} of shape {array.shape}"
        raise TypeError(f"{function}: {name} must be a 1-d array of integers, got {got}")
    return array


def check_ascending(function: str, name: str, given: Any, what: str, n: int) -> NDArray[np.int64]:
    """Return a choice of units or indices: ascending, at least one, from 0 to below `n`."""
    array = integers(function, name, given)
    chosen = array.astype(np.int64)
    if not array.size or array[0] < 0 or array[-1] >= n or (np.diff(chosen) <= 0).any():
        text = f"ascending {what} from 0 to below {n}"
        raise ArgumentError(function, f"{name} must be one or more {text}, got {array.tolist()[:8]}")
    return chosen


def check_groups(
    function: str, tensors: Mapping[str, Shaped], groups: Iterable[Group], kind: type = np.ndarray
) -> tuple[Group, ...]:
    """Check that every group fits the tensors, which are of one `kind`, and no two take the same indices."""
    check_mapping(function, "tensors", tensors, "arrays by name")
    groups = tuple(listed(function, "groups", groups, "Group"))
    names: set[str] = set()
    for group in groups:
        if not isinstance(group, Group):
            raise TypeError(f"{function}: groups must be of Group, got {type(group).__name__}")
        if group.name in names:
            raise ArgumentError(function, f"groups must have names of their own, got {group.name!r} twice")
        names.add(group.name)
    for name, cuts in cuts_of(function, tensors, groups, kind).items():
        for axis in {cut.axis for cut in cuts}:
            along = sorted((cut for cut in cuts if cut.axis == axis), key=lambda cut: cut.range.start)
            for before, after in pairwise(along):
                if after.range.start < before.range.stop:
                    both = f"those of {before.group.name!r} and {after.group.name!r}"
                    where = f"axis {axis} of {name!r} at index {after.range.start}"
                    raise ArgumentError(function, f"groups must not overlap, got {both} on {where}")
    return groups


def cuts_of(
    function: str, tensors: Mapping[str, Shaped], groups: Iterable[Group], kind: type = object
) -> dict[str, list[UnitSlices]]:
    """Return the members of all groups, by tensor."""
    cuts: dict[str, list[UnitSlices]] = {}
    for group in groups:
        for member in group.members:
            where = f"group {group.name!r}: tensor {member.name!r}"
            if member.name not in tensors:
                raise ArgumentError(function, f"{where} must be among the tensors, got none of that name")
            tensor = tensors[member.name]
            if not isinstance(tensor, kind):
                raise TypeError(f"{function}: {where} must be a NumPy array, got {type(tensor).__name__}")
            ndim = len(tensor.shape)
            if not -ndim <= member.axis < ndim:
                raise ArgumentError(function, f"{where} must have an axis {member.axis}, got shape {tensor.shape}")
            cut = UnitSlices(group, member, int(member.axis) % ndim)
            if cut.range.stop > tensor.shape[cut.axis]:
                places = f"{group.units} units of {member.size}"
                if member.offset:
                    places += f" from index {member.offset} on"
                raise ArgumentError(
                    function, f"{where} must hold {places} along axis {cut.axis}, got shape {tensor.shape}"
                )
            cuts.setdefault(member.name, []).append(cut)
    return cuts
