"""What models are run on: inputs that are given, checked against those of the model, or made up from its graph."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._core import UnsupportedError
from modelopt_rs._types import Array
from modelopt_rs.arrays import as_array
from modelopt_rs.containers.onnx import OnnxSource
from modelopt_rs.errors import OptionError, listing, quote
from modelopt_rs.onnx.run.generate import VALUES, generate, is_batch, is_sequence
from modelopt_rs.onnx.run.recurrent_axes import Meaning, recurrent_axes
from modelopt_rs.onnx.run.sessions import Feed, Session
from modelopt_rs.onnx.run.vocabulary import Known, known_values

__all__ = [
    "Feed",
    "InputInfo",
    "array_of",
    "axes_of",
    "batch_axes",
    "check_dims",
    "checked",
    "cut",
    "generated",
    "graph_infos",
    "input_infos",
    "known_of",
    "of_file",
]

Axes: TypeAlias = Mapping[str, Mapping[int, Meaning]]

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
    """One input of a model: its dtype as NumPy spells it, its axes as lengths, names, or None.

    Without `ranked` nobody knows how many axes it has.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    ranked: bool = True


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
        infos[node.name] = InputInfo(node.name, FED[node.type], tuple(map(_axis, node.shape)))
    if any(not info.shape for info in infos.values()):  # of a number, or of what the model doesn't say
        with OnnxSource(path, allow_hard_links=True, allow_symlinks_under="/") as source:
            unsaid = {str(value.name) for value in source.model.graph.inputs if value.shape is None}
        infos |= {name: replace(infos[name], ranked=False) for name in infos.keys() & unsaid}
    return infos


def _axis(axis: int | str | None) -> int | str | None:
    """Return the length or the name of an axis; some exporters call all that are open "?", or -1."""
    if isinstance(axis, int):
        return axis if axis >= 0 else None
    return axis if axis not in ("", "?") else None


def graph_infos(model: ir.Model) -> dict[str, InputInfo] | None:
    """Return the same as `input_infos` of a graph, or None where onnxruntime knows more of it, or refuses it."""
    infos = {}
    for value in (value for value in model.graph.inputs if not value.is_initializer()):
        if value.dtype is None or value.shape is None:
            return None
        dtype = "str" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
        if dtype not in FED.values():
            return None
        shape = tuple(_axis(axis if isinstance(axis, int) else axis.value) for axis in value.shape)
        infos[str(value.name)] = InputInfo(str(value.name), dtype, shape)
    return infos


def generated(
    infos: Mapping[str, InputInfo],
    dims: Mapping[str, int],
    known: Known,
    values: str,
    rng: np.random.Generator,
) -> Feed:
    """Make up the inputs of one run.

    Parameters
    ----------
    infos : mapping
        The inputs of the model.
    dims : mapping
        Lengths of open axes.
    known : Known
        What the graph says of values.
    values : str
        As for `generate`; or "choice 0", "choice 1" ...: which of the numbers that it is compared with an input has
        (else it has another one).
    rng : Generator
    """
    kind = values if values in VALUES else "usual"
    kinds = {name: "image" if kind == "usual" and name in known.pixels else kind for name in infos}
    feed = {name: generate(name, i.dtype, i.shape, dims, known.limits, rng, kinds[name]) for name, i in infos.items()}
    for name, numbers in known.equal.items():
        if name in feed and feed[name].dtype.kind in "iu":
            feed[name] = np.full_like(feed[name], _compared(numbers, values))
    for name, info in infos.items():
        # How long a sequence is: as long as it is.
        if feed[name].dtype.kind in "iu" and feed[name].ndim <= 1 and "len" in name.lower() and kind != "zero":
            longest = [a.shape[_time(infos[n])] for n, a in feed.items() if a.ndim > 1]
            if longest and info.dtype != "bool":
                feed[name] = np.full_like(feed[name], max(longest))
    return feed


def _compared(numbers: Sequence[int], values: str) -> int:
    """Return one of the numbers that an input is compared with, or another that may be meant: of a rate the half."""
    if values.startswith("choice "):
        return numbers[int(values.removeprefix("choice ")) % len(numbers)]
    half = numbers[0] // 2
    return half if half not in numbers else max(numbers) + 1


def _time(info: InputInfo) -> int:
    """Return which axis of an input is the longest in time: the one that is called so, or the second."""
    return next((i for i, axis in enumerate(info.shape) if is_sequence(axis)), 1)


@contextmanager
def of_file() -> Iterator[None]:
    """Let a wrong dtype be a wrong value: it is the file's, nobody has passed an array."""
    try:
        yield
    except TypeError as e:
        raise ValueError(str(e)) from e


