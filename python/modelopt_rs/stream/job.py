"""`TensorJob`: one tensor, or some of its rows, through a transform; and the executors that run jobs into a sink."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from modelopt_rs._types import Array
from modelopt_rs.stream.execution import Execution, located
from modelopt_rs.stream.memory import tile_bytes
from modelopt_rs.stream.model import Sink, Source, Tile
from modelopt_rs.stream.transform import Transform

__all__ = ["LOCAL", "Executor", "TensorJob", "jobs_of", "rewrite"]


@dataclass(frozen=True, slots=True)
class TensorJob:
    """A tensor, or some of its rows, and what becomes of it. It can be pickled; a source is opened anew elsewhere.

    Attributes
    ----------
    source : Source
        Where its tiles come from.
    name : str
        The tensor.
    transform : Transform
        What becomes of it.
    rows : range or None
        Consecutive rows, from a multiple of the transform's `row_multiple` on; None: all.

    Examples
    --------
    >>> import numpy as np, pickle, tempfile
    >>> from modelopt_rs import files
    >>> from modelopt_rs.stream.execution import Execution
    >>> from modelopt_rs.stream.job import TensorJob
    >>> from modelopt_rs.stream.transform import Copy
    >>> with tempfile.TemporaryDirectory() as d:
    ...     info = files.TensorInfo("x", "F32", (4, 2), 32)
    ...     with files.SafetensorsSink(f"{d}/a.safetensors", [info]) as sink:
    ...         sink.write("x", np.arange(8, dtype=np.float32).reshape(4, 2))
    ...         sink.commit()
    ...     with files.open(f"{d}/a.safetensors") as source:
    ...         job = pickle.loads(pickle.dumps(TensorJob(source, "x", Copy(info), range(2, 4))))
    ...         for name, row, rows in job.run(Execution(2**20, None, None, 0)):
    ...             print(name, row, rows.tolist())
    ...         job.source.close()
    x 2 [[4.0, 5.0], [6.0, 7.0]]
    """

    source: Source
    name: str
    transform: Transform
    rows: range | None = None

    def run(self, execution: Execution) -> Iterator[tuple[str, int, Array]]:
        """Yield what is made: the output, the row of it at which it begins, and rows.

        Raises
        ------
        OptionError
            If a tile does not fit the memory.
        ValueError
            What the transform raises, with the tensor and the row; or if it can't take a part of the rows.
        """
        info, transform = self.source.tensors[self.name], self.transform
        rows = range(info.rows) if self.rows is None else self.rows
        starts = transform.starts(rows.start)
        is_part = len(rows) < info.rows
        if starts is None or rows.start % transform.row_multiple or (is_part and transform.sweeps > 1):
            raise ValueError(f"TensorJob: rows must be all of {self.name!r}, got {rows.start} to {rows.stop}")
        to = dict(starts)
        row_nbytes = {output.name: output.row_nbytes for output in transform.outputs}
        if info.nbytes:
            buffers = [*self.source.buffers(self.name), *transform.buffers]
            size = tile_bytes(info, buffers, execution.max_memory, row_multiple=transform.row_multiple)
            transform.begin(size // info.row_nbytes)
        for _ in range(transform.sweeps if info.nbytes else 1):
            for tile in self._tiles(size) if info.nbytes else ():
                with located(self.source, self.name, tile):
                    parts = transform(tile.array)
                yield from _placed(parts, to, row_nbytes)
                execution.advance(tile.array.nbytes, self.name)
            if rows.stop == info.rows:
                yield from _placed(transform.end(), to, row_nbytes)

    def _tiles(self, size: int) -> Iterator[Tile]:
        if self.rows is None:
            return self.source.tiles(self.name, size)
        return self.source.tiles(self.name, size, self.rows)


def _placed(
    parts: Iterable[tuple[str, Array]], to: dict[str, int], row_nbytes: Mapping[str, int]
) -> Iterator[tuple[str, int, Array]]:
    """Say at which row each part begins."""
    for name, array in parts:
        yield name, to[name], array
        to[name] += array.nbytes // max(row_nbytes[name], 1)


class Executor(Protocol):
    """Runs jobs, here or elsewhere; what they make goes into one sink."""

    def run(self, jobs: Iterable[TensorJob], sink: Sink, execution: Execution) -> None:
        """Run all jobs."""


class _Local:
    """Runs jobs one after the other; their kernels have the threads."""

    def run(self, jobs: Iterable[TensorJob], sink: Sink, execution: Execution) -> None:
        for job in jobs:
            for name, row, array in job.run(execution):
                sink.write_at(name, row, array)


LOCAL = _Local()


def jobs_of(source: Source, transforms: Mapping[str, Transform]) -> list[TensorJob]:
    """Return a job for each tensor."""
    return [TensorJob(source, name, transform) for name, transform in transforms.items()]


def rewrite(
    source: Source,
    sink: Sink,
    transforms: Mapping[str, Transform],
    execution: Execution,
    *,
    verify: bool,
    check: Callable[[Sink], None] | None = None,
    executor: Executor = LOCAL,
) -> None:
    """Take every tensor through its transform into the sink, and commit; whatever goes wrong, nothing shows.

    `check` may look at what is written before it is committed, and raise.
    """
    execution.total += sum((each.sweeps - 1) * source.tensors[name].nbytes for name, each in transforms.items())
    with sink:
        executor.run(jobs_of(source, transforms), sink, execution)
        if check is not None:
            check(sink)
        sink.commit(verify=verify)
