"""One tensor's tiles in, rows of named tensors out: what every operation that writes a model file is made of.

An operation chooses a `Transform` for each tensor of its source; `rewrite` takes the tensors through theirs, tile by
tile, into a sink.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from modelopt_rs._types import Array
from modelopt_rs.stream.memory import Execution, located, tile_bytes
from modelopt_rs.stream.model import Sink, Source, TensorInfo

__all__ = ["Copy", "Transform", "apply", "rewrite"]


class Transform(Protocol):
    """What becomes of one tensor.

    Attributes
    ----------
    outputs : sequence of TensorInfo
        The tensors that it makes.
    bytes_per_row : int
        What it holds for each row of a tile besides the tile.
    unit : int
        Every tile but the last has a multiple of so many rows.
    kept : int
        What it holds for the whole tensor.
    passes : int
        How often it must see the tensor from the first tile to the last.
    """

    outputs: Sequence[TensorInfo]
    bytes_per_row: int
    unit: int
    kept: int
    passes: int

    def begin(self, rows: int) -> None:
        """Get ready for tiles of at most `rows` rows."""

    def __call__(self, array: Array) -> Sequence[tuple[str, Array]]:
        """Take the next tile, which may be overwritten; return rows by the output that they belong to."""

    def end(self) -> Sequence[tuple[str, Array]]:
        """Return what is left to write after the last tile of a pass."""


class Copy:
    """The transform that changes nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.stream.transform import Copy
    >>> Copy(TensorInfo("fc.bias", "F32", (2,), 8))(np.ones((2, 1), np.float32))[0][0]
    'fc.bias'
    """

    bytes_per_row = 0
    unit = 1
    kept = 0
    passes = 1

    def __init__(self, info: TensorInfo) -> None:
        self.outputs: Sequence[TensorInfo] = [info]
        self._name = info.name

    def begin(self, rows: int) -> None:
        """Do nothing."""

    def __call__(self, array: Array) -> Sequence[tuple[str, Array]]:
        """Return the tile as it is."""
        return [(self._name, array)]

    def end(self) -> Sequence[tuple[str, Array]]:
        """Return nothing."""
        return []


def apply(source: Source, name: str, transform: Transform, execution: Execution) -> Iterator[tuple[str, Array]]:
    """Yield the rows that a transform makes of a tensor.

    Raises
    ------
    OptionError
        If a unit of rows does not fit the memory.
    ValueError
        What the transform raises, with the tensor and the row.
    """
    info = source.tensors[name]
    if not info.nbytes:
        yield from transform.end()
        return
    extra, kept = source.memory(name)
    extra += transform.bytes_per_row
    size = tile_bytes(info, extra, execution.max_memory, kept=kept + transform.kept, unit=transform.unit)
    transform.begin(size // info.row_nbytes)
    for _ in range(transform.passes):
        for tile in source.tiles(name, size):
            with located(source, name, tile):
                parts = transform(tile.array)
            yield from parts
            execution.advance(tile.array.nbytes, name)
        yield from transform.end()


def rewrite(
    source: Source,
    sink: Sink,
    transforms: Mapping[str, Transform],
    execution: Execution,
    *,
    verify: bool,
    check: Callable[[Sink], None] | None = None,
) -> None:
    """Take every tensor through its transform into the sink, and commit; whatever goes wrong, nothing shows.

    `check` may look at what is written before it is committed, and raise.
    """
    execution.total += sum((each.passes - 1) * source.tensors[name].nbytes for name, each in transforms.items())
    with sink:
        for name, transform in transforms.items():
            for part, rows in apply(source, name, transform, execution):
                sink.write(part, rows)
        if check is not None:
            check(sink)
        sink.commit(verify=verify)