def known_of(infos: Mapping[str, InputInfo], path: str | os.PathLike[str]) -> Known:
    """Return what a model's graph says of the values of its inputs.

    Parameters
    ----------
    infos : mapping
        The inputs of the model.
    path : path

    Raises
    ------
    UnsupportedError
        If an input has strings, which can't be made up.
    """
    strings = next((info for info in infos.values() if info.dtype == "str"), None)
    if strings is not None:
        raise UnsupportedError(
            f"{path}: input {quote(strings.name)} has strings, which can't be generated; give inputs"
        )
    # Shapes and single numbers are looked at; whose the data may be has been asked when the model was opened.
    with OnnxSource(path, allow_hard_links=True, allow_symlinks_under="/") as source:
        return known_values(source.model)


def axes_of(infos: Mapping[str, InputInfo], path: str | os.PathLike[str]) -> Axes:
    """Return what axes of a model's inputs are to its recurrent nodes; its graph is read where names don't say it.

    Parameters
    ----------
    infos : mapping
        The inputs of the model.
    path : path
    """
    if all(len(info.shape) < 2 or any(map(is_batch, info.shape)) for info in infos.values()):
        return {}
    # Whose the data may be has been asked when the model was opened: no data are looked at.
    with OnnxSource(path, allow_hard_links=True, allow_symlinks_under="/") as source:
        return recurrent_axes(source.model)


def array_of(value: Any, what: str) -> Array:
    """Return what is given as an array, which may be one of any library.

    Raises
    ------
    TypeError, ValueError
        If it is none, or not on the CPU, or (torch's) requires a gradient.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.inputs import array_of
    >>> array_of([[1, 2], [3]], "inputs: 'x'")
    Traceback (most recent call last):
    ValueError: inputs: 'x' must be an array, got list: the lengths of its parts differ
    """
    if hasattr(value, "__dlpack__"):
        return as_array(value, what)
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as why:
        words = "the lengths of its parts differ" if "inhomogeneous" in str(why) else str(why)
        raise ValueError(f"{what} must be an array, got {type(value).__name__}: {words}") from None


def check_dims(infos: Mapping[str, InputInfo], dims: Mapping[str, int]) -> None:
    """Refuse lengths of axes that the inputs don't have.

    Raises
    ------
    OptionError
        It names those that they have.
    """
    known = {axis for info in infos.values() for axis in info.shape if isinstance(axis, str)}
    places = {f"{info.name}:{i}" for info in infos.values() for i in range(len(info.shape))}
    for name in dims:
        if name not in known and name not in places:
            has = ", ".join(quote(axis) for axis in sorted(known)) or "none with a name"
            raise OptionError(f"dims: no input has an axis {quote(name)}; open axes: {has} (or INPUT:AXIS)")


def checked(infos: Mapping[str, InputInfo], given: Mapping[str, Any], where: str) -> dict[str, Array]:
    """Return the given inputs as arrays; dtypes and ranks are right.

    Parameters
    ----------
    infos : mapping
        The inputs of the model.
    given : mapping
        What is given, by input.
    where : str
        What errors begin with.

    Raises
    ------
    ValueError, TypeError
        If an input is missing, not known, or of the wrong dtype or rank.
    """
    missing, unknown = [n for n in infos if n not in given], [n for n in given if n not in infos]
    if missing or unknown:
        problems = [f"{quote(name)} is missing" for name in missing] + [f"{quote(name)} is none" for name in unknown]
        raise ValueError(
            f"{where}: must have the model's inputs {', '.join(quote(name) for name in infos)}: {listing(problems)}"
        )
    arrays = {}
    for name, info in infos.items():
        array = array_of(given[name], f"{where}: {quote(name)}")
        if isinstance(given[name], list | tuple | int | float):  # which has no dtype of its own
            array = _in_dtype(array, info.dtype)
        dtype = "str" if array.dtype.kind in "UO" else array.dtype.name
        if dtype != info.dtype:
            fix = "" if info.dtype == "str" else f"; convert it with .astype(np.{info.dtype})"
            raise TypeError(f"{where}: {quote(name)} must be of dtype {info.dtype}, got {array.dtype}{fix}")
        if info.ranked and array.ndim != len(info.shape):
            raise ValueError(
                f"{where}: {quote(name)} must have {len(info.shape)} axes {_axes(info)}, got shape {list(array.shape)}"
            )
        arrays[name] = np.ascontiguousarray(array) if array.ndim else array
    return arrays


def _in_dtype(array: Array, dtype: str) -> Array:
    """Return numbers of Python in the dtype of an input, if none is changed but by rounding."""
    if dtype == "str" or array.dtype.kind not in "bif" or not np.can_cast(array.dtype, dtype, "same_kind"):
        return array
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    return made if made.dtype.kind == "f" or np.array_equal(made, array) else array


def _axes(info: InputInfo) -> str:
    return "[" + ", ".join("?" if axis is None else quote(axis) if isinstance(axis, str) else str(axis)
                           for axis in info.shape) + "]"  # fmt: skip


