"""`crop_file`: a model without the heads, feed-forward units or widths that matter least, in bounded memory."""

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from modelopt_rs._types import Array
from modelopt_rs.arguments import check_types
from modelopt_rs.containers.checkpoint import read_config
from modelopt_rs.containers.reading import MAX_HEADER, read_file
from modelopt_rs.containers.strict_json import parse_object
from modelopt_rs.deprecated import renamed
from modelopt_rs.errors import OptionError
from modelopt_rs.layouts.view import Widened
from modelopt_rs.operations.module_crop import ModuleCropInputs, check_runs
from modelopt_rs.operations.quantization import Quantization
from modelopt_rs.operations.skeleton import Writing, perform
from modelopt_rs.planning.by_inputs import check_no_method
from modelopt_rs.planning.calibration import Calibrate, repeatable, said
from modelopt_rs.planning.crop import CropOptions, CropPlan
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.given_groups import GivenGroups, parse_groups
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import DEFAULT_RUN, RunOptions, check_not_run
from modelopt_rs.prune.choice import Keep
from modelopt_rs.prune.coupling import Group
from modelopt_rs.prune.crop import CropReport, masks
from modelopt_rs.report.reports import CropFileReport, CroppedGroup, TensorReport, total
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import Source, TensorInfo
from modelopt_rs.stream.transform import Transform
from modelopt_rs.transforms.crop import Crop, Scorer

__all__ = ["crop_file"]

PRUNED_HEADS = (
    "config.json lists the heads that are gone as pruned_heads, which transformers 5 does not read: "
    "load the model with modelopt_rs.interop.transformers.from_pretrained"
)
NOT_WRITTEN = "the output is one file: change its model's config.json as the report's config says"
NOT_SAID = "layers keep different numbers, which no config.json can say"


