"""The array functions against their peers, in one run: `python benches/arrays.py [--json FILE]`.

Each row checks our answer against the peer's first, then times both in alternation (the order swaps every round)
and reports the median of the paired ratios: on a shared machine no absolute figure is stable, a ratio of
neighbours is. Ratios are peer / ours (higher is better); "against the bound", ours / bound (lower is better).
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo

THREADS = 2
COLUMNS = 16_000  # the rows of the int8 per-row bench; a multiple of 32
GROUP = 32
SMALL_US = 3.0
WRONG = "WRONG ANSWER"
INSTALL = "python -m pip install '.[bench]'"  # from the repository's root
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


def verdict(row: Row) -> str:
    """Whether the target is met; if not, whether the bound forbids it."""
    word = "FORBIDDEN" if row.is_forbidden else "met" if row.met else "MISSED"
    if row.limit is None or row.of_bound is None:
        return word
    return f"{word}: the bound allows {row.limit:.2f} x, ours takes {row.of_bound:.2f} of it"


def cores_at_hand() -> float:
    """CPU time over wall time of two threads that share nothing (sorts): below 2: other processes, a quota."""
    data = np.random.default_rng(7).standard_normal((THREADS, 2_000_000), dtype=np.float32)
    with ThreadPoolExecutor(THREADS) as pool:
        cpu, wall = time.process_time(), time.perf_counter()
        list(pool.map(np.sort, data))
        return (time.process_time() - cpu) / (time.perf_counter() - wall)


def show_cases(groups: Iterable[Iterable[Case]], rounds: int, file: Path | None) -> None:
    """Measure cases, print a line of each as it comes, and write all as JSON."""
    rows = []
    for case in chain.from_iterable(groups):
        row = measure(case, rounds)
        rows.append(row)
        times = f"{row.ours_ms:9.4f} ms {row.peer_ms:9.4f} ms"
        print(f"{row.work:46} {row.peer:46} {times} {row.ratio:6.2f} {row.target:10} {verdict(row)}", flush=True)
    if file:
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1))


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


# ---- checks


def equal(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def close(rtol: float, atol: float = 0.0) -> Callable[[Any, Any], None]:
    return lambda ours, theirs: np.testing.assert_allclose(
        np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=rtol, atol=atol
    )


def true_norm(x: np.ndarray) -> Callable[[Any, Any], None]:
    """The peers sum in float32, 0.5 % off at 64 M elements: within 1 % of theirs, and 1e-6 of a float64 sum."""
    exact = math.sqrt(sum(float(np.square(row, dtype=np.float64).sum()) for row in x))

    def check(ours: Any, theirs: Any) -> None:
        close(1e-2)(ours, theirs)
        close(1e-6)(ours, exact)

    return check


def same_codes(ours: Any, theirs: Any) -> None:
    """The peers multiply by a reciprocal or scale in float32: a value at a tie may go to the next code, 1 in 1,000."""
    theirs = np.asarray(theirs)
    assert ours.codes.shape == theirs.shape, (ours.codes.shape, theirs.shape)
    off = np.abs(ours.codes.astype(np.int16) - theirs)
    assert off.max() <= 1, off.max()
    assert np.count_nonzero(off) <= off.size / 1000, np.count_nonzero(off)


def decibels(x: np.ndarray, y: np.ndarray) -> float:
    return float(10 * np.log10(np.square(x, dtype=np.float64).sum() / np.square(x - y, dtype=np.float64).sum()))


def same_quality(
    x: np.ndarray, theirs_back: Callable[[Any, slice], np.ndarray], worst_of_ours: float = 0.5 / 7
) -> Callable[[Any, Any], None]:
    """4-bit peers scale by -max / 8, we by absmax / 7, so codes differ: both must come back to `x` as well.

    On every 50th row: no element of ours further off than half of its group's scale (of a searched one two: the largest
    may be cut off), of theirs than one scale (their largest code is 7 of 8), and our SQNR at least theirs less 1.5 dB.
    """
    rows = slice(None, None, 50)

    def check(ours: Any, theirs: Any) -> None:
        want, got, other = x[rows], np.asarray(ours[rows]), theirs_back(theirs, rows)
        assert got.shape == other.shape == want.shape, (got.shape, other.shape)
        absmax = np.abs(want.reshape(-1, GROUP)).max(1, keepdims=True)
        for name, back, worst in (("ours", got, worst_of_ours), ("theirs", other, 1.0 / 8)):
            error = np.abs((back - want).reshape(-1, GROUP))
            assert (error <= worst * 1.01 * absmax).all(), name
        assert decibels(want, got) > decibels(want, other) - 1.5, (decibels(want, got), decibels(want, other))

    return check


# ---- the table of the issue


def numpy_cases(x: np.ndarray) -> Iterator[Case]:
    def formula() -> np.ndarray:
        low, high = x.min(), x.max()
        return np.round((x - low) / (high - low) * 255).astype(np.uint8)

    k, reduce = x.size // 2, mo.reduce
    magnitude = float(np.abs(x).sum(dtype=np.float64))
    yield Case(
        "quantize u8, whole array", "NumPy formula", 10, lambda: mo.quantize(x, scheme="minmax"), formula, same_codes
    )
    yield Case("minmax", "np.min, np.max", 2, lambda: reduce.minmax(x), lambda: (np.min(x), np.max(x)), equal)
    yield Case("sum", "np.sum", 1.5, lambda: reduce.sum(x), lambda: np.sum(x), close(0, 1e-6 * magnitude))
    yield Case("norm", "np.linalg.norm", 1.5, lambda: reduce.norm(x), lambda: np.linalg.norm(x), true_norm(x))
    yield Case(
        "kth_magnitude at half",
        "np.partition",
        4,
        lambda: reduce.kth_magnitude(x, k),
        lambda: np.partition(np.abs(x).ravel(), k)[k],
        equal,
    )


def torch_cases(x: np.ndarray) -> Iterator[Case]:
    import torch

    torch.set_num_threads(THREADS)
    t, reduce = torch.from_numpy(x), mo.reduce
    magnitude = float(np.abs(x).sum(dtype=np.float64))

    def per_tensor() -> Any:
        low, high = (float(v) for v in torch.aminmax(t))
        scale = (max(high, 0.0) - min(low, 0.0)) / 255
        return torch.quantize_per_tensor(t, scale, round(-min(low, 0.0) / scale), torch.quint8)

    def per_row() -> Any:
        scale = t.abs().amax(1, keepdim=True) / 127
        return (t / scale).round().clamp(-127, 127).to(torch.int8)

    q = mo.quantize(x)
    tq = torch._make_per_tensor_quantized_tensor(torch.from_numpy(q.codes), float(q.scale), 0)
    out = np.zeros_like(x)  # written, so its pages are there
    yield Case(
        "quantize u8, whole array",
        "torch aminmax + quantize_per_tensor",
        3,
        lambda: mo.quantize(x, scheme="asymmetric"),
        per_tensor,
        lambda ours, theirs: same_codes(ours, theirs.int_repr()),
    )
    yield Case("int8 per row of 16,000", "torch, 6 steps", 20, lambda: mo.quantize(x, axis=0), per_row, same_codes)
    yield Case(
        "dequantize int8, out=", "torch .dequantize()", 5, lambda: q.dequantize(out=out), tq.dequantize, close(1e-6)
    )
    yield Case("minmax", "torch.aminmax", 1.5, lambda: reduce.minmax(x), lambda: torch.aminmax(t), equal)
    yield Case("sum", "torch.sum", 1, lambda: reduce.sum(x), lambda: t.sum(), close(0, 1e-6 * magnitude))
    yield Case(
        "norm", "torch.linalg.vector_norm", 1, lambda: reduce.norm(x), lambda: torch.linalg.vector_norm(t), true_norm(x)
    )


def onnxruntime_cases(x: np.ndarray) -> Iterator[Case]:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    n, k = x.shape
    source = np.ascontiguousarray(x.T)  # it takes [in, out]; turning it is not timed

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        codes = np.empty((n, k // GROUP, GROUP // 2), np.uint8)
        scale, zero = np.empty(n * (k // GROUP), np.float32), np.empty(n * ((k // GROUP + 1) // 2), np.uint8)
        quantize_matmul_4bits(codes, source, scale, zero, GROUP, n, k, True)
        return codes, scale.reshape(n, k // GROUP)

    def back(answer: tuple[np.ndarray, np.ndarray], rows: slice) -> np.ndarray:
        codes, scale = answer[0][rows], answer[1][rows]
        nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(-1, k // GROUP, GROUP)
        return ((nibbles.astype(np.float32) - 8) * scale[..., None]).reshape(-1, k)

    yield Case(
        "int4, groups of 32, packed",
        "onnxruntime quantize_matmul_4bits",
        20,
        lambda: mo.quantize(x, bits=4, group_size=GROUP),
        theirs,
        same_quality(x, back),
    )


def gguf_cases(x: np.ndarray) -> Iterator[Case]:
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType.Q4_0
    yield Case(
        "int4, groups of 32, packed",
        "gguf quants.quantize Q4_0",
        5,
        lambda: mo.quantize(x, bits=4, group_size=GROUP),
        lambda: quants.quantize(x, kind),
        same_quality(x, lambda answer, rows: quants.dequantize(answer[rows], kind)),
    )
    yield Case(
        'int4, groups of 32, search="mse"',
        "gguf quants.quantize Q4_0",
        1,
        lambda: mo.quantize(x, bits=4, group_size=GROUP, search="mse", scale_dtype="float16"),
        lambda: quants.quantize(x, kind),
        same_quality(x, lambda answer, rows: quants.dequantize(answer[rows], kind), 2 / 7),
    )


def bitsandbytes_cases(x: np.ndarray) -> Iterator[Case]:
    import torch
    from bitsandbytes import functional

    t = torch.from_numpy(x)

    # bitsandbytes gives small positive numbers fp4's code 8, a zero with a sign: the same number as code 0.
    codes = np.arange(16, dtype=np.uint8)
    tables = {"nf4": codes, "fp4": np.where(codes == 8, 0, codes).astype(np.uint8)}

    def same_bytes(ours: mo.QuantizedArray, theirs: Any, nibbles: np.ndarray) -> None:
        packed, state = theirs
        equal(ours.scale.ravel(), state.absmax.numpy())
        table = (nibbles[:, None] << 4 | nibbles).ravel()
        equal(table[(ours.codes >> 4 | ours.codes << 4).ravel()], table[packed.numpy().ravel()])

    for name, nibbles in tables.items():
        yield Case(
            f"quantize {name}, blocks of 64",
            "bitsandbytes quantize_4bit",
            40,
            lambda n=name: mo.quantize(x, format=n),
            lambda n=name: functional.quantize_4bit(t, blocksize=64, quant_type=n),
            partial(same_bytes, nibbles=nibbles),
        )


def peer_cases(x: np.ndarray) -> Iterator[Case]:
    yield from numpy_cases(x)
    peers = [("torch", torch_cases), ("onnxruntime", onnxruntime_cases), ("gguf", gguf_cases)]
    for module, cases in [*peers, ("bitsandbytes", bitsandbytes_cases)]:
        if importlib.util.find_spec(module) is None:
            print(f"skipped: the rows against {module}, which is not installed: {INSTALL}")
        else:
            yield from cases(x)


# ---- against the memory


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


@dataclass
class Kernel:
    work: str
    run: Thunk
    reads: float  # bytes
    writes: float


def kernels(x: np.ndarray) -> Iterator[Kernel]:
    """The streaming kernels with the bytes that each must move.

    Quantizing is given `out=` so that fresh pages don't count, and "saturate", because "raise" with `out=` reads twice.
    """
    n, reduce = x.size, mo.reduce
    for f in (reduce.minmax, reduce.absmax, reduce.sum, reduce.mean, reduce.var, reduce.norm):
        yield Kernel(f.__name__, lambda f=f: f(x), 4 * n, 0)
    for f in (reduce.count_nonzero, reduce.count_nonfinite):
        yield Kernel(f.__name__, lambda f=f: f(x), 4 * n, 0)
    yield Kernel("kth_magnitude (two passes)", lambda: reduce.kth_magnitude(x, n // 2), 8 * n, 0)
    out = np.zeros_like(x)
    variants: list[tuple[str, float, dict[str, Any]]] = [
        ("u8, whole array (two passes)", 8, {"scheme": "asymmetric"}),
        ("int8 per row of 16,000", 4, {"axis": 0}),
        ("int8, groups of 32", 4, {"group_size": GROUP}),
        ("int4, groups of 32", 4, {"bits": 4, "group_size": GROUP}),
        ("int2, groups of 32", 4, {"bits": 2, "group_size": GROUP}),
    ]
    for name, reads, options in variants:
        q = mo.quantize(x, **options)
        again = lambda q=q, o=options: mo.quantize(x, nonfinite="saturate", out=q, **o)  # noqa: E731
        yield Kernel(f"quantize {name}", again, reads * n, q.nbytes)
        yield Kernel(f"dequantize {name.split(' (')[0]}", lambda q=q: q.dequantize(out=out), q.nbytes, 4 * n)
        fake = lambda o=options: mo.fake_quantize(x, nonfinite="saturate", out=out, **o)  # noqa: E731
        yield Kernel(f"fake_quantize {name}", fake, reads * n, 4 * n)


def format_cases(x: np.ndarray, plain: Plain, out: np.ndarray) -> Iterator[Case]:
    """Each named format, written to arrays that are there, against a copy that moves as many bytes.

    The bound of an encoder reads them once, or twice where all codes wait for a number of the whole array, and writes.
    """
    some = slice(None, None, 50)

    def near(ours: np.ndarray, theirs: Any) -> None:
        """Within what the coarsest number of 4 bits, of 8 bits, may be off: a fifth, a ninth of the block's largest."""
        assert np.abs(ours[some] - x[some]).max() <= np.abs(x).max() / 5

    for entry in mo.quant.formats():
        if entry.scheme is not None:
            continue  # uniform codes have rows of their own
        axis = None if entry.block else 0  # a scale for each row
        q = mo.quantize(x, format=entry.name, axis=axis)

        def coded(ours: mo.QuantizedArray, theirs: Any, q: mo.QuantizedArray = q) -> None:
            near(ours.dequantize(out=out), theirs)

        options = {"format": entry.name, "axis": axis, "nonfinite": "saturate", "out": q}
        encode = lambda o=options: mo.quantize(x, **o)  # noqa: E731
        decode = lambda q=q: q.dequantize(out=out)  # noqa: E731
        copy = lambda t=x.nbytes + q.nbytes: plain.copy(t / 2)  # noqa: E731
        passes = 2 if "global_scale" in entry.parts else 1
        bound, same = plain.bound(passes * x.nbytes, q.nbytes), "copy of the same traffic"
        yield Case(f"quantize {entry.name}, out=", same, 0.4, encode, copy, coded, bound=bound)
        yield Case(f"dequantize {entry.name}, out=", same, 0.7, decode, copy, near)


