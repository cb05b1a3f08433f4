"""What the commands print: text without surprises from a file, tables that fit 80 columns, and progress."""

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from modelopt_rs.report.headline import headline, what_is_left
from modelopt_rs.report.reports import Report
from modelopt_rs.stream.execution import Progress as Callback

__all__ = [
    "NotShown",
    "aside",
    "count",
    "decibels",
    "line",
    "number",
    "printable",
    "progress",
    "show_plan",
    "show_reasons",
    "show_totals",
    "show_warnings",
    "table",
    "whole",
]

LARGE = 16 * 2**20  # bytes of input whose speed is worth a word

PAST = {"crop": "cropped"}  # of the verbs whose past is not theirs and a "d"
QUOTED = re.compile(r" '(?:[^'\\]|\\.)*'")  # what `quote` makes of a name
MAX_REASONS = 10  # lines of them
PLAIN_SECONDS = 30.0  # between lines of progress where no bar can be drawn: in a log


def printable(text: str) -> str:
    """Return text of a file with what could steer a terminal written as an escape.

    Examples
    --------
    >>> from modelopt_rs.cli.show import printable
    >>> print(printable("a\x1b[31mb"))
    a\\x1b[31mb
    """  # noqa: D301
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number in few characters; '-' for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def count(n: int, noun: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> from modelopt_rs.cli.show import count
    >>> count(1, "tensor"), count(2000, "tensor")
    ('1 tensor', '2,000 tensors')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def decibels(value: float | None, unit: str = "") -> str:
    """Return an SQNR with its unit; 'exact' where nothing differs, '-' where there is none."""
    if value is None:
        return "-"
    return "exact" if value == math.inf else f"{value:.2f}{unit}"


class NotShown(OSError):
    """What was to be printed could not be: the disk is full that standard output goes to."""


def line(text: str = "") -> None:
    """Print one line on stdout as it is, however long."""
    with _shown():
        _console().print(Text(printable(text)), soft_wrap=True)


def aside(text: str) -> None:
    """Print one line on stderr: what is no result."""
    click.echo(printable(text), err=True)


def whole(text: str) -> None:
    """Write a text to stdout, as it is."""
    if sys.stdout is not None:
        with _shown():
            sys.stdout.write(text)
            sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print a table; the columns `left` hold text and are folded to fit, the others hold numbers."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        if i in left:
            grid.add_column(Text(column), overflow="fold", no_wrap=False)
        else:
            grid.add_column(Text(column), justify="right", no_wrap=True)
    for row in rows:
        # Text, not str: rich would read [brackets] in a name as markup.
        grid.add_row(*(Text(printable(cell)) for cell in row))
    with _shown():
        _console().print(grid)


def _console() -> Console:
    # With --json - what is for people makes way for what is for programs.
    return Console(markup=False, highlight=False, emoji=False, stderr=_given("json_path") == "-")


def _given(name: str) -> Any:
    context = click.get_current_context(silent=True)
    return None if context is None else context.params.get(name)


@contextmanager
def _shown() -> Iterator[None]:
    """Name standard output in an error, and what is written all the same: a command prints when its work is done."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        written = "" if _given("dry_run") or not (output := _given("output")) else f"; {output} is written all the same"
        raise NotShown(e.errno, f"{e.strerror}{written}", "standard output") from None


@contextmanager
def progress(verb: str) -> Iterator[Callback]:
    """Give a callback that shows how far the work is: a bar on a terminal, else a plain line now and then."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _plain_progress(verb)
        return
    columns = (TextColumn(verb), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total)


def _plain_progress(verb: str) -> Callback:
    shown = time.monotonic()

    def show(done: int, total: int, name: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= PLAIN_SECONDS:
            shown = time.monotonic()
            aside(f"{verb}: {100 * done // max(total, 1)} % of {total:,} bytes")

    return show


def show_plan(report: Report) -> None:
    """Print what a dry run has decided for each tensor."""
    if report.dry_run:
        table(
            ("tensor", "decision and reason", "bytes", "after"),
            [
                (t.name, f"{t.decision}: {t.reason}", f"{t.bytes_before:,}", f"{t.bytes_after:,}")
                for t in report.tensors
            ],
            left=(0, 1),
        )
        line()


def show_reasons(word: str, reasons: Iterable[str]) -> None:
    """Print how many tensors have each reason, the commonest first.

    Reasons that differ in the names of nodes alone are one: a model has hundreds of these.
    """
    whole: dict[str, list[str]] = {}
    for reason in reasons:
        whole.setdefault(QUOTED.sub("", reason), []).append(reason)
    alike = {these[0] if len(set(these)) == 1 else plain: len(these) for plain, these in whole.items()}
    counts = Counter(alike).most_common()
    for reason, n in counts[:MAX_REASONS]:
        line(f"{word}  {count(n, 'tensor')}: {reason}")
    if len(counts) > MAX_REASONS:
        rest = sum(n for _, n in counts[MAX_REASONS:])
        line(f"{word}  {count(rest, 'tensor')}: other reasons, which --json lists")


def show_warnings(warnings: Iterable[str]) -> None:
    """Print what else should be known."""
    for warning in warnings:
        line(f"note  {warning}")


def show_totals(report: Report) -> None:
    """Print what a report adds up to."""
    totals = report.totals
    line("; ".join([headline(report), *what_is_left(report)]))
    line(f"{report.source} -> {report.output}" if report.output else report.source)
    changed = Counter(t.decision for t in report.tensors if t.decision != "copy")
    for decision, n in changed.items() or [(report.command, 0)]:
        verb = " and ".join(PAST.get(verb, f"{verb}d") for verb in decision.split("+"))
        line(f"{verb}  {count(n, 'tensor')}" + (" (dry run: nothing written)" if report.dry_run else ""))
    show_reasons("left", (t.reason for t in report.tensors if t.decision == "copy"))
    line(f"bytes  {totals.bytes_before:,} -> {totals.bytes_after:,} (ratio {totals.ratio:.2f})")
    if totals.sparsity_before is not None and totals.sparsity_after is not None:
        line(
            f"zeros  {totals.zeros_before:,} -> {totals.zeros_after:,} of the pruned tensors "
            f"({100 * totals.sparsity_before:.1f} % -> {100 * totals.sparsity_after:.1f} %)"
        )
    if totals.sqnr_db is not None:
        line(f"SQNR  {decibels(totals.sqnr_db, ' dB')}, largest error {number(totals.max_error)}")
        line(f"worst  {totals.worst_tensor}: {decibels(totals.worst_sqnr_db, ' dB')}")
    if not report.dry_run:
        # The time of an ONNX model has that of running it in it, and that of a small file is the time of opening it.
        is_said = report.file_bytes is None and totals.bytes_before >= LARGE
        speed = f"{totals.gb_per_s:.2f} GB/s of input, " if is_said else ""
        line(f"time  {totals.seconds:.2f} s, {speed}peak memory {totals.peak_memory / 2**20:.0f} MiB")
