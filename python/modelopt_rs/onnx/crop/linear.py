"""Rules of operators that multiply by weights: what reads units ends their way, what makes them begins it."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.crop.edits import EditCounts
from modelopt_rs.onnx.crop.einsum import einsum, einsum_axes
from modelopt_rs.onnx.crop.pointwise import first
from modelopt_rs.onnx.crop.recurrent import GATES
from modelopt_rs.onnx.crop.units import Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Walk

__all__ = ["RULES", "made_by"]

# Of recurrent layers it is their hidden units, along the recurrent weights.
MADE_BY = {"MatMul": (1, -1), "Conv": (1, 0), "Gather": (0, -1)} | dict.fromkeys(GATES, (2, 2))
# What each axis of an operand is: rows, inner axis, columns, or a number of a batch axis counted from the end.
Roles: TypeAlias = Mapping[int | str, int]


def made_by(node: ir.Node) -> tuple[int, int] | None:
    """Return which input is a node's weight and which axis of it makes its outputs; negative counts from the end."""
    if node.domain == "com.microsoft":
        if node.op_type in ("FusedGemm", "FusedMatMul"):
            return 1, -2 if node.attributes.get_int("transB", 0) else -1
        return {"FusedConv": (1, 0), "Attention": (1, -1), "EmbedLayerNormalization": (2, -1)}.get(node.op_type)
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Gemm":
        return 1, 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "ConvTranspose":
        return 1, 1 if node.attributes.get_int("group", 1) == 1 else 0
    if node.op_type == "Einsum":
        return _made_by_einsum(node)
    return MADE_BY.get(node.op_type)


def _made_by_einsum(node: ir.Node) -> tuple[int, int] | None:
    """The last operand is taken for the weight: of a letter that no other operand has."""
    letters = einsum_axes(node)
    if letters is None or len(letters.operands) < 2:
        return None
    *others, weight = letters.operands
    own = [place for place, letter in enumerate(weight) if letter in letters.output and letter not in "".join(others)]
    return (len(others), own[-1]) if own else None


def _spread(
    walk: Walk, node: ir.Node, role: int | str, labels: Labels, operands: list[tuple[ir.Value, Roles]], y: Roles
) -> None:
    """Label the axis of a role in every operand that has it and isn't stretched along it, and in the output."""
    if walk.repeated and not isinstance(role, int):
        raise Refused(node, "has the units merged with an axis of unknown length")
    if role == "k" and not any(walk.static(value) for value, roles in operands if "k" in roles):
        raise Refused(node, "multiplies two activations along the units")
    for value, _ in operands[:2]:
        walk.weigh(value)
    for value, roles in operands:
        axis = roles.get(role)
        length = 1 if axis is None else walk.shape(value, node)[axis]
        if axis is None or (length == 1 and isinstance(role, int)):
            continue
        if (isinstance(length, int) if walk.repeated else length != len(labels)) and isinstance(role, int):
            raise Refused(node, f"has {len(labels)} indices against {length or 'an unknown number'}")
        walk.give(value, axis, labels, repeated=walk.repeated)
    if role in y:
        walk.give(node.outputs[0], y[role], labels, repeated=walk.repeated)


