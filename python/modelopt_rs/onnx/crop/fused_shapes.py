"""What onnxruntime's own operators make, as lengths of axes: the library of ONNX doesn't know them."""

from collections.abc import Callable
from typing import Final, TypeAlias

import onnx_ir as ir

from modelopt_rs.onnx.crop.elements import shape_of

__all__ = ["fused_shapes"]

Lengths: TypeAlias = list[int | str | None]


def fused_shapes(node: ir.Node) -> bool:
    """Fill in lengths of a node's outputs; return whether any is new.

    Parameters
    ----------
    node : ir.Node
        Of any domain; what isn't known stays as it is.
    """
    rule = RULES.get(node.op_type) if node.domain == "com.microsoft" else ONNXRUNTIME.get(node.op_type)
    x = next((value for value in node.inputs if value is not None and value.dtype is not None), None)
    if rule is None or (found := rule(node)) is None:
        return False
    new = False
    for index in MORE.get(node.op_type, (0,)):
        y = node.outputs[index] if index < len(node.outputs) else None
        if y is None or (y.shape is not None and len(y.shape) != len(found)):
            continue
        old = shape_of(y) or [None] * len(found)
        lengths = [b if a is None else a for a, b in zip(found, old, strict=True)]
        new |= y.shape is None or any(a is not None and b is None for a, b in zip(lengths, old, strict=True))
        y.shape = ir.Shape(lengths)
        if y.dtype is None and (made := _dtype(node, x)) is not None:
            y.dtype = made
    return new


def _dtype(node: ir.Node, x: ir.Value | None) -> ir.DataType | None:
    table = node.inputs[2] if node.op_type == "EmbedLayerNormalization" else x
    return None if table is None else table.dtype


def _lengths(node: ir.Node, index: int) -> Lengths:
    value = node.inputs[index] if index < len(node.inputs) else None
    return [] if value is None else shape_of(value) or []


def _same(node: ir.Node) -> Lengths | None:
    return _lengths(node, 0) or None


def _attention(node: ir.Node) -> Lengths | None:
    x, columns = _lengths(node, 0), _lengths(node, 1)[-1]
    sizes = node.attributes.get_ints("qkv_hidden_sizes", ())
    width = sizes[2] if len(sizes) == 3 else columns // 3 if isinstance(columns, int) else None
    return [*x[:2], width] if len(x) == 3 else None


def _multi_head(node: ir.Node) -> Lengths | None:
    """Queries of (b, s, width), or all of (b, s, heads, 3, width); values of (b, s, width), (b, heads, s, width)."""
    query, key, value = (_lengths(node, index) for index in range(3))
    last = value or key or query
    if len(query) not in (3, 5) or not last:
        return None
    width: int | str | None = last[-1]
    if len(last) > 3:
        heads = last[1] if len(last) == 4 else last[2]
        width = heads * width if isinstance(heads, int) and isinstance(width, int) else None
    return [*query[:2], width]


def _grouped(node: ir.Node) -> Lengths | None:
    query = _lengths(node, 0)
    if len(query) != 3:
        return None
    heads, units = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    packed = len(node.inputs) < 2 or node.inputs[1] is None
    width = query[2]
    if packed:
        width = width // (heads + 2 * units) * heads if isinstance(width, int) else None
    return [*query[:2], width]


def _embedding(node: ir.Node) -> Lengths | None:
    ids, words = _lengths(node, 0), _lengths(node, 2)
    return [*ids, words[-1]] if len(ids) == 2 and words else None


def _product(node: ir.Node) -> Lengths | None:
    a, b = (_lengths(node, index) for index in (0, 1))
    if len(a) < 2 or len(b) < 2:
        return None
    rows = a[-1] if node.attributes.get_int("transA", 0) else a[-2]
    columns = b[-2] if node.attributes.get_int("transB", 0) else b[-1]
    longer = a if len(a) >= len(b) else b
    return [*longer[:-2], rows, columns]


def _convolution(node: ir.Node) -> Lengths | None:
    x, w = _lengths(node, 0), _lengths(node, 1)
    return [x[0], w[0], *[None] * (len(x) - 2)] if len(x) > 2 and w else None


Rule: TypeAlias = Callable[[ir.Node], Lengths | None]
RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding"), _same),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _same),
    "Attention": _attention,
    **dict.fromkeys(("MultiHeadAttention", "DecoderMaskedMultiHeadAttention"), _multi_head),
    "GroupQueryAttention": _grouped,
    "EmbedLayerNormalization": _embedding,
    **dict.fromkeys(("FusedMatMul", "FusedGemm"), _product),
    "FusedConv": _convolution,
}
ONNXRUNTIME: Final[dict[str, Rule]] = {"SimplifiedLayerNormalization": _same}
# Those that have more outputs of the same shape.
MORE: Final = {
    "SkipLayerNormalization": (0, 3),
    "SkipSimplifiedLayerNormalization": (0, 3),
    "EmbedLayerNormalization": (0, 2),
}
