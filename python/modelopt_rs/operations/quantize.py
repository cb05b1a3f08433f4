"""`quantize_file`: a model file in, one of a quarter to a tenth of its size out, in bounded memory."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from modelopt_rs.arguments import check_types
from modelopt_rs.errors import OptionError
from modelopt_rs.layouts.view import PartlyQuantized, Widened
from modelopt_rs.operations.known_modules import known_modules
from modelopt_rs.operations.module_factors import ModuleFactors, find_module_factors
from modelopt_rs.operations.quantization import Quantization
from modelopt_rs.operations.skeleton import Writing, perform
from modelopt_rs.planning.calibration import Calibrate, repeatable, said
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions, only_dequantized, read_format
from modelopt_rs.planning.run import DEFAULT_RUN, RunOptions, check_not_run
from modelopt_rs.planning.sensitivity import Sensitivity
from modelopt_rs.planning.statistics import StatisticsFile
from modelopt_rs.planning.warnings import doubles_in_words, unread_in_words
from modelopt_rs.report.reports import Report, TensorReport, total
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import Source, TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["planner", "quantize_file"]


def quantize_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    bits: int = 8,
    scheme: str | None = None,
    group_size: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    dry_run: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    nonfinite: str = "raise",
    format: str | None = None,
    bits_of: Mapping[str, int] | None = None,
    max_layer_error: float | None = None,
    uniform: bool = False,
    only_dequantize: bool = False,
    search: str | None = "mse",
    scale_dtype: str | None = None,
    norm: float | None = None,
    method: str | None = None,
    calibrate: Calibrate | None = None,
    statistics: str | os.PathLike[str] | None = None,
    durable: bool = True,
    onnx: OnnxOptions | None = None,
    run: RunOptions | None = DEFAULT_RUN,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantize the linear layers of a model file to 8, 4 or 2 bits.

    The output has the pack-quantized layout of compressed-tensors, which transformers and vLLM load; or it is an ONNX
    model that onnxruntime runs, with quantized weights (of convolutions, embeddings and recurrent layers too) and, if
    asked for, quantized activations. Nothing shows at `out_path` before all of it is written and read back; whatever
    goes wrong, what was there stays.

    Parameters
    ----------
    source_path : path
        A safetensors file, a Hugging Face model directory, a sharded checkpoint, a file of torch or Keras
        (whose output is a safetensors file), or an ONNX model.
    out_path : path
        Where to write: a file for a file, a directory for a directory.
    bits : {8, 4, 2}
        Bits of a code.
    scheme : {"symmetric", "asymmetric"}, optional
        Whether the range is around zero, or has a zero point of its own. By default asymmetric below 8 bits, else
        symmetric. transformers reads zero points only where all weights are coded alike: where a model has a config and
        its weights get several numbers of bits, and of experts, the default is symmetric.
    group_size : int, optional
        Consecutive elements of a row that share a scale; 0: the whole row (a scale for each output channel).
        By default 0 at 8 bits (of experts in one tensor a row of each), 32 at 4 and 2 bits; in ONNX models what fits
        the operator.
    include, exclude : sequence of str
        Globs over tensor names: what to quantize besides the default, and what not to. `exclude` wins.
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
    nonfinite : {"raise", "saturate"}
        What to do with weights that are NaN or infinite.
    format : {"fp8_e4m3", "mxfp4", "nvfp4", "nf4", "fp4"}, optional
        A named format (see `modelopt_rs.quant.formats`) instead of uniform codes of `bits`: float8, a scale for each
        row or, with ``group_size=128``, for each block of 128 x 128; OCP's and NVIDIA's 4-bit floats (layouts of
        compressed-tensors); the 4-bit codes of bitsandbytes. Not for ONNX models.
    bits_of : mapping of str to {8, 4, 2}, optional
        Bits of the weights that a glob matches, where they are others than `bits`; the first that matches counts.
    max_layer_error : float, optional
        Below 8 bits: how far a layer's output may be off, relative to its size, for inputs that are alike in all
        directions (of an ONNX model: for its own inputs, if `run` lets it be run or there are samples to calibrate
        with). Weights that are further off get 4 bits instead of 2, or 8 instead of 4. By default 0.15 where 4 bits
        are asked for, 0.5 where 2 are, which take 0.33 to 0.46 with zero points and 0.6 without. The values of an
        attention (of an ONNX model whatever its weights are called, else ``*.value.weight`` and ``*.v_lin.weight``)
        have half of that limit: their errors count twice. The outputs of an ONNX model may be as far off, at 2 bits
        one and a half times as far: where all weights together take them further, those that do most get more bits;
        so do small ones whose errors do over 16 times as much for their bytes as all do.
        With activations in 8 bits (ONNX): how far what a layer takes, or with static ones a convolution gives, may be
        off in 8 bits, by default 0.06; layers that are further off compute with floats and weights of 8 bits. Static
        activations are measured on calibration data, dynamic ones on what `run` says: nothing without it.
    uniform : bool
        All weights get the bits asked for, however far off they are, and all layers int8 activations where those
        are asked for.
    only_dequantize : bool
        Take also what no loader reads back quantized, and only `dequantize_file` and the other functions here do:
        embeddings in the codes of bitsandbytes, experts with zero points or in one tensor, tables coded otherwise than
        layers.
    search : {"mse"} or None
        How the scales (and zero points) of uniform codes are found: those of least squared error, as `quantize` finds
        them with the same option, or by the plain formula. Nothing in the file gets larger by it.
    norm : float, optional
        With `search`: the power of errors whose sum is made small, from 0.5 to 4, as `quantize` takes it: by default 2.
    scale_dtype : {"float32", "float16", "bfloat16"}, optional
        What the scales of uniform codes are stored in, and rounded to before codes are made. By default float32 at 8
        bits, and below 16 bits, so that 4 bits in groups of 32 take 4.5 bits a weight: bfloat16 for weights in
        bfloat16, else float16 (in ONNX models always), with so few digits that code times scale is exact: what loads
        the file gets the same numbers whether it multiplies in float16 or in float32.
    method : {"gptq", "awq"}, optional
        Round weights by what goes into their layers while calibration data run through the float model: exactly as
        `quant.gptq` does with ``act_order="groups"``, given the same `Hessian`; or times factors of its inputs
        (`quant.awq_scales`), where what makes these can be divided by them: a norm, a product with a constant, another
        layer (ONNX models, and directories of the families Llama, Mistral, Qwen 2 and Qwen 3). Of an ONNX model weights
        of MatMul, Gemm and ("gptq") Conv are rounded so, of a Hugging Face directory those of linear layers (torch's
        `Linear`), which transformers runs; the others have searched scales, and the report says which. Such a weight
        must fit `max_memory` whole, and so must three squares of its inputs in float64 (of a convolution's patches six,
        or its scales are searched). It takes no byte more.
    calibrate : path, mapping, iterable or callable, optional
        Samples for `method`, as `prune_file` takes them. Only sums are kept: memory doesn't grow with their number.
    statistics : path, optional
        Instead of samples what is known of the inputs of layers: a file of `calibrate_file`, or an importance matrix of
        llama.cpp (.dat, .gguf), whose names are taken for those of Hugging Face's LLaMA. Nothing is run. Without
        `method` searched scales weigh the columns of weights by the mean squares of their inputs.
    durable : bool
        Wait until the output is on the disk.
    onnx : OnnxOptions, optional
        Of an ONNX model: for which runtime, and whether its activations are quantized too.
    run : RunOptions or None
        Of an ONNX model: on which inputs it is run beside the old one before it takes its place; None: not run.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory, as in a hub's cache.
    progress : callable, optional
        Called with (bytes done, bytes in all, tensor name) as the work goes on.

    Returns
    -------
    Report
        What was decided for every tensor and why, sizes, and how far the quantized weights (of an ONNX model: its
        outputs) are off.

    Raises
    ------
    ValueError
        If an option is wrong, or (`OptionError` apart) a weight to be quantized is not finite, or
        (`MaxErrorExceeded`) outputs of the ONNX model are further off than `run` allows.
    FormatError
        If the source is malformed, or onnxruntime refuses the ONNX model.
    ImportError
        If the source is an ONNX model, and the extra `onnx` is not installed.
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
    ...     report = mo.quantize_file(f"{d}/model.safetensors", f"{d}/small.safetensors", bits=4)
    >>> report.totals.changed
    1
    >>> report.totals.ratio > 6
    True
    """
    check_types(quantize_file, locals())
    max_memory = bytes_of("max_memory", max_memory)
    options = QuantizeOptions(
        bits=bits,
        scheme=scheme,
        group_size=group_size,
        include=include,
        exclude=exclude,
        nonfinite=nonfinite,
        format=format,
        bits_of={**(bits_of or {}), **(onnx.bits_of if onnx is not None else {})},
        max_layer_error=max_layer_error,
        uniform=uniform,
        only_dequantize=only_dequantize,
        search=search,
        scale_dtype=scale_dtype,
        norm=norm,
        method=method,
    )
    _check_known(options, calibrate, statistics)
    calibrate = repeatable(calibrate)
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
    with ExitStack() as stack:
        known = None if statistics is None else stack.enter_context(closing(StatisticsFile(statistics)))
        report: Report = perform(source_path, out_path, planner(options, onnx, run, calibrate, known), writing)
    return report


