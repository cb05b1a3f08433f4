"""Functions of a model's own, put in the place of their calls: so that their weights and layers are the graph's."""

from collections import Counter
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from modelopt_rs.containers.onnx.mend import nodes_of

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model, proto: Any, max_nodes: int) -> ir.Model:
    """Put the nodes of functions in the place of their calls; where that can't be done all of them stay.

    They stay where one calls itself, has an operator that is another one in the model's version of its domain, gives an
    input of its own out as it is or a value twice, or makes more than `max_nodes` nodes.

    Parameters
    ----------
    model : onnx_ir.Model
        Is changed.
    proto : ModelProto
        What it was made of.
    max_nodes : int

    Returns
    -------
    onnx_ir.Model
    """
    if not model.functions or not all(_is_plain(function, proto) for function in proto.functions):
        return model
    if _nodes_after(proto, max_nodes) is None:
        return model
    _own_names(model)
    for function in model.functions.values():
        function.opset_imports.update({d: v for d, v in model.opset_imports.items() if d in function.opset_imports})
    try:
        InlinePass()(model)
    except Exception:  # whatever a call has that its function doesn't take
        restored: ir.Model = ir.from_proto(proto)
        return restored
    model.functions.clear()
    return model


def _is_plain(function: Any, proto: Any) -> bool:
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    others = {e.domain: e.version for e in function.opset_import if imports.get(e.domain, e.version) != e.version}
    same = all(_is_same(n, others[n.domain], imports[n.domain]) for n in nodes_of(function) if n.domain in others)
    outputs = list(function.output)
    return same and len(set(outputs)) == len(outputs) and not set(outputs) & set(function.input)


def _is_same(node: Any, *versions: int) -> bool:
    """Whether an operator is the same in two versions of its domain."""
    try:
        since = {onnx.defs.get_schema(node.op_type, version, node.domain).since_version for version in versions}
    except (onnx.defs.SchemaError, TypeError):  # or a version that is no int of C
        return False
    return len(since) == 1


def _nodes_after(proto: Any, max_nodes: int) -> int | None:
    """Return how many nodes a graph has without functions; None if they call each other, or are too many."""
    key = {(f.domain, f.name, f.overload): f for f in proto.functions}
    calls = {of: Counter((n.domain, n.op_type, n.overload) for n in nodes_of(f)) for of, f in key.items()}
    sizes: dict[tuple[str, str, str], int] = {}
    while len(sizes) < len(calls):
        ready = [
            of for of, inner in calls.items() if of not in sizes and all(c in sizes or c not in key for c in inner)
        ]
        if not ready:
            return None
        for of in ready:
            sizes[of] = sum(n * sizes.get(c, 1) for c, n in calls[of].items())
    total = sum(sizes.get((n.domain, n.op_type, n.overload), 1) for n in nodes_of(proto.graph))
    return total if total <= max_nodes else None


def _own_names(model: ir.Model) -> None:
    """Give values in functions names that no value of the graphs has: bodies of If and Loop see them afterwards."""
    taken = {value.name for graph in model.graphs() for node in graph for value in node.outputs}
    taken |= {value.name for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    for function in model.functions.values():
        for node in function.all_nodes():
            for value in node.outputs:
                if value.name in taken:
                    value.name = _unused(f"{function.name}_{value.name}", taken)


def _unused(wanted: str, taken: set[str | None]) -> str:
    name, i = wanted, 2
    while name in taken:
        name, i = f"{wanted}_{i}", i + 1
    taken.add(name)
    return name
