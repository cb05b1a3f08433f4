"""What a run of two ONNX models against each other reports: plain dataclasses, and their JSON."""

import math
from dataclasses import dataclass

from modelopt_rs.errors import quote
from modelopt_rs.report.json_text import to_json

__all__ = ["InputReport", "MaxErrorExceeded", "OutputDifference", "RunReport", "check_max_error", "relative_error"]


@dataclass(frozen=True, slots=True)
class InputReport:
    """One input of the first run: its name, its dtype and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far one output of the second model is from that of the first, over all runs.

    `agree` is the share of elements that are equal, of integers, truth values and strings; SQNR and cosine are of
    floats, None where no element is finite in both. `nonfinite` counts the elements that are NaN or infinite in one
    output and not the same in the other: with any of them the error is infinite. `shape` is that of the first run.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    sqnr_db: float | None
    cosine: float | None
    max_error: float
    agree: float | None
    nonfinite: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """The report of `run_pair` and `compare_models`.

    SQNR and cosine are over the elements of all outputs of floats, the largest error over all outputs. Times are
    medians of single runs of the first inputs, taken in turn; `speedup` is the median of before / after of
    neighbours, so above 1 where the second model is faster. Peak memory is of a process that loads a model and runs
    it once. What was not measured is None.

    Inputs that are made up (`inputs_from` is "generated") are a smoke test: they show that the second model runs, not
    how good it is. `sizes` says how many sizes of them were run, the largest first, and `tried` on how many the first
    model was tried to find them. `not_run` says why there are no figures, where it ran on none.
    """

    before: str
    after: str
    inputs_from: str
    inputs: tuple[InputReport, ...]
    runs: int
    sqnr_db: float | None
    cosine: float | None
    max_error: float
    worst_output: str | None
    only_in_before: tuple[str, ...]
    only_in_after: tuple[str, ...]
    shape_mismatches: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    not_compared: tuple[str, ...]
    threads: int
    rounds: int
    latency_before_ms: float | None
    latency_after_ms: float | None
    speedup: float | None
    peak_memory_before: int | None
    peak_memory_after: int | None
    seconds: float
    outputs: tuple[OutputDifference, ...]
    sizes: int = 0
    tried: int = 0
    not_run: str | None = None

    def to_json(self) -> str:
        """Return the report as a JSON text."""
        return to_json(self)


class MaxErrorExceeded(ValueError):
    """An output is further off than it may be; `report` says how far all are."""

    def __init__(self, message: str, report: RunReport) -> None:
        super().__init__(message)
        self.report = report


def check_max_error(report: RunReport, max_error: float | None) -> None:
    """Refuse a pair of models that give what is not alike.

    Parameters
    ----------
    report : RunReport
    max_error : float or None
        The most that any output may be off; None: whatever it is.

    Raises
    ------
    MaxErrorExceeded
        If an output is further off, or could not be compared.

    Examples
    --------
    With a report of `compare_models`::

        check_max_error(report, 0.01)
    """
    if max_error is None:
        return
    for name, before, after in report.shape_mismatches:
        message = f"max_error: output {quote(name)} has shape {list(before)} before and {list(after)} after"
        raise MaxErrorExceeded(message, report)
    missing = (*report.only_in_before, *report.only_in_after, *report.not_compared)
    if missing:
        raise MaxErrorExceeded(f"max_error: output {quote(missing[0])} can't be compared", report)
    if not any(each.elements and (each.sqnr_db is not None or each.agree is not None) for each in report.outputs):
        raise MaxErrorExceeded("max_error: the outputs have no elements that could be compared", report)
    worst = max(report.outputs, key=lambda output: output.max_error)
    if worst.max_error > max_error:
        raise MaxErrorExceeded(
            f"max_error: output {quote(worst.name)} is off by {worst.max_error:.6g}, more than {max_error:g}", report
        )


def relative_error(report: RunReport) -> float | None:
    """Return the root of the mean of the squared relative errors of all outputs of floats; None: they say nothing.

    Examples
    --------
    With a report of `compare_models`::

        relative_error(report)
    """
    if report.not_run is not None or report.shape_mismatches:
        return None
    squares = [10 ** (-each.sqnr_db / 10) for each in report.outputs if each.sqnr_db is not None]
    error = math.sqrt(sum(squares) / len(squares)) if squares else math.nan
    return None if math.isnan(error) else error
