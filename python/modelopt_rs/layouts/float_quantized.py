"""The `float-quantized` layout of compressed-tensors: float8 weights and float scales; transformers and vLLM load it.

For a weight `NAME.weight` of shape [out, in] the file holds:

- `NAME.weight`, F8_E4M3 [out, in]: the codes;
- `NAME.weight_scale`: one number [1] or [], one for each row [out, 1], or one for each block of 128 x 128
  [ceil(out / 128), ceil(in / 128)].

What loads it computes weight * weight_scale.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from modelopt_rs.dtypes import nbytes
from modelopt_rs.errors import FormatError, UnsupportedError, quote
from modelopt_rs.layouts.compressed_tensors import config_of_formats
from modelopt_rs.layouts.format_codec import FormatEncoder, FormatWeight
from modelopt_rs.layouts.format_spec import FormatSpec, check_group_size
from modelopt_rs.layouts.modules import Modules
from modelopt_rs.stream.model import Source, TensorInfo, is_weight

__all__ = ["FLOAT_QUANTIZED"]

_BLOCK = 128


class _FloatQuantized:
    name: Final = "float-quantized"
    state: Final = "quantized"
    formats: Final = ("fp8_e4m3",)

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        scaled = (f"{name}_scale" for name, info in tensors.items() if info.dtype == "F8_E4M3" and is_weight(name))
        return next((name for name in scaled if name in tensors), None)

    def find(self, source: Source) -> Iterator[FormatWeight]:
        for name, info in source.tensors.items():
            scale = source.tensors.get(f"{name}_scale")
            if info.dtype == "F8_E4M3" and is_weight(name) and scale is not None:
                yield FormatWeight(source, name, _matrix(source, info), _spec(source, info, scale), (name, scale.name))

    def spec(self, options: Any) -> FormatSpec:
        check_group_size(options, (0, _BLOCK))
        if options.group_size in (None, 0):
            return FormatSpec(options.format, axis=0)
        return FormatSpec(options.format, group_size=(_BLOCK, _BLOCK))

    def why_not(self, info: TensorInfo, spec: FormatSpec) -> str | None:
        return None

    def encode(self, info: TensorInfo, spec: FormatSpec, nonfinite: str, threads: int | None) -> FormatEncoder:
        rows, columns = info.shape
        shape = spec.scale_shape(rows, columns) if spec.group_size else (rows, 1)
        outputs = (
            TensorInfo(info.name, "F8_E4M3", (rows, columns), rows * columns),
            TensorInfo(f"{info.name}_scale", "F32", shape, nbytes("F32", shape)),
        )
        return FormatEncoder(info, spec, outputs, nonfinite, threads)

    def describe(
        self, specs: Mapping[str, FormatSpec], modules: Modules
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        return {}, config_of_formats(self.name, {spec: _weights(spec) for spec in specs.values()}, specs, modules)


FLOAT_QUANTIZED: Final = _FloatQuantized()


def _weights(spec: FormatSpec) -> dict[str, Any]:
    block = None if spec.group_size is None else [_BLOCK, _BLOCK]
    strategy = {"strategy": "channel"} if block is None else {"strategy": "block", "block_structure": block}
    return {"num_bits": 8, "type": "float", "symmetric": True, **strategy, "dynamic": False}


def _matrix(source: Source, info: TensorInfo) -> tuple[int, int]:
    if len(info.shape) != 2:
        where = f"{source.path}: tensor {quote(info.name)}"
        raise UnsupportedError(f"{where}: weights of {len(info.shape)} axes are not supported")
    return info.shape[0], info.shape[1]


def _spec(source: Source, info: TensorInfo, scale: TensorInfo) -> FormatSpec:
    """Return what the shape of the scales says."""
    rows, columns = _matrix(source, info)
    where = f"{source.path}: tensor {quote(scale.name)}"
    if scale.dtype not in ("F32", "F16", "BF16"):
        raise FormatError(f"{where} must be F32, F16 or BF16, got {scale.dtype}")
    blocks = FormatSpec("fp8_e4m3", group_size=(_BLOCK, _BLOCK))
    if scale.shape == (rows, 1):
        return FormatSpec("fp8_e4m3", axis=0)
    if scale.shape in ((), (1,), (1, 1)):
        return FormatSpec("fp8_e4m3")
    if scale.shape == blocks.scale_shape(rows, columns):
        return blocks
    raise FormatError(f"{where} must fit a weight {info.shape}, got shape {scale.shape}")
