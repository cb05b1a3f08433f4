"""Layers between QuantizeLinear and DequantizeLinear: the standard's form, which runtimes fuse to integer kernels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelopt_rs.onnx.int8.build import Builder, drop_unused, insert_after, replace, skip
from modelopt_rs.onnx.int8.layers import Layer
from modelopt_rs.onnx.int8.placement import Placement, as_add, bounds

__all__ = ["Grid", "along", "float_bias", "quantize_layer", "quantize_values"]

SHAPES = ("Shape", "Size")


@dataclass(frozen=True, slots=True)
class Grid:
    """The codes of activations: ``x = (code - zero_point) * scale``, after ``x *= factor`` (of the last axis)."""

    scale: np.float32
    zero_point: np.uint8
    factor: NDArray[np.float32] | None = None


def quantize_values(
    model: ir.Model, build: Builder, placement: Placement, grids: Mapping[ir.Value, Grid], layers: Sequence[Layer]
) -> None:
    """Put QuantizeLinear and DequantizeLinear on every value of a placement.

    Parameters
    ----------
    model : Model
        Is changed.
    build : Builder
    placement : Placement
    grids : mapping
        For every root.
    layers : sequence of Layer
        Those that take the values which are not quantized for every node.
    """
    as_add(model.graph, placement)
    constants: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    in_bodies = {layer.node for layer in layers if layer.use.inner}
    for value, root in placement.roots.items():
        if root not in constants:
            constants[root] = (
                build.scalar(f"{root.name}_scale", grids[root].scale),
                build.scalar(f"{root.name}_zero_point", grids[root].zero_point),
            )
        whole = value in placement.whole
        takers = list(value.uses()) if whole else [(layer.node, 0) for layer in layers if layer.x is value]
        every = len(takers) == len(value.uses()) and (whole or not value.is_graph_output())
        cut = value.producer() if every and _cuts(value, grids[root]) else None
        # A runtime sees what it fuses in one graph only: a layer in a body has its own.
        homes = [node.graph if node in in_bodies else model.graph for node, _ in takers]
        for graph in dict.fromkeys([model.graph, *homes] if whole else homes):
            assert isinstance(graph, ir.Graph)
            codes, back = _quantize_value(graph, build, value, cut, constants[root], grids[root].factor)
            for (node, index), home in zip(takers, homes, strict=True):
                # A shape is that of the codes: it would not be worth to make numbers of them.
                if home is graph:
                    node.replace_input_with(index, codes if node.domain == "" and node.op_type in SHAPES else back)
            if whole and graph is model.graph and value.is_graph_output():
                _become_output(model.graph, build, value, back)
        if cut is not None:
            drop_unused(model, [value])


def _cuts(value: ir.Value, grid: Grid) -> bool:
    """Whether a Relu or Clip makes a value that cuts off no more than the grid does: then the grid is enough."""
    node = value.producer()
    found = None if node is None or grid.factor is not None else bounds(node)
    if found is None:
        return False
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    # A rounding of the last code is none of the clip's.
    return -zero_point * scale >= found[0] and (255 - zero_point) * scale <= found[1] * (1 + 1e-6)


def _quantize_value(
    graph: ir.Graph,
    build: Builder,
    value: ir.Value,
    cut: ir.Node | None,
    constants: tuple[ir.Value, ir.Value],
    factor: NDArray[np.float32] | None,
) -> tuple[ir.Value, ir.Value]:
    """Put a value, or what `cut` makes it of, on its grid and back; return the codes and the number that comes out."""
    name = str(value.name)
    nodes, start = [], value if cut is None else cut.inputs[0]
    if factor is not None:
        constant = build.constant(f"{name}_factor", factor)
        nodes = [build.node("Mul", [value, constant], [f"{name}_smoothed"], like=value)]
        start = nodes[0].outputs[0]
    codes = ir.DataType.UINT8
    there = build.node("QuantizeLinear", [start, *constants], [f"{name}_quantized"], like=value, dtype=codes)
    back = build.node("DequantizeLinear", [*there.outputs, *constants], [f"{name}_dequantized"], like=value)
    insert_after(graph, value, [*nodes, there, back])
    return there.outputs[0], back.outputs[0]


def _become_output(graph: ir.Graph, build: Builder, value: ir.Value, back: ir.Value) -> None:
    """Return another value from the graph by the same name."""
    name = value.name
    value.name = build.unused(f"{name}_float")
    back.name = name
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = back


def quantize_layer(
    model: ir.Model,
    build: Builder,
    layer: Layer,
    weight: tuple[ir.Value, ir.Value],
    bias: tuple[ir.Value, ir.Value] | None,
) -> None:
    """Give a layer its weight, and the bias within the node, as codes and scales.

    A MatMul with a bias within becomes a Gemm.

    Parameters
    ----------
    model : Model
        Is changed.
    build : Builder
    layer : Layer
        Its input is quantized already.
    weight, bias : (Value, Value)
        Codes of int8 and int32, and their scales.
    """
    node, name = layer.node, layer.weight.name
    codes, made = along(build, layer, weight[0])
    axis = 0 if layer.kind == "conv" or layer.transposed else 1
    # onnxruntime makes no QGemm of a weight without zero points.
    zeros = build.constant(f"{name}_zero_point", np.zeros(layer.outputs, np.int8))
    made.append(build.node("DequantizeLinear", [codes, weight[1], zeros], [f"{name}_dequantized"], {"axis": axis}))
    inputs = [node.inputs[0], made[-1].outputs[0]]
    if bias is not None:
        made.append(build.node("DequantizeLinear", [*bias], [f"{bias[0].name}_dequantized"], {"axis": 0}))
        inputs.append(made[-1].outputs[0])
    assert node.graph is not None
    node.graph.insert_before(node, made)
    old = [*node.inputs[1:], *(layer.add.inputs if layer.add is not None and bias is not None else [])]
    if layer.kind == "matmul" and bias is not None:
        replace(layer.add or node, build.node("Gemm", inputs, [str(layer.out.name)], like=layer.out))
    else:
        if len(inputs) > len(node.inputs):
            node.resize_inputs(len(inputs))
        for i, value in enumerate(inputs[1:], 1):
            node.replace_input_with(i, value)
    if layer.norm is not None:
        old += layer.norm.inputs[1:]
        skip(layer.norm)
    drop_unused(model, old)


def along(build: Builder, layer: Layer, codes: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """Return what codes are behind the Transposes that the weight goes through, which are folded at load, and those."""
    made = []
    for node in layer.use.chain:
        if node.op_type == "Transpose":
            made.append(build.node("Transpose", [codes], [f"{codes.name}_turned"], dict(node.attributes)))
            codes = made[-1].outputs[0]
    return codes, made


def float_bias(model: ir.Model, build: Builder, layer: Layer) -> None:
    """Give a MatMul its bias as it was changed: in its Add, or in a new one."""
    assert layer.bias is not None
    constant = build.constant(f"{layer.weight.name}_bias", layer.bias)
    if layer.add is not None:
        index = 1 if layer.add.inputs[0] is layer.node.outputs[0] else 0
        old = layer.add.inputs[index]
        layer.add.replace_input_with(index, constant)
        drop_unused(model, [old])
        return
    out, graph = layer.node.outputs[0], layer.node.graph
    assert graph is not None
    add = build.node("Add", [out, constant], [f"{out.name}_corrected"], like=out)
    insert_after(graph, out, [add])
    out.replace_all_uses_with(add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, out)
    name, add.outputs[0].name = out.name, out.name
    out.name = build.unused(f"{name}_uncorrected")
