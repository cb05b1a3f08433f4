"""Which weights of an ONNX model are rounded by what goes into their layers, and what is known of it."""

import math

from modelopt_rs.onnx.layer_inputs import refuse_unseen
from modelopt_rs.onnx.layer_statistics import LayerInputs
from modelopt_rs.onnx.weights import Weight, find_weights
from modelopt_rs.planning.by_inputs import KnownInputs, statistics_kind
from modelopt_rs.planning.onnx import Calibrate
from modelopt_rs.planning.statistics import StatisticsFile
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source

__all__ = ["input_columns", "known_inputs"]


def known_inputs(
    source: Source,
    method: str | None,
    calibrate: Calibrate | None,
    execution: Execution,
    statistics: StatisticsFile | None = None,
) -> KnownInputs:
    """Return what is known of the inputs of MatMul and Gemm, as a float model runs on samples, or of a file.

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
    unseen = {name: refused.get(name) or _why_not(weight) for name, weight in weights.items()}
    names = [name for name, reason in unseen.items() if reason is None]
    if statistics is not None:
        known = statistics.check({name: _columns(weights[name]) for name in names}, method)
        return KnownInputs(method, {**unseen, **known}, None if execution.dry_run else statistics)
    assert calibrate is not None
    if not names or execution.dry_run:
        return KnownInputs(method, unseen, None)
    seen = LayerInputs(
        source.graph,
        source.path,
        statistics_kind(method),
        names,
        calibrate,
        max_memory=execution.max_memory // 2,  # the other half is for the weight that is rounded
        threads=execution.threads,
    )
    return KnownInputs(method, unseen, seen)


def input_columns(source: Source) -> dict[str, int]:
    """Return how many inputs weights have."""
    return {weight.name: _columns(weight) for weight in find_weights(source.graph) if weight.name in source.tensors}


def _columns(weight: Weight) -> int:
    return math.prod(weight.shape) // max(weight.shape[weight.out_axis], 1)


def _why_not(weight: Weight) -> str | None:
    """Say why a weight whose inputs can be seen is not rounded by them."""
    if any(use.kind == "conv" for use in weight.uses):
        return "convolutions are rounded plainly"
    if len({(use.in_axis, use.out_axis) for use in weight.uses}) > 1:
        return "it is used along both axes"
    return None
