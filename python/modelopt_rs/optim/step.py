"""What the step functions share: dicts of arrays are lists, and what becomes of gradients that are not finite."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from modelopt_rs import _core
from modelopt_rs._types import OptimCall, StepNonfinite
from modelopt_rs.arguments import check_choice, shown
from modelopt_rs.deprecated import renamed

__all__ = ["refuses", "run_step", "step_function"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
CHOICES: Final = ("propagate", "raise")


def step_function(function: _Function) -> _Function:
    """Let a step function take dicts of arrays, and `error_if_nonfinite` as version 0.1 did.

    The keys of its first argument give the order; all others that are arrays must have the same.
    """
    kinds = inspect.signature(function).parameters.values()
    places = [each.name for each in kinds if each.kind is each.POSITIONAL_OR_KEYWORD]
    names = [*places, "master"]

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if isinstance(args[0] if args else given.get(places[0]), Mapping):
            given = _as_lists(function.__name__, names, dict(zip(places, args, strict=False)) | given)
            args = ()
        return function(*args, **given)

    former = renamed({"nonfinite": {True: "raise", False: "propagate"}}, error_if_nonfinite="nonfinite")
    return cast(_Function, former(call))


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


def refuses(function: str, nonfinite: StepNonfinite) -> bool:
    """Whether gradients that are not finite are refused."""
    check_choice(function, "nonfinite", nonfinite, CHOICES)
    return nonfinite == "raise"


def run_step(call: OptimCall, nonfinite: StepNonfinite, dtype: str | None, threads: int | None) -> list[float]:
    """Make a step of one array or of a list of arrays."""
    return _core.optim_step([call], refuses(call[0], nonfinite), dtype, threads)
