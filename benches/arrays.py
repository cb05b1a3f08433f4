"""The array functions against their peers, in one run: `python benches/arrays.py [--json FILE]`."""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo
from paired import THREADS, Case, Plain, Row, Thunk, close, equal, measure, measured, run

COLUMNS = 16_000  # the rows of the int8 per-row bench; a multiple of 32
GROUP = 32
SMALL_US = 3.0
INSTALL = "python -m pip install '.[bench]'"  # from the repository's root


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


# ---- large arrays


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


def memory_cases(x: np.ndarray) -> Iterator[Case]:
    plain = Plain(x)
    q = mo.quantize(x, bits=4, group_size=GROUP)
    out, traffic = np.zeros_like(x), q.nbytes + x.nbytes

    def same_numbers(ours: np.ndarray, theirs: Any) -> None:
        codes = mo.quant.unpack(q.codes[::50], 4, COLUMNS, signed=True)
        equal(ours[::50], codes * np.repeat(q.scale[::50], GROUP, axis=1))

    yield Case(
        "dequantize int4, groups of 32, out=",
        "copy of the same traffic",
        0.7,
        lambda: q.dequantize(out=out),
        lambda: plain.copy(traffic / 2),
        same_numbers,
    )
    yield from format_cases(x, plain, out)


def bound_rows(x: np.ndarray, rounds: int, bound_ms: dict[str, float]) -> Iterator[Row]:
    """Streaming kernels against their bytes, whose times are kept."""
    plain = Plain(x)
    for kernel in kernels(x):
        bound = plain.bound(kernel.reads, kernel.writes)
        name = "read" if not kernel.writes else "read + copy" if kernel.reads > kernel.writes else "copy"
        case = Case(kernel.work, f"{name}, {THREADS} threads", 1.25, kernel.run, bound, at_most=True)
        row = measure(case, rounds)
        bound_ms[kernel.work] = row.peer_ms
        yield row


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=64_000_000, help="rounded to rows of 16,000")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of timed runs a row, at least 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    args = parser.parse_args()
    rounds = max(args.rounds, 5)
    shape = (max(args.elements // COLUMNS, 50), COLUMNS)
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    bound_ms: dict[str, float] = {}
    sections = (
        (f"{x.size:,} elements", measured(chain(peer_cases(x), memory_cases(x)), rounds)),
        ("16 elements", small_rows(rounds)),
        ("streaming kernels against the bound of their bytes", bound_rows(x, rounds, bound_ms)),
        ("two threads against one", (scaling(k, bound_ms[k.work], rounds) for k in kernels(x))),
    )
    return run(sections, args.json)


if __name__ == "__main__":
    sys.exit(main())
