"""Layers that can be computed in int8: a MatMul, Gemm or Conv with a constant weight, and its bias."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelopt_rs.onnx.weights import Use, Weight

__all__ = ["Layer", "as_layer", "constant_tensor", "constant_vector", "only_use", "rank_of"]

Vector = NDArray[np.float32]


@dataclass(slots=True, eq=False, kw_only=True)
class Layer:
    """One node with a constant weight, as it is to be computed.

    ``out = x @ (in_scale * w * out_scale) + bias``: what is folded into the weight before it is quantized.

    Attributes
    ----------
    weight : Weight
    use : Use
        Its one use here.
    x, out : Value
        What goes in; what comes out, bias included.
    add : Node or None
        The Add after a MatMul that has the bias.
    norm : Node or None
        The BatchNormalization after a Conv, which is folded into it.
    bias : ndarray of float32 or None
        For each output channel, as it will be.
    in_scale, out_scale : ndarray of float32 or None
        For each input and output channel.
    changed : bool
        Whether the bias is another than the model has.
    """

    weight: Weight
    use: Use
    x: ir.Value
    out: ir.Value
    add: ir.Node | None = None
    norm: ir.Node | None = None
    bias: Vector | None = None
    in_scale: Vector | None = None
    out_scale: Vector | None = None
    changed: bool = False

    @property
    def node(self) -> ir.Node:
        """The node that takes the weight."""
        return self.use.node

    @property
    def kind(self) -> str:
        """What the node does: "conv", "gemm" or "matmul"."""
        return self.use.kind

    @property
    def groups(self) -> int:
        """Of a Conv: how many groups of channels do not mix."""
        return self.node.attributes.get_int("group", 1)

    @property
    def inputs(self) -> int:
        """How many input channels there are."""
        return self.weight.shape[self.use.in_axis] * self.groups

    @property
    def outputs(self) -> int:
        """How many output channels there are."""
        return self.weight.shape[self.use.out_axis]

    @property
    def depthwise(self) -> bool:
        """Whether each output channel of a Conv is made of one input channel, and each input channel goes into one."""
        return self.kind == "conv" and self.inputs == self.groups == self.outputs

    def scale_inputs(self, factor: Vector) -> None:
        """Fold a factor of each input channel into the weight."""
        self.in_scale = factor if self.in_scale is None else self.in_scale * factor

    def scale_outputs(self, factor: Vector) -> None:
        """Fold a factor of each output channel into the weight and the bias."""
        self.out_scale = factor if self.out_scale is None else self.out_scale * factor
        if self.bias is not None:
            self.bias, self.changed = self.bias * factor, True

    @property
    def transposed(self) -> bool:
        """Whether a Gemm takes its weight as [out, in]."""
        return self.kind == "gemm" and self.node.attributes.get_int("transB", 0) != 0

    @property
    def channel_axis(self) -> int:
        """The axis of `x` and `out` that has the channels."""
        return 1 if self.kind == "conv" else -1


def as_layer(weight: Weight, use: Use) -> Layer | str:
    """Return the layer of a use of a weight, or why int8 can't compute it.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.int8.layers import as_layer
    >>> from modelopt_rs.onnx.weights import find_weights
    >>> w = ir.val("w", const_value=ir.tensor(np.ones((4, 8), np.float32), name="w"))
    >>> x = ir.val("x", ir.DataType.FLOAT, [1, 4])
    >>> node = ir.node("MatMul", [x, w])
    >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17})
    >>> [weight] = find_weights(ir.Model(graph, ir_version=8))
    >>> layer = as_layer(weight, weight.uses[0])
    >>> layer.kind, layer.inputs, layer.outputs
    ('matmul', 4, 8)
    """
    reason = next(_problems(use), None)
    if reason is not None:
        return reason
    node = use.node
    x = node.inputs[0]
    assert x is not None
    layer = Layer(weight=weight, use=use, x=x, out=node.outputs[0])
    if use.kind == "matmul":
        _take_add(layer)
    elif len(node.inputs) > 2 and node.inputs[2] is not None:
        layer.bias = constant_vector(node.inputs[2], layer.outputs)
        if layer.bias is None:
            return f"{use.where} has a bias that is no constant for each output"
    if use.kind == "conv" and len(weight.uses) == 1:
        _take_norm(layer)
    return layer


def _problems(use: Use) -> Iterator[str]:
    if use.reason is not None:
        yield use.reason
    if use.kind == "lstm":
        yield f"{use.where}: onnxruntime has an int8 kernel for dynamic activations only"
    if use.kind not in ("matmul", "gemm", "conv") or use.node.domain != "":
        yield f"{use.where}: onnxruntime has no int8 kernel for it"
    if use.dtype != ir.DataType.FLOAT:
        yield f"{use.where} computes in {use.dtype}: int8 kernels take float32"
    x = use.node.inputs[0]
    if x is None or x.is_initializer():
        yield f"{use.where} takes nothing but constants"
    for name in ("alpha", "beta"):
        attribute = use.node.attributes.get(name)
        if use.kind == "gemm" and attribute is not None and attribute.as_float() != 1.0:
            yield f"{use.where} has {name} {attribute.as_float():g}"


def only_use(value: ir.Value) -> ir.Node | None:
    """Return the one node that takes a value, if nothing else does and the graph does not return it."""
    uses = value.uses()
    return None if len(uses) != 1 or value.is_graph_output() else next(iter(uses))[0]


def constant_vector(value: ir.Value | None, length: int) -> Vector | None:
    """Return the float32 numbers of a constant that has one for each of `length` channels, on the last axis."""
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    shape = tuple(tensor.shape.numpy())
    if tensor.dtype != ir.DataType.FLOAT or not shape or shape[-1] != length or any(n != 1 for n in shape[:-1]):
        return None
    return np.array(tensor.numpy(), np.float32).reshape(length)


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return what an initializer or a Constant has, also behind Identity: torch's exporter writes equal ones once.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.int8.layers import constant_tensor
    >>> bias = ir.val("b", const_value=ir.tensor(np.ones(3, np.float32)))
    >>> constant_tensor(ir.node("Identity", [bias]).outputs[0]).shape.numpy()
    (3,)
    """
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    if value is None or value.is_graph_input():
        return None
    return value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)


