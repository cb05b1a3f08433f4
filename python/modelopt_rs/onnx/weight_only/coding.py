"""How a weight is coded: what shares a scale, and in what form codes and zero points are stored."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Format
from modelopt_rs.dtypes import is_packed, rounded
from modelopt_rs.layouts.packed_spec import PackedSpec
from modelopt_rs.layouts.row_quantizer import RowQuantizer, quantizer_buffers, scales_of
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant.by_inputs import ByInputs, Moments
from modelopt_rs.quant.search import Scales
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import TensorInfo

__all__ = ["Arrange", "Coding", "Outputs", "flat", "halves", "packed_rows"]

Arrange: TypeAlias = Callable[[Array], Array]

# Symmetric codes are made as q + 2^(bits-1); flipping their highest bits makes two's complement of them.
HIGHEST_BITS = {8: 0x80, 4: 0x88, 2: 0xAA}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The tensors that are made of a weight.

    Attributes
    ----------
    codes, scale : TensorInfo
    zero_point : TensorInfo or None
    codes_stored : callable
        Rows of packed codes, each beginning on a byte and unsigned, to the form that is stored.
    zero_points_stored : callable
        Zero points, a byte each, to the form that is stored.
    """

    codes: TensorInfo
    scale: TensorInfo
    zero_point: TensorInfo | None
    codes_stored: Arrange
    zero_points_stored: Arrange

    def infos(self) -> list[TensorInfo]:
        """Return the tensors."""
        return [info for info in (self.codes, self.scale, self.zero_point) if info is not None]

    def codes_written(self, codes: Array) -> list[tuple[str, Array]]:
        """Return what is written of rows of packed codes."""
        return [_rows_of(self.codes, self.codes_stored(codes))]

    def scale_written(self, scale: Array) -> list[tuple[str, Array]]:
        """Return what is written of scales."""
        return [_rows_of(self.scale, rounded(scale, self.scale.dtype))]

    def zero_points_written(self, zero_points: Array) -> list[tuple[str, Array]]:
        """Return what is written of zero points, if there are any."""
        return [] if self.zero_point is None else [_rows_of(self.zero_point, self.zero_points_stored(zero_points))]


