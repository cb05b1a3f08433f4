"""`prune_file`: the weights of a model file that matter least become zeros, in bounded memory."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelopt_rs.arguments import check_types
from modelopt_rs.deprecated import renamed
from modelopt_rs.errors import OptionError
from modelopt_rs.layouts.bitmask import bitmask_tensors, sparsity_config
from modelopt_rs.layouts.bitmask_encoder import Bitmask
from modelopt_rs.layouts.view import Widened, stored_nbytes
from modelopt_rs.operations.known_modules import unseen_modules
from modelopt_rs.operations.module_inputs import ModuleInputs, linear_weights
from modelopt_rs.operations.quantization import Quantization
from modelopt_rs.operations.skeleton import Writing, perform
from modelopt_rs.planning.by_inputs import SeenInputs, check_any_pruned, check_no_method
from modelopt_rs.planning.calibration import Calibrate, check_there, said
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.families import NO_WEIGHT
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.prune import PruneOptions, WeightAxes, axes_in_files, none_pruned, plan_prune
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import DEFAULT_RUN, RunOptions, check_not_run
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.report.reports import Report, TensorReport, Totals, total
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import Source, TensorInfo, is_weight
from modelopt_rs.stream.transform import Transform
from modelopt_rs.transforms.prune import Pruner

__all__ = ["prune_file"]


@renamed(keep="n", group="m", nan="nonfinite")
def prune_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    sparsity: float | None = None,
    n: int | None = None,
    m: int | None = None,
    method: str = "magnitude",
    calibrate: Calibrate | None = None,
    scope: str = "tensor",
    format: str = "dense",
    then: QuantizeOptions | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    dry_run: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    nonfinite: str = "raise",
    durable: bool = True,
    run: RunOptions | None = DEFAULT_RUN,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Set the weights of a model file that matter least to zero: of the smallest magnitude, or by calibration data.

    What becomes zero is exactly what `prune.magnitude`, `prune.global_magnitude` and `prune.n_of_m` choose in whole
    arrays, but no tensor is ever held whole: exact thresholds come from counts of digits, in one more pass over 16-bit
    weights, two over float32, four over float64. Nothing shows at `out_path` before all of it is written and read back;
    whatever goes wrong, what was there stays.

    Parameters
    ----------
    source_path : path
        A safetensors file, a Hugging Face model directory, a sharded checkpoint, a file of torch or Keras
        (whose output is a safetensors file), or an ONNX model.
    out_path : path
        Where to write: a file for a file, a directory for a directory.
    sparsity : float, optional
        The share of weights that goes, from 0 to 1: exactly ``round(sparsity * n)`` of `n`, among equal magnitudes the
        first. Weights of several dtypes are compared as numbers.
    n, m : int, optional
        Instead of `sparsity`: how many of each `m` consecutive inputs stay. Inputs lie along axis 1: the rows of a
        matrix, the input channels of a convolution; in an ONNX model where its graph says.
    method : {"magnitude", "wanda", "sparsegpt"}
        Of an ONNX model also by what goes into its layers of MatMul, Gemm and Conv: exactly what `prune.wanda` (of each
        row those of the least weight times input) and `prune.sparsegpt` (whose other weights make up for what goes)
        choose, given the same `ColumnNorms` or `Hessian`, a convolution taken as (out, kernel positions x channels). A
        weight must then fit `max_memory` whole, and so must, for "sparsegpt", three squares of its inputs in float64.
        Of a Hugging Face directory so are the weights of linear layers (torch's `Linear`), which transformers runs.
    calibrate : path, mapping, iterable or callable, optional
        Samples for those: an .npz, a directory of .npy and .npz files, arrays by input, or mappings of arrays. They run
        through onnxruntime one at a time, and only sums are kept: memory doesn't grow with their number. For a Hugging
        Face directory: texts, or a file of them, one in a line, which its tokenizer cuts; an .npz, or mappings of
        arrays. transformers then holds the model besides `max_memory`.
    scope : {"tensor", "row", "global"}
        What loses the share `sparsity`: each tensor, each of its rows (all weights of one output; where these are the
        columns of a matrix of an ONNX model it must fit `max_memory`), or all pruned tensors together, in the order of
        the file.
    format : {"dense", "bitmask"}
        Store zeros, or (where that is smaller) the other weights and a bit for each: the sparse-bitmask layout that
        compressed-tensors reads up to version 0.14. `dequantize_file` makes it dense again.
    then : QuantizeOptions, optional
        Quantize in the same pass; what is zero stays exactly zero. Its `include` and `exclude` say which tensors.
    include, exclude : sequence of str
        Globs over tensor names: what to prune besides the default, and what not to. `exclude` wins. By default
        weights of two and more axes are pruned, but not embeddings, the last head and routers.
    max_memory : int or str
        The most bytes, as a number or a text such as "64MiB", that tiles and their results may take at a time.
    threads : int, optional
        Threads to compute with; never changes a byte of the output.
    dry_run : bool
        Decide and report, write nothing.
    verify : bool
        Read the output back before it takes its place, and compare.
    overwrite : bool
        Replace what is at `out_path`.
    nonfinite : {"raise", "largest"}
        What a NaN is: an error, or larger than all numbers, so that it stays.
    durable : bool
        Wait until the output is on the disk.
    run : RunOptions or None
        Of an ONNX model: on which inputs it is run beside the old one before it takes its place; None: not run.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory, as in a hub's cache.
    progress : callable, optional
        Called with (bytes done, bytes in all, tensor name) as the work goes on; a byte counts in each pass over it.

    Returns
    -------
    Report
        What was decided for every tensor and why, sizes, and zeros before and after. With `then` also how far the
        quantized weights are from the pruned ones.

    Raises
    ------
    ValueError
        If an option is wrong, or (`OptionError` apart) a weight to be pruned is NaN, or (`MaxErrorExceeded`) outputs of
        the ONNX model are further off than `run` allows.
    FormatError
        If the source is malformed, or onnxruntime refuses the ONNX model.
    OSError
        If the operating system refuses to read or write.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/model.safetensors", [info]) as sink:
    ...         sink.write("fc.weight", w)
    ...         sink.commit()
    ...     report = mo.prune_file(f"{d}/model.safetensors", f"{d}/sparse.safetensors", sparsity=0.75)
    ...     with mo.files.open(f"{d}/sparse.safetensors") as source:
    ...         bool((source.read("fc.weight") == mo.prune.magnitude(w, 0.75)).all())
    True
    >>> report.totals.sparsity_after
    0.75
    """
    check_types(prune_file, locals())
    max_memory = bytes_of("max_memory", max_memory)
    options = PruneOptions(
        sparsity=sparsity,
        n=n,
        m=m,
        method=method,
        scope=scope,
        format=format,
        include=include,
        exclude=exclude,
        nonfinite=nonfinite,
    )
    if options.calibrated != (calibrate is not None):
        got = f"{method!r} without calibrate" if calibrate is None else f"calibrate with {method!r}"
        raise OptionError(f"method must be 'wanda' or 'sparsegpt' with calibrate (calibration data), got {got}")
    check_no_method(then)
    if then is not None and format != "dense":
        raise OptionError(f"format must be 'dense' with then, got {format!r}: what is quantized has its own layout")
    writing = Writing(
        max_memory=max_memory,
        threads=threads,
        dry_run=dry_run,
        verify=verify,
        overwrite=overwrite,
        durable=durable,
        allow_symlinks_under=allow_symlinks_under,
        progress=progress,
    )
    report: Report = perform(
        source_path,
        out_path,
        lambda source, execution: _plan(source, execution, options, then, run, calibrate),
        writing,
    )
    return report


