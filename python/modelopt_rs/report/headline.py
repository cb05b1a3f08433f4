"""What a person wants to know of a result first: its size, what was lost, and what would make it smaller."""

from typing import Final

from modelopt_rs.report.pictures import decimal_size
from modelopt_rs.report.reports import Report, TensorReport

__all__ = ["headline", "what_is_left"]

INCLUDED: Final = {
    "an embedding": "embeddings",
    "the last head": "heads",
}
"""What is left alone by default and loaded all the same if it is quantized: the plan's reasons, and their names."""


def headline(report: Report) -> str:
    """Return the sizes, how much of it is there still, and the error of weights.

    Examples
    --------
    >>> from modelopt_rs.report.headline import headline
    >>> from modelopt_rs.report.reports import Report, TensorReport, total
    >>> rows = [TensorReport("w", "F32", (256,), "quantize", "a weight", 1024, 144)]
    >>> how = {"command": "quantize", "source": "a", "output": "b", "dry_run": False, "options": {}}
    >>> headline(Report(**how, totals=total(rows, {}, 1.0), tensors=tuple(rows)))
    '1.02 kB -> 144 bytes, 14.1 % of it'
    """
    before, after = report.file_bytes or (report.totals.bytes_before, report.totals.bytes_after)
    text = decimal_size(before)
    if before:
        text += f" -> {decimal_size(after)}, {100 * after / before:.3g} % of it"
    sqnr = report.totals.sqnr_db
    return text if sqnr is None else f"{text}; weights {100 * 10 ** (-sqnr / 20):.2g} % off"


def what_is_left(report: Report) -> list[str]:
    """Say what most of the bytes are that could be quantized too, if they are a third of the output, and how."""
    left: dict[str, list[TensorReport]] = {}
    for tensor in report.tensors if report.command in ("quantize", "optimize") else ():
        if tensor.reason in INCLUDED:
            left.setdefault(tensor.reason, []).append(tensor)
    total = sum(tensor.bytes_after for tensor in report.tensors)
    found = []
    for reason, tensors in left.items():
        size = sum(tensor.bytes_after for tensor in tensors)
        if 3 * size > total:
            largest = max(tensors, key=lambda tensor: tensor.bytes_after).name
            ending = ".".join(largest.split(".")[-2:])
            found.append(f"{INCLUDED[reason]} are {100 * size / total:.0f} % of what is left: --include '*{ending}'")
    return found