def memory_rows(x: np.ndarray, rounds: int) -> Iterator[tuple[str, Row]]:
    plain = Plain(x)
    q = mo.quantize(x, bits=4, group_size=GROUP)
    out, traffic = np.zeros_like(x), q.nbytes + x.nbytes

    def same_numbers(ours: np.ndarray, theirs: Any) -> None:
        codes = mo.quant.unpack(q.codes[::50], 4, COLUMNS, signed=True)
        equal(ours[::50], codes * np.repeat(q.scale[::50], GROUP, axis=1))

    copy = Case(
        "dequantize int4, groups of 32, out=",
        "copy of the same traffic",
        0.7,
        lambda: q.dequantize(out=out),
        lambda: plain.copy(traffic / 2),
        same_numbers,
    )
    yield "peers", measure(copy, rounds)
    for case in format_cases(x, plain, out):
        yield "peers", measure(case, rounds)
    for kernel in kernels(x):
        bound = plain.bound(kernel.reads, kernel.writes)
        name = "read" if not kernel.writes else "read + copy" if kernel.reads > kernel.writes else "copy"
        case = Case(kernel.work, f"{name}, {THREADS} threads", 1.25, kernel.run, bound, at_most=True)
        row = measure(case, rounds)
        yield "bound", row
        yield "threads", scaling(kernel, row.peer_ms, rounds)