def _plan(
    source: Source,
    execution: Execution,
    options: PruneOptions,
    then: QuantizeOptions | None,
    run: RunOptions | None,
    calibrate: Calibrate | None,
) -> FilePlan:
    view = source if source.graph is not None else Widened(source, threads=execution.threads)
    tensors, config = view.tensors, view.config or {}
    axes, check = _graph_parts(source, execution, options, then, run, calibrate)
    decisions, lying = _decided(source, tensors, config, options, axes)
    quantization = Quantization(tensors, config, then, execution.threads)
    quantization.weigh_by_norms(view.read)
    chosen = [tensors[name] for name, decision in decisions.items() if decision.action == "prune"]
    seen = _inputs(source, execution, options, chosen, calibrate)
    pruner = Pruner(view, chosen, options, execution, lying, seen.of if seen.statistics else None)
    execution.total += pruner.bytes_to_read()
    zeros, dense, lasts = _storage(tensors, chosen, pruner, options, quantization)
    transforms = lasts | (prunes := {} if execution.dry_run else pruner.transforms(lasts))

    def report(seconds: float) -> Report:
        counted = zeros if execution.dry_run else {name: transform.zeros for name, transform in prunes.items()}
        figures = {} if execution.dry_run else quantization.figures()
        done = {name: (each, quantization.decisions.get(name)) for name, each in seen.reached(decisions).items()}
        measured = {name: (counted.get(name), figures.get(name), size) for name, size in stored_nbytes(view).items()}
        rows = [
            _tensor_report(info, done[name], dense.get(name), transforms[name].outputs, measured[name])
            for name, info in tensors.items()
        ]
        totals = total(rows, figures, seconds)
        return Report(
            command="prune",
            **execution.said(),
            options=_options(options, calibrate, then),
            totals=totals,
            warnings=(*_said(quantization, totals), *seen.words(), *none_pruned(decisions)),
            tensors=tuple(rows),
            file_bytes=check.file_bytes if check else None,
            run=check.report if check else None,
        )

    return FilePlan(
        view=view,
        transforms=transforms,
        metadata=quantization.metadata,
        quantization_config=quantization.config or _sparsity_config(tensors, dense, zeros, options),
        check=check,
        report=report,
    )


