"""Layers that quantize their input in every call: DynamicQuantizeLinear and MatMulInteger.

onnxruntime makes one DynamicQuantizeMatMul of all that stands here for a layer, bias included. A Conv is left alone:
it has no such kernel, and ran four times slower than float32.
"""

import onnx_ir as ir

from modelopt_rs.onnx.int8.build import Builder, drop_unused, insert_after, replace
from modelopt_rs.onnx.int8.layers import Layer
from modelopt_rs.onnx.int8.static import along

__all__ = ["Dynamic"]


class Dynamic:
    """Rewrites the layers of one model.

    Parameters
    ----------
    model : Model
        Is changed.
    build : Builder
    """

    def __init__(self, model: ir.Model, build: Builder) -> None:
        self._model, self._build = model, build
        self._shared: set[ir.Node] = set()

    def quantize_layer(self, layer: Layer, weight: tuple[ir.Value, ir.Value]) -> None:
        """Compute a MatMul or Gemm in integers: ``(x codes @ w codes) * (x scale * w scale) + bias``.

        Parameters
        ----------
        layer : Layer
        weight : (Value, Value)
            Codes of int8, and their scales.
        """
        node, build, out = layer.node, self._build, layer.node.outputs[0]
        name = str(out.name)
        graph = node.graph
        assert graph is not None
        codes, made = along(build, layer, weight[0])
        if layer.transposed:
            made.append(build.node("Transpose", [codes], [f"{codes.name}_turned"], {"perm": [1, 0]}))
            codes = made[-1].outputs[0]
        x, x_scale, x_zero = self._quantized(node).outputs
        int32 = ir.DataType.INT32
        product = build.node("MatMulInteger", [x, codes, x_zero], [f"{name}_integer"], like=out, dtype=int32)
        number = build.node("Cast", product.outputs, [f"{name}_unscaled"], {"to": ir.DataType.FLOAT}, like=out)
        scale = build.node("Mul", [x_scale, weight[1]], [f"{name}_scale"])
        last = build.node("Mul", [*number.outputs, *scale.outputs], [name], like=out)
        made += [product, number, scale]
        if layer.kind == "gemm" and layer.bias is not None:
            bias = build.constant(f"{layer.weight.name}_bias", layer.bias)
            made.append(last)
            last = build.node("Add", [*last.outputs, bias], [name], like=out)
        old = [value for value in node.inputs[1:] if value is not None]
        graph.insert_before(node, made)
        replace(node, last)
        drop_unused(self._model, old)

    def _quantized(self, node: ir.Node) -> ir.Node:
        """Return what quantizes the input of a node: one for all layers of a graph that take it."""
        x, graph = node.inputs[0], node.graph
        assert x is not None
        assert graph is not None
        found = next((user for user, _ in x.uses() if user in self._shared and user.graph is graph), None)
        if found is None:
            outputs = [f"{x.name}_{part}" for part in ("quantized", "scale", "zero_point")]
            found = self._build.node("DynamicQuantizeLinear", [x], outputs)
            producer = x.producer()
            if producer.graph is graph if producer is not None else x.is_graph_input() and x.graph is graph:
                insert_after(graph, x, [found])
                self._shared.add(found)
            else:
                graph.insert_before(node, found)
        return found
