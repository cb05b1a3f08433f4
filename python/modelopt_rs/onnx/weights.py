"""Where the weights of an ONNX model stand: which initializers are the weight of which nodes.

A weight may be used by several nodes, also in the bodies of If, Loop and Scan, directly or behind Transpose, Cast and
Identity; its axes are told as they are stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import onnx_ir as ir

from modelopt_rs.dtypes import DTYPES, FLOATS
from modelopt_rs.errors import quote

__all__ = ["ONNX_FLOATS", "QUANTIZED", "RECURRENT", "Role", "Use", "Weight", "find_weights", "why_no_weight"]

Kind: TypeAlias = Literal[
    "matmul", "gemm", "conv", "convtranspose", "gather", "lstm", "gru", "rnn", "batched", "einsum", "fused", "tables"
]
RECURRENT: Final = ("lstm", "gru", "rnn")
Role: TypeAlias = tuple[Kind, int, int, ir.DataType, bool]
"""How a node takes a weight: its kind, its (in, out) axes, its dtype, whether it stands in a body."""

# By domain and operator: what it is here, which of its inputs are weights, the (in, out) axes of a weight.
OPERATORS: Final[dict[tuple[str, str], tuple[Kind, tuple[int, ...], tuple[int, int]]]] = {
    ("", "MatMul"): ("matmul", (0, 1), (0, 1)),
    ("", "Gemm"): ("gemm", (0, 1), (0, 1)),
    ("", "Conv"): ("conv", (1,), (1, 0)),
    ("", "ConvTranspose"): ("convtranspose", (1,), (0, 1)),
    ("", "Gather"): ("gather", (0,), (1, 0)),
    ("", "LSTM"): ("lstm", (1, 2), (2, 1)),
    ("", "GRU"): ("gru", (1, 2), (2, 1)),
    ("", "RNN"): ("rnn", (1, 2), (2, 1)),
    ("", "Einsum"): ("einsum", (0, 1), (0, 1)),
    ("com.microsoft", "Attention"): ("fused", (1,), (0, 1)),
    ("com.microsoft", "FusedConv"): ("conv", (1,), (1, 0)),
    ("com.microsoft", "FusedGemm"): ("fused", (1,), (0, 1)),
    ("com.microsoft", "FusedMatMul"): ("fused", (1,), (0, 1)),
    ("com.microsoft", "PackedAttention"): ("fused", (1,), (0, 1)),
    ("com.microsoft", "MoE"): ("fused", (2, 4, 6), (1, 0)),  # of each expert
    ("com.microsoft", "EmbedLayerNormalization"): ("tables", (2, 3, 4), (1, 0)),
}
PASSED = ("Transpose", "Cast", "Identity")
ONNX_FLOATS = frozenset(ir.DataType(DTYPES[name].onnx) for name in FLOATS)
CODES = tuple(ir.DataType[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (8, 4, 2))
# What takes codes or their scales: such a weight is quantized already.
QUANTIZED = (
    "DequantizeLinear",
    "QuantizeLinear",
    "MatMulNBits",
    "GatherBlockQuantized",
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QAttention",
    "QEmbedLayerNormalization",
)


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One node that takes a weight.

    Attributes
    ----------
    node : Node
    index : int
        Which of its inputs the weight is.
    kind : str
        "matmul", "gemm", "conv", "convtranspose", "gather", "lstm", "gru", "rnn"; "batched" (a MatMul of weights of
        more than two axes, or that stand on the left, and what a Gemm with transA takes), "einsum", "fused" (of
        com.microsoft) or "tables" (of EmbedLayerNormalization).
    chain : tuple of Node
        The Transpose, Cast and Identity between the initializer and the node, in order.
    in_axis, out_axis : int
        The axes of the stored tensor over which the node sums, and that make its output (of a table: the columns and
        the rows).
    dtype : DataType
        Of the weight as the node takes it.
    inner : bool
        Whether the node stands in the body of an If, Loop or Scan.
    reason : str or None
        Why the node can't take a quantized weight.
    """

    node: ir.Node
    index: int
    kind: Kind
    chain: tuple[ir.Node, ...]
    in_axis: int
    out_axis: int
    dtype: ir.DataType
    inner: bool = False
    reason: str | None = None

    @property
    def role(self) -> Role:
        """How the node takes the weight: two that do it alike take the same form."""
        return self.kind, self.in_axis, self.out_axis, self.dtype, self.inner

    @property
    def where(self) -> str:
        """The node as messages name it."""
        operator = operator_of(self.node)
        return f"{operator} {quote(self.node.name)}" if self.node.name else operator


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """An initializer that is the weight of a node, or of several.

    Attributes
    ----------
    name : str
    value : Value
    uses : tuple of Use
    others : tuple of str
        What else uses it: operators, "output" for an output of the graph.
    """

    name: str
    value: ir.Value
    uses: tuple[Use, ...]
    others: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What its first node does."""
        return self.uses[0].kind

    @property
    def in_axis(self) -> int:
        """The axis that its first node sums over."""
        return self.uses[0].in_axis

    @property
    def out_axis(self) -> int:
        """The axis that makes the output of its first node."""
        return self.uses[0].out_axis

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that is stored."""
        return stored_shape(self.value)


