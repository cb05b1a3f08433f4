"""Learning-rate schedules: each gives a plain function of the number of the step, which is 1 for the first.

They are what an optimizer takes as `lr`, and compose as functions do. Those that torch has give what torch's scheduler
gives when it is stepped after each optimizer step.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from modelopt_rs.arguments import check_choice, check_number
from modelopt_rs.signatures import show_options

__all__ = ["constant", "cosine", "exponential", "linear_warmup", "one_cycle", "polynomial", "step_decay"]

Schedule: TypeAlias = Callable[[int], float]


def _at_least(function: str, name: str, value: float, least: float) -> None:
    check_number(function, name, value)
    if not value >= least or value == math.inf:
        raise ValueError(f"{function}: {name} must be at least {least:g} and finite, got {value!r}")


def _schedule(function: str, rate: Schedule) -> Schedule:
    """Return a schedule that refuses what is the number of no step: counted from 0 all rates would be off by one."""

    def at(step: int) -> float:
        check_number(function, "step", step)
        if not step >= 1:
            raise ValueError(f"{function}: step must be at least 1, the first, got {step!r}")
        return rate(step)

    return at


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def constant(lr: float) -> Schedule:
    """Always `lr`.

    >>> constant(0.1)(7)
    0.1
    """
    _at_least("constant", "lr", lr, 0)
    return _schedule("constant", lambda step: lr)


def step_decay(lr: float, every: int, gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` after each `every` steps, as `torch.optim.lr_scheduler.StepLR`: ``lr gamma**((t - 1) //
    every)``.

    >>> [step_decay(1.0, 2, 0.5)(t) for t in (1, 2, 3, 5)]
    [1.0, 1.0, 0.5, 0.25]
    """
    _at_least("step_decay", "lr", lr, 0)
    _at_least("step_decay", "every", every, 1)
    _at_least("step_decay", "gamma", gamma, 0)
    return _schedule("step_decay", lambda step: lr * _power(gamma, (step - 1) // every))


def exponential(lr: float, gamma: float) -> Schedule:
    """Multiply by `gamma` after each step, as `torch.optim.lr_scheduler.ExponentialLR`: ``lr gamma**(t - 1)``.

    >>> exponential(1.0, 0.5)(3)
    0.25
    """
    _at_least("exponential", "lr", lr, 0)
    _at_least("exponential", "gamma", gamma, 0)
    return _schedule("exponential", lambda step: lr * _power(gamma, step - 1))


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """Half a wave from `lr` in step 1 to `final` in step ``steps + 1``, where it stays.

    ``final + (lr - final) (1 + cos(pi (t - 1) / steps)) / 2``; Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient
    Descent with Warm Restarts" (arXiv 1608.03983); as `torch.optim.lr_scheduler.CosineAnnealingLR` up to there.

    >>> [round(cosine(1.0, 10)(t), 3) for t in (1, 6, 11, 20)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _at_least("cosine", "lr", lr, 0)
    _at_least("cosine", "steps", steps, 1)
    _at_least("cosine", "final", final, 0)

    def rate(step: int) -> float:
        return final + (lr - final) * (1 + math.cos(math.pi * min(step - 1, steps) / steps)) / 2

    return _schedule("cosine", rate)


def polynomial(lr: float, steps: int, power: float = 1.0, final: float = 0.0) -> Schedule:
    """``final + (lr - final) (1 - (t - 1) / steps)**power`` up to step ``steps + 1``, where `final` stays.

    With ``final=0`` as `torch.optim.lr_scheduler.PolynomialLR`.

    >>> [polynomial(1.0, 4)(t) for t in (1, 2, 5, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    _at_least("polynomial", "lr", lr, 0)
    _at_least("polynomial", "steps", steps, 1)
    _at_least("polynomial", "power", power, 0)
    _at_least("polynomial", "final", final, 0)

    def rate(step: int) -> float:
        return final + (lr - final) * _power(1 - min(step - 1, steps) / steps, power)

    return _schedule("polynomial", rate)


def linear_warmup(schedule: Schedule | float, steps: int, start: float | None = None) -> Schedule:
    """Lead linearly to a schedule (or a constant) in `steps` steps, after which it begins.

    In step t up to `steps` ``schedule(1) (start + (1 - start) (t - 1) / steps)``, then ``schedule(t - steps)``: so step
    ``steps + 1`` has the schedule's first rate, its peak. `start` is the part of it in step 1: by default
    ``1 / (steps + 1)``, which makes ``schedule(1) t / (steps + 1)``; with 0, as in transformers, the first step moves
    nothing. A decay of n steps in all is ``linear_warmup(cosine(lr, n - steps), steps)``.

    As `torch.optim.lr_scheduler.SequentialLR` of ``LinearLR(start, 1, steps)`` and the schedule with the milestone
    `steps`, and as `optax.warmup_cosine_decay_schedule`.

    >>> [round(linear_warmup(1.0, 4)(t), 3) for t in (1, 2, 4, 5, 6)]
    [0.2, 0.4, 0.8, 1.0, 1.0]
    >>> [round(linear_warmup(cosine(1.0, 10), 4, start=0)(t), 3) for t in (1, 3, 5, 10, 15)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _at_least("linear_warmup", "steps", steps, 1)
    if start is not None:
        check_number("linear_warmup", "start", start)
    if start is not None and not 0 <= start <= 1:
        raise ValueError(f"linear_warmup: start must be from 0 to 1, got {start!r}")
    if not callable(schedule):
        _at_least("linear_warmup", "schedule", schedule, 0)
    after = schedule if callable(schedule) else constant(schedule)
    least = 1 / (steps + 1) if start is None else start

    def rate(step: int) -> float:
        return after(step - steps) if step > steps else after(1) * (least + (1 - least) * (step - 1) / steps)

    return _schedule("linear_warmup", rate)


def one_cycle(
    max_lr: float,
    steps: int,
    *,
    pct_start: float = 0.3,
    anneal: Literal["cos", "linear"] = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Up from ``max_lr / div_factor`` to `max_lr` in the first `pct_start` of `steps`, then down to almost nothing.

    The end is the start over `final_div_factor`. As `torch.optim.lr_scheduler.OneCycleLR` with two phases; after the
    last step its learning rate stays. Smith and Topin 2018, "Super-Convergence" (arXiv 1708.07120).

    >>> [round(one_cycle(1.0, 11, pct_start=0.5)(t), 4) for t in (1, 5, 11)]
    [0.04, 0.9711, 0.0]
    """
    _at_least("one_cycle", "max_lr", max_lr, 0)
    _at_least("one_cycle", "steps", steps, 2)
    check_number("one_cycle", "pct_start", pct_start)
    if not 0 < pct_start < 1:
        raise ValueError(f"one_cycle: pct_start must be between 0 and 1, got {pct_start!r}")
    check_choice("one_cycle", "anneal", anneal, ("cos", "linear"))
    _at_least("one_cycle", "div_factor", div_factor, 1)
    _at_least("one_cycle", "final_div_factor", final_div_factor, 1)
    low = max_lr / div_factor
    top = pct_start * steps - 1

    def between(start: float, end: float, part: float) -> float:
        if anneal == "linear":
            return start + (end - start) * part
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))

    def lr(step: int) -> float:
        at = min(step, steps) - 1
        if at <= top:
            return between(low, max_lr, at / top if top else 1.0)
        return between(max_lr, low / final_div_factor, (at - top) / (steps - 1 - top))

    return _schedule("one_cycle", lr)


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
