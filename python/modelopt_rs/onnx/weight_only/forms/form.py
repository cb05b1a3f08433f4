"""What a form of a weight is. A new one is a module beside this one, and the line of `choice` that takes it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, Protocol

import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.dtypes import nbytes
from modelopt_rs.onnx.weight_only.coders import Coder
from modelopt_rs.onnx.weight_only.coding import Coding, Outputs
from modelopt_rs.onnx.weight_only.nodes import InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weights import Use
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.model import TensorInfo

__all__ = ["SCALES", "Form", "StorageOptions", "as_is", "coding_of", "in_words", "tensor"]

SCALES: Final = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """What is common to the tensors of one run.

    Attributes
    ----------
    options : QuantizeOptions
    threads : int or None
    keep : int
        The most bytes of a result that is turned to keep at a time.
    unused : callable
        Makes a name that no value of the graph has.
    moments : callable, optional
        What is known of the inputs of a product.
    """

    options: QuantizeOptions
    threads: int | None
    keep: int
    unused: Callable[[str], str]
    moments: Moments | None = None


class Form(Protocol):
    """How a weight is stored for a node, and how the node takes it.

    Forms that are equal have the same tensors: nodes share them. `opset` does not count.
    """

    @property
    def block(self) -> int:
        """Elements along the input axis that share a scale; 0: all."""

    @property
    def dtype(self) -> ir.DataType:
        """Of the scales, and of what the node takes."""

    @property
    def opset(self) -> int:
        """The least opset that has this form."""

    @property
    def domain(self) -> str:
        """The domain that it needs besides the standard's; empty: none."""

    @property
    def words(self) -> str:
        """The form in words."""

    def stored_as(self, others: Collection["Form"]) -> "Form":
        """Return the form whose tensors it takes: itself, or one of the others that its weight has."""

    def outputs(self, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
        """Return the tensors that stand for a weight."""

    def coder(self, use: Use, coding: Coding, keep: int) -> Coder:
        """Return what makes them."""

    def rewrite(self, use: Use, weight: QuantizedWeight, nodes: InsertedNodes) -> None:
        """Let a node take a weight in this form; what is left over of the old one is not removed here."""


def coding_of(form: Form, use: Use, info: TensorInfo, storing: StorageOptions) -> Coding:
    """Return how a weight is coded in a form; its scales may be stored in float16 though nodes take float32."""
    outputs = form.outputs(use, info, storing)
    if outputs.scale.dtype == "F32" and storing.options.has_half_scales:
        outputs = replace(outputs, scale=tensor(outputs.scale.name, "F16", outputs.scale.shape))
    return Coding(
        info=info,
        options=storing.options,
        block=form.block,
        outputs=outputs,
        threads=storing.threads,
        moments=storing.moments,
    )


def in_words(operators: str, block: int, otherwise: str = "a scale for each output") -> str:
    """Say what a form consists of."""
    return f"{operators}, blocks of {block}" if block else f"{operators}, {otherwise}"


def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    """Return a tensor that is made."""
    return TensorInfo(name, dtype, shape, nbytes(dtype, shape))


def as_is(array: Array) -> Array:
    """Return what is stored as it is made."""
    return array