def _said(quantization: Quantization, totals: Totals) -> tuple[str, ...]:
    return quantization.said((totals.bytes_before, totals.bytes_after))


def _options(options: PruneOptions, calibrate: Calibrate | None, then: QuantizeOptions | None) -> dict[str, Any]:
    """Return the options in force, as a report has them."""
    data = None if calibrate is None else said(calibrate)
    return {**options.as_dict(), "calibrate": data, "then": then.as_dict() if then else None}


def _storage(
    tensors: Mapping[str, TensorInfo],
    chosen: Sequence[TensorInfo],
    pruner: Pruner,
    options: PruneOptions,
    quantization: Quantization,
) -> tuple[dict[str, tuple[int, int]], dict[str, str | None], dict[str, Transform]]:
    """Return, for bitmasks, zeros before and after and why a tensor is stored dense; what stores each."""
    lasts: dict[str, Transform] = {name: quantization.transform(info) for name, info in tensors.items()}
    if options.format != "bitmask":
        return {}, {}, lasts
    # How many weights are left says how large the output is, and where in it everything stands.
    zeros = pruner.measure()
    dense = {info.name: _why_dense(info, zeros[info.name]) for info in chosen}
    for info in chosen:
        if dense[info.name] is None:
            lasts[info.name] = Bitmask(info, _nonzero(info, zeros[info.name]), quantization.threads)
    return zeros, dense, lasts


def _graph_parts(
    source: Source,
    execution: Execution,
    options: PruneOptions,
    then: QuantizeOptions | None,
    run: RunOptions | None,
    calibrate: Calibrate | None,
) -> tuple[Mapping[str, WeightAxes] | None, Any]:
    """Return how the weights of an ONNX model lie, and what checks the new one; None and None of other files."""
    check_there(calibrate)
    if source.graph is None:
        check_not_run(source, run)
        return None, None
    if options.format != "dense":
        got = f"got {options.format!r}: no operator reads bitmasks"
        raise OptionError(f"format must be 'dense' for an ONNX model, {got}")
    if then is not None:
        raise OptionError("then must be left out for an ONNX model: prune it, and quantize what comes out")
    from modelopt_rs.onnx.check import OnnxCheck
    from modelopt_rs.onnx.measure.layer_inputs import refuse_unseen
    from modelopt_rs.onnx.weight_axes import find_weight_axes

    axes = find_weight_axes(source.graph)
    if options.calibrated:
        axes |= {
            name: replace(axes[name], refused=axes[name].refused or reason)
            for name, reason in refuse_unseen(source.graph).items()
        }
    return axes, OnnxCheck(source, run, execution, calibrate)


