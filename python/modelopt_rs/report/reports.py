"""What an operation on a model file reports: plain dataclasses, and their JSON."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from modelopt_rs.report.json_text import to_json
from modelopt_rs.report.peak import peak_memory
from modelopt_rs.report.run import RunReport
from modelopt_rs.stream.error_figures import ErrorFigures

__all__ = [
    "CompareReport",
    "CropFileReport",
    "CroppedGroup",
    "InspectReport",
    "Report",
    "TensorDifference",
    "TensorReport",
    "TensorStatistics",
    "Totals",
    "total",
]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What was decided for one tensor, why, and what came of it.

    Zeros are counted in tensors that are pruned: before and after, each with its share of the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    decision: str
    reason: str
    bytes_before: int
    bytes_after: int
    sqnr_db: float | None = None
    max_error: float | None = None
    zeros_before: int | None = None
    zeros_after: int | None = None
    sparsity_before: float | None = None
    sparsity_after: float | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums of a report. `worst_tensor` is the quantized tensor of the lowest SQNR; zeros are of pruned ones."""

    changed: int
    left: int
    bytes_before: int
    bytes_after: int
    ratio: float
    sqnr_db: float | None
    max_error: float | None
    worst_tensor: str | None
    worst_sqnr_db: float | None
    seconds: float
    gb_per_s: float
    peak_memory: int
    zeros_before: int | None = None
    zeros_after: int | None = None
    sparsity_before: float | None = None
    sparsity_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The report of `quantize_file`, `prune_file` and `dequantize_file`; `options` are those that change bytes.

    Of an ONNX model `run` says what running it beside the old one gave, and `file_bytes` the size of both with all that
    is no tensor; None where that was not done. `warnings` say in a sentence each what else should be known of it.
    """

    command: str
    source: str
    output: str
    dry_run: bool
    options: dict[str, Any]
    totals: Totals
    tensors: tuple[TensorReport, ...]
    file_bytes: tuple[int, int] | None = None
    run: RunReport | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Say in a line what was done; a model has hundreds of tensors, which `tensors` and `to_json` list."""
        totals = self.totals
        before, after = self.file_bytes or (totals.bytes_before, totals.bytes_after)
        done = f"{totals.changed:,} of {len(self.tensors):,} tensors, {before:,} -> {after:,} bytes"
        sqnr = "" if totals.sqnr_db is None else f", SQNR {totals.sqnr_db:.2f} dB"
        paths = f"command={self.command!r}, source={self.source!r}, output={self.output!r}"
        return f"{type(self).__name__}({paths}: {done}{sqnr})"

    def to_json(self) -> str:
        """Return the report as a JSON text."""
        return to_json(self)


@dataclass(frozen=True, slots=True)
class CroppedGroup:
    """One group of units that live and die together: how many there were, and how many are kept."""

    name: str
    units: int
    kept: int


@dataclass(frozen=True, slots=True, repr=False)
class CropFileReport(Report):
    """The report of `crop_file`.

    `config` has what changes in config.json, before and after; it is None where config.json can't say what was kept.
    `notes` say in a sentence each what is needed to load the output.
    """

    groups: tuple[CroppedGroup, ...]
    config: dict[str, tuple[Any, Any]] | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """One tensor of a file.

    `min`, `max` and `absmax` are over the values that are numbers, infinities included. They are None where
    the tensor has no such value or its dtype is not read. `sparsity` is the share of elements that are zero.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    min: float | None
    max: float | None
    absmax: float | None
    sparsity: float | None
    nonfinite: int | None


@dataclass(frozen=True, slots=True)
class InspectReport:
    """The report of `inspect_file`. `warnings` say what should be known of the file besides."""

    source: str
    bytes: int
    elements: int
    nonfinite: int
    seconds: float
    peak_memory: int
    tensors: tuple[TensorStatistics, ...]
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        what = f"{len(self.tensors):,} tensors, {self.elements:,} elements, {self.bytes:,} bytes"
        return f"InspectReport(source={self.source!r}: {what}, {self.nonfinite:,} non-finite)"

    def to_json(self) -> str:
        """Return the report as a JSON text."""
        return to_json(self)


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far tensor `name` of the second file is from that of the first."""

    name: str
    shape: tuple[int, ...]
    sqnr_db: float
    max_error: float
    cosine: float


@dataclass(frozen=True, slots=True)
class CompareReport:
    """The report of `compare_files`. `shape_mismatches` has (name, shape in a, shape in b).

    `changed` counts the tensors that were compared and differ; the figures are over those of floats among
    them, over integers where there is no float.

    `file_bytes` has the size of both: of all files with tensors, of ONNX models with their external data. `run` says
    what running two ONNX models gave; None where that was not done.
    """

    a: str
    b: str
    sqnr_db: float
    max_error: float
    cosine: float
    worst_tensor: str | None
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    shape_mismatches: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    not_compared: tuple[str, ...]
    seconds: float
    peak_memory: int
    tensors: tuple[TensorDifference, ...]
    file_bytes: tuple[int, int] | None = None
    run: RunReport | None = None
    changed: int = 0
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        figures = f"SQNR {self.sqnr_db:.2f} dB, largest error {self.max_error:.4g}, cosine {self.cosine:.6f}"
        differ = f"{self.changed:,} of {len(self.tensors):,} tensors differ"
        return f"CompareReport(a={self.a!r}, b={self.b!r}: {differ}, {figures})"

    def to_json(self) -> str:
        """Return the report as a JSON text."""
        return to_json(self)


def total(tensors: Iterable[TensorReport], figures: dict[str, ErrorFigures], seconds: float) -> Totals:
    """Add up a report. `figures` has the error figures of the tensors that were changed."""
    tensors = tuple(tensors)
    before = sum(t.bytes_before for t in tensors)
    after = sum(t.bytes_after for t in tensors)
    changed = sum(t.decision != "copy" for t in tensors)
    worst = min(figures, key=lambda name: figures[name].sqnr_db, default=None)
    whole = sum(figures.values(), ErrorFigures())
    pruned = [t for t in tensors if t.zeros_after is not None]
    size = sum(math.prod(t.shape) for t in pruned)
    zeros_before = sum(t.zeros_before or 0 for t in pruned)
    zeros_after = sum(t.zeros_after or 0 for t in pruned)
    return Totals(
        changed=changed,
        left=len(tensors) - changed,
        bytes_before=before,
        bytes_after=after,
        ratio=before / after if after else 1.0,
        sqnr_db=whole.sqnr_db if figures else None,
        max_error=whole.max_error if figures else None,
        worst_tensor=worst,
        worst_sqnr_db=figures[worst].sqnr_db if worst is not None else None,
        seconds=seconds,
        gb_per_s=before / seconds / 1e9 if seconds > 0.0 else 0.0,
        peak_memory=peak_memory(),
        zeros_before=zeros_before if pruned else None,
        zeros_after=zeros_after if pruned else None,
        sparsity_before=zeros_before / size if pruned else None,
        sparsity_after=zeros_after / size if pruned else None,
    )
