"""Which of its codes each weight gets so that the loss is least and all fits a budget: a multiple-choice knapsack.

Lagrange gives a bound and a first answer; branch and bound over what its reduced costs leave gives the best one, or
says how far the answer can be from it. Everett 1963, "Generalized Lagrange multiplier method for solving problems of
optimum allocation of resources"; Sinha and Zoltners 1979, "The multiple-choice knapsack problem".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import Final

from modelopt_rs.errors import OptionError

__all__ = ["Allocation", "Choice", "allocate"]

# Nodes of the search: some ten milliseconds.
MOST_NODES: Final = 20_000
# Of how many groups each choice is tried first, and what share of all bytes that can be saved makes one large.
SPLITS: Final = 2
LARGE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to code what is coded together: its bytes and its loss."""

    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """An answer.

    Attributes
    ----------
    chosen : tuple of int
        Of each group its choice.
    nbytes : int
    loss : float
        Sums over all groups.
    bound : float
        No answer has less loss.
    """

    chosen: tuple[int, ...]
    nbytes: int
    loss: float
    bound: float

    @property
    def gap(self) -> float:
        """How much less the loss could be at most, relative to it."""
        return 0.0 if self.loss <= self.bound else (self.loss - self.bound) / self.loss


def allocate(groups: Sequence[Sequence[Choice]], budget: int) -> Allocation:
    """Choose for each group so that the sum of losses is least and the bytes are at most `budget`.

    Parameters
    ----------
    groups : sequence of sequence of Choice
        What each group can get; losses are not negative.
    budget : int

    Raises
    ------
    OptionError
        If not even the smallest choices fit.

    Examples
    --------
    >>> from modelopt_rs.planning.allocation import Choice, allocate
    >>> groups = [[Choice(8, 0.0), Choice(4, 0.1)], [Choice(8, 0.0), Choice(4, 0.3)]]
    >>> found = allocate(groups, 12)
    >>> found.chosen, found.nbytes, found.loss, found.gap
    ((1, 0), 12, 0.1, 0.0)
    """
    least = sum(min(choice.nbytes for choice in group) for group in groups)
    if least > budget:
        raise OptionError(f"budget must be at least {least:,} bytes, got {budget:,}")
    return _split(groups, budget, SPLITS)


def _split(groups: Sequence[Sequence[Choice]], budget: int, splits: int) -> Allocation:
    """Decide on a group that is a large part of all by trying each of its choices; then on the others.

    A bound by one price is weak where a single choice is worth more than what is left over at that price.
    """
    ranges = [max(c.nbytes for c in group) - min(c.nbytes for c in group) for group in groups]
    largest = max(range(len(groups)), key=ranges.__getitem__, default=0)
    if not splits or not groups or ranges[largest] < LARGE * sum(ranges):
        return _allocated(groups, budget)
    others = [*groups[:largest], *groups[largest + 1 :]]
    least = sum(min(choice.nbytes for choice in group) for group in others)
    best, bound = None, inf
    able = [i for i in _useful(groups[largest]) if groups[largest][i].nbytes + least <= budget]
    lows = {i: groups[largest][i].loss + _bound(others, budget - groups[largest][i].nbytes) for i in able}
    for i in sorted(able, key=lows.__getitem__):
        choice = groups[largest][i]
        if best is not None and lows[i] >= best.loss:
            break
        found = _split(others, budget - choice.nbytes, splits - 1)
        bound = min(bound, choice.loss + found.bound)
        if best is None or choice.loss + found.loss < best.loss:
            chosen = (*found.chosen[:largest], i, *found.chosen[largest:])
            best = Allocation(chosen, choice.nbytes + found.nbytes, choice.loss + found.loss, 0.0)
    assert best is not None  # the smallest fits
    return replace(best, bound=min(bound, best.loss))


def _useful(group: Sequence[Choice]) -> list[int]:
    """Return the choices that no other beats in bytes and in loss."""
    order = sorted(range(len(group)), key=lambda i: (group[i].nbytes, group[i].loss))
    found: list[int] = []
    for i in order:
        if not found or group[i].loss < group[found[-1]].loss:
            found.append(i)
    return found


def _bound(groups: Sequence[Sequence[Choice]], budget: int) -> float:
    """Return a loss that no answer has less of, by one price."""
    price, _ = _lagrange(groups, budget)
    return max(sum(min(c.loss + price * c.nbytes for c in group) for group in groups) - price * budget, 0.0)


def _allocated(groups: Sequence[Sequence[Choice]], budget: int) -> Allocation:
    """Decide on all groups by one price, and a search."""
    price, best = _lagrange(groups, budget)
    # What a choice costs at this price above the cheapest of its group: no answer with it has less than that more loss.
    costs = [[choice.loss + price * choice.nbytes for choice in group] for group in groups]
    lows = [min(cost) for cost in costs]
    bound = max(sum(lows) - price * budget, 0.0)
    search = _Search(groups, [[c - low for c in cost] for cost, low in zip(costs, lows, strict=True)], budget, bound)
    chosen, done = search.run(best)
    loss = _loss(groups, chosen)
    nbytes = sum(group[i].nbytes for group, i in zip(groups, chosen, strict=True))
    return Allocation(tuple(chosen), nbytes, loss, loss if done else min(bound, loss))


