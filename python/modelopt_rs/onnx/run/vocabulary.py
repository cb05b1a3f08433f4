"""How many ids the inputs of a model may have: the lengths of the tables that they are looked up in."""

from typing import Final

import onnx_ir as ir

__all__ = ["vocabulary"]

# Which input of an operator has the ids, and which the table.
LOOK_UPS: Final[dict[str, tuple[int, int]]] = {
    "Gather": (1, 0),
    "GatherElements": (1, 0),
    "GatherBlockQuantized": (1, 0),
    "EmbedLayerNormalization": (0, 2),
}
# What hands ids on without changing them.
CARRIERS: Final = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice")


def vocabulary(model: ir.Model) -> dict[str, int]:
    """Return how many rows the smallest table has that an input is looked up in, by input.

    Parameters
    ----------
    model : onnx_ir.Model

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.run.vocabulary import vocabulary
    >>> ids = ir.val("ids", ir.DataType.INT64, ["n"])
    >>> table = ir.val("table", ir.DataType.FLOAT, [30522, 384])
    >>> node = ir.node("Gather", [table, ids])
    >>> graph = ir.Graph([ids], node.outputs, nodes=[node], initializers=[table])
    >>> vocabulary(ir.Model(graph, ir_version=8))
    {'ids': 30522}
    """
    limits: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.op_type not in LOOK_UPS:
            continue
        at, of = LOOK_UPS[node.op_type]
        if len(node.inputs) <= max(at, of):
            continue
        ids, rows = _source(node.inputs[at]), _rows(node, node.inputs[of])
        if ids is not None and ids.name is not None and ids in model.graph.inputs and rows:
            limits[ids.name] = min(rows, limits.get(ids.name, rows))
    return limits


def _source(value: ir.Value | None) -> ir.Value | None:
    """Return where ids come from."""
    while value is not None and (node := value.producer()) is not None and node.op_type in CARRIERS:
        value = node.inputs[0]
    return value


def _rows(node: ir.Node, table: ir.Value | None) -> int:
    """Return how long a table is along the axis of the look-up; 0 where that is not known."""
    if table is None or table.shape is None or table.producer() is not None:
        return 0
    axis = next((node.attributes[name].as_int() for name in ("axis", "gather_axis") if name in node.attributes), 0)
    length = table.shape[axis] if -len(table.shape) <= axis < len(table.shape) else 0
    return length if isinstance(length, int) else 0
