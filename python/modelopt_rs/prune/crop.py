"""Cropping: tensors without the units that matter least."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import shown
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import renamed
from modelopt_rs.errors import check_mapping, said_as
from modelopt_rs.prune.choice import Choice, Chooser, Indices, Keep
from modelopt_rs.prune.coupling import Group, Shaped, check_ascending, check_groups, cuts_of, integers
from modelopt_rs.prune.importance import Join, Scores, importance

__all__ = ["CropReport", "GroupReport", "apply_crop", "crop", "crop_report", "masks", "plan_crop", "take"]


@dataclass(frozen=True, slots=True, eq=False)
class GroupReport:
    """What stays of one group.

    Attributes
    ----------
    name : str
        The group's name.
    units : int
        How many units there were.
    kept : ndarray of int64
        Those that stay, ascending.
    scores : ndarray of float64
        The importance of every unit.
    bytes_before, bytes_after : int
        Of the slices of all units in all members, and of those that stay, had only this group been cropped.
    """

    name: str
    units: int
    kept: Indices
    scores: Scores
    bytes_before: int
    bytes_after: int

    @property
    def removed(self) -> Indices:
        """The units that go, ascending."""
        return np.setdiff1d(np.arange(self.units), self.kept)


@dataclass(frozen=True, slots=True, eq=False)
class CropReport:
    """What stays of each group and of all tensors.

    Attributes
    ----------
    groups : tuple of GroupReport
        In the order of the groups.
    shapes : dict
        The shapes of each tensor that is cropped, before and after.
    bytes_before, bytes_after : int
        Of all tensors together, cropped or not.
    """

    groups: tuple[GroupReport, ...]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    bytes_before: int
    bytes_after: int

    @property
    def kept(self) -> dict[str, Indices]:
        """The units that stay, by group: what `apply_crop` takes."""
        return {group.name: group.kept for group in self.groups}

    def __getitem__(self, name: str) -> GroupReport:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


@renamed({"scope": {"local": "group"}})
def crop(
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    *,
    keep: Keep = 0.5,
    round_to: int | None = None,
    scope: Literal["group", "global"] = "group",
    norm: float = 2,
    scores: Mapping[str, Array] | None = None,
    nonfinite: Literal["raise", "remove"] = "raise",
    threads: int | None = None,
) -> tuple[dict[str, Array], CropReport]:
    """Remove the least important units everywhere: smaller tensors instead of zeros.

    The importance of a unit is the norm of all numbers that would go with it, over its slices in all scored members:
    ``(sum |w|**norm)**(1/norm)``. Of equal units the first goes first; those that stay keep their order.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Any dtypes and strides; not written. Those that are scored must be floats.
    groups : iterable of Group
        What lives and dies together; see `mlp_groups`, `chain_groups` and `transformer_groups`.
    keep : float, int or mapping
        How many units of each group stay: a float from 0 to 1 is a fraction, ``round(keep * units)`` (half to even),
        an int a number, of at least 5 % of the units (fewer are taken for a mistake, as 1 for 1.0). A mapping gives
        one for each group by its name or a pattern as in `fnmatch`; the first that matches counts, and groups that none
        matches stay whole.
    round_to : int, optional
        The length of every cropped axis is made a multiple: the number of units goes to the nearest one that gives
        such lengths (half to even), at least one, at most the most that fit. Groups that stay whole are left alone.
        By default fractions are rounded to lengths that are multiples of 8 (in groups that have a shorter one than
        the whole), numbers not at all.
    scope : {"group", "global"}
        "global": the fraction is one of all units together; those with the least importance, relative to the mean of
        their group (so that layers with large weights don't drown the others), go first. Each block of each group
        keeps one unit at least. Groups then keep different numbers, which the files of most model families cannot say.
    norm : {1, 2, inf}
        Of the importance.
    scores : mapping of str to ndarray, optional
        Importance of your own for some groups, by name: one number for each unit.
    nonfinite : {"raise", "remove"}
        What to do with units whose importance is NaN: refuse, or remove them first. Infinities are large.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    tensors : dict of str to ndarray
        All of them: new arrays where something was removed, the others as they were given. One array under two names
        stays one array.
    report : CropReport

    Raises
    ------
    TypeError
        If something is of the wrong type, or a scored tensor has no floats.
    ValueError
        If a group does not fit the tensors, two groups take the same indices, an option is out of its range, or an
        importance is NaN. Everything is checked before anything is computed.

    References
    ----------
    Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900 (groups; relative to their mean).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = {"0.weight": np.array([[3, 4], [0, 1], [5, 0]], np.float32), "2.weight": np.ones((2, 3), np.float32)}
    >>> small, report = mo.prune.crop(w, mo.prune.mlp_groups(w, ["0.weight", "2.weight"]), keep=2)
    >>> small["0.weight"]
    array([[3., 4.],
           [5., 0.]], dtype=float32)
    >>> report["0.weight"].kept, report.shapes["2.weight"]
    (array([0, 2]), ((2, 3), (2, 2)))
    """
    groups = check_groups("crop", tensors, groups)
    report = _plan("crop", tensors, groups, Choice(keep, round_to, scope, norm, nonfinite), scores, threads)
    return _apply(tensors, groups, report.kept, threads), report


@renamed({"scope": {"local": "group"}})
def plan_crop(
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    *,
    keep: Keep = 0.5,
    round_to: int | None = None,
    scope: Literal["group", "global"] = "group",
    norm: float = 2,
    scores: Mapping[str, Array] | None = None,
    nonfinite: Literal["raise", "remove"] = "raise",
    threads: int | None = None,
) -> CropReport:
    """Choose what `crop` would keep, without making a tensor.

    Parameters
    ----------
    tensors, groups, keep, round_to, scope, norm, scores, nonfinite, threads
        As for `crop`.

    Raises
    ------
    TypeError, ValueError
        As for `crop`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = {"w": np.diag([3.0, 1.0, 2.0])}
    >>> group = mo.prune.Group("rows", 3, (mo.prune.Member("w", 0),))
    >>> mo.prune.plan_crop(w, [group], keep=2)["rows"].removed
    array([1])
    """
    choice = Choice(keep, round_to, scope, norm, nonfinite)
    return _plan("plan_crop", tensors, groups, choice, scores, threads)


def apply_crop(
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    kept: Mapping[str, Array],
    *,
    threads: int | None = None,
) -> dict[str, Array]:
    """Keep given units: those of another crop's report, for gradients, optimizer states or a second checkpoint.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Any dtypes and strides; not written.
    groups : iterable of Group
        As for `crop`.
    kept : mapping of str to ndarray of integers
        The units that stay, by group, ascending; groups that are left out stay whole. ``report.kept`` is one.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError, ValueError
        If the groups don't fit the tensors, or `kept` is not ascending, empty or out of range.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> group = mo.prune.Group("rows", 3, (mo.prune.Member("w", 0),))
    >>> mo.prune.apply_crop({"w": np.arange(6).reshape(3, 2)}, [group], {"rows": np.array([0, 2])})["w"]
    array([[0, 1],
           [4, 5]])
    """
    groups = check_groups("apply_crop", tensors, groups)
    check_mapping("apply_crop", "kept", kept, "units by group")
    known = {group.name: group.units for group in groups}
    checked = {}
    for name, units in kept.items():
        if name not in known:
            raise ValueError(f"apply_crop: kept must name groups, got {name!r}")
        checked[name] = check_ascending("apply_crop", f"kept[{name!r}]", units, "units", known[name])
    with said_as({"take: threads": "apply_crop: threads"}):
        return _apply(tensors, groups, checked, threads)


def take(x: Array, indices: Array, axis: int, *, out: Array | None = None, threads: int | None = None) -> Array:
    """Gather slices along an axis: ``x[..., indices, ...]``, with all threads and at the speed of memory.

    Parameters
    ----------
    x : ndarray
        Any dtype and strides; not written. Items of other sizes than 1, 2, 4 and 8 bytes, and objects, go through
        `numpy.take`.
    indices : ndarray of integers
        One axis, each from 0 to below ``x.shape[axis]``, in any order.
    axis : int
        Where.
    out : ndarray, optional
        C-contiguous, of the result's shape and x's dtype, apart from `x`: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `x` is no array, or `indices` are no integers.
    ValueError
        If an index or the axis is out of range, or `out` does not fit.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.take(np.arange(6).reshape(2, 3), np.array([0, 2]), axis=1)
    array([[0, 2],
           [3, 5]])
    """
    x = as_array(x, "take: x")
    indices = integers("take", "indices", indices)
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"take: axis must be an integer, got {shown(axis)}")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"take: axis must be within the {x.ndim} axes of x, got {axis}")
    if out is None:
        out = np.empty((*x.shape[:axis], len(indices), *x.shape[axis % x.ndim + 1 :]), x.dtype)
    elif not isinstance(out, np.ndarray) or out.dtype != x.dtype:
        got = str(out.dtype) if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"take: out must be a NumPy array of dtype {x.dtype} like x, got {got}")
    if x.dtype.hasobject or x.dtype.itemsize not in (1, 2, 4, 8):
        return np.take(x, indices, axis=axis, out=out, mode="raise")
    word = f"u{x.dtype.itemsize}"
    _core.take(x.view(word), np.ascontiguousarray(indices, np.int64), axis, out.view(word), threads)
    return out


def _plan(
    function: str,
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    choice: Choice,
    scores: Mapping[str, Array] | None,
    threads: int | None,
) -> CropReport:
    if scores is not None:
        check_mapping(function, "scores", scores, "arrays by group")
    groups = check_groups(function, tensors, groups)
    chooser = Chooser(function, groups, choice)
    given = _given_scores(function, groups, {} if scores is None else scores)
    with said_as({"importance: threads": f"{function}: threads"}):
        every = {group.name: _score(function, tensors, group, given, choice.norm, threads) for group in groups}
    return crop_report(tensors, groups, chooser.kept(every), every)


def _given_scores(function: str, groups: tuple[Group, ...], scores: Mapping[str, Array]) -> dict[str, Scores]:
    units = {group.name: group.units for group in groups}
    checked = {}
    for name, values in scores.items():
        if name not in units:
            raise ValueError(f"{function}: scores must name groups, got {name!r}")
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{function}: scores[{name!r}] must be numbers, got dtype {array.dtype}")
        if array.shape != (units[name],):
            raise ValueError(f"{function}: scores[{name!r}] must have shape ({units[name]},), got {array.shape}")
        checked[name] = array.astype(np.float64)
    scored = {group.name for group in groups if any(member.scored for member in group.members)}
    for name in units:
        if name not in scored and name not in checked:
            raise ValueError(
                f"{function}: group {name!r} must have a scored member, got none; or give scores[{name!r}]"
            )
    return checked


def _score(
    function: str,
    tensors: Mapping[str, Array],
    group: Group,
    given: Mapping[str, Scores],
    norm: float,
    threads: int | None,
) -> Scores:
    """Return the norm over the slices of each unit in all scored members."""
    if group.name in given:
        return given[group.name]
    join = Join(norm)
    for member in group.members:
        if member.scored:
            tensor = tensors[member.name]
            axis = member.axis % tensor.ndim
            stop = member.offset + group.units * member.size
            part = tensor[(slice(None),) * axis + (slice(member.offset, stop),)]
            try:
                join.add(importance(part, axis, norm=norm, size=member.size, threads=threads))
            except TypeError as error:
                fix = "or make the member scored=False"
                text = f"group {group.name!r}: tensor {member.name!r} must be floats to be scored, got {tensor.dtype}"
                raise TypeError(f"{function}: {text}; give scores[{group.name!r}], {fix}") from error
    return join.norms()


def crop_report(
    tensors: Mapping[str, Shaped],
    groups: tuple[Group, ...],
    kept: Mapping[str, Indices],
    scores: Mapping[str, Scores],
) -> CropReport:
    """Return what stays of each group and of all tensors, arrays or those of a file."""
    shapes = {}
    after = {name: getattr(tensor, "nbytes", 0) for name, tensor in tensors.items()}
    before = sum(after.values())
    for name, cut in masks(tensors, groups, kept).items():
        whole = tensors[name].shape
        shape = tuple(int(cut[axis].sum()) if axis in cut else length for axis, length in enumerate(whole))
        shapes[name] = (whole, shape)
        after[name] = after[name] // max(1, math.prod(whole)) * math.prod(shape)
    reports = []
    for group in groups:
        unit = 0
        for member in group.members:
            tensor = tensors[member.name]
            unit += tensor.nbytes // max(1, tensor.shape[member.axis]) * member.size
        n = len(kept[group.name])
        name = group.name
        reports.append(GroupReport(name, group.units, kept[name], scores[name], unit * group.units, unit * n))
    return CropReport(tuple(reports), shapes, before, sum(after.values()))


def masks(
    tensors: Mapping[str, Shaped], groups: Iterable[Group], kept: Mapping[str, Indices]
) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """Return the indices that stay, by tensor and axis, of the axes where some go."""
    masks: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for name, cuts in cuts_of("crop", tensors, groups).items():
        for cut in cuts:
            units = kept.get(cut.group.name)
            if units is None or len(units) == cut.group.units:
                continue
            stays = np.zeros(cut.group.units, np.bool_)
            stays[units] = True
            length = tensors[name].shape[cut.axis]
            mask = masks.setdefault(name, {}).setdefault(cut.axis, np.ones(length, np.bool_))
            mask[cut.range.start : cut.range.stop] = np.repeat(stays, cut.member.size)
    return masks


def _apply(
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    kept: Mapping[str, Indices],
    threads: int | None,
) -> dict[str, Array]:
    stays = masks(tensors, groups, kept)
    made: dict[tuple[int, tuple[tuple[int, bytes], ...]], Array] = {}
    out = {}
    for name, tensor in tensors.items():
        cuts = tuple((axis, mask.tobytes()) for axis, mask in sorted(stays.get(name, {}).items()))
        same = (id(tensor), cuts)  # a tensor under two names stays one
        if same not in made:
            made[same] = tensor
            # The first axis first: of rows that go nothing is read.
            for axis, mask in sorted(stays.get(name, {}).items()):
                made[same] = take(made[same], np.flatnonzero(mask), axis, threads=threads)
        out[name] = made[same]
    return out
