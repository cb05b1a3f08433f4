"""Parameters of uniform codes that the plain formula does not give: searched, rounded as they are stored, or given."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Parts, ScaleDtype, Search, Spec
from modelopt_rs.arguments import shown
from modelopt_rs.errors import ScaleRangeError
from modelopt_rs.quant.formats import entry_of

__all__ = ["Parameters", "Scales", "sought"]

# The largest scale in float16 below 8 bits; at 8 bits such a scale times its codes is no number of float16.
_LARGE: Final = 4096.0


def sought(function: str, search: Search, norm: Any) -> Search | float:
    """Return what the core looks for: None, "mse", or the norm of which errors are least.

    Examples
    --------
    >>> from modelopt_rs.quant.search import sought
    >>> sought("quantize", "mse", None), sought("quantize", "mse", 2.4)
    ('mse', 2.4)
    """
    if isinstance(search, float):
        raise TypeError(f"{function}: search must be a string, got {search}")
    if norm is None:
        return search
    if isinstance(norm, bool | np.bool_) or not isinstance(norm, int | float | np.integer | np.floating):
        raise TypeError(f"{function}: norm must be a number or None, got {type(norm).__name__}")
    if search is None:
        raise ValueError(f"{function}: norm must be None without search, got {shown(norm)}")
    return search if search != "mse" or norm == 2 else float(norm)


@dataclass(frozen=True, slots=True)
class Scales:
    """Where the scales of codes come from that are made in arrays that are there: tiles of files.

    Attributes
    ----------
    search : {"mse"}, float or None
        As for `quantize`; or its `norm`.
    dtype : {"float32", "float16", "bfloat16"} or None
        The `scale_dtype` of `quantize`.
    """

    search: Search | float = None
    dtype: ScaleDtype = None

    def quantize(self, x: Array, parts: Parts, spec: Spec, nonfinite: str, dtype: Bf16, threads: int | None) -> None:
        """Write codes, scale and zero point; of channels only those of the first axis can be searched."""
        if self == Scales():
            _core.quantize(x, parts, spec, nonfinite, None, dtype, threads)
            return
        self.find(x, (parts[1], parts[2]), spec, dtype, threads)
        _core.quantize_given(x, parts[0], (parts[1], parts[2]), spec, nonfinite, dtype, threads)

    def find(self, x: Array, found: tuple[Array, Array | None], spec: Spec, dtype: Bf16, threads: int | None) -> None:
        """Write scale and zero point alone; what is not finite counts as 0."""
        weights = self.importances(x.shape[-1])
        _core.find_scales(x, weights, found, spec, ("quantize", self.search, self.dtype), dtype, threads)
        self.check(found[0])

    def importances(self, columns: int) -> Array | None:
        """Return what the squared errors of columns count; None: all the same."""
        return None

    def check(self, scale: Array) -> None:
        """Refuse scales that were cut to what their dtype holds."""
        if self.dtype == "float16" and np.abs(scale).max(initial=0.0) >= _LARGE:
            raise ScaleRangeError(
                "quantize: scale_dtype (--scale-dtype) must be 'float32' for numbers as large as these, got 'float16'"
            )


@dataclass(frozen=True, slots=True)
class Parameters:
    """The options of `quantize` that say where scales come from, and what comes of them."""

    function: str
    search: Search
    weights: Array | None
    scale: Array | float | None
    zero_point: Array | int | None
    scale_dtype: ScaleDtype
    norm: float | None = None

    def of(
        self, x: Array, spec: Spec, shape: tuple[int, ...], dtype: Bf16, threads: int | None
    ) -> tuple[Array, Array | None]:
        """Return scale, and zero point or offset, of this shape for codes of `x`."""
        if not isinstance(x, np.ndarray):
            raise TypeError(f"{self.function}: x must be a NumPy array, got {type(x).__name__}")
        wide = np.float64 if x.dtype.char == "d" else np.float32
        if self.scale is not None:
            if entry_of(spec[0]).scheme == "minmax":
                raise ValueError(f"{self.function}: scale must be None for scheme 'minmax'")
            return self._given(wide)
        if self.zero_point is not None:
            raise ValueError(f"{self.function}: zero_point must be None without scale, got {shown(self.zero_point)}")
        if self.weights is not None and self.search is None:
            got = shown(self.weights)
            raise ValueError(f"{self.function}: weights must be None without search, got {got}")
        return self._found(x, spec, shape, wide, dtype, threads)

    def _given(self, wide: type) -> tuple[Array, Array | None]:
        """Return copies of what was given."""
        others = (self.search, self.weights, self.scale_dtype, self.norm)
        if any(each is not None for each in others):
            names = "search, weights, scale_dtype and norm"
            raise ValueError(f"{self.function}: {names} must be None where scale is given")
        try:
            scale: Array = np.array(self.scale, wide)
        except OverflowError:  # an int
            got = shown(self.scale)
            raise ValueError(f"{self.function}: scale must be within the numbers of float64, got {got}") from None
        except (TypeError, ValueError):
            got = type(self.scale).__name__
            raise TypeError(f"{self.function}: scale must be a number or an array of numbers, got {got}") from None
        zero_point = self.zero_point
        if zero_point is None or isinstance(zero_point, np.ndarray):
            return scale, None if zero_point is None else zero_point.copy()
        if not isinstance(zero_point, int) or isinstance(zero_point, bool):
            got = type(zero_point).__name__
            raise TypeError(f"{self.function}: zero_point must be an int or an array of uint8, got {got}")
        if not 0 <= zero_point <= 255:
            raise ValueError(f"{self.function}: zero_point must be within 0 to 255, got {zero_point}")
        return scale, np.array(zero_point, np.uint8)

    def _found(
        self, x: Array, spec: Spec, shape: tuple[int, ...], wide: type, dtype: Bf16, threads: int | None
    ) -> tuple[Array, Array | None]:
        """Return what the core finds; it looks at the first axis only, so that another one is moved there."""
        coding, axis, group_size = spec
        try:
            weights = None if self.weights is None else np.asarray(self.weights, np.float32)
        except (TypeError, ValueError):
            got = type(self.weights).__name__
            raise TypeError(f"{self.function}: weights must be an array of float32, got {got}") from None
        if axis is not None and axis % x.ndim:
            if weights is not None and axis % x.ndim == x.ndim - 1:
                text = f"weights must be None for axis={axis}, whose elements with one scale they weigh alike"
                raise ValueError(f"{self.function}: {text}")
            x, axis = np.ascontiguousarray(np.moveaxis(x, axis, 0)), 0
        beside: dict[str | None, type] = {"asymmetric": np.uint8, "minmax": wide}
        kind = beside.get(entry_of(coding).scheme)
        found: tuple[Array, Array | None] = (np.empty(shape, wide), None if kind is None else np.empty(shape, kind))
        how = (self.function, sought(self.function, self.search, self.norm), self.scale_dtype)
        _core.find_scales(x, weights, found, (coding, axis, group_size), how, dtype, threads)
        return found