def _check_known(options: QuantizeOptions, calibrate: Calibrate | None, statistics: object) -> None:
    """Refuse what is known of inputs twice, or for nothing."""
    method = options.method
    if calibrate is not None and statistics is not None:
        raise OptionError("calibrate must be left out with statistics, got both")
    if (method is None and calibrate is not None) or (method is not None and calibrate is statistics):
        got = f"{method!r} without it" if calibrate is None else "calibrate without it"
        raise OptionError(f"method must be 'gptq' or 'awq' with calibrate (calibration data), got {got}")
    if statistics is not None and method is None and (options.search is None or options.format is not None):
        raise OptionError("statistics must be left out without method where no scales are searched")


def planner(
    options: QuantizeOptions,
    onnx: OnnxOptions | None,
    run: RunOptions | None,
    given: Calibrate | None = None,
    statistics: StatisticsFile | None = None,
) -> Callable[[Source, Execution], FilePlan]:
    """Return what decides how a model is quantized."""

    def plan(source: Source, execution: Execution) -> FilePlan:
        if source.graph is None:
            _check_no_graph_options(source, onnx, run)
            return _plan(source, execution, options, given, statistics)
        return _plan_graph(source, execution, options, onnx or OnnxOptions(), run, given, statistics)

    return plan


def _check_no_graph_options(source: Source, onnx: OnnxOptions | None, run: RunOptions | None) -> None:
    if onnx is not None and onnx.calibrate is not None:
        raise OptionError(
            "calibrate (calibration data) needs method 'gptq' or 'awq' for a model that is no ONNX model, got it alone "
            f"for {source.path}"
        )
    if onnx is not None:
        given = "onnx (--target, --activations and others)"
        raise OptionError(f"{given} must be left out for a model that is no ONNX model, got it for {source.path}")
    check_not_run(source, run)


