"""What goes into the layers of an ONNX model while calibration data run through it: sums, never the values."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.errors import quote
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.run.samples import Given, Samples
from modelopt_rs.onnx.weights import Use, Weight, find_weights
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms

__all__ = ["LayerInputs", "Patches", "refuse_unseen"]

KINDS = ("matmul", "gemm", "conv")
PATCH_BYTES = 32 * 2**20  # of the patches of an image that are made at a time


def _why_unseen(weight: Weight) -> str | None:
    """Say why the inputs of a weight's layers can't be collected; None if they can."""
    for use in weight.uses:
        x = use.node.inputs[0]
        if use.kind not in KINDS:
            return f"what goes into {use.where} isn't collected: only of MatMul, Gemm and Conv"
        if use.reason is not None:
            return use.reason
        if use.inner:
            return f"{use.where} stands in the body of an If, Loop or Scan"
        if use.dtype != ir.DataType.FLOAT:
            return f"{use.where} computes in {use.dtype}: what goes in must be float32"
        if x is None or x.is_initializer():
            return f"{use.where} takes nothing but constants"
        if use.kind == "conv" and any(node.op_type == "Transpose" for node in use.chain):
            return f"{use.where} takes it behind a Transpose"
    return None


@dataclass(frozen=True, slots=True)
class Patches:
    """How a convolution cuts its input: what it multiplies its weights with, a row for each output position.

    Columns are in the order of kernel positions, of each its channels.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.layer_statistics import Patches
    >>> patches = Patches((2,), (1,), (1,), (0, 0), "NOTSET", 1)
    >>> [rows.tolist() for rows in patches.rows(np.arange(3.0).reshape(1, 1, 3), 0)]
    [[[0.0, 1.0], [1.0, 2.0]]]
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    groups: int

    @classmethod
    def of(cls, use: Use, shape: Sequence[int]) -> "Patches":
        """Return what a Conv does, given the shape of its weight."""
        kernel, attributes = tuple(shape[2:]), use.node.attributes
        ones = (1,) * len(kernel)

        def ints(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(attributes[name].as_ints()) if name in attributes else default

        return cls(
            kernel,
            ints("strides", ones),
            ints("dilations", ones),
            ints("pads", (0,) * (2 * len(kernel))),
            attributes["auto_pad"].as_string() if "auto_pad" in attributes else "NOTSET",
            attributes["group"].as_int() if "group" in attributes else 1,
        )

    def rows(self, x: Array, group: int) -> Iterator[Array]:
        """Yield the patches of the channels of one group, some at a time."""
        channels = x.shape[1] // self.groups
        x = x[:, group * channels : (group + 1) * channels]
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        x = np.pad(x, [(0, 0), (0, 0), *self._pads(x.shape[2:], spans)])
        axes = tuple(range(2, x.ndim))
        if any(length < span for length, span in zip(x.shape[2:], spans, strict=True)):
            return
        windows = np.lib.stride_tricks.sliding_window_view(x, spans, axes)  # (batch, channels, out ..., kernel ...)
        steps = [slice(None, None, step) for step in (*self.strides, *self.dilations)]
        windows = np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, -1)
        columns = windows[0].size // max(1, int(np.prod(windows.shape[1 : 1 + len(axes)]))) if len(windows) else 1
        each = max(1, int(np.prod(windows.shape[2 : 1 + len(axes)]))) * columns * x.itemsize
        together = max(1, PATCH_BYTES // max(1, each))
        for image in windows:
            for first in range(0, len(image), together):
                yield np.ascontiguousarray(image[first : first + together]).reshape(-1, columns)

    def _pads(self, lengths: Sequence[int], spans: Sequence[int]) -> list[tuple[int, int]]:
        n = len(lengths)
        if self.auto_pad in ("NOTSET", ""):
            return list(zip(self.pads[:n], self.pads[n:], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * n
        pads = []
        for length, span, step in zip(lengths, spans, self.strides, strict=True):
            missing = max((-(-length // step) - 1) * step + span - length, 0)
            less, more = missing // 2, missing - missing // 2
            pads.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return pads


_Source: TypeAlias = tuple[str, Patches | None]


class LayerInputs:
    """Statistics of what goes into layers, collected when they are asked for.

    The samples are run once, or, where the sums of all layers take more than `max_memory`, as often as it needs: memory
    does not grow with their number. Weights that take the same input have their sums in common.

    Parameters
    ----------
    model : Model
    path : path
        Its file.
    kind : type
        `ColumnNorms` or `Hessian`.
    names : sequence of str
        The weights that `refuse_unseen` has nothing against, in the order in which they will be asked for.
    given : path, mapping, iterable or callable
        The samples, see `Samples`.
    max_memory : int
        For the sums.
    threads : int, optional

    Raises
    ------
    OptionError, ValueError, TypeError, FormatError
        If the samples don't fit the model, or onnxruntime refuses it.
    """

    def __init__(
        self,
        model: ir.Model,
        path: str | os.PathLike[str],
        kind: type[ColumnNorms] | type[Hessian],
        names: Sequence[str],
        given: Given,
        *,
        max_memory: int,
        threads: int | None = None,
    ) -> None:
        self._kind, self._names, self._max_memory, self._threads = kind, list(names), max_memory, threads
        weights = {weight.name: weight for weight in find_weights(model)}
        self._sources = {name: list(dict.fromkeys(_sources(weights[name]))) for name in names}
        self._columns = {
            name: int(np.prod(weights[name].shape)) // weights[name].shape[weights[name].out_axis] for name in names
        }
        values = dict.fromkeys(value for found in self._sources.values() for value, _ in found)
        self._observer = Observer(model, path, list(values), threads=threads)
        self._samples = Samples(given, self._observer.infos, path)
        self._seen: dict[_Source, list[ColumnNorms | Hessian]] = {}

    def of(self, name: str) -> list[ColumnNorms | Hessian]:
        """Return the statistics of the inputs of a weight, over all nodes that take it: one for each group of a Conv.

        Raises
        ------
        ValueError
            If an input is not finite, or empty in every sample.
        """
        sources = self._sources[name]
        if any(source not in self._seen for source in sources):
            self._seen = {}  # let go before others are made
            self._seen = self._collect(self._together(name))
        first, *others = (self._seen[source] for source in sources)
        if others:
            first = [self._merged([each, *rest]) for each, *rest in zip(first, *others, strict=True)]
        if any(each.rows == 0 for each in first):
            raise ValueError(f"calibrate: value {quote(sources[0][0])} is empty in every sample; exclude {quote(name)}")
        return first

    def _merged(self, parts: Iterable[ColumnNorms | Hessian]) -> ColumnNorms | Hessian:
        whole = self._kind()
        for part in parts:
            whole.merge(part)  # type: ignore[arg-type]  # all are of the same kind
        return whole

    def _together(self, name: str) -> list[_Source]:
        """Return what is collected in one pass: of this weight, and of those after it as far as memory goes."""
        found: dict[_Source, None] = {}
        room = self._max_memory
        for each in self._names[self._names.index(name) :]:
            new = [source for source in self._sources[each] if source not in found]
            groups = max((1 if patches is None else patches.groups) for _, patches in self._sources[each])
            # Float64, and the float32 rows that wait for it.
            size = 12 * self._columns[each] ** (2 if self._kind is Hessian else 1) * groups * len(new)
            if found and size > room:
                break
            room -= size
            found |= dict.fromkeys(new)
        return list(found)

    def _collect(self, sources: Sequence[_Source]) -> dict[_Source, list[ColumnNorms | Hessian]]:
        seen = {
            source: [_Sums(self._kind()) for _ in range(1 if source[1] is None else source[1].groups)]
            for source in sources
        }
        wanted: dict[str, list[_Source]] = {}
        for source in sources:
            wanted.setdefault(source[0], []).append(source)

        def visit(name: str, array: Array) -> None:
            for source in wanted[name]:
                for group, sums in enumerate(seen[source]):
                    parts: Iterable[Array] = [array] if source[1] is None else source[1].rows(array, group)
                    for rows in parts:
                        with _named(name):
                            sums.add(rows)

        self._observer.run(self._samples, visit, list(wanted))
        for source, found in seen.items():
            with _named(source[0]):
                for sums in found:
                    sums.flush()
        return {source: [sums.statistics for sums in found] for source, found in seen.items()}


class _Sums:
    """Statistics that take rows some at a time: products of few rows cost as much as those of as many as columns."""

    def __init__(self, statistics: ColumnNorms | Hessian) -> None:
        self.statistics = statistics
        self._rows: list[Array] = []
        self._count = 0

    def add(self, array: Array) -> None:
        """Take rows in, now or later."""
        rows = array.reshape(-1, array.shape[-1])
        self._rows.append(rows)
        self._count += len(rows)
        if isinstance(self.statistics, ColumnNorms) or self._count >= rows.shape[1]:
            self.flush()

    def flush(self) -> None:
        """Take in what is left."""
        if self._count:
            self.statistics.update(self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows))
        self._rows, self._count = [], 0


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise what is wrong with a value with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"calibrate: value {quote(name)}: {error}") from error


def _sources(weight: Weight) -> Iterator[tuple[str, Patches | None]]:
    """Yield where each node that takes a weight has its other input from, and how it cuts it."""
    for use in weight.uses:
        x = use.node.inputs[0]
        assert x is not None
        yield str(x.name), Patches.of(use, weight.shape) if use.kind == "conv" else None


def refuse_unseen(model: ir.Model) -> Mapping[str, str]:
    """Return the weights whose inputs can't be collected, and why."""
    reasons = {weight.name: _why_unseen(weight) for weight in find_weights(model)}
    return {name: reason for name, reason in reasons.items() if reason is not None}
