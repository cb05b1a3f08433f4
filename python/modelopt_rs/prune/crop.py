"""Cropping: tensors without the units that matter least."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.prune.coupling import Group, check_ascending, check_groups, cuts_of
from modelopt_rs.prune.importance import Scores, importance

__all__ = ["CropReport", "GroupReport", "Indices", "Keep", "apply_crop", "crop", "plan_crop", "take"]

Indices: TypeAlias = NDArray[np.int64]
Keep: TypeAlias = float | Mapping[str, float]


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


def crop(
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    *,
    keep: Keep = 0.5,
    round_to: int = 1,
    scope: Literal["local", "global"] = "local",
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
        an int a number. A mapping gives one for each group by its name or a pattern as in `fnmatch`; the first that
        matches counts, and groups that none matches stay whole.
    round_to : int
        The length of every cropped axis is made a multiple: the number of units goes to the nearest one that gives
        such lengths (half to even), at least one, at most the most that fit. Groups that stay whole are left alone.
    scope : {"local", "global"}
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
    groups = tuple(groups)
    report = _plan("crop", tensors, groups, (keep, round_to, scope, norm, nonfinite), scores, threads)
    return _apply("crop", tensors, groups, report.kept, threads), report


def plan_crop(
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    *,
    keep: Keep = 0.5,
    round_to: int = 1,
    scope: Literal["local", "global"] = "local",
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
    return _plan("plan_crop", tensors, tuple(groups), (keep, round_to, scope, norm, nonfinite), scores, threads)


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
    known = {group.name: group.units for group in groups}
    checked = {}
    for name, units in kept.items():
        if name not in known:
            raise ValueError(f"apply_crop: kept must name groups, got {name!r}")
        checked[name] = check_ascending("apply_crop", f"kept[{name!r}]", units, "units", known[name])
    return _apply("apply_crop", tensors, groups, checked, threads)


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
    if not isinstance(x, np.ndarray):
        raise TypeError(f"take: x must be a NumPy array, got {type(x).__name__}")
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        got = f"{indices.dtype} of shape {indices.shape}"
        raise TypeError(f"take: indices must be a 1-d array of integers, got {got}")
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"take: axis must be an integer, got {axis!r}")
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


_Options: TypeAlias = tuple[Keep, int, str, float, str]
"""keep, round_to, scope, norm, nonfinite."""


def _plan(
    function: str,
    tensors: Mapping[str, Array],
    groups: tuple[Group, ...],
    options: _Options,
    scores: Mapping[str, Array] | None,
    threads: int | None,
) -> CropReport:
    keep, round_to, scope, norm, nonfinite = options
    groups = check_groups(function, tensors, groups)
    for what, got, known in (("scope", scope, ("local", "global")), ("nonfinite", nonfinite, ("raise", "remove"))):
        if got not in known:
            raise ValueError(f"{function}: {what} must be {known[0]!r} or {known[1]!r}, got {got!r}")
    if norm not in (1, 2, math.inf):
        raise ValueError(f"{function}: norm must be 1, 2 or inf, got {norm!r}")
    if isinstance(round_to, bool) or not isinstance(round_to, (int, np.integer)):
        raise TypeError(f"{function}: round_to must be an integer, got {round_to!r}")
    if round_to < 1:
        raise ValueError(f"{function}: round_to must be at least 1, got {round_to}")
    counts = _counts(function, groups, keep)
    cropped = [group for group in groups if counts.get(group.name, group.units) < group.units or scope == "global"]
    cropped = [group for group in cropped if group.name in counts]
    steps = {group.name: _step(function, group, round_to) for group in cropped}
    given = _given_scores(function, groups, scores or {})
    every = {group.name: _score(function, tensors, group, given, norm, threads) for group in groups}
    for name in steps:
        values = every[name]
        if nonfinite == "raise" and np.isnan(values).any():
            first = int(np.flatnonzero(np.isnan(values))[0])
            fix = "nonfinite='remove' removes such units"
            raise ValueError(f"{function}: scores of group {name!r} must not be NaN, got NaN for unit {first}; {fix}")
    if scope == "global":
        total = sum(group.units for group in cropped)
        wanted = sum(counts.values()) if isinstance(keep, (Mapping, int, np.integer)) else round(float(keep) * total)
        counts = _global_counts(cropped, every, wanted)
    kept = {}
    for group in groups:
        n = counts.get(group.name, group.units)
        if n < group.units:
            n = _rounded(n, group, steps[group.name])
        kept[group.name] = _best(every[group.name], n, group.blocks)
    return _report(tensors, groups, kept, every)


def _counts(function: str, groups: tuple[Group, ...], keep: Keep) -> dict[str, int]:
    """Return how many units each group keeps; those that `keep` does not name are left out."""
    if not isinstance(keep, Mapping):
        return {group.name: _count(function, "keep", group, keep) for group in groups}
    used: set[str] = set()
    counts = {}
    for group in groups:
        found = group.name if group.name in keep else next((p for p in keep if fnmatchcase(group.name, p)), None)
        used |= {p for p in keep if p == group.name or fnmatchcase(group.name, p)}
        if found is not None:
            counts[group.name] = _count(function, f"keep[{found!r}]", group, keep[found])
    for pattern in keep:
        if pattern not in used:
            raise ValueError(f"{function}: keep must name groups, got {pattern!r}, which none matches")
    return counts


def _count(function: str, what: str, group: Group, keep: float) -> int:
    if isinstance(keep, bool) or not isinstance(keep, (int, float, np.integer, np.floating)):
        raise TypeError(f"{function}: {what} must be a float (a fraction) or an int (a number), got {keep!r}")
    if isinstance(keep, (int, np.integer)):
        if not 1 <= keep <= group.units:
            raise ValueError(f"{function}: {what} must be from 1 to the {group.units} of {group.name!r}, got {keep}")
        if keep % group.blocks:
            text = f"a multiple of the {group.blocks} blocks of {group.name!r}"
            raise ValueError(f"{function}: {what} must be {text}, got {keep}")
        return int(keep)
    if not 0 < keep <= 1:
        raise ValueError(f"{function}: {what} must be above 0 and at most 1, got {keep}; an int is a number of units")
    return max(1, round(float(keep) * group.units / group.blocks)) * group.blocks


def _step(function: str, group: Group, round_to: int) -> int:
    """Return the least number of units whose indices are a multiple of `round_to` in every member."""
    step = math.lcm(group.blocks, *(round_to // math.gcd(round_to, member.size) for member in group.members))
    if step > group.units:
        n = group.units
        raise ValueError(
            f"{function}: round_to must be reached by the {n} units of group {group.name!r}, got {round_to}, for "
            f"which {step} are needed; give it a smaller one or leave the group out of keep"
        )
    return step


def _rounded(n: int, group: Group, step: int) -> int:
    return min(max(1, round(n / step)), group.units // step) * step


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
    parts = []
    for member in group.members:
        if member.scored:
            tensor = tensors[member.name]
            axis = member.axis % tensor.ndim
            stop = member.offset + group.units * member.size
            part = tensor[(slice(None),) * axis + (slice(member.offset, stop),)]
            try:
                parts.append(importance(part, axis, norm=norm, size=member.size, threads=threads))
            except TypeError as error:
                fix = "or make the member scored=False"
                text = f"group {group.name!r}: tensor {member.name!r} must be floats to be scored, got {tensor.dtype}"
                raise TypeError(f"{function}: {text}; give scores[{group.name!r}], {fix}") from error
    if len(parts) == 1:
        return parts[0]
    stacked = np.stack(parts)
    if norm == math.inf:
        return np.asarray(stacked.max(axis=0))
    with np.errstate(over="ignore"):  # to infinity: large
        return np.asarray((stacked**norm).sum(axis=0) ** (1 / norm))


def _best(scores: Scores, n: int, blocks: int) -> Indices:
    """Return the `n` units with the highest scores, the same number of each block; of equal ones the last."""
    rows = np.where(np.isnan(scores), -np.inf, scores).reshape(blocks, -1)
    order = np.argsort(rows, axis=1, kind="stable")[:, rows.shape[1] - n // blocks :]
    first = np.arange(blocks)[:, None] * rows.shape[1]
    return np.sort((order + first).ravel()).astype(np.int64)


def _global_counts(groups: list[Group], scores: Mapping[str, Scores], wanted: int) -> dict[str, int]:
    """Return how many units each group keeps where all are ranked together."""
    counts = {group.name: group.blocks for group in groups}
    ranked = []
    for group in groups:
        values = np.where(np.isnan(scores[group.name]), -np.inf, scores[group.name])
        finite = values[np.isfinite(values)]
        mean = float(finite.mean()) if finite.size else 0.0
        relative = np.sort((values / mean if mean > 0 else values).reshape(group.blocks, -1), axis=1)
        # One rank of all blocks goes at once; the best of each block stays whatever comes.
        ranked += [(float(rank), group) for rank in relative[:, :-1].mean(axis=0)]
    for _, group in sorted(ranked, key=lambda item: -item[0]):
        if sum(counts.values()) + group.blocks > wanted:
            break
        counts[group.name] += group.blocks
    return counts


def _report(
    tensors: Mapping[str, Array],
    groups: tuple[Group, ...],
    kept: Mapping[str, Indices],
    scores: Mapping[str, Scores],
) -> CropReport:
    shapes = {}
    after = {name: tensor.nbytes for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}
    before = sum(after.values())
    for name, masks in _masks(tensors, groups, kept).items():
        shape = tuple(
            int(masks[axis].sum()) if axis in masks else length for axis, length in enumerate(tensors[name].shape)
        )
        shapes[name] = (tensors[name].shape, shape)
        after[name] = math.prod(shape) * tensors[name].itemsize
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


def _masks(
    tensors: Mapping[str, Array], groups: Iterable[Group], kept: Mapping[str, Indices]
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
    function: str,
    tensors: Mapping[str, Array],
    groups: Iterable[Group],
    kept: Mapping[str, Indices],
    threads: int | None,
) -> dict[str, Array]:
    masks = _masks(tensors, groups, kept)
    made: dict[tuple[int, tuple[tuple[int, bytes], ...]], Array] = {}
    out = {}
    for name, tensor in tensors.items():
        cuts = tuple((axis, mask.tobytes()) for axis, mask in sorted(masks.get(name, {}).items()))
        same = (id(tensor), cuts)  # a tensor under two names stays one
        if same not in made:
            made[same] = tensor
            # The first axis first: of rows that go nothing is read.
            for axis, mask in sorted(masks.get(name, {}).items()):
                made[same] = take(made[same], np.flatnonzero(mask), axis, threads=threads)
        out[name] = made[same]
    return out
