"""Oracles of the named formats, from their specifications: lists of numbers, and the nearest of them.

What is divided and multiplied is said in float32, as it is part of each format; which number is nearest is decided in
float64, where all differences are exact.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import reference as ref

F32 = np.float32
TINY = np.finfo(F32).tiny


def minifloat(exponent_bits: int, mantissa_bits: int, bias: int, last: int) -> np.ndarray:
    """The magnitudes of the codes from 0 to `last`. IEEE 754-2019, 3.4, with another bias and another last number."""
    codes = np.arange(last + 1)
    exponent, mantissa = codes >> mantissa_bits, codes & (2**mantissa_bits - 1)
    assert exponent.max() < 2**exponent_bits
    fraction = mantissa / 2**mantissa_bits
    return np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))


def middles(numbers: np.ndarray) -> np.ndarray:
    """Between each two, as float32: what bitsandbytes compares with."""
    return ((numbers[1:] + numbers[:-1]).astype(F32) / F32(2)).astype(np.float64)


@dataclass(frozen=True)
class Numbers:
    """What codes stand for: of floats magnitudes in ascending order, with the sign in the highest bit."""

    bits: int
    magnitudes: np.ndarray
    is_float: bool

    @property
    def top(self) -> float:
        return float(self.magnitudes[-1] if self.is_float else np.abs(self.magnitudes).max())

    def encode(self, t: np.ndarray) -> np.ndarray:
        """The nearest: floats half to even; of a list the lower one of two."""
        wide = t.astype(np.float64)
        if not self.is_float:
            return np.searchsorted(middles(self.magnitudes), wide, side="left")
        middle = (self.magnitudes[1:] + self.magnitudes[:-1]) / 2
        below = np.searchsorted(middle, np.abs(wide), side="left")
        is_tie = (below < len(middle)) & (np.abs(wide) == middle[np.minimum(below, len(middle) - 1)])
        return below + (is_tie & (below % 2 == 1)) + (np.signbit(wide) * 2 ** (self.bits - 1))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        if not self.is_float:
            return self.magnitudes[codes]
        sign = codes >> (self.bits - 1)
        return self.magnitudes[codes & (2 ** (self.bits - 1) - 1)] * np.where(sign, -1.0, 1.0)


class BitsandbytesFp4(Numbers):
    """A list of magnitudes, whose codes are in an order of bitsandbytes' own; what becomes 0 has no sign."""

    ORDER = np.array([0, 1, 6, 7, 4, 5, 2, 3])

    def encode(self, t: np.ndarray) -> np.ndarray:
        wide, middle = np.abs(t.astype(np.float64)), middles(self.magnitudes)
        # The lower of two: of negative ones that of the larger magnitude.
        rank = np.where(t < 0, np.searchsorted(middle, wide, "right"), np.searchsorted(middle, wide, "left"))
        return self.ORDER[rank] + 8 * ((rank > 0) & (t < 0))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.magnitudes[np.argsort(self.ORDER)[codes & 7]] * np.where(codes >> 3, -1.0, 1.0)


# Dettmers et al. 2023, QLoRA, arXiv:2305.14314, appendix E; the digits of bitsandbytes.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
E2M1 = Numbers(4, minifloat(2, 1, 1, 7), True)  # OCP MX v1.0, 5.3.3
E4M3 = Numbers(8, minifloat(4, 3, 7, 0x7E), True)  # OCP OFP8 v1.0, table 1; arXiv:2209.05433
E5M2 = Numbers(8, minifloat(5, 2, 15, 0x7B), True)
NUMBERS = {
    "nf4": Numbers(4, np.array(NF4, F32).astype(np.float64), False),
    "fp4": BitsandbytesFp4(4, (np.array([0, 0.0625, 2, 3, 4, 6, 8, 12], F32) / F32(12)).astype(np.float64), True),
    "mxfp4": E2M1,
    "mxfp8": E4M3,
    "nvfp4": E2M1,
    "fp8_e4m3": E4M3,
    "fp8_e5m2": E5M2,
}
BLOCKS = {"nf4": 64, "fp4": 64, "mxfp4": 32, "mxfp8": 32, "nvfp4": 16}


def regions(shape: tuple[int, ...], axis: int | None, group_size: Any) -> Iterator[tuple[Any, Any]]:
    """As `reference.regions`, and tiles."""
    if not isinstance(group_size, tuple):
        yield from ref.regions(shape, axis, group_size)
        return
    rows, cols = group_size
    counts = (math.ceil(shape[-2] / rows), math.ceil(shape[-1] / cols))
    for outer in np.ndindex(shape[:-2]):
        for i, j in itertools.product(*map(range, counts)):
            tile = (slice(i * rows, (i + 1) * rows), slice(j * cols, (j + 1) * cols))
            yield (*outer, i, j), (*outer, *tile)


