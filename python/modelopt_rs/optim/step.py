"""What the step functions share: dicts of arrays are lists, and what becomes of gradients that are not finite."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import OptimCall, StepNonfinite
from modelopt_rs.arguments import shown
from modelopt_rs.deprecated import of_today

__all__ = ["run_step", "step_function"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FORMER_NAMES: Final = {"error_if_nonfinite": "nonfinite"}
_FORMER_VALUES: Final = {"nonfinite": {True: "raise", False: "propagate"}}
_CHANGED: Final = frozenset(_FORMER_NAMES) | frozenset(_FORMER_VALUES)


def step_function(function: _Function) -> _Function:
    """Let a step function take dicts of arrays, and `error_if_nonfinite` as version 0.1 did.

    The keys of its first argument give the order; all others that are arrays must have the same.
    """
    kinds = inspect.signature(function).parameters.values()
    places = [each.name for each in kinds if each.kind is each.POSITIONAL_OR_KEYWORD]
    names, first = [*places, "master"], places[0]

    # One layer for both: a second one takes as long as the step of some hundred elements.
    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if given and not _CHANGED.isdisjoint(given):
            given = of_today(function.__name__, given, _FORMER_NAMES, _FORMER_VALUES)
        params = args[0] if args else given.get(first)
        if type(params) is not np.ndarray and isinstance(params, Mapping):
            given = _as_lists(function.__name__, names, dict(zip(places, args, strict=False)) | given)
            args = ()
        return function(*args, **given)

    return cast(_Function, call)


def _as_lists(function: str, names: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    first = names[0]
    keys = list(given[first])
    for name in names:
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise TypeError(f"{function}: {name} must be a dict like {first}, got {shown(value)}")
        if len(value) != len(keys) or any(key not in value for key in keys):
            odd = next((key for key in keys if key not in value), None)
            what = f"lacks {odd!r}" if odd is not None else f"has {len(value)} keys for {len(keys)}"
            raise ValueError(f"{function}: {name} must have the keys of {first}, got one that {what}")
        given[name] = [value[key] for key in keys]
    return given


def run_step(call: OptimCall, nonfinite: StepNonfinite, dtype: str | None, threads: int | None) -> list[float]:
    """Make a step of one array or of a list of arrays."""
    return _core.optim_step([call], nonfinite, dtype, threads)
