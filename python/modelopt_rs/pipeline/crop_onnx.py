"""Cropping an ONNX model: the groups of its graph, ranked and cut in tiles."""

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from modelopt_rs.files import Source, TensorInfo
from modelopt_rs.files.messages import listing, quote
from modelopt_rs.files.model import Array, Tile
from modelopt_rs.pipeline.crop_plan import CropOptions, as_options
from modelopt_rs.pipeline.cropping import Crop, Scorer
from modelopt_rs.pipeline.onnx_check import OnnxCheck
from modelopt_rs.pipeline.onnx_run_options import RunOptions
from modelopt_rs.pipeline.plan import OptionError
from modelopt_rs.pipeline.report import CropFileReport, CroppedGroup, TensorReport, total
from modelopt_rs.pipeline.sinks import check_place, open_sink
from modelopt_rs.pipeline.tiles import Road
from modelopt_rs.pipeline.transform import Copy, Transform, rewrite
from modelopt_rs.prune.choice import Chooser
from modelopt_rs.prune.coupling import check_groups
from modelopt_rs.prune.crop import CropReport, crop_report, masks

if TYPE_CHECKING:
    from modelopt_rs.files.onnx import OnnxSource

__all__ = ["GraphCrop", "crop_onnx"]

KINDS = ("heads", "ffn", "channels", "hidden")


class Whole:
    """An ONNX model with some of its initializers that are in memory as tensors, too.

    Parameters
    ----------
    source : OnnxSource
        Stays open when this is closed.
    names : collection of str
        The initializers that aren't among its tensors.
    """

    def __init__(self, source: "OnnxSource", names: Collection[str]) -> None:
        from modelopt_rs.files.onnx.tensors import initializer_infos

        self._source = source
        self.path: Path = source.path
        others = {name: info for name, info in initializer_infos(source.model).items() if name in names}
        self._tensors: dict[str, TensorInfo] = {**source.tensors, **others}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name."""
        return self._tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's own metadata."""
        return self._source.metadata

    def read(self, name: str) -> Array:
        """Return one tensor, whole."""
        return self._source.read(name) if name in self._source.tensors else self._small(name)

    def tiles(self, name: str, max_bytes: int) -> Iterator[Tile]:
        """Yield a tensor's rows; what is in memory comes at once."""
        if name in self._source.tensors:
            yield from self._source.tiles(name, max_bytes)
        else:
            yield Tile(0, self._small(name).reshape(self._tensors[name].rows, -1))

    def _small(self, name: str) -> Array:
        tensor = self._source.model.graph.initializers[name].const_value
        assert tensor is not None
        array = np.array(tensor.numpy())
        return array.view(np.uint16) if self._tensors[name].dtype == "BF16" else array

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


class GraphCrop:
    """What is cropped of an ONNX model: the groups of its graph that `what` names, and how much of each.

    Parameters
    ----------
    source : OnnxSource
    options : CropOptions
        `what`: "heads", "ffn" (units between two layers of MatMul or Gemm), "channels" (of convolutions), "hidden"
        (what a norm goes along), or "all".

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

    def __init__(self, source: "OnnxSource", options: CropOptions) -> None:
        from modelopt_rs.graph.crop.coupling import find_groups

        self._source, self._options = source, options
        wanted = KINDS if "all" in options.what else tuple(options.what)
        unknown = [word for word in wanted if word not in KINDS]
        if unknown:
            known = ", ".join(repr(word) for word in (*KINDS, "all"))
            raise OptionError(f"what must be of {known} for an ONNX model, got {unknown[0]!r}")
        found, self.refusals = find_groups(source.model, source.tensors)
        groups = [group for group in found if group.kind in wanted]
        if not groups:
            raise OptionError(f"what must name something in this model, got {', '.join(wanted)}: {self._why_none()}")
        names = {member.name for group in groups for member in group.members}
        self._whole: Source = Whole(source, names)
        with as_options():
            checked = check_groups("crop_file", self._whole.tensors, groups, TensorInfo)
            self._chooser = Chooser("crop_file", checked, options.choice)
        self.groups = tuple(groups)

    def _why_none(self) -> str:
        reasons = [f"{refusal.name}: {refusal.reason}" for refusal in self.refusals]
        return listing(reasons) if reasons else "it has no weights with outputs to crop"

    def report(self, road: Road) -> CropReport:
        """Rank the units in one pass over the weights; return what stays."""
        options = self._options
        scorer = Scorer(self._whole, self._chooser.cropped, options.norm, options.nan, road)
        road.total += scorer.bytes_to_read()
        scores = scorer.scores()
        every = {group.name: scores.get(group.name, np.full(group.units, np.nan)) for group in self.groups}
        return crop_report(self._whole.tensors, self.groups, self._chooser.kept(every), every)

    def apply(self, report: CropReport, threads: int | None) -> dict[str, Transform]:
        """Crop the graph; return what makes the tensors that come in tiles."""
        from modelopt_rs.graph.crop.apply import crop_graph

        tensors = self._source.tensors
        stays = masks(self._whole.tensors, self.groups, report.kept)
        crop_graph(self._source.model, self.groups, report.kept, tensors)
        transforms: dict[str, Transform] = {}
        for name, info in tensors.items():
            if name not in stays:
                transforms[name] = Copy(info)
                continue
            shape = report.shapes[name][1]
            smaller = TensorInfo(name, info.dtype, shape, info.nbytes // math.prod(info.shape) * math.prod(shape))
            transforms[name] = Crop(info, stays[name], Copy(smaller), threads)
        return transforms

    def notes(self) -> list[str]:
        """Say what is left alone, and why."""
        return [
            f"{quote(refusal.name)}: all {refusal.units:,} outputs stay: {refusal.reason}" for refusal in self.refusals
        ]


def crop_onnx(
    source: "OnnxSource",
    out_path: str | os.PathLike[str],
    options: CropOptions,
    run: RunOptions | None,
    road: Road,
    *,
    dry_run: bool,
    verify: bool,
    overwrite: bool,
    durable: bool,
) -> CropFileReport:
    """Crop an ONNX model as `crop_file` does.

    Parameters
    ----------
    source : OnnxSource
    out_path : path
    options : CropOptions
    run : RunOptions or None
    road : Road
    dry_run, verify, overwrite, durable : bool
        As for `crop_file`.
    """
    start = time.perf_counter()
    if not dry_run:
        check_place(out_path, overwrite)
    check = OnnxCheck(source, run, road.threads)
    plan = GraphCrop(source, options)
    before = dict(source.tensors)
    report = plan.report(road)
    transforms = plan.apply(report, road.threads)
    if not dry_run:
        sink = open_sink(
            source,
            out_path,
            {name: transform.outputs for name, transform in transforms.items()},
            specs={},
            quantization_config=None,
            overwrite=overwrite,
            durable=durable,
        )
        rewrite(source, sink, transforms, road, verify=verify, check=check)
    rows = [_tensor_report(info, transforms[name].outputs[0]) for name, info in before.items()]
    return CropFileReport(
        command="crop",
        source=str(source.path),
        output=str(out_path),
        dry_run=dry_run,
        options={**options.as_dict(), "config": None, "then": None},
        totals=total(rows, {}, time.perf_counter() - start),
        tensors=tuple(rows),
        groups=tuple(CroppedGroup(group.name, group.units, len(group.kept)) for group in report.groups),
        config=None,
        notes=tuple(plan.notes()),
        file_bytes=check.file_bytes,
        run=check.report,
    )


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
