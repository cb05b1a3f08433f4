"""The commands put together, and what becomes of an error: one line on stderr and an exit code."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from click.shell_completion import shell_complete

from modelopt_rs import FormatError, InternalError
from modelopt_rs.cli.calibrate import calibrate
from modelopt_rs.cli.command import Group
from modelopt_rs.cli.compare import compare
from modelopt_rs.cli.crop import crop
from modelopt_rs.cli.demo import demo
from modelopt_rs.cli.dequantize import dequantize
from modelopt_rs.cli.info import info, version_line
from modelopt_rs.cli.inspect import inspect
from modelopt_rs.cli.optimize import optimize
from modelopt_rs.cli.prune import prune
from modelopt_rs.cli.quantize import quantize
from modelopt_rs.cli.show import NotShown, printable
from modelopt_rs.errors import InPlaceError, OptionError, SourceWarning

__all__ = ["app", "run"]

OK, FAILURE, USAGE, MALFORMED, IN_PLACE, INTERNAL, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 70, 130, 143

COMPLETE = "_MODELOPT_RS_COMPLETE"  # what a shell sets that asks for completions
MAX_REASONS = 20  # lines of them


class Terminated(BaseException):
    """SIGTERM: leaves through every `with` and `finally` on its way out, as KeyboardInterrupt does."""


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(version_line())
        context.exit()


# Without arguments: an error like any other wrong use, not click's page of help.
@click.group(
    cls=Group,
    no_args_is_help=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Exit codes: 0 ok, 1 failure, 2 wrong use, 3 malformed input or a limit, 4 written, but "
    "perhaps not durable, 70 internal error, 130 interrupted, 143 terminated.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, the instruction set and the threads, and exit.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def app() -> None:
    """Make safetensors and ONNX models smaller: quantize, prune, crop, compare and inspect in bounded memory."""


for command in (inspect, quantize, calibrate, optimize, prune, crop, dequantize, compare, demo, info):
    app.add_command(command)


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    # Read here, not by click: it also holds for an error in the arguments before or after it.
    debug = "--debug" in argv
    if (shell := os.environ.get(COMPLETE)) is not None:
        return shell_complete(app, {}, "modelopt-rs", COMPLETE, shell)
    # A name that the terminal's encoding lacks, or bytes in a path that are none, must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        # What is known of a source is in the report, which every command prints.
        with warnings.catch_warnings(), _sigterm():
            warnings.simplefilter("ignore", SourceWarning)
            with app.make_context("modelopt-rs", list(argv), obj=argv) as context:
                app.invoke(context)
            if sys.stdout is not None:  # closed, as for a daemon: nobody reads what is printed
                sys.stdout.flush()
    except click.exceptions.Exit as e:
        return e.exit_code
    except BrokenPipeError:  # who read our output has gone
        _drop_output()
        return FAILURE
    except BaseException as e:
        if isinstance(e, SystemExit | GeneratorExit):
            raise
        if isinstance(e, NotShown):
            _drop_output()
        code, message = explain(e)
        if debug:
            traceback.print_exc()
        print(f"modelopt-rs: {printable(message)}", file=sys.stderr)
        for reason in _reasons(e):
            print(f"  {printable(reason)}", file=sys.stderr)
        return code
    return OK


def _drop_output() -> None:
    """Let what is still buffered not raise again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and what to say about it."""
    match error:
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED, "interrupted"
        case Terminated():
            return TERMINATED, "terminated"
        case click.UsageError() if (said := error.format_message()).startswith("Missing"):
            command = error.ctx.command_path if error.ctx else "modelopt-rs"
            return USAGE, f"{said.rstrip('.')}; see {command} --help"
        case click.ClickException():
            return USAGE, error.format_message()
        case OptionError():
            return USAGE, f"{error.problem}:" if len(error.reasons) > 1 else str(error)
        case FormatError():
            return MALFORMED, str(error)
        case OSError() if error.strerror is not None:
            where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
            return IN_PLACE if isinstance(
                error, InPlaceError
            ) else FAILURE, f"{where}{error.strerror}{_no_folder(error)}"
        case ImportError() if error.name is None:  # an extra that isn't installed: Python's own have the module
            return FAILURE, str(error)
        case MemoryError():
            return FAILURE, str(error) or "out of memory"
        case OSError() | ValueError():
            return FAILURE, str(error)
        case InternalError():
            return INTERNAL, str(error)
    return INTERNAL, f"internal error, please report it: {type(error).__name__}: {error}"


def _no_folder(error: OSError) -> str:
    """Say where not even the directory of a file is there: one that is to be written needs one."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str | bytes):
        return ""
    folder = Path(os.fsdecode(error.filename)).parent
    return "" if folder.is_dir() else f": there is no directory {folder}"


def _reasons(error: BaseException) -> list[str]:
    """Return the reasons of an error that has several, as many as are read."""
    reasons = error.reasons if isinstance(error, OptionError) and len(error.reasons) > 1 else ()
    more = len(reasons) - MAX_REASONS
    return [*reasons[:MAX_REASONS], *([f"and {more:,} more"] if more > 0 else [])]


@contextmanager
def _sigterm() -> Iterator[None]:
    """Make SIGTERM clean up like SIGINT. Only a main thread may say what a signal does."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
