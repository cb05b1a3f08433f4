"""Hugging Face checkpoints: write a directory like the source's, with other tensors in its shards."""

import errno
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.containers.atomic import AtomicFile, check_free, is_temporary, resolve
from modelopt_rs.containers.atomic_directory import AtomicDirectory
from modelopt_rs.containers.checkpoint import CheckpointSource, is_checkpoint
from modelopt_rs.containers.container import Access, Output
from modelopt_rs.containers.reading import call, open_regular, read_into
from modelopt_rs.containers.safetensors_sink import SafetensorsSink
from modelopt_rs.errors import FormatError, OptionError, UnsupportedError, listing, quote
from modelopt_rs.stream.model import Sink, TensorInfo

__all__ = ["CHECKPOINT", "CheckpointSink", "refuse_same"]

_COPY_BYTES = 4 << 20
_ANY_HEADER = 1 << 30  # the shards' headers were checked as they were written; an index may be larger


class CheckpointSink(Sink):
    """A Hugging Face directory that is being written beside its destination; it shows there at `commit`.

    The shards keep their names, but those of torch (`pytorch_model.bin`) get safetensors' (`model.safetensors`), and
    what comes of a tensor stays in the tensor's shard. Every other file of the source's directory is copied as it is,
    subdirectories too.

    Parameters
    ----------
    source : CheckpointSource
        The checkpoint to follow.
    path : str or os.PathLike
        The destination: a name that is free, or an empty directory.
    tensors : sequence of TensorInfo
        All tensors to write.
    origins : mapping of str to str
        The tensor of the source that a tensor comes of; one that isn't in it has its own name there.
    metadata : mapping of str to str, optional
        Goes into each shard, in place of the shard's own.
    config : mapping, optional
        The new `config.json`; without it the old one is copied.
    durable : bool
        Whether `commit` waits until everything is on the disk.
    overwrite : bool
        Whether a directory that isn't empty may be replaced.

    Raises
    ------
    OptionError
        If the destination is the source's directory, in it or around it.
    ValueError
        If a tensor comes of nowhere.
    FileExistsError
        If the destination is a directory with something in it, and `overwrite` is false.
    OSError
        ENOSPC if it doesn't fit the free space, and whatever the file system says.
    """

    def __init__(
        self,
        source: CheckpointSource,
        path: str | os.PathLike[str],
        tensors: Sequence[TensorInfo],
        origins: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        durable: bool = True,
        overwrite: bool = False,
    ) -> None:
        self._source = source
        self._durable = durable
        self._config = None if config is None else _json_text(config)
        self._tensors = tuple(tensors)
        self.path = resolve(path)
        refuse_same(source.path, self.path)
        self._shard_of = self._assign(origins or {})
        self._copied = self._files_to_copy()
        copied = sum((source.path / name).stat().st_size for name in self._copied)
        check_free(self.path, copied + sum(info.nbytes for info in self._tensors))
        with ExitStack() as stack:
            self._directory = stack.enter_context(AtomicDirectory(path, overwrite=overwrite, durable=durable))
            self._sinks = {shard: stack.enter_context(self._open_shard(shard, metadata)) for shard in source.shards}
            self._opened = stack.pop_all()

    def _assign(self, origins: Mapping[str, str]) -> dict[str, str]:
        names = [info.name for info in self._tensors]
        if len(set(names)) != len(names):
            raise ValueError("CheckpointSink: two tensors have one name")
        lost = [quote(name) for name in names if origins.get(name, name) not in self._source.tensors]
        if lost:
            raise ValueError(f"CheckpointSink: no tensor of the source is the origin of {listing(lost)}")
        return {name: self._source.shard_of(origins.get(name, name)) for name in names}

    def _open_shard(self, shard: str, metadata: Mapping[str, str] | None) -> SafetensorsSink:
        name = self._source.written_as(shard)
        mine = [info for info in self._tensors if self._shard_of[info.name] == shard]
        metadata = self._source.shards[shard].metadata if metadata is None else metadata
        path, shown = self._directory.temporary / name, self._directory.shown(name)
        return SafetensorsSink(path, mine, metadata, durable=self._durable, shown=shown)

    def _files_to_copy(self) -> list[Path]:
        """List what isn't written anew, relative to the source; ValueError if something can't be copied."""
        read = {*self._source.shards, self._source.index_name or ""}
        written = read | {self._source.written_as(name) for name in read}
        if self._config is not None:
            written.add("config.json")
        files = []
        for folder, folders, names in os.walk(self._source.path, onerror=_raise):
            folders.sort()
            here = Path(folder)
            for name in folders:
                if (here / name).is_symlink():
                    raise ValueError(f"{here / name}: links to a directory, which is not copied")
            at_top = here == self._source.path
            for name in sorted(names):
                if is_temporary(name) or (at_top and name in written):
                    continue
                if not stat.S_ISREG((here / name).stat().st_mode):
                    raise ValueError(f"{here / name}: not a regular file")
                files.append((here / name).relative_to(self._source.path))
        return files

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The tensors that must be written before `commit`."""
        return self._tensors

    def write_at(self, name: str, row: int, array: Array) -> None:
        """Write rows of one tensor from `row` on. They may come in any order, each once."""
        self._sink_of(name).write_at(name, row, array)

    def next_row(self, name: str) -> int:
        """Return the first row of a tensor that is not written."""
        return self._sink_of(name).next_row(name)

    def _sink_of(self, name: str) -> SafetensorsSink:
        if name not in self._shard_of:
            raise ValueError(f"{self.path}: no tensor {quote(name)} was announced")
        return self._sinks[self._shard_of[name]]

    def commit(self, *, verify: bool = True) -> None:
        """Check that all is written, copy the other files, and put the directory in place at once.

        Parameters
        ----------
        verify : bool
            Whether to read each shard back and compare it, and then the directory as a whole.

        Raises
        ------
        ValueError
            If rows are missing.
        OSError
            EIO if what is read back isn't what was written, and whatever the file system says.
        """
        try:
            for sink in self._sinks.values():
                sink.commit(verify=verify)
            if self._source.index_name is not None:
                self._write(self._source.written_as(self._source.index_name), self._index_text())
            if self._config is not None:
                self._write("config.json", self._config)
            for name in self._copied:
                self._copy(name)
            if verify:
                self._verify()
            self._directory.commit()
        except BaseException:
            self.abort()
            raise

    def _index_text(self) -> bytes:
        total = sum(info.nbytes for info in self._tensors)
        metadata = {**self._source.index_metadata, "total_size": total}
        weight_map = {name: self._source.written_as(shard) for name, shard in sorted(self._shard_of.items())}
        return _json_text({"metadata": metadata, "weight_map": weight_map})

    def _verify(self) -> None:
        """Read the directory back; what is wrong with it names the destination."""
        temporary, index = self._directory.temporary, self._source.index_name
        written = temporary / self._source.written_as(index) if index else temporary
        try:
            CheckpointSource(written, max_header=_ANY_HEADER, max_tensors=len(self._tensors)).close()
        except (FormatError, OSError) as e:
            raise OSError(errno.EIO, "what was written can't be read back", str(self.path)) from e

    def _open_file(self, name: str | Path, nbytes: int) -> AtomicFile:
        path, shown = self._directory.temporary / name, self._directory.shown(name)
        call(shown, lambda: path.parent.mkdir(parents=True, exist_ok=True))
        return AtomicFile(path, nbytes=nbytes, durable=self._durable, shown=shown)

    def _write(self, name: str, text: bytes) -> None:
        with self._open_file(name, len(text)) as file:
            file.write_at(text, 0)
            file.commit()

    def _copy(self, name: Path) -> None:
        source = self._source.path / name
        fd = open_regular(source)
        try:
            info = call(source, os.fstat, fd)
            with self._open_file(name, info.st_size) as file:
                buffer = np.empty(min(_COPY_BYTES, info.st_size), np.uint8)
                for offset in range(0, info.st_size, _COPY_BYTES):
                    part = buffer[: min(_COPY_BYTES, info.st_size - offset)]
                    read_into(fd, part, offset, source)
                    file.write_at(part, offset)
                call(file.shown, os.fchmod, file.fd, stat.S_IMODE(info.st_mode))
                file.commit()
        finally:
            call(source, os.close, fd)

    def abort(self) -> None:
        """Remove the temporary directory; `path` stays as it was. After `commit` this does nothing."""
        self._opened.close()


def _raise(error: OSError) -> None:
    raise error


def _json_text(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A lone surrogate, which JSON can escape, has no UTF-8.
    return re.sub("[\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", text).encode()


def refuse_same(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """A directory can't be replaced while it is read, nor copied into itself."""
    source, destination = resolve(source), resolve(destination)
    same = destination.exists() and destination.samefile(source)
    if same or source in destination.parents or destination in source.parents:
        raise OptionError(f"{destination}: must not be the source's directory, in it or around it; choose another")


class _Checkpoint:
    name = "checkpoint"
    suffixes = ()
    written_as = "a directory"

    def sniff(self, path: Path, begin: bytes) -> bool:
        return is_checkpoint(path)

    def open(self, path: Path, access: Access) -> CheckpointSource:
        return CheckpointSource(path, max_header=access.max_header, max_tensors=access.max_tensors)

    def create(self, path: str | os.PathLike[str], output: Output) -> CheckpointSink:
        if not isinstance(output.source, CheckpointSource):
            raise UnsupportedError(f"{output.source.path}: is no directory whose other files could go into one")
        return CheckpointSink(
            output.source,
            path,
            output.tensors,
            output.origins,
            output.metadata,
            config=output.config,
            durable=output.durable,
            overwrite=output.overwrite,
        )


CHECKPOINT: Final = _Checkpoint()
"""Hugging Face directories as a container."""
