"""`--json` and `--report`: what a command reports, as a file."""

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from modelopt_rs.cli.show import whole
from modelopt_rs.containers.atomic import write_whole
from modelopt_rs.containers.container import check_place
from modelopt_rs.operations.page import check_report_path, write_report
from modelopt_rs.report.reports import CompareReport, InspectReport, Report
from modelopt_rs.report.statistics import CalibrateReport

__all__ = ["ReportPaths", "check_apart", "json_option", "put_json", "reporting"]

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "json_path", type=click.Path(), metavar="FILE", help="Write the report as JSON; - is standard output."
)
OPTIONS = (
    json_option,
    click.option(
        "--report",
        "page_path",
        type=click.Path(),
        metavar="FILE",
        help="Write the report as a page to look at (.html) or as its pictures (.png).",
    ),
)


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """Where a command's report is written to, None: nowhere."""

    json: str | None
    page: str | None
    allow_symlinks_under: str | None

    def write(self, report: Report | CompareReport | InspectReport) -> None:
        """Write the files that were asked for, each whole or not at all."""
        if self.json is not None:
            put_json(report, self.json)
        if self.page is not None:
            command = shlex.join(["modelopt-rs", *click.get_current_context().find_root().obj])
            write_report(report, self.page, command=command, allow_symlinks_under=self.allow_symlinks_under)


def put_json(report: Report | CompareReport | InspectReport | CalibrateReport, path: str) -> None:
    """Write a report as JSON to a file, or to standard output, which then gets nothing else."""
    if path == "-":
        whole(report.to_json())
    else:
        write_whole(path, report.to_json().encode())


def reporting(command: Command) -> Command:
    """Give a command `--json` and `--report`; it gets them as `reports`."""

    @wraps(command)
    def with_reports(*, json_path: str | None, page_path: str | None, **others: Any) -> None:
        if page_path is not None:
            _check_page(page_path)
        check_apart()
        command(reports=ReportPaths(json_path, page_path, others.get("allow_symlinks_under")), **others)

    for option in OPTIONS:
        option(with_reports)
    return cast(Command, with_reports)


def _check_page(path: str) -> None:
    """Refuse what can't be written before any work is done."""
    if not path.lower().endswith((".html", ".png")):
        raise click.BadParameter(f"{path!r} does not end in .html or .png", param_hint="'--report'")
    check_report_path(path)


def check_apart() -> None:
    """Refuse a report that has no place, or would replace what the command reads or writes, before any work is done."""
    context = click.get_current_context()
    given = {
        each: list(_texts(context.params.get(str(each.name))))
        for each in context.command.params
        if isinstance(each.type, click.Path) and each.name != "allow_symlinks_under"
    }
    sources = [path for each, paths in given.items() if isinstance(each, click.Argument) for path in paths]
    for report in (each for each in given if each.name in ("json_path", "page_path")):
        for path in given[report] if given[report] != ["-"] else ():
            check_place(path, overwrite=True)
            for other, paths in given.items():
                into = other.name == "output"
                if other is not report and any(
                    _is_copied(path, each, sources) if into and Path(each).is_dir() else _is_of(path, each)
                    for each in paths
                ):
                    named = other.human_readable_name if isinstance(other, click.Argument) else other.opts[-1]
                    raise click.BadParameter(f"{path!r} would replace a file of {named}", param=report)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        yield from value


def _is_of(path: str, other: str) -> bool:
    """Whether `path` is the file `other`, by whatever name, or one of the directory `other`."""
    if Path(other).is_dir():
        return Path(path).exists() and Path(path).resolve().is_relative_to(Path(other).resolve())
    try:
        return Path(path).samefile(other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _is_copied(path: str, output: str, sources: list[str]) -> bool:
    """Whether `path` is where the directory `output` has what a directory among the sources has."""
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(output))
    if os.pardir in Path(inside).parts[:1]:
        return False
    return any((Path(each) / inside).exists() for each in sources if Path(each).is_dir())