def _plan_graph(
    source: Source,
    execution: Execution,
    options: QuantizeOptions,
    onnx: OnnxOptions,
    run: RunOptions | None,
    calibrate: Calibrate | None,
    statistics: StatisticsFile | None,
) -> FilePlan:
    """Quantize an ONNX model."""
    if options.format is not None:
        raise OptionError(f"format must be left out for an ONNX model, got {options.format!r}: no operator reads it")
    if options.only_dequantize:
        raise OptionError("only_dequantize must be left out for an ONNX model: onnxruntime reads all that is written")
    if options.scale_dtype == "bfloat16":
        raise OptionError("scale_dtype must be 'float32' or 'float16' for an ONNX model, got 'bfloat16'")
    from modelopt_rs.onnx.quantize_model import plan_model

    if calibrate is not None and onnx.calibrate is not None:
        raise OptionError("calibrate must be given once with method, got it in onnx too")
    if onnx.implied and options.bits < 8:
        if options.uniform:
            raise OptionError("calibrate must be left out with uniform: nothing is measured")
        calibrate, onnx = onnx.calibrate, replace(onnx, activations="none", calibrate=None)
    return plan_model(source, execution, options, replace(onnx, bits_of=options.bits_of), run, calibrate, statistics)


def _plan(
    source: Source,
    execution: Execution,
    options: QuantizeOptions,
    calibrate: Calibrate | None,
    statistics: StatisticsFile | None,
) -> FilePlan:
    """Quantize a model that has nothing but tensors."""
    model = _model(source, options, execution.threads)
    view, tensors = model.view, model.tensors
    sensitivity = None if options.layer_error is None else Sensitivity(view, execution, options.layer_error)
    quantization = Quantization(tensors, model.config, options, execution.threads, sensitivity, model.stored)
    model.check(quantization.specs, options.method if statistics is None else None)
    factors = _rounded(view, quantization, options, execution, (calibrate, statistics))
    transforms = {name: factors.transform(info, quantization.transform(info)) for name, info in view.tensors.items()}
    unread = only_dequantized(tensors.keys() - model.stored, tensors, model.config, options)
    other = read_format(unread, tensors, model.config, options)

    def report(seconds: float) -> Report:
        figures = {} if execution.dry_run else quantization.figures()
        quantization.settle()
        rows = [
            _tensor_report(info, quantization.decisions[name], transforms, figures.get(name), model)
            for name, info in tensors.items()
        ]
        totals, errors = total(rows, figures, seconds), {} if sensitivity is None else sensitivity.errors
        return Report(
            command="quantize",
            **execution.said(),
            options={**options.as_measured(), **({} if calibrate is None else {"calibrate": said(calibrate)})},
            totals=totals,
            tensors=tuple(rows),
            warnings=(
                *quantization.said((totals.bytes_before, totals.bytes_after), errors),
                *unread_in_words((info.nbytes for info in unread), totals.bytes_after, options.format, other),
                *doubles_in_words(tensors.values(), totals.bytes_after),
            ),
        )

    return FilePlan(
        view=view,
        transforms=transforms,
        origins={name: view.origin(name) for name in view.tensors},
        config=view.config,
        metadata=quantization.metadata,
        quantization_config=quantization.config,
        report=report,
    )


