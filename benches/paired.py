"""Work in pairs: ours and a peer's in turn, in one run, the answers compared first.

Each row checks our answer against the peer's, then times both in alternation (the order swaps every round) and reports
the median of the paired ratios: on a shared machine no absolute figure is stable, a ratio of neighbours is. Ratios are
peer / ours (higher is better) or, with a target "<=", ours / peer (lower is better). What a bound of bytes, measured in
the same rounds, doesn't allow is FORBIDDEN.
"""

import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo

THREADS = 2
WRONG = "WRONG ANSWER"
Thunk = Callable[[], Any]


@dataclass
class Case:
    """Two ways to do one piece of work. `check` gets both answers and raises AssertionError."""

    work: str
    peer: str
    target: float
    ours: Thunk
    theirs: Thunk
    check: Callable[[Any, Any], None] = lambda ours, theirs: None
    at_most: bool = False  # the ratio is ours / theirs and must not be above the target
    needs: str | None = None  # the peer's module
    calls: int = 1  # in a row, as a service makes small ones; times are those of one
    # Ways to move the bytes that nobody can do without, in the same run: in each round the fastest is the bound.
    bound: Thunk | tuple[Thunk, ...] = ()
    most_us: float | None = None  # what one call may take, where that is the target


@dataclass
class Row:
    work: str
    peer: str
    ours_ms: float
    peer_ms: float
    ratio: float
    target: str
    met: bool | None  # None: the target does not apply here
    limit: float | None = None  # the peer's time by the bound's: no ratio is greater
    of_bound: float | None = None  # our time by the bound's
    is_forbidden: bool = False  # missed, and the bound misses it as well


# ---- measuring


def rest() -> None:
    """Wait until no thread of this process works: OpenMP's go on looking for work for a while, OpenBLAS's for 0.1 s."""
    for _ in range(100):
        start = time.process_time()
        time.sleep(0.01)
        if time.process_time() - start < 0.001:
            return


def seconds(run: Thunk, calls: int = 1) -> float:
    """Time one call, or each of many in a row; what it returns last is freed outside of the time.

    First a pause, as what was timed before may have left threads that spin on our cores.
    """
    rest()
    if calls > 1:
        run()
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    taken = time.perf_counter() - start
    del result
    return taken / calls


def in_turn(runs: Sequence[Thunk], rounds: int, calls: int = 1) -> list[list[float]]:
    """Time each in every round, in the other order every other round."""
    times: list[list[float]] = [[] for _ in runs]
    gc.collect()
    gc.disable()
    for i in range(rounds):
        for taken, run in list(zip(times, runs, strict=True))[:: -1 if i % 2 else 1]:
            taken.append(seconds(run, calls))
    gc.enable()
    return times


def paired(ours: Thunk, theirs: Thunk, rounds: int, calls: int = 1) -> tuple[list[float], list[float]]:
    """Time both in alternation, swapping who goes first."""
    a, b = in_turn((ours, theirs), rounds, calls)
    return a, b


def ratio_of(over: list[float], under: list[float]) -> float:
    """The median of the ratios of neighbours."""
    return statistics.median(x / y for x, y in zip(over, under, strict=True))


def measure(case: Case, rounds: int) -> Row:
    try:
        case.check(case.ours(), case.theirs())  # and warm up
    except AssertionError as wrong:
        print(f"{case.work} against {case.peer}: {wrong}", file=sys.stderr)
        return Row(case.work, case.peer, math.nan, math.nan, math.nan, WRONG, False)
    bounds = case.bound if isinstance(case.bound, tuple) else (case.bound,)
    a, b, *ways = in_turn((case.ours, case.theirs, *bounds), rounds, case.calls)
    over, under = (a, b) if case.at_most else (b, a)
    ratio = ratio_of(over, under)
    met = ratio <= case.target if case.at_most else ratio >= case.target
    target = f"{'<=' if case.at_most else '>='} {case.target:g} x"
    ms = [1e3 * statistics.median(t) for t in (a, b)]
    if case.most_us is not None:
        met, target = 1e3 * ms[0] <= case.most_us, f"<= {case.most_us:g} us"
    row = Row(case.work, case.peer, ms[0], ms[1], ratio, target, met)
    if ways:
        bound = [min(taken) for taken in zip(*ways, strict=True)]
        row.limit, row.of_bound = ratio_of(b, bound), ratio_of(a, bound)
        row.is_forbidden = not met and row.limit < case.target
    return row


def word(row: Row) -> str:
    """Whether the target is met; if not, whether the bound forbids it."""
    return "FORBIDDEN" if row.is_forbidden else "met" if row.met else "MISSED"


def verdict(row: Row) -> str:
    if row.limit is None or row.of_bound is None:
        return word(row)
    return f"{word(row)}: the bound allows {row.limit:.2f} x, ours takes {row.of_bound:.2f} of it"


