"""The options of commands that run ONNX models, and what is printed of such a run."""

import re
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

import click

from modelopt_rs.cli.command import Whole
from modelopt_rs.cli.show import count, decibels, line, number, table
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.report.run import MaxErrorExceeded, RunReport

__all__ = ["checking", "run_options", "running", "show_run"]

Command = TypeVar("Command", bound=Callable[..., Any])
FROM = {"generated": "made-up inputs", "given": "given inputs", "calibration": "calibration samples"}
DIM = re.compile(r"(.+)=(\d{1,9})", re.S)


def running(command: Command, *, calibrates: bool) -> Command:
    """Give a command the options that say on what ONNX models are run; they come as `run_options` takes them."""
    otherwise = "; the samples of --calibrate" if calibrates else ""
    for option in (
        click.option("--max-error", type=float, metavar="E", help="ONNX: fail if an output is off by more than E."),
        click.option("--run-memory", is_flag=True, help="ONNX: measure the peak memory of running each, too."),
        click.option(
            "--rounds",
            type=Whole(min=0),
            default=11,
            show_default=True,
            metavar="N",
            help="ONNX: how often both are timed.",
        ),
        click.option(
            "--samples",
            type=Whole(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="ONNX: how many inputs of a size are made up.",
        ),
        click.option(
            "--dim",
            "dims",
            multiple=True,
            metavar="AXIS=N",
            help="ONNX: length of an open axis, by its name or INPUT:NUMBER. Repeatable.",
        ),
        click.option(
            "--inputs",
            type=click.Path(),
            metavar="DATA.npz|DIR",
            help=f"ONNX: run on these arrays.  [default: made up, which is a smoke test and no measure{otherwise}]",
        ),
    ):
        command = option(command)
    return command


def run_options(
    *,
    inputs: str | None,
    dims: tuple[str, ...],
    samples: int,
    rounds: int,
    run_memory: bool,
    max_error: float | None,
) -> RunOptions:
    """Return what the options of `running` say.

    Examples
    --------
    >>> from modelopt_rs.cli.run_options import run_options
    >>> run_options(
    ...     inputs=None, dims=("batch=4",), samples=1, rounds=0, run_memory=False, max_error=None
    ... ).dims
    {'batch': 4}
    """
    lengths: dict[str, int] = {}
    for text in dims:
        match = DIM.fullmatch(text)
        if match is None:
            raise click.BadParameter(f"{text!r} is not an axis and its length, such as batch=1", param_hint="'--dim'")
        lengths[match[1]] = int(match[2])
    return RunOptions(
        inputs=inputs, dims=lengths, samples=samples, rounds=rounds, memory=run_memory, max_error=max_error
    )


def checking(*, calibrates: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that say on what ONNX models are run, and `--no-run`; it gets them as `run`.

    `calibrates`: whether it has `--calibrate`, whose samples they are run on.
    """
    return partial(_checking, calibrates=calibrates)


def _checking(command: Callable[..., None], *, calibrates: bool) -> Callable[..., None]:
    @click.option("--no-run", is_flag=True, help="ONNX: do not run both models.")
    @partial(running, calibrates=calibrates)
    @wraps(command)
    def with_run(
        *,
        no_run: bool,
        inputs: str | None,
        dims: tuple[str, ...],
        samples: int,
        rounds: int,
        run_memory: bool,
        max_error: float | None,
        **others: Any,
    ) -> None:
        options = run_options(
            inputs=inputs, dims=dims, samples=samples, rounds=rounds, run_memory=run_memory, max_error=max_error
        )
        given = {"--max-error": max_error is not None, "--inputs": inputs, "--dim": dims, "--run-memory": run_memory}
        if no_run and (useless := next((option for option, each in given.items() if each), None)) is not None:
            raise click.UsageError(f"{useless} must not be given with --no-run: there is nothing to compare")
        try:
            command(run=None if no_run else options, **others)
        except MaxErrorExceeded as e:
            show_run(e.report)
            raise

    return with_run


def show_run(report: RunReport) -> None:
    """Print how far the outputs of two models are apart, and what each costs to run."""
    if report.not_run is not None:
        line(f"not run  {report.not_run}")
        return
    # Of a single output of floats the summary says all.
    if len(report.outputs) != 1 or report.sqnr_db is None:
        _show_outputs(report)
    for output in report.outputs:
        if output.nonfinite:
            line(f"not finite in one only: {output.nonfinite:,} of {output.elements:,} elements of {output.name}")
    for name, before, after in report.shape_mismatches:
        line(f"shapes differ: output {name}: {list(before)} before, {list(after)} after")
    for names, what in (
        (report.only_in_before, "only before"),
        (report.only_in_after, "only after"),
        (report.not_compared, "not compared, no tensor of numbers or strings"),
    ):
        for name in names:
            line(f"{what}: output {name}")
    made = report.inputs_from == "generated"
    ran = f"{count(report.runs, 'run')} on {FROM[report.inputs_from]}"
    if report.sqnr_db is not None:
        line(
            f"{'smoke test' if made else 'outputs'}  SQNR {decibels(report.sqnr_db, ' dB')}, largest error "
            f"{number(report.max_error)}, cosine {report.cosine:.6f} ({ran})"
        )
    elif made:
        line(f"smoke test  {ran}")
    if report.sqnr_db is None and any(each.dtype.startswith("float") for each in report.outputs):
        line("not compared: the outputs have no element that is a finite number in both")
    if made:
        line("smoke test  both run; how good the outputs are is measured on real inputs: --inputs DATA")
    if report.speedup is not None and report.latency_before_ms and report.latency_after_ms:
        one, other = report.latency_before_ms, report.latency_after_ms
        line(
            f"latency  {number(one)} -> {number(other)} ms (medians: {one / other:.2f} x; in pairs "
            f"{report.speedup:.2f} x as fast, the median of {count(report.rounds, 'pair')}; "
            f"{count(report.threads, 'thread')})"
        )
    if report.peak_memory_before is not None and report.peak_memory_after is not None:
        before_mib, after_mib = report.peak_memory_before / 2**20, report.peak_memory_after / 2**20
        line(f"peak memory of a run  {before_mib:.0f} -> {after_mib:.0f} MiB")


def _show_outputs(report: RunReport) -> None:
    table(
        ("output", "SQNR dB", "max error", "cosine", "agree"),
        [
            (
                o.name,
                decibels(o.sqnr_db),
                number(o.max_error),
                "-" if o.cosine is None else f"{o.cosine:.6f}",
                "-" if o.agree is None else f"{o.agree:.2%}",
            )
            for o in report.outputs
        ],
    )
