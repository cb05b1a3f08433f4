"""What an ONNX model must pass before it takes its place: the checker of onnx, and a run against what it came of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelopt_rs._core import FormatError
from modelopt_rs.files import Sink, Source
from modelopt_rs.files.messages import quote
from modelopt_rs.pipeline.onnx_run_options import DEFAULT_RUN, RunOptions
from modelopt_rs.pipeline.plan import OptionError
from modelopt_rs.pipeline.run_report import RunReport

if TYPE_CHECKING:
    from modelopt_rs.files.onnx import OnnxSink, OnnxSource

__all__ = ["OnnxCheck", "check_not_run"]

MAX_DETAIL = 400


class OnnxCheck:
    """Checks a model that is written and not yet in its place.

    Parameters
    ----------
    source : OnnxSource
        The model that it came of.
    run : RunOptions or None
        On which inputs both are run; None: not at all.
    threads : int or None
        Threads to run with.

    Attributes
    ----------
    report : RunReport or None
        What the run gave.
    file_bytes : tuple of int, or None
        The size of both models, with their external data.
    """

    def __init__(self, source: "OnnxSource", run: RunOptions | None, threads: int | None) -> None:
        self._source, self._run, self._threads = source, run, threads
        self.report: RunReport | None = None
        self.file_bytes: tuple[int, int] | None = None

    def __call__(self, sink: Sink) -> None:
        """Refuse what the checker or onnxruntime refuses, and what is off by more than `RunOptions.max_error`.

        Raises
        ------
        FormatError
            If the model is refused: it names the node.
        MaxErrorExceeded
            If an output is off by more than it may be.
        """
        written: OnnxSink = sink  # type: ignore[assignment]  # a source with a graph has such a sink
        staged = written.staged()
        _check_model(written)
        if self._run is not None:
            from modelopt_rs.graph.run.pair import run_pair

            with _named(staged, written.path):
                self.report = run_pair(self._source.path, staged, self._run, threads=self._threads)
        self.file_bytes = (self._source.nbytes, written.nbytes)


def check_not_run(source: Source, run: RunOptions | None) -> None:
    """Refuse to be told how a model is run that is no ONNX model."""
    if run is not None and run != DEFAULT_RUN:
        raise OptionError(f"run must be left out for a model that is no ONNX model, got options for {source.path}")


def _check_model(written: "OnnxSink") -> None:
    """Let the checker see all but the large weights, of which it would hold two copies."""
    import onnx

    try:
        onnx.checker.check_model(written.outline())
    except onnx.checker.ValidationError as e:
        raise FormatError(f"{written.path}: the checker of onnx refuses it: {quote(str(e), MAX_DETAIL)}") from e


@contextmanager
def _named(staged: Path, path: Path) -> Iterator[None]:
    """Let errors speak of the path that was asked for."""
    try:
        yield
    except (ValueError, TypeError) as e:
        e.args = tuple(arg.replace(str(staged), str(path)) if isinstance(arg, str) else arg for arg in e.args)
        raise
