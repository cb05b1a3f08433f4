"""Raising the opset of a model whose weights are not in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx import version_converter

from modelopt_rs._core import UnsupportedError
from modelopt_rs.errors import listing, quote

__all__ = ["raise_ir_version", "raise_opset"]

# Operators whose new version depends on a constant have small ones (shapes, axes, scales of Resize).
LARGE = 1024


def raise_opset(model: ir.Model, opset: int) -> None:
    """Convert a model to a later version of the standard operators, in place; nothing is read of its large tensors.

    Parameters
    ----------
    model : Model
    opset : int
        More than it has.

    Raises
    ------
    UnsupportedError
        If the library can't convert it; the model stays as it was.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.opset import raise_opset
    >>> x = ir.val("x", ir.DataType.FLOAT, [1])
    >>> y = ir.val("y", ir.DataType.FLOAT, [1])
    >>> node = ir.Node("", "Relu", [x], outputs=[y])
    >>> model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 13}, name="g"), ir_version=7)
    >>> raise_opset(model, 21)
    >>> model.graph.opset_imports[""], model.ir_version
    (21, 10)
    """
    if model.functions:
        names = listing([quote(f.name) for f in model.functions.values()])
        raise UnsupportedError(f"raise_opset: a model with functions ({names}) can't be converted to opset {opset}")
    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }
    with _elsewhere(model.graph, large):
        try:
            proto = version_converter.convert_version(ir.to_proto(model), opset)
            graph = ir.from_proto(proto).graph
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            text = f"raise_opset: onnx can't convert the model to opset {opset}: {quote(str(error))}"
            raise UnsupportedError(text) from error
    for name, tensor in large.items():
        graph.initializers[name].const_value = tensor
    graph.metadata_props.update(model.graph.metadata_props)  # which the converter does not know
    model.graph = graph
    raise_ir_version(model)


def raise_ir_version(model: ir.Model) -> None:
    """Let a model say an IR version that has its opsets, and initializers that are no inputs."""
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items() if d in ("", "ai.onnx.ml")]
    least = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, least, 4)


@contextmanager
def _elsewhere(graph: ir.Graph, large: dict[str, ir.TensorProtocol]) -> Iterator[None]:
    """While it lasts, let large tensors be in a file that is never read."""
    try:
        for name, tensor in large.items():
            shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]  # shapes of tensors have no symbols
            graph.initializers[name].const_value = ir.ExternalTensor(
                "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
        yield
    finally:
        for name, tensor in large.items():
            graph.initializers[name].const_value = tensor
