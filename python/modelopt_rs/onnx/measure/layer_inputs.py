"""What goes into the layers of an ONNX model, as it runs in onnxruntime: the one place where it is seen."""

import itertools
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.onnx.int8.bodies import made_often
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.measure.patches import Patches
from modelopt_rs.onnx.run.inputs import Feed, known_of
from modelopt_rs.onnx.run.samples import Samples
from modelopt_rs.onnx.run.sessions import limited
from modelopt_rs.onnx.run.sizes import Search, patience
from modelopt_rs.onnx.run.work import Work
from modelopt_rs.onnx.weights import Weight, find_weights
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.planning.run import RunOptions

__all__ = ["Data", "InputStream", "LayerInput", "layer_inputs", "refuse_unseen", "varied"]

KINDS = ("matmul", "gemm", "conv")
BODIES = 11  # the opset from which on values come out of bodies


@dataclass(frozen=True, slots=True)
class Data:
    """Where the inputs of the model come from.

    Attributes
    ----------
    calibrate : path, mapping, iterable or callable, optional
        Calibration data: what is taken first.
    run : RunOptions, optional
        Inputs that are given or how they are made up; None: only what calibrates.
    varied : int
        How many inputs of each size are made up at least where models are compared by them; 0: as `run` says.
    """

    calibrate: Calibrate | None
    run: RunOptions | None
    varied: int = 0

    @property
    def words(self) -> str | None:
        """What they are; None: there are none."""
        if self.calibrate is not None:
            return "calibration data"
        if self.run is None:
            return None
        return "made-up inputs" if self.made_up else "the given inputs"

    @property
    def made_up(self) -> bool:
        """Whether nobody has given any, and they are made up."""
        if self.calibrate is not None or self.run is None:
            return False
        # What an iterator has is good for one pass, which is that of the check.
        return self.run.inputs is None or isinstance(self.run.inputs, Iterator)


class LayerInput(NamedTuple):
    """What the layers that take a weight multiply it with.

    Attributes
    ----------
    value : str
        The value that goes in.
    patches : Patches or None
        How a convolution cuts it into rows; else its rows are along its last axis.
    """

    value: str
    patches: Patches | None

    @property
    def groups(self) -> int:
        """How many parts of the weight have rows of their own."""
        return 1 if self.patches is None else self.patches.groups


class InputStream:
    """Values of a model, sample for sample; nothing is kept of them.

    Parameters
    ----------
    model : Model
        As it was read from `path`; is not changed.
    path : path
    values : sequence of str
        All that may be asked for.
    data : Data
        What there is. Made-up inputs are searched for at once.
    threads : int or None
    max_memory : int
        The bytes that runs on made-up inputs may be expected to take.
    most : int, optional
        How many samples are taken at most; None: all of them.
    weights : sequence of str
        Initializers that `outputs` may be given others for.

    Attributes
    ----------
    most : int or None
        How many there are at most; None: nobody knows.

    Raises
    ------
    OptionError, ValueError, TypeError
        If what is given does not fit the model.
    FormatError, UnsupportedError
        If onnxruntime refuses the model, or inputs can't be made up.
    """

    def __init__(
        self,
        model: ir.Model,
        path: str | os.PathLike[str],
        values: Sequence[str],
        data: Data,
        *,
        threads: int | None,
        max_memory: int,
        most: int | None = None,
        weights: Sequence[str] = (),
    ) -> None:
        # What is looked at is given out as a copy: with it, 64 MiB more than max_memory are not passed.
        room = max_memory + max_memory // 2
        with limited(room, path) if data.made_up else nullcontext():
            self._observer = Observer(model, path, list(values), threads=threads, weights=weights)
        self.most = most
        outputs = [str(value.name) for value in model.graph.outputs]
        self._feeds = self._of(data, path, outputs, max_memory)

    def feeds(self) -> Iterator[Feed]:
        """Yield all samples."""
        return itertools.islice(self._feeds(), self.most)

    def work(self, counted: Work) -> float:
        """Return the products of a run of all samples."""
        shapes = {name: info.shape for name, info in self._observer.infos.items()}
        return sum(counted(feed, shapes) for feed in self.feeds())

    def values(self, names: Sequence[str]) -> Iterator[tuple[str, Array]]:
        """Run all samples, and yield some of their values."""
        return self._observer.values(self.feeds(), names)

    def outputs(self, names: Sequence[str], weights: Feed = MappingProxyType({})) -> Iterator[list[Any]]:
        """Run all samples, with other weights; yield outputs and values of each."""
        for feed in self.feeds():
            yield self._observer.outputs({**feed, **weights}, names)

    def rows(self, inputs: Iterable[LayerInput]) -> Iterator[tuple[LayerInput, int, Array]]:
        """Run all samples; yield what layers multiply their weights with, of float32, some rows at a time.

        Of a convolution with groups each has rows of its own, and its number stands beside them (else 0).
        """
        wanted: dict[str, list[LayerInput]] = {}
        for each in inputs:
            wanted.setdefault(each.value, []).append(each)
        for name, array in self.values(list(wanted)):
            array = array.astype(np.float32, copy=False)
            for each in wanted[name]:
                for group in range(each.groups):
                    if each.patches is None:
                        yield each, group, array.reshape(-1, array.shape[-1])
                    else:
                        yield from ((each, group, rows) for rows in each.patches.rows(array, group))
            del array  # before the next run

    def _of(
        self, data: Data, path: str | os.PathLike[str], outputs: list[str], max_memory: int
    ) -> Callable[[], Iterable[Feed]]:
        infos, run = self._observer.infos, data.run
        if data.calibrate is not None:
            samples = Samples(data.calibrate, infos, path)
            return lambda: samples
        assert run is not None  # or there would be no data
        if data.words == "the given inputs":
            assert run.inputs is not None
            samples = Samples(run.inputs, infos, path, "inputs", run.dims)
            return lambda: samples
        if data.varied:
            run = replace(run, samples=max(run.samples, data.varied))
        known = known_of(infos, path)
        search = Search(
            lambda feed: self._observer.outputs(feed, outputs), infos, known, run, max_memory, patience(path)
        )
        # The small sizes first: in the first run few values come out at a time.
        feeds = search().feeds[::-1]
        feeds = (varied(feeds) if data.varied else feeds)[: self.most]
        self.most = len(feeds)
        return lambda: feeds


