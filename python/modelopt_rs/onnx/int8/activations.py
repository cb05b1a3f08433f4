"""`quantize_activations`: layers that compute in int8, by calibrated ranges or by those of each call."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx import placeholder
from modelopt_rs.dtypes import DTYPES
from modelopt_rs.onnx.int8.build import Builder
from modelopt_rs.onnx.int8.calibration import Calibration
from modelopt_rs.onnx.int8.candidates import Candidates, check_options, find_candidates
from modelopt_rs.onnx.int8.codes import Bias, ChannelCodes, Scaling, Sums
from modelopt_rs.onnx.int8.correct import correct_bias, is_correctable
from modelopt_rs.onnx.int8.dynamic import Dynamic
from modelopt_rs.onnx.int8.equalize import equalize, find_pairs
from modelopt_rs.onnx.int8.far_off import Change, Errors, Watched, left_float
from modelopt_rs.onnx.int8.flat import Flat, flat_values
from modelopt_rs.onnx.int8.layers import Layer, rank_of
from modelopt_rs.onnx.int8.placement import Placement, place
from modelopt_rs.onnx.int8.recurrent import GateCodes, quantize_lstm
from modelopt_rs.onnx.int8.smooth import fold_into_norm
from modelopt_rs.onnx.int8.static import Grid, float_bias, quantize_layer, quantize_values
from modelopt_rs.onnx.int8.statistics import Factor, Statistics
from modelopt_rs.onnx.opset import raise_ir_version, raise_opset
from modelopt_rs.onnx.weights import Weight
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant.codes import code_of, params_of
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["quantize_activations"]

# DequantizeLinear has a scale for each channel from 13 on; DynamicQuantizeLinear is of 11.
OPSETS = {"static": 13, "dynamic": 11}


def quantize_activations(
    model: ir.Model,
    tensors: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    *,
    path: str | os.PathLike[str] = "model.onnx",
    threads: int | None = None,
    watch: Watched | None = None,
) -> tuple[dict[str, Transform], dict[str, Decision]]:
    """Rewrite a graph so that its layers compute in int8; the weights follow in tiles, through the transforms.

    Static: QuantizeLinear and DequantizeLinear around MatMul, Gemm and Conv, with ranges from calibration data.
    Dynamic: DynamicQuantizeLinear and MatMulInteger for MatMul and Gemm, DynamicQuantizeLSTM for LSTM. Weights have
    a scale for each output channel, and codes up to 127 of which two that kernels add in 16 bits make 128 together (for
    other runtimes than onnxruntime codes up to 64), so that no processor saturates.

    Parameters
    ----------
    model : Model
        Edited in place: new nodes, new initializers without values, the old ones removed, the opset raised if needed.
    tensors : mapping
        The initializers of the main graph that a source has tiles of.
    options : QuantizeOptions
        8 bits, symmetric, without groups; `include` and `exclude`.
    onnx : OnnxOptions
        `activations`, `calibrate`, `method`, `bias_correction`, `equalize`, `smooth`, `opset`.
    path : path
        The file of the model, as errors name it.
    threads : int, optional
        Threads to compute with.
    watch : Watched, optional
        Runs the model for dynamic activations, to see how far off they are; None: nothing is measured.

    Returns
    -------
    transforms : dict
        For every tensor that is quantized what makes the new ones of it. All others that are still there are copied.
    decisions : dict
        For every tensor and every weight what is done with it, and why.

    Raises
    ------
    OptionError
        If the options ask for what int8 kernels don't have, or calibration data don't fit.
    UnsupportedError
        If the opset can't be raised.
    FormatError
        If onnxruntime can't run the model.
    ValueError
        If a value is not finite, or empty in all samples.

    References
    ----------
    Jacob et al. 2018, arXiv 1712.05877, section 2.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.int8.activations import quantize_activations
    >>> from modelopt_rs.planning.onnx import OnnxOptions
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> w = ir.val("w", const_value=ir.tensor(np.ones((4, 8), np.float32), name="w"))
    >>> x = ir.val("x", ir.DataType.FLOAT, [1, 4])
    >>> node = ir.node("MatMul", [x, w], outputs=[ir.val("y")])
    >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17}, name="g")
    >>> model = ir.Model(graph, ir_version=8)
    >>> _, decisions = quantize_activations(model, {}, QuantizeOptions(), OnnxOptions(activations="dynamic"))
    >>> decisions["w"].reason
    'int8, a scale for each output; activations by the range of each call'
    >>> [node.op_type for node in model.graph]
    ['DynamicQuantizeLinear', 'MatMulInteger', 'Cast', 'Mul', 'Mul']
    """
    check_options(options, onnx)
    need = max(OPSETS[str(onnx.activations)], onnx.opset or 0)
    found = find_candidates(model, tensors, options, onnx)
    # A model that nothing is done to stays as it is.
    if need > model.graph.opset_imports.get("", 0) and (onnx.opset or found.layers or found.recurrent):
        raise_opset(model, need)
        found = find_candidates(model, tensors, options, onnx)
    layers = [layer for group in found.layers.values() for layer in group]
    run = _Run(model, found, layers, tensors, threads, onnx.target == "portable")
    if layers and onnx.activations == "static":
        run.static(onnx, path, options.activation_error)
    elif layers:
        run.dynamic(onnx, options.activation_error, watch)
    run.recurrent()
    raise_ir_version(model)
    return run.transforms, found.decisions


class _Run:
    """One rewriting of one model."""

    def __init__(
        self,
        model: ir.Model,
        found: Candidates,
        layers: list[Layer],
        tensors: Mapping[str, TensorInfo],
        threads: int | None,
        portable: bool,
    ) -> None:
        self._model, self._found, self._layers, self._portable = model, found, layers, portable
        self._tensors, self._threads = tensors, threads
        self._build = Builder(model)
        self.transforms: dict[str, Transform] = {}

    def dynamic(self, onnx: OnnxOptions, limit: float | None, watch: Watched | None) -> None:
        """Rewrite to integer products of activations that are quantized in each call."""
        if onnx.equalize:  # what it has changed of a layer and its neighbour can't be left
            equalize(find_pairs(self._layers))
        elif limit is not None and watch is not None:
            # What stands in bodies comes out in rows of all their runs together, which are not quantized so.
            values = {str(layer.x.name): layer.x for layer in self._layers if not layer.use.inner}
            errors = Errors(None, threads=self._threads)
            for name, array in watch.values(list(values)):
                errors.take(values[name], array)
                del array  # before the next run
            self._leave(left_float(self._found.layers, Placement(), errors.found, limit, watch.words))
        rewrite = Dynamic(self._model, self._build)
        for name, layers in self._found.layers.items():
            parts = self._stored(name, layers, {})
            for layer in layers:
                if layer.changed and layer.kind == "matmul":
                    float_bias(self._model, self._build, layer)
                rewrite.quantize_layer(layer, (parts[0], parts[1]))

    def static(self, onnx: OnnxOptions, path: str | os.PathLike[str], limit: float | None) -> None:
        """Rewrite to quantized activations with the ranges that calibration data have."""
        placement = place(self._model.graph, self._layers)
        flat = flat_values(placement.whole & {*placement.roots.values()})
        factors: dict[ir.Value, Change] = {**flat}
        if onnx.equalize:
            axes = {value: layer.channel_axis for layer in self._layers for value in (layer.x, layer.out)}
            factors |= {value: Factor(axes[value], f) for value, f in equalize(find_pairs(self._layers)).items()}
        calibrated = Calibration(self._model, placement, self._layers, onnx, path, self._threads)
        smoothed = calibrated.smooth(factors) if onnx.smooth is not None else {}
        seen = calibrated.statistics({**factors, **smoothed})
        if self._leave_idle(seen):
            placement = place(self._model.graph, self._layers)
        grids = _grids(seen, flat)
        # What equalizing has changed of a layer and its neighbour can't be left.
        if limit is not None and not onnx.equalize:
            # What flat values are made into is measured instead: of themselves most is cut off for good.
            seen_on = {root: grid for root, grid in grids.items() if root not in flat}
            errors = calibrated.errors(seen_on, {**factors, **smoothed})
            placement = self._leave_far_off(placement, grids, smoothed, errors, limit)
        left = {
            x: factor.values
            for x, factor in smoothed.items()
            if not fold_into_norm(self._model, self._build, x, factor.values, calibrated.groups[x])
        }
        grids = {root: replace(grid, factor=left.get(root)) for root, grid in grids.items()}
        for layer in self._layers:
            if is_correctable(layer, onnx.bias_correction):
                found = seen.seen[layer.x]
                mean = found.mean if onnx.bias_correction else found.likely_mean
                correct_bias(layer, mean, self._sums([layer]), self._threads)
        # Of what bodies make only the rows were seen, and what the graph tells is what runtimes know.
        main = {*self._model.graph.inputs, *(value for node in self._model.graph for value in node.outputs)}
        ranks = {layer: seen.seen[layer.x].rank if layer.x in main else rank_of(layer.x) for layer in self._layers}
        quantize_values(self._model, self._build, placement, grids, self._layers)
        scales = {layer: float(grids[placement.roots[layer.x]].scale) for layer in self._layers}
        for name, layers in self._found.layers.items():
            within = {
                layer: scales[layer]
                for layer in layers
                if layer.bias is not None and (layer.kind != "matmul" or ranks[layer] == 2)
            }
            codes, scale, *biases = self._stored(name, layers, within)
            pairs = dict(zip(within, zip(biases[::2], biases[1::2], strict=True), strict=True))
            for layer in layers:
                if layer.changed and layer not in within:
                    float_bias(self._model, self._build, layer)
                quantize_layer(self._model, self._build, layer, (codes, scale), pairs.get(layer))

    def _leave_idle(self, seen: Statistics) -> bool:
        """Leave weights of layers whose bodies ran on no sample as they are; say whether there are any."""
        idle = {
            name: layer for name, layers in self._found.layers.items() for layer in layers if layer.x not in seen.seen
        }
        words = "no sample gets to its body"
        self._leave({name: Decision("copy", f"{layer.use.where}: {words}") for name, layer in idle.items()})
        return bool(idle)

    def _leave_far_off(
        self,
        placement: Placement,
        grids: dict[ir.Value, Grid],
        smoothed: dict[ir.Value, Factor],
        errors: Mapping[ir.Value, float],
        limit: float,
    ) -> Placement:
        """Leave layers float whose activations would be too far off; return where the others have theirs."""
        left = left_float(self._found.layers, placement, errors, limit, "calibration data")
        off = {value for value, root in placement.roots.items() if errors.get(root, 0.0) > limit}
        if not off:
            return placement
        for layer in (layer for name in left for layer in self._found.layers[name]):
            if smoothed.pop(layer.x, None) is not None:
                layer.in_scale = None
        self._leave(left)
        found = place(self._model.graph, self._layers, off)
        for root in found.roots.values():  # of what was only moved, the range was another's
            grids[root] = grids[placement.roots[root]]
        return found

    def _leave(self, decisions: Mapping[str, Decision]) -> None:
        """Leave weights to be quantized alone."""
        for name in decisions:
            del self._found.layers[name]
        self._found.decisions.update(decisions)
        self._layers = [layer for group in self._found.layers.values() for layer in group]

    def recurrent(self) -> None:
        """Rewrite LSTMs to those that quantize what they take in every step."""
        nodes: dict[ir.Node, dict[int, tuple[ir.Value, ir.Value]]] = {}
        for name, weight in self._found.recurrent.items():
            info, unused = self._found.infos[name], self._build.unused
            names = unused(f"{name}_quantized"), unused(f"{name}_scale")
            read = info if name in self._tensors else replace(info, dtype="F32", nbytes=4 * math.prod(info.shape))
            codes, scale = self._made(GateCodes(read, names, threads=self._threads), info, weight)
            for use in weight.uses:
                nodes.setdefault(use.node, {})[use.index] = codes, scale
        for node, weights in nodes.items():
            quantize_lstm(self._model, self._build, node, weights)

    def _stored(self, name: str, layers: list[Layer], biases: Mapping[Layer, float]) -> list[ir.Value]:
        """Make the initializers that stand for a weight: codes, scales, and both of each bias."""
        info, unused = self._found.infos[name], self._build.unused
        first = layers[0]
        made = [
            Bias((unused(f"{name}_bias"), unused(f"{name}_bias_scale")), layer.bias, x_scale)
            for layer, x_scale in biases.items()
            if layer.bias is not None
        ]
        coder = ChannelCodes(
            info if name in self._tensors else replace(info, dtype="F32"),
            first.use.out_axis,
            (unused(f"{name}_quantized"), unused(f"{name}_scale")),
            scaling=Scaling(first.in_scale, first.out_scale),
            sums=self._sums(layers),
            biases=made,
            threads=self._threads,
        )
        return self._made(coder, info, first.weight)

    def _sums(self, layers: Sequence[Layer]) -> Sums:
        """Return what the kernels of layers add in 16 bits; of other runtimes than onnxruntime that is not known."""
        if self._portable:
            return Sums.ANY
        return Sums.NOTHING if all(layer.depthwise for layer in layers) else Sums.PAIRS

    def _made(self, coder: Transform, info: TensorInfo, weight: Weight) -> list[ir.Value]:
        """Make the initializers that a coder has the values of: now, or in tiles."""
        tensors: dict[str, ir.TensorProtocol]
        if info.name in self._tensors:
            self.transforms[info.name] = coder
            tensors = {
                part.name: placeholder(part.name, ir.DataType(DTYPES[part.dtype].onnx), part.shape)
                for part in coder.outputs
            }
        else:
            tensors = _at_once(coder, info, weight)
        return [self._build.initializer(part.name, tensors[part.name]) for part in coder.outputs]


def _grids(seen: Statistics, flat: Mapping[ir.Value, Flat]) -> dict[ir.Value, Grid]:
    """Return the codes of all values that were there."""
    found = {}
    for root, calibrator in seen.calibrators.items():
        if root in seen.seen:
            ends = calibrator.range() if root not in flat else flat[root].ends(*calibrator.range())
            scale, zero = params_of(ends, code_of("Calibrator", "uint8"), symmetric=False)
            found[root] = Grid(np.float32(scale), np.uint8(zero))
    return found


def _at_once(coder: Transform, info: TensorInfo, weight: Weight) -> dict[str, ir.TensorProtocol]:
    """Make the tensors of a weight that is in memory."""
    assert weight.value.const_value is not None
    rows = np.asarray(weight.value.const_value.numpy(), np.float32).reshape(info.rows, -1)
    coder.begin(len(rows))
    made: dict[str, Array] = {}
    for _ in range(coder.sweeps):
        made.update(coder(rows))
        made.update(coder.end())
    return {part.name: ir.tensor(made[part.name].reshape(part.shape), name=part.name) for part in coder.outputs}
