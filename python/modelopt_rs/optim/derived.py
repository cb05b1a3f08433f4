"""What follows from the class of an optimizer: its step function, where nobody has written it out.

Written ones show readers and type checkers their signature and their formula; what a class says is enough to have one.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from modelopt_rs.optim.optimizer import Optimizer
from modelopt_rs.optim.specification import Specification
from modelopt_rs.optim.step import run_step, step_function

__all__ = ["add_step_functions", "own_options", "step_of"]

# What every step takes as well, and what it is where it is not given.
_COMMON = {"maximize": False, "grad_scale": 1.0, "clip_value": None, "master": None, "rounding_seed": None}
_LAST = {"nonfinite": "propagate", "dtype": None, "threads": None}


def own_options(optimizer: type[Optimizer]) -> list[inspect.Parameter]:
    """Return the options of a class that are not all classes'."""
    given = inspect.signature(optimizer.__init__).parameters.values()
    return [p for p in given if p.name not in ("self", "params") and p.kind is not p.VAR_KEYWORD]


def _signature(specification: Specification, options: Sequence[inspect.Parameter]) -> inspect.Signature:
    """As written ones are: an optional state is asked for by giving it."""
    taken = {"lr", "weight_decay", "nesterov", "semantics", *specification.numbers}
    kind, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    made = [inspect.Parameter(name, kind) for name in ("param", "grad")]
    made += [
        inspect.Parameter(s.name, kind, default=None if s.option else inspect.Parameter.empty)
        for s in specification.states
    ]
    made.append(inspect.Parameter("step", keyword))
    made += [p.replace(kind=keyword) for p in options if p.name in taken]
    made += [inspect.Parameter(name, keyword, default=value) for name, value in (_COMMON | _LAST).items()]
    return inspect.Signature(made)


def step_of(optimizer: type[Optimizer]) -> Callable[..., None]:
    """Make the step function of a class.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> from modelopt_rs.optim.derived import step_of
    >>> p, g, m = np.ones(2, np.float32), np.ones(2, np.float32), np.zeros(2, np.float32)
    >>> step_of(mo.optim.Lion)(p, g, m, step=1, lr=0.25)
    >>> p
    array([0.75, 0.75], dtype=float32)
    """
    specification = optimizer.specification
    signature = _signature(specification, own_options(optimizer))

    def step(*args: Any, **options: Any) -> None:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        given = bound.arguments
        states = [given[state.name] for state in specification.states]
        tensors = (given["param"], given["grad"], states, given["master"], given["rounding_seed"])
        decay = given.get("weight_decay", 0.0)
        common = (given["lr"], given["grad_scale"], given["clip_value"], decay, given["maximize"])
        numbers = [given[name] for name in specification.numbers]
        rest = (given["step"], given.get("nesterov", False), given.get("semantics", "torch"))
        call = (specification.function, tensors, common, (numbers, *rest))
        run_step(call, given["nonfinite"], given["dtype"], given["threads"])

    step.__name__ = step.__qualname__ = specification.function
    step.__doc__ = f"Step {optimizer.__name__} in place: see its class, and `adam_step` for what all have in common."
    step.__signature__ = signature  # type: ignore[attr-defined]
    return step_function(step)


def add_step_functions(namespace: dict[str, Any], optimizers: Sequence[str]) -> None:
    """Add to a module with classes the step functions that it lacks."""
    for optimizer in map(namespace.__getitem__, optimizers):
        function = optimizer.specification.function
        if function not in namespace:
            namespace[function] = step_of(optimizer)
            namespace["__all__"].append(function)
