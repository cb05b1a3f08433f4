"""`MatMulNBits` of com.microsoft: a product with blocks of packed unsigned codes."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from modelopt_rs.onnx.weight_only.coders import Coder, Rows, Transposed
from modelopt_rs.onnx.weight_only.coding import Coding, Outputs, packed_bytes, packed_rows
from modelopt_rs.onnx.weight_only.forms.form import SCALES, Form, StorageOptions, as_is, in_words, tensor
from modelopt_rs.onnx.weight_only.nodes import MICROSOFT, InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weights import Use
from modelopt_rs.stream.model import TensorInfo

__all__ = ["MatMulNBits", "block_outputs"]


@dataclass(frozen=True, slots=True)
class MatMulNBits:
    """Codes of [outputs, blocks, bytes].

    Attributes
    ----------
    block : int
        Elements along the input axis that share a scale.
    dtype : DataType
        Of the scales, and of what the node takes.
    accuracy_level : int
        How the product is computed.
    transposed : bool
        Whether the weight lies as [inputs, outputs].
    opset : int
        The least opset that has this form.
    """

    block: int
    dtype: ir.DataType
    accuracy_level: int
    transposed: bool = False
    opset: int = field(default=7, compare=False)
    domain: ClassVar[str] = MICROSOFT

    @property
    def words(self) -> str:
        """The form in words."""
        return in_words("MatMulNBits", self.block)

    def stored_as(self, others: Collection[Form]) -> Form:
        """Return the form itself."""
        return self

    def outputs(self, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
        """Return the tensors that stand for a weight."""
        inputs, outputs = info.shape[use.in_axis], info.shape[use.out_axis]
        codes = (outputs, -(-inputs // self.block), self.block * storing.options.bits // 8)
        return block_outputs(info, codes, (outputs, -(-inputs // self.block)), SCALES[self.dtype], storing)

    def coder(self, use: Use, coding: Coding, keep: int) -> Coder:
        """Return what makes them: the last block of a row is filled up with zeros."""
        if self.transposed:
            return Transposed(coding, keep)
        inputs = coding.info.shape[use.in_axis]
        return Rows(coding, inputs, -(-inputs // self.block) * self.block)

    def rewrite(self, use: Use, weight: QuantizedWeight, nodes: InsertedNodes) -> None:
        """Let it stand for a MatMul or a Gemm."""
        attributes = {
            "K": weight.shape[use.in_axis],
            "N": weight.shape[use.out_axis],
            "bits": weight.bits,
            "block_size": self.block,
            "accuracy_level": self.accuracy_level,
        }
        nodes.take_product(nodes.add("MatMulNBits", [use.node.inputs[0], *weight.parts], attributes, MICROSOFT))


def block_outputs(
    info: TensorInfo, codes: tuple[int, ...], scales: tuple[int, int], dtype: str, storing: StorageOptions
) -> Outputs:
    """Return rows of blocks, packed, unsigned, as the operators of com.microsoft take them.

    Parameters
    ----------
    info : TensorInfo
    codes : tuple of int
        The shape of the codes' bytes.
    scales : tuple of int
        The shape of the scales, which is that of the zero points before they are packed.
    dtype : str
        Of the scales.
    storing : StorageOptions
    """
    bits, name = storing.options.bits, storing.unused
    zero_point = None
    if not storing.options.spec.symmetric:
        zero_point = tensor(name(f"{info.name}_zero_point"), "U8", (scales[0], packed_bytes(scales[1], bits)))
    return Outputs(
        codes=tensor(name(f"{info.name}_quantized"), "U8", codes),
        scale=tensor(name(f"{info.name}_scale"), dtype, scales),
        zero_point=zero_point,
        codes_stored=as_is,
        zero_points_stored=lambda points: packed_rows(points, bits, storing.threads),
    )
