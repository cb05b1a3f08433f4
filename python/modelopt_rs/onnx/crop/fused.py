"""Rules of onnxruntime's own operators, which its optimizers put in the place of several: domain com.microsoft."""

from typing import Final

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.crop import attention, linear, pointwise
from modelopt_rs.onnx.crop.edits import EditCounts
from modelopt_rs.onnx.crop.pointwise import first
from modelopt_rs.onnx.crop.units import Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Rule, Walk

__all__ = ["MICROSOFT", "STANDARD"]


def skip_norm(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label what is added, the sum, its norm, scale and bias alike: SkipLayerNormalization."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:3]):
        raise Refused(node, "gives its mean to others")
    here = node.inputs[at.index] if at.side == "in" else node.outputs[at.index]
    assert here is not None
    if at.axis == walk.rank(here, node) - 1:
        walk.is_kind("hidden")
    pointwise.elementwise(walk, node, at, labels)


def embedding(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the columns of all tables, scale and bias, and what is made of them: EmbedLayerNormalization."""
    tables = [value for value in node.inputs[2:5] if value is not None]
    made = [node.outputs[0], node.outputs[2] if len(node.outputs) > 2 else None]
    if (at.side == "in" and (at.index, at.axis) not in ((2, 1), (3, 1), (4, 1), (5, 0), (6, 0))) or (
        at.side == "out" and (at.index == 1 or at.axis != 2)
    ):
        raise Refused(node, "goes along the units")
    walk.is_kind("hidden")
    for table in tables:
        walk.weigh(table)
        walk.give(table, 1, labels)
    for value in node.inputs[5:7]:
        walk.give(value, 0, labels)
    for value in made:
        if value is not None and (value.uses() or value.is_graph_output()):
            walk.give(value, 2, labels)


def rotary(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label whole heads, each of which is turned by itself: RotaryEmbedding."""
    x, rank = first(node), walk.rank(first(node), node)
    if at.side == "in" and at.index:
        raise Refused(node, "takes the units as angles")
    if at.axis == rank - 1:
        if rank != 3:
            raise Refused(node, "goes along the units")
        said = int(node.attributes.get_int("num_heads", 0))
        heads = said or len(labels) // _width(walk, node)
        if heads < 1 or len(labels) % heads:
            raise Refused(node, f"has {heads} heads for {len(labels)} indices")
        each = len(labels) // heads
        labels = np.repeat(walk.units.fold(labels.reshape(heads, -1)), each)
        if said:
            walk.edit(EditCounts(value=x, axis=at.axis, node=node, each=each, counts={"num_heads": (1,)}))
    walk.give(x, at.axis, labels)
    walk.give(node.outputs[0], at.axis, labels)


def _width(walk: Walk, node: ir.Node) -> int:
    """Return how wide a head is: a cosine for each pair of its numbers."""
    cosines = node.inputs[2 if node.domain == "com.microsoft" else 1]
    length = None if cosines is None else walk.shape(cosines, node)[-1]
    if not isinstance(length, int) or node.attributes.get_int("rotary_embedding_dim", 0) != 0:
        raise Refused(node, "has heads of unknown width")
    return 2 * length


STANDARD: Final[dict[str, Rule]] = {
    **attention.STANDARD,
    "RotaryEmbedding": rotary,
    "SimplifiedLayerNormalization": pointwise.layer_norm,  # onnxruntime has it there, the standard has not
}
MICROSOFT: Final[dict[str, Rule]] = {
    **attention.MICROSOFT,
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), pointwise.elementwise),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_norm),
    "EmbedLayerNormalization": embedding,
    "RotaryEmbedding": rotary,
    "FusedMatMul": linear.matmul,
    "FusedGemm": linear.gemm,
    "FusedConv": linear.convolution,
}