def _decided(
    source: Source,
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    options: PruneOptions,
    axes: Mapping[str, WeightAxes] | None,
) -> tuple[dict[str, Decision], Mapping[str, WeightAxes]]:
    """Decide for each tensor whether it is pruned, and how it lies; a model that would be run for none is refused."""
    unseen = unseen_modules(source, options.method) if source.graph is None and options.calibrated else {}
    decisions = plan_prune(tensors, config, options, axes, unseen)
    if options.calibrated:
        check_any_pruned({k: each for k, each in decisions.items() if len(tensors[k].shape) > 1}, options.method)
    return decisions, axes_in_files(tensors, config) if axes is None else axes


def _inputs(
    source: Source,
    execution: Execution,
    options: PruneOptions,
    chosen: Sequence[TensorInfo],
    calibrate: Calibrate | None,
) -> SeenInputs:
    """Return what collects the inputs of layers, for methods that need them."""
    if calibrate is None or execution.dry_run or not chosen:
        return SeenInputs(None)
    kind = Hessian if options.method == "sparsegpt" else ColumnNorms
    if source.graph is None:
        columns = {info.name: info.shape[1] for info in chosen}
        modules = linear_weights(source.path, columns)
        return SeenInputs(ModuleInputs(source.path, modules, kind, columns, calibrate, execution.max_memory // 2))
    from modelopt_rs.onnx.measure.layer_statistics import LayerInputs

    names, room = [info.name for info in chosen], execution.max_memory // 2  # the other half is for the weight
    how: Any = {"max_memory": room, "threads": execution.threads}
    return SeenInputs(LayerInputs(source.graph, source.path, kind, names, calibrate, **how))


def _nonzero(info: TensorInfo, zeros: tuple[int, int]) -> int:
    return math.prod(info.shape) - zeros[1]


def _why_dense(info: TensorInfo, zeros: tuple[int, int]) -> str | None:
    """Say why a tensor is stored with its zeros; None if it is stored as a bitmask."""
    if not info.name.endswith(".weight"):
        return NO_WEIGHT
    small = sum(part.nbytes for part in bitmask_tensors(info, _nonzero(info, zeros)))
    return None if small < info.nbytes else "a bitmask would be no smaller"


def _sparsity_config(
    tensors: Mapping[str, TensorInfo],
    dense: Mapping[str, str | None],
    zeros: Mapping[str, tuple[int, int]],
    options: PruneOptions,
) -> dict[str, Any] | None:
    """Describe bitmasks to their loaders; None where there are none."""
    masked = [name for name, reason in dense.items() if reason is None]
    if not masked:
        return None
    sparsity = sum(zeros[name][1] for name in masked) / sum(math.prod(tensors[name].shape) for name in masked)
    left = [name.removesuffix(".weight") for name in tensors if is_weight(name) and name not in masked]
    return sparsity_config(sparsity, options.structure, left)


def _tensor_report(
    info: TensorInfo,
    decisions: tuple[Decision, Decision | None],
    dense: str | None,
    outputs: Sequence[TensorInfo],
    measured: tuple[tuple[int, int] | None, ErrorFigures | None, int],
) -> TensorReport:
    zeros, figures, nbytes = measured
    done = [decision for decision in decisions if decision and decision.action != "copy"]
    reasons = [decision.reason for decision in done] or [decisions[0].reason]
    if dense is not None:
        reasons.append(f"stored dense: {dense}")
    size = math.prod(info.shape)
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        decision="+".join(decision.action for decision in done) or "copy",
        reason="; ".join(dict.fromkeys(reasons)),
        bytes_before=nbytes,
        bytes_after=sum(output.nbytes for output in outputs),
        sqnr_db=None if figures is None else figures.sqnr_db,
        max_error=None if figures is None else figures.max_error,
        zeros_before=None if zeros is None else zeros[0],
        zeros_after=None if zeros is None else zeros[1],
        sparsity_before=None if zeros is None else zeros[0] / size,
        sparsity_after=None if zeros is None else zeros[1] / size,
    )
