"""Calibration of one model: its samples, run as often as the options need."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Final, cast

import onnx_ir as ir

from modelopt_rs.errors import quote
from modelopt_rs.onnx.int8.correct import is_correctable
from modelopt_rs.onnx.int8.far_off import Change, Errors
from modelopt_rs.onnx.int8.layers import Layer
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.int8.placement import Placement
from modelopt_rs.onnx.int8.smooth import smooth, smoothable
from modelopt_rs.onnx.int8.static import Grid
from modelopt_rs.onnx.int8.statistics import Factor, Statistics
from modelopt_rs.onnx.run.samples import Samples
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.quant.calibrator import Method

__all__ = ["Calibration"]

# Samples that errors are measured on: what is far off is so in every one.
MEASURED: Final = 16


class Calibration:
    """A float model in onnxruntime, with the values that are to be quantized as outputs.

    Parameters
    ----------
    model : Model
        As it was read from `path`: nothing is changed in it yet.
    placement : Placement
    layers : sequence of Layer
    onnx : OnnxOptions
    path : path
    threads : int, optional

    Attributes
    ----------
    groups : dict
        The values that `smooth` divides, and the layers that take them.
    """

    def __init__(
        self,
        model: ir.Model,
        placement: Placement,
        layers: Sequence[Layer],
        onnx: OnnxOptions,
        path: str | os.PathLike[str],
        threads: int | None,
    ) -> None:
        assert onnx.calibrate is not None  # OnnxOptions wants it with static activations
        self._layers, self._onnx, self._threads = layers, onnx, threads
        self._method = cast(Method, onnx.method)
        self._roots = list(dict.fromkeys(placement.roots.values()))
        self.groups: dict[ir.Value, list[Layer]] = {}
        if onnx.smooth is not None:
            alone = {value for value, root in placement.roots.items() if value is root} - placement.whole
            self.groups = smoothable(layers, alone)
        values = dict.fromkeys([*self._roots, *(layer.x for layer in layers)])
        self._observer = Observer(model, path, [str(value.name) for value in values], threads=threads)
        self._samples = Samples(onnx.calibrate, self._observer.infos, path)

    def smooth(self, factors: Mapping[ir.Value, Change]) -> dict[ir.Value, Factor]:
        """Run the samples for the peaks of channels; return what the values of `groups` are to be multiplied by."""
        if not self.groups:
            return {}
        seen = self._run(Statistics(self._method, peaks=dict.fromkeys(self.groups, -1), factors=factors))
        peaks = {x: found.peak for x, found in seen.seen.items() if found.peak is not None}
        assert self._onnx.smooth is not None
        return {x: Factor(-1, factor) for x, factor in smooth(self.groups, peaks, self._onnx.smooth).items()}

    def statistics(self, factors: Mapping[ir.Value, Change]) -> Statistics:
        """Run the samples for the ranges of all roots, and the means and ranks of what layers take.

        Raises
        ------
        ValueError
            If a value is not finite, or empty in every sample: what only layers in bodies take may be.
        """
        asked = self._onnx.bias_correction
        means = {layer.x: layer.channel_axis for layer in self._layers if is_correctable(layer, asked)}
        ranks = [layer.x for layer in self._layers]
        seen = self._run(Statistics(self._method, ranges=self._roots, means=means, ranks=ranks, factors=factors))
        within = {layer.x for layer in self._layers if layer.use.inner}
        for name, value in seen.values.items():
            if value not in seen.seen and value not in within:
                raise ValueError(
                    f"calibrate: value {quote(name)} is empty in every sample; exclude the weights it meets"
                )
        return seen

    def errors(self, grids: Mapping[ir.Value, Grid], factors: Mapping[ir.Value, Change]) -> dict[ir.Value, float]:
        """Run some samples again; return how far values are off by their codes: none where one pass is all there is."""
        if self._samples.once:
            return {}
        errors, values = Errors(grids, factors, self._threads), {str(value.name): value for value in grids}
        for name, array in self._observer.values(itertools.islice(self._samples, MEASURED), list(values)):
            errors.take(values[name], array)
            del array  # before the next run
        return errors.found

    def _run(self, statistics: Statistics) -> Statistics:
        for name, array in self._observer.values(self._samples, list(statistics.values)):
            statistics.take(name, array)
            del array  # before the next run
        return statistics
