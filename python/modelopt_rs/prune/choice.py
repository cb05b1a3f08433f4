"""Which units of groups stay: how many, rounded, and of those the most important."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.arguments import check_choice, check_number, shown
from modelopt_rs.errors import ArgumentError, check_mapping
from modelopt_rs.prune.coupling import Group
from modelopt_rs.prune.importance import Scores

__all__ = ["DEFAULT_ROUND", "Choice", "Chooser", "Indices", "Keep"]

Indices: TypeAlias = NDArray[np.int64]
Keep: TypeAlias = float | Mapping[str, float]

# What lengths are a multiple of where a fraction is kept and nothing else is said: of eight float32 a vector is made.
DEFAULT_ROUND = 8
# A number of units below this share of them is taken for a mistake: keep=1 for 1.0, or 50 for 50 %.
LEAST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """The options of `crop`."""

    keep: Keep
    round_to: int | None
    scope: str
    norm: float
    nonfinite: str

    def check(self, function: str) -> None:
        """Refuse what is none of the values; `keep` is checked with the groups."""
        check_choice(function, "scope", self.scope, ("group", "global"))
        check_choice(function, "nonfinite", self.nonfinite, ("raise", "remove"))
        check_number(function, "norm", self.norm)
        if self.norm not in (1, 2, math.inf):
            raise ArgumentError(function, f"norm must be 1, 2 or inf, got {self.norm!r}")
        if self.round_to is None:
            return
        if isinstance(self.round_to, bool) or not isinstance(self.round_to, (int, np.integer)):
            raise TypeError(f"{function}: round_to must be an integer, got {shown(self.round_to)}")
        if self.round_to < 1:
            raise ArgumentError(function, f"round_to must be at least 1, got {self.round_to}")


class Chooser:
    """The choice of units, in two steps: all checks, then (given the importance of units) which stay.

    Parameters
    ----------
    function : str
        For the errors.
    groups : tuple of Group
        Groups that `check_groups` has passed.
    choice : Choice

    Attributes
    ----------
    cropped : list of Group
        The groups that may lose units.
    """

    def __init__(self, function: str, groups: tuple[Group, ...], choice: Choice) -> None:
        choice.check(function)
        self._function, self._groups, self._choice = function, groups, choice
        keeps = _keeps(function, groups, choice.keep)
        self._counts = {
            group.name: _count(function, *keeps[group.name], group) for group in groups if group.name in keeps
        }
        every = choice.scope == "global"
        self.cropped = [
            group for group in groups if group.name in keeps and (every or self._counts[group.name] < group.units)
        ]
        self._steps = {g.name: _step(function, g, choice.round_to, keeps[g.name][1]) for g in self.cropped}

    def sizes(self) -> dict[str, int]:
        """Return how many units each group keeps (of the scope of groups: in the global one the scores decide)."""
        return self._rounded(self._counts)

    def kept(self, scores: Mapping[str, Scores]) -> dict[str, Indices]:
        """Return the units that stay of each group, ascending.

        Parameters
        ----------
        scores : mapping of str to ndarray
            The importance of each unit, by group; of those that aren't cropped it isn't looked at.
        """
        if self._choice.nonfinite == "raise":
            for group in self.cropped:
                _refuse_nan(self._function, group.name, scores[group.name])
        counts = self._counts
        if self._choice.scope == "global":
            counts = _global_counts(self.cropped, scores, self._wanted())
        sizes = self._rounded(counts)
        return {
            group.name: np.arange(group.units)
            if sizes[group.name] == group.units
            else _best(scores[group.name], sizes[group.name], group.blocks)
            for group in self._groups
        }

    def _wanted(self) -> int:
        """Return how many units of all groups together the global scope keeps."""
        keep = self._choice.keep
        if isinstance(keep, (Mapping, int, np.integer)):
            return sum(self._counts.values())
        return round(float(keep) * sum(group.units for group in self.cropped))

    def _rounded(self, counts: Mapping[str, int]) -> dict[str, int]:
        sizes = {group.name: counts.get(group.name, group.units) for group in self._groups}
        for group in self.cropped:
            n, step = sizes[group.name], self._steps[group.name]
            if n < group.units:
                sizes[group.name] = min(max(1, round(n / step)), group.units // step) * step
        return sizes


def _keeps(function: str, groups: tuple[Group, ...], keep: Keep) -> dict[str, tuple[str, float]]:
    """Return what is said about each group, and where; those that `keep` does not name are left out."""
    if not isinstance(keep, Mapping):
        _check_keep(function, "keep", keep)
        return {group.name: ("keep", keep) for group in groups}
    check_mapping(function, "keep", keep, "numbers by group")
    used: set[str] = set()
    keeps = {}
    for group in groups:
        found = group.name if group.name in keep else next((p for p in keep if fnmatchcase(group.name, p)), None)
        used |= {p for p in keep if p == group.name or fnmatchcase(group.name, p)}
        if found is not None:
            keeps[group.name] = (f"keep[{found!r}]", keep[found])
    for pattern in keep:
        if pattern not in used:
            raise ArgumentError(function, f"keep must name groups, got {pattern!r}, which none matches")
    return keeps


def _check_keep(function: str, what: str, keep: object) -> None:
    if isinstance(keep, bool) or not isinstance(keep, (int, float, np.integer, np.floating)):
        raise TypeError(f"{function}: {what} must be a float (a fraction) or an int (a number), got {shown(keep)}")


def _count(function: str, what: str, keep: float, group: Group) -> int:
    _check_keep(function, what, keep)
    if isinstance(keep, (int, np.integer)):
        if not 1 <= keep <= group.units:
            raise ArgumentError(function, f"{what} must be from 1 to the {group.units} of {group.name!r}, got {keep}")
        if keep % group.blocks:
            text = f"a multiple of the {group.blocks} blocks of {group.name!r}"
            raise ArgumentError(function, f"{what} must be {text}, got {keep}")
        if keep < LEAST_SHARE * group.units:
            few = f"got the int {keep}: {keep} of the {group.units:,} of {group.name!r}"
            fix = f"{float(keep)} is all of them" if keep == 1 else f"{keep} % are {keep / 100}"
            meant = f"if so few are meant, say {keep / group.units:.2g} and round_to=1"
            text = f"{what} must be a share, or a number of at least {LEAST_SHARE:.0%} of the units, {few}"
            raise ArgumentError(function, f"{text}; {fix}; {meant}")
        return int(keep)
    if not 0 < keep <= 1:
        raise ArgumentError(function, f"{what} must be above 0 and at most 1, got {keep}; an int is a number of units")
    return max(1, round(float(keep) * group.units / group.blocks)) * group.blocks


def _step(function: str, group: Group, round_to: int | None, keep: float) -> int:
    """Return the least number of units whose indices are a multiple of `round_to` in every member."""
    if round_to is None:
        # Numbers are meant as they are; and a group that has no shorter multiple must be left with a choice.
        step = group.blocks if isinstance(keep, (int, np.integer)) else _multiple(group, DEFAULT_ROUND)
        return step if step < group.units else group.blocks
    step = _multiple(group, int(round_to))
    if step > group.units:
        n = group.units
        raise ArgumentError(
            function,
            f"round_to must be reached by the {n} units of group {group.name!r}, got {round_to}, for "
            f"which {step} are needed; give it a smaller one or leave the group out of keep",
        )
    return step


def _multiple(group: Group, of: int) -> int:
    return math.lcm(group.blocks, *(of // math.gcd(of, member.size) for member in group.members))


def _refuse_nan(function: str, name: str, scores: Scores) -> None:
    gone = np.flatnonzero(np.isnan(scores))
    if len(gone):
        text = f"scores of group {name!r} must not be NaN, got NaN for unit {gone[0]}"
        raise ArgumentError(function, f"{text}; nonfinite='remove' removes such units")


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
