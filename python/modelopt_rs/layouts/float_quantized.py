"""The `float-quantized` layout of compressed-tensors: float8 weights and float scales; transformers and vLLM load it.

For a weight `NAME.weight` of shape [out, in] the file holds:

- `NAME.weight`, F8_E4M3 [out, in]: the codes;
- `NAME.weight_scale`: one number [1] or [], one for each row [out, 1], or one for each block of 128 x 128
  [ceil(out / 128), ceil(in / 128)].

What loads it computes weight * weight_scale.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from modelopt_rs.dtypes import nbytes
from modelopt_rs.errors import FormatError, UnsupportedError, quote
from modelopt_rs.layouts.compressed_tensors import config_of_formats
from modelopt_rs.layouts.format_codec import FormatEncoder, FormatWeight
from modelopt_rs.layouts.format_spec import FormatSpec, check_group_size
from modelopt_rs.layouts.modules import Modules
from modelopt_rs.stream.model import Source, TensorInfo, is_weight

__all__ = ["FLOAT_QUANTIZED", "FOREIGN_FLOAT8"]

_BLOCK = 128
_SCALES: Final = ("F32", "F16", "BF16", "F8_E8M0", "U8")
_OF_ACTIVATIONS: Final = ("input_scale", "input_scale_inv", "activation_scale", "activation_scale_inv", "output_scale")
_FORMATS = {"F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2"}


class _FloatQuantized:
    name: Final = "float-quantized"
    state: Final = "quantized"
    formats: Final = ("fp8_e4m3",)
    names_weights: Final = True

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        scaled = (f"{name}_scale" for name, info in tensors.items() if info.dtype == "F8_E4M3" and is_weight(name))
        return next((name for name in scaled if name in tensors), None)

    def find(self, source: Source) -> Iterator[FormatWeight]:
        for name, info in source.tensors.items():
            scale = source.tensors.get(f"{name}_scale")
            if info.dtype == "F8_E4M3" and is_weight(name) and scale is not None:
                yield _weight(source, info, scale)

    def spec(self, options: Any) -> FormatSpec:
        check_group_size(options, (0, _BLOCK))
        if options.group_size in (None, 0):
            return FormatSpec(options.format, axis=0)
        return FormatSpec(options.format, group_size=(_BLOCK, _BLOCK))

    def can_hold(self, info: TensorInfo) -> bool:
        return len(info.shape) == 2 and is_weight(info.name)

    def why_not(self, info: TensorInfo, spec: FormatSpec) -> str | None:
        return None

    def encode(self, info: TensorInfo, spec: FormatSpec, options: Any, threads: int | None) -> FormatEncoder:
        rows, columns = info.shape
        shape = spec.scale_shape(rows, columns) if spec.group_size else (rows, 1)
        outputs = (
            TensorInfo(info.name, "F8_E4M3", (rows, columns), rows * columns),
            TensorInfo(f"{info.name}_scale", "F32", shape, nbytes("F32", shape)),
        )
        return FormatEncoder(info, spec, outputs, options.nonfinite, threads)

    def describe(
        self, specs: Mapping[str, FormatSpec], modules: Modules
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        return {}, config_of_formats(self.name, {spec: _weights(spec) for spec in specs.values()}, specs, modules)


FLOAT_QUANTIZED: Final = _FloatQuantized()


class _ForeignFloat8:
    """Float8 tensors as others store them: with `NAME_scale_inv` (DeepSeek), E5M2, or without any scale.

    Scales may be powers of two (E8M0), as in MXFP8.
    """

    name: Final = "float8"
    state: Final = "stored as float8"

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        return next((name for name, info in tensors.items() if _is_foreign(tensors, info)), None)

    def find(self, source: Source) -> Iterator[FormatWeight]:
        for name, info in source.tensors.items():
            if not _is_foreign(source.tensors, info):
                continue
            scales = (source.tensors.get(name + end) for end in ("_scale_inv", "_scale"))
            scale = next((each for each in scales if each is not None), None)
            if scale is None:
                yield FormatWeight(source, name, info.shape, FormatSpec(_FORMATS[info.dtype]), (name,))
            else:
                yield _weight(source, info, scale)


FOREIGN_FLOAT8: Final = _ForeignFloat8()


def _is_foreign(tensors: Mapping[str, TensorInfo], info: TensorInfo) -> bool:
    """Whether a tensor is float8 that no layout of compressed-tensors has; scales of other layouts are float8, too."""
    if info.dtype not in _FORMATS or info.name.endswith("_scale"):
        return False
    return not (info.dtype == "F8_E4M3" and is_weight(info.name) and f"{info.name}_scale" in tensors)


def _block(source: Source) -> int:
    """Return the block that config.json names (DeepSeek, compressed-tensors), or the usual one."""
    said = (source.config or {}).get("quantization_config")
    said = said if isinstance(said, Mapping) else {}
    groups = said.get("config_groups")
    weights = [group.get("weights") for group in _objects(groups.values() if isinstance(groups, Mapping) else ())]
    named = (said.get("weight_block_size"), *(each.get("block_structure") for each in _objects(weights)))
    block = next((each for each in named if each is not None), None)
    if block is None:
        return _BLOCK
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in block):
        raise FormatError(f"{source.path}: weight_block_size must be two numbers above 0, got {block!r:.80}")
    if block[0] != block[1]:
        raise UnsupportedError(f"{source.path}: weight_block_size {block} is not square, which is not supported")
    return int(block[0])


def _objects(values: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [each for each in values if isinstance(each, Mapping)]


def _weights(spec: FormatSpec) -> dict[str, Any]:
    block = None if spec.group_size is None else [_BLOCK, _BLOCK]
    strategy = {"strategy": "channel"} if block is None else {"strategy": "block", "block_structure": block}
    return {"num_bits": 8, "type": "float", "symmetric": True, **strategy, "dynamic": False}


def _matrix(source: Source, info: TensorInfo) -> tuple[int, int]:
    if len(info.shape) != 2:
        where = f"{source.path}: tensor {quote(info.name)}"
        raise UnsupportedError(f"{where}: weights of {len(info.shape)} axes are not supported")
    return info.shape[0], info.shape[1]


def _weight(source: Source, info: TensorInfo, scale: TensorInfo) -> FormatWeight:
    """Return a weight with scales, and with what says how the inputs of its layer are coded."""
    layer = info.name.removesuffix("weight")
    names = (f"{layer}{end}" for end in _OF_ACTIVATIONS)
    beside = tuple(name for name in names if layer != info.name and name in source.tensors)
    shape, spec = _matrix(source, info), _spec(source, info, scale)
    return FormatWeight(source, info.name, shape, spec, (info.name, scale.name), beside)


def _spec(source: Source, info: TensorInfo, scale: TensorInfo) -> FormatSpec:
    """Return what the shape of the scales says."""
    rows, columns = _matrix(source, info)
    where = f"{source.path}: tensor {quote(scale.name)}"
    if scale.dtype not in _SCALES:
        raise FormatError(f"{where} must be of {', '.join(_SCALES)}, got {scale.dtype}")
    format, block = _FORMATS[info.dtype], _block(source)
    blocks = FormatSpec(format, group_size=(block, block))
    if scale.shape in ((rows, 1), (rows,)) and rows > 1:
        return FormatSpec(format, axis=0)
    if scale.shape in ((), (1,), (1, 1)):
        return FormatSpec(format)
    if scale.shape == blocks.scale_shape(rows, columns):
        return blocks
    if len(scale.shape) == 2 and scale.shape[0] == rows and scale.shape[1] and columns % scale.shape[1] == 0:
        return FormatSpec(format, group_size=columns // scale.shape[1])
    raise FormatError(f"{where} must fit a weight {info.shape}, got shape {scale.shape}")
