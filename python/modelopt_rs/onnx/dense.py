"""The weights of a quantized graph as numbers again, by the names that they had in the graph that it was made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.onnx.weight_only.coding import unpacked_rows
from modelopt_rs.onnx.weights import Use, find_weights

__all__ = ["DenseWeight", "dense_weights"]

PACKED = ("MatMulNBits", "GatherBlockQuantized")


@dataclass(frozen=True, slots=True, eq=False)
class DenseWeight:
    """A weight that is stored as codes.

    Attributes
    ----------
    name : str
        What it was called before it was quantized.
    shape : tuple of int
        Its shape then.
    parts : tuple of str
        The initializers that stand for it.
    use : Use or None
        How a node took it then.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    use: Use | None
    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None

    @property
    def nbytes(self) -> int:
        """The bytes of what stands for it."""
        parts = (self.codes, self.scale, self.zero_point)
        return sum(part.const_value.nbytes for part in parts if part is not None and part.const_value is not None)

    def read(self) -> Array | None:
        """Return it as float32 in its old shape; None where the form is not known."""
        users = self._users()
        packed = next((node for node in users if node.op_type in PACKED), None)
        # Codes of several forms in one are those of the first that is known.
        codes = _numbers(self.codes)
        if packed is not None:
            dense = _of_rows(self._rows(codes), self._columns(len(codes)), packed.attributes.get_int("bits", 4))
        elif any(node.op_type == "Gather" for node in users):
            dense = self._of_table(codes)
        else:
            dense = self._in_place(codes, next((node for node in users if node.op_type == "DequantizeLinear"), None))
        return self._turned(dense) if dense is not None and dense.size == math.prod(self.shape) else None

    def blocks(self, most: int) -> Iterator[tuple[int, int, Array]]:
        """Yield it in blocks of at most so many numbers, each with its axis and where it begins there; nothing if it is
        larger, and of a form that is only known whole.
        """
        packed = next((node for node in self._users() if node.op_type in PACKED), None)
        whole = math.prod(self.shape)
        if whole <= most or packed is None or len(self.shape) != 2:
            dense = self.read() if whole <= most else None
            if dense is not None:
                yield 0, 0, dense
            return
        codes = _numbers(self.codes)
        parts, rows = self._rows(codes), len(codes)
        columns = self._columns(rows)
        is_turned, step = self._is_turned((rows, columns)), max(most // columns, 1)
        for at in range(0, rows, step):
            some = [None if part is None else part[at : at + step] for part in parts]
            block = _of_rows(some, columns, packed.attributes.get_int("bits", 4))
            if block is None:
                return
            yield int(is_turned), at, block.T if is_turned else block

    def _users(self) -> list[ir.Node]:
        """The nodes that take the codes, behind those that only move them."""
        users = [node for node, _ in self.codes.uses()]
        while users and users[0].op_type in ("Reshape", "Transpose") and users[0].outputs[0].uses():
            users = [node for node, _ in users[0].outputs[0].uses()] + users[1:]
        return users

    def _columns(self, rows: int) -> int:
        return math.prod(self.shape) // max(rows, 1)

    def _rows(self, codes: Array) -> list[Array | None]:
        """Codes, scales and zero points by rows."""
        zero_point = None if self.zero_point is None else _numbers(self.zero_point)
        parts = (codes, _numbers(self.scale), zero_point)
        return [None if part is None else part.reshape(len(codes), -1) for part in parts]

    def _of_table(self, codes: Array) -> Array | None:
        """Rows that are gathered, then unpacked and multiplied."""
        rows, columns = self.shape
        bits = 8 * codes.size // max(rows * columns, 1)
        scale = _numbers(self.scale)
        groups = scale.size // max(rows, 1)
        if bits not in (2, 4, 8) or columns % max(groups, 1):
            return None
        zero: Any = 0 if bits == 8 else 1 << (bits - 1)
        if self.zero_point is not None:
            zero = _numbers(self.zero_point).reshape(rows, groups, 1)
        # The lowest bits of all bytes of a row are its first numbers.
        parts = [(codes >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)] if bits < 8 else [codes]
        numbers = np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)[:, :columns]
        return _dense(numbers.reshape(rows, groups, -1), scale.reshape(rows, groups, 1), zero)

    def _in_place(self, codes: Array, node: ir.Node | None) -> Array | None:
        """Codes that lie as a weight does, scales that broadcast, or for each index or block of an axis."""
        scale = _numbers(self.scale)
        zero: Any = 0 if self.zero_point is None else _numbers(self.zero_point)
        axis = 1 if node is None else node.attributes.get_int("axis", 1)
        block = 0 if node is None else node.attributes.get_int("block_size", 0)
        if scale.ndim == codes.ndim + 1:  # blocks as an axis
            return self._of_blocks(codes, scale, zero)
        if block:
            scale, zero = (_repeated(each, block, axis, codes.shape[axis]) for each in (scale, zero))
        elif scale.ndim == 1 and codes.ndim > 1:
            if node is None:
                long = [i for i in (0, 1) if codes.shape[i] == len(scale)]
                out = self.use.out_axis if self.use is not None else 0
                axis = out if out in long else long[0] if long else 0
            along = tuple(-1 if i == axis else 1 for i in range(codes.ndim))
            scale, zero = (np.reshape(each, along) if np.ndim(each) == 1 else each for each in (scale, zero))
        try:
            return _dense(codes, scale, zero)
        except ValueError:  # scales that do not broadcast: somebody else's form
            return None

    def _of_blocks(self, codes: Array, scale: Array, zero: Any) -> Array | None:
        """Codes whose blocks are an axis of the scales; the last block of an axis may be shorter."""
        whole, shape = codes.shape, scale.shape
        around = [
            (shape[:i], shape[i + 1], shape[i + 2 :]) == (whole[:i], 1, whole[i + 1 :]) for i in range(codes.ndim)
        ]
        at = around.index(True) if True in around else None
        if at is None:
            return None
        # Where blocks are repeated for a shorter last one, the graph says how long they are.
        takers = [node for node, _ in self.scale.uses()]
        takers += [node for each in takers if each.op_type == "Cast" for node, _ in each.outputs[0].uses()]
        expand = next((node for node in takers if node.op_type == "Expand"), None)
        sizes = None if expand is None else ir.convenience.get_const_tensor(expand.inputs[1])  # type: ignore[arg-type]
        if sizes is None and whole[at] % shape[at]:
            return None
        block = whole[at] // shape[at] if sizes is None else int(sizes.numpy()[at + 1])
        scale, zero = (np.squeeze(each, at + 1) if np.ndim(each) else each for each in (scale, zero))
        scale, zero = (_repeated(each, block, at, whole[at]) for each in (scale, zero))
        return _dense(codes, scale, zero)

    def _turned(self, dense: Array) -> Array:
        """Give it the axes that it had."""
        if len(self.shape) != 2 or dense.ndim != 2:
            return dense.reshape(self.shape)
        return dense.T if self._is_turned(dense.shape) else dense

    def _is_turned(self, shape: tuple[int, ...]) -> bool:
        """Whether its rows are columns of what it was."""
        if shape[0] != shape[1] or self.use is None:
            return shape != self.shape
        users = {node.op_type for node, _ in self.codes.uses()}
        # Rows of blocks are outputs; what is before a MatMul has them as columns.
        if "MatMulNBits" in users:
            return self.use.in_axis == 0
        if "DequantizeLinear" in users and self.use.kind == "gemm":
            return self.use.in_axis == 1 and not _before_gemm(self.codes)
        return False


