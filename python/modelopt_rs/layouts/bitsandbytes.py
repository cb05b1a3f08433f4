"""The 4-bit layout of bitsandbytes (NF4 and FP4), which transformers loads.

For a weight `NAME.weight` of shape [out, in], whose elements lie one after the other in blocks of B (the last may be
short), the file holds:

- `NAME.weight`, U8 [ceil(out * in / 2), 1]: two codes in a byte, the even element in the HIGH bits;
- `NAME.weight.absmax`, F32 [blocks]; or U8, quantized in turn, with `nested_absmax` and `nested_quant_map`;
- `NAME.weight.quant_map`, F32 [16]: the numbers of the codes;
- `NAME.weight.quant_state.bitsandbytes__nf4` (or `__fp4`), U8: JSON with quant_type, blocksize, dtype, shape and, of
  nested scales, nested_blocksize, nested_dtype, nested_offset.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.containers.strict_json import parse_object
from modelopt_rs.dtypes import DTYPES, FLOATS, nbytes, numpy_dtype
from modelopt_rs.errors import FormatError, UnsupportedError, quote
from modelopt_rs.layouts.format_spec import FormatSpec, check_group_size
from modelopt_rs.layouts.modules import Modules
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import Source, TensorInfo, Tile, is_weight
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["BITSANDBYTES"]

BLOCK: Final = 64
_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE = 4096  # bytes of JSON


def swapped(codes: Array) -> Array:
    """Return bytes with their halves changed over: element 0 is in the low bits here, in the high ones there."""
    return np.asarray(codes << np.uint8(4) | codes >> np.uint8(4))


class BlockEncoder(Transform):
    """A matrix, its elements one after the other, to codes and scales of blocks.

    Parameters
    ----------
    info : TensorInfo
        A matrix of floats.
    spec : FormatSpec
    nonfinite : {"raise", "saturate"}
    threads : int or None
    """

    def __init__(self, info: TensorInfo, spec: FormatSpec, nonfinite: str, threads: int | None) -> None:
        self._info, self._spec, self._nonfinite, self._threads = info, spec, nonfinite, threads
        elements, name = math.prod(info.shape), info.name
        blocks, codes = -(-elements // BLOCK), -(-elements // 2)
        self._state = np.frombuffer(
            json.dumps(
                {
                    "quant_type": spec.format,
                    "blocksize": BLOCK,
                    "dtype": DTYPES[info.dtype].word,
                    "shape": list(info.shape),
                }
            ).encode(),
            np.uint8,
        )
        self.outputs: Sequence[TensorInfo] = [
            TensorInfo(name, "U8", (codes, 1), codes),
            TensorInfo(f"{name}.absmax", "F32", (blocks,), 4 * blocks),
            TensorInfo(f"{name}.quant_map", "F32", (16,), 64),
            TensorInfo(f"{name}{_STATE}{spec.format}", "U8", (len(self._state),), len(self._state)),
        ]
        # Tiles begin where blocks do.
        self.row_multiple = BLOCK // math.gcd(info.columns, BLOCK)
        whole = self.row_multiple * info.columns
        self.buffers: Sequence[Buffer] = (
            Buffer("u1", whole, per=self.row_multiple),  # codes, as they are made and changed over
            Buffer("f4", whole // BLOCK, per=self.row_multiple),
            Buffer("f4", whole, per=self.row_multiple),
        )
        self.figures = ErrorFigures()

    def __call__(self, array: Array) -> Rows:
        """Quantize a tile."""
        x, dtype = array.reshape(1, -1), FLOATS[self._info.dtype]
        codes = np.empty((1, -(-x.size // 2)), np.uint8)
        scale, dense = np.empty((1, -(-x.size // BLOCK)), np.float32), np.empty(x.shape, np.float32)
        spec, parts = (self._spec.format, None, BLOCK), (codes, scale, None, None, None)
        _core.quantize(x, parts, spec, self._nonfinite, None, dtype, self._threads)
        _core.dequantize(parts, spec, dense, None, self._threads)
        self.figures += ErrorFigures(*_core.error_stats(x, dense, dtype, self._threads))
        return [
            (self.outputs[0].name, swapped(codes).reshape(-1, 1)),
            (self.outputs[1].name, scale.reshape(-1)),
        ]

    def end(self) -> Rows:
        """Return the numbers of the codes, and what says how they lie."""
        return [(self.outputs[2].name, codebook(self._spec.format)), (self.outputs[3].name, self._state)]

    def starts(self, row: int) -> Mapping[str, int] | None:
        """Return the row of each output."""
        element = row * self._info.columns
        codes, absmax, quant_map, state = (info.name for info in self.outputs)
        return {codes: element // 2, absmax: element // BLOCK, quant_map: 0, state: 0}


def codebook(format: str) -> Array:
    """Return the numbers of the 16 codes of a format.

    Examples
    --------
    >>> from modelopt_rs.layouts.bitsandbytes import codebook
    >>> codebook("nf4")[[0, 7, 15]]
    array([-1.,  0.,  1.], dtype=float32)
    """
    codes = np.array([[i | (i + 1) << 4 for i in range(0, 16, 2)]], np.uint8)
    numbers = np.empty((1, 16), np.float32)
    parts = (codes, np.ones((1, 1), np.float32), None, None, None)
    _core.dequantize(parts, (format, None, BLOCK), numbers, None, None)
    return np.ascontiguousarray(numbers[0])


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """One weight that a source has in blocks of 4-bit codes."""

    source: Source
    name: str
    shape: tuple[int, int]
    spec: FormatSpec
    block: int
    nested: tuple[int, float] | None
    """Elements of a block of scales, and what is added to all."""

    @property
    def parts(self) -> Sequence[str]:
        """The source's tensors that stand for it; it shows in the place of the codes."""
        more = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        named = (f"{self.name}.{part}" for part in more if f"{self.name}.{part}" in self.source.tensors)
        return (self.name, *named, f"{self.name}{_STATE}{self.spec.format}")

    @property
    def words(self) -> str:
        """How it is stored, for people."""
        return self.spec.words

    def info(self, dtype: str) -> TensorInfo:
        """Return the weight as it shows, in this dtype."""
        return TensorInfo(self.name, dtype, self.shape, nbytes(dtype, self.shape))

    def buffers(self, dtype: str) -> Sequence[Buffer]:
        """Return what reading holds besides a tile."""
        blocks = -(-math.prod(self.shape) // self.block)
        # Codes, as they are and changed over; scales of the whole tensor.
        return Buffer("u1", self.shape[1]), Buffer("f4", 2 * blocks, per=0)

    def tiles(self, dtype: str, max_bytes: int, threads: int | None) -> Iterator[Tile]:
        """Yield the weight's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        rows, columns = self.shape
        together = self.block // math.gcd(columns, self.block)
        step = max(1, min(rows, max_bytes // self.info(dtype).row_nbytes) // together) * together
        out = np.empty((min(step, rows), columns), numpy_dtype(dtype))
        absmax, spec = self._absmax(), (self.spec.format, None, self.block)
        for tile in self.source.tiles(self.name, step * columns // 2):
            first = 2 * tile.first_row // columns
            dense = out[: min(step, rows - first)]
            begin = first * columns // self.block
            scale = absmax[begin : begin + -(-dense.size // self.block)].reshape(1, -1)
            parts = (swapped(tile.array).reshape(1, -1), scale, None, None, None)
            _core.dequantize(parts, spec, dense.reshape(1, -1), FLOATS[dtype], threads)
            yield Tile(first, dense)

    def _absmax(self) -> Array:
        """Return the scales of all blocks; they must be finite."""
        absmax = self.source.read(f"{self.name}.absmax").reshape(-1)
        if self.nested is not None:
            block, offset = self.nested
            outer = self.source.read(f"{self.name}.nested_absmax").reshape(-1)
            numbers = self.source.read(f"{self.name}.nested_quant_map").reshape(-1)
            absmax = numbers[absmax] * np.repeat(outer, block)[: len(absmax)] + np.float32(offset)
        scale = np.ascontiguousarray(absmax, np.float32)
        if not np.isfinite(scale).all():
            where = f"{self.source.path}: tensor {quote(self.name + '.absmax')}"
            raise FormatError(f"{where} block {int((~np.isfinite(scale)).argmax()):,}: scale is not a finite number")
        return scale


class _BitsAndBytes:
    name: Final = "bitsandbytes"
    state: Final = "quantized"
    formats: Final = ("nf4", "fp4")
    names_weights: Final = False

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        return next((name for name in tensors if _STATE in name), None)

    def find(self, source: Source) -> Iterator[BlockWeight]:
        for name in source.tensors:
            weight, found, format = name.rpartition(_STATE)
            if found and format in self.formats and is_weight(weight):
                yield _read_state(source, weight, format)

    def spec(self, options: Any) -> FormatSpec:
        check_group_size(options, (BLOCK,))
        return FormatSpec(options.format, group_size=BLOCK)

    def can_hold(self, info: TensorInfo) -> bool:
        return len(info.shape) == 2 and is_weight(info.name)

    def why_not(self, info: TensorInfo, spec: FormatSpec) -> str | None:
        return None

    def encode(self, info: TensorInfo, spec: FormatSpec, options: Any, threads: int | None) -> BlockEncoder:
        return BlockEncoder(info, spec, options.nonfinite, threads)

    def describe(
        self, specs: Mapping[str, FormatSpec], modules: Modules
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        format = next((spec.format for spec in specs.values()), "nf4")
        return {}, {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": format,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_use_double_quant": False,
            "llm_int8_skip_modules": _skipped(specs, modules),
        }


BITSANDBYTES: Final = _BitsAndBytes()


def _skipped(specs: Mapping[str, FormatSpec], modules: Modules) -> list[str]:
    """Return what is left alone: for transformers by a regular expression, for others by names and parts of them."""
    quantized = [name.removesuffix(".weight") for name in specs]
    named = [
        name
        for name in modules.others(specs)
        if not any(module.endswith(name) or module.startswith(name + ".") for module in quantized)
    ]
    return [f"(?!{'|'.join(modules.patterns(specs))}).*$", *named]


def _read_state(source: Source, weight: str, format: str) -> BlockWeight:
    """Read what stands beside a weight; the tensors must fit it."""
    name = f"{weight}{_STATE}{format}"
    where = f"{source.path}: tensor {quote(name)}"
    info = source.tensors[name]
    if info.dtype != "U8" or info.nbytes > _MAX_STATE:
        raise FormatError(f"{where} must be U8 of at most {_MAX_STATE:,} bytes, got {info.dtype} {info.shape}")
    state = parse_object(source.read(name).tobytes(), where)
    shape, block = state.get("shape"), state.get("blocksize")
    fits = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not fits or type(block) is not int or block not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        raise FormatError(f"{where}: shape must be integers, blocksize a power of two, got {quote(str(state))}")
    assert isinstance(shape, list)
    if len(shape) != 2:
        raise UnsupportedError(f"{where}: weights of {len(shape)} axes are not supported")
    nested = None
    if "nested_blocksize" in state:
        size, offset = state["nested_blocksize"], state.get("nested_offset")
        if type(size) is not int or size < 1 or not isinstance(offset, int | float):
            raise FormatError(f"{where}: nested_blocksize and nested_offset must be numbers, got {quote(str(state))}")
        nested = (size, float(offset))
    _check_tensors(source, weight, (math.prod(shape), block), nested)
    return BlockWeight(source, weight, (shape[0], shape[1]), FormatSpec(format, group_size=block), block, nested)


def _check_tensors(source: Source, weight: str, size: tuple[int, int], nested: tuple[int, float] | None) -> None:
    elements, block = size
    blocks = -(-elements // block)
    want = {weight: ("U8", -(-elements // 2)), f"{weight}.absmax": ("F32", 4 * blocks)}
    if nested is not None:
        want[f"{weight}.absmax"] = ("U8", blocks)
        want[f"{weight}.nested_absmax"] = ("F32", 4 * -(-blocks // nested[0]))
        want[f"{weight}.nested_quant_map"] = ("F32", 1024)
    for name, (dtype, count) in want.items():
        info = source.tensors.get(name)
        if info is None or (info.dtype, info.nbytes) != (dtype, count):
            got = "none" if info is None else f"{info.dtype} {info.shape}"
            raise FormatError(f"{source.path}: tensor {quote(name)} must be {dtype} of {count:,} bytes, got {got}")
