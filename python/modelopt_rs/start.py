"""What an interrupt does while the command still starts: nothing has been written, so it ends the process at once.

An exception would not do. It may come while C code imports (NumPy then says that it is badly installed), or in a
callback that Python lets no exception out of: then the interrupt is lost.
"""

import os
import signal
import sys
from itertools import pairwise
from types import FrameType

__all__ = ["end_on_interrupt", "is_command", "raise_on_interrupt"]


def is_command() -> bool:
    """Whether this process is `modelopt-rs` or `python -m modelopt_rs`, and no program that imports the package."""
    script = sys.argv[0].rpartition("/")[2] if sys.argv else ""
    return script == "modelopt-rs" or (script == "-m" and ("-m", "modelopt_rs") in pairwise(sys.orig_argv))


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"modelopt-rs: interrupted\n")
    os._exit(130)


def end_on_interrupt() -> None:
    """Let an interrupt end the process, where it isn't ignored (nohup) nor handled by somebody else."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Let an interrupt be a KeyboardInterrupt again, from where the command cleans up behind itself."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
