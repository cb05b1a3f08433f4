"""Rules of recurrent layers: what they read, and their hidden units: LSTM, GRU and RNN."""

from typing import Final

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.crop.edits import EditCounts
from modelopt_rs.onnx.crop.pointwise import first
from modelopt_rs.onnx.crop.units import NONE, Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Rule, Walk

__all__ = ["GATES", "RULES"]

GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Where hidden units lie once: recurrent weights, states before; the sequence and the states after.
ONCE: Final = (At("in", 2, 2), At("in", 5, 2), At("in", 6, 2), At("out", 0, 3), At("out", 1, 2), At("out", 2, 2))


def recurrent(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label what is read in the weights of inputs; hidden units in the rows of all gates, biases and states."""
    x, w, r = first(node), node.inputs[1], node.inputs[2]
    if node.attributes.get_int("layout", 0) != 0:
        raise Refused(node, "has batches in front")
    if not walk.static(w) or not walk.static(r):
        raise Refused(node, "has a weight that is computed of activations")
    walk.weigh(w)
    walk.weigh(r)
    if at in (At("in", 0, 2), At("in", 1, 2)):
        walk.give(x, 2, labels)
        walk.give(w, 2, labels)
        return
    gates = GATES[node.op_type]
    # How many times the units stand behind each other: in W and R once a gate, in biases twice, in peepholes thrice.
    times = {At("in", 1, 1): gates, At("in", 2, 1): gates, At("in", 3, 1): 2 * gates, At("in", 7, 1): 3}
    times |= dict.fromkeys(ONCE, 1)
    if at not in times:
        raise Refused(node, "goes along the units")
    units = _joined(walk, node, labels, times[at])
    for place, count in times.items():
        values = node.inputs if place.side == "in" else node.outputs
        value = values[place.index] if place.index < len(values) else None
        walk.give(value, place.axis, np.tile(units, count))
    assert r is not None
    walk.edit(EditCounts(value=r, axis=2, node=node, each=1, counts={"hidden_size": (1,)}))


def _joined(walk: Walk, node: ir.Node, labels: Labels, times: int) -> Labels:
    """Return the units of labels that stand several times behind each other."""
    if len(labels) % times:
        raise Refused(node, f"has {len(labels)} indices for {times} gates")
    units = np.full(len(labels) // times, NONE)
    for part in labels.reshape(times, -1):
        walk.units.join(units, part)
        units = walk.units.find(np.where(units < 0, part, units))
    return units


RULES: Final[dict[str, Rule]] = dict.fromkeys(GATES, recurrent)