@renamed({"scope": {"local": "group"}}, nan="nonfinite")
def crop_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    keep: Keep,
    what: str | Sequence[str] | None = None,
    groups: Sequence[Group] | str | os.PathLike[str] | None = None,
    numbers: Mapping[str, str] | None = None,
    calibrate: Calibrate | None = None,
    round_to: int | None = None,
    scope: str = "group",
    norm: float = 2,
    nonfinite: str = "raise",
    config: str | os.PathLike[str] | None = None,
    then: QuantizeOptions | None = None,
    max_memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    dry_run: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    durable: bool = True,
    run: RunOptions | None = DEFAULT_RUN,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CropFileReport:
    """Remove the least important heads, feed-forward units or hidden widths of a transformer.

    What stays is exactly what `prune.crop` chooses in whole arrays by `prune.transformer_groups`, but no tensor is ever
    held whole: one pass reads the importance of units, one writes. config.json gets the new sizes, so that transformers
    loads the directory. Nothing shows at `out_path` before all of it is written and read back; whatever goes wrong,
    what was there stays.

    Parameters
    ----------
    source_path : path
        A Hugging Face model directory or a sharded checkpoint of a family that `prune.transformer_groups` knows, one
        safetensors file of such a model, or an ONNX model of any kind.
    out_path : path
        Where to write: a file for a file, a directory for a directory.
    keep : float, int or mapping
        How many units of each group stay: a float from 0 to 1 is a fraction, an int a number: 1.0 is all of them, 1 is
        one, and refused where that is below 5 % of the units. A mapping gives one by the names of groups or globs over
        them (``*.heads``, ``*.query_heads``, ``*.ffn``, ``hidden``); the first that matches counts, and groups that
        none matches stay whole.
    what : str or sequence of str
        "heads": heads of attention (where heads share keys and values, those with all their queries). "query_heads":
        query heads alone (Llama). "ffn": the width of the feed-forward networks. "hidden": the width of the model;
        without training expect much worse answers. "all": heads, ffn and hidden. Or several of them. In an ONNX model
        "ffn" are the units between any two layers of MatMul or Gemm; "channels" are those of convolutions.
    groups : sequence of Group or path, optional
        Instead of `what`, for a model whose structure isn't known: which slices of which tensors (of an ONNX model,
        initializers) live and die together. A ``*`` in names stands for the number of a layer, or whatever else differs
        between two dots or slashes: one group for each. A path: a JSON file of groups and numbers.
    numbers : mapping, optional
        With groups: which numbers of config.json count units, or so many of each, and of which group or glob over
        groups: ``{"ffn_dim": "*.ffn", "vision.heads": "vision.*.heads"}``. Of an ONNX model, integers of its graph:
        ``name[i]`` of an initializer, ``node.attribute`` or ``node.attribute[i]`` of a node.
    calibrate : path, mapping, iterable or callable, optional
        For "ffn", "heads" and (of an ONNX model) "channels": samples, as for `prune_file`. A unit is then as important
        as what it says to the layers that take it (MatMul, Gemm and Conv; of a Hugging Face directory, which
        transformers runs, torch's `Linear`), the 2-norm of its input times its weights there, and what these lose is
        made up for by `prune.least_squares` on the inputs that stay. Only sums are kept of the samples; a weight and
        three squares of its inputs in float64 must fit `max_memory`.
    round_to : int, optional
        What the cropped lengths are a multiple of. By default 8 for fractions (in groups that have a shorter one than
        the whole), 1 for numbers.
    scope : {"group", "global"}
        "global": a fraction is one of all units together, so that layers keep different numbers. config.json can say
        that of heads in the BERT family alone; for one file without config.json it is always possible.
    norm : {1, 2, inf}
        The importance of a unit: this norm of all weights that would go with it.
    nonfinite : {"raise", "remove"}
        What to do with units that have a NaN: refuse, or remove them first.
    config : path, optional
        The config.json of a model that has none beside it.
    then : QuantizeOptions, optional
        Quantize what stays in the same pass.
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
    CropFileReport
        How many units each group keeps, what became of every tensor, what changed in config.json, and sizes. With
        `then` also how far the quantized weights are from the cropped ones.

    Raises
    ------
    ValueError
        If an option is wrong or does not fit the model, or (`OptionError` apart) a unit has a NaN, or
        (`MaxErrorExceeded`) outputs of the ONNX model are further off than `run` allows.
    FormatError
        If the source is malformed, or onnxruntime refuses the ONNX model.
    OSError
        If the operating system refuses to read or write.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> config = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
    >>> shapes = {"self_attn.q_proj": (16, 16), "mlp.gate_proj": (64, 16), "mlp.up_proj": (64, 16)}
    >>> shapes |= {"mlp.down_proj": (16, 64)}
    >>> rng = np.random.default_rng(0)
    >>> w = {f"layers.0.{n}.weight": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    >>> with tempfile.TemporaryDirectory() as d:
    ...     model = pathlib.Path(d, "model")
    ...     model.mkdir()
    ...     _ = (model / "config.json").write_text(json.dumps(config))
    ...     infos = [mo.files.TensorInfo(n, "F32", x.shape, x.nbytes) for n, x in w.items()]
    ...     with mo.files.SafetensorsSink(model / "model.safetensors", infos) as sink:
    ...         for name, x in w.items():
    ...             sink.write(name, x)
    ...         sink.commit()
    ...     report = mo.crop_file(model, f"{d}/small", keep=0.75, what="ffn")
    ...     json.loads(pathlib.Path(d, "small", "config.json").read_text())["intermediate_size"]
    48
    >>> report.groups
    (CroppedGroup(name='layers.0.ffn', units=64, kept=48),)
    """
    check_types(crop_file, locals())
    max_memory = bytes_of("max_memory", max_memory)
    options = CropOptions(
        keep=keep,
        what=() if what is None else what,
        round_to=round_to,
        scope=scope,
        norm=norm,
        nonfinite=nonfinite,
        given=_given(groups, numbers),
    )
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

    samples = repeatable(calibrate)

    def plan(source: Source, execution: Execution) -> FilePlan:
        if source.graph is None:
            check_not_run(source, run)
            check_no_method(then)
            return _plan(source, execution, options, config, then, samples)
        if config is not None or then is not None:
            raise OptionError("config and then must be left out for an ONNX model: its graph says all")
        from modelopt_rs.onnx.crop_model import plan_model

        return plan_model(source, execution, options, run, samples)

    report: CropFileReport = perform(source_path, out_path, plan, writing)
    return report


