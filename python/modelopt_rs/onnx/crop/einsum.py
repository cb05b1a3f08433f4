"""The rule of Einsum: each letter is an axis of every operand that has it."""

import re
from typing import NamedTuple

import onnx_ir as ir

from modelopt_rs.onnx.crop.units import Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Walk

__all__ = ["einsum", "einsum_axes"]


class Letters(NamedTuple):
    """The letters of the axes of each operand, and of the output."""

    operands: list[str]
    output: str


def einsum_axes(node: ir.Node) -> Letters | None:
    """Return the letters of an equation without diagonals and dots; None if it is another one."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    if re.fullmatch(r"[A-Za-z]+(,[A-Za-z]+)*->[A-Za-z]*", equation) is None:
        return None
    left, output = equation.split("->")
    operands = left.split(",")
    if len(operands) != len(node.inputs) or any(len(set(each)) < len(each) for each in (*operands, output)):
        return None
    return Letters(operands, output)


def einsum(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axis of the same letter everywhere; what is summed over must meet a weight."""
    letters = einsum_axes(node)
    if letters is None:
        raise Refused(node, "has an equation that cropping doesn't know")
    mine = letters.output if at.side == "out" else letters.operands[at.index]
    if at.axis >= len(mine):
        raise Refused(node, "has inputs that don't fit each other")
    letter = mine[at.axis]
    have = [value for value, own in zip(node.inputs, letters.operands, strict=True) if letter in own and value]
    if letter not in letters.output and not any(walk.static(value) for value in have):
        raise Refused(node, "multiplies activations along the units")
    if letter in letters.output and sum(not walk.static(value) for value in have) > 1:
        walk.is_kind("heads")
    for value, own in zip(node.inputs, letters.operands, strict=True):
        if walk.static(value):
            walk.weigh(value)
        if letter in own:
            length = None if value is None else walk.shape(value, node)[own.index(letter)]
            if length != len(labels):
                raise Refused(node, f"has {len(labels)} indices against {length or 'an unknown number'}")
            walk.give(value, own.index(letter), labels)
    if letter in letters.output:
        walk.give(node.outputs[0], letters.output.index(letter), labels)
