"""The registry of formats of quantized arrays: what each is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from modelopt_rs import _types
from modelopt_rs._types import GroupSize, Scheme
from modelopt_rs.arguments import shown

__all__ = ["BITS", "Format", "entry_of", "formats", "resolve"]


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
        The arrays that it is made of, each with its dtype. Of uniform codes "float32" becomes "float64" for a float64
        array.
    about : str
        The numbers, the scale and where they are specified.
    scheme : {"symmetric", "asymmetric", "minmax"} or None
        Of uniform codes, which `bits` and `scheme` ask for too; None of the others.
    """

    name: str
    bits: int
    block: int | None
    parts: Mapping[str, str]
    about: str
    scheme: Scheme | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits of a code and its share of a scale, for long rows."""
        scale = 8 * np.dtype(self.parts["scale"]).itemsize
        return self.bits + (scale / self.block if self.block else 0)


def _parts(scale: str, codes: str = "uint8", **more: str) -> Mapping[str, str]:
    return MappingProxyType({"codes": codes, "scale": scale, **more})


def _uniform(bits: int) -> tuple[Format, Format, Format]:
    """The uniform codes of so many bits, of each scheme."""
    name, top, levels = f"int{bits}", 2 ** (bits - 1) - 1, 2**bits - 1
    symmetric = _parts("float32", "int8" if bits == 8 else "uint8")
    about = (
        f"-{top} to {top}; scale = absmax / {top}. Jacob et al. 2018, arXiv 1712.05877",
        f"0 to {levels}, less the zero point; scale = (max - min) / {levels} of the range with 0. ONNX, torch",
        f"0 to {levels}, above the offset; scale = (max - min) / {levels}, offset = min",
    )
    return (
        Format(name, bits, None, symmetric, about[0], "symmetric"),
        Format(f"{name}_asymmetric", bits, None, _parts("float32", zero_point="uint8"), about[1], "asymmetric"),
        Format(f"{name}_minmax", bits, None, _parts("float32", offset="float32"), about[2], "minmax"),
    )


_FORMATS = {
    entry.name: entry
    for entry in (
        *(entry for bits in (8, 4, 2) for entry in _uniform(bits)),
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
_UNIFORM = {(entry.bits, entry.scheme): entry for entry in _FORMATS.values() if entry.scheme}
BITS: Final = tuple(dict.fromkeys(bits for bits, _ in _UNIFORM))
"""What uniform codes may have, from the most down."""


def formats() -> tuple[Format, ...]:
    """List the formats that `modelopt_rs.quantize` takes by name.

    First the uniform codes: ``format="int4_asymmetric"`` is ``bits=4, scheme="asymmetric"``, see `quantize`. All others
    are ``x ≈ number(code) * scale``, in float32. An element is divided by its scale and becomes the nearest number
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
    int8 8 None codes scale
    int8_asymmetric 8 None codes scale zero_point
    int8_minmax 8 None codes scale offset
    int4 4 None codes scale
    int4_asymmetric 4 None codes scale zero_point
    int4_minmax 4 None codes scale offset
    int2 2 None codes scale
    int2_asymmetric 2 None codes scale zero_point
    int2_minmax 2 None codes scale offset
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


def resolve(
    function: str, name: str | None, bits: int, scheme: str, group_size: GroupSize
) -> tuple[_types.Format, GroupSize]:
    """Return what the core takes as the format, and the group size that holds: the format's own where none is given."""
    if name is None:
        return (bits, scheme), group_size
    entry = _FORMATS.get(name) if isinstance(name, str) else None
    if entry is None:
        raise ValueError(f"{function}: format must be one of {', '.join(_FORMATS)}, got {shown(name)}")
    if (bits, scheme) != (8, "symmetric"):
        given = f"bits={bits!r}, scheme={scheme!r}"
        raise ValueError(f"{function}: bits and scheme must not be given with format={name!r}, got {given}")
    if entry.scheme is not None:
        return (entry.bits, entry.scheme), group_size
    return name, entry.block if group_size is None else group_size


def entry_of(format: _types.Format) -> Format:
    """Return the entry of what the core took as the format."""
    return _FORMATS[format] if isinstance(format, str) else _UNIFORM[format]  # type: ignore[index]  # the core knows it
