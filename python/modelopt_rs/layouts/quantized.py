"""A quantized weight of a file as a `QuantizedArray`: codes and scales as they are."""

import numpy as np

from modelopt_rs.dtypes import FLOATS, widened
from modelopt_rs.errors import FormatError, UnsupportedError, quote
from modelopt_rs.layouts.format_codec import FormatWeight
from modelopt_rs.layouts.packed_weight import PackedWeight
from modelopt_rs.layouts.registry import LAYOUTS
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.stream.model import Source, TensorInfo

__all__ = ["read_quantized"]


def read_quantized(source: Source, name: str, threads: int | None) -> QuantizedArray:
    """Return the codes and scales of a weight by its plain name; see `Source.read_quantized`."""
    where = f"{source.path}: tensor {quote(name)}"
    if _is_int_quantized(source, name):
        return _int_quantized(source, name)
    for layout in LAYOUTS:
        if layout.mark(source.tensors) is None:
            continue
        for weight in layout.find(source):
            if weight.info("F32").name != name:
                continue
            if isinstance(weight, (PackedWeight, FormatWeight)):
                return weight.quantized(threads)
            raise UnsupportedError(f"{where}: codes of layout {layout.name!r} are not those of a QuantizedArray")
    if name in source.tensors:
        raise UnsupportedError(f"{where} is not quantized, or in a layout that is not known; read() gives it as it is")
    raise KeyError(name)


def _is_int_quantized(source: Source, name: str) -> bool:
    info = source.tensors.get(name)
    return info is not None and info.dtype == "I8" and len(info.shape) == 2 and f"{name}_scale" in source.tensors


def _int_quantized(source: Source, name: str) -> QuantizedArray:
    """Codes of 8 bits with a sign, one each: `int-quantized` of compressed-tensors."""
    info, scale = source.tensors[name], source.tensors[f"{name}_scale"]
    zero_point = source.tensors.get(f"{name}_zero_point")
    where = f"{source.path}: tensor {quote(scale.name)}"
    axis, group_size = _scales_of(info, scale, where)
    scales = _flat(np.array(widened(source.read(scale.name), scale.dtype), np.float32), axis, group_size)
    if not np.isfinite(scales).all():
        raise FormatError(f"{where} must be finite numbers")
    points = None
    if zero_point is not None:
        if zero_point.dtype != "I8" or zero_point.shape != scale.shape:
            raise FormatError(f"{where}: {quote(zero_point.name)} must be I8 {scale.shape}, got {zero_point.shape}")
        points = _flat(np.array(source.read(zero_point.name)), axis, group_size)
        points = points if points.any() else None  # symmetric: all codes are about 0
    codes = np.array(source.read(name))
    if points is None:
        return QuantizedArray(codes, scales, None, None, 8, "symmetric", info.shape, axis, group_size)
    return QuantizedArray(codes, scales, points, None, 8, "asymmetric", info.shape, axis, group_size)


def _flat(part: np.ndarray, axis: int | None, group_size: int | None) -> np.ndarray:
    return part if group_size is not None else part.reshape(() if axis is None else -1)


def _scales_of(info: TensorInfo, scale: TensorInfo, where: str) -> tuple[int | None, int | None]:
    """Return what shares a scale."""
    rows, columns = info.shape
    if scale.dtype not in FLOATS or scale.dtype == "F64":
        raise FormatError(f"{where} must be F32, F16 or BF16, got {scale.dtype}")
    if scale.shape in ((), (1,), (1, 1)) and rows != 1:
        return None, None
    if scale.shape in ((rows, 1), (rows,)):
        return 0, None
    if len(scale.shape) == 2 and scale.shape[0] == rows and scale.shape[1] and columns % scale.shape[1] == 0:
        return None, columns // scale.shape[1]
    raise FormatError(f"{where} must have shape (1,), ({rows}, 1) or ({rows}, groups), got {scale.shape}")
