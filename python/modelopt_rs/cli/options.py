"""The arguments and options that several commands have."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from modelopt_rs.cli.command import Choice, Whole
from modelopt_rs.cli.reports import reporting
from modelopt_rs.dtypes import STORED
from modelopt_rs.errors import OptionError
from modelopt_rs.planning.quantize import NONFINITE
from modelopt_rs.planning.sensitivity import ACTIVATION_ERROR, LAYER_ERRORS
from modelopt_rs.quant.formats import BITS
from modelopt_rs.stream.memory import bytes_of
from modelopt_rs.threads import MAX_THREADS

__all__ = [
    "SEARCHES",
    "common",
    "dry_run",
    "links",
    "measuring",
    "model",
    "need",
    "need_output",
    "output",
    "parse_share",
    "parse_size",
    "quantization",
    "read_bits_of",
    "selection",
]

Command = TypeVar("Command", bound=Callable[..., Any])

SEARCHES: Final[Mapping[str, str | None]] = {"mse": "mse", "none": None}
"""What `--search` says."""
_BITS: Final = tuple(map(str, BITS))


def parse_size(text: str) -> int:
    """Return the bytes that a text such as 268435456, 256MiB, 1.5GiB or 300MB says.

    Examples
    --------
    >>> from modelopt_rs.cli.options import parse_size
    >>> parse_size("1.5KiB")
    1536
    """
    try:
        return bytes_of("size", text)
    except OptionError as error:
        raise click.BadParameter(error.problem.removeprefix("size ")) from None


def parse_share(text: str) -> float:
    """Return the number that a text such as 0.5 or 50% says.

    Examples
    --------
    >>> from modelopt_rs.cli.options import parse_share
    >>> parse_share("0.5"), parse_share("62.5%"), parse_share("50 %")
    (0.5, 0.625, 0.5)
    """
    number = text.removesuffix("%").strip()
    try:
        return float(number if "%" not in text else f"{number}e-2")
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share such as 0.5 or 50%") from None


def need(given: object, option: str) -> None:
    """Refuse a command without an option that it needs only with or without others, which click can't say."""
    if not given:
        raise click.UsageError(f"Missing option {option}")


def need_output(output: str | None, dry_run: bool) -> None:
    """Refuse a command that writes nothing and was not asked to."""
    need(output or dry_run, "'-o' / '--output' (or --dry-run)")


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


QUANTIZATION: Final = (
    click.option(
        "--only-dequantize",
        is_flag=True,
        help="Take also what no loader reads back quantized, only modelopt-rs does (dequantize).",
    ),
    click.option(
        "--nonfinite",
        type=Choice(NONFINITE),
        default="raise",
        show_default=True,
        help="NaN and infinities: refuse, or NaN to 0 and infinities to the largest code.",
    ),
    click.option(
        "--scale-dtype",
        type=Choice(list(STORED)),
        help="What scales are stored in.  [default: float32 at 8 bits, else 16 bits]",
    ),
    click.option(
        "--search",
        type=Choice(list(SEARCHES)),
        default="mse",
        show_default=True,
        help="Scales of least squared error, or by the plain formula.",
    ),
    click.option(
        "--norm",
        type=click.FloatRange(0.5, 4.0),
        metavar="P",
        help="With --search mse: errors to the power P are made small, not squares; 0.5 to 4.",
    ),
    click.option(
        "--group-size",
        type=Whole(min=0),
        metavar="N",
        help="Elements of a row that share a scale; 0: the whole row.  "
        "[default: 0 at 8 bits, else 32; ONNX: what is fast]",
    ),
    click.option(
        "--scheme",
        metavar="NAME",
        help="symmetric, or asymmetric: with a zero point.  [default: symmetric; below 8 bits asymmetric where "
        "zero points are read]",
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
    click.option("--bits", type=Choice(_BITS), default="8", show_default=True, help="Bits of a code."),
)


def quantization(command: Command) -> Command:
    """Give a command the options that say how weights are quantized."""
    for option in QUANTIZATION:
        command = option(command)
    return command


def read_bits_of(texts: tuple[str, ...]) -> dict[str, int]:
    """Return the bits by glob; of the same glob the first counts."""
    found: dict[str, int] = {}
    for text in texts:
        glob, _, bits = text.rpartition("=")
        if not glob or bits not in _BITS:
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
            help="Below 8 bits: weights whose layer's output would be further off, relative to its size, get more. "
            "With activations in 8 bits: layers whose input would be further off stay float.  "
            f"[default: {', '.join(f'{error:g} at {bits} bits' for bits, error in LAYER_ERRORS.items())}, "
            f"{ACTIVATION_ERROR:g} of activations]",
        ),
    ):
        command = option(command)
    return command


def common(command: Command) -> Command:
    """Give a command the options that all have."""
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        reporting,
        click.option("--threads", type=Whole(1, MAX_THREADS), metavar="N", help="Threads to compute with."),
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
