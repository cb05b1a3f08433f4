"""What a weight in a new form adds to a graph: tensors, and the bytes of the nodes that take them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import onnx_ir as ir

from modelopt_rs.containers.onnx import placeholder
from modelopt_rs.dtypes import DTYPES
from modelopt_rs.onnx.names import Names
from modelopt_rs.onnx.weight_only.coders import Coder
from modelopt_rs.onnx.weight_only.forms.form import SCALES, Form, StorageOptions, coding_of
from modelopt_rs.onnx.weight_only.nodes import InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weights import Role, Use, Weight
from modelopt_rs.stream.model import TensorInfo

__all__ = ["added_nbytes", "stored"]

FIELDS: Final = 12  # bytes of a tensor or a node in a file besides its name, its shape and its content


def stored(
    form: Form, use: Use, info: TensorInfo, storing: StorageOptions, names: Names
) -> tuple[QuantizedWeight, Coder]:
    """Add the tensors of a form, without values, to a graph; return them, and what makes the values.

    Parameters
    ----------
    form : Form
    use : Use
    info : TensorInfo
        The weight.
    storing : StorageOptions
    names : Names
        Those of the model that gets them.
    """
    coding = coding_of(form, use, info, storing)
    codes, scale, *points = (
        names.initializer(part.name, placeholder(part.name, ir.DataType(DTYPES[part.dtype].onnx), part.shape))
        for part in coding.outputs.infos()
    )
    if coding.outputs.scale.dtype != SCALES[form.dtype]:
        scale = names.cast(scale, form.dtype)
    point = points[0] if points else None
    weight = QuantizedWeight(shape=info.shape, bits=coding.bits, codes=codes, scale=scale, zero_point=point)
    return weight, form.coder(use, coding, storing.keep)


def added_nbytes(weight: Weight, info: TensorInfo, forms: Mapping[Role, Form], storing: StorageOptions) -> int:
    """Return how many bytes the nodes of a weight's forms, and its tensors' names, add to a model.

    Each node that takes it is rewritten in a graph of its own. Of small layers this is more than the codes take: those
    of a 3 x 3 convolution of 16 channels at 4 bits take 1.3 kB, and the nodes that make weights of them as much.
    """
    found = -_named(weight.name, len(info.shape))
    made: dict[Form, int] = {}
    for use in weight.uses:
        form = forms[use.role].stored_as(forms.values())
        graph, alone = _alone(use)
        model = ir.Model(graph, ir_version=10)
        before = _nbytes(graph)
        names = Names(model)
        quantized, _ = stored(form, alone, info, replace(storing, unused=names.unused), names)
        tensors = _nbytes(graph) - before
        forms[use.role].rewrite(alone, quantized, InsertedNodes(alone, names))
        found += _nbytes(graph) - before - (tensors if form in made else 0)
        made[form] = tensors
    return found


def _alone(use: Use) -> tuple[ir.Graph, Use]:
    """Return a graph of a node that is like that of a use, and the use there."""
    node = use.node
    values: dict[ir.Value, ir.Value] = {}
    for value in node.inputs:
        if value is not None and value not in values:
            values[value] = ir.Value(name=value.name, type=value.type, shape=value.shape)
    outputs = [ir.Value(name=value.name or None, type=value.type, shape=value.shape) for value in node.outputs]
    inputs = [None if value is None else values[value] for value in node.inputs]
    like = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs, name=node.name)
    graph = ir.Graph(list(values.values()), outputs, nodes=[like], opset_imports={"": 21}, name="alone")
    return graph, replace(use, node=like, inner=False)


def _nbytes(graph: ir.Graph) -> int:
    """Return the bytes of the nodes of a graph, and of what its tensors have besides codes and scales."""
    found = sum(ir.serde.serialize_node(node).ByteSize() + FIELDS // 4 for node in graph)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        found += _named(name, len(tensor.shape))
        if not isinstance(tensor, ir.LazyTensor):  # a constant, which is small
            found += tensor.nbytes
    return int(found)


def _named(name: str, axes: int) -> int:
    return FIELDS + len(name.encode()) + 2 * axes
