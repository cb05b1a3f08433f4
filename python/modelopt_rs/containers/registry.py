"""The containers, and which of them a path is: the one place that chooses."""

import os
from pathlib import Path
from typing import Any, Final

from modelopt_rs.arguments import shown
from modelopt_rs.containers.checkpoint import INDEX_SUFFIX, no_checkpoint
from modelopt_rs.containers.checkpoint_sink import CHECKPOINT
from modelopt_rs.containers.container import Access, Container, Output
from modelopt_rs.containers.foreign import FOREIGN, LOOKED_AT, foreign_file
from modelopt_rs.containers.keras_file import KERAS
from modelopt_rs.containers.onnx_file import ONNX
from modelopt_rs.containers.reading import beginning
from modelopt_rs.containers.safetensors_sink import SAFETENSORS
from modelopt_rs.containers.torch_file import TORCH
from modelopt_rs.errors import FormatError, OptionError, UnsupportedError, quote
from modelopt_rs.stream.model import Sink, Source

__all__ = ["CONTAINERS", "check_suffix", "container_at", "create", "open_source"]

CONTAINERS: Final[tuple[Container, ...]] = (CHECKPOINT, SAFETENSORS, KERAS, TORCH, ONNX)
"""All kinds of model files; the first that knows a path has it."""

SUFFIXES: Final = dict.fromkeys(FOREIGN, "none that is known") | {
    suffix: each.name for each in CONTAINERS for suffix in each.suffixes
}
"""Which container names of files promise."""

_BEGIN = 9  # bytes that tell them apart


def container_at(path: Path) -> Container:
    """Return the kind of the model file at a path.

    Raises
    ------
    FormatError
        If it is of no known kind; UnsupportedError where it is known as something that isn't read.
    ValueError
        If it is neither a regular file nor a directory.
    OSError
        If it can't be opened.
    """
    if CHECKPOINT.sniff(path, b""):
        return CHECKPOINT
    if path.is_dir():
        raise no_checkpoint(path, _models_in(path))
    begin = beginning(path, LOOKED_AT)
    # By what is in it, as files in a hub's cache have no suffix and others a wrong one; else by its name.
    known = [each for each in CONTAINERS if each.sniff(path, begin[:_BEGIN])] or [
        each for each in (SAFETENSORS, ONNX) if path.suffix in each.suffixes
    ]
    if (foreign := foreign_file(path, begin, bool(known))) is not None:
        raise UnsupportedError(f"{path}: is {foreign}")
    if known:
        return known[0]
    if not begin:
        raise FormatError(f"{path}: the file is empty")
    raise FormatError(
        f"{path}: no model that is known: those are safetensors files, Hugging Face directories (with "
        f"model.safetensors, model{INDEX_SUFFIX}, pytorch_model.bin or its index), files of torch.save and Keras, "
        "and ONNX models"
    )


def _models_in(path: Path) -> list[str]:
    """Return what looks like a model in a directory and its folders: directories, as in a hub's cache, else files."""
    folders = [each for depth in ("*", "*/*") for each in sorted(path.glob(depth)) if CHECKPOINT.sniff(each, b"")]
    if folders := [each for each in folders if each.is_dir()]:
        return [quote(str(each.relative_to(path))) for each in folders]
    read = {suffix for each in CONTAINERS for suffix in each.suffixes}
    found = [
        each
        for depth in ("*", "*/*")
        for each in sorted(path.glob(depth))
        if each.suffix.lower() in read and each.is_file()
    ]
    return [quote(str(each.relative_to(path))) for each in found]


def _named(function: str, path: Any) -> Path:
    """Return what a text or path names; what the system can't be asked for is refused here, by name."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{function}: path must be a path, got {shown(path)}")
    text = os.fspath(path)
    if not text:
        raise ValueError(f"{function}: path must name a file or a directory, got ''")
    try:
        has_null = 0 in os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{function}: path must be text that files can be named by, got {shown(text)}") from None
    if has_null:
        raise ValueError(f"{function}: path must have no null character, got {shown(text)}")
    return Path(text)


def open_source(path: str | os.PathLike[str], access: Access | None = None) -> Source:
    """Open a model for reading, as it is stored."""
    where = _named("open", path)
    if access is not None and (beneath := access.allow_symlinks_under) is not None and not Path(beneath).is_dir():
        raise OptionError(f"allow_symlinks_under must be a directory, got {quote(os.fspath(beneath))}")
    return container_at(where).open(where, access or Access())


def check_suffix(path: str | os.PathLike[str], source: Source) -> None:
    """Refuse a name that promises another container than the one that is written of a source.

    Raises
    ------
    OptionError
        If it has the suffix of such a file.
    """
    written = next(each.written_as for each in CONTAINERS if each.name == source.container)
    suffix = _named("create", path).suffix
    if SUFFIXES.get(suffix.lower(), written.lower()) != written.lower():
        made = f"what is made of {source.path.name} is written as {written}"
        raise OptionError(f"create: path must not end in {suffix}, got {os.fspath(path)}; {made}")


def create(path: str | os.PathLike[str], output: Output, container: str | None = None) -> Sink:
    """Begin to write a model.

    Parameters
    ----------
    path : path
        The destination.
    output : Output
        What is written.
    container : str, optional
        The name of the container; by default that of the model that it comes of.

    Raises
    ------
    FileExistsError
        If there is something at `path` that may not be replaced.
    UnsupportedError
        If the container can't hold such a model.
    ValueError
        If the path promises another container than the one that is written.
    """
    _named("create", path)
    check_suffix(path, output.source)
    name = output.source.container if container is None else container
    return next(each for each in CONTAINERS if each.name == name).create(path, output)
