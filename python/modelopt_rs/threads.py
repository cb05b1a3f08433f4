"""How many threads a call uses.

In this order: the call's own `threads=`, the innermost `with num_threads(n)` of the calling thread,
`set_num_threads(n)`, the environment variable `MODELOPT_RS_NUM_THREADS`, the CPUs that this process may use
(affinity and cgroup quota). The number never changes a result, only the time it takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from modelopt_rs import _core

__all__ = ["MAX_THREADS", "get_num_threads", "num_threads", "set_num_threads"]

MAX_THREADS: Final = 1024
"""The most that a call may be given."""


def set_num_threads(n: int) -> None:
    """Set the number of threads that every call of this process uses from now on.

    Parameters
    ----------
    n : int
        At least 1. With 1 no worker thread is ever started.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1 or more than 1,024.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> before = mo.get_num_threads()
    >>> mo.set_num_threads(1)
    >>> mo.get_num_threads()
    1
    >>> mo.set_num_threads(before)
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """Return the number of threads that a call from this thread uses by default.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> mo.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use `n` threads for the calls that this thread makes inside the `with` block.

    Other Python threads are not affected. A coroutine that awaits inside the block shares its thread, and so
    the setting, with the others: give those calls `threads=` instead.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1 or more than 1,024.

    Examples
    --------
    >>> import modelopt_rs as mo
    >>> with mo.num_threads(1):
    ...     mo.get_num_threads()
    1
    """
    before = _core.swap_thread_override(n)
    try:
        yield
    finally:
        _core.swap_thread_override(before)