def batch_axes(
    infos: Mapping[str, InputInfo], arrays: Mapping[str, Array], known: Axes = MappingProxyType({})
) -> dict[str, int]:
    """Return which axis of an input is the batch, of those whose batch is open.

    The one that is called a batch; else that of a recurrent layer or a loop, where that is known; else the first, if it
    is open, not called a sequence and not known to be time; else the one that has the name, or without a name the
    length, of the batch of another input (as that of the states of an LSTM).

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.run.inputs import InputInfo, batch_axes
    >>> infos = {"x": InputInfo("x", "float32", ("N", 5)), "h": InputInfo("h", "float32", (2, "N", 8))}
    >>> batch_axes(infos, {"x": np.zeros((4, 5)), "h": np.zeros((2, 4, 8))})
    {'x': 0, 'h': 1}
    """
    found = {}
    for name, info in infos.items():
        called = next((i for i, axis in enumerate(info.shape) if is_batch(axis)), None)
        means = known.get(name, {})
        if called is None and "time" in means.values() and ("batch" in means.values() or means.get(0) == "time"):
            called = next((i for i, each in means.items() if each == "batch"), None)
            called = None if called is None or isinstance(info.shape[called], int) else called
        elif called is None and info.shape and not isinstance(info.shape[0], int) and not is_sequence(info.shape[0]):
            called = 0
        if called is not None:
            found[name] = called
    names = {infos[name].shape[i] for name, i in found.items()}
    counts = {arrays[name].shape[i] for name, i in found.items()}
    for name, info in infos.items():
        if name in found:
            continue
        for i, axis in enumerate(info.shape):
            alike = axis in names if axis is not None else counts == {arrays[name].shape[i]}
            if not isinstance(axis, int) and alike:
                found[name] = i
                break
    return found


def cut(
    infos: Mapping[str, InputInfo],
    arrays: Mapping[str, Array],
    dims: Mapping[str, int],
    where: str,
    known: Axes = MappingProxyType({}),
) -> list[Feed]:
    """Cut the given inputs along their batch into runs of the length that the model has there, or `dims` says.

    Parameters
    ----------
    infos : mapping
        The inputs of the model.
    arrays : mapping
        As `checked` returns them.
    dims : mapping
        Lengths of axes by name or place.
    where : str
        What errors begin with.
    known : mapping
        What axes of inputs are to recurrent nodes, as `recurrent_axes` returns it.

    Raises
    ------
    ValueError
        If an axis that is no batch has another length, or inputs are enough for other numbers of runs.
    """
    batch = batch_axes(infos, arrays, known)
    cuts: dict[str, tuple[int, int, int]] = {}  # of each: axis, length of a run, number of runs
    for name, info in infos.items():
        array, may = arrays[name], batch.get(name, _batch_of(known.get(name, {})))
        cuts[name] = (0, 0, 1)
        for i, got in enumerate(array.shape if info.ranked else ()):
            length = _length(info, i, dims)
            if length is None or got == length:
                continue
            # An open axis may have a shorter run at the end.
            whole = bool(length) and got > length and (got % length == 0 or not isinstance(info.shape[i], int))
            others = {runs for _, _, runs in cuts.values() if runs > 1}
            if whole and cuts[name][2] == 1 and (i == may or -(-got // length) in others):
                cuts[name] = (i, length, -(-got // length))
                continue
            multiple = " or a multiple" if i == may else ""
            raise ValueError(
                f"{where}: axis {i} of {quote(name)} must be {length} long{multiple}, got shape {list(array.shape)}"
            )
    count = max((runs for _, _, runs in cuts.values()), default=1)
    for name, (_, _, runs) in cuts.items():
        if runs not in (1, count):
            fix = "give each sample in a file of its own, in a directory, or lists of them"
            raise ValueError(f"{where}: {quote(name)} is enough for {runs} runs, others for {count}; {fix}")
    return [{name: _part(array, *cuts[name], i) for name, array in arrays.items()} for i in range(count)]


def _batch_of(means: Mapping[int, Meaning]) -> int:
    """Return which axis may be cut, where the batch is not open: the first, if it is not known to be time."""
    if "time" not in means.values():
        return 0
    return next((i for i, each in means.items() if each == "batch"), -1 if means.get(0) == "time" else 0)


def _part(array: Array, axis: int, length: int, runs: int, i: int) -> Array:
    if runs == 1:
        return array
    part = array[(slice(None),) * axis + (slice(i * length, (i + 1) * length),)]
    return np.ascontiguousarray(part)


def _length(info: InputInfo, i: int, dims: Mapping[str, int]) -> int | None:
    axis = info.shape[i]
    if isinstance(axis, int):
        return axis
    return dims.get(f"{info.name}:{i}", dims.get(axis) if axis is not None else None)
