"""`quantize_graph`: weights, and activations where that is asked for, in the form that fits each node."""

import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from modelopt_rs.onnx.int8.activations import quantize_activations
from modelopt_rs.onnx.int8.far_off import Watched
from modelopt_rs.onnx.weight_only.plan import Measure
from modelopt_rs.onnx.weight_only.rewrite import quantize_weights
from modelopt_rs.planning.decide import Decision, is_match
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["quantize_graph"]


def quantize_graph(
    model: ir.Model,
    tensors: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    *,
    path: str | os.PathLike[str] = "model.onnx",
    threads: int | None = None,
    max_memory: int | str = DEFAULT_MEMORY,
    measure: Measure | None = None,
    moments: Mapping[str, Moments] = MappingProxyType({}),
    watch: Watched | None = None,
) -> tuple[dict[str, Transform], dict[str, Decision]]:
    """Rewrite a graph to quantized weights, and to int8 layers where `onnx.activations` asks for them.

    What can't compute in int8 has its weights quantized alone; its reason says both.

    Parameters, errors and what is returned are those of `quantize_weights` and `quantize_activations`.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.onnx.quantize import quantize_graph
    >>> from modelopt_rs.planning.onnx import OnnxOptions
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> w = ir.val("w", const_value=ir.tensor(np.ones((64, 64, 1, 1), np.float32), name="w"))
    >>> x = ir.val("x", ir.DataType.FLOAT, [1, 64, 8, 8])
    >>> node = ir.node("Conv", [x, w], outputs=[ir.val("y")], name="c")
    >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17}, name="g")
    >>> tensors = {"w": TensorInfo("w", "F32", (64, 64, 1, 1), 16384)}
    >>> _, decisions = quantize_graph(
    ...     ir.Model(graph, ir_version=8), tensors, QuantizeOptions(), OnnxOptions(activations="dynamic")
    ... )
    >>> print(decisions["w"].reason)
    Cast and Mul, a scale for each output; Conv 'c': a Conv that quantizes its input in each call is slower than float32
    """
    max_memory = bytes_of("max_memory", max_memory)
    if onnx.activations == "none":
        more: Any = {"threads": threads, "max_memory": max_memory, "measure": measure, "moments": moments}
        return quantize_weights(model, tensors, options, onnx, **more)
    transforms, decisions = quantize_activations(model, tensors, options, onnx, path=path, threads=threads, watch=watch)
    left = {name: info for name, info in tensors.items() if name not in transforms}
    names = [*left, *(name for name, decision in decisions.items() if decision.action == "copy")]
    # Globs have been found to match something; here those that match what is left.
    exclude = [glob for glob in options.exclude if any(is_match(name, glob) for name in names)]
    rest = replace(options, include=(), exclude=exclude)
    others, reasons = quantize_weights(model, left, rest, onnx, threads=threads, max_memory=max_memory)
    for name, decision in reasons.items():
        if decision.action == "quantize":
            words = f"{decision.reason}; {decisions[name].reason}"
            decisions[name] = Decision("quantize", words, decisions[name].moved)
    return {**transforms, **others}, decisions
