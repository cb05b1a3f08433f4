"""What operators meant in former opsets, where onnx's converter forgets it."""

from typing import Final, TypeAlias

import onnx
import onnx_ir as ir

from modelopt_rs.containers.onnx.tensors import is_lazy

__all__ = ["WRONG", "Attributes", "drop_ignored", "former_attributes", "say"]

Attributes: TypeAlias = dict[str, dict[str, str]]

WRONG: Final = {"GroupNormalization": (18, 21), "Hardmax": (1, 13), "Scan": (8, 9)}
"""The operators that the converter leaves as they are though they mean something else: since and from when."""
RESIZED: Final = 11
"""From when on a Resize says how it finds its places; before, onnxruntime's were these (and those of Upsample)."""
_PLACES: Final = {"coordinate_transformation_mode": "asymmetric"}


def former_attributes(graph: ir.Graph, have: int, opset: int) -> Attributes | str:
    """Return what nodes must say in an opset to mean what they did, by their first output; or why it can't be said.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.former_operators import former_attributes
    >>> x, s = ir.val("x"), ir.val("s", const_value=ir.tensor([1.0, 1.0, 2.0, 2.0], name="s"))
    >>> node = ir.node("Resize", [x, s], outputs=[ir.val("y")])
    >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[s], opset_imports={"": 10}, name="g")
    >>> former_attributes(graph, 10, 21)
    {'y': {'coordinate_transformation_mode': 'asymmetric', 'nearest_mode': 'floor'}}
    """
    found: Attributes = {}
    for node in graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        since, another = WRONG.get(node.op_type, (0, 0))
        if since <= have < another <= opset:
            return f"{node.op_type} has another meaning in it"
        if node.op_type in ("Resize", "Upsample") and have < RESIZED <= opset:
            said = _places(node)
            if said is None:
                return "Resize takes the nearest by scales that are not known to enlarge or to reduce all axes"
            if found.setdefault(str(node.outputs[0].name), said) != said:
                return f"two nodes of different meaning in it make {str(node.outputs[0].name)!r}"
    return found


def _places(node: ir.Node) -> dict[str, str] | None:
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "nearest":
        return _PLACES
    scales = _scales(node)
    if node.op_type == "Upsample" or (scales is not None and min(scales, default=1) >= 1):
        return {**_PLACES, "nearest_mode": "floor"}
    return {**_PLACES, "nearest_mode": "ceil"} if scales is not None and max(scales) <= 1 else None


def _scales(node: ir.Node) -> list[float] | None:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or value.const_value is None or value.is_graph_input() or is_lazy(value.const_value):
        return None
    return [float(each) for each in value.const_value.numpy().reshape(-1)]


def say(graph: ir.Graph, attributes: Attributes) -> None:
    """Let nodes of a converted graph say what `former_attributes` has found."""
    for node in graph.all_nodes():
        if node.op_type == "Resize" and node.outputs and node.outputs[0].name in attributes:
            for name, text in attributes[str(node.outputs[0].name)].items():
                node.attributes.add(ir.AttrString(name, text))


def drop_ignored(graph: onnx.GraphProto) -> None:
    """Drop attributes that operators of former opsets may have and don't look at: later ones don't take them."""
    graphs = [graph]
    while graphs:
        for node in graphs.pop().node:
            graphs.extend(each.g for each in node.attribute if each.HasField("g"))
            mode = next((each.s for each in node.attribute if each.name == "mode"), b"constant")
            if node.op_type == "Pad" and node.domain in ("", "ai.onnx") and mode != b"constant":
                kept = [each for each in node.attribute if each.name != "value"]
                del node.attribute[:]
                node.attribute.extend(kept)
