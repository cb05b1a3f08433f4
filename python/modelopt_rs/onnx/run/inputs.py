"""What models are run on: inputs that are given, checked against those of the model, or made up from its graph."""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._core import FormatError, UnsupportedError
from modelopt_rs._types import Array
from modelopt_rs.containers.onnx import OnnxSource
from modelopt_rs.containers.reading import open_regular
from modelopt_rs.errors import OptionError, listing, quote
from modelopt_rs.onnx.run.generate import generate
from modelopt_rs.onnx.run.sessions import Session
from modelopt_rs.onnx.run.vocabulary import vocabulary
from modelopt_rs.planning.run import RunOptions

__all__ = ["Feed", "InputInfo", "check_feeds", "feeds", "input_infos", "load_inputs", "of_file"]

Feed: TypeAlias = Mapping[str, Array]

# onnxruntime's names of types, and NumPy's.
FED: Final[dict[str, str]] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input of a model: its dtype as NumPy spells it, its axes as lengths, names, or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def input_infos(session: Session, path: str | os.PathLike[str]) -> dict[str, InputInfo]:
    """Return the inputs that a model must be given, by name.

    Raises
    ------
    UnsupportedError
        If one is no tensor, or of a dtype that NumPy lacks.
    """
    infos = {}
    for node in session.get_inputs():
        if node.type not in FED:
            raise UnsupportedError(
                f"{path}: input {quote(node.name)} is of type {quote(node.type)}, which can't be fed"
            )
        shape = tuple(axis if isinstance(axis, int | str) and axis != "" else None for axis in node.shape)
        infos[node.name] = InputInfo(node.name, FED[node.type], shape)
    return infos


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
    infos = {}
    for value in (value for value in model.graph.inputs if not value.is_initializer()):
        if value.dtype is None or value.shape is None:
            return  # onnxruntime knows more of it, or refuses it
        dtype = "str" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
        if dtype not in FED.values():
            return
        shape = tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)
        infos[str(value.name)] = InputInfo(str(value.name), dtype, shape)
    feeds(infos, path, options)


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
    _check_dims(infos, options.dims)
    if options.inputs is not None:
        if isinstance(options.inputs, Mapping):
            return _cut(infos, _checked(infos, options.inputs), options.dims)
        with of_file():
            return _cut(infos, _checked(infos, load_inputs(options.inputs)), options.dims)
    strings = next((info for info in infos.values() if info.dtype == "str"), None)
    if strings is not None:
        raise UnsupportedError(
            f"{path}: input {quote(strings.name)} has strings, which can't be generated; give inputs"
        )
    ids = any(info.dtype.startswith(("int", "uint")) for info in infos.values())
    limits = _limits(path) if ids else {}
    rng = np.random.default_rng(options.seed)
    return [
        {name: generate(name, info.dtype, info.shape, options.dims, limits, rng) for name, info in infos.items()}
        for _ in range(options.samples)
    ]


@contextmanager
def of_file() -> Iterator[None]:
    """Let a wrong dtype be a wrong value: it is the file's, nobody has passed an array."""
    try:
        yield
    except TypeError as e:
        raise ValueError(str(e)) from e


def _limits(path: str | os.PathLike[str]) -> dict[str, int]:
    # Shapes alone are looked at; whose the data may be has been asked when the model was opened.
    with OnnxSource(path, allow_hard_links=True, allow_symlinks_under="/") as source:
        return vocabulary(source.model)


