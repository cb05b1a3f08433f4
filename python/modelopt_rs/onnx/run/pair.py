"""Two models run against each other in onnxruntime: how far their outputs are apart, how long they take."""

import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from modelopt_rs.errors import FormatError, UnsupportedError, quote
from modelopt_rs.onnx.run.inputs import Feed, InputInfo, check_dims, input_infos, known_of
from modelopt_rs.onnx.run.latency import in_turn, peak_of_run, speedup
from modelopt_rs.onnx.run.outputs import OutputFigures
from modelopt_rs.onnx.run.samples import Samples, feeds
from modelopt_rs.onnx.run.sessions import Session, limited, open_session, run_session
from modelopt_rs.onnx.run.sizes import Found, Search, patience
from modelopt_rs.onnx.run.trials import open_axes
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.report.run import InputReport, RunReport, check_max_error
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.memory import DEFAULT_MEMORY
from modelopt_rs.threads import get_num_threads

__all__ = ["compare_models", "run_pair"]

SAMPLES = 16  # of calibration data


def run_pair(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    options: RunOptions,
    *,
    threads: int | None = None,
    max_memory: int = DEFAULT_MEMORY,
    samples: Calibrate | None = None,
) -> RunReport:
    """Run a model and what was made of it on the same inputs, and refuse what is too far off.

    Parameters
    ----------
    before, after : path
        The ONNX files; `before` is the reference.
    options : RunOptions
        Inputs, rounds, and the largest error allowed.
    threads : int, optional
        Threads that onnxruntime runs with.
    max_memory : int
        The sizes of inputs that are made up grow as long as a run is expected to take less.
    samples : path, mapping, iterable or callable, optional
        Calibration data: both are run on the first 16 samples where `options` have no inputs.

    Returns
    -------
    RunReport
        Where the first model runs on no inputs that are made up, it says so, and why, and has no figures.

    Raises
    ------
    MaxErrorExceeded
        If an output is further off than ``options.max_error``; the error has the report.
    FormatError
        If onnxruntime refuses a model or can't run it on inputs that are given; on none that are made up where an
        error is not to exceed ``options.max_error``.
    ValueError, TypeError
        If the inputs don't fit the model, or the models' inputs or outputs have nothing in common.
    ImportError
        If onnxruntime is not installed.

    Examples
    --------
    With two files of models::

        report = run_pair("model.onnx", "small.onnx", RunOptions(dims={"batch": 4}, max_error=0.1))
        report.sqnr_db, report.speedup
    """
    report = compare_models(before, after, options, threads=threads, max_memory=max_memory, samples=samples)
    if report.not_run is not None and options.max_error is not None:
        raise FormatError(f"max_error: {report.not_run}")
    check_max_error(report, options.max_error)
    return report


def compare_models(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    options: RunOptions,
    *,
    threads: int | None = None,
    max_memory: int = DEFAULT_MEMORY,
    samples: Calibrate | None = None,
) -> RunReport:
    """Run two models on the same inputs, and say how far they are apart; never refuses an error of any size.

    Parameters, errors and what is returned are those of `run_pair`.

    Examples
    --------
    With two files of models::

        compare_models("model.onnx", "small.onnx", RunOptions()).cosine
    """
    start = time.perf_counter()
    threads = threads or get_num_threads()
    made_up = options.inputs is None and samples is None
    with limited(max_memory, a, b) if made_up else nullcontext():
        one = _Model(a, _source_session(a, threads))
        other = _Model(b, open_session(b, threads=threads))
    infos, found = _inputs(one, other, options, max_memory, samples)
    inputs = found.feeds
    if not inputs:
        return _not_run(one, other, _why(one, infos, options, found), threads, start)
    both, figures = _outputs(one, other, inputs, threads)
    differences = [f.difference() for f in figures if f.comparable and f.mismatch is None]
    floats = [f.figures for f in figures if f.comparable and f.mismatch is None and f.floats and f.compared]
    whole = sum(floats, ErrorFigures())
    worst = max(differences, key=lambda d: d.max_error, default=None)
    times = in_turn(lambda: one.run(inputs[0]), lambda: other.run(inputs[0]), options.rounds)
    timed = bool(times[0])
    return RunReport(
        before=os.fspath(a),
        after=os.fspath(b),
        inputs_from="given" if options.inputs is not None else "generated" if samples is None else "calibration",
        inputs=tuple(InputReport(name, infos[name].dtype, array.shape) for name, array in inputs[0].items()),
        runs=len(inputs),
        sqnr_db=whole.sqnr_db if floats else None,
        cosine=whole.cosine if floats else None,
        max_error=worst.max_error if worst else 0.0,
        worst_output=worst.name if worst else None,
        only_in_before=tuple(name for name in one.outputs if name not in both),
        only_in_after=tuple(name for name in other.outputs if name not in both),
        shape_mismatches=tuple((f.name, *f.mismatch) for f in figures if f.mismatch is not None),
        not_compared=tuple(f.name for f in figures if not f.comparable),
        threads=threads,
        rounds=len(times[0]),
        latency_before_ms=1e3 * statistics.median(times[0]) if timed else None,
        latency_after_ms=1e3 * statistics.median(times[1]) if timed else None,
        speedup=speedup(*times) if timed else None,
        peak_memory_before=peak_of_run(a, inputs[0], threads) if options.memory else None,
        peak_memory_after=peak_of_run(b, inputs[0], threads) if options.memory else None,
        seconds=time.perf_counter() - start,
        outputs=tuple(differences),
        sizes=found.sizes,
        tried=found.tried,
    )


