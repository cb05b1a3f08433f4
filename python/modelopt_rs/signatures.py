"""Signatures as `help` and consoles print them: every option with its default; types stand in the docstrings."""

import inspect
from collections.abc import Mapping
from typing import Any

__all__ = ["show_options"]


def show_options(namespace: Mapping[str, Any]) -> None:
    """Leave types out of the signatures of what a public module names in `__all__`: the last line of the module.

    Annotations stay where they are: type checkers and `typing.get_type_hints` read those.

    Examples
    --------
    >>> import inspect
    >>> import modelopt_rs as mo
    >>> print(inspect.signature(mo.reduce.norm))
    (x, axis=None, *, ord=2, keepdims=False, dtype=None, threads=None)
    """
    for name in namespace["__all__"]:
        value: Any = namespace[name]
        if inspect.isfunction(value) or inspect.isclass(value):
            try:
                shown = inspect.signature(value)
            except ValueError:  # of what is compiled
                continue
            plain = [each.replace(annotation=each.empty) for each in shown.parameters.values()]
            short = shown.replace(parameters=plain, return_annotation=shown.empty)
            setattr(value, "__signature__", short)  # noqa: B010 - which type checkers know of no function