def _plan(
    source: Source,
    execution: Execution,
    options: CropOptions,
    config: str | os.PathLike[str] | None,
    then: QuantizeOptions | None,
    calibrate: Calibrate | None,
) -> FilePlan:
    """Crop a transformer that has nothing but tensors."""
    if calibrate is not None:
        check_runs(source, options.what)
    view = Widened(source, threads=execution.threads)
    tensors, threads, described = view.tensors, execution.threads, source.container == "checkpoint"
    before = _config(view, config, options.given)
    plan = CropPlan(tensors, before, options, described=described)
    _after(plan, plan.draft(), tensors, then, threads)  # what can't be is refused before anything is read
    inputs = None if calibrate is None else ModuleCropInputs(view, plan.groups, calibrate, execution)
    scorer = Scorer(view, plan.cropped, options.norm, options.nonfinite, execution)
    execution.total += scorer.bytes_to_read()
    scores = scorer.scores()
    after = _after(plan, plan.report(scores if inputs is None else inputs.scores(scores)), tensors, then, threads)
    transforms = _transforms(view, plan, after, inputs, threads)

    def report(seconds: float) -> CropFileReport:
        figures = {} if execution.dry_run else after.quantization.figures()
        rows = [
            _tensor_report(info, after, transforms[name].outputs, figures.get(name), view.stored_nbytes(name))
            for name, info in tensors.items()
        ]
        totals = total(rows, figures, seconds)
        return CropFileReport(
            command="crop",
            **execution.said(),
            options=_options(options, config, then, calibrate),
            totals=totals,
            warnings=after.quantization.said((totals.bytes_before, totals.bytes_after)),
            tensors=tuple(rows),
            groups=tuple(CroppedGroup(group.name, group.units, len(group.kept)) for group in after.report.groups),
            config=_changes(before, after.config),
            notes=(*options.unmoved(after.report), *plan.notes, *_notes(before, after, plan.given, described)),
        )

    return FilePlan(
        view=view,
        transforms=transforms,
        metadata=after.quantization.metadata,
        quantization_config=after.quantization.config,
        config=after.config,
        report=report,
    )


def _transforms(
    view: Source,
    plan: CropPlan,
    after: "_After",
    inputs: ModuleCropInputs | None,
    threads: int | None,
) -> dict[str, Transform]:
    """Return what becomes of each tensor: repaired where inputs are known, cropped, quantized or copied."""
    tensors, stays = view.tensors, masks(view.tensors, plan.groups, after.report.kept)
    after.quantization.weigh_by_norms(partial(_cropped, view, stays))
    transforms = {name: after.quantization.transform(info) for name, info in after.tensors.items()}
    for name, of_tensor in stays.items():
        transforms[name] = Crop(tensors[name], of_tensor, transforms[name], threads)
        if inputs is not None:
            transforms[name] = inputs.repair(name, of_tensor, transforms[name])
    return transforms


def _cropped(view: Source, stays: Mapping[str, Mapping[int, Array]], name: str) -> Array:
    """Read a vector without what goes of it."""
    whole = view.read(name)
    return whole[stays[name][0]] if name in stays else whole


def _options(
    options: CropOptions,
    config: str | os.PathLike[str] | None,
    then: QuantizeOptions | None,
    calibrate: Calibrate | None,
) -> dict[str, Any]:
    """Return the options in force, as a report has them."""
    others = {"config": None if config is None else str(config), "then": then.as_dict() if then else None}
    return {**options.as_dict(), "calibrate": None if calibrate is None else said(calibrate), **others}


