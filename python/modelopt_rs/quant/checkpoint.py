"""Quantized arrays in safetensors files."""

import json
import os
from typing import Any, Final

from modelopt_rs._core import FormatError
from modelopt_rs.containers.safetensors import SafetensorsSource
from modelopt_rs.containers.safetensors_sink import SafetensorsSink
from modelopt_rs.containers.strict_json import parse_object
from modelopt_rs.dtypes import BY_WORD
from modelopt_rs.quant.array import QuantizedArray, dequantize
from modelopt_rs.stream.model import TensorInfo

__all__ = ["load", "save"]

_KEY: Final = "modelopt_rs.quantized_array"
_OPTIONS: Final = ("bits", "scheme", "shape", "axis", "group_size", "format")
_STORED: Final = ("float32", "float64", "uint8", "int8")
_PARTS: Final = ("codes", "scale", "zero_point", "offset", "global_scale")


def save(q: QuantizedArray, path: str | os.PathLike[str]) -> None:
    """Write the parts of a quantized array, and how they are read."""
    parts = q.parts
    for name, part in parts.items():
        if part.dtype.name not in _STORED:
            raise TypeError(f"save: {name} must have dtype {', '.join(_STORED)}, got {part.dtype}")
    infos = [TensorInfo(name, BY_WORD[part.dtype.name], part.shape, part.nbytes) for name, part in parts.items()]
    options = json.dumps({option: getattr(q, option) for option in _OPTIONS})
    with SafetensorsSink(path, infos, {_KEY: options}) as sink:
        for name, part in parts.items():
            sink.write(name, part)
        sink.commit()


def load(path: str | os.PathLike[str], *, mapped: bool = False) -> QuantizedArray:
    """Read one, or map it; what does not fit together is refused."""
    with SafetensorsSource(path) as source:
        if _KEY not in source.metadata:
            raise FormatError(f"{source.path}: the metadata have no {_KEY!r}; it is not a saved QuantizedArray")
        options = parse_object(source.metadata[_KEY], f"{source.path}: {_KEY}")
        if set(options) != set(_OPTIONS) or not {"codes", "scale"} <= set(source.tensors) <= set(_PARTS):
            raise FormatError(f"{source.path}: a QuantizedArray must have {', '.join(_OPTIONS)} and codes and scale")
        read = source.mapped if mapped else source.read
        parts = {name: read(name) for name in source.tensors}
        where = source.path
    given: dict[str, Any] = parts | {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    try:
        q = QuantizedArray(**given)
        if q.size <= max(8 * q.codes.size, 1):  # no more is made than the codes say
            dequantize(q[:1] if q.ndim > 1 and not isinstance(q.group_size, tuple) else q)
            return q
    except (TypeError, ValueError, IndexError, OverflowError) as why:
        raise FormatError(f"{where}: the parts of the QuantizedArray don't fit: {why}") from None
    raise FormatError(f"{where}: codes must be those of shape {q.shape}, got {q.codes.shape}")
