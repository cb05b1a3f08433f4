"""LSTMs that quantize their input and their state in every step: `DynamicQuantizeLSTM` of com.microsoft.

onnxruntime has no such kernel for GRU and RNN. Two layers of 256 in both directions, 100 steps of one sequence: float32
8.3 ms, signed codes 3.1, unsigned ones 5.7.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.int8.build import Builder, drop_unused
from modelopt_rs.onnx.int8.codes import ChannelCodes
from modelopt_rs.onnx.weight_only.nodes import MICROSOFT
from modelopt_rs.onnx.weights import Use
from modelopt_rs.stream.model import TensorInfo

__all__ = ["GateCodes", "partner", "quantize_lstm", "why_no_lstm"]

# The inputs of an LSTM that are its weights, and its attributes that the quantized one has.
WEIGHTS = (1, 2)
ATTRIBUTES = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")
PASSED = ("Identity", "Cast")


def why_no_lstm(use: Use, target: str) -> str | None:
    """Say why an LSTM can't take a weight as codes, or None.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.int8.recurrent import why_no_lstm
    >>> from modelopt_rs.onnx.weights import Use
    >>> node = ir.node("LSTM", [None, None, None], {"layout": 1})
    >>> why_no_lstm(Use(node, 1, "lstm", (), 2, 1, ir.DataType.FLOAT), "onnxruntime")
    'LSTM has layout 1, which onnxruntime has not'
    """
    return next(_problems(use, target), None)


def _problems(use: Use, target: str) -> Iterator[str]:
    if use.reason is not None:
        yield use.reason
    if use.dtype != ir.DataType.FLOAT:
        yield f"{use.where} computes in {use.dtype}: int8 kernels take float32"
    if target != "onnxruntime":
        yield f"{use.where}: DynamicQuantizeLSTM is onnxruntime's own; the target is {target}"
    if layout := use.node.attributes.get_int("layout", 0):
        yield f"{use.where} has layout {layout}, which onnxruntime has not"
    odd = next((node.op_type for node in use.chain if node.op_type not in PASSED), None)
    if odd is not None:
        yield f"{use.where} takes it behind {odd}"


def partner(use: Use) -> tuple[ir.Node, int]:
    """Return where the other weight of an LSTM goes in."""
    return use.node, sum(WEIGHTS) - use.index


class GateCodes(ChannelCodes):
    """The transform of a weight of an LSTM, [directions, gates, inputs], to int8 with a scale for each gate.

    Parameters
    ----------
    info : TensorInfo
    names : (str, str)
        Of the codes and of the scales.
    threads : int, optional

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.onnx.int8.recurrent import GateCodes
    >>> codes = GateCodes(TensorInfo("w", "F32", (1, 2, 2), 16), ("w_quantized", "w_scale"))
    >>> codes.begin(2)
    >>> dict(codes(np.array([[1.0, -0.5], [1.0, 1.0]], np.float32)))["w_quantized"]
    array([[127, -64],
           [ 64,  64]], dtype=int8)
    """

    def __init__(self, info: TensorInfo, names: tuple[str, str], *, threads: int | None = None) -> None:
        rows = math.prod(info.shape[:-1])
        super().__init__(replace(info, shape=(rows, info.shape[-1])), 0, names, threads=threads)
        self.outputs = [replace(self.outputs[0], shape=info.shape), *self.outputs[1:]]


def quantize_lstm(
    model: ir.Model, build: Builder, node: ir.Node, weights: Mapping[int, tuple[ir.Value, ir.Value]]
) -> None:
    """Let a DynamicQuantizeLSTM stand for an LSTM.

    Parameters
    ----------
    model : Model
        Is changed.
    build : Builder
    node : Node
    weights : mapping
        By input of the node, its codes and scales.
    """
    graph, name = node.graph, node.name or str(node.outputs[0].name)
    assert graph is not None
    made: list[ir.Node] = []
    codes, scales, zeros = [], [], []
    for index in WEIGHTS:
        code, scale = weights[index]
        directions, gates, _ = code.const_value.shape.numpy()  # type: ignore[union-attr]
        shape = build.constant(f"{name}_shape", np.array([directions, gates], np.int64))
        # Both are folded when the model is loaded.
        turned = build.node("Transpose", [code], [f"{code.name}_turned"], {"perm": [0, 2, 1]})
        shaped = build.node("Reshape", [scale, shape], [f"{scale.name}_shaped"])
        made += [turned, shaped]
        codes.append(turned.outputs[0])
        scales.append(shaped.outputs[0])
        zeros.append(build.constant(f"{name}_zero_point", np.zeros((directions, gates), np.int8)))
    others = [node.inputs[i] if i < len(node.inputs) else None for i in range(3, 8)]
    attributes = {key: a.value for key, a in node.attributes.items() if key in ATTRIBUTES}
    inputs = [node.inputs[0], *codes, *others, scales[0], zeros[0], scales[1], zeros[1]]
    # One that is left out has the empty name.
    outputs = [ir.Value(name=build.unused(f"{name}_output") if value.name else "") for value in node.outputs]
    new = ir.node("DynamicQuantizeLSTM", inputs, attributes, domain=MICROSOFT, outputs=outputs, name=build.unused(name))
    graph.insert_before(node, [*made, new])
    old_inputs = [node.inputs[i] for i in WEIGHTS]
    for old, output in zip(node.outputs, outputs, strict=True):
        wanted, output.type, output.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        old.name, output.name = None, wanted
    graph.remove(node, safe=True)
    drop_unused(model, old_inputs)
    model.graph.opset_imports.setdefault(MICROSOFT, 1)
