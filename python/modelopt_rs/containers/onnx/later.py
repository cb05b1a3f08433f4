"""Imports that wait until something of the module is wanted.

Tried and no help: `importlib.util.LazyLoader`. In Python 3.11 the next `import` of the module reads its `__spec__`, and
that loads it.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import RLock
from types import ModuleType
from typing import Any

__all__ = ["later"]

_LOADING = RLock()


class _Later(ModuleType):
    """A module whose code runs when something of it is wanted: from then on it is like any other."""

    def __getattr__(self, name: str) -> Any:
        with _LOADING:
            if type(self) is _Later:
                self._load()
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        self.__getattr__("__name__")
        return dir(self)

    def _load(self) -> None:
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        before = dict(self.__dict__)
        self.__class__ = ModuleType  # type: ignore[assignment]
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        try:
            spec.loader.exec_module(self)
        except BaseException:
            # The next who wants something of it gets the error as well.
            self.__dict__.clear()
            self.__dict__.update(before)
            self.__class__ = _Later
            raise


class _Waiting(Loader):
    """Makes the module, and leaves its code to a loader of later."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        # Whoever imports a part of it looks for this first: its own code must have run by then.
        module.__dict__.pop("__path__", None)
        module.__class__ = _Later


class _Finder(MetaPathFinder):
    """Finds one module, as the others do, and lets it wait."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        others = (each for each in sys.meta_path if not isinstance(each, _Finder))
        spec = next((found for each in others if (found := each.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Waiting(spec.loader)
        return spec


@contextmanager
def later(name: str) -> Iterator[None]:
    """Within it `import name` runs nothing of the module yet, unless it is imported already.

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
    >>> wave.Error.__module__, wave.__class__.__name__
    ('wave', 'module')
    """
    finder = _Finder(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
