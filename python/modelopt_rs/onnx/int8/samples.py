"""Calibration data: where samples come from, one at a time."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from modelopt_rs._core import FormatError
from modelopt_rs._types import Array
from modelopt_rs.containers.reading import open_regular
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.onnx.run.inputs import Feed, InputInfo, feeds, load_inputs, of_file
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.prune.naming import said_as

__all__ = ["Samples"]

Given: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any] | Callable[[], Any]"
Infos: TypeAlias = Mapping[str, InputInfo]


class Samples:
    """Samples for a model's inputs, as often as they are wanted.

    - A file (.npz) or a mapping has arrays named as the inputs. An array with one axis more than its input has a sample
      for each index of the first. Else its first axis is the batch: cut into samples of one row, or of as many as the
      model's batch has. A list has a sample in each element.
      All of them are in memory.
    - A directory has a sample in each .npz file, or, of a model with one input, .npy file, in the order of the names.
      One at a time is in memory.
    - A callable returns, and an iterable has, a mapping from input to array for each sample. Iterators are good for one
      pass only.

    Parameters
    ----------
    given : path, mapping, iterable or callable
        As above.
    infos : mapping
        The inputs of the model by name.
    path : path
        The model, for errors.

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
    >>> infos = {"x": InputInfo("x", "float32", (None, 3))}
    >>> [feed["x"].shape for feed in Samples({"x": np.zeros((2, 3), np.float32)}, infos, "model.onnx")]
    [(1, 3), (1, 3)]
    """

    def __init__(self, given: Given, infos: Infos, path: str | os.PathLike[str]) -> None:
        self._infos, self._path = infos, path
        self._once = isinstance(given, Iterator)
        self._used = False
        self._read: Callable[[], Iterable[Feed]]
        if isinstance(given, (str, os.PathLike)):
            self._read = self._of_path(Path(given))
        elif isinstance(given, Mapping):
            whole = self._of_arrays(given)
            self._read = lambda: whole
        elif callable(given):
            self._read = lambda: self._checked(given())
        elif isinstance(given, Iterable):
            self._read = lambda: self._checked(given)
        else:
            raise OptionError(
                f"calibrate must be a path, a mapping, an iterable or a callable, got {type(given).__name__}"
            )

    def __iter__(self) -> Iterator[Feed]:
        if self._once and self._used:
            raise OptionError(
                "calibrate must be a callable or a sequence, got an iterator; the samples are needed more than once"
            )
        self._used = True
        empty = True
        for feed in self._read():
            yield feed
            empty = False
        if empty:
            raise OptionError("calibrate must have at least one sample, got none")

    def _of_path(self, given: Path) -> Callable[[], Iterable[Feed]]:
        if not given.is_dir():
            with of_file():
                whole = self._of_arrays(load_inputs(given))
            return lambda: whole
        files = sorted(file for file in given.iterdir() if file.suffix in (".npy", ".npz"))
        if not files:
            raise OptionError(f"calibrate: {given} must have .npy or .npz files, has none")
        return lambda: map(self._of_file, files)

    def _of_file(self, file: Path) -> Feed:
        if file.suffix == ".npz":
            with of_file():
                return self._one(load_inputs(file), f"calibrate: {file}")
        if len(self._infos) != 1:
            raise OptionError(f"calibrate: {file} must be an .npz file: the model has {len(self._infos)} inputs")
        with os.fdopen(open_regular(file), "rb") as opened:
            try:
                array = np.load(opened, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise FormatError(f"{file}: not an .npy file of an array: {quote(str(error))}") from error
        with of_file():
            return self._one(dict.fromkeys(self._infos, array), f"calibrate: {file}")

    def _of_arrays(self, given: Mapping[str, Any]) -> Iterable[Feed]:
        """Cut what has several samples."""
        if any(isinstance(value, (list, tuple)) for value in given.values()):
            return self._of_lists(given)
        arrays = {name: np.asarray(value) for name, value in given.items()}
        known = {name: array for name, array in arrays.items() if name in self._infos}
        if known and all(array.ndim == len(self._infos[name].shape) + 1 for name, array in known.items()):
            return self._of_lists({name: list(array) for name, array in arrays.items()})
        dims = {
            f"{name}:0": 1
            for name in known
            if self._infos[name].shape and not isinstance(self._infos[name].shape[0], int)
        }
        with said_as({"inputs:": "calibrate:"}):
            return feeds(self._infos, self._path, RunOptions(inputs=arrays, dims=dims))

    def _of_lists(self, given: Mapping[str, Any]) -> Iterable[Feed]:
        lengths = {name: len(value) for name, value in given.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{quote(name)} {length}" for name, length in lengths.items())
            raise ValueError(f"calibrate: the inputs must have equally many samples, got {shown}")
        count = next(iter(lengths.values()))
        return [
            self._one({name: value[i] for name, value in given.items()}, f"calibrate: sample {i}") for i in range(count)
        ]

    def _checked(self, given: Any) -> Iterator[Feed]:
        for i, sample in enumerate(given):
            if not isinstance(sample, Mapping):
                raise TypeError(
                    f"calibrate: sample {i} must be a mapping of arrays by input, got {type(sample).__name__}"
                )
            yield self._one(sample, f"calibrate: sample {i}")

    def _one(self, arrays: Mapping[str, Array], where: str) -> Feed:
        """Check the arrays of one sample."""
        with said_as({"inputs:": f"{where}:"}):
            found = feeds(self._infos, self._path, RunOptions(inputs=arrays))
        if len(found) != 1:
            raise ValueError(f"{where}: must have one batch, got {len(found)}")
        return found[0]
