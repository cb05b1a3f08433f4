"""What a container is: how a kind of model file is recognized, opened and made."""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelopt_rs.containers.placing import exists
from modelopt_rs.containers.reading import MAX_HEADER, MAX_TENSORS
from modelopt_rs.stream.model import Sink, Source, TensorInfo

__all__ = ["Access", "Container", "Output", "check_place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a file may ask for when it is opened.

    Attributes
    ----------
    max_header : int
        The largest header to accept, in bytes.
    max_tensors : int
        The most tensors to accept.
    allow_hard_links : bool
        Whether files of external data may have a second name.
    allow_symlinks_under : path or None
        Files of external data may be symbolic links to files beneath this directory.
    """

    max_header: int = MAX_HEADER
    max_tensors: int = MAX_TENSORS
    allow_hard_links: bool = False
    allow_symlinks_under: str | os.PathLike[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A model that is about to be written.

    Attributes
    ----------
    source : Source
        The model that it comes of, as it is stored.
    tensors : sequence of TensorInfo
        All tensors to write.
    origins : mapping of str to str
        The tensor of the source that a tensor comes of; one that isn't in it has its own name there.
    metadata : mapping of str to str
        The file's own metadata.
    config : mapping or None
        The new `config.json`, for a container that has one; None: there is none.
    overwrite : bool
        Whether what is at the path may be replaced.
    durable : bool
        Whether `commit` waits until everything is on the disk.
    """

    source: Source
    tensors: Sequence[TensorInfo]
    origins: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    overwrite: bool = False
    durable: bool = True


class Container(Protocol):
    """One kind of model file. It stands in one module, and in a line of the registry.

    Attributes
    ----------
    name : str
        As users name it.
    """

    name: str

    @property
    def suffixes(self) -> Sequence[str]:
        """What names of its files end in."""

    @property
    def written_as(self) -> str:
        """What is made of it, in words: the name of a container in any case, or a directory."""

    def sniff(self, path: Path, begin: bytes) -> bool:
        """Whether a path is of this kind; `begin` has the first bytes of a file, none of a directory."""

    def open(self, path: Path, access: Access) -> Source:
        """Open it for reading."""

    def create(self, path: str | os.PathLike[str], output: Output) -> Sink:
        """Begin to write one; UnsupportedError where the container can't hold such a model."""


def check_place(path: str | os.PathLike[str], overwrite: bool, *, directory: bool = False) -> None:
    """Refuse to write a file, or a directory, where there is one: before long work, and again when it is opened.

    Raises
    ------
    FileExistsError
        If there is something at `path`, and `overwrite` is false.
    FileNotFoundError
        If it would stand in no directory.
    IsADirectoryError
        If a file would stand where there is a directory: replacing that was not meant.
    """
    if not directory and Path(path).is_dir():
        what = "is a directory, and a file is to be written: name one in it"
        raise IsADirectoryError(errno.EISDIR, what, str(path))
    if not overwrite and os.path.lexists(path):
        raise exists(Path(path))
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
