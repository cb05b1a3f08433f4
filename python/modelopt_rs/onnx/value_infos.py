"""What a graph says of the types of its inner values: nothing that its file did not say. Runtimes infer them anyway."""

from collections.abc import Collection, Iterator

import onnx_ir as ir

__all__ = ["forget_value_infos", "names_of_value_infos"]


def names_of_value_infos(model: ir.Model) -> frozenset[str]:
    """Return the names of the inner values whose types or shapes are told.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.value_infos import forget_value_infos, names_of_value_infos
    >>> x, y = ir.val("x", ir.DataType.FLOAT, [2]), ir.val("y", ir.DataType.FLOAT, [2])
    >>> nodes = [ir.Node("", "Relu", [x], name="a", outputs=[y]), ir.Node("", "Relu", [y], name="b", num_outputs=1)]
    >>> model = ir.Model(ir.Graph([x], nodes[1].outputs, nodes=nodes, opset_imports={"": 17}), ir_version=8)
    >>> sorted(names_of_value_infos(model))
    ['y']
    >>> forget_value_infos(model, ())
    >>> names_of_value_infos(model)
    frozenset()
    """
    return frozenset(str(value.name) for value in _inner(model) if value.shape is not None or value.type is not None)


def forget_value_infos(model: ir.Model, keep: Collection[str]) -> None:
    """Forget the types and shapes of inner values, but those of the names `keep`.

    Parameters
    ----------
    model : Model
        Is changed.
    keep : collection of str
        What `names_of_value_infos` gave of the model as it was read.
    """
    for value in _inner(model):
        if value.name not in keep:
            value.shape = value.type = None


def _inner(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (value for node in graph for value in node.outputs if not value.is_graph_output())
