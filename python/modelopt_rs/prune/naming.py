"""Errors of functions that are built from others: in the names of the one that was called."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["said_as"]


@contextmanager
def said_as(names: dict[str, str]) -> Iterator[None]:
    """Raise errors that begin with a key of `names` with its value instead."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        for name, other in names.items():
            if text.startswith(name):
                raise type(error)(other + text.removeprefix(name)) from None
        raise
