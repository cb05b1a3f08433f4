"""Inputs that a model runs on, found by trying sizes, within bounds of work and memory, and kinds of values."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.errors import FormatError
from modelopt_rs.onnx.run.generate import axis_length
from modelopt_rs.onnx.run.inputs import Feed, InputInfo, generated
from modelopt_rs.onnx.run.sessions import Ended, bounded, size_of
from modelopt_rs.onnx.run.trials import LADDER, lengths, open_axes
from modelopt_rs.onnx.run.vocabulary import Known
from modelopt_rs.planning.run import RunOptions

__all__ = ["Found", "Search", "patience"]

FURTHER: Final = (16, 64, 224)  # lengths besides the first that is found
STEP = 1.5  # how much longer each is at least
RANKS: Final = (2, 3, 4, 1, 0)  # of inputs that have no shape
SIZES = 3  # how many sizes both models are run on
RUN, ALL = 2**35, 2**38  # products of a run of a larger size, and of all that are tried, at most
TRIALS = 2000  # runs of the search at most: most fail at once
PATIENCE: Final = (10.0, 1e-6, 1e-8)
"""Seconds of the processor for a run, for each byte of the model, and for each product that is counted.

Nobody can count how long a loop goes on: a run that doesn't end is ended by the clock. For what is counted there is a
hundred times what it takes, so that what is chosen follows from counts also on a machine that is slow or busy.
"""
PART = 64  # the inputs of a trial take at most this part of the memory: what is between them is larger
BETWEEN = 16  # and what goes in and comes out this part


@dataclass(frozen=True, slots=True)
class Found:
    """What came of the search.

    Attributes
    ----------
    feeds : list of Feed
        Inputs that the model runs on, those of the largest size first; empty where none was found.
    sizes : int
        How many sizes, or choices of values, these are of.
    tried : int
        How many were tried.
    error : Exception or None
        What the first of them raised.
    """

    feeds: list[Feed]
    sizes: int
    tried: int
    error: Exception | None


@dataclass(slots=True)
class Search:
    """Looks for inputs that a model runs on: up to three sizes, for each number that an input is compared with.

    Parameters
    ----------
    run : callable
        Runs the model, or raises FormatError.
    infos : mapping
        Its inputs.
    known : Known
        What its graph says of their values.
    options : RunOptions
        Lengths that are given, how many inputs there are of a size, and the seed.
    max_memory : int
        Sizes grow as long as what a run is expected to take is less; a run that takes more is ended.
    patience : float
        Seconds of the processor after which a run is ended, besides those for its products.
    """

    run: Callable[[Feed], Any]
    infos: Mapping[str, InputInfo]
    known: Known
    options: RunOptions
    max_memory: int
    patience: float = math.inf
    _tried: int = 0
    _error: Exception | None = None
    _ended: bool = False
    _spent: float = 0.0

    def __call__(self) -> Found:
        """Search."""
        for infos in guesses(self.infos):
            self.infos = infos
            found = self._found()
            if found.feeds:
                break
        return found

    def _found(self) -> Found:
        kinds = [f"choice {i}" for i in range(self.known.choices)]
        found = [(kind, dims) for kind in [*kinds, "usual"] for dims in self._sizes(kind)]
        for kind in ("positive", "zero"):
            found = found or [(kind, dims) for dims in self._sizes(kind)]
        rng = np.random.default_rng(self.options.seed)
        feeds = [self._feed(kind, dims, rng) for kind, dims in found for _ in range(self.options.samples)]
        return Found(sorted(feeds, key=_elements, reverse=True), len(found), self._tried, self._error)

    def _sizes(self, kind: str) -> list[Mapping[str, int]]:
        """Return lengths of axes that the model runs with."""
        for lengths_of in lengths(open_axes(self.infos, self.options.dims)):
            dims = {**self.options.dims, **lengths_of}
            if self._tried and (self._too_large(dims) or not self._is_left(self._work(kind, dims))):
                continue
            cost = self._try(kind, dims)
            if cost is not None:
                return [dims, *self._larger(kind, dims, lengths_of, cost)]
        return []

    def _larger(
        self, kind: str, dims: Mapping[str, int], first: Mapping[str, int], cost: "_Cost"
    ) -> list[Mapping[str, int]]:
        """Return more lengths of the axes that are not 1 long (else of all), each larger than those before."""
        axes = open_axes(self.infos, self.options.dims)
        grown = [key for key, n in first.items() if n > 1] or [key for key, of in axes.items() if of == "free"]
        if not grown:
            return []
        # Of images cost grows with the elements, of sequences with their square at most.
        exponent = 1 if any(len(info.shape) > 3 for info in self.infos.values()) else 2
        last = max(axis_length(key if ":" not in key else None, key, dims) for key in grown)
        found: list[Mapping[str, int]] = []
        for length in LADDER:
            if length < last * STEP or (length < FURTHER[-1] and length not in FURTHER):
                continue
            more = {**dims, **dict.fromkeys(grown, length)}
            if len(found) == SIZES - 1 or self._too_large(more) or not self._affords(kind, more, cost, exponent):
                break
            larger = self._try(kind, more)
            if larger is not None:
                cost, last = larger, length
                found.append(more)
        return found

    def _affords(self, kind: str, dims: Mapping[str, int], cost: "_Cost", exponent: int) -> bool:
        growth = max(_elements(self._feed(kind, dims)) / max(cost.elements, 1), 1.0) ** exponent
        work = self._work(kind, dims)
        return cost.nbytes * growth <= self.max_memory // BETWEEN and work <= RUN and self._is_left(work)

    def _is_left(self, work: float) -> bool:
        return self._tried < TRIALS and self._spent + work <= ALL

    def _work(self, kind: str, dims: Mapping[str, int]) -> float:
        """Return the products of a run."""
        return self.known.work(self._feed(kind, dims), {name: info.shape for name, info in self.infos.items()})

    def _try(self, kind: str, dims: Mapping[str, int]) -> "_Cost | None":
        """Run the model once; return what that took, or None where it can't be run so."""
        if self._ended:  # and would be at other sizes
            return None
        self._tried += 1
        feed, work = self._feed(kind, dims), self._work(kind, dims)
        self._spent += work
        try:
            with bounded(self.patience + PATIENCE[2] * work, self.max_memory):
                outputs = self.run(feed)
        except FormatError as e:
            self._error = self._error or e
            self._ended = self._ended or isinstance(e, Ended)
            return None
        return _Cost(_elements(feed), sum(a.nbytes for a in (*feed.values(), *outputs) if isinstance(a, np.ndarray)))

    def _feed(self, kind: str, dims: Mapping[str, int], rng: np.random.Generator | None = None) -> Feed:
        return generated(self.infos, dims, self.known, kind, rng or np.random.default_rng(self.options.seed))

    def _too_large(self, dims: Mapping[str, int]) -> bool:
        total = 0
        for info in self.infos.values():
            size = [axis_length(axis, f"{info.name}:{i}", dims) for i, axis in enumerate(info.shape)]
            total += int(np.prod(size, dtype=object)) * np.dtype(info.dtype).itemsize
        return total > self.max_memory // PART


def patience(path: str | os.PathLike[str]) -> float:
    """Return the seconds of the processor that any run may take: more where a model, or what is beside it, is large.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.sizes import patience
    >>> patience("model.onnx")
    10.0
    """
    return PATIENCE[0] + PATIENCE[1] * size_of(path)


def guesses(infos: Mapping[str, InputInfo]) -> Iterator[Mapping[str, InputInfo]]:
    """Yield inputs with open axes for those whose rank nobody knows: two, three, four, one, none.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.inputs import InputInfo
    >>> from modelopt_rs.onnx.run.sizes import guesses
    >>> [len(found["x"].shape) for found in guesses({"x": InputInfo("x", "float32", (), ranked=False)})]
    [2, 3, 4, 1, 0]
    """
    unsaid = [name for name, info in infos.items() if not info.ranked]
    for rank in RANKS if unsaid else RANKS[:1]:
        yield {**infos, **{name: replace(infos[name], shape=(None,) * rank) for name in unsaid}}


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a run took."""

    elements: int
    nbytes: int


def _elements(feed: Mapping[str, Array]) -> int:
    return sum(array.size for array in feed.values())