def _loss(groups: Sequence[Sequence[Choice]], chosen: Sequence[int]) -> float:
    return sum(group[i].loss for group, i in zip(groups, chosen, strict=True))


def _hull(group: Sequence[Choice]) -> list[int]:
    """Return the choices that are best at some price, the smallest first."""
    order = sorted(range(len(group)), key=lambda i: (group[i].nbytes, group[i].loss))
    hull: list[int] = []
    for i in order:
        if hull and group[i].loss >= group[hull[-1]].loss:
            continue
        while len(hull) > 1 and _gain(group, hull[-2], hull[-1]) <= _gain(group, hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _gain(group: Sequence[Choice], a: int, b: int) -> float:
    """Return the loss that each byte more saves."""
    return (group[a].loss - group[b].loss) / max(group[b].nbytes - group[a].nbytes, 1)


def _lagrange(groups: Sequence[Sequence[Choice]], budget: int) -> tuple[float, list[int]]:
    """Return the price of a byte at which the budget is spent, and choices that fit: the best steps first."""
    hulls = [_hull(group) for group in groups]
    chosen = [hull[0] for hull in hulls]
    left = budget - sum(group[i].nbytes for group, i in zip(groups, chosen, strict=True))
    steps = [
        (-_gain(groups[g], a, b), g, step) for g, hull in enumerate(hulls) for step, (a, b) in enumerate(pairwise(hull))
    ]
    price, stopped = 0.0, set[int]()
    for gain, g, step in sorted(steps):
        more = groups[g][hulls[g][step + 1]].nbytes - groups[g][hulls[g][step]].nbytes
        if g not in stopped and more <= left:
            chosen[g], left = hulls[g][step + 1], left - more
        else:
            # The first step that does not fit is the price; smaller ones of other groups may still fit.
            price = price or -gain
            stopped.add(g)
    return price, chosen


class _Search:
    """Branch and bound over groups; what is added to the bound by choices that are made is the sum of their costs."""

    def __init__(
        self, groups: Sequence[Sequence[Choice]], costs: Sequence[Sequence[float]], budget: int, bound: float
    ) -> None:
        self._groups, self._costs, self._budget, self._bound = groups, costs, budget, bound

    def run(self, first: Sequence[int]) -> tuple[list[int], bool]:
        """Return the best choices, and whether none are better."""
        self._best, self._loss = list(first), _loss(self._groups, first)
        if self._loss <= self._bound:
            return self._best, True
        groups, slack = self._groups, self._loss - self._bound
        able = [
            [i for i in range(len(group)) if cost[i] < slack] for group, cost in zip(groups, self._costs, strict=True)
        ]
        for g, choices in enumerate(able):
            choices.sort(key=self._costs[g].__getitem__)
            if not choices:  # none is better than the first answer
                return self._best, True
        # Those with the most to decide first: the rest is bounded the sooner.
        self._order = sorted(range(len(groups)), key=lambda g: (len(able[g]) == 1, -_spread(self._costs[g], able[g])))
        self._able = able
        self._rest = [0] * (len(groups) + 1)
        for at in range(len(groups) - 1, -1, -1):
            g = self._order[at]
            self._rest[at] = self._rest[at + 1] + min(groups[g][i].nbytes for i in able[g])
        return self._best, self._walk()

    def _walk(self) -> bool:
        """Walk the tree without recursion; say whether all of it was seen."""
        groups, costs, order = self._groups, self._costs, self._order
        path, tried = [0] * len(groups), [0] * len(groups)
        spent, cost, loss = [0] * (len(groups) + 1), [self._bound] * (len(groups) + 1), [0.0] * (len(groups) + 1)
        depth = nodes = 0
        while depth >= 0:
            if depth == len(groups):
                if loss[depth] < self._loss:
                    self._loss = loss[depth]
                    for at, g in enumerate(order):
                        self._best[g] = path[at]
                depth -= 1
                continue
            g = order[depth]
            if tried[depth] == len(self._able[g]):
                tried[depth] = 0
                depth -= 1
                continue
            i = self._able[g][tried[depth]]
            tried[depth] += 1
            nodes += 1
            if nodes > MOST_NODES:
                return False
            size, paid = spent[depth] + groups[g][i].nbytes, cost[depth] + costs[g][i]
            if size + self._rest[depth + 1] > self._budget or paid >= self._loss:
                continue
            path[depth], spent[depth + 1], cost[depth + 1] = i, size, paid
            loss[depth + 1] = loss[depth] + groups[g][i].loss
            depth += 1
        return True


def _spread(costs: Sequence[float], able: Sequence[int]) -> float:
    return max(costs[i] for i in able)
