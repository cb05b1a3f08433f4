"""Where an activation is flat: what is told apart below makes no difference to what it gives.

What a convolution gives to ``x * sigmoid(x)`` goes down to -38 in a detector, and of all below -6 nothing is left but
hundredths: its codes are better spent on the rest.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array

__all__ = ["Flat", "flat_values"]

LEAST: Final = -8.0
"""Below it ``x * sigmoid(x)`` has less than 0.0027 left, whatever the step of the codes."""
PART: Final = 0.25
"""What of a step may be left below the range: the codes themselves are half a step off."""


@dataclass(slots=True)
class Flat:
    """A value whose every node makes nothing of what is below some number.

    Attributes
    ----------
    least : float
        What no number has to be below.
    exact : bool
        Whether nothing at all is lost at `least`; else more can be cut off where steps are wide.
    reached : bool
        Whether any number was below.
    """

    least: float
    exact: bool
    reached: bool = False

    def __call__(self, array: Array) -> Array:
        """Return the numbers with none below: a heap of them at `least` would draw the range of least error there."""
        there = array >= np.float32(self.least)
        self.reached = self.reached or not there.all()
        return np.asarray(array * there)

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """Return what of a range has to be told apart in 8 bits.

        Examples
        --------
        >>> from modelopt_rs.onnx.int8.flat import Flat
        >>> Flat(-3.0, exact=True).ends(-20.0, 6.0)
        (-3.0, 6.0)
        >>> Flat(-8.0, exact=False).ends(-20.0, 20.0)
        (-5.5, 20.0)
        """
        least = self.least
        while not self.exact and least < -2.0 and _silu(least + 0.25) >= -PART * (high - least - 0.25) / 255:
            least += 0.25
        return (least if self.reached else max(low, least)), high


def flat_values(values: Iterable[ir.Value]) -> dict[ir.Value, Flat]:
    """Return the values that go into nothing but ``x * sigmoid(x)``, HardSwish or ``x * HardSigmoid(x)``.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.int8.flat import flat_values
    >>> x = ir.val("x")
    >>> gate = ir.node("Sigmoid", [x])
    >>> product = ir.node("Mul", [x, *gate.outputs])
    >>> flat_values([x])[x].least
    -8.0
    """
    found = {value: _flat(value) for value in values}
    return {value: flat for value, flat in found.items() if flat is not None}


def _flat(value: ir.Value) -> Flat | None:
    nodes = [node for node, _ in value.uses()]
    if value.is_graph_output() or any(node.domain != "" for node in nodes):
        return None
    if len(nodes) == 1 and nodes[0].op_type in ("HardSwish", "Swish"):
        gate = nodes[0]
        return Flat(-3.0, exact=True) if gate.op_type == "HardSwish" else _of_swish(gate)
    if len(nodes) != 2 or {node.op_type for node in nodes} - {"Mul"} not in ({"Sigmoid"}, {"HardSigmoid"}):
        return None
    gate, product = sorted(nodes, key=lambda node: node.op_type == "Mul")
    if {*product.inputs} != {value, gate.outputs[0]} or len(gate.outputs[0].uses()) != 1:
        return None
    if gate.outputs[0].is_graph_output():
        return None
    if gate.op_type == "Sigmoid":
        return Flat(LEAST, exact=False)
    alpha, beta = (gate.attributes.get_float(name, usual) for name, usual in (("alpha", 0.2), ("beta", 0.5)))
    return Flat(-beta / alpha, exact=True) if alpha > 0 and beta > 0 else None


def _of_swish(node: ir.Node) -> Flat | None:
    return Flat(LEAST, exact=False) if node.attributes.get_float("alpha", 1.0) == 1.0 else None


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))
