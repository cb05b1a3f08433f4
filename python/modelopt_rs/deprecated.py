"""Names of version 0.1 that have others now: taken until version 0.3, and warned about. All that is renamed is here."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

__all__ = ["REMOVED_IN", "former", "of_today", "renamed", "warn_former"]

REMOVED_IN: Final = "0.3"
_Function = TypeVar("_Function", bound=Callable[..., Any])
_NONE: Final[Mapping[str, Mapping[Any, Any]]] = {}


def warn_former(old: str, new: str, stacklevel: int = 2) -> None:
    """Warn that `old` is `new` now; `stacklevel` counts from the caller, as that of `warnings.warn`."""
    text = f"{old} is now {new}; the old form is gone in version {REMOVED_IN}"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel + 1)


def renamed(
    values: Mapping[str, Mapping[Any, Any]] = _NONE, /, **names: str | None
) -> Callable[[_Function], _Function]:
    """Let a function take keyword arguments by former names, and former values.

    Parameters
    ----------
    values : mapping
        Of names of today: what former values are now.
    **names
        Former name: name of today.

    Raises
    ------
    TypeError
        By the function, if an argument comes by both names.

    Examples
    --------
    >>> import warnings
    >>> from modelopt_rs.deprecated import renamed
    >>> @renamed({"nonfinite": {True: "raise"}}, nan="nonfinite", check="nonfinite")
    ... def total(x, nonfinite="propagate"):
    ...     return nonfinite
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     total(1, check=True)
    'raise'
    >>> print(caught[0].message)
    total: check=True is now nonfinite='raise'; the old form is gone in version 0.3
    """

    def decorate(function: _Function) -> _Function:
        where = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            if not given:
                return function(*args)
            if not known.isdisjoint(given):
                given = of_today(where, given, names, values)
            return function(*args, **given)

        return cast(_Function, call)

    known = frozenset(names) | frozenset(values)
    return decorate


def of_today(
    where: str, given: dict[str, Any], names: Mapping[str, str | None], values: Mapping[str, Mapping[Any, Any]]
) -> dict[str, Any]:
    """Return keyword arguments by their names and values of today; warn the caller's caller where these are others."""
    made: dict[str, Any] = {}
    for name, value in given.items():
        new = names.get(name) or name
        former_values = values.get(new, {})
        is_former = isinstance(value, str | bool) and value in former_values
        if new != name and new in given:
            raise TypeError(f"{where}: {new} must be given once, got it as {name} as well")
        if new == name and not is_former:
            made[name] = value
            continue
        made[new] = former_values[value] if is_former else value
        shown = (f"{name}={value!r}", f"{new}={made[new]!r}") if is_former else (name, new)
        warn_former(f"{where}: {shown[0]}", shown[1], 3)
    return made


class former:
    """An attribute by its former name: ``keep = former("n")``."""

    def __init__(self, new: str) -> None:
        self._new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        warn_former(f"{owner.__name__}.{self._name}", f"{owner.__name__}.{self._new}")
        return getattr(instance, self._new)
