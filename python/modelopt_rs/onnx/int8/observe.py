"""What goes through a model: onnxruntime runs it, and inner values come out as well."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx.external import Extent
from modelopt_rs.containers.onnx.tensors import extent_of, is_lazy
from modelopt_rs.onnx.int8.bodies import FLAT, WIDTH, bring_out
from modelopt_rs.onnx.run.inputs import Feed, InputInfo, input_infos
from modelopt_rs.onnx.run.sessions import FOLDER, Session, new_session, run_session, session_options, utf8

__all__ = ["Observer", "packed", "skeleton"]

# Outputs of one run: at first few, to see how large they are, then as many as fit.
FIRST, TOGETHER = 16, 256 * 2**20


class Observer:
    """A model in onnxruntime with chosen inner values as outputs; the weights stay where they are.

    Parameters
    ----------
    model : Model
        As it was read from `path`; is not changed.
    path : path
        Its file.
    names : sequence of str
        The values to see: float32 results of nodes, or inputs. Of what stands in the body of an If, Loop or Scan the
        rows along the last axis are seen, of all its runs together, or nothing where it doesn't run.
    threads : int, optional
        Threads to run with.
    weights : sequence of str
        Initializers that a feed may have other values for.

    Raises
    ------
    FormatError
        If onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: ir.Model,
        path: str | os.PathLike[str],
        names: Sequence[str],
        *,
        threads: int | None = None,
        weights: Sequence[str] = (),
    ) -> None:
        self._path = path
        inputs = {value.name for value in model.graph.inputs}
        self._inputs = [name for name in names if name in inputs]
        self._names = [name for name in names if name not in inputs]
        main = {value.name for node in model.graph for value in node.outputs} | model.graph.initializers.keys()
        self._within = {name for name in self._names if name not in main}
        self._session = _session(*skeleton(model, self._names, weights), path, threads)

    @property
    def infos(self) -> Mapping[str, InputInfo]:
        """The inputs of the model by name."""
        return input_infos(self._session, self._path)

    def outputs(self, feed: Feed, names: Sequence[str]) -> list[Any]:
        """Run the model once; return outputs of its own.

        Raises
        ------
        FormatError
            If the run fails.
        """
        found = run_session(self._session, self._path, feed, self._fetched(names))
        return [self._taken(name, found)[0] for name in reversed(names)][::-1]

    def values(self, samples: Iterable[Feed], names: Sequence[str]) -> Iterator[tuple[str, Array]]:
        """Yield some of the values of every sample, with their names.

        Few large values come out of each run, and the sample is run again for the others: memory is for one sample.

        Raises
        ------
        FormatError
            If a run fails.
        """
        inputs, inner = ([name for name in among if name in names] for among in (self._inputs, self._names))
        groups, first = [inner[i : i + FIRST] for i in range(0, len(inner), FIRST)], True
        for feed in samples:
            sizes = {}
            for name in inputs:
                yield name, feed[name]
            for group in groups:
                found: list[Any] = run_session(self._session, self._path, feed, self._fetched(group))
                for name in reversed(group):
                    array, ran = self._taken(name, found)
                    sizes[name] = array.nbytes
                    if ran:
                        yield name, array
                    del array  # nothing is kept of it here
            groups, first = packed(sizes, TOGETHER) if first else groups, False

    def _fetched(self, names: Sequence[str]) -> list[str]:
        parts = [(f"{name}{FLAT}", f"{name}{WIDTH}") if name in self._within else (name,) for name in names]
        return [part for each in parts for part in each]

    def _taken(self, name: str, found: list[Any]) -> tuple[Any, bool]:
        """Take the last value off what was fetched, and say whether it was made at all."""
        last = found.pop()
        if name not in self._within:
            return last, True
        flat, width = found.pop(), int(last.max(initial=0))
        return flat.reshape(-1, max(width, 1)), width > 0


def packed(sizes: Mapping[str, int], together: int) -> list[list[str]]:
    """Return what is held together, in order: as many as take no more than these bytes, or one.

    Examples
    --------
    >>> from modelopt_rs.onnx.int8.observe import packed
    >>> packed({"a": 3, "b": 4, "c": 2, "d": 9}, 7)
    [['a', 'b'], ['c'], ['d']]
    """
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = together
        groups[-1].append(name)
        room -= size
    return groups


def skeleton(model: ir.Model, outputs: Sequence[str] = (), weights: Sequence[str] = ()) -> tuple[bytes, Path]:
    """Serialize a model with more outputs, and with its lazy weights as external data.

    Parameters
    ----------
    model : Model
    outputs : sequence of str
        Values; see `bring_out` for those that don't stand in the main graph.
    weights : sequence of str
        Initializers that become inputs too, which may be left out.

    Returns
    -------
    data : bytes
    folder : Path
        What the names of files are relative to: all are beneath it, with no symbolic link between.
    """
    clone = model.clone()
    initializers = list(clone.graph.initializers.values())
    places = [_place(value.const_value) for value in initializers]
    files = {place: os.path.realpath(place.file.path) for place in places if place is not None}
    folder = Path(os.path.commonpath([Path(file).parent for file in files.values()]) if files else ".")
    for value, place in zip(initializers, places, strict=True):
        tensor = value.const_value
        if place is None or tensor is None:
            continue
        location, shape = os.path.relpath(files[place], folder), ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            location, place.offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(value.name), base_dir=folder
        )
    fed = {value.name for value in clone.graph.inputs}
    clone.graph.inputs.extend(clone.graph.initializers[name] for name in weights if name not in fed)
    there = {value.name for value in clone.graph.outputs}
    values = {value.name: value for node in clone.graph for value in node.outputs} | dict(clone.graph.initializers)
    for name in outputs:
        if name not in there and name in values:
            clone.graph.outputs.append(values[name])
    proto = ir.to_proto(clone)
    bring_out(proto, [name for name in outputs if name not in values])
    return proto.SerializeToString(), folder


def _place(tensor: ir.TensorProtocol | None) -> Extent | None:
    """Return where in a file a tensor's bytes stand; None if they are in memory."""
    if tensor is None or not is_lazy(tensor):
        return None
    extent = extent_of(tensor)
    return None if hasattr(extent.file, "_data") else extent


def _session(data: bytes, folder: Path, path: str | os.PathLike[str], threads: int | None) -> Session:
    options = session_options(threads)
    # Between runs the values are looked at: its threads would wait in loops and keep the cores from that.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with utf8(folder.resolve()) as name:
        options.add_session_config_entry(FOLDER, name)
        return new_session(data, options, path)
