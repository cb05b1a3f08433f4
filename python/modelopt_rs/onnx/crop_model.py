"""Cropping an ONNX model: the groups of its graph, ranked and cut in tiles."""

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx.tensors import initializer_infos
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.onnx.check import OnnxCheck
from modelopt_rs.onnx.crop.apply import crop_graph
from modelopt_rs.onnx.crop.coupling import GraphGroup, Refusal, find_groups
from modelopt_rs.onnx.crop.given_groups import given_groups, write_numbers
from modelopt_rs.onnx.crop_inputs import CropInputs
from modelopt_rs.onnx.value_infos import forget_value_infos, names_of_value_infos
from modelopt_rs.onnx.weights import QUANTIZED
from modelopt_rs.planning.calibration import Calibrate, said
from modelopt_rs.planning.crop import CropOptions, as_options, check_scored
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.given_groups import sizes_of
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.prune.choice import Chooser
from modelopt_rs.prune.coupling import check_groups
from modelopt_rs.prune.crop import CropReport, crop_report, masks
from modelopt_rs.report.reports import CropFileReport, CroppedGroup, TensorReport, total
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.memory import DEFAULT_MEMORY
from modelopt_rs.stream.model import Source, TensorInfo, Tile
from modelopt_rs.stream.transform import Copy, Transform
from modelopt_rs.transforms.crop import Crop, Scorer

__all__ = ["GraphCrop", "plan_model"]

SHOWN = 3  # names of weights that have the same reason

KINDS = ("heads", "ffn", "channels", "hidden")


