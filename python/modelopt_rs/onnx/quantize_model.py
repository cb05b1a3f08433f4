"""Quantizing an ONNX model: its graph rewritten, its weights in tiles, both models run."""

from collections.abc import Collection, Mapping
from typing import Any

from modelopt_rs.containers.onnx.tensors import initializer_infos
from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.awq import Factors, find_factors
from modelopt_rs.onnx.check import OnnxCheck
from modelopt_rs.onnx.folding import Folding
from modelopt_rs.onnx.known_inputs import known_inputs
from modelopt_rs.onnx.measure.layer_errors import LayerErrors
from modelopt_rs.onnx.measure.layer_inputs import Data
from modelopt_rs.onnx.measure.watched import watched
from modelopt_rs.onnx.quantize import quantize_graph
from modelopt_rs.onnx.run.inputs import graph_infos
from modelopt_rs.onnx.run.samples import Samples
from modelopt_rs.onnx.value_infos import forget_value_infos, names_of_value_infos
from modelopt_rs.planning.by_inputs import KnownInputs
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.planning.sensitivity import LayerError, Sensitivity
from modelopt_rs.planning.statistics import StatisticsFile
from modelopt_rs.planning.warnings import (
    doubles_in_words,
    far_off_at_8_bits,
    few_samples_in_words,
    outputs_in_words,
    quantize_warnings,
)
from modelopt_rs.report.reports import Report, TensorReport, total
from modelopt_rs.report.run import relative_error
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source, TensorInfo
from modelopt_rs.stream.transform import Copy, Transform

__all__ = ["plan_model"]


