"""Which weights of an ONNX model are rounded by what goes into their layers, and what is known of it."""

import math
from functools import partial
from typing import Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.onnx.measure.layer_inputs import layer_inputs, refuse_unseen
from modelopt_rs.onnx.measure.layer_statistics import LayerInputs
from modelopt_rs.onnx.weights import Weight, find_weights
from modelopt_rs.planning.by_inputs import KnownInputs, Statistics, statistics_kind
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.planning.statistics import StatisticsFile
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source

__all__ = ["input_columns", "known_inputs"]

# Squares of a convolution's inputs that are held: as they are summed, in the order of channels and of blocks, what is
# eliminated, its factor and panels.
SQUARES: Final = 6


def known_inputs(
    source: Source,
    method: str | None,
    calibrate: Calibrate | None,
    execution: Execution,
    statistics: StatisticsFile | None = None,
) -> KnownInputs:
    """Return what is known of the inputs of MatMul, Gemm and Conv, as a float model runs on samples, or of a file.

    Parameters
    ----------
    source : Source
        Whose graph is not rewritten yet.
    method : {"gptq", "awq"} or None
    calibrate : path, mapping, iterable or callable, optional
    execution : Execution
        Of a dry run nothing is looked at.
    statistics : StatisticsFile, optional
        Instead of samples.
    """
    refused = refuse_unseen(source.graph)
    weights = {weight.name: weight for weight in find_weights(source.graph) if weight.name in source.tensors}
    most = execution.max_memory if method == "gptq" else 0
    unseen = {name: refused.get(name) or _why_not(weight, most) for name, weight in weights.items()}
    names = [name for name, reason in unseen.items() if reason is None]
    groups = {name: layer_inputs(weights[name])[0].groups for name in names}
    seen: Statistics | None = None
    if statistics is not None:
        unseen = {**unseen, **statistics.check({name: _columns(weights[name]) for name in names}, method, groups)}
        seen = None if execution.dry_run else statistics
    elif names and not execution.dry_run:
        assert calibrate is not None
        seen = LayerInputs(
            source.graph,
            source.path,
            statistics_kind(method),
            names,
            calibrate,
            max_memory=execution.max_memory // 2,  # the other half is for the weight that is rounded
            threads=execution.threads,
        )
    known = KnownInputs(method, unseen, seen)
    known.groups = groups
    kernels = {name: math.prod(weights[name].shape[2:]) if weights[name].kind == "conv" else 1 for name in names}
    known.moments = {
        name: each if kernels[name] == 1 else partial(_channels_first, each, kernels[name])
        for name, each in known.moments.items()
    }
    return known


def input_columns(source: Source) -> dict[str, int]:
    """Return how many inputs weights have."""
    return {weight.name: _columns(weight) for weight in find_weights(source.graph) if weight.name in source.tensors}


def _columns(weight: Weight) -> int:
    return math.prod(weight.shape) // max(weight.shape[weight.out_axis], 1)


def _channels_first(moments: Moments, kernel: int) -> Array:
    """Return the second moments of patches in the order of a weight: of each channel its kernel positions."""
    found = moments()
    if found.ndim < 2:  # nothing is known
        return found
    order = np.arange(found.shape[-1]).reshape(kernel, -1).T.reshape(-1)
    return np.ascontiguousarray(found[..., order[:, None], order])


def _why_not(weight: Weight, most: int) -> str | None:
    """Say why a weight whose inputs can be seen is not rounded by them; second moments of patches may take `most`."""
    if any(use.kind == "conv" for use in weight.uses):
        if not most:
            return "convolutions are rounded plainly"
        if len({use.kind for use in weight.uses}) > 1 or len({each.groups for each in layer_inputs(weight)}) > 1:
            return "it is used by a convolution and otherwise"
        if SQUARES * 8 * _columns(weight) ** 2 > most:
            return f"the squares of its {_columns(weight):,} inputs take more than the memory"
    if len({(use.in_axis, use.out_axis) for use in weight.uses}) > 1:
        return "it is used along both axes"
    return None
