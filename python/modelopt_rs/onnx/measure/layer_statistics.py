"""Sums of what goes into the layers of an ONNX model while calibration data run through it, never the values."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from modelopt_rs.errors import quote
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream, LayerInput, layer_inputs
from modelopt_rs.onnx.weights import find_weights
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.transforms.sums import Sums

__all__ = ["LayerInputs"]


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
        given: Calibrate,
        *,
        max_memory: int,
        threads: int | None = None,
    ) -> None:
        self._kind, self._names, self._max_memory = kind, list(names), max_memory
        weights = {weight.name: weight for weight in find_weights(model)}
        self._sources = {name: layer_inputs(weights[name]) for name in names}
        self._columns = {
            name: int(np.prod(weights[name].shape)) // weights[name].shape[weights[name].out_axis] for name in names
        }
        values = list(dict.fromkeys(each.value for found in self._sources.values() for each in found))
        self._stream = InputStream(model, path, values, Data(given, None), threads=threads, max_memory=max_memory)
        self._seen: dict[LayerInput, list[ColumnNorms | Hessian]] = {}

    def of(self, name: str) -> list[ColumnNorms | Hessian]:
        """Return the statistics of the inputs of a weight, over all nodes that take it: one for each group of a Conv.

        Of no rows, where an input is empty in every sample.

        Raises
        ------
        ValueError
            If an input is not finite.
        """
        sources = self._sources[name]
        if any(source not in self._seen for source in sources):
            self._seen = {}  # let go before others are made
            self._seen = self._collect(self._together(name))
            if not any(each.count for found in self._seen.values() for each in found) and self._is_whole():
                value = quote(sources[0].value)
                raise ValueError(
                    f"calibrate: value {value} is empty in every sample, like all others; give other samples"
                )
        first, *others = (self._seen[source] for source in sources)
        if others:
            first = [self._merged([each, *rest]) for each, *rest in zip(first, *others, strict=True)]
        return first

    def keep(self, names: Sequence[str]) -> None:
        """Collect those of these weights only; in this order they will be asked for."""
        self._names = list(names)

    def _is_whole(self) -> bool:
        """Whether all that is asked for was collected in one pass."""
        return all(source in self._seen for name in self._names for source in self._sources[name])

    def _merged(self, parts: Iterable[ColumnNorms | Hessian]) -> ColumnNorms | Hessian:
        whole = self._kind()
        for part in parts:
            whole.merge(part)  # type: ignore[arg-type]  # all are of the same kind
        return whole

    def _together(self, name: str) -> list[LayerInput]:
        """Return what is collected in one pass: of this weight, and of those after it as far as memory goes."""
        found: dict[LayerInput, None] = {}
        room = self._max_memory
        for each in self._names[self._names.index(name) :]:
            new = [source for source in self._sources[each] if source not in found]
            groups = max(source.groups for source in self._sources[each])
            # Float64, and the float32 rows that wait for it.
            size = 12 * self._columns[each] ** (2 if self._kind is Hessian else 1) * groups * len(new)
            if found and size > room:
                break
            room -= size
            found |= dict.fromkeys(new)
        return list(found)

    def _collect(self, sources: Sequence[LayerInput]) -> dict[LayerInput, list[ColumnNorms | Hessian]]:
        seen = {source: [Sums(self._kind()) for _ in range(source.groups)] for source in sources}
        for source, group, rows in self._stream.rows(sources):
            with _named(source.value):
                seen[source][group].add(rows)
            del rows  # before the next run
        for source, found in seen.items():
            with _named(source.value):
                for sums in found:
                    sums.flush()
        return {source: [sums.statistics for sums in found] for source, found in seen.items()}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise what is wrong with a value with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"calibrate: value {quote(name)}: {error}") from error
