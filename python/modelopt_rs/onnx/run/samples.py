"""Inputs that are given, to calibrate with or to run on: where samples come from, one at a time."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.containers.numpy_files import read_npy, read_npz
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.onnx.run.inputs import (
    Feed,
    InputInfo,
    array_of,
    axes_of,
    batch_axes,
    check_dims,
    checked,
    cut,
    generated,
    graph_infos,
    known_of,
    of_file,
)
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.planning.run import RunOptions

__all__ = ["Samples", "check_feeds", "feeds"]

Infos: TypeAlias = Mapping[str, InputInfo]


class Samples:
    """Samples for a model's inputs, as often as they are wanted.

    - A file (.npz) or a mapping has arrays named as the inputs; of a model with one input a file (.npy) or an array is
      enough. An array with one axis more than its input has a sample for each index of the first. Else it is cut along
      its batch (see `batch_axes`), never along the time of a recurrent layer or a loop: into samples of one row where
      that is open, or of as many as the model's batch has.
      A list has a sample in each element. All of them are in memory.
    - A directory has a sample in each .npz file, or, of a model with one input, .npy file, in the order of the names.
      One at a time is in memory.
    - A callable returns, and an iterable has, a mapping from input to array for each sample, or, of a model with one
      input, an array. Iterators are good for one pass only.

    Parameters
    ----------
    given : path, mapping, iterable or callable
        As above.
    infos : mapping
        The inputs of the model by name.
    path : path
        The model, for errors.
    name : str
        What the data are called in errors.
    dims : mapping, optional
        Lengths of open axes, also of samples that are cut from arrays. None: an open batch is cut into rows.

    Attributes
    ----------
    once : bool
        Whether they are good for one pass only.

    Raises
    ------
    OptionError
        If `given` is none of these, or has no samples.
    ValueError, TypeError
        If an array does not fit its input.
    FormatError
        If a file has no arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.run.inputs import InputInfo
    >>> infos = {"x": InputInfo("x", "float32", ("batch", 3))}
    >>> [feed["x"].shape for feed in Samples({"x": np.zeros((2, 3), np.float32)}, infos, "model.onnx")]
    [(1, 3), (1, 3)]
    """

    def __init__(
        self,
        given: Calibrate,
        infos: Infos,
        path: str | os.PathLike[str],
        name: str = "calibrate",
        dims: Mapping[str, int] | None = None,
    ) -> None:
        self._infos, self._path, self._name, self._dims = infos, path, name, dims
        self._sized: Sized | None = (
            given if isinstance(given, Sized) and not isinstance(given, (str, Mapping)) else None
        )
        self.once = isinstance(given, Iterator)
        self._used = False
        self._read: Callable[[], Iterable[Feed]]
        if isinstance(given, (str, os.PathLike)):
            self._read = self._of_path(Path(given))
        elif isinstance(given, Mapping) or (len(infos) == 1 and _is_array(given)):
            whole = self._sized = list(self._of_arrays(self._named(given)))
            self._read = lambda: whole
        elif callable(given):
            self._read = lambda: self._checked(given())
        elif isinstance(given, Iterable):
            self._read = lambda: self._checked(given)
        else:
            raise OptionError(
                f"{name} must be a path, a mapping, an iterable or a callable, got {type(given).__name__}"
            )

    @property
    def rows(self) -> int | None:
        """How many there are, each of the batch counted as the first has it; None: only a pass would say it.

        Examples
        --------
        >>> import numpy as np
        >>> from modelopt_rs.onnx.run.inputs import InputInfo
        >>> infos = {"x": InputInfo("x", "float32", ("batch", 3))}
        >>> Samples([{"x": np.zeros((8, 3), np.float32)}] * 2, infos, "model.onnx").rows
        16
        """
        if self._sized is None:
            return None
        first = next(iter(self._read()), {})
        known = axes_of(self._infos, self._path)
        axes = batch_axes(self._infos, first, known)
        counted = [k for k, x in first.items() if x.ndim > 1 and (k in axes or known.get(k, {}).get(0) != "time")]
        return len(self._sized) * max((first[k].shape[axes.get(k, 0)] for k in counted), default=1)

    def __iter__(self) -> Iterator[Feed]:
        if self.once and self._used:
            raise OptionError(
                f"{self._name} must be a callable or a sequence, got an iterator; the samples are needed more than once"
            )
        self._used = True
        empty = True
        for feed in self._read():
            yield feed
            empty = False
        if empty:
            raise OptionError(f"{self._name} must have at least one sample, got none")

    def _of_path(self, given: Path) -> Callable[[], Iterable[Feed]]:
        if not given.is_dir():
            with of_file():
                whole = self._sized = list(self._of_arrays(self._read_file(given)))
            return lambda: whole
        # Systems leave hidden files beside what they copy, by the same suffix.
        files = sorted(
            file
            for file in given.iterdir()
            if file.suffix.lower() in (".npy", ".npz") and not file.name.startswith(".")
        )
        if not files:
            raise OptionError(f"{self._name}: {given} must have .npy or .npz files, has none")
        self._sized = files
        return lambda: map(self._of_file, files)

    def _of_file(self, file: Path) -> Feed:
        with of_file():
            return self._one(self._read_file(file), f"{self._name}: {file}")

    def _read_file(self, file: Path) -> Mapping[str, Array]:
        if file.suffix.lower() != ".npy":
            return read_npz(file)
        if len(self._infos) != 1:
            raise OptionError(f"{self._name}: {file} must be an .npz file: the model has {len(self._infos)} inputs")
        return dict.fromkeys(self._infos, read_npy(file))

    def _named(self, given: Any) -> Mapping[str, Any]:
        return given if isinstance(given, Mapping) else dict.fromkeys(self._infos, given)

    def _of_arrays(self, given: Mapping[str, Any]) -> Iterable[Feed]:
        """Cut what has several samples."""
        if any(isinstance(value, (list, tuple)) for value in given.values()):
            return self._of_lists(given)
        arrays = {name: array_of(value, f"{self._name}: {quote(name)}") for name, value in given.items()}
        known = {name: array for name, array in arrays.items() if name in self._infos}
        if known and all(array.ndim == len(self._infos[name].shape) + 1 for name, array in known.items()):
            return self._of_lists({name: list(array) for name, array in arrays.items()})
        arrays = checked(self._infos, arrays, self._name)
        dims, axes_known = self._dims, axes_of(self._infos, self._path)
        if dims is None:
            axes = batch_axes(self._infos, arrays, axes_known)
            dims = {f"{name}:{i}": 1 for name, i in axes.items() if not isinstance(self._infos[name].shape[i], int)}
        return cut(self._infos, arrays, dims, self._name, axes_known)

    def _of_lists(self, given: Mapping[str, Any]) -> Iterable[Feed]:
        lengths = {name: len(value) for name, value in given.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{quote(name)} {length}" for name, length in lengths.items())
            raise ValueError(f"{self._name}: the inputs must have equally many samples, got {shown}")
        count = next(iter(lengths.values()))
        return [
            self._one({name: value[i] for name, value in given.items()}, f"{self._name}: sample {i}")
            for i in range(count)
        ]

    def _checked(self, given: Any) -> Iterator[Feed]:
        for i, sample in enumerate(given):
            if not isinstance(sample, Mapping) and not (len(self._infos) == 1 and _is_array(sample)):
                raise TypeError(
                    f"{self._name}: sample {i} must be a mapping of arrays by input, got {type(sample).__name__}"
                )
            yield self._one(self._named(sample), f"{self._name}: sample {i}")

    def _one(self, arrays: Mapping[str, Array], where: str) -> Feed:
        """Check the arrays of one sample."""
        found = cut(self._infos, checked(self._infos, arrays, where), self._dims or {}, where)
        if len(found) != 1:
            raise ValueError(f"{where}: must have one batch, got {len(found)}")
        return found[0]


def _is_array(given: Any) -> bool:
    return hasattr(given, "__array__") or hasattr(given, "__array_interface__")


def check_feeds(model: ir.Model, path: str | os.PathLike[str], options: RunOptions) -> None:
    """Refuse options that `feeds` will refuse, before a model is made that is to be run on them.

    Parameters
    ----------
    model : onnx_ir.Model
    path : path
        The model, for errors.
    options : RunOptions

    Raises
    ------
    ValueError, TypeError
        As `feeds` does.
    """
    infos = graph_infos(model)
    if infos is None:
        return
    if options.inputs is not None:
        feeds(infos, path, options)
        return
    check_dims(infos, options.dims)
    if options.max_error is not None:
        known_of(infos, path)  # what can't be made up can't be measured


def feeds(infos: Mapping[str, InputInfo], path: str | os.PathLike[str], options: RunOptions) -> list[Feed]:
    """Return the inputs of every run, those given or generated ones.

    Parameters
    ----------
    infos : mapping
        The inputs of the model by name.
    path : path
        The model, for errors and for the lengths of its embedding tables.
    options : RunOptions

    Raises
    ------
    OptionError
        If `dims` has a name that the model's inputs don't have.
    ValueError, TypeError
        If an input is missing, not known, or of the wrong dtype or shape.
    UnsupportedError
        If an input can't be generated.
    """
    check_dims(infos, options.dims)
    if options.inputs is not None:
        return list(Samples(options.inputs, infos, path, "inputs", options.dims))
    known, rng = known_of(infos, path), np.random.default_rng(options.seed)
    return [generated(infos, options.dims, known, "usual", rng) for _ in range(options.samples)]