def matmul(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label rows, columns and batches in the product; the inner axis in the other factor, if one is a weight."""
    a, b = node.inputs
    assert a is not None
    assert b is not None
    left, right = walk.rank(a, node), walk.rank(b, node)
    a_roles: dict[int | str, int] = {"k": 0} if left == 1 else {"m": left - 2, "k": left - 1}
    b_roles: dict[int | str, int] = {"k": 0} if right == 1 else {"k": right - 2, "n": right - 1}
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        raise Refused(node, "turns batches")
    for roles, turned, names in ((a_roles, "transA", "mk"), (b_roles, "transB", "kn")):  # of FusedMatMul
        if node.attributes.get_int(turned, 0) and len(roles) > 1:
            roles[names[0]], roles[names[1]] = roles[names[1]], roles[names[0]]
    batches = max(left - 2, right - 2, 0)
    y: dict[int | str, int] = {}
    for number in range(1, batches + 1):
        y[number] = batches - number
        for rank, roles in ((left, a_roles), (right, b_roles)):
            if rank - 2 >= number:
                roles[number] = rank - 2 - number
    if left > 1:
        y["m"] = batches
    if right > 1:
        y["n"] = batches + (left > 1)
    mine = y if at.side == "out" else (a_roles, b_roles)[at.index]
    role = next(role for role, axis in mine.items() if axis == at.axis)
    if isinstance(role, int) and not walk.static(a) and not walk.static(b):
        walk.is_kind("heads")
    _spread(walk, node, role, labels, [(a, a_roles), (b, b_roles)], y)


def gemm(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label as MatMul does, with the axes of transposed factors and of what is added."""
    a, b = node.inputs[:2]
    assert a is not None
    assert b is not None
    operands: list[tuple[ir.Value, Roles]] = [
        (a, {"m": 1, "k": 0} if node.attributes.get_int("transA", 0) else {"m": 0, "k": 1}),
        (b, {"k": 1, "n": 0} if node.attributes.get_int("transB", 0) else {"k": 0, "n": 1}),
    ]
    added = node.inputs[2] if len(node.inputs) > 2 else None
    if added is not None:
        shape = walk.shape(added, node)
        roles = dict(zip(("n", "m"), range(len(shape) - 1, -1, -1), strict=False))
        operands.append((added, {role: axis for role, axis in roles.items() if shape[axis] != 1}))
    y: Roles = {"m": 0, "n": 1}
    mine = y if at.side == "out" else operands[at.index][1]
    role = next(role for role, axis in mine.items() if axis == at.axis)
    _spread(walk, node, role, labels, operands, y)


def convolution(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the channels: of what is read in the weight, of what is made in the weight and the bias.

    Of several groups each is a unit: its inputs, its outputs and its weights.
    """
    x, w = first(node), node.inputs[1]
    assert w is not None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    added = node.inputs[3] if len(node.inputs) > 3 else None  # of FusedConv: as the output
    y, groups = node.outputs[0], node.attributes.get_int("group", 1)
    reads, makes = (0, 1) if node.op_type == "ConvTranspose" else (1, 0)
    where = "y" if at.side == "out" else "xwby"[at.index]
    if where in "xy" and at.axis == 0:
        for value in (x, y, added):
            walk.give(value, 0, labels)
        return
    if (where in "xy" and at.axis > 1) or (where == "w" and at.axis > 1):
        raise Refused(node, "goes along the units")
    if not walk.static(w):
        raise Refused(node, "has a weight that is computed of activations")
    walk.is_kind("channels")
    walk.weigh(w)
    if groups > 1:
        _grouped(walk, node, (where, at.axis), labels, groups)
    elif where == "x" or (where == "w" and at.axis == reads):
        walk.give(x, 1, labels)
        walk.give(w, reads, labels)
    else:
        walk.give(w, makes, labels)
        walk.give(bias, 0, labels)
        for value in (y, added):
            walk.give(value, 1, labels)


def _grouped(walk: Walk, node: ir.Node, place: tuple[str, int], labels: Labels, groups: int) -> None:
    x, w, y = first(node), node.inputs[1], node.outputs[0]
    assert w is not None
    bias, added = (node.inputs[index] if len(node.inputs) > index else None for index in (2, 3))
    shape = walk.shape(w, node)
    rows, columns = (n if isinstance(n, int) else 0 for n in shape[:2])
    if len(labels) % groups or rows % groups or not rows * columns:
        raise Refused(node, f"has {groups} groups that don't divide its channels")
    if place[0] == "w" and place[1] == 1:
        raise Refused(node, f"has {groups} groups of which each would lose the same channels")
    units = walk.units.fold(labels.reshape(groups, -1))
    transposed = node.op_type == "ConvTranspose"
    inputs = rows if transposed else columns * groups
    outputs = columns * groups if transposed else rows
    walk.room(node, max(inputs, outputs))
    walk.give(x, 1, np.repeat(units, inputs // groups))
    walk.give(w, 0, np.repeat(units, rows // groups))
    walk.give(bias, 0, np.repeat(units, outputs // groups))
    for value in (y, added):
        walk.give(value, 1, np.repeat(units, outputs // groups))
    walk.edit(EditCounts(value=x, axis=1, node=node, each=inputs // groups, counts={"group": (1,)}))


RULES = {"MatMul": matmul, "Gemm": gemm, "Conv": convolution, "ConvTranspose": convolution, "Einsum": einsum}
