"""Imports that wait until something of the module is wanted.

Tried and no help: `importlib.util.LazyLoader`. In Python 3.11 the next `import` of the module reads its `__spec__`, and
that loads it.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["later"]


class _Later(ModuleType):
    """Stands for a module where it was imported; imports it when something of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def later(name: str) -> Iterator[None]:
    """Within it `import name` does nothing yet, unless the module is imported already.

    Parameters
    ----------
    name : str
        A module.

    Examples
    --------
    >>> from modelopt_rs.containers.onnx.later import later
    >>> with later("wave"):
    ...     import wave
    >>> wave.__class__.__name__
    '_Later'
    >>> wave.Error.__module__
    'wave'
    """
    if name in sys.modules:
        yield
        return
    stand_in = sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