def load_inputs(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read the arrays of an .npz file by name; never runs what a file may have pickled.

    Parameters
    ----------
    path : path

    Raises
    ------
    FormatError
        If it is no such file.
    OSError
        If it can't be opened.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from modelopt_rs.onnx.run.inputs import load_inputs
    >>> with tempfile.TemporaryDirectory() as d:
    ...     np.savez(f"{d}/data.npz", x=np.zeros((2, 3)))
    ...     load_inputs(f"{d}/data.npz")["x"].shape
    (2, 3)
    """
    with os.fdopen(open_regular(path), "rb") as file:
        # Else NumPy would take it for something pickled, and say so.
        if file.peek(2)[:2] != b"PK":
            raise FormatError(f"{os.fspath(path)}: not an .npz file of arrays, such as np.savez writes")
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zipfile.LargeZipFile) as e:
            raise FormatError(f"{os.fspath(path)}: not an .npz file of arrays: {quote(str(e))}") from e


def _check_dims(infos: Mapping[str, InputInfo], dims: Mapping[str, int]) -> None:
    known = {axis for info in infos.values() for axis in info.shape if isinstance(axis, str)}
    places = {f"{info.name}:{i}" for info in infos.values() for i in range(len(info.shape))}
    for name in dims:
        if name not in known and name not in places:
            has = ", ".join(quote(axis) for axis in sorted(known)) or "none with a name"
            raise OptionError(f"dims: no input has an axis {quote(name)}; open axes: {has} (or INPUT:AXIS)")


def _checked(infos: Mapping[str, InputInfo], given: Mapping[str, Any]) -> dict[str, Array]:
    """Return the given inputs as arrays; dtypes and ranks are right."""
    missing, unknown = [n for n in infos if n not in given], [n for n in given if n not in infos]
    if missing or unknown:
        problems = [f"{quote(name)} is missing" for name in missing] + [f"{quote(name)} is none" for name in unknown]
        raise ValueError(
            f"inputs: must have the model's inputs {', '.join(quote(name) for name in infos)}: {listing(problems)}"
        )
    arrays = {}
    for name, info in infos.items():
        array = np.asarray(given[name])
        dtype = "str" if array.dtype.kind in "UO" else array.dtype.name
        if dtype != info.dtype:
            fix = "" if info.dtype == "str" else f"; convert it with .astype(np.{info.dtype})"
            raise TypeError(f"inputs: {quote(name)} must be of dtype {info.dtype}, got {array.dtype}{fix}")
        if array.ndim != len(info.shape):
            raise ValueError(
                f"inputs: {quote(name)} must have {len(info.shape)} axes {_axes(info)}, got shape {list(array.shape)}"
            )
        arrays[name] = np.ascontiguousarray(array) if array.ndim else array
    return arrays


def _axes(info: InputInfo) -> str:
    return "[" + ", ".join("?" if axis is None else quote(axis) if isinstance(axis, str) else str(axis)
                           for axis in info.shape) + "]"  # fmt: skip


def _cut(infos: Mapping[str, InputInfo], arrays: Mapping[str, Array], dims: Mapping[str, int]) -> list[Feed]:
    """Cut the given inputs along their first axis into runs of the length that the model has there, or `dims` says."""
    runs: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for name, info in infos.items():
        array = arrays[name]
        want: Sequence[int | None] = [_length(info, i, dims) for i in range(array.ndim)]
        runs[name], lengths[name] = 1, array.shape[0] if array.ndim else 0
        for i, (length, got) in enumerate(zip(want, array.shape, strict=True)):
            if length is None or got == length:
                continue
            # An open axis may have a shorter run at the end.
            if i == 0 and length and got > length and (got % length == 0 or not isinstance(info.shape[0], int)):
                runs[name], lengths[name] = -(-got // length), length
                continue
            multiple = " or a multiple" if i == 0 else ""
            raise ValueError(
                f"inputs: axis {i} of {quote(name)} must be {length} long{multiple}, got shape {list(array.shape)}"
            )
    count = max(runs.values(), default=1)
    for name, n in runs.items():
        if n not in (1, count):
            raise ValueError(f"inputs: {quote(name)} is enough for {n} runs, others for {count}")
    return [
        {
            name: array if runs[name] == 1 else array[i * lengths[name] : (i + 1) * lengths[name]]
            for name, array in arrays.items()
        }
        for i in range(count)
    ]


def _length(info: InputInfo, i: int, dims: Mapping[str, int]) -> int | None:
    axis = info.shape[i]
    if isinstance(axis, int):
        return axis
    return dims.get(f"{info.name}:{i}", dims.get(axis) if axis is not None else None)
