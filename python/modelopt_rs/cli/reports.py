"""`--json` and `--report`: what a command reports, as a file."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import click

from modelopt_rs.operations.page import check_report_path, write_json, write_report
from modelopt_rs.report.reports import CompareReport, InspectReport, Report

__all__ = ["ReportPaths", "reporting"]

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option("--json", "json_path", type=click.Path(), metavar="FILE", help="Write the report as JSON."),
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
            write_json(report, self.json)
        if self.page is not None:
            command = shlex.join(["modelopt-rs", *click.get_current_context().find_root().obj])
            write_report(report, self.page, command=command, allow_symlinks_under=self.allow_symlinks_under)


def reporting(command: Command) -> Command:
    """Give a command `--json` and `--report`; it gets them as `reports`."""

    @wraps(command)
    def with_reports(*, json_path: str | None, page_path: str | None, **others: Any) -> None:
        if page_path is not None:
            _check_page(page_path)
        command(reports=ReportPaths(json_path, page_path, others.get("allow_symlinks_under")), **others)

    for option in OPTIONS:
        option(with_reports)
    return cast(Command, with_reports)


def _check_page(path: str) -> None:
    """Refuse what can't be written before any work is done."""
    if not path.lower().endswith((".html", ".png")):
        raise click.BadParameter(f"{path!r} does not end in .html or .png", param_hint="'--report'")
    check_report_path(path)