def plan_model(
    source: Source,
    execution: Execution,
    options: QuantizeOptions,
    onnx: OnnxOptions,
    run: RunOptions | None,
    calibrate: Calibrate | None = None,
    statistics: StatisticsFile | None = None,
) -> FilePlan:
    """Decide what becomes of an ONNX model that is quantized; its graph is rewritten at once.

    Parameters
    ----------
    source : Source
        Has a graph.
    execution : Execution
    options : QuantizeOptions
    onnx : OnnxOptions
    run : RunOptions or None
        As for `quantize_file`.
    calibrate : path, mapping, iterable or callable, optional
        Data to find out with which weights need more bits, and what goes into layers for `options.method`.
    statistics : StatisticsFile, optional
        What goes into layers, instead.
    """
    check = OnnxCheck(source, run, execution, onnx.calibrate if calibrate is None else calibrate)
    told = names_of_value_infos(source.graph)
    folding = Folding(source, execution.max_memory // 4)
    infos = initializer_infos(source.graph)  # decisions are of weights in memory, too
    known = _known(folding, execution, options, onnx, calibrate, statistics)
    factors = Factors() if known is None else find_factors(folding, known, options, onnx)
    # With factors layers have other inputs than their weights: these are measured alone.
    data = Data(None, None) if factors.weights else Data(calibrate, run)
    measure = _measure(folding, execution, options, onnx, data)
    how = {"measure": measure, "watch": watched(source.graph, source.path, data, execution), **_how(source, execution)}
    how |= {"moments": {} if known is None else {**known.moments, **factors.moments}}
    few = few_samples_in_words(_samples(source, onnx))
    changed, decisions = quantize_graph(source.graph, folding.tensors, options, onnx, **how)
    decisions = decisions if known is None else known.decided(decisions, changed)
    infos = folding.settle(source.graph, changed, infos)
    forget_value_infos(source.graph, told)
    left = {name: info for name, info in source.tensors.items() if name in source.graph.graph.initializers}
    decisions, changed = factors.decided(decisions), factors.transforms(folding.tensors, changed)
    copies = {k: Copy(left[k]) for k in left if k not in changed}
    transforms: dict[str, Transform] = {**changed, **factors.transforms(left, copies)}
    bits, errors = _bits(changed, decisions, options, onnx), {} if measure is None else measure.errors

    def report(seconds: float) -> Report:
        figures = {} if execution.dry_run else _figures(changed)
        settled, unseen = (decisions, few) if known is None else known.reached(decisions)
        rows = [_tensor_report(infos[k], settled[k], transforms.get(k), figures.get(k)) for k in settled if k in infos]
        totals = total(rows, figures, seconds)
        sizes = check.file_bytes or (totals.bytes_before, totals.bytes_after)
        return Report(
            command="quantize",
            **execution.said(),
            # Where no size of blocks is given, each form has its own: the reasons say which.
            options={**options.as_measured(), **_options(options, onnx, calibrate)},
            totals=totals,
            tensors=tuple(rows),
            file_bytes=check.file_bytes,
            run=check.report,
            warnings=(*_said(decisions, bits, options, sizes, errors, infos), *_far_off(figures, bits, check), *unseen),
        )

    return FilePlan(view=folding, transforms=transforms, check=check, report=report)


def _how(source: Source, execution: Execution) -> dict[str, Any]:
    return {"path": source.path, "threads": execution.threads, "max_memory": execution.max_memory}


def _samples(source: Source, onnx: OnnxOptions) -> int | None:
    """Return how many samples activations are calibrated with; None where nobody knows it, or none are."""
    infos = None if onnx.activations != "static" else graph_infos(source.graph)
    if infos is None or onnx.calibrate is None:
        return None
    return Samples(onnx.calibrate, infos, source.path).rows


def _known(
    source: Source,
    execution: Execution,
    options: QuantizeOptions,
    onnx: OnnxOptions,
    calibrate: Calibrate | None,
    statistics: StatisticsFile | None,
) -> KnownInputs | None:
    """Return what is known of the inputs of layers; None where it isn't asked for."""
    if statistics is None and (options.method is None or calibrate is None):
        return None
    got = "statistics" if options.method is None else repr(options.method)
    if onnx.activations != "none":
        raise OptionError(f"method must be left out with activations {onnx.activations!r}, got {got}")
    if onnx.per_tensor:
        raise OptionError(f"method must be left out with per_tensor, got {got}")
    return known_inputs(source, options.method, calibrate, execution, statistics)


def _options(options: QuantizeOptions, onnx: OnnxOptions, calibrate: Calibrate | None) -> dict[str, Any]:
    found: dict[str, Any] = {"group_size": options.group_size, **onnx.as_dict(calibrate)}
    return found if options.method is None else {**found, "method": options.method}


def _measure(
    folding: Folding, execution: Execution, options: QuantizeOptions, onnx: OnnxOptions, data: Data
) -> LayerErrors | None:
    """Return what says which weights need more bits; None where all get those asked for."""
    limit = options.layer_error
    if limit is None:
        return None
    sensitivity = Sensitivity(folding, execution, limit)
    return LayerErrors(sensitivity, folding.graph, folding.path, options, onnx, data)


def _bits(
    changed: Collection[str], decisions: Mapping[str, Decision], options: QuantizeOptions, onnx: OnnxOptions
) -> dict[str, int]:
    """Return the bits of each weight that gets codes."""
    return {name: moved.bits if (moved := decisions[name].moved) else onnx.at(name, options).bits for name in changed}


def _said(
    decisions: Mapping[str, Decision],
    bits: Mapping[str, int],
    options: QuantizeOptions,
    sizes: tuple[int, int],
    errors: Mapping[str, LayerError],
    infos: Mapping[str, TensorInfo],
) -> tuple[str, ...]:
    """Return what should be known of the choice of bits, and of weights that have none."""
    # What loses much by the plain formula need not with searched scales.
    plain = bits.values() if options.search is None else ()
    schemes = [(each, options.with_bits(each).spec.symmetric) for each in plain]
    doubles = doubles_in_words((infos[name] for name in decisions if name in infos), sizes[1])
    return (*quantize_warnings(decisions, schemes, sizes, errors), *doubles)


def _far_off(figures: Mapping[str, ErrorFigures], bits: Mapping[str, int], check: OnnxCheck) -> list[str]:
    """Say what is far off of weights of 8 bits, and of the outputs where all are: nothing was measured before."""
    found = far_off_at_8_bits({name: each for name, each in figures.items() if bits.get(name) == 8})
    run = check.report
    if run is None or set(bits.values()) != {8}:
        return found
    return found + outputs_in_words(relative_error(run), run.inputs_from == "generated")


def _figures(changed: Mapping[str, Transform]) -> dict[str, ErrorFigures]:
    """Return how far the codes of weights are from them, of the transforms that know it."""
    found = {name: getattr(transform, "figures", None) for name, transform in changed.items()}
    return {name: figures for name, figures in found.items() if isinstance(figures, ErrorFigures)}


def _tensor_report(
    info: TensorInfo, decision: Decision, transform: Transform | None, figures: ErrorFigures | None
) -> TensorReport:
    quantized = decision.action == "quantize" and transform is not None
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        decision=decision.action,
        reason=decision.reason,
        bytes_before=info.nbytes,
        bytes_after=sum(output.nbytes for output in transform.outputs) if quantized and transform else info.nbytes,
        sqnr_db=None if figures is None else figures.sqnr_db,
        max_error=None if figures is None else figures.max_error,
    )