def operator_of(node: ir.Node) -> str:
    """Return a node's operator as messages show it: it comes from a file."""
    return node.op_type if node.op_type.isidentifier() and len(node.op_type) < 64 else quote(node.op_type)


def stored_shape(value: ir.Value) -> tuple[int, ...]:
    """Return the shape of an initializer."""
    assert value.const_value is not None
    return ir.Shape(value.const_value.shape).numpy()  # type: ignore[arg-type]  # shapes of tensors have no symbols


def find_weights(model: ir.Model) -> list[Weight]:
    """Find the initializers that are the weight of a node in `OPERATORS`: of a MatMul, a Conv, a Gather and so on.

    Parameters
    ----------
    model : Model
        All its weights are initializers of the main graph; nodes of subgraphs refer to them by name.

    Returns
    -------
    list of Weight
        In the order of the graph's initializers; each once, with all its uses.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.weights import find_weights
    >>> w = ir.val("w", const_value=ir.tensor(np.ones((4, 8), np.float32), name="w"))
    >>> x = ir.val("x", ir.DataType.FLOAT, [1, 4])
    >>> node = ir.node("MatMul", [x, w])
    >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17})
    >>> [(weight.name, weight.kind) for weight in find_weights(ir.Model(graph, ir_version=8))]
    [('w', 'matmul')]
    """
    found = []
    for name, value in model.graph.initializers.items():
        if value.const_value is None or value.const_value.dtype not in ONNX_FLOATS:
            continue
        uses, others = _follow(value, model.graph)
        if uses:
            found.append(Weight(name, value, tuple(uses), tuple(others)))
    return found


def why_no_weight(model: ir.Model, name: str) -> str:
    """Say why a tensor is the weight of no node."""
    value = model.graph.initializers.get(name)
    return "not in the graph" if value is None else other_use(value)


def other_use(value: ir.Value) -> str:
    """Say what an initializer that is no weight is used for."""
    users = sorted({operator_of(node) for node, _ in value.uses()})
    quantized = next((user for user in users if user in QUANTIZED), None)
    if users == ["Cast"] and value.dtype in CODES:
        quantized = "Cast"
    if quantized:
        return f"quantized already ({quantized})"
    return f"no weight: used by {', '.join(users)}" if users else "no weight: not used"


def _follow(value: ir.Value, main: ir.Graph) -> tuple[list[Use], list[str]]:
    """Return the uses of an initializer as a weight, and what else it is used for."""
    assert value.const_value is not None
    uses: list[Use] = []
    others: list[str] = []
    axes = tuple(range(len(stored_shape(value))))
    pending: list[tuple[ir.Value, tuple[ir.Node, ...], tuple[int, ...], ir.DataType]]
    pending = [(value, (), axes, value.const_value.dtype)]
    while pending:
        at, chain, axes, dtype = pending.pop(0)
        if at.is_graph_output():
            others.append("output")
        for node, index in sorted(at.uses(), key=lambda use: (use[0].name or "", use[0].op_type, use[1])):
            step = _passed(node, axes, dtype)
            if step is not None:
                pending.append((node.outputs[0], (*chain, node), *step))
            elif index in OPERATORS.get((node.domain, node.op_type), ((), (), ()))[1]:
                use = _use(node, index, chain, axes, dtype)
                uses.append(replace(use, inner=node.graph is not main))
            else:
                others.append(operator_of(node))
    return uses, others


