"""Rules of attention that is one operator: the standard's, and those that onnxruntime puts in the place of many.

The heads lie along axes of what such a node takes and makes. A unit is a head; where query heads share keys and values,
a key-value head with all its queries.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.crop.edits import EditCounts
from modelopt_rs.onnx.crop.pointwise import first
from modelopt_rs.onnx.crop.units import NONE, Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Rule, Walk

__all__ = ["MICROSOFT", "STANDARD"]


class Span(NamedTuple):
    """Where the heads lie along an axis of a value: from `start` on, `each` indices of a unit."""

    at: At
    start: int
    each: int


class Heads(NamedTuple):
    """How many units a node has, where they lie, and what its attributes lose with each: see `EditCounts`."""

    units: int
    spans: list[Span]
    counts: dict[str, tuple[int, ...]]


def _given(node: ir.Node, side: str, index: int) -> ir.Value | None:
    """Return an input, or an output that something takes; None where there is none."""
    values = node.inputs if side == "in" else node.outputs
    value = values[index] if index < len(values) else None
    unused = side == "out" and index and value is not None and not value.uses() and not value.is_graph_output()
    if value is None or (unused and value.shape is None):
        return None
    return value


def _plain(walk: Walk, node: ir.Node, value: ir.Value, axis: int) -> int:
    """Return the length of an axis."""
    shape = walk.shape(value, node)
    length = shape[axis] if -len(shape) <= axis < len(shape) else None
    if not isinstance(length, int):
        raise Refused(node, f"has {value.name!r}, whose axis {axis} has no known length")
    return length


def _spans(walk: Walk, node: ir.Node, places: dict[str, tuple[int, ...]], units: int) -> Iterator[Span]:
    """Yield where heads lie in values whose rank tells: the last of 3 axes, the second of 4, the third of 5."""
    for side, index in ((side, index) for side, indices in places.items() for index in indices):
        value = _given(node, side, index)
        if value is None:
            continue
        axis = {3: 2, 4: 1, 5: 2}.get(walk.rank(value, node))
        if axis is None:
            raise Refused(node, f"has {value.name!r} of {walk.rank(value, node)} dimensions")
        yield Span(At("in" if side == "in" else "out", index, axis), 0, _each(walk, node, value, axis, units))


def _each(walk: Walk, node: ir.Node, value: ir.Value, axis: int, units: int) -> int:
    length = _plain(walk, node, value, axis)
    if units < 1 or length % units:
        raise Refused(node, f"has {units} heads for {length} indices of {value.name!r}")
    return length // units


def _broadcast(walk: Walk, node: ir.Node, index: int, units: int) -> Iterator[Span]:
    """Yield where heads lie in what is added to scores (..., heads, queries, keys), unless all have the same."""
    value = _given(node, "in", index)
    rank = 0 if value is None else walk.rank(value, node)
    if value is not None and rank > 2 and _plain(walk, node, value, rank - 3) != 1:
        yield Span(At("in", index, rank - 3), 0, _each(walk, node, value, rank - 3, units))


def _pasts(walk: Walk, node: ir.Node, units: int) -> list[Span]:
    """Return where heads lie in states of words before, and in those that are given on: (2, b, heads, s, width)."""
    return list(_spans(walk, node, {"in": (4,), "out": (1,)}, units))


def of_microsoft(walk: Walk, node: ir.Node) -> Heads:
    """Queries, keys and values of one matrix, beside each other: com.microsoft Attention."""
    heads, weight = node.attributes.get_int("num_heads", 0), node.inputs[1]
    if weight is None or heads < 1:
        raise Refused(node, "has no weights, or no number of heads")
    columns = _plain(walk, node, weight, 1)
    sizes = tuple(node.attributes.get_ints("qkv_hidden_sizes", ())) or (columns // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != columns or any(size % heads for size in sizes):
        raise Refused(node, f"has queries, keys and values of {sizes} for {heads} heads and {columns} columns")
    starts, each = (0, sizes[0], sizes[0] + sizes[1]), tuple(size // heads for size in sizes)
    spans = [Span(At("in", 1, 1), start, one) for start, one in zip(starts, each, strict=True)]
    if _given(node, "in", 2) is not None:
        spans += [Span(At("in", 2, 0), start, one) for start, one in zip(starts, each, strict=True)]
    spans += [Span(At("out", 0, 2), 0, each[2]), *_pasts(walk, node, heads), *_broadcast(walk, node, 5, heads)]
    return Heads(heads, spans, {"num_heads": (1,), "qkv_hidden_sizes": each})


def _of_many(walk: Walk, node: ir.Node, places: dict[str, tuple[int, ...]], bias: int, added: int) -> Heads:
    heads = node.attributes.get_int("num_heads", 0)
    spans = list(_spans(walk, node, places, heads))
    spans += _broadcast(walk, node, added, heads)
    value = _given(node, "in", bias)
    if value is not None:  # of queries, keys and values, behind each other
        length, query = _plain(walk, node, value, 0), first(node)
        packed = walk.rank(query, node) == 5
        own = length // 3 if packed else _plain(walk, node, query, 2)
        sizes = (own, own, length - 2 * own)
        if any(size % heads or size < 1 for size in sizes):
            raise Refused(node, f"has a bias of {length} numbers for {heads} heads")
        starts = (0, own, 2 * own)
        spans += [Span(At("in", bias, 0), start, size // heads) for start, size in zip(starts, sizes, strict=True)]
    return Heads(heads, spans, {"num_heads": (1,)})


def multi_head(walk: Walk, node: ir.Node) -> Heads:
    """Heads of MultiHeadAttention."""
    return _of_many(walk, node, {"in": (0, 1, 2, 6, 7), "out": (0, 1, 2, 3)}, bias=3, added=5)


def masked_multi_head(walk: Walk, node: ir.Node) -> Heads:
    """Heads of DecoderMaskedMultiHeadAttention."""
    return _of_many(walk, node, {"in": (0, 1, 2, 5, 6), "out": (0, 1, 2, 3)}, bias=10, added=4)


def grouped(walk: Walk, node: ir.Node) -> Heads:
    """Heads of keys and values, each with all its queries: GroupQueryAttention."""
    heads, units = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    if units < 1 or heads % units:
        raise Refused(node, f"has {heads} heads of queries and {units} of keys and values")
    if any(value is not None for value in node.inputs[12:]):
        raise Refused(node, "has inputs that cropping doesn't know")
    share = heads // units
    queries = (0,) if _given(node, "in", 1) is not None else ()
    spans = list(_spans(walk, node, {"in": (*queries, 1, 2, 3, 4), "out": (1, 2, 3)}, units))
    width = _plain(walk, node, first(node), 2)
    if queries:
        width //= heads
    else:  # queries, keys and values are one, behind each other
        width //= heads + 2 * units
        starts = (0, heads * width, (heads + units) * width)
        spans += [
            Span(At("in", 0, 2), start, each) for start, each in zip(starts, (share * width, width, width), strict=True)
        ]
    spans += [Span(At("out", 0, 2), 0, share * width), *_broadcast(walk, node, 10, units)]
    sink = _given(node, "in", 11)
    if sink is not None:
        spans.append(Span(At("in", 11, 0), 0, _each(walk, node, sink, 0, units)))
    return Heads(units, spans, {"num_heads": (share,), "kv_num_heads": (1,)})


def of_standard(walk: Walk, node: ir.Node) -> Heads:
    """Heads of keys and values, each with all its queries: Attention of the standard."""
    query, key = node.inputs[:2]
    assert query is not None
    assert key is not None
    heads, units = node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    if walk.rank(query, node) == 4:
        heads, units = _plain(walk, node, query, 1), _plain(walk, node, key, 1)
    if units < 1 or heads % units:
        raise Refused(node, f"has {heads} heads of queries and {units} of keys and values")
    spans = list(_spans(walk, node, {"in": (0, 1, 2, 4, 5), "out": (0, 1, 2, 3)}, units))
    spans += _broadcast(walk, node, 3, units)
    return Heads(units, spans, {"q_num_heads": (heads // units,), "kv_num_heads": (1,)})


def _rule(heads_of: Callable[[Walk, ir.Node], Heads]) -> Rule:
    def attention(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
        """Label all that a head has, wherever one of its indices has a label."""
        heads = heads_of(walk, node)
        units = np.full(heads.units, NONE)
        for span in heads.spans:
            if span.at != at:
                continue
            found = walk.units.fold(labels[span.start : span.start + heads.units * span.each].reshape(heads.units, -1))
            walk.units.join(units, found)
            units = np.where(units < 0, found, units)
        if (units < 0).all():
            raise Refused(node, "goes along the units")
        walk.is_kind("heads")
        _give(walk, node, heads, walk.units.find(units))

    return attention


def _give(walk: Walk, node: ir.Node, heads: Heads, units: Labels) -> None:
    wholes: dict[At, Labels] = {}
    for span in heads.spans:
        value = _given(node, span.at.side, span.at.index)
        assert value is not None
        if span.at not in wholes:
            length = _plain(walk, node, value, span.at.axis)
            walk.room(node, length)
            wholes[span.at] = np.full(length, NONE)
        wholes[span.at][span.start : span.start + heads.units * span.each] = np.repeat(units, span.each)
    for at, whole in wholes.items():
        walk.give(_given(node, at.side, at.index), at.axis, whole)
    out = next(span for span in heads.spans if span.at.side == "out" and not span.at.index)
    counts = {name: each for name, each in heads.counts.items() if name in node.attributes}
    walk.edit(EditCounts(value=node.outputs[0], axis=out.at.axis, node=node, each=out.each, counts=counts))


def _weighted(rule: Rule) -> Rule:
    """The rule of attention that has its weights itself: the width of the model is read by their rows."""

    def attention(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
        x, weight = first(node), node.inputs[1]
        if not walk.static(weight):
            raise Refused(node, "has a weight that is computed of activations")
        walk.weigh(weight)
        if at in (At("in", 0, 2), At("in", 1, 0)):
            walk.give(x, 2, labels)
            walk.give(weight, 0, labels)
            return
        rule(walk, node, at, labels)

    return attention


STANDARD: Final[dict[str, Rule]] = {"Attention": _rule(of_standard)}
MICROSOFT: Final[dict[str, Rule]] = {
    "Attention": _weighted(_rule(of_microsoft)),
    "MultiHeadAttention": _rule(multi_head),
    "DecoderMaskedMultiHeadAttention": _rule(masked_multi_head),
    "GroupQueryAttention": _rule(grouped),
}
