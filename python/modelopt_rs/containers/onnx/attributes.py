"""Numbers that stand in attributes of nodes: trees and support vectors, which are no tensors."""

from collections import Counter
from typing import Final

import onnx_ir as ir

from modelopt_rs.errors import quote

__all__ = ["attributes_in_words"]

MOST: Final = 3
"""How many operators are named."""
# About what protobuf takes for each: a tag besides.
_BYTES = {ir.AttributeType.FLOATS: 5, ir.AttributeType.INTS: 2}


def attributes_in_words(model: ir.Model, nbytes: int) -> tuple[str, ...]:
    """Say that lists in attributes are a third of a file or more, if they are: no operation changes these.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.containers.onnx.attributes import attributes_in_words
    >>> trees = ir.node("TreeEnsembleRegressor", [None], {"nodes_values": [0.5] * 1000}, domain="ai.onnx.ml")
    >>> model = ir.Model(ir.Graph([], trees.outputs, nodes=[trees]), ir_version=8)
    >>> attributes_in_words(model, 5050)[0][:77]
    '99 % of the file are numbers in attributes of TreeEnsembleRegressor, no tenso'
    """
    found = Counter[str]()
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            each = _BYTES.get(attribute.type)
            if each is not None and attribute.value is not None:
                found[node.op_type] += each * len(attribute.value)
    share = min(found.total() / max(nbytes, 1), 1.0)
    if 3 * share < 1:
        return ()
    operators = ", ".join(name if name.isidentifier() else quote(name) for name, _ in found.most_common(MOST))
    return (
        f"{100 * share:.0f} % of the file are numbers in attributes of {operators}, no tensors: "
        "nothing makes these smaller",
    )
