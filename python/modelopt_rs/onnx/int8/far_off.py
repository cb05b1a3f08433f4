"""Layers that stay float: what goes into them, or comes out of a convolution, would be too far off in 8 bits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.onnx.int8.layers import Layer
from modelopt_rs.onnx.int8.placement import Placement, activated
from modelopt_rs.onnx.int8.static import Grid
from modelopt_rs.onnx.run.outputs import OutputFigures
from modelopt_rs.planning.decide import Decision, Moved
from modelopt_rs.planning.sensitivity import layer_error
from modelopt_rs.quant.coding import fake_quantize
from modelopt_rs.reduce import count_nonfinite

__all__ = ["Change", "Errors", "Watched", "left_float", "values_of"]

Change: TypeAlias = Callable[[Array], Array]

HOW: Final = "max_layer_error moves this limit, uniform ends it"


@dataclass(frozen=True, slots=True)
class Watched:
    """A model that can be run.

    Attributes
    ----------
    values : callable
        Runs it, and yields the values of some names: none where nothing is there that it runs on.
    words : str
        What it is run on.
    """

    values: Callable[[Sequence[str]], Iterable[tuple[str, Array]]]
    words: str


@dataclass(slots=True)
class Errors:
    """How far values are off by their codes, over samples.

    Parameters
    ----------
    grids : mapping or None
        By value; None: each array has codes of its own range, as in a call that quantizes what it gets.
    changes : mapping
        What is made of a value before it gets codes.
    threads : int, optional
    """

    grids: Mapping[ir.Value, Grid] | None
    changes: Mapping[ir.Value, Change] = field(default_factory=dict)
    threads: int | None = None
    _sums: dict[ir.Value, OutputFigures] = field(default_factory=dict)

    def take(self, value: ir.Value, array: Array) -> None:
        """Take a value of one sample in."""
        if not array.size:
            return
        x = self.changes[value](array) if value in self.changes else array
        if self.grids is None:
            if count_nonfinite(x, threads=self.threads):
                return  # made-up inputs may lead to any number
            y = fake_quantize(x, scheme="asymmetric", threads=self.threads)
        else:
            scale, zero_point = float(self.grids[value].scale), int(self.grids[value].zero_point)
            y = fake_quantize(x, scale=scale, zero_point=zero_point, signed=False, threads=self.threads)
        self._sums.setdefault(value, OutputFigures(str(value.name), self.threads)).add(x, y)

    @property
    def found(self) -> dict[ir.Value, float]:
        """The relative error of each value that was there."""
        return {value: layer_error(sums.figures) for value, sums in self._sums.items()}


def values_of(layer: Layer) -> list[ir.Value]:
    """Return the values whose codes a layer computes with."""
    return [layer.x, activated(layer.out)] if layer.kind == "conv" else [layer.x]


def left_float(
    found: Mapping[str, Sequence[Layer]], placement: Placement, errors: Mapping[ir.Value, float], limit: float, on: str
) -> dict[str, Decision]:
    """Return the weights whose layers stay float, with the reason.

    Parameters
    ----------
    found : mapping
        The layers of each weight.
    placement : Placement
        Where activations would be quantized.
    errors : mapping
        Of the values whose ranges others have, too.
    limit : float
        The largest error that is taken.
    on : str
        What the errors were measured on.
    """
    why = f"what their layers take or give would be over {limit:g} off in int8 on {on}, and stays float; {HOW}"
    left = {}
    for name, layers in found.items():
        error = _worst((value for layer in layers for value in values_of(layer)), placement, errors)
        if error > limit:
            where = layers[0].use.where
            words = f"what it takes or gives would be {error:.2g} off in int8 on {on}"
            left[name] = Decision("copy", f"{where}: {words}", Moved(8, why, words))
    return left


def _worst(values: Iterable[ir.Value], placement: Placement, errors: Mapping[ir.Value, float]) -> float:
    roots = (placement.roots.get(value, value) for value in values)
    return max((errors.get(root, 0.0) for root in roots), default=0.0)
