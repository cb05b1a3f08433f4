"""Oracles: one per operation, written from the papers and the specifications, in plain float64 NumPy.

Slow and obviously right: nothing here shares code, order of operations or tricks with the kernels. The papers
are named at the functions. `calls` at the end lists every public call of the array level once, for the tests
whose law holds for each of them (same bits, injected panics, rejected inputs).
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BF16]
SCHEMES = ["symmetric", "asymmetric", "minmax"]
BITS = [8, 4, 2]
CHUNK = 32_768  # elements that one task of a kernel takes: lengths around its multiples are risky


# ---------------------------------------------------------------------------------------- rounding to a dtype


@cache
def finite_values(dtype: np.dtype) -> np.ndarray:
    """Every finite value of a 16-bit float dtype, each once, ascending, without -0.0."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        every = every[np.isfinite(every)]
    # Of -0.0 and 0.0 NumPy 2 keeps the latter and NumPy 1 the former; their sum with 0.0 is 0.0.
    return (np.unique(every.astype(np.float64)) + 0.0).astype(dtype)


def round_to_16_bits(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round float64 once to float16 or bfloat16: the nearest value, ties to the even significand.

    IEEE 754-2019, 4.3.1 roundTiesToEven: a magnitude of at least max + ulp(max) / 2 becomes an infinity. By
    search in the list of all values, so that no intermediate float32 can round twice.
    """
    values = finite_values(dtype)
    wide = values.astype(np.float64)
    step = wide[-1] - wide[-2]
    wide = np.concatenate([[wide[0] - step], wide, [wide[-1] + step]])  # infinities, as if they were next
    patterns = np.concatenate([[-np.inf], values.astype(np.float64), [np.inf]]).astype(dtype)
    x = np.asarray(x, np.float64)
    above = np.clip(np.searchsorted(wide, np.nan_to_num(x, nan=0.0)), 1, len(wide) - 1)
    below = above - 1
    with np.errstate(invalid="ignore"):
        down, up = x - wide[below], wide[above] - x  # exact: both are within a factor of two, or tiny
    even_below = patterns[below].view(np.uint16) % 2 == 0
    take_below = (down < up) | ((down == up) & even_below)
    result = np.where(take_below, patterns[below], patterns[above]).astype(dtype)
    result = np.where((result == 0) & np.signbit(x), np.array(-0.0, dtype), result)
    return np.where(np.isnan(x), np.array(np.nan, dtype), result)


def cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round once to any of the four dtypes."""
    if np.dtype(dtype).itemsize == 2:
        return round_to_16_bits(x, np.dtype(dtype))
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype)


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the arithmetic and of scales: float64 for float64, float32 for everything narrower."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


# ------------------------------------------------------------------------------------------------- reductions