class _Whole(Source):
    """An ONNX model with some of its initializers that are in memory as tensors, too.

    Parameters
    ----------
    source : Source
        Stays open when this is closed.
    names : collection of str
        The initializers that aren't among its tensors.
    """

    def __init__(self, source: Source, names: Collection[str]) -> None:
        self._source = source
        self.container, self.path = source.container, source.path
        others = {name: info for name, info in initializer_infos(source.graph).items() if name in names}
        self._tensors: dict[str, TensorInfo] = {**source.tensors, **others}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name."""
        return self._tensors

    @property
    def nbytes(self) -> int:
        """The bytes of the model's files."""
        return self._source.nbytes

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's own metadata."""
        return self._source.metadata

    def read(self, name: str) -> Array:
        """Return one tensor, whole."""
        return self._source.read(name) if name in self._source.tensors else self._small(name)

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows; what is in memory comes at once."""
        if name in self._source.tensors:
            yield from self._source.tiles(name, max_bytes, rows)
        else:
            rows = range(self._tensors[name].rows) if rows is None else rows
            small = self._small(name).reshape(self._tensors[name].rows, -1)
            yield Tile(rows.start, small[rows.start : rows.stop])

    def _small(self, name: str) -> Array:
        tensor = self._source.graph.graph.initializers[name].const_value
        assert tensor is not None
        array = np.array(tensor.numpy())
        return array.view(np.uint16) if self._tensors[name].dtype == "BF16" else array

    def close(self) -> None:
        """Do nothing."""


class GraphCrop:
    """What is cropped of an ONNX model: the groups of its graph that `what` names, and how much of each.

    Parameters
    ----------
    source : Source
    options : CropOptions
        `what`: "heads", "ffn" (units between two layers of MatMul or Gemm), "channels" (of convolutions), "hidden"
        (what a norm goes along), or "all".
    max_memory : int
        As for `find_groups`.

    Attributes
    ----------
    groups : tuple of GraphGroup
        Those that are chosen from.
    refusals : list of Refusal
        The weights whose outputs can't be cropped, with the reason.

    Raises
    ------
    OptionError
        If an option is wrong for this model, or there is nothing to crop in it.
    """

    def __init__(self, source: Source, options: CropOptions, max_memory: int = DEFAULT_MEMORY) -> None:
        self._source, self._options = source, options
        self._told = names_of_value_infos(source.graph)
        self.refusals: list[Refusal] = []
        groups = self._found(max_memory) if options.given is None else given_groups(source, options.given)
        names = {member.name for group in groups for member in group.members}
        self._whole: Source = _Whole(source, names)
        with as_options():
            checked = check_groups("crop_file", self._whole.tensors, groups, TensorInfo)
            self._chooser = Chooser("crop_file", checked, options.choice)
        if options.given is not None:
            check_scored(self._whole.tensors, checked)
        self.groups = tuple(groups)

    def _found(self, max_memory: int) -> list[GraphGroup]:
        """Return the groups of the graph that `what` names."""
        what = self._options.what
        wanted = KINDS if "all" in what else tuple(what)
        unknown = [word for word in wanted if word not in KINDS]
        if unknown:
            known = ", ".join(repr(word) for word in (*KINDS, "all"))
            raise OptionError(f"what must be of {known} for an ONNX model, got {unknown[0]!r}")
        found, self.refusals = find_groups(self._source.graph, self._source.tensors, max_memory=max_memory)
        groups = [group for group in found if group.kind in wanted]
        if not groups:
            raise OptionError(f"what must name something in this model, got {', '.join(wanted)}", self._why_none())
        return groups

    def _why_none(self) -> list[str]:
        """Say why each weight can't be cropped, alike reasons in one, the commonest first."""
        names: dict[str, list[str]] = {}
        for refusal in self.refusals:
            names.setdefault(refusal.reason, []).append(refusal.name)
        found = []
        coded = sorted({node.op_type for node in self._source.graph.graph.all_nodes()} & set(QUANTIZED))
        if coded:
            found = [f"weights of it are quantized already ({', '.join(coded)}): crop the model that it was made of"]
        for reason, those in sorted(names.items(), key=lambda item: -len(item[1])):
            more = f" and {len(those) - SHOWN:,} more" if len(those) > SHOWN else ""
            which = those[0] if len(those) == 1 else f"{len(those):,} weights ({', '.join(those[:SHOWN])}{more})"
            found.append(f"{which}: {reason}")
        return found or ["it has no weights with outputs to crop"]

    def report(self, execution: Execution, inputs: CropInputs | None = None) -> CropReport:
        """Rank the units in one pass over the weights, or by what goes into layers; return what stays."""
        options = self._options
        scorer = Scorer(self._whole, self._chooser.cropped, options.norm, options.nonfinite, execution)
        execution.total += scorer.bytes_to_read()
        scores = scorer.scores()
        if inputs is not None:
            scores = inputs.scores(scores)
        every = {group.name: scores.get(group.name, np.full(group.units, np.nan)) for group in self.groups}
        return crop_report(self._whole.tensors, self.groups, self._chooser.kept(every), every)

    def apply(self, report: CropReport, threads: int | None, inputs: CropInputs | None = None) -> dict[str, Transform]:
        """Crop the graph; return what makes the tensors that come in tiles."""
        tensors, given = self._source.tensors, self._options.given
        stays = masks(self._whole.tensors, self.groups, report.kept)
        if given is not None:
            write_numbers(self._source.graph, list(given.counted(sizes_of(report))))
        crop_graph(self._source.graph, self.groups, report.kept, tensors)
        # What the graph says of the shapes within it is true of found groups alone.
        forget_value_infos(self._source.graph, self._told if given is None else ())
        transforms: dict[str, Transform] = {}
        for name, info in tensors.items():
            if name not in stays:
                transforms[name] = Copy(info)
                continue
            shape = report.shapes[name][1]
            smaller = TensorInfo(name, info.dtype, shape, info.nbytes // math.prod(info.shape) * math.prod(shape))
            transforms[name] = Crop(info, stays[name], Copy(smaller), threads)
            if inputs is not None:
                transforms[name] = inputs.repair(name, stays[name], transforms[name])
        return transforms

    def notes(self) -> list[str]:
        """Say what is left alone, and why."""
        return [
            f"{quote(refusal.name)}: all {refusal.units:,} outputs stay: {refusal.reason}" for refusal in self.refusals
        ]


def plan_model(
    source: Source,
    execution: Execution,
    options: CropOptions,
    run: RunOptions | None,
    calibrate: Calibrate | None = None,
) -> FilePlan:
    """Decide what becomes of an ONNX model that is cropped; its units are ranked, and its graph is cropped, at once.

    Parameters
    ----------
    source : Source
        Has a graph.
    execution : Execution
    options : CropOptions
    run : RunOptions or None
    calibrate : path, mapping, iterable or callable, optional
        As for `crop_file`.
    """
    check = OnnxCheck(source, run, execution, calibrate)
    plan = GraphCrop(source, options, execution.max_memory)
    before = dict(source.tensors)
    inputs = None if calibrate is None else CropInputs(source, plan.groups, calibrate, execution)
    cropped = plan.report(execution, inputs)
    transforms = plan.apply(cropped, execution.threads, inputs)

    def report(seconds: float) -> CropFileReport:
        rows = [_tensor_report(info, transforms[name].outputs[0]) for name, info in before.items()]
        return CropFileReport(
            command="crop",
            source=execution.source,
            output=execution.output,
            dry_run=execution.dry_run,
            options={
                **options.as_dict(),
                "calibrate": None if calibrate is None else said(calibrate),
                "config": None,
                "then": None,
            },
            totals=total(rows, {}, seconds),
            tensors=tuple(rows),
            groups=tuple(CroppedGroup(group.name, group.units, len(group.kept)) for group in cropped.groups),
            config=None,
            notes=(*options.unmoved(cropped), *plan.notes()),
            file_bytes=check.file_bytes,
            run=check.report,
        )

    return FilePlan(view=source, transforms=transforms, check=check, report=report)


def _tensor_report(info: TensorInfo, output: TensorInfo) -> TensorReport:
    smaller = output.shape != info.shape
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        decision="crop" if smaller else "copy",
        reason=f"{list(info.shape)} -> {list(output.shape)}" if smaller else "no unit of it goes",
        bytes_before=info.nbytes,
        bytes_after=output.nbytes,
        sqnr_db=None,
        max_error=None,
    )
