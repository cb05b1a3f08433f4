"""The peak of this process's memory."""

import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["peak_memory"]


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had resident so far; 0 where the system does not say.

    Examples
    --------
    >>> from modelopt_rs.report.peak import peak_memory
    >>> peak_memory() > 1_000_000
    True
    """
    # Not ru_maxrss where there is a choice: Linux hands it down through fork and exec, so that a small child
    # of a large process reports the size of its parent.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