def scale_shape(shape: tuple[int, ...], axis: int | None, group_size: Any) -> tuple[int, ...]:
    if not isinstance(group_size, tuple):
        return ref.params_shape(shape, axis, group_size)
    return (*shape[:-2], math.ceil(shape[-2] / group_size[0]), math.ceil(shape[-1] / group_size[1]))


@dataclass
class Quantized:
    """`codes` are not packed: one int64 for each element."""

    codes: np.ndarray
    scale: np.ndarray
    global_scale: np.ndarray | None


def float32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(F32)


def store_scale(name: str, absmax: np.float32, total: np.float32) -> Any:
    """The stored scale of a block."""
    top = F32(NUMBERS[name].top)
    if name in ("nf4", "fp4"):
        return absmax
    if name.startswith("mx"):  # OCP MX v1.0, 6.3: the exponent of absmax less that of the largest number
        emax = math.floor(math.log2(top))
        exponent = math.frexp(float(absmax))[1] - 1 if absmax > 0 else -999
        return max(exponent - emax, -127) + 127
    if name == "nvfp4":
        code = int(E4M3.encode(np.array(absmax / top * total))) if absmax > 0 else 0
        return max(code, 1) if absmax > 0 else 0
    scale = absmax / top
    while float(scale) * float(top) > np.finfo(F32).max:
        scale = np.nextafter(scale, F32(0))
    return max(scale, TINY) if absmax > 0 else F32(1)


def scale_value(name: str, stored: Any, total: np.float32) -> np.float32:
    """What numbers of codes are multiplied by."""
    if name.startswith("mx"):
        return F32(math.ldexp(1.0, int(stored) - 127))
    if name == "nvfp4":
        return F32(E4M3.decode(np.array(int(stored)))) / total
    return F32(stored)


def in_units(name: str, x: np.ndarray, stored: Any, total: np.float32) -> np.ndarray:
    """The elements over their scale, as float32."""
    if name in ("nf4", "fp4"):
        if stored == 0:
            return x
        if stored < F32(2.0**-100):  # the same in numbers whose reciprocal is finite
            x, stored = x * F32(2.0**100), stored * F32(2.0**100)
        return x * (F32(1) / stored)
    value = scale_value(name, stored, total)
    return x / (value if value > 0 else F32(1))


def quantize(x: np.ndarray, name: str, axis: int | None = None, group_size: Any = None) -> Quantized:
    """Codes and scales; what is not finite saturates."""
    group_size = BLOCKS.get(name) if group_size is None else group_size
    numbers = NUMBERS[name]
    finite = np.isfinite(x)
    limit = np.finfo(F32).max
    coded = float32(np.nan_to_num(np.clip(x.astype(np.float64), -limit, limit), nan=0.0))
    total = F32(1)
    if name == "nvfp4":
        absmax = np.abs(coded[finite]).max(initial=F32(0))
        with np.errstate(over="ignore", divide="ignore"):
            total = min(F32(448 * 6) / absmax, limit) if absmax > 0 else F32(1)
            total = total if F32(448) / total * F32(6) <= limit else np.nextafter(total, F32(np.inf))
    dtype = np.uint8 if name.startswith(("mx", "nv")) else F32
    scale, units = np.zeros(scale_shape(x.shape, axis, group_size), dtype), np.zeros(x.shape, F32)
    with np.errstate(over="ignore", under="ignore"):
        for p, e in regions(x.shape, axis, group_size):
            absmax = np.abs(np.where(finite[e], coded[e], F32(0))).max(initial=F32(0))
            scale[p] = store_scale(name, absmax, total)
            units[e] = in_units(name, coded[e], scale[p], total)
    return Quantized(numbers.encode(units).astype(np.int64), scale, np.array(total, F32) if name == "nvfp4" else None)


def dequantize(q: Quantized, name: str, dtype: Any, axis: int | None = None, group_size: Any = None) -> np.ndarray:
    """number(code) · scale in float32, then rounded to `dtype`."""
    group_size = BLOCKS.get(name) if group_size is None else group_size
    scales = np.zeros(q.codes.shape, F32)
    total = F32(1) if q.global_scale is None else q.global_scale[()]
    with np.errstate(over="ignore", under="ignore"):
        for p, e in regions(q.codes.shape, axis, group_size):
            scales[e] = scale_value(name, q.scale[p], total)
        out = NUMBERS[name].decode(q.codes).astype(F32) * scales
    return ref.cast(out, np.dtype(dtype))