def _rounded(
    view: Source,
    quantization: Quantization,
    options: QuantizeOptions,
    execution: Execution,
    given: tuple[Calibrate | None, StatisticsFile | None],
) -> ModuleFactors:
    """Round weights by what is known of their inputs, if it is; return what tensors are multiplied by for it."""
    calibrate, statistics = given
    if calibrate is None and statistics is None:
        quantization.weigh_by_norms(view.read)
        return ModuleFactors()
    known = known_modules(view, options.method, calibrate, execution, statistics)
    factors = find_module_factors(view, known, quantization, options)
    quantization.round_by(known)
    quantization.decisions = factors.decided(quantization.decisions)
    return factors


def _model(source: Source, options: QuantizeOptions, threads: int | None) -> PartlyQuantized:
    """Return a model as it is read: what compressed-tensors calls quantized as floats only for a smaller result.

    Or where globs say bits: those of what is no plain float could not be said.
    """
    kept = options.format in (None, "fp8_e4m3") and options.bits == 8 and not options.bits_of
    as_stored = ("float-quantized",) if kept else ()
    return PartlyQuantized(Widened(source, threads=threads, but=as_stored), options.layout)


def _tensor_report(
    info: TensorInfo,
    decision: Decision,
    transforms: Mapping[str, Transform],
    figures: ErrorFigures | None,
    model: PartlyQuantized,
) -> TensorReport:
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        decision=decision.action,
        reason=decision.reason,
        bytes_before=sum(model.view.stored_nbytes(part) for part in model.parts(info.name)),
        bytes_after=sum(output.nbytes for part in model.parts(info.name) for output in transforms[part].outputs),
        sqnr_db=None if figures is None else figures.sqnr_db,
        max_error=None if figures is None else figures.max_error,
    )