def scaling(kernel: Kernel, bound_ms: float, rounds: int) -> Row:
    """One thread against two; where one is within 1.25 of the two-thread bound, it fills the memory already."""

    def one() -> Any:
        with mo.num_threads(1):
            return kernel.run()

    row = measure(Case(kernel.work, "itself, 1 thread", 1.6, kernel.run, one), rounds)
    if row.peer_ms <= 1.25 * bound_ms:
        return Row(**{**asdict(row), "target": "1 thread fills memory", "met": None})
    return row


# ---- small calls


def small_cases() -> Iterator[tuple[str, Thunk, str, Thunk]]:
    """Any function on 16 elements and its counterpart in NumPy."""
    x = np.random.default_rng(3).standard_normal(16, dtype=np.float32)
    r, q, q4 = mo.reduce, mo.quantize(x), mo.quantize(x, bits=4)
    scale, codes, out = np.float32(q.scale), np.arange(-8, 8, dtype=np.int8), np.empty_like(x)
    nibbles = codes.view(np.uint8) & 15

    def code() -> np.ndarray:
        return np.clip(np.round(x / (np.abs(x).max() / 127)), -127, 127).astype(np.int8)

    yield "minmax", lambda: r.minmax(x), "np.min, np.max", lambda: (np.min(x), np.max(x))
    yield "absmax", lambda: r.absmax(x), "np.max(np.abs)", lambda: np.max(np.abs(x))
    yield "sum", lambda: r.sum(x), "np.sum", lambda: np.sum(x)
    yield "mean", lambda: r.mean(x), "np.mean", lambda: np.mean(x)
    yield "var", lambda: r.var(x), "np.var", lambda: np.var(x)
    yield "norm", lambda: r.norm(x), "np.linalg.norm", lambda: np.linalg.norm(x)
    yield "count_nonzero", lambda: r.count_nonzero(x), "np.count_nonzero", lambda: np.count_nonzero(x)
    yield "count_nonfinite", lambda: r.count_nonfinite(x), "~np.isfinite", lambda: (~np.isfinite(x)).sum()
    yield "histogram, 16 bins", lambda: r.histogram(x, 16), "np.histogram", lambda: np.histogram(x, 16)
    yield "quantile", lambda: r.quantile(x, 0.5), "np.quantile", lambda: np.quantile(x, 0.5)
    yield "kth_magnitude", lambda: r.kth_magnitude(x, 8), "np.partition", lambda: np.partition(np.abs(x), 8)[8]
    yield "quantize int8", lambda: mo.quantize(x), "NumPy formula", code
    yield "quantize int8, out=", lambda: mo.quantize(x, out=q), "NumPy formula", code
    yield "quantize int4", lambda: mo.quantize(x, bits=4), "NumPy formula, unpacked", code
    yield "dequantize int8", lambda: q.dequantize(), "codes * scale", lambda: q.codes * scale
    yield "dequantize int4, out=", lambda: q4.dequantize(out=out), "codes * scale", lambda: codes * scale
    yield "fake_quantize", lambda: mo.fake_quantize(x), "NumPy formula", lambda: code() * scale
    yield "pack, 4 bits", lambda: mo.quant.pack(codes, 4), "shift, or", lambda: nibbles[::2] | nibbles[1::2] << 4
    packed = mo.quant.pack(codes, 4)
    yield (
        "unpack, 4 bits",
        lambda: mo.quant.unpack(packed, 4, 16),
        "mask, shift, stack",
        lambda: np.stack([packed & 15, packed >> 4], -1).ravel(),
    )