def cores_at_hand() -> float:
    """CPU time over wall time of two threads that share nothing (sorts): below 2: other processes, a quota."""
    data = np.random.default_rng(7).standard_normal((THREADS, 2_000_000), dtype=np.float32)
    with ThreadPoolExecutor(THREADS) as pool:
        cpu, wall = time.process_time(), time.perf_counter()
        list(pool.map(np.sort, data))
        return (time.process_time() - cpu) / (time.perf_counter() - wall)


# ---- telling


def told(row: Row) -> Row:
    """Print a row as it comes."""
    unit, scale = ("us", 1e3) if row.ours_ms < 0.1 else ("ms", 1)
    times = f"{row.ours_ms * scale:9.3f} {unit} {row.peer_ms * scale:9.3f} {unit}"
    met = "-" if row.met is None else verdict(row)
    print(f"{row.work:46} {row.peer:46} {times} {row.ratio:7.2f} {row.target:10} {met}", flush=True)
    return row


def measured(cases: Iterable[Case], rounds: int) -> Iterator[Row]:
    return (measure(case, rounds) for case in cases)


def run(sections: Iterable[tuple[str, Iterable[Row]]], file: Path | None) -> int:
    """Measure all rows, print each, and write them as JSON; 1 where an answer was wrong."""
    mo.set_num_threads(THREADS)
    cores = [cores_at_hand()]
    rows: dict[str, list[Row]] = {}
    for title, found in sections:
        print(f"\n{title}", flush=True)
        rows.setdefault(title, []).extend(map(told, found))
    cores.append(cores_at_hand())
    all_rows = [row for found in rows.values() for row in found]
    print(f"\n{cores[0]:.2f} cores at hand before, {cores[1]:.2f} after, of {THREADS}")
    if min(cores) < 0.9 * THREADS:
        print("fewer than two (other processes, a quota): what depends on two threads is not measured; run again")
    print(f"{sum(row.met is False for row in all_rows)} of {len(all_rows)} rows short of their target")
    if file:
        found = {title: [asdict(row) for row in some] for title, some in rows.items()}
        file.write_text(json.dumps({"cores": cores, "sections": found}, indent=1) + "\n")
    return int(any(row.target == WRONG for row in all_rows))


# ---- the bytes alone


def reading(nbytes: int) -> Thunk:
    """Read so many bytes once, by as many threads: products of two vectors, the fastest way that there is here.

    Reading in two places at once is faster than from one end to the other.
    """
    parts = [np.full((2, nbytes // 8 // THREADS), 0, np.float32) for _ in range(THREADS)]
    if THREADS == 1:
        return lambda: parts[0][0] @ parts[0][1]
    pool = ThreadPoolExecutor(THREADS)
    return lambda: list(pool.map(np.dot, *zip(*parts, strict=True)))


def readings(nbytes: int) -> tuple[Thunk, Thunk]:
    """Ways to read so many bytes once: products of vectors wait for Python's pool of threads, a maximum doesn't."""
    words = np.full(nbytes // 8, 1, np.uint64)
    return reading(nbytes), lambda: mo.reduce.max(words, threads=THREADS)


def moving(read: int, written: np.ndarray) -> Thunk:
    """Read so many bytes and write an array, by one thread."""
    words = np.full(read // 8, 1, np.uint64)

    def move() -> None:
        mo.reduce.max(words, threads=1)
        written.fill(0)

    return move


class Plain:
    """Reads and copies that do nothing else, in two threads, each on one half: the bounds.

    A read is NumPy's maximum (SIMD, faster than its sum and than torch's), a copy is its copyto (memmove, so with
    streaming stores), a fill is its fill. Everything is in pages that were written before.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.pool = ThreadPoolExecutor(THREADS)
        self.source, self.target = x.reshape(-1), np.zeros(x.size, x.dtype)

    def halves(self, run: Callable[[np.ndarray, np.ndarray], Any], elements: int) -> None:
        """Run over the first `elements` of source and target, more than once where there are not as many."""
        while elements > 0:
            n = min(elements, self.source.size)
            cuts = [n * i // THREADS for i in range(THREADS + 1)]
            parts = [slice(a, b) for a, b in pairwise(cuts) if b > a]
            list(self.pool.map(lambda s: run(self.source[s], self.target[s]), parts))
            elements -= n

    def read(self, nbytes: float) -> None:
        self.halves(lambda source, target: np.max(source), int(nbytes) // 4)

    def copy(self, nbytes: float) -> None:
        self.halves(lambda source, target: np.copyto(target, source), int(nbytes) // 4)

    def bound(self, reads: float, writes: float) -> Thunk:
        """What a kernel of these bytes must take at least.

        One that reads more than it writes: a copy of what it writes and a read of the rest. One that writes more: a
        copy of the same traffic.
        """
        if writes > reads:
            return lambda: self.copy((reads + writes) / 2)
        return lambda: (self.copy(writes), self.read(reads - writes))


# ---- checks


def equal(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def close(rtol: float, atol: float = 0.0) -> Callable[[Any, Any], None]:
    return lambda ours, theirs: np.testing.assert_allclose(
        np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=rtol, atol=atol
    )
