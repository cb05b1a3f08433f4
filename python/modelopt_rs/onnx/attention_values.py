"""Which layers make the values of an attention: what its weights, out of a softmax, are multiplied with."""

from collections.abc import Callable, Iterator
from typing import Final

import onnx_ir as ir

__all__ = ["makes_attention_values"]

# Operators of attention, and which of their inputs are values.
FUSED: Final = {"Attention": 2, "MultiHeadAttention": 2, "GroupQueryAttention": 2}
# What values go through on their way: a bias, heads that are parted, repeated and turned, states of words before.
AFTER: Final = {
    "Add", "Cast", "Concat", "Dropout", "Expand", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"
}  # fmt: skip
# What stands between a softmax and the product.
BEFORE: Final = {"Cast", "Dropout", "Identity", "IsNaN", "Mul", "Reshape", "Transpose", "Where"}
STEPS: Final = 64  # nodes that are looked at, in each direction


def makes_attention_values(node: ir.Node) -> bool:
    """Whether what a layer makes is the values of an attention.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.attention_values import makes_attention_values
    >>> x, w, scores = ir.val("x"), ir.val("w"), ir.val("scores")
    >>> layer = ir.node("MatMul", [x, w])
    >>> product = ir.node("MatMul", [ir.node("Softmax", [scores]).outputs[0], layer.outputs[0]])
    >>> makes_attention_values(layer), makes_attention_values(product)
    (True, False)
    """
    return any(_takes_values(value, taker, index) for value, taker, index in _takers(node))


def _takers(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Node, int]]:
    """Yield what takes the output of a layer, and which of its inputs that is."""
    values, seen = list(node.outputs[:1]), {node}
    while values:
        value = values.pop()
        for taker, index in value.uses():
            yield value, taker, index
            if taker.op_type in AFTER and taker not in seen and len(seen) < STEPS:
                seen.add(taker)
                values.extend(taker.outputs[:1])


def _takes_values(value: ir.Value, taker: ir.Node, index: int) -> bool:
    if taker.op_type == "MatMul":
        scores = taker.inputs[0]
        return index == 1 and scores is not None and scores is not value and _is_from(scores, _is_softmax)
    # The operator of com.microsoft of that name takes weights and input instead.
    own = taker.domain == "" if taker.op_type == "Attention" else taker.domain == "com.microsoft"
    return own and FUSED.get(taker.op_type) == index


def _is_softmax(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "Softmax"


def _is_from(value: ir.Value, wanted: Callable[[ir.Node], bool]) -> bool:
    """Whether a value comes out of a node of some kind, by what may stand between."""
    values: list[ir.Value] = [value]
    seen: set[ir.Node] = set()
    while values and len(seen) < STEPS:
        node = values.pop().producer()
        if node is None or node in seen:
            continue
        if wanted(node):
            return True
        seen.add(node)
        if node.op_type in BEFORE:
            values.extend(each for each in node.inputs if each is not None)
    return False
