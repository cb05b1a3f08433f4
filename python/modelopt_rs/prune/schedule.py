"""Sparsity by steps: each function returns a function of the step, as those of `modelopt_rs.optim.schedule` do."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from modelopt_rs.arguments import check_number
from modelopt_rs.deprecated import warn_former
from modelopt_rs.optim.schedule import Schedule

__all__ = ["constant", "cubic", "linear"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _former(function: _Function) -> _Function:
    """Take a step as the first argument too, and return the sparsity in it: the former form."""

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if "step" in given or (args and "sparsity" in given):
            name = function.__name__
            warn_former(f"{name}(step, sparsity=...)", f"{name}(sparsity, ...)(step)")
            step = given.pop("step") if "step" in given else args[0]
            return function(**given)(step)
        return function(*args, **given)

    return cast(_Function, call)


@_former
def constant(sparsity: float, *, begin: int = 0) -> Schedule:
    """Make a schedule that is 0 before step `begin`, and `sparsity` from then on.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> late = mo.prune.constant(0.8, begin=11)
    >>> late(10), late(11)
    (0.0, 0.8)
    """
    return _grown("constant", (0.0, sparsity), (begin, begin), 1)


@_former
def linear(sparsity: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """Make a schedule that grows evenly from `initial` at step `begin` to `sparsity` at step `end`.

    ``initial + (sparsity - initial) * t``, ``t = (step - begin) / (end - begin)`` between 0 and 1; 0 before `begin`.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> grow = mo.prune.linear(0.8, begin=10, end=20)
    >>> [grow(step) for step in (9, 10, 15, 20, 99)]
    [0.0, 0.0, 0.4, 0.8, 0.8]
    """
    return _grown("linear", (initial, sparsity), (begin, end), 1)


@_former
def cubic(sparsity: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """Make a schedule that grows fast at first, while there are many weights to choose from, then slowly.

    ``sparsity + (initial - sparsity) * (1 - t)**3``, ``t = (step - begin) / (end - begin)`` between 0 and 1; 0 before
    `begin`.

    References
    ----------
    Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, section 3.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> grow = mo.prune.cubic(0.8, begin=10, end=20)
    >>> [round(grow(step), 3) for step in (10, 15, 20)]
    [0.0, 0.7, 0.8]
    """
    return _grown("cubic", (initial, sparsity), (begin, end), 3)


def _grown(function: str, ends: tuple[float, float], steps: tuple[int, int], power: int) -> Schedule:
    for name, number in (("begin", steps[0]), ("end", steps[1])):
        check_number(function, name, number)
    for name, share in zip(("initial", "sparsity"), ends, strict=True):
        check_number(function, name, share)
        if not 0 <= share <= 1:
            raise ValueError(f"{function}: {name} must be from 0 to 1, got {share}")
    if steps[1] < steps[0]:
        raise ValueError(f"{function}: end must be at least begin ({steps[0]}), got {steps[1]}")
    (initial, sparsity), (begin, end) = ends, steps

    def at(step: int) -> float:
        check_number(function, "step", step)
        if step < 0:
            raise ValueError(f"{function}: step must be at least 0, got {step}")
        if step < begin:
            return 0.0
        if step >= end:
            return sparsity
        return sparsity + (initial - sparsity) * (1 - (step - begin) / (end - begin)) ** power

    return at
