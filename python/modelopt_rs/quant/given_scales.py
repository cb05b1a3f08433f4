"""Quantized arrays of given scales with codes of either sign, and either rounding."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Nonfinite, Rounding, Spec
from modelopt_rs.arguments import check_choice, shown
from modelopt_rs.arrays import as_array
from modelopt_rs.errors import said_as
from modelopt_rs.quant.affine import quantize_linear
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.quant.formats import entry_of
from modelopt_rs.quant.packing import pack

__all__ = ["Given", "check_rounding"]


def check_rounding(function: str, signed: Any, rounding: Any) -> None:
    """Refuse what says neither a sign nor a rounding."""
    check_choice(function, "rounding", rounding, ("even", "away"))
    if signed is not None and not isinstance(signed, bool | np.bool_):
        raise TypeError(f"{function}: signed must be a bool or None, got {shown(signed)}")


@dataclass(frozen=True, slots=True)
class Given:
    """The options of `quantize` that say what codes are made with given scales."""

    function: str
    scale: Array | float | None
    zero_point: Array | int | None
    signed: bool | None
    rounding: Rounding
    others: tuple[Any, ...]
    """What must not be given with them: search, weights, scale_dtype, norm."""

    def quantize(
        self, x: Array, spec: Spec, nonfinite: Nonfinite, out: QuantizedArray | None, dtype: Bf16, threads: int | None
    ) -> QuantizedArray:
        """Return the codes of `x` with scale and zero point, as `quantize` would."""
        bits, signed, shape = self._checked(x, spec, out, dtype)
        _coding, axis, group_size = spec
        wide = np.float64 if x.dtype.char == "d" else np.float32
        scale: Array = np.array(as_array(self.scale) if hasattr(self.scale, "__dlpack__") else self.scale, wide)
        if scale.shape != shape:
            raise ValueError(f"{self.function}: scale must have shape {shape}, got {scale.shape}")
        zero_point: Array | int | None = self.zero_point
        if dtype == "bf16":
            x = x.view(_bfloat16(self.function))
        place = axis if group_size is None else x.ndim - 1
        name = f"{'' if signed else 'u'}int{bits}"
        with said_as({"quantize_linear:": f"{self.function}:"}):
            codes = quantize_linear(
                x,
                scale,
                zero_point,
                axis=place,
                group_size=group_size if isinstance(group_size, int) else None,
                dtype=name,
                rounding=self.rounding,
                nonfinite=nonfinite,
                threads=threads,
            )
        codes = codes if bits == 8 else pack(codes, bits, threads=threads)
        if signed and zero_point is None:
            return QuantizedArray(codes, scale, None, None, bits, "symmetric", x.shape, axis, group_size)
        zero_points = np.full(shape, 0 if zero_point is None else zero_point, np.int8 if signed else np.uint8)
        return QuantizedArray(codes, scale, zero_points, None, bits, "asymmetric", x.shape, axis, group_size)

    def _checked(
        self, x: Array, spec: Spec, out: QuantizedArray | None, dtype: Bf16
    ) -> tuple[int, bool, tuple[int, ...]]:
        """Return bits, whether codes are signed and the shape of scales."""
        if self.scale is None:
            raise ValueError(f"{self.function}: signed and rounding must come with scale, got None")
        if any(other is not None for other in self.others):
            names = "search, weights, scale_dtype and norm"
            raise ValueError(f"{self.function}: {names} must be None where scale is given")
        if out is not None:
            raise ValueError(f"{self.function}: out must be None with signed or rounding='away'")
        if dtype not in (None, "bf16"):
            raise ValueError(f"{self.function}: dtype must be None or 'bf16', got {dtype!r}")
        shape = _core.quantized_shapes(x.shape, spec, self.function)[1]
        entry = entry_of(spec[0])
        if entry.scheme not in ("symmetric", "asymmetric"):
            raise ValueError(f"{self.function}: scale must be None for format {entry.name!r}")
        if (entry.scheme == "asymmetric") != (self.zero_point is not None) and self.signed is None:
            what = "be None" if self.zero_point is not None else "be given with scale"
            raise ValueError(f"{self.function}: zero_point must {what} for scheme {entry.scheme!r}")
        return entry.bits, entry.scheme == "symmetric" if self.signed is None else bool(self.signed), shape


def _bfloat16(function: str) -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(f"{function}: signed and rounding of bfloat16 bits need the package ml_dtypes") from None
    return ml_dtypes.bfloat16