def varied(feeds: Sequence[Feed]) -> list[Feed]:
    """Return samples that differ as soon as there are a few: in size in turns, and every other without signs.

    What a model takes may be of both signs or of one, as pixels and counts are: then errors that are alike add up, and
    don't cancel. `WholeErrors` says what that is worth.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.measure.layer_inputs import varied
    >>> feeds = [{"x": np.full(n, -1.0)} for n in (1, 1, 2, 2)]
    >>> [feed["x"].tolist() for feed in varied(feeds)]
    [[-1.0], [-1.0, -1.0], [1.0], [1.0, 1.0]]
    """
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    turns = []
    for feed in feeds:
        size = tuple(array.shape for array in feed.values())
        found[size] = found.get(size, -1) + 1
        turns.append(found[size])
    in_turns = sorted(zip(turns, feeds, strict=True), key=lambda each: each[0])
    return [_magnitudes(feed) if turn % 2 else feed for turn, feed in in_turns]


def _magnitudes(feed: Feed) -> Feed:
    return {name: np.abs(array) if array.dtype.kind == "f" else array for name, array in feed.items()}


def layer_inputs(weight: Weight) -> list[LayerInput]:
    """Return what goes into the layers that take a weight that `refuse_unseen` has nothing against, each once."""
    found: dict[LayerInput, None] = {}
    for use in weight.uses:
        x = use.node.inputs[0]
        assert x is not None
        found[LayerInput(str(x.name), Patches.of(use, weight.shape) if use.kind == "conv" else None)] = None
    return list(found)


def refuse_unseen(model: ir.Model) -> Mapping[str, str]:
    """Return the weights whose inputs can't be collected, and why."""
    often = made_often(model)
    opset = model.graph.opset_imports.get("", 0)
    reasons = {weight.name: _why_unseen(weight, often, opset) for weight in find_weights(model)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _why_unseen(weight: Weight, often: Container[str], opset: int) -> str | None:
    """Say why the inputs of a weight's layers can't be collected; None if they can.

    `often` has the names of several values, `opset` is the model's.
    """
    for use in weight.uses:
        x = use.node.inputs[0]
        if use.kind not in KINDS:
            return f"what goes into {use.where} isn't collected: only of MatMul, Gemm and Conv"
        if use.reason is not None:
            return use.reason
        if use.inner and (use.kind == "conv" or opset < BODIES or x is None or x.name in often):
            return f"{use.where} stands in the body of an If, Loop or Scan"
        if use.dtype != ir.DataType.FLOAT and (use.dtype != ir.DataType.FLOAT16 or use.inner):
            return f"{use.where} computes in {use.dtype}: what goes in must be float32 or float16"
        if x is None or x.is_initializer():
            return f"{use.where} takes nothing but constants"
        if use.kind == "conv" and any(node.op_type == "Transpose" for node in use.chain):
            return f"{use.where} takes it behind a Transpose"
    return None