def over_axes(x: np.ndarray, axis: Any, keepdims: bool, f: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Apply `f` to the flat values of each cell that is left when the axes of `axis` are taken away."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = sorted(a % x.ndim for a in axes)
    kept = [a for a in range(x.ndim) if a not in axes]
    cells = x.transpose(kept + axes).reshape([x.shape[a] for a in kept] + [-1])
    out = np.array([f(cells[i]) for i in np.ndindex(cells.shape[:-1])])
    lengths = {a: x.shape[a] if a in kept else 1 for a in (range(x.ndim) if keepdims else kept)}
    return out.reshape(list(lengths.values()))


def minmax(v: np.ndarray) -> tuple[float, float]:
    """IEEE 754-2019, 9.6 minimum and maximum: a NaN propagates."""
    values = [float(e) for e in v]
    return (math.nan, math.nan) if any(map(math.isnan, values)) else (min(values), max(values))


def nanminmax(v: np.ndarray) -> tuple[float, float]:
    """IEEE 754-2019, 9.6 minimumNumber and maximumNumber: a NaN counts only if there is nothing else."""
    values = [e for e in map(float, v) if not math.isnan(e)]
    return (min(values), max(values)) if values else (math.nan, math.nan)


def absmax(v: np.ndarray) -> float:
    return max(minmax(np.abs(v.astype(np.float64))))


def total(v: np.ndarray) -> float:
    """The exact sum, rounded once (math.fsum). Shewchuk, Adaptive Precision Arithmetic, 1997."""
    values = [float(e) for e in v]
    if any(map(math.isnan, values)) or {math.inf, -math.inf} <= set(values):
        return math.nan
    return math.fsum(values)


def mean(v: np.ndarray) -> float:
    return total(v) / len(v)


def var(v: np.ndarray, ddof: float = 0) -> float:
    """Two passes: the mean, then the squares about it. Chan et al., American Statistician 37, 1983."""
    m = mean(v)
    return total((v.astype(np.float64) - m) ** 2) / (len(v) - ddof)


def norm(v: np.ndarray, order: float = 2) -> float:
    """(sum |v|^p)^(1/p), for p = 1, 2, and its limit max |v|. Horn and Johnson, Matrix Analysis, 5.2."""
    if order == math.inf:
        return absmax(v)
    wide = np.abs(v.astype(np.float64))
    return total(wide) if order == 1 else math.sqrt(total(wide * wide))


def count_nonzero(v: np.ndarray) -> int:
    return sum(float(e) != 0.0 for e in v)


def count_nonfinite(v: np.ndarray) -> int:
    return sum(not math.isfinite(e) for e in v)


# -------------------------------------------------------------------------------------------------- selection


def histogram(x: np.ndarray, bins: int, bounds: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Counts in `bins` equal bins, each closed below and open above, the last one closed.

    As numpy.histogram defines it: an empty range gets 0.5 on both sides, no data gets 0..1.
    """
    v = x.astype(np.float64).ravel()
    low, high = bounds if bounds is not None else (v.min(), v.max()) if v.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    above = v[:, None] >= edges[None, :-1]
    below = v[:, None] < edges[None, 1:]
    below[:, -1] |= v == edges[-1]
    return (above & below).sum(axis=0), edges


def quantile(x: np.ndarray, q: float) -> float:
    """Hyndman and Fan, Sample Quantiles in Statistical Packages, 1996, definition 7."""
    v = np.sort(x.astype(np.float64).ravel())
    if np.isnan(v).any():
        return math.nan
    place = (len(v) - 1) * q
    below = math.floor(place)
    above = min(below + 1, len(v) - 1)
    return float(v[below] + (v[above] - v[below]) * (place - below))


def kth_magnitude(x: np.ndarray, k: int) -> np.generic:
    """Hoare, Algorithm 65 (Find), 1961, said with a sort; NaN comes last."""
    return np.sort(np.abs(x).ravel().astype(np.float64))[k].astype(x.dtype)


# ----------------------------------------------------------------------------------------------- quantization
# Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
# arXiv:1712.05877, 2.1. Krishnamoorthi, Quantizing deep convolutional networks, arXiv:1806.08342, 2. The
# operators QuantizeLinear and DynamicQuantizeLinear of ONNX (rounding half to even; an integer zero point, from
# the range widened to include 0).


@dataclass
class Affine:
    """What a quantization yields. `codes` are not packed: one int64 for each element."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    offset: np.ndarray | None


def code_limits(bits: int, scheme: str) -> tuple[int, int]:
    top = 2 ** (bits - 1) - 1
    return (-top, top) if scheme == "symmetric" else (0, 2**bits - 1)


def regions(shape: tuple[int, ...], axis: int | None, group_size: int | None) -> Iterator[tuple[Any, Any]]:
    """(index of the parameters, index of the elements that share them)."""
    if axis is not None:
        for c in range(shape[axis]):
            yield (c,), (slice(None),) * (axis % len(shape)) + (c,)
    elif group_size is not None:
        for row in np.ndindex(shape[:-1]):
            for g in range(math.ceil(shape[-1] / group_size)):
                yield (*row, g), (*row, slice(g * group_size, (g + 1) * group_size))
    else:
        yield (), ()


def spread(params: np.ndarray, shape: tuple[int, ...], axis: Any, group_size: Any) -> np.ndarray:
    """Of each element the parameter of its region."""
    out = np.empty(shape, params.dtype)
    for p, e in regions(shape, axis, group_size):
        out[e] = params[p]
    return out


def params_shape(shape: tuple[int, ...], axis: int | None, group_size: int | None) -> tuple[int, ...]:
    if axis is not None:
        return (shape[axis],)
    return () if group_size is None else (*shape[:-1], math.ceil(shape[-1] / group_size))


def affine_range(values: np.ndarray, scheme: str) -> tuple[float, float]:
    """The finite range that the codes cover; nothing finite: (0, 0)."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if scheme == "symmetric":
        return 0.0, max(-low, high)
    return (min(low, 0.0), max(high, 0.0)) if scheme == "asymmetric" else (low, high)


def quantize(x: np.ndarray, bits: int, scheme: str, axis: Any = None, group_size: Any = None) -> Affine:
    """Codes and parameters; values that are not finite saturate."""
    real = compute_dtype(x.dtype)
    x = x.astype(real)  # exact
    shape = params_shape(x.shape, axis, group_size)
    scale, offset, zero_point = np.ones(shape, real), np.zeros(shape, real), np.zeros(shape, np.int64)
    codes = np.zeros(x.shape, np.int64)
    first, last = code_limits(bits, scheme)
    for p, e in regions(x.shape, axis, group_size):
        low, high = affine_range(x[e], scheme)
        steps = 2 ** (bits - 1) - 1 if scheme == "symmetric" else 2**bits - 1
        if high > low:
            scale[p] = max(real.type((high - low) / steps), np.finfo(real).tiny)
        if scheme == "minmax":
            offset[p] = low
        if scheme == "asymmetric":
            zero_point[p] = np.clip(np.rint(real.type(-low) / scale[p]), 0, last)
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.rint((np.where(np.isnan(x[e]), real.type(0), x[e]) - offset[p]) / scale[p])
        codes[e] = np.clip(whole + zero_point[p], first, last)
    return Affine(
        codes,
        scale,
        zero_point.astype(np.uint8) if scheme == "asymmetric" else None,
        offset if scheme == "minmax" else None,
    )


def dequantize(a: Affine, dtype: Any, axis: Any = None, group_size: Any = None) -> np.ndarray:
    """(code - zero point) · scale + offset, each operation rounded to the scale's dtype, then to `dtype`."""
    shape = a.codes.shape
    codes = a.codes if a.zero_point is None else a.codes - spread(a.zero_point, shape, axis, group_size).astype(int)
    with np.errstate(over="ignore"):
        out = codes.astype(a.scale.dtype) * spread(a.scale, shape, axis, group_size)
        if a.offset is not None:
            out = out + spread(a.offset, shape, axis, group_size)
    return cast(out, np.dtype(dtype))


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Element 0 in the low bits of byte 0, two's complement; each row starts on a byte."""
    per_byte = 8 // bits
    out = np.zeros((*codes.shape[:-1], math.ceil(codes.shape[-1] / per_byte)), np.uint8)
    for place in range(per_byte):
        unsigned = codes[..., place::per_byte].astype(np.int64) % 2**bits
        out[..., : unsigned.shape[-1]] |= (unsigned << (bits * place)).astype(np.uint8)
    return out


def unpack(packed: np.ndarray, bits: int, n: int, signed: bool = False) -> np.ndarray:
    per_byte = 8 // bits
    out = np.zeros((*packed.shape[:-1], n), np.int64)
    for place in range(per_byte):
        row = out[..., place::per_byte]
        code = (packed[..., : row.shape[-1]].astype(np.int64) >> (bits * place)) % 2**bits
        row[...] = np.where(signed & (code >= 2 ** (bits - 1)), code - 2**bits, code)
    return out.astype(np.int8 if signed else np.uint8)


# ---------------------------------------------------------------------------------------------------- pruning


def kept(scores: np.ndarray, prune: int) -> np.ndarray:
    """Which stay when the `prune` lowest go, among equal ones the lowest index first (NaN sorts last)."""
    stays = np.ones(scores.size, bool)
    stays[np.argsort(scores, axis=None, kind="stable")[:prune]] = False
    return stays.reshape(scores.shape)


def sparsegpt(
    w: np.ndarray,
    h: np.ndarray,
    sparsity: float = 0.0,
    n: int = 0,
    m: int = 0,
    damping: float = 0.01,
    block_size: int = 128,
) -> np.ndarray:
    """Frantar and Alistarh, SparseGPT, arXiv:2301.00774, algorithm 1, a column at a time; dead inputs as their program.

    Unlike there, of each block so many go that those of all blocks up to it are the share, rounded.
    """
    w, h = w.astype(np.float64), h.copy()
    rows, width = w.shape
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * h.diagonal().mean() * np.eye(width)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    goes = np.zeros(w.shape, bool)
    for j in range(width):
        chosen = m if m else block_size
        if j % chosen == 0:
            columns = slice(j, min(j + chosen, width))
            scores = np.abs(w[:, columns]) / upper.diagonal()[columns]
            if m:
                goes[:, columns] = [~kept(row, m - n) for row in scores]
            else:
                prune = round(sparsity * (rows * columns.stop)) - round(sparsity * (rows * j))
                goes[:, columns] = ~kept(scores, prune)
        error = np.where(goes[:, j], w[:, j], 0) / upper[j, j]
        w[:, j:] -= np.outer(error, upper[j, j:])
        w[goes[:, j], j] = 0
    return w


# ------------------------------------------------------------------------------------------------------- data


def wild(n: int, dtype: Any, seed: int = 0) -> np.ndarray:
    """`n` finite values of magnitudes from 2^-12 to 2^12, zeros of both signs and subnormals between them."""
    return (made_wild if n <= 1 << 12 else made_wild.__wrapped__)(n, np.dtype(dtype), seed).copy()


@functools.lru_cache(maxsize=1 << 10)
def made_wild(n: int, dtype: np.dtype, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, n])
    x = (rng.standard_normal(n) * np.exp2(rng.integers(-12, 13, n))).astype(dtype)
    x[rng.random(n) < 0.02] = 0.0
    x[rng.random(n) < 0.02] = -0.0
    tiny = rng.random(n) < 0.02
    info = ml_dtypes.finfo(dtype)
    x[tiny] = (rng.integers(1, 50, n) * float(info.smallest_subnormal))[tiny].astype(dtype)
    return x


def poisoned(x: np.ndarray) -> np.ndarray:
    """A copy with a NaN, an infinity or its negative at every 13th place."""
    x = x.copy()
    for start, value in ((3, np.nan), (16, np.inf), (29, -np.inf)):
        x[..., start::39] = value
    return x


def bits_of(value: Any) -> Any:
    """Everything that a result is, to compare with ==: dtype, shape and bytes of each array in it."""
    if isinstance(value, (tuple, list)):
        return tuple(bits_of(v) for v in value)
    if hasattr(value, "zero_point"):
        return bits_of((value.codes, value.scale, value.zero_point, value.offset, value.global_scale))
    if value is None:
        return None
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


# ------------------------------------------------------------------------------------ every call, listed once


def itself(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True)
class Call:
    """One public call: `run(prepare(x), threads)`. `codes`: takes uint8 or int8, not floats."""

    function: str
    run: Callable[..., Any]
    prepare: Callable[[np.ndarray], Any] = itself
    codes: bool = False
    argument: str = "x"


def rows(x: np.ndarray) -> np.ndarray:
    """As a matrix with three rows (what is over is left out)."""
    return x[: x.size // 3 * 3].reshape(3, -1)


def columns(x: np.ndarray) -> np.ndarray:
    """As a matrix with three columns."""
    return x[: x.size // 3 * 3].reshape(-1, 3)


def _reduce_calls(mo: Any) -> dict[str, Call]:
    r = mo.reduce
    plain = {
        "minmax": ("minmax", {}),
        "nanminmax": ("nanminmax", {}),
        "min": ("min", {}),
        "max": ("max", {}),
        "argmin": ("argmin", {}),
        "argmax": ("argmax", {}),
        "any": ("any", {}),
        "all": ("all", {}),
        "absmax": ("absmax", {}),
        "sum": ("sum", {}),
        "mean": ("mean", {}),
        "var": ("var", {}),
        "norm1": ("norm", {"ord": 1}),
        "norm2": ("norm", {}),
        "norminf": ("norm", {"ord": math.inf}),
        "count_nonzero": ("count_nonzero", {}),
        "count_nonfinite": ("count_nonfinite", {}),
    }

    def call(function: str, prepare: Any = itself, **kwargs: Any) -> Call:
        f = getattr(r, function)
        return Call(f"reduce.{function}", lambda x, threads=None, **kw: f(x, threads=threads, **kwargs, **kw), prepare)

    calls = {name: call(f, **kw) for name, (f, kw) in plain.items()}
    calls |= {f"{name}-axis0": call(f, columns, axis=0, **kw) for name, (f, kw) in plain.items()}
    calls |= {f"{name}-axis1": call(f, rows, axis=-1, **kw) for name, (f, kw) in plain.items()}
    for name in (
        "minmax",
        "nanminmax",
        "max",
        "argmin",
        "argmax",
        "any",
        "all",
        "absmax",
        "sum",
        "norm2",
        "count_nonzero",
        "count_nonfinite",
    ):
        calls[f"{name}-poisoned"] = call(plain[name][0], poisoned, **plain[name][1])
    calls["histogram"] = call("histogram", bins=37)
    calls["histogram-range"] = call("histogram", poisoned, bins=11, range=(-1.5, 2.5))
    calls["quantile"] = call("quantile", q=np.array([0.1, 0.999]))
    calls["topk"] = call("topk", poisoned, k=3)
    calls["topk-axis0"] = call("topk", columns, k=2, axis=0, largest=False)
    close = r.allclose
    calls["allclose"] = Call(
        "reduce.allclose", lambda x, threads=None, **kw: close(x, x, threads=threads, **kw), argument="a"
    )
    kth = r.kth_magnitude
    calls["kth_magnitude"] = Call(
        "reduce.kth_magnitude", lambda x, threads=None, **kw: kth(x, np.size(x) // 3, threads=threads, **kw)
    )
    return calls


def _quant_calls(mo: Any) -> dict[str, Call]:
    calls = {}
    grains: list[tuple[str, dict[str, Any], Any]] = [
        ("all", {}, itself),
        ("axis0", {"axis": 0}, rows),
        ("axis1", {"axis": 1}, columns),
        ("group32", {"group_size": 32}, itself),
        ("group5", {"group_size": 5}, rows),
        ("poisoned", {"nonfinite": "saturate"}, poisoned),
    ]
    for i, (grain, kwargs, prepare) in enumerate(grains):
        for j, scheme in enumerate(SCHEMES):
            for bits in BITS if grain == "all" else [BITS[(i + j) % 3]]:
                kw = {"bits": bits, "scheme": scheme, **kwargs}
                name = f"{scheme}{bits}-{grain}"
                calls[f"quantize-{name}"] = Call(
                    "quantize",
                    lambda x, threads=None, kw=kw, **more: mo.quantize(x, threads=threads, **kw, **more),
                    prepare,
                )
                calls[f"fake_quantize-{name}"] = Call(
                    "fake_quantize",
                    lambda x, threads=None, kw=kw, **more: mo.fake_quantize(x, threads=threads, **kw, **more),
                    prepare,
                )
                for target in ("float32", "float64", "float16", "bfloat16")[i % 2 :: 2]:
                    calls[f"dequantize-{name}-{target}"] = Call(
                        "dequantize",
                        lambda q, threads=None, t=target: mo.dequantize(
                            q, dtype=BF16 if t == "bfloat16" else t, threads=threads
                        ),
                        lambda x, kw=kw, prepare=prepare: mo.quantize(prepare(x), **kw),
                    )
    return calls


FORMATS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "nf4": ("nf4", {}, itself),
    "nf4-rows": ("nf4", {"group_size": 32}, rows),
    "fp4": ("fp4", {"group_size": 128}, itself),
    "mxfp4": ("mxfp4", {}, itself),
    "mxfp8-poisoned": ("mxfp8", {"nonfinite": "saturate"}, poisoned),
    "nvfp4": ("nvfp4", {}, itself),
    "nvfp4-rows": ("nvfp4", {}, rows),
    "fp8_e4m3": ("fp8_e4m3", {}, itself),
    "fp8_e4m3-axis0": ("fp8_e4m3", {"axis": 0}, rows),
    "fp8_e4m3-group5": ("fp8_e4m3", {"group_size": 5}, rows),
    "fp8_e5m2-axis1": ("fp8_e5m2", {"axis": 1}, columns),
    "fp8_e5m2-tiles": ("fp8_e5m2", {"group_size": (2, 128)}, rows),
}
"""Each named format with each way that its kernels differ in: format, options, how the input is shaped."""


def _format_calls(mo: Any) -> dict[str, Call]:
    calls = {}
    for i, (name, (form, options, prepare)) in enumerate(FORMATS.items()):
        kw = {"format": form, **options}
        for function, f in (("quantize", mo.quantize), ("fake_quantize", mo.fake_quantize)):
            calls[f"{function}-{name}"] = Call(
                function,
                lambda x, threads=None, kw=kw, f=f, **more: f(x, threads=threads, **kw, **more),
                prepare,
            )
        target = DTYPES[i % len(DTYPES)]
        calls[f"dequantize-{name}-{target}"] = Call(
            "dequantize",
            lambda q, threads=None, t=target: mo.dequantize(q, dtype=t, threads=threads),
            lambda x, kw=kw, prepare=prepare: mo.quantize(prepare(x), **kw),
        )
    return calls


def _pack_calls(mo: Any) -> dict[str, Call]:
    calls = {}
    for bits in BITS:
        calls[f"pack{bits}"] = Call(
            "quant.pack",
            lambda c, threads=None, b=bits: mo.quant.pack(c, b, threads=threads),
            lambda c, b=bits: c & (2**b - 1),
            True,
        )
        for signed in (False, True):
            calls[f"unpack{bits}-{'signed' if signed else 'unsigned'}"] = Call(
                "quant.unpack",
                lambda p, threads=None, b=bits, s=signed: mo.quant.unpack(
                    p, b, p.size * 8 // b, signed=s, threads=threads
                ),
                codes=True,
            )
    return calls


STEPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sgd": ("sgd_step", 0, {}),
    "sgd-momentum": ("sgd_step", 1, {"momentum": 0.9, "dampening": 0.1}),
    "sgd-nesterov": ("sgd_step", 1, {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("adagrad_step", 1, {"lr_decay": 0.01}),
    "rmsprop": ("rmsprop_step", 1, {}),
    "rmsprop-momentum": ("rmsprop_step", 2, {"momentum": 0.9}),
    "rmsprop-centered": ("rmsprop_step", 3, {"momentum": 0.9}),
    "adadelta": ("adadelta_step", 2, {}),
    "adam": ("adam_step", 2, {"weight_decay": 0.1}),
    "adam-amsgrad": ("adam_step", 3, {"maximize": True}),
    "adam-optax": ("adam_step", 3, {"semantics": "optax"}),
    "adamw": ("adamw_step", 2, {"clip_value": 1.0, "grad_scale": 4.0}),
    "nadam": ("nadam_step", 2, {}),
    "radam": ("radam_step", 2, {}),
    "adamax": ("adamax_step", 2, {}),
    "lion": ("lion_step", 1, {"weight_decay": 0.1}),
    "lamb": ("lamb_step", 2, {"weight_decay": 0.1}),
    "adamw-minifloat": ("adamw_step", 2, {"coding": "minifloat"}),
    "adamw-dynamic": ("adamw_step", 2, {"coding": "dynamic"}),
    "adamw-dynamic4": ("adamw_step", 2, {"coding": "dynamic4"}),
    "sgd-minifloat": ("sgd_step", 1, {"momentum": 0.9, "coding": "minifloat"}),
    "adamw-stochastic": ("adamw_step", 2, {"rounding_seed": 7}),
    "ema": ("ema_step", 0, {"decay": 0.9}),
    "accumulate": ("accumulate_step", 0, {}),
}
"""Each optimizer step with each way that its kernel differs in: function, states, options."""


def steps(mo: Any) -> dict[str, Call]:
    """Every optimizer step, as a call that gives copies of what it wrote."""

    def call(function: str, count: int, options: dict[str, Any]) -> Call:
        step = getattr(mo.optim, function)
        coding = options.get("coding")
        options = {name: value for name, value in options.items() if name != "coding"}
        if function not in ("ema_step", "accumulate_step"):
            options |= {"step": 3, "lr": 0.01}

        def run(x: np.ndarray, threads: int | None = None, **kw: Any) -> tuple[np.ndarray, ...]:
            x = np.asarray(x, order="C")
            param = x.copy()
            states = [np.full(x.shape, 0.25, np.float64 if x.dtype == np.float64 else np.float32) for _ in range(count)]
            if not coding or x.dtype == np.float64:  # which has no states in codes
                step(param, x[::-1], *states, threads=threads, **options, **kw)
                return (param, *states)
            blocks = [
                mo.optim.BlockState.from_array(state, coding=coding, signed=i == 0) for i, state in enumerate(states)
            ]
            step(param, x[::-1], *blocks, threads=threads, **options, **kw)
            return (param, *(part for block in blocks for part in (block.codes, block.absmax)))

        return Call(f"optim.{function}", run, np.atleast_1d)

    def adafactor(x: np.ndarray, threads: int | None = None, **kw: Any) -> tuple[np.ndarray, ...]:
        x = np.asarray(x, order="C")
        param, dtype = x.copy(), np.float64 if x.dtype == np.float64 else np.float32
        shapes = {"variance": x.shape}
        if x.ndim > 1:
            shapes = {"row_var": (x.shape[0], 1), "col_var": (1, x.shape[1])}
        states = {name: np.full(shape, 0.25, dtype) for name, shape in shapes.items()}
        mo.optim.adafactor_step(param, x[::-1], **states, step=3, threads=threads, **kw)
        return (param, *states.values())

    return {name: call(*arguments) for name, arguments in STEPS.items()} | {
        "adafactor": Call("optim.adafactor_step", adafactor, np.atleast_1d),
        "adafactor-rows": Call("optim.adafactor_step", adafactor, rows),
        "adafactor-columns": Call("optim.adafactor_step", adafactor, columns),
    }


def multiple_of(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """As many of the elements as make whole groups of `n`."""
    return lambda x: x[: x.size // n * n]


def _prune_calls(mo: Any) -> dict[str, Call]:
    def call(function: str, prepare: Any = itself, **kwargs: Any) -> Call:
        f = getattr(mo.prune, function)

        def run(w: Any, threads: int | None = None, **kw: Any) -> Any:
            return f(w, threads=threads, **kwargs, **kw)

        return Call(f"prune.{function}", run, prepare, argument="w")

    def wanda(w: Any, threads: int | None = None, **kw: Any) -> Any:
        if not isinstance(w, np.ndarray) or w.ndim != 2:
            return mo.prune.wanda(w, x_stats=None, sparsity=0.5, threads=threads, **kw)
        norms = np.linspace(0.5, 2, w.shape[-1]).astype(np.float64 if w.dtype == np.float64 else np.float32)
        return mo.prune.wanda(w, norms, 0.5, threads=threads, **kw)

    def sparsegpt(**how: Any) -> Callable[..., Any]:
        def run(w: Any, threads: int | None = None, **kw: Any) -> Any:
            n = w.shape[1] if isinstance(w, np.ndarray) and w.ndim == 2 else 1
            # Exact in any mode of rounding, which one test changes.
            hessian = np.diag(1 + np.arange(n) % 7 / 8) + 0.5
            return mo.prune.sparsegpt(w, hessian, threads=threads, **how, **kw)

        return run

    def compressed(w: Any, threads: int | None = None, **kw: Any) -> Any:
        small = mo.prune.compress(w, threads=threads, **kw)
        return small.values, small.bitmask, small.row_offsets, small.decompress(threads=threads, **kw)

    def groups(w: np.ndarray, threads: int | None = None) -> Any:
        small = mo.prune.compress(mo.prune.n_of_m(w, 3, 8, threads=threads), n=3, m=8, threads=threads)
        return small.values, small.indices, small.decompress(threads=threads)

    by_four, by_eight = multiple_of(12), multiple_of(24)
    return {
        "threshold": call("threshold", eps=0.5),
        "threshold-bits": call("threshold", eps=0.5, mask="bits"),
        "magnitude": call("magnitude", sparsity=0.4),
        "magnitude-bool": call("magnitude", rows, sparsity=0.4, mask="bool"),
        "magnitude-axis0": call("magnitude", columns, sparsity=0.3, axis=0),
        "magnitude-axis1": call("magnitude", rows, sparsity=0.3, axis=1),
        "n_of_m": call("n_of_m", by_four),
        "n_of_m-rows": call("n_of_m", lambda x: by_eight(x).reshape(3, -1), n=3, m=8),
        "n_of_m-axis0": call("n_of_m", lambda x: by_four(x).reshape(-1, 3), axis=0),
        "blocks": call("blocks", lambda x: by_four(x).reshape(2, -1), block=(2, 3)),
        "wanda": Call("prune.wanda", wanda, rows, argument="w"),
        "sparsegpt": Call("prune.sparsegpt", sparsegpt(sparsity=0.4, block_size=2), columns, argument="w"),
        "sparsegpt-groups": Call(
            "prune.sparsegpt", sparsegpt(n=3, m=8), lambda x: by_eight(x).reshape(-1, 24), argument="w"
        ),
        "compress": Call("prune.compress", compressed, rows, argument="w"),
        "compress-groups": Call("prune.compress", groups, by_eight, argument="w"),
        "to_csr": call("to_csr", rows),
    }


def _calibrated_calls(mo: Any) -> dict[str, Call]:
    def magnitudes(w: Any) -> np.ndarray:
        return 0.5 + np.arange(w.shape[1] if isinstance(w, np.ndarray) and w.ndim == 2 else 1) % 5

    def gptq(**how: Any) -> Callable[..., Any]:
        def run(w: Any, threads: int | None = None, **kw: Any) -> Any:
            hessian = np.diag(magnitudes(w)) + 0.5  # exact in any mode of rounding
            return tuple(mo.quant.gptq(w, hessian, threads=threads, **how, **kw).parts.values())

        return run

    def awq(w: Any, threads: int | None = None, **kw: Any) -> Any:
        return mo.quant.awq_scales(w, magnitudes(w), group_size=8, grid=3, threads=threads, **kw)

    def by_24(x: np.ndarray) -> np.ndarray:
        return multiple_of(24)(x).reshape(-1, 24)

    searched = {"group_size": 8, "search": "mse", "act_order": "groups", "scheme": "asymmetric"}
    return {
        "gptq": Call("quant.gptq", gptq(axis=0, block_size=2), columns, argument="w"),
        "gptq-groups": Call("quant.gptq", gptq(**searched), by_24, argument="w"),
        "awq_scales": Call("quant.awq_scales", awq, by_24, argument="w"),
    }


def _linear_calls(mo: Any) -> dict[str, Call]:
    def call(bits: int, compute: str, packed: bool = False, **options: Any) -> Call:
        @cache
        def weights(k: int) -> Any:
            w = np.sin(np.arange(5 * k, dtype=np.float32)).reshape(5, k)
            return mo.quantize(w, bits=bits, threads=1, **options)

        def run(x: Any, threads: int | None = None, **kw: Any) -> Any:
            k = x.shape[-1] if isinstance(x, np.ndarray) and x.ndim else 4
            if not k:
                raise ValueError("linear: no weights are that narrow")
            w = weights(k).prepack(threads=threads) if packed else weights(k)
            return mo.quant.linear(x, w, np.arange(5, dtype=np.float32), compute=compute, threads=threads, **kw)

        return Call("quant.linear", run, rows)

    return {
        "linear4-int8": call(4, "int8", group_size=32),
        "linear8-int8-packed": call(8, "int8", packed=True, axis=0),
        "linear4-int24-packed": call(4, "int24", packed=True, group_size=48, scheme="asymmetric"),
        "linear2-int24": call(2, "int24", group_size=7, scheme="minmax"),
        "linear8-float32": call(8, "float32", scheme="asymmetric"),
    }


def calls(mo: Any) -> dict[str, Call]:
    """Every public call that takes one array of the module `mo`, with each way that its kernels differ in."""
    plain = _reduce_calls(mo) | _quant_calls(mo) | _format_calls(mo) | _pack_calls(mo) | _prune_calls(mo)
    return plain | _calibrated_calls(mo) | _linear_calls(mo)
