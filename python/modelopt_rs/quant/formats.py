"""Named formats of quantized arrays: what each is made of, and the way from an array to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, GroupSize
from modelopt_rs.quant.array import QuantizedArray

__all__ = ["Format", "fake_quantize_as", "formats", "quantize_as"]


@dataclass(frozen=True, slots=True)
class Format:
    """One named format of `modelopt_rs.quantize`.

    Attributes
    ----------
    name : str
        What `format=` takes.
    bits : int
        Bits of a code.
    block : int or None
        Elements that share a scale if nothing else is asked for; None: the whole array.
    parts : mapping of str to str
        The arrays that it is made of, each with its dtype.
    about : str
        The numbers, the scale and where they are specified.
    """

    name: str
    bits: int
    block: int | None
    parts: Mapping[str, str]
    about: str

    @property
    def bits_per_weight(self) -> float:
        """Bits of a code and its share of a scale, for long rows."""
        scale = 8 * np.dtype(self.parts["scale"]).itemsize
        return self.bits + (scale / self.block if self.block else 0)


def _parts(scale: str, **more: str) -> Mapping[str, str]:
    return MappingProxyType({"codes": "uint8", "scale": scale, **more})


_FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            "nf4",
            4,
            64,
            _parts("float32"),
            "16 quantiles of a normal distribution; scale = absmax. Dettmers et al. 2023, arXiv 2305.14314",
        ),
        Format(
            "fp4", 4, 64, _parts("float32"), "±{0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1}; scale = absmax. bitsandbytes"
        ),
        Format("mxfp4", 4, 32, _parts("uint8"), "E2M1 (largest 6); scale 2^(s - 127), E8M0. OCP MX v1.0"),
        Format(
            "mxfp8",
            8,
            32,
            _parts("uint8"),
            "E4M3 (largest 448); scale 2^(s - 127), E8M0. OCP MX v1.0",
        ),
        Format(
            "nvfp4",
            4,
            16,
            _parts("uint8", global_scale="float32"),
            "E2M1 (largest 6); scale E4M3(s) / global_scale, global_scale = 448 * 6 / absmax of all. NVIDIA",
        ),
        Format(
            "fp8_e4m3",
            8,
            None,
            _parts("float32"),
            "E4M3 (largest 448); scale = absmax / 448. OCP OFP8",
        ),
        Format("fp8_e5m2", 8, None, _parts("float32"), "E5M2 (largest 57344); scale = absmax / 57344. OCP OFP8"),
    )
}


def formats() -> tuple[Format, ...]:
    """List the formats that `modelopt_rs.quantize` takes by name.

    All are ``x ≈ number(code) * scale``, in float32. An element is divided by its scale and becomes the nearest number
    of the format: half to even for floats, the lower one for "nf4" and "fp4" (as in bitsandbytes, so are their products
    with the rounded reciprocal of the scale). What is above the largest becomes the largest. float64 is rounded to
    float32 first.

    - "nf4", "fp4": the codes and scales of bitsandbytes, but that a block of zeros has the code of zero, element 0 is
      in the low bits, and a block never crosses a row.
    - "mxfp4", "mxfp8": scale exponent ``floor(log2(absmax)) - emax``, emax 2 or 8, at least -127, as in the
      specification and in ggml; of zeros -127. compressed-tensors rounds absmax to a power of two first, up from 1.75
      of the one below on. ggml takes the lower of two numbers that are equally near, also where that is the odd one.
    - "nvfp4": ``scale = E4M3(absmax / 6 * global_scale)``, at least 2^-9 unless the block is zeros: a scale of 0 would
      lose blocks that are small beside the largest.
    - "fp8_e4m3", "fp8_e5m2": one scale, one for each index of `axis`, for groups or for tiles; of zeros 1, and never
      below the smallest normal number.

    Returns
    -------
    tuple of Format

    References
    ----------
    Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314); OCP Microscaling Formats
    (MX) Specification v1.0; OCP 8-bit Floating Point Specification (OFP8) v1.0; Micikevicius et al. 2022, "FP8 Formats
    for Deep Learning" (arXiv 2209.05433).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> for f in mo.quant.formats():
    ...     print(f.name, f.bits_per_weight, f.block, *f.parts)
    nf4 4.5 64 codes scale
    fp4 4.5 64 codes scale
    mxfp4 4.25 32 codes scale
    mxfp8 8.25 32 codes scale
    nvfp4 4.5 16 codes scale global_scale
    fp8_e4m3 8 None codes scale
    fp8_e5m2 8 None codes scale
    >>> q = mo.quantize(np.array([[0.1, -0.5, 1.0, 6.0]], np.float32), format="mxfp4")
    >>> q.codes, q.scale, np.asarray(q)
    (array([[144, 114]], dtype=uint8), array([[127]], dtype=uint8), array([[ 0. , -0.5,  1. ,  6. ]], dtype=float32))
    """
    return tuple(_FORMATS.values())


def _resolve(function: str, name: str, uniform: tuple[int, str], group_size: GroupSize) -> tuple[Format, GroupSize]:
    """Return the format of a name and the group size that holds: its own where none is given."""
    entry = _FORMATS.get(name) if isinstance(name, str) else None
    if entry is None:
        raise ValueError(f"{function}: format must be one of {', '.join(_FORMATS)}, got {name!r}")
    if uniform != (8, "symmetric"):
        given = "bits={!r}, scheme={!r}".format(*uniform)
        raise ValueError(f"{function}: bits and scheme must not be given with format={name!r}, got {given}")
    return entry, entry.block if group_size is None else group_size


def quantize_as(
    x: Array,
    format: str,
    uniform: tuple[int, str],
    axis: int | None,
    group_size: GroupSize,
    nonfinite: str,
    out: QuantizedArray | None,
    dtype: Bf16,
    threads: int | None,
) -> QuantizedArray:
    """Quantize in a format; `uniform`: bits and scheme, which must be the defaults. See `modelopt_rs.quantize`."""
    entry, group_size = _resolve("quantize", format, uniform, group_size)
    if out is None:
        out = _empty(x, entry, axis, group_size)
    else:
        _check_out(out, format, axis, group_size)
        if nonfinite == "raise":
            nonfinite = "raise-first"  # the core's own name
    parts = (out.codes, out.scale, out.global_scale)
    _core.quantize_format(x, parts, (format, axis, group_size), nonfinite, None, dtype, threads)
    return out


def fake_quantize_as(
    x: Array,
    format: str,
    uniform: tuple[int, str],
    axis: int | None,
    group_size: GroupSize,
    nonfinite: str,
    out: Array,
    dtype: Bf16,
    threads: int | None,
) -> Array:
    """Quantize in a format and dequantize; see `modelopt_rs.fake_quantize`."""
    _, group_size = _resolve("fake_quantize", format, uniform, group_size)
    _core.fake_quantize_format(x, out, (format, axis, group_size), nonfinite, dtype, threads)
    return out


@lru_cache(maxsize=256)
def _shapes(
    shape: tuple[int, ...], name: str, axis: int | None, group_size: GroupSize
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return _core.format_shapes(shape, (name, axis, group_size))


def _empty(x: Array, entry: Format, axis: int | None, group_size: GroupSize) -> QuantizedArray:
    """Allocate for `x`."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"quantize: x must be a NumPy array, got {type(x).__name__}")
    try:
        codes_shape, scale_shape = _shapes(x.shape, entry.name, axis, group_size)
    except TypeError:  # unhashable: whatever is wrong with it, the core says so
        codes_shape, scale_shape = _core.format_shapes(x.shape, (entry.name, axis, group_size))
    codes, scale = np.empty(codes_shape, np.uint8), np.empty(scale_shape, entry.parts["scale"])
    global_scale = np.empty((), np.float32) if "global_scale" in entry.parts else None
    made = (entry.bits, None, x.shape, axis, group_size, entry.name, global_scale)
    return QuantizedArray(codes, scale, None, None, *made)


def _check_out(out: QuantizedArray, name: str, axis: int | None, group_size: GroupSize) -> None:
    if not isinstance(out, QuantizedArray):
        raise TypeError(f"quantize: out must be a QuantizedArray, got {type(out).__name__}")
    got = (out.format, out.axis, out.group_size)
    if got != (name, axis, group_size):
        names = ("format", "axis", "group_size")
        want = ", ".join(f"{k}={v!r}" for k, v in zip(names, (name, axis, group_size), strict=True))
        have = ", ".join(f"{k}={v!r}" for k, v in zip(names, got, strict=True))
        raise ValueError(f"quantize: out must have {want}, got {have}")