@dataclass(frozen=True, slots=True)
class _After:
    """A model after the crop: its tensors, its config.json, and what of it is quantized."""

    report: CropReport
    tensors: dict[str, TensorInfo]
    config: dict[str, Any] | None
    quantization: Quantization


def _after(
    plan: CropPlan,
    report: CropReport,
    tensors: Mapping[str, TensorInfo],
    then: QuantizeOptions | None,
    threads: int | None,
) -> _After:
    smaller = dict(tensors)
    for name, (before, shape) in report.shapes.items():
        nbytes = tensors[name].nbytes // max(1, math.prod(before)) * math.prod(shape)
        smaller[name] = replace(tensors[name], shape=shape, nbytes=nbytes)
    config = plan.config_of(report)
    return _After(report, smaller, config, Quantization(smaller, config or {}, then, threads))


def _given(
    groups: Sequence[Group] | str | os.PathLike[str] | None, numbers: Mapping[str, str] | None
) -> GivenGroups | None:
    """Return the structure that the user says, if any."""
    if groups is None:
        if numbers is not None:
            raise OptionError("numbers must be left out without groups: they say what counts the units of these")
        return None
    if isinstance(groups, Sequence) and not isinstance(groups, str):
        return GivenGroups(tuple(groups), {} if numbers is None else dict(numbers))
    if numbers is not None:
        raise OptionError("numbers must be left out where groups is a file, which holds them itself")
    where = os.fspath(groups)
    return parse_groups(parse_object(read_file(Path(where), MAX_HEADER), where), where)


def _config(source: Source, path: str | os.PathLike[str] | None, structure: GivenGroups | None) -> Mapping[str, Any]:
    """Return what the model's config.json says: its own, or the one at `path`."""
    own = source.config
    if own is not None:
        if path is not None:
            raise OptionError(f"config must be left out for a model with a config.json of its own, got {str(path)!r}")
        return own
    if path is None and structure is not None and not structure.numbers:
        return {}
    if path is None:
        if source.container == "keras":
            fix = "say its structure (groups, --groups), or export the model to ONNX, whose graph says it"
            raise OptionError(f"what must be left out for a file of Keras: it doesn't say how its layers lie; {fix}")
        what = "the directory has no config.json" if source.container == "checkpoint" else "a file has none"
        raise OptionError(f"config (--config) must be given, got none: {what}, and it says how heads and layers lie")
    given = read_config(Path(path), MAX_HEADER)
    if given is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return given


def _changes(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]] | None:
    if after is None:
        return None
    return {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}


def _notes(before: Mapping[str, Any], after: _After, structure: GivenGroups | None, described: bool) -> Iterator[str]:
    config = after.config
    if config is None:
        if structure is None:
            yield NOT_SAID
        return
    if not described and config != before:
        yield NOT_WRITTEN
    if config.get("pruned_heads"):
        yield PRUNED_HEADS
    unnamed = [] if structure is None else structure.unnamed(after.report)
    if unnamed:
        more = f" and {len(unnamed) - 1:,} more" if len(unnamed) > 1 else ""
        yield f"no number of config.json counts the units of {unnamed[0]!r}{more}: if there is one, say it in numbers"


def _tensor_report(
    info: TensorInfo, after: _After, outputs: Sequence[TensorInfo], figures: ErrorFigures | None, nbytes: int
) -> TensorReport:
    done, reasons = [], []
    if info.name in after.report.shapes:
        done.append("crop")
        reasons.append("{} -> {}".format(*(list(shape) for shape in after.report.shapes[info.name])))
    packed = after.quantization.decisions.get(info.name)
    if packed is not None and packed.action == "quantize":
        done.append(packed.action)
        reasons.append(packed.reason)
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        decision="+".join(done) or "copy",
        reason="; ".join(reasons) or "no unit of it goes",
        bytes_before=nbytes,
        bytes_after=sum(output.nbytes for output in outputs),
        sqnr_db=None if figures is None else figures.sqnr_db,
        max_error=None if figures is None else figures.max_error,
    )
