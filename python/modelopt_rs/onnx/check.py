"""What an ONNX model must pass before it takes its place: the checker of onnx, and a run against what it came of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx

from modelopt_rs.containers.container import check_place
from modelopt_rs.containers.onnx import OnnxSink, OnnxSource
from modelopt_rs.containers.onnx.layout import outline, to_proto
from modelopt_rs.errors import FormatError, quote
from modelopt_rs.onnx.run.pair import run_pair
from modelopt_rs.onnx.run.samples import check_feeds
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.report.run import MaxErrorExceeded, RunReport
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Sink, Source

__all__ = ["OnnxCheck"]

MAX_DETAIL = 400


class OnnxCheck:
    """Checks a model that is written and not yet in its place.

    Parameters
    ----------
    source : Source
        The model that it came of.
    run : RunOptions or None
        On which inputs both are run; None: not at all.
    execution : Execution
    samples : path, mapping, iterable or callable, optional
        Calibration data: what they are run on if `run` has no inputs.

    Raises
    ------
    FileExistsError
        If there is something at the destination that may not be replaced.
    ValueError, TypeError
        If the inputs do not fit the model.
    OSError
        If the file of inputs can't be read.

    Attributes
    ----------
    report : RunReport or None
        What the run gave.
    file_bytes : tuple of int, or None
        The size of both models, with their external data.
    """

    def __init__(self, source: Source, run: RunOptions | None, execution: Execution, samples: Calibrate | None) -> None:
        self._source, self._run, self._threads = source, run, execution.threads
        self._samples = None if isinstance(samples, Iterator) else samples  # it is good for one pass
        self._max_memory = execution.max_memory
        if not execution.dry_run:
            check_place(execution.output, execution.overwrite)  # before the long work on a graph
        if run is not None:
            check_feeds(source.graph, source.path, run)
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
        if not isinstance(sink, OnnxSink):
            raise TypeError(f"OnnxCheck: sink must be an OnnxSink, got {type(sink).__name__}")
        staged = sink.staged()
        with _named(staged, sink.path):
            _check_model(sink, self._source)
            if self._run is not None:
                report = run_pair(
                    self._source.path,
                    staged,
                    self._run,
                    threads=self._threads,
                    max_memory=self._max_memory,
                    samples=self._samples,
                )
                self.report = replace(report, after=str(sink.path))
        self.file_bytes = (self._source.nbytes, sink.nbytes)


def _check_model(sink: OnnxSink, source: Source) -> None:
    """Let the checker see all but the large weights, of which it would hold two copies.

    What it says of the source as well is no flaw of what was made of it.
    """
    words = _verdict(sink.outline())
    if words is None:
        return
    before = _verdict(_outline_of(source))
    if before is None or _kind(words) != _kind(before):
        raise FormatError(f"{sink.path}: the checker of onnx refuses it: {quote(words, MAX_DETAIL)}")


def _verdict(data: bytes) -> str | None:
    """Return what the checker of onnx has against a model, outputs without a shape apart: onnxruntime takes these.

    It says one thing, and would say that of them instead of what else there is.
    """
    model = onnx.ModelProto.FromString(data)
    for value in model.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as e:  # its own errors, and those of what it calls, have no common class but this
        if isinstance(e, MemoryError):
            raise
        return str(e) or type(e).__name__
    return None


def _kind(words: str) -> str:
    """Return a verdict without the node that it is of: nodes are renamed and moved."""
    return words.split("==> Context", 1)[0].strip()


def _outline_of(source: Source) -> bytes:
    """Return the model that a source was opened from, without its large weights."""
    with OnnxSource(source.path, allow_hard_links=True, allow_symlinks_under="/") as again:
        infos = list(again.tensors.values())
        return outline(to_proto(again.model, infos), again.tensors)


@contextmanager
def _named(staged: Path, path: Path) -> Iterator[None]:
    """Let errors speak of the path that was asked for."""
    try:
        yield
    except (ValueError, TypeError) as e:
        if isinstance(e, MaxErrorExceeded):
            e.report = replace(e.report, after=str(path))
        e.args = tuple(arg.replace(str(staged), str(path)) if isinstance(arg, str) else arg for arg in e.args)
        raise
