"""A report as one page to look at, which needs nothing from elsewhere. Needs jinja2 and matplotlib (extra `report`)."""

import math
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from modelopt_rs._core import __version__, isa
from modelopt_rs.report.distribution import Distribution
from modelopt_rs.report.headline import what_is_left
from modelopt_rs.report.pictures import Part, decimal_size, draw_distribution, draw_sizes, svg
from modelopt_rs.report.reports import (
    CompareReport,
    CropFileReport,
    InspectReport,
    Report,
    TensorDifference,
    TensorReport,
)
from modelopt_rs.report.run import RunReport

__all__ = ["AnyReport", "parts_of", "to_html"]

AnyReport = Report | CompareReport | InspectReport
PAST = {
    "quantize": "quantized",
    "prune": "pruned",
    "crop": "cropped",
    "dequantize": "dequantized",
    "optimize": "quantized",
    "copy": "left",
}
SHAPES = re.compile(r"^\[[\d, ]*\] -> \[[\d, ]*\](; )?")
LARGEST = 8  # tensors that are drawn one by one, where nothing else tells them apart


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a cell, and the number that it is sorted by."""

    text: str
    key: float | None = None


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table of a page; `text_columns` are those that hold words."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: Sequence[int] = (0,)


def to_html(report: AnyReport, distributions: Sequence[Distribution] = (), command: str | None = None) -> str:
    """Return a report as the text of one HTML page: sizes as a picture, errors as tables that can be sorted.

    Parameters
    ----------
    report : Report, CompareReport or InspectReport
    distributions : sequence of Distribution
        Of the tensors that lost most.
    command : str, optional
        The command line that made it, to be shown.

    Returns
    -------
    str
    """
    from jinja2 import Environment, PackageLoader

    # What stands in a model file is a stranger's: all of it is escaped.
    environment = Environment(loader=PackageLoader("modelopt_rs.report", "."), autoescape=True)
    parts = parts_of(report)
    return environment.get_template("page.html.j2").render(
        title=_title(report),
        lines=_lines(report),
        warnings=report.warnings,
        figures=list(_figures(report)),
        sizes=svg(draw_sizes(parts)) if parts else "",
        pairs=not isinstance(report, InspectReport),
        distributions=[svg(draw_distribution(each)) for each in distributions],
        tables=list(_tables(report)),
        command=command,
        versions=f"modelopt_rs {__version__} ({isa()}), NumPy {np.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
    )


def parts_of(report: AnyReport) -> list[Part]:
    """Return the parts of a model whose sizes are drawn, each with its bytes, before and after."""
    if isinstance(report, InspectReport):
        largest = sorted(report.tensors, key=lambda tensor: -tensor.bytes)[:LARGEST]
        return [(tensor.name, tensor.bytes) for tensor in largest]
    if isinstance(report, CompareReport):
        return [] if report.file_bytes is None else [("the whole model", *report.file_bytes)]
    before, after = Counter[str](), Counter[str]()
    for tensor in report.tensors:
        # "4 bits: the layer would be off by more", "4 bits (not 2: ...)" and "4 bits" are drawn as one, and so is what
        # is cropped, "[128, 64] -> [96, 64]", whatever its shape.
        why = SHAPES.sub("", tensor.reason).split(":")[0].split(" (")[0]
        part = f"{_past(tensor.decision)}: {why}".removesuffix(": ")
        before[part] += tensor.bytes_before
        after[part] += tensor.bytes_after
    whole = report.file_bytes or (report.totals.bytes_before, report.totals.bytes_after)
    largest_parts: list[Part] = [(part, before[part], after[part]) for part, _ in before.most_common(LARGEST)]
    return [("the whole model", *whole), *largest_parts]


def _past(decision: str) -> str:
    return " and ".join(PAST.get(verb, verb) for verb in decision.split("+"))


def _title(report: AnyReport) -> str:
    if isinstance(report, InspectReport):
        return f"{PurePath(report.source).name}: {decimal_size(report.bytes)}"
    if isinstance(report, CompareReport):
        return f"{PurePath(report.b).name} compared with {PurePath(report.a).name}"
    before, after = report.file_bytes or (report.totals.bytes_before, report.totals.bytes_after)
    name = PurePath(report.source).name
    ratio = before / max(after, 1)
    if 0.99 < ratio < 1.01:  # zeros that are stored as numbers
        return f"{name}: {decimal_size(after)}, as large as before"
    words = f"{ratio:.3g} times smaller" if ratio > 1.0 else f"{1 / ratio:.3g} times larger"
    return f"{name}: {decimal_size(before)} to {decimal_size(after)}, {words}"


def _lines(report: AnyReport) -> list[str]:
    if isinstance(report, InspectReport):
        return [report.source]
    if isinstance(report, CompareReport):
        return [f"reference: {report.a}", f"compared: {report.b}"]
    lines = [f"from {report.source}", f"to {report.output}" if report.output else ""]
    if report.dry_run:
        lines.append("A dry run: nothing was written, no loss was measured.")
    if (found := report.options.get("allocation")) is not None:
        floor, ceiling = decimal_size(found["floor"]), decimal_size(found["ceiling"])
        lines.append(
            f"Sizes from {floor} to {ceiling} could be had. The loss at this one is {found['loss']:.4g}; at most "
            f"{100 * found['gap']:.2g} % less is possible."
        )
    if isinstance(report, CropFileReport):
        lines += report.notes
    lines += [f"{each[0].upper()}{each[1:]} makes it smaller." for each in what_is_left(report)]
    return [line for line in lines if line]


def _figures(report: AnyReport) -> Iterator[tuple[str, str]]:
    if isinstance(report, InspectReport):
        yield "tensors", f"{len(report.tensors):,}"
        yield "numbers", f"{report.elements:,}"
        yield "NaN or infinite", f"{report.nonfinite:,}"
    elif isinstance(report, CompareReport):
        yield "tensors that differ", f"{report.changed:,} of {len(report.tensors):,}"
        yield "SQNR of weights", _decibels(report.sqnr_db)
        yield "cosine", f"{report.cosine:.5f}"
    else:
        totals = report.totals
        yield f"tensors {_past(report.command)}", f"{totals.changed:,} of {totals.changed + totals.left:,}"
        if totals.sqnr_db is not None:
            yield "SQNR of weights", _decibels(totals.sqnr_db)
        if totals.sparsity_after is not None:
            yield "zeros", f"{100 * totals.sparsity_after:.1f} %"
    run = None if isinstance(report, InspectReport) else report.run
    # Inputs that are made up show that the model runs, not how good or how fast it is on real ones: no headline.
    if run is not None and run.not_run is None and run.inputs_from != "generated":
        yield "SQNR of outputs", _decibels(run.sqnr_db)
        if run.speedup is not None:
            yield "speed", f"{run.speedup:.2f} ×"
    seconds = report.totals.seconds if isinstance(report, Report) else report.seconds
    memory = report.totals.peak_memory if isinstance(report, Report) else report.peak_memory
    yield "time", f"{seconds:.3g} s"
    yield "peak memory", decimal_size(memory)


def _tables(report: AnyReport) -> Iterator[PageTable]:
    if not isinstance(report, InspectReport) and report.run is not None:
        yield _outputs(report.run)
    if isinstance(report, InspectReport):
        columns: Sequence[str] = ("tensor", "dtype", "shape", "bytes", "min", "max", "zeros, %", "NaN or infinite")
        yield PageTable("Tensors", "", columns, [
            (Cell(t.name), Cell(t.dtype), Cell(_shape(t.shape)), _whole(t.bytes), _number(t.min), _number(t.max),
             _number(None if t.sparsity is None else 100 * t.sparsity), _whole(t.nonfinite)) for t in report.tensors
        ], (0, 1, 2))  # fmt: skip
    elif isinstance(report, CompareReport):
        columns = ("tensor", "shape", "SQNR, dB", "largest error", "cosine")
        yield PageTable("Error by tensor", "", columns, [
            (Cell(t.name), Cell(_shape(t.shape)), _loss(t.sqnr_db), _number(t.max_error), _number(t.cosine, 6))
            for t in sorted(report.tensors, key=_worst_first)
        ], (0, 1))  # fmt: skip
        yield from _differences(report)
    else:
        if isinstance(report, CropFileReport):
            columns = ("group", "units", "kept")
            rows = [(Cell(g.name), _whole(g.units), _whole(g.kept)) for g in report.groups]
            yield PageTable("Groups of units", "Units of a group live and die together.", columns, rows)
        columns = ("tensor", "what was done", "why", "bytes before", "bytes after", "SQNR, dB", "largest error")
        table = [
            (Cell(t.name), Cell(_past(t.decision)), Cell(t.reason), _whole(t.bytes_before), _whole(t.bytes_after),
             _loss(t.sqnr_db), _number(t.max_error)) for t in sorted(report.tensors, key=_worst_first)
        ]  # fmt: skip
        shown = len(columns) if any(row[-1].text or row[-2].text for row in table) else len(columns) - 2
        title = "Tensors" if shown < len(columns) else "Error by tensor"  # what is cropped has no error of its own
        yield PageTable(
            title, "A click on a heading sorts.", columns[:shown], [row[:shown] for row in table], (0, 1, 2)
        )


def _worst_first(tensor: TensorReport | TensorDifference) -> float:
    return math.inf if tensor.sqnr_db is None or math.isnan(tensor.sqnr_db) else tensor.sqnr_db


def _differences(report: CompareReport) -> Iterator[PageTable]:
    rows: list[Sequence[Cell]] = [(Cell(name), Cell("only in the reference")) for name in report.only_in_a]
    rows += [(Cell(name), Cell("only in the other one")) for name in report.only_in_b]
    rows += [(Cell(n), Cell(f"shape {_shape(a)} against {_shape(b)}")) for n, a, b in report.shape_mismatches]
    rows += [(Cell(name), Cell("not compared")) for name in report.not_compared]
    if rows:
        yield PageTable("Not compared", "", ("tensor", "why"), rows, (0, 1))


def _outputs(run: RunReport) -> PageTable:
    if run.not_run is not None:
        return PageTable("Run beside the old one", f"Not run: {run.not_run}", ("output",), [])
    made_up = "Inputs were made up: a smoke test, which shows that it runs, not how good it is. "
    text = made_up if run.inputs_from == "generated" else f"Inputs: {run.inputs_from}. "
    if run.latency_before_ms is not None and run.latency_after_ms is not None:
        text += f"Latency {run.latency_before_ms:.3g} ms before, {run.latency_after_ms:.3g} ms after. "
    columns = ("output", "shape", "SQNR, dB", "cosine", "largest error", "equal, %")
    rows = [
        (Cell(o.name), Cell(_shape(o.shape)), _loss(o.sqnr_db), _number(o.cosine, 6), _number(o.max_error),
         _number(None if o.agree is None else 100 * o.agree)) for o in run.outputs
    ]  # fmt: skip
    return PageTable("Run beside the old one", text.strip(), columns, rows, (0, 1))


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"


def _number(value: float | None, digits: int = 4) -> Cell:
    return Cell("") if value is None or math.isnan(value) else Cell(f"{value:.{digits}g}", value)


def _whole(value: int | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:,}", value)


def _loss(value: float | None) -> Cell:
    if value is None or math.isnan(value):
        return Cell("")
    # What has lost nothing comes after all that has lost something.
    return Cell(_decibels(value).removesuffix(" dB"), min(value, 1e9))


def _decibels(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "none"
    return "exact" if value == math.inf else f"{value:.2f} dB"
