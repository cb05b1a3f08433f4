"""How far the outputs of layers are off with quantized weights, on what goes through the model."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.onnx.attention_values import makes_attention_values
from modelopt_rs.onnx.measure.layer_alone import WHAT, LayerAlone, taken
from modelopt_rs.onnx.measure.layer_inputs import Data
from modelopt_rs.onnx.measure.layer_samples import Seen, see
from modelopt_rs.onnx.measure.summed_errors import (
    ENOUGH,
    LESS,
    OUTPUTS,
    WORTH,
    SummedErrors,
    most_useful,
    out_of_proportion,
)
from modelopt_rs.onnx.weight_only.coders import Coder
from modelopt_rs.onnx.weights import Use, Weight, find_weights
from modelopt_rs.planning.decide import Moved
from modelopt_rs.planning.loss_table import role_of
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.sensitivity import LayerError, Sensitivity, layer_error
from modelopt_rs.stream.error_figures import ErrorFigures

__all__ = ["LayerErrors"]

OUT_OF_PROPORTION: Final = f"their errors do over {WORTH:g} times as much to the outputs for their bytes as all do"


class LayerErrors:
    """Measures layers of a model in onnxruntime, each alone, with float and with quantized weights.

    Where there are no inputs, or a layer's output can't be had of some rows of them, its weights are measured.

    Parameters
    ----------
    sensitivity : Sensitivity
        The limit; measures weights.
    model : Model
        As it was read from `path`.
    path : path
    options : QuantizeOptions
    onnx : OnnxOptions
    data : Data
        Where inputs come from.
    """

    def __init__(
        self,
        sensitivity: Sensitivity,
        model: ir.Model,
        path: str | os.PathLike[str],
        options: QuantizeOptions,
        onnx: OnnxOptions,
        data: Data,
    ) -> None:
        self._sensitivity, self._model, self._path, self._data = sensitivity, model, path, data
        self._options = replace(options, include=(), exclude=(), bits_of={}, uniform=True, max_layer_error=None)
        self._onnx = OnnxOptions(target=onnx.target, accuracy_level=onnx.accuracy_level, per_tensor=onnx.per_tensor)
        self._asked = options.bits
        self._seen: Seen | None = None
        self._looked = False
        self._errors: dict[tuple[ir.Node, int], float | None] = {}

    @property
    def errors(self) -> Mapping[str, LayerError]:
        """What was measured last of each weight."""
        return self._sensitivity.errors

    def too_far(self, weight: Weight, bits: int, coder: Coder) -> tuple[str, str] | None:
        """Say that a layer is too far off with some bits, in general and how far; None if it isn't."""
        errors = [self._error(use, bits) for use in weight.uses]
        known = [error for error in errors if error is not None]
        on = self._data.words
        # Names say it where torch kept them, and the graph where it didn't.
        is_value = role_of(weight.name) == "value" or any(makes_attention_values(use.node) for use in weight.uses)
        if not known or on is None:
            return self._sensitivity.too_far(weight.name, bits, [coder], is_value)
        return self._sensitivity.judged(weight.name, LayerError(bits, max(known), on), is_value)

    def for_outputs(self, weights: Mapping[str, Weight], bits: Mapping[str, int]) -> dict[str, Moved]:
        """Return which weights need more bits, as all together would make the model's outputs too far off."""
        sensitivity, on = self._sensitivity, self._data.words
        if on is None or isinstance(self._data.calibrate, Iterator) or not weights:
            return {}
        whole = SummedErrors(self._model, self._path, sensitivity.source, sensitivity.execution, self._data)
        errors = whole.of(weights, self._options, bits)
        sizes = {name: sensitivity.source.tensors[name].nbytes for name in errors}
        limit = OUTPUTS[self._asked] * sensitivity.limit
        why = f"with those asked for the model's outputs would be over {limit:g} off on {on}"
        moved = most_useful(errors, sizes, bits, limit)
        total = math.sqrt(np.sum(list(errors.values()), axis=0).max()) if errors else 0.0
        found = {name: Moved(more, why, f"with those asked for the outputs would be {total:.2g} off on {on}")
                 for name, more in moved.items()}  # fmt: skip
        left = {name: errors[name] * LESS[bits[name]] if name in moved else errors[name] for name in errors}
        have = {**bits, **moved}
        for name, (more, times) in out_of_proportion(left, sizes, have, ENOUGH * limit).items():
            words = f"its error does {times:.0f} times as much to the outputs on {on} for its bytes as all do"
            found.setdefault(name, Moved(more, f"{OUT_OF_PROPORTION} on {on}", words))
        return found

    def _error(self, use: Use, bits: int) -> float | None:
        """Return how far the output of a node is off; None where that can't be said."""
        names = taken(use)
        if names is None or self._data.words is None:
            return None
        if (use.node, bits) not in self._errors:
            samples = self._samples(names, WHAT[use.kind])
            self._errors[use.node, bits] = self._measured(use, bits, samples) if samples else None
        return self._errors[use.node, bits]

    def _samples(self, names: Sequence[str], what: str) -> list[tuple[Array, ...]]:
        """Return what a node takes in each sample: finite, and not all zeros."""
        if not self._looked:
            self._looked = True
            execution = self._sensitivity.execution
            self._seen = see(
                self._model,
                self._path,
                self._values(),
                self._data,
                threads=execution.threads,
                max_memory=execution.max_memory,
            )
        if self._seen is None or any(self._values()[name] != what for name in names):
            return []
        values = [self._seen[name] for name in names]
        if len({len(each) for each in values}) != 1:
            return []
        samples = list(zip(*values, strict=True))
        return [each for each in samples if each[0].any() and all(np.isfinite(array).all() for array in each)]

    def _values(self) -> dict[str, str]:
        """Return all values that layers take, and what of them is kept: what the first wants."""
        found: dict[str, str] = {}
        for weight in find_weights(self._model):
            for use in weight.uses:
                for name in taken(use) or ():
                    found.setdefault(name, WHAT[use.kind])
        return found

    def _measured(self, use: Use, bits: int, samples: Sequence[Sequence[Array]]) -> float | None:
        execution = self._sensitivity.execution
        layer = LayerAlone(
            use,
            self._sensitivity.source,
            self._model.graph.opset_imports,
            execution.max_memory // 16,
            execution.threads,
        )
        try:
            there = layer.run(samples)
            options = self._options.with_bits(bits)
            coded = layer.run_quantized(samples, options, self._onnx, execution.max_memory)
        except Exception as e:  # those of onnxruntime have no common class but this
            if isinstance(e, MemoryError):
                raise
            return None
        if coded is None:
            return None
        figures = sum((_figures(x, y) for xs, ys in zip(there, coded, strict=True)
                       for x, y in zip(xs, ys, strict=True)), ErrorFigures())  # fmt: skip
        error = layer_error(figures)
        return error if np.isfinite(error) else None


def _figures(x: Array, y: Array) -> ErrorFigures:
    x, off = x.astype(np.float64), y.astype(np.float64) - x
    return ErrorFigures(xx=float((x * x).sum()), dd=float((off * off).sum()))
