"""What a run costs: the times of two models, taken in turn, and the peak memory of a process that runs one."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelopt_rs._core import FormatError
from modelopt_rs._types import Array
from modelopt_rs.containers.numpy_files import read_npz
from modelopt_rs.errors import quote
from modelopt_rs.report.peak import peak_memory

__all__ = ["in_turn", "peak_of_run"]

# The threads of a session spin for a while after its run, on the cores of the other.
PAUSE = 0.005
BUDGET = 20.0  # seconds for all rounds; slow models get fewer, but three
LEAST_ROUNDS = 3


def in_turn(before: Callable[[], Any], after: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Time two calls in turn, swapping who goes first; both should have been called before.

    Parameters
    ----------
    before, after : callable
    rounds : int
        How often each is timed; less often, but three times, where that takes longer than 20 s.

    Returns
    -------
    tuple of two lists of float
        Seconds of each call; those at one place are neighbours.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.latency import in_turn
    >>> a, b = in_turn(lambda: None, lambda: None, 3)
    >>> len(a), len(b)
    (3, 3)
    """
    taken: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for i in range(rounds):
        if i >= LEAST_ROUNDS and time.perf_counter() - start > BUDGET:
            break
        for which in (0, 1) if i % 2 else (1, 0):
            taken[which].append(_seconds((before, after)[which]))
    return taken


def _seconds(call: Callable[[], Any]) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    result = call()
    taken = time.perf_counter() - start
    del result  # freed outside of the time
    return taken


def speedup(before: list[float], after: list[float]) -> float:
    """Return the median of the ratios of neighbours: above 1 where `after` is faster."""
    return statistics.median(x / y for x, y in zip(before, after, strict=True))


def peak_of_run(path: str | os.PathLike[str], feed: Mapping[str, Array], threads: int) -> int:
    """Return the most bytes that a process of its own has resident that loads a model and runs it once.

    Python, NumPy, onnx and onnxruntime are among them, some 100 MiB.

    Parameters
    ----------
    path : path
        The model.
    feed : mapping
        Its inputs by name.
    threads : int
        Threads to run with.

    Raises
    ------
    FormatError
        If the process fails.
    MemoryError
        If it is killed, which the operating system does where memory runs out.
    """
    with tempfile.TemporaryDirectory(prefix="modelopt-rs-") as folder:
        data = Path(folder, "inputs.npz")
        arrays = {name: array.astype(str) if array.dtype.kind == "O" else array for name, array in feed.items()}
        # Numbered: a name of a file may have any character.
        np.savez(data, names=list(arrays), **{f"x{i}": array for i, array in enumerate(arrays.values())})  # type: ignore[arg-type]
        command = [sys.executable, "-m", __name__, os.fspath(path), str(data), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _paths()})
    if done.returncode < 0:
        raise MemoryError(f"{os.fspath(path)}: a process that ran it was ended by signal {-done.returncode}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise FormatError(f"{os.fspath(path)}: a process that ran it failed: {quote(last)}")
    return int(done.stdout)


def _paths() -> str:
    """Return where this process finds its modules, so that a child finds the same."""
    return os.pathsep.join(path for path in sys.path if path)


def _main(path: str, data: str, threads: str) -> None:
    from modelopt_rs.onnx.run.sessions import open_session, run_session

    arrays = read_npz(data)
    names = [str(name) for name in arrays["names"]]
    session = open_session(path, threads=int(threads))
    run_session(session, path, {name: arrays[f"x{i}"] for i, name in enumerate(names)})
    print(peak_memory())


if __name__ == "__main__":
    _main(*sys.argv[1:])
