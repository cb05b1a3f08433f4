"""The arguments and options that several commands have."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from modelopt_rs.cli.reports import reporting
from modelopt_rs.planning.sensitivity import LAYER_ERRORS

__all__ = [
    "common",
    "dry_run",
    "links",
    "measuring",
    "model",
    "output",
    "parse_size",
    "quantization",
    "read_bits_of",
    "selection",
]

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


links = click.option(
    "--allow-symlinks-under",
    type=click.Path(),
    metavar="DIR",
    help="ONNX: external data may be links to files beneath DIR, as in a hub's cache.",
)

dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done to each tensor and why; write nothing.")


def selection(verb: str) -> Callable[[Command], Command]:
    """Give a command `--include` and `--exclude`."""

    def add(command: Command) -> Command:
        command = click.option(
            "--exclude", multiple=True, metavar="GLOB", help="Leave these tensors alone; wins. Repeatable."
        )(command)
        return click.option("--include", multiple=True, metavar="GLOB", help=f"{verb} these tensors too. Repeatable.")(
            command
        )

    return add


def quantization(command: Command) -> Command:
    """Give a command the options that say how weights are quantized."""
    for option in (
        click.option(
            "--only-dequantize",
            is_flag=True,
            help="Take also what no loader reads back quantized, only modelopt-rs does (dequantize).",
        ),
        click.option(
            "--nonfinite",
            type=click.Choice(["raise", "saturate"]),
            default="raise",
            show_default=True,
            help="NaN and infinities: refuse, or NaN to 0 and infinities to the largest code.",
        ),
        click.option(
            "--group-size",
            type=click.IntRange(min=0),
            metavar="N",
            help="Elements of a row that share a scale; 0: the whole row.  "
            "[default: 0 at 8 bits, else 32; ONNX: what is fast]",
        ),
        click.option(
            "--scheme",
            metavar="NAME",
            help="symmetric, or asymmetric: with a zero point.  "
            "[default: symmetric; of an ONNX model below 8 bits asymmetric]",
        ),
        click.option(
            "--format",
            metavar="NAME",
            help="Instead of --bits: fp8_e4m3, mxfp4, nvfp4 (compressed-tensors), nf4 or fp4 (bitsandbytes).",
        ),
        click.option(
            "--bits-of",
            multiple=True,
            metavar="GLOB=BITS",
            help="Bits of some weights, where others than --bits. Repeatable; the first that matches counts.",
        ),
        click.option(
            "--bits", type=click.Choice(["8", "4", "2"]), default="8", show_default=True, help="Bits of a code."
        ),
    ):
        command = option(command)
    return command


def read_bits_of(texts: tuple[str, ...]) -> dict[str, int]:
    """Return the bits by glob; of the same glob the first counts."""
    found: dict[str, int] = {}
    for text in texts:
        glob, _, bits = text.rpartition("=")
        if not glob or bits not in ("8", "4", "2"):
            raise click.BadParameter(
                f"{text!r} is not a glob and 8, 4 or 2, such as '*.value.weight=8'", param_hint="'--bits-of'"
            )
        found.setdefault(glob, int(bits))
    return found


def measuring(command: Command) -> Command:
    """Give a command the options that say which weights get more bits than asked for."""
    for option in (
        click.option(
            "--uniform", is_flag=True, help="All weights get the bits asked for, however far off their layers would be."
        ),
        click.option(
            "--max-layer-error",
            type=float,
            metavar="E",
            help="Below 8 bits: weights whose layer's output would be further off, relative to its size, get more.  "
            f"[default: {', '.join(f'{error:g} at {bits} bits' for bits, error in LAYER_ERRORS.items())}]",
        ),
    ):
        command = option(command)
    return command


def common(command: Command) -> Command:
    """Give a command the options that all have."""
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        reporting,
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
