"""Sparsity as a function of the step."""

from modelopt_rs.arguments import check_number

__all__ = ["constant", "cubic", "linear"]


def constant(step: int, *, sparsity: float, begin: int = 0) -> float:
    """Return 0 before step `begin`, `sparsity` from then on.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> mo.prune.constant(10, sparsity=0.8, begin=11), mo.prune.constant(11, sparsity=0.8, begin=11)
    (0.0, 0.8)
    """
    _check("constant", step, (0.0, sparsity), (begin, begin))
    return sparsity if step >= begin else 0.0


def linear(step: int, *, sparsity: float, begin: int, end: int, initial: float = 0.0) -> float:
    """Return a sparsity that grows evenly from `initial` at step `begin` to `sparsity` at step `end`.

    ``initial + (sparsity - initial) * t``, ``t = (step - begin) / (end - begin)`` between 0 and 1; 0 before `begin`.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> [mo.prune.linear(step, sparsity=0.8, begin=10, end=20) for step in (9, 10, 15, 20, 99)]
    [0.0, 0.0, 0.4, 0.8, 0.8]
    """
    return _grown("linear", step, (initial, sparsity), (begin, end), 1)


def cubic(step: int, *, sparsity: float, begin: int, end: int, initial: float = 0.0) -> float:
    """Return a sparsity that grows fast at first, while there are many weights to choose from, then slowly.

    ``sparsity + (initial - sparsity) * (1 - t)**3``, ``t = (step - begin) / (end - begin)`` between 0 and 1; 0 before
    `begin`.

    References
    ----------
    Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, section 3.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> [round(mo.prune.cubic(step, sparsity=0.8, begin=10, end=20), 3) for step in (10, 15, 20)]
    [0.0, 0.7, 0.8]
    """
    return _grown("cubic", step, (initial, sparsity), (begin, end), 3)


def _grown(function: str, step: int, ends: tuple[float, float], steps: tuple[int, int], power: int) -> float:
    _check(function, step, ends, steps)
    (initial, sparsity), (begin, end) = ends, steps
    if step < begin:
        return 0.0
    if step >= end:
        return sparsity
    return sparsity + (initial - sparsity) * (1 - (step - begin) / (end - begin)) ** power


def _check(function: str, step: int, ends: tuple[float, float], steps: tuple[int, int]) -> None:
    for name, number in (("step", step), ("begin", steps[0]), ("end", steps[1])):
        check_number(function, name, number)
    for name, share in zip(("initial", "sparsity"), ends, strict=True):
        check_number(function, name, share)
        if not 0 <= share <= 1:
            raise ValueError(f"{function}: {name} must be from 0 to 1, got {share}")
    if step < 0:
        raise ValueError(f"{function}: step must be at least 0, got {step}")
    if steps[1] < steps[0]:
        raise ValueError(f"{function}: end must be at least begin ({steps[0]}), got {steps[1]}")
