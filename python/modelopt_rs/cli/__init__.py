"""The command line `modelopt-rs`. Only it needs the extra `cli` (click, rich)."""

import sys
from collections.abc import Sequence

from modelopt_rs.start import end_command, raise_on_interrupt

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 ok, 1 input, output or run-time failure, 2 usage, 3 malformed input or a limit, 4 written, but
    perhaps not durable (`InPlaceError`), 70 internal error or broken installation,
    130 interrupted, 143 terminated.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Examples
    --------
    >>> from modelopt_rs.cli import main
    >>> main(["--version"])  # doctest: +ELLIPSIS
    modelopt-rs ...
    0
    """
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        print('modelopt-rs: the command line needs its extra: pip install "modelopt_rs[cli]"', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _interrupted()
    try:
        from modelopt_rs.cli.app import run
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:  # a module is gone, cut off, or of another version
        what = f"{type(error).__name__}: {error}"
        print(f"modelopt-rs: the installation is broken, install modelopt_rs again: {what}", file=sys.stderr)
        return 70
    try:
        raise_on_interrupt()
        code = run(sys.argv[1:] if argv is None else argv)
        if code > 128:  # by a signal
            end_command(code)
        return code
    except KeyboardInterrupt:  # before it is told what to do then
        return _interrupted()


def _interrupted() -> int:
    print("modelopt-rs: interrupted", file=sys.stderr)
    return 130
