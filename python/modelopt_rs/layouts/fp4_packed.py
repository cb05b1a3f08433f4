"""The `mxfp4-pack-quantized` and `nvfp4-pack-quantized` layouts of compressed-tensors: E2M1 codes, two in a byte.

For a weight `NAME.weight` of shape [out, in] the file holds:

- `NAME.weight_packed`, U8 [out, in / 2]: the even column in the low bits;
- `NAME.weight_scale`: of MXFP4, U8 [out, in / 32], an exponent s of 2^(s - 127); of NVFP4, F8_E4M3 [out, in / 16];
- of NVFP4 `NAME.weight_global_scale`, F32 [1].

What loads it computes code * scale, of NVFP4 code * scale / global_scale, and needs the blocks to divide `in`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from modelopt_rs.errors import FormatError, quote
from modelopt_rs.layouts.compressed_tensors import config_of_formats
from modelopt_rs.layouts.format_codec import FormatEncoder, FormatWeight
from modelopt_rs.layouts.format_spec import FormatSpec, check_group_size
from modelopt_rs.layouts.modules import Modules
from modelopt_rs.layouts.two_level import TwoLevelEncoder
from modelopt_rs.stream.model import Source, TensorInfo, is_weight

__all__ = ["MXFP4", "NVFP4"]


class _Fp4Packed:
    """One of the two: they differ in the block, the dtype of its scale and whether there is a global scale."""

    state: Final = "quantized"
    names_weights: Final = True

    def __init__(self, name: str, format: str, block: int, scale_dtype: str) -> None:
        self.name, self.formats = name, (format,)
        self._block, self._scale_dtype, self._spec = block, scale_dtype, FormatSpec(format, group_size=block)
        self._has_global = format == "nvfp4"

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        return next((name for name in tensors if name.endswith("weight_packed")), None)

    def find(self, source: Source) -> Iterator[FormatWeight]:
        for name, info in source.tensors.items():
            weight = name.removesuffix("_packed")
            scale = source.tensors.get(f"{weight}_scale")
            if weight == name or not is_weight(weight) or info.dtype != "U8" or scale is None:
                continue
            if scale.dtype == self._scale_dtype:
                yield FormatWeight(source, weight, self._shape(source, info, scale), self._spec, self._parts(weight))

    def _parts(self, weight: str) -> tuple[str, ...]:
        parts = (f"{weight}_packed", f"{weight}_scale")
        return (*parts, f"{weight}_global_scale") if self._has_global else parts

    def _shape(self, source: Source, info: TensorInfo, scale: TensorInfo) -> tuple[int, int]:
        where = f"{source.path}: tensor {quote(info.name)}"
        weight = info.name.removesuffix("_packed")
        if weight in source.tensors or len(info.shape) != 2:
            raise FormatError(f"{where} must have 2 axes and be in place of {quote(weight)}")
        rows, columns = info.shape[0], 2 * info.shape[1]
        if columns % self._block or scale.shape != (rows, columns // self._block):
            raise FormatError(f"{where}: codes {info.shape} have no scales {scale.shape} of blocks of {self._block}")
        if self._has_global:
            whole = source.tensors.get(f"{weight}_global_scale")
            if whole is None or (whole.dtype, whole.nbytes) != ("F32", 4):
                raise FormatError(f"{where}: {quote(weight + '_global_scale')} must be there and be F32 (1,)")
        return rows, columns

    def spec(self, options: Any) -> FormatSpec:
        check_group_size(options, (self._block,))
        return self._spec

    def can_hold(self, info: TensorInfo) -> bool:
        return len(info.shape) == 2 and is_weight(info.name)

    def why_not(self, info: TensorInfo, spec: FormatSpec) -> str | None:
        if info.shape[1] % self._block:
            return f"rows of {info.shape[1]:,} are no multiple of the block of {self._block}"
        return None

    def encode(self, info: TensorInfo, spec: FormatSpec, options: Any, threads: int | None) -> FormatEncoder:
        rows, columns = info.shape
        blocks = columns // self._block
        outputs = [
            TensorInfo(f"{info.name}_packed", "U8", (rows, columns // 2), rows * columns // 2),
            TensorInfo(f"{info.name}_scale", self._scale_dtype, (rows, blocks), rows * blocks),
        ]
        if not self._has_global:
            return FormatEncoder(info, spec, outputs, options.nonfinite, threads)
        outputs.append(TensorInfo(f"{info.name}_global_scale", "F32", (1,), 4))
        return TwoLevelEncoder(info, spec, outputs, options.nonfinite, threads)

    def describe(
        self, specs: Mapping[str, FormatSpec], modules: Modules
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        strategy = "tensor_group" if self._has_global else "group"
        dtype = "torch.float8_e4m3fn" if self._has_global else "torch.uint8"
        weights = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": strategy,
            "group_size": self._block,
            "dynamic": False,
            "scale_dtype": dtype,
            "zp_dtype": dtype,
        }
        return {}, config_of_formats(self.name, dict.fromkeys(specs.values(), weights), specs, modules)


MXFP4: Final = _Fp4Packed("mxfp4-pack-quantized", "mxfp4", 32, "U8")
NVFP4: Final = _Fp4Packed("nvfp4-pack-quantized", "nvfp4", 16, "F8_E4M3")