def _passed(node: ir.Node, axes: tuple[int, ...], dtype: ir.DataType) -> tuple[tuple[int, ...], ir.DataType] | None:
    """Return the axes and the dtype behind a node that a weight passes through; None for any other node."""
    if node.domain != "" or node.op_type not in PASSED:
        return None
    if node.op_type == "Transpose":
        attribute = node.attributes.get("perm")
        order = list(attribute.as_ints()) if attribute is not None else list(reversed(range(len(axes))))
        return (tuple(axes[i] for i in order), dtype) if len(order) == len(axes) else None
    if node.op_type == "Cast":
        attribute = node.attributes["to"]
        if attribute.type != ir.AttributeType.INT:  # before opset 6 it is a word
            return None
        to = ir.DataType(attribute.as_int())
        return (axes, to) if to in ONNX_FLOATS else None
    return axes, dtype


def _use(node: ir.Node, index: int, chain: tuple[ir.Node, ...], axes: tuple[int, ...], dtype: ir.DataType) -> Use:
    kind, _, (in_axis, out_axis) = OPERATORS[node.domain, node.op_type]
    rank = len(axes)
    if kind in ("gemm", "fused") and node.attributes.get_int("transB", False):
        in_axis, out_axis = out_axis, in_axis
    if kind in ("matmul", "gemm") and index == 0 and rank > 1:  # whose rows are its outputs
        turned, kind, in_axis, out_axis = kind == "gemm", "batched", rank - 1, rank - 2
        if turned and node.attributes.get_int("transA", False):
            in_axis, out_axis = out_axis, in_axis
    elif kind == "gemm" and node.attributes.get_int("transA", False):  # of what no operator of blocks takes turned
        kind = "batched"
    elif kind == "matmul" and rank > 2:
        kind, in_axis, out_axis = "batched", rank - 2, rank - 1
    elif kind == "fused" and rank > 2:
        in_axis, out_axis = in_axis + rank - 2, out_axis + rank - 2
    labels = _einsum_axes(node, index, rank) if kind == "einsum" else None
    if labels is not None:
        in_axis, out_axis = labels
    reason = next(_problems(node, index, kind, rank), None)
    if reason is None and kind == "einsum" and labels is None:
        reason = "an Einsum that does not sum over an axis of it and keep another"
    if max(in_axis, out_axis) < rank:
        in_axis, out_axis = axes[in_axis], axes[out_axis]
    return Use(node, index, kind, chain, in_axis, out_axis, dtype, reason=reason)


def _einsum_axes(node: ir.Node, index: int, rank: int) -> tuple[int, int] | None:
    """Return an axis of a weight that an Einsum sums over, and one that only this operand has and the result keeps."""
    attribute = node.attributes.get("equation")
    terms, arrow, result = ("" if attribute is None else attribute.as_string()).replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or "." in terms or len(operands) != 2 or len(node.inputs) != 2:
        return None
    if len(operands[index]) != rank:
        return None
    own, other = operands[index], operands[1 - index]
    summed = [i for i, letter in enumerate(own) if letter in other and letter not in result]
    made = [i for i, letter in enumerate(own) if letter not in other and letter in result]
    return (summed[0], made[-1]) if summed and made else None


def _problems(node: ir.Node, index: int, kind: Kind, rank: int) -> Iterator[str]:
    """Yield why a node can't take a quantized weight."""
    recurrent = kind in RECURRENT
    if rank < (3 if recurrent or kind in ("conv", "convtranspose") else 2) or (recurrent and rank > 3):
        yield f"{rank}-dimensional"
    if node.op_type in ("Gemm", "FusedGemm") and rank > 2:
        yield f"{rank}-dimensional, which no {node.op_type} takes"
    if kind == "gather" and rank > 2:
        yield f"{rank}-dimensional: a table of more than rows"
    if kind == "fused" and node.attributes.get_int("transBatchB", False):
        yield f"{node.op_type} with transBatchB"
    if kind == "gather" and node.attributes.get_int("axis", 0) not in (0, -rank):
        yield f"Gather on axis {node.attributes.get_int('axis', 0)}"
    if OPERATORS[node.domain, node.op_type][1] == (0, 1):
        if len(node.inputs) < 2:  # an Einsum may have any number
            yield f"{operator_of(node)} with one input"
        elif is_constant(node.inputs[1 - index]):  # a runtime computes it once, when it loads the model
            yield f"{operator_of(node)} takes nothing but constants"


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is a constant, or one passed on."""
    while value is not None and (node := value.producer()) is not None and node.op_type != "Constant":
        if node.domain != "" or node.op_type not in PASSED:
            return False
        value = node.inputs[0]
    return value is not None and (value.const_value is not None or value.producer() is not None)