def small_rows(rounds: int, calls: int = 2000) -> Iterator[Row]:
    def many(run: Thunk) -> Thunk:
        def loop() -> None:
            for _ in range(calls):
                run()

        return loop

    for name, ours, peer, theirs in small_cases():
        row = measure(Case(name, peer, 0, many(ours), many(theirs)), rounds)
        us = row.ours_ms * 1e3 / calls
        shown = Row(
            name, peer, row.ours_ms / calls, row.peer_ms / calls, row.ratio, f"< {SMALL_US:g} us", us < SMALL_US
        )
        yield shown


# ---- the run

HEADS = {
    "peers": "against the peers (ratio: peer / ours)",
    "small": "16 elements, us a call (ratio: peer / ours)",
    "bound": "streaming kernels against the bound of their bytes (ratio: ours / bound)",
    "threads": "1 to 2 threads (ratio: 1 thread / 2 threads)",
}


def table(rows: list[Row], unit: str = "ms") -> None:
    scale, digits = (1e3, 2) if unit == "us" else (1, 1)
    lines = [("work", "peer", f"ours {unit}", f"peer {unit}", "ratio", "target", "met")]
    for r in rows:
        times = (f"{t * scale:,.{digits}f}" for t in (r.ours_ms, r.peer_ms))
        met = "-" if r.met is None else verdict(r)
        lines.append((r.work, r.peer, *times, f"{r.ratio:.2f}", r.target, met))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (c.rjust(w) if 2 <= i <= 4 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        print("| " + " | ".join(cells) + " |")


def show(rows: dict[str, list[Row]]) -> None:
    for section, head in HEADS.items():
        print(f"\n{head}")
        table(rows[section], "us" if section == "small" else "ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=64_000_000, help="rounded to rows of 16,000")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of timed runs a row, at least 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    args = parser.parse_args()
    rounds = max(args.rounds, 5)
    shape = (max(args.elements // COLUMNS, 50), COLUMNS)
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    rows: dict[str, list[Row]] = {section: [] for section in HEADS}

    def add(section: str, row: Row) -> None:
        rows[section].append(row)
        print(f"{section}: {row.work} | {row.peer}: {row.ratio:.2f}", file=sys.stderr, flush=True)

    print(f"{x.size:,} float32 elements, {THREADS} threads of {os.cpu_count()} cores, median of {rounds} pairs")
    mo.set_num_threads(THREADS)
    cores = [cores_at_hand()]
    for case in peer_cases(x):
        add("peers", measure(case, rounds))
    for row in small_rows(rounds):
        add("small", row)
    for section, row in memory_rows(x, rounds):
        add(section, row)
    cores.append(cores_at_hand())
    show(rows)
    print(f"\n{cores[0]:.2f} cores at hand before, {cores[1]:.2f} after, of {THREADS}")
    if min(cores) < 0.9 * THREADS:
        print("fewer than two (other processes, a quota): what depends on two threads is not measured; run again")
    short = [row for section in rows.values() for row in section if row.met is False]
    print(f"\n{len(short)} of {sum(map(len, rows.values()))} rows short of their target")
    if args.json:
        report = {section: [asdict(row) for row in found] for section, found in rows.items()}
        args.json.write_text(
            json.dumps({"elements": x.size, "rounds": rounds, "cores": cores, **report}, indent=1) + "\n"
        )
    return int(any(row.target == WRONG for section in rows.values() for row in section))


if __name__ == "__main__":
    sys.exit(main())