def _take_add(layer: Layer) -> None:
    """Find the Add of a constant bias after a MatMul."""
    node = only_use(layer.out)
    if node is None or node.domain != "" or node.op_type != "Add":
        return
    other = node.inputs[1] if node.inputs[0] is layer.out else node.inputs[0]
    bias = constant_vector(other, layer.outputs)
    tensor = constant_tensor(other)
    # One of more axes than the product has would give it some.
    if bias is not None and tensor is not None and len(tensor.shape) <= max(rank_of(layer.x), 1):
        layer.add, layer.bias, layer.out = node, bias, node.outputs[0]


def _take_norm(layer: Layer) -> None:
    """Fold a BatchNormalization after a Conv: ``(y - mean) * scale / sqrt(var + epsilon) + bias``."""
    node = only_use(layer.out)
    if node is None or node.domain != "" or node.op_type != "BatchNormalization" or len(node.outputs) != 1:
        return
    vectors = [constant_vector(value, layer.outputs) for value in node.inputs[1:]]
    epsilon = node.attributes.get("epsilon")
    if any(vector is None for vector in vectors) or node.attributes.get_int("training_mode", False):
        return
    scale, bias, mean, var = (np.asarray(vector, np.float64) for vector in vectors)
    factor = scale / np.sqrt(var + (1e-5 if epsilon is None else epsilon.as_float()))
    before = 0.0 if layer.bias is None else layer.bias.astype(np.float64)
    layer.bias, layer.changed = ((before - mean) * factor + bias).astype(np.float32), True
    layer.out_scale, layer.norm, layer.out = factor.astype(np.float32), node, node.outputs[0]


def rank_of(value: ir.Value) -> int:
    """Return how many axes a value has; 0 where the graph does not tell."""
    return 0 if value.shape is None else len(value.shape)
