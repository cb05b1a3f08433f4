"""Signatures as `help` and consoles print them: every option with its default; types stand in the docstrings."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

__all__ = ["show_options"]


def show_options(namespace: Mapping[str, Any]) -> None:
    """Leave types out of the signatures of what a public module names in `__all__`: the last line of the module.

    Those of the methods of its classes too.

    Annotations stay where they are: type checkers and `typing.get_type_hints` read those.

    Examples
    --------
    >>> import inspect
    >>> import modelopt_rs as mo
    >>> print(inspect.signature(mo.reduce.norm))
    (x, axis=None, *, ord=2, keepdims=False, dtype=None, threads=None)
    """
    named = [namespace[name] for name in namespace["__all__"]]
    shown: list[tuple[Any, inspect.Signature]] = []
    for value in (*named, *_methods(named)):
        if inspect.isfunction(value) or inspect.isclass(value):
            with suppress(ValueError):  # of what is compiled
                shown.append((value, inspect.signature(value)))
    # All are read before one is set: a class without a `__signature__` of its own shows that of its base.
    for value, full in shown:
        plain = [each.replace(annotation=each.empty) for each in full.parameters.values()]
        value.__signature__ = full.replace(parameters=plain, return_annotation=full.empty)


def _methods(named: list[Any]) -> Iterator[Any]:
    """Yield the methods of classes that are shown with types, those of their bases here too."""
    for kind in {base for value in named if inspect.isclass(value) for base in value.__mro__}:
        if not kind.__module__.startswith("modelopt_rs"):
            continue
        for method in vars(kind).values():
            plain = method.__func__ if isinstance(method, classmethod | staticmethod) else method
            if inspect.isfunction(plain) and plain.__annotations__ and not hasattr(plain, "__signature__"):
                yield plain
