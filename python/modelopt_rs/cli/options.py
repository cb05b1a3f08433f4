"""The arguments and options that several commands have."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["common", "model", "output", "parse_size"]

Command = TypeVar("Command", bound=Callable[..., Any])

UNITS = {"": 1, "b": 1}
for power, prefix in enumerate("kmgt", start=1):
    UNITS |= {f"{prefix}ib": 1024**power, f"{prefix}b": 1000**power}


def parse_size(text: str) -> int:
    """Return the bytes that a text such as 268435456, 256MiB, 1.5GiB or 300MB says.

    Examples
    --------
    >>> from modelopt_rs.cli.options import parse_size
    >>> parse_size("1.5KiB")
    1536
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)", text, re.ASCII)
    if match is None or match[2].lower() not in UNITS:
        raise click.BadParameter(f"{text!r} is not a size such as 256MiB, 1.5GiB, 300MB or 1048576")
    size = int(float(match[1]) * UNITS[match[2].lower()])
    if size < 1:
        raise click.BadParameter(f"{text!r} is less than one byte")
    return size


model = click.argument("model", type=click.Path(), metavar="FILE|DIR")


def output(required: bool) -> Callable[[Command], Command]:
    """Give a command that writes a model `-o` and the options of writing."""

    def add(command: Command) -> Command:
        for option in (
            click.option("--overwrite", is_flag=True, help="Replace what is at OUT."),
            click.option("--no-verify", is_flag=True, help="Do not read the output back to compare."),
            click.option(
                "-o",
                "--output",
                type=click.Path(),
                metavar="OUT",
                required=required,
                help="Where to write: a file for a file, a directory for a directory.",
            ),
        ):
            command = option(command)
        return command

    return add


def common(command: Command) -> Command:
    """Give a command the options that all have."""
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        click.option("--json", "report_path", type=click.Path(), metavar="REPORT", help="Write the report as JSON."),
        click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to compute with."),
        click.option(
            "--max-memory",
            type=parse_size,
            default="256MiB",
            show_default=True,
            metavar="SIZE",
            help="The most memory for data, such as 64MiB or 1.5GiB.",
        ),
    ):
        command = option(command)
    return command