def _of_rows(parts: Sequence[Array | None], columns: int, bits: int) -> Array | None:
    """Rows of blocks, packed, unsigned; what is past the end of a row is dropped."""
    codes, scale, zero_point = parts
    assert codes is not None
    assert scale is not None
    numbers = unpacked_rows(codes, bits, codes.shape[1] * 8 // bits)
    groups = scale.shape[1]
    zero: Any = 1 << (bits - 1)
    if zero_point is not None:
        zero = unpacked_rows(zero_point, bits, groups)[:, :groups, None]
    if numbers.shape[1] % groups:
        return None
    blocks = numbers.reshape(len(codes), groups, -1)
    return _dense(blocks, scale[:, :, None], zero).reshape(len(codes), -1)[:, :columns]


def _before_gemm(codes: ir.Value) -> bool:
    return any(user.op_type == "Gemm" for node, _ in codes.uses() for user, _ in node.outputs[0].uses())


def dense_weights(before: ir.Model, after: ir.Model) -> list[DenseWeight]:
    """Find the weights of a graph that another one, which was made of it, has as codes.

    Parameters
    ----------
    before, after : Model
        A weight ``w`` of the first that the second lacks is ``w_quantized`` with ``w_scale`` and, where codes have one,
        ``w_zero_point`` there: the names that are given here and by onnxruntime.

    Returns
    -------
    list of DenseWeight

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.dense import dense_weights
    >>> def graph(**arrays):
    ...     values = [ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()]
    ...     return ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 17}), ir_version=8)
    >>> codes, scale = np.array([[3, -4]], np.int8), np.array([[0.5]], np.float32)
    >>> weights = dense_weights(graph(w=codes * scale), graph(w_quantized=codes, w_scale=scale))
    >>> weights[0].name, weights[0].read()
    ('w', array([[ 1.5, -2. ]], dtype=float32))
    """
    uses = {weight.name: weight.uses[0] for weight in find_weights(before)}
    there = after.graph.initializers
    found = []
    for name, value in before.graph.initializers.items():
        codes, scale = there.get(f"{name}_quantized"), there.get(f"{name}_scale")
        if name in there or codes is None or scale is None or value.const_value is None:
            continue
        zero_point = there.get(f"{name}_zero_point")
        parts = [part for part in (codes, scale, zero_point) if part is not None]
        shape = tuple(int(n) for n in value.const_value.shape.numpy())
        names = tuple(str(part.name) for part in parts)
        found.append(DenseWeight(name, shape, names, uses.get(name), codes, scale, zero_point))
    return found


def _numbers(value: ir.Value) -> Array:
    assert value.const_value is not None
    array = value.const_value.numpy()
    return array if array.dtype.kind in "iuf" else array.astype(np.int8 if "u" not in array.dtype.name else np.uint8)


def _dense(codes: Array, scale: Array, zero: Any) -> Array:
    numbers = codes.astype(np.float32)
    numbers -= np.asarray(zero, np.float32)
    numbers *= scale.astype(np.float32)
    return numbers


def _repeated(array: Any, block: int, axis: int, length: int) -> Any:
    if np.ndim(array) == 0:
        return array
    along: Sequence[slice] = [slice(None)] * axis
    return np.repeat(array, block, axis=axis)[(*along, slice(length))]
