"""Which of several answers to a size is written: none worse than uniform bits, or than that to a smaller size."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from modelopt_rs.errors import OptionError, UnsupportedError
from modelopt_rs.operations.losses import EVERY, Losses
from modelopt_rs.planning.loss_table import Answer, LossTable

__all__ = ["best_answer"]

UNIFORM: Final = 2
"""How many answers of uniform bits are looked at: those that fit with the least loss."""

MET: Final = 0.995
"""What part of a size an answer has that is taken for others of which more is known."""

TRIED, WORK = 8, 2**29
"""How many answers are looked at besides that have another code for some weight, and bytes of all models so made.

Errors of weights are taken to add up, and to do the same whatever their size: answers of about the same loss may be a
fifth apart in what they do together.
"""


def best_answer(
    work: Losses, losses: LossTable, allocated: Answer, size: int, priors: Mapping[str, float]
) -> tuple[Answer, LossTable]:
    """Return the best of what was allocated, of uniform bits and of what the table has seen, and the table with it.

    Of a graph that can be run that is the best whose outputs are least off (scores where these are probabilities);
    else that of the least loss where weights count otherwise than is thought: one in which no weight is further off
    than by uniform bits, unless another has clearly less loss. With priors it is what was allocated, unless uniform
    bits have less of the loss that they speak of.

    Parameters
    ----------
    work : Losses
    losses : LossTable
    allocated : Answer
        That of the least loss, as far as was searched.
    size : int
        The most bytes.
    priors : mapping of str to float
        Those that are given.
    """
    uniform = _uniform(work, losses, size, priors)
    fit = [allocated, *uniform]
    if priors:
        return min(fit, key=lambda each: losses.loss_of(each.codes, priors)), losses
    fit = list({losses.same(each.codes): each for each in fit[::-1]}.values())[::-1]
    smaller = [each for each in losses.seen if each.nbytes <= size]
    with work.looked_at() as off:
        if off is not None:
            # The table's best is looked at again: that inputs which are given have changed it doesn't see.
            made = {losses.same(each.codes) for each in fit}
            known = [each for each in smaller if each.off is not None and losses.same(each.codes) not in made]
            fit += sorted(known, key=lambda each: each.off or 0.0)[:1]
            fit = [off(each.codes) for each in fit]
            if all(each.off is not None for each in fit):
                fit += _others(off, losses, fit, size)
                able = [each for each in fit if each.off is not None]
                return min(able, key=lambda each: each.off or 0.0), _with(losses, fit)
    least = losses.loss_of(allocated.codes, {})
    sure = [*uniform, *_no_further_off(work, losses, size)]
    fit = [allocated, *(each for each in sure if each.nbytes >= MET * size)]
    fit += [each for each in smaller if losses.loss_of(each.codes, {}) <= least]
    best = min(fit, key=lambda each: losses.at_worst(each.codes))
    return best, _with(losses, [best])


def _no_further_off(work: Losses, losses: LossTable, size: int) -> list[Answer]:
    """Return the best answer of those in which no weight is further off than by some uniform bits, if there is one.

    It is nearer than these whatever weights count, and what uniform bits leave over goes where it is thought to count.
    """
    found: dict[tuple[tuple[str, str], ...], Answer] = {}
    for uniform, about in map(losses.uniform, EVERY):
        if about <= size:
            codes, allocation = losses.allocate(size, {}, at_most=uniform)
            found[losses.same(codes)] = Answer(codes, losses.fixed + allocation.nbytes)
    for each in sorted(found.values(), key=lambda each: losses.at_worst(each.codes)):
        try:
            nbytes = work.nbytes(each.codes, each.nbytes)
        except (OptionError, UnsupportedError):  # as of uniform bits
            continue
        if nbytes <= size:
            return [replace(each, nbytes=nbytes)]
    return []


def _others(
    off: Callable[[Mapping[str, str]], Answer], losses: LossTable, fit: list[Answer], size: int
) -> list[Answer]:
    """Return answers that differ in a weight from the one that is least off so far, the best by loss, and in several.

    What each change alone makes better those have that come last: all of these changes, and the better half of them.
    """
    best = min(fit, key=lambda each: each.off or 0.0)
    seen = {losses.same(each.codes) for each in (*fit, *losses.seen)}
    most = min(TRIED, WORK // max(best.nbytes, 1))
    tried: list[tuple[tuple[str, str], Answer]] = []
    for change, codes in losses.others(size, best.codes):
        if len(tried) < most and losses.same(codes) not in seen:
            seen.add(losses.same(codes))
            tried.append((change, off(codes)))
    able = [(change, each) for change, each in tried if each.off is not None and each.nbytes <= size]
    better = sorted((each.off or 0.0, change) for change, each in able if (each.off or 0.0) < (best.off or 0.0))
    changes = [change for _, change in better]
    found = [each for _, each in able]
    for part in (changes, changes[: (len(changes) + 1) // 2]) if len(changes) > 1 else ():
        codes, _ = losses.allocate(size, {}, part)
        if losses.same(codes) not in seen:
            seen.add(losses.same(codes))
            found.append(off(codes))
    return [each for each in found if each.nbytes <= size]


def _with(losses: LossTable, answers: list[Answer]) -> LossTable:
    """Return the table with answers, each once."""
    found = {losses.same(each.codes): each for each in (*losses.seen, *answers)}
    return replace(losses, seen=tuple(found.values()))


def _uniform(work: Losses, losses: LossTable, size: int, priors: Mapping[str, float]) -> list[Answer]:
    """Return the answers of uniform bits that fit, with the least loss first."""
    found: list[Answer] = []
    uniform = {losses.same(codes): (codes, about) for codes, about in map(losses.uniform, EVERY)}
    for codes, about in sorted(uniform.values(), key=lambda each: losses.loss_of(each[0], priors)):
        try:
            # What a graph takes beside its weights is only about known.
            nbytes = work.nbytes(codes, about) if about <= 1.05 * size else about
        except (OptionError, UnsupportedError):  # of what is allocated it is known that it can be written
            continue
        if nbytes <= size:
            found.append(Answer(codes, nbytes))
        if len(found) == UNIFORM:
            break
    return found