def _source_session(path: str | os.PathLike[str], threads: int) -> Session:
    """Load the model that another was made of; what other runtimes run may be refused here."""
    try:
        return open_session(path, threads=threads)
    except UnsupportedError as e:
        words = "if another runtime takes it, leave the run out (--no-run, in Python run=None)"
        raise UnsupportedError(f"{e}; {words}") from e


def _inputs(
    one: "_Model", other: "_Model", options: RunOptions, max_memory: int, samples: Calibrate | None
) -> tuple[Mapping[str, InputInfo], Found]:
    """Return what inputs the first model has, and those that are given, or some that it runs on."""
    try:
        infos = input_infos(one.session, one.path)
        _check_same_inputs(one, infos, other)
        check_dims(infos, options.dims)
        if options.inputs is not None:
            return infos, Found(feeds(infos, one.path, options), 0, 0, None)
        if samples is not None:
            return infos, Found(list(itertools.islice(Samples(samples, infos, one.path), SAMPLES)), 0, 0, None)
        known = known_of(infos, one.path)
        return infos, Search(one.run, infos, known, options, max_memory, patience(one.path))()
    except UnsupportedError as e:
        if options.inputs is not None or samples is not None:
            raise
        return {}, Found([], 0, 0, e)


def _why(one: "_Model", infos: Mapping[str, InputInfo], options: RunOptions, found: Found) -> str:
    """Say why nothing was run, and what can be done about it."""
    axes = list(open_axes(infos, options.dims))
    reason = str(found.error) if found.error else f"{one.path}: no size of its inputs fits the memory"
    tried = f" ({found.tried} kinds of made-up inputs were tried)" if found.tried > 1 else ""
    if axes:
        said = f"say the lengths of the open axes {', '.join(map(quote, axes))} (--dim {axes[0]}=N, in Python dims), "
    else:
        said = ""
    return f"{reason}{tried}; {said}{'or ' if said else ''}give inputs (--inputs DATA), or leave it out (--no-run)"


def _not_run(one: "_Model", other: "_Model", why: str, threads: int, start: float) -> RunReport:
    """Return the report of two models that were not run."""
    return RunReport(
        before=os.fspath(one.path),
        after=os.fspath(other.path),
        inputs_from="generated",
        inputs=(),
        runs=0,
        sqnr_db=None,
        cosine=None,
        max_error=0.0,
        worst_output=None,
        only_in_before=(),
        only_in_after=(),
        shape_mismatches=(),
        not_compared=(),
        threads=threads,
        rounds=0,
        latency_before_ms=None,
        latency_after_ms=None,
        speedup=None,
        peak_memory_before=None,
        peak_memory_after=None,
        seconds=time.perf_counter() - start,
        outputs=(),
        not_run=why,
    )


@dataclass(frozen=True, slots=True)
class _Model:
    """A model that is loaded."""

    path: str | os.PathLike[str]
    session: Session

    @property
    def outputs(self) -> list[str]:
        return [node.name for node in self.session.get_outputs()]

    def run(self, feed: Feed, outputs: list[str] | None = None) -> list[Any]:
        return run_session(self.session, self.path, feed, outputs)


def _check_same_inputs(one: _Model, infos: Mapping[str, InputInfo], other: _Model) -> None:
    """Refuse models that can't be fed the same."""
    theirs = input_infos(other.session, other.path)
    for name in [*infos, *theirs]:
        if name not in theirs or name not in infos:
            has, lacks = (one, other) if name in infos else (other, one)
            raise ValueError(f"{lacks.path}: has no input {quote(name)}, which {has.path} has")
        if infos[name].dtype != theirs[name].dtype:
            raise ValueError(
                f"{other.path}: input {quote(name)} is of dtype {theirs[name].dtype}, in {one.path} {infos[name].dtype}"
            )


def _outputs(one: _Model, other: _Model, inputs: Sequence[Feed], threads: int) -> tuple[list[str], list[OutputFigures]]:
    """Run both on all inputs; return the outputs that both have, and how far they are apart."""
    theirs = set(other.outputs)
    both = [name for name in one.outputs if name in theirs]
    if not both:
        raise ValueError(
            f"{other.path}: has no output in common with {one.path}, which has "
            + ", ".join(quote(name) for name in one.outputs)
        )
    figures = [OutputFigures(name, threads) for name in both]
    for feed in inputs:
        for f, before, after in zip(figures, one.run(feed, both), other.run(feed, both), strict=True):
            f.add(before, after)
    return both, figures
