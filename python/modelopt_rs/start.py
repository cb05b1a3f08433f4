"""How an interrupt ends the command. While that still starts nothing has been written, so the process ends at once.

An exception would not do. It may come while C code imports (NumPy then says that it is badly installed), or in a
callback that Python lets no exception out of: then the interrupt is lost.
"""

import os
import signal
import sys
from contextlib import suppress
from itertools import pairwise
from types import FrameType

__all__ = ["end_command", "end_on_interrupt", "is_command", "raise_on_interrupt"]


def is_command() -> bool:
    """Whether this process is `modelopt-rs` or `python -m modelopt_rs`, and no program that imports the package."""
    path = sys.argv[0] if sys.argv else ""
    if path == "-m" or path.endswith("/modelopt_rs/__main__.py"):  # before it is found, and after
        return ("-m", "modelopt_rs") in pairwise(sys.orig_argv)
    return path.rpartition("/")[2] == "modelopt-rs"


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"modelopt-rs: interrupted\n")
    os._exit(130)


def end_command(code: int) -> None:
    """End the process if it is the command, which has cleaned up behind itself after a signal.

    Not by way of Python's own exit. It waits for threads, and takes down libraries in which others may still compute;
    and where the interrupt came within `exec`, as dataclasses use it, it ends by SIGINT whatever the exit code is (2 of
    120).
    """
    if is_command():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, full, or none
                stream.flush()
        os._exit(code)


def end_on_interrupt() -> None:
    """Let an interrupt end the process, where it isn't ignored (nohup) nor handled by somebody else."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Let an interrupt be a KeyboardInterrupt again, from where the command cleans up behind itself."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
