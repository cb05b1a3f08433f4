"""What a layout is: a weight as named tensors of a file, and back.

A layout stands in one module and in a line of the registry. It says how it is found in a file, how its tiles are
decoded and, if it can be written, which tensors it makes, how tiles are encoded, and what `config.json` says of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from modelopt_rs.layouts.modules import Modules
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import Source, TensorInfo, Tile
from modelopt_rs.stream.transform import Transform

__all__ = ["Encoder", "Layout", "StoredWeight", "WritableLayout"]


class StoredWeight(Protocol):
    """One weight that a source has in some layout."""

    @property
    def parts(self) -> Sequence[str]:
        """The source's tensors that stand for it; it shows in the place of the first."""

    @property
    def words(self) -> str:
        """How it is stored, for people."""

    @property
    def spec(self) -> Any:
        """How it is coded, in the terms of its layout; None where it is not."""

    def info(self, dtype: str) -> TensorInfo:
        """Return the weight as it shows: in this dtype, or in one that its layout keeps."""

    def buffers(self, dtype: str) -> Sequence[Buffer]:
        """Return what reading holds besides a tile."""

    def tiles(self, dtype: str, max_bytes: int, threads: int | None) -> Iterator[Tile]:
        """Yield the weight's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""


class Layout(Protocol):
    """One way of storing weights."""

    @property
    def name(self) -> str:
        """As its owners name it."""

    @property
    def state(self) -> str:
        """What a model with such weights is, in words: "quantized", "stored as bitmasks"."""

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """Return a tensor that shows that weights are stored so; None where there is none."""

    def find(self, source: Source) -> Iterator[StoredWeight]:
        """Yield the weights of a source that are stored so.

        Raises
        ------
        FormatError
            If their tensors don't fit each other. `UnsupportedError`: this form of the layout is not read.
        """


class Encoder(Transform, Protocol):
    """What makes the tensors of a layout of a weight, and knows how far they are from it.

    Attributes
    ----------
    figures : ErrorFigures
        How far the codes so far are from what they were made of.
    """

    figures: ErrorFigures


class WritableLayout(Layout, Protocol):
    """A layout that weights can be quantized to."""

    @property
    def formats(self) -> Sequence[str]:
        """The named formats that it holds; none: uniform codes."""

    @property
    def names_weights(self) -> bool:
        """Whether `config.json` names each weight that is stored so, so that more can be said beside them."""

    def spec(self, options: Any) -> Any:
        """Return how a weight is coded with some options (`QuantizeOptions`).

        Raises
        ------
        OptionError
            If the layout can't hold what they ask for.
        """

    def can_hold(self, info: TensorInfo) -> bool:
        """Whether a weight of such a name and so many axes can be stored so, whoever reads it."""

    def why_not(self, info: TensorInfo, spec: Any) -> str | None:
        """Say why a weight of floats that it can hold can't be stored so; None if it can."""

    def encode(self, info: TensorInfo, spec: Any, options: Any, threads: int | None) -> Encoder:
        """Return what makes the tensors of a weight, tile by tile, with some options (`QuantizeOptions`)."""

    def describe(self, specs: Mapping[str, Any], modules: Modules) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """Return what a file's metadata and what `config.json` say.

        `specs`: how each weight that is stored so is coded, by its name; `modules`: of all weights of the model.
        """