def _rows_of(info: TensorInfo, array: Array) -> tuple[str, Array]:
    """Return a name and rows as a sink takes them: of sub-byte codes a flat stream."""
    whole = len(info.shape) > 1 and not is_packed(info.dtype)
    return info.name, array.reshape(-1, info.columns) if whole else array.reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How one tensor is quantized.

    Attributes
    ----------
    info : TensorInfo
    options : QuantizeOptions
    block : int
        Elements that share a scale, along the axis that a node sums over; 0: all of an output channel.
    outputs : Outputs
    threads : int or None
    moments : callable, optional
        What is known of the inputs of a product: codes are by `ByInputs`, of the whole weight.
    """

    info: TensorInfo
    options: QuantizeOptions
    block: int
    outputs: Outputs
    threads: int | None
    moments: Moments | None = None

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.options.bits

    @property
    def symmetric(self) -> bool:
        """Whether there are no zero points."""
        return self.options.spec.symmetric

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return self.info.nbytes // max(math.prod(self.info.shape), 1)

    @property
    def format(self) -> Format:
        """The format of the array functions."""
        return self._spec.format

    @property
    def scales(self) -> Scales:
        """Where scales come from: they are rounded as they are stored, but where float32 is asked for in vain."""
        options, dtype = self.options, self.outputs.scale.dtype
        found = Scales() if options.as_plain else scales_of(options.sought, dtype)
        return found if self.moments is None else ByInputs(found.search, found.dtype, self.moments)

    def rows_together(self, otherwise: int) -> int:
        """Return how many rows of the tensor must come together: all, where its inputs are known."""
        return otherwise if self.moments is None else self.info.rows

    def row_quantizer(self, rows: int, columns: int) -> RowQuantizer:
        """Make what quantizes a matrix in blocks of its rows."""
        info = replace(self.info, shape=(rows, columns), nbytes=rows * columns * self.item)
        return RowQuantizer(info, self._spec, rows, self.threads, self.options.nonfinite, self.scales)

    def row_buffers(self, columns: int, n: int, per: int) -> list[Buffer]:
        """Return what a `row_quantizer` of `n` rows for each `per` of a tile holds, and their input."""
        item = Buffer(f"u{self.item}", columns)
        found = [each.times(n, per) for each in (*quantizer_buffers(columns, self._spec), item)]
        # A matrix of second moments, as it is handed over, its factor and panels; weights as they are corrected.
        known = [Buffer("f8", 3 * columns**2, per=0), Buffer("f4", columns * n, per=per)]
        return found if self.moments is None else [*found, *known]

    @property
    def _spec(self) -> PackedSpec:
        return PackedSpec(self.bits, self.symmetric, self.block or None)


def packed_bytes(n: int, bits: int) -> int:
    """Return the bytes of `n` codes."""
    return -(-n * bits // 8)


def packed_rows(codes: Array, bits: int, threads: int | None) -> Array:
    """Pack codes, a byte each, along the last axis.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.weight_only.coding import packed_rows
    >>> packed_rows(np.array([[1, 2, 3]], np.uint8), 4, threads=1)
    array([[33,  3]], dtype=uint8)
    """
    if bits == 8:
        return codes
    out = np.empty((*codes.shape[:-1], packed_bytes(codes.shape[-1], bits)), np.uint8)
    _core.pack(np.ascontiguousarray(codes), bits, out, threads)
    return out


def unpacked_rows(packed: Array, bits: int, columns: int, threads: int | None = None) -> Array:
    """Unpack unsigned codes to a byte each.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.weight_only.coding import unpacked_rows
    >>> unpacked_rows(np.array([[33, 3]], np.uint8), 4, 3)
    array([[1, 2, 3]], dtype=uint8)
    """
    if bits == 8:
        return packed
    out = np.empty((*packed.shape[:-1], columns), np.uint8)
    _core.unpack(np.ascontiguousarray(packed), bits, columns, out, threads)
    return out


def flat(bits: int, columns: int, signed: bool, threads: int | None) -> Arrange:
    """Return what makes the flat packed tensor of ONNX out of rows of packed codes.

    Parameters
    ----------
    bits : {8, 4, 2}
    columns : int
        Codes of a row.
    signed : bool
        Store two's complement of codes that come as q + 2^(bits-1).
    threads : int, optional

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.weight_only.coding import flat
    >>> flat(4, 3, signed=False, threads=1)(np.array([[0x21, 3], [0x54, 6]], np.uint8))
    array([ 33,  67, 101], dtype=uint8)
    """
    return partial(_flat, bits, columns, signed, threads)


def _flat(bits: int, columns: int, signed: bool, threads: int | None, packed: Array) -> Array:
    n = packed.size * 8 // bits
    if columns * bits % 8:
        codes = unpacked_rows(packed, bits, columns, threads).reshape(1, -1)
        n = codes.size
        packed = packed_rows(codes, bits, threads)
    stream = np.ascontiguousarray(packed).reshape(-1)
    if signed:
        stream = stream ^ np.uint8(HIGHEST_BITS[bits])
        if n * bits % 8:
            stream[-1] &= (1 << n * bits % 8) - 1
    return stream.view(np.int8) if signed and bits == 8 else stream


def halves(bits: int, columns: int, threads: int | None = None) -> Arrange:
    """Return what puts the first part of a row's codes in the lowest bits of its bytes, the next above, and so on.

    So a shift and a mask give consecutive codes, and `Concat` a row.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.weight_only.coding import halves
    >>> halves(4, 4)(np.array([[0x21, 0x43]], np.uint8))
    array([[49, 66]], dtype=uint8)
    """
    return partial(_halves, bits, columns, threads)


def _halves(bits: int, columns: int, threads: int | None, packed: Array) -> Array:
    parts = 8 // bits
    codes = unpacked_rows(packed, bits, columns, threads).reshape(len(packed), parts, columns // parts)
    return packed_rows(codes.transpose(0, 2, 1), bits, threads)[..., 0]
