"""Hugging Face checkpoints: a directory with safetensors files, or torch's, and `config.json` as one source."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from modelopt_rs._core import FormatError
from modelopt_rs._types import Array
from modelopt_rs.containers.foreign import LOOKED_AT, foreign_directory, foreign_file
from modelopt_rs.containers.reading import MAX_HEADER, MAX_TENSORS, Identity, beginning, open_again, read_file
from modelopt_rs.containers.safetensors import SafetensorsSource
from modelopt_rs.containers.strict_json import parse_object
from modelopt_rs.containers.torch_file import TorchSource
from modelopt_rs.errors import SourceWarning, UnsupportedError, listing, quote
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Source, TensorInfo, Tile

__all__ = ["INDEX_SUFFIX", "TORCH_INDEX", "CheckpointSource", "is_checkpoint", "no_checkpoint", "read_config"]

INDEX_SUFFIX = ".safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
_SINGLE = "model.safetensors"
_INDEX = "model" + INDEX_SUFFIX
_TORCH_SINGLE = "pytorch_model.bin"
_NAMES = (_SINGLE, _INDEX, _TORCH_SINGLE, TORCH_INDEX)  # of several the first counts, as in transformers
# What has numbers by the thousand: the same weights for other libraries, other variants of them, states of optimizers.
_OF_NUMBERS = frozenset(
    {".bin", ".ckpt", ".data", ".gguf", ".h5", ".keras", ".msgpack", ".npz", ".onnx", ".onnx_data", ".ot", ".pt",
     ".pth", ".safetensors", ".tflite"}
)  # fmt: skip
# The names of shards: what an index must name of all that the directory has.
_SHARDS = {False: r"model-\d{5}-of-\d{5}\.safetensors", True: r"pytorch_model-\d{5}-of-\d{5}\.bin"}

_Shard: TypeAlias = SafetensorsSource | TorchSource


class CheckpointSource(Source):
    """A Hugging Face directory, open for reading: `model.safetensors`, or shards and their index.

    Where neither is there, `pytorch_model.bin`, or such shards and their `pytorch_model.bin.index.json`. What is made
    of them is written as safetensors: see `written_as`.

    Everything is checked before anything is read: an index that names a shard which isn't there, a tensor in
    two shards or in none, a shard outside the directory or one that the index doesn't know. All problems are
    reported together. What loses nothing (a wrong total size, a key of a tied tensor that no shard has) is a warning.

    Parameters
    ----------
    path : str or os.PathLike
        The directory, or an index in it (`*.safetensors.index.json`, `pytorch_model.bin.index.json`).
    max_header : int
        The largest header, index and `config.json` to accept, in bytes.
    max_tensors : int
        The most tensors to accept in one file.

    Attributes
    ----------
    path : Path
        The directory.
    shards : mapping of str to SafetensorsSource or TorchSource
        The files with tensors, by name.
    index_name : str or None
        The name of the index, None if there is one file only.
    index_metadata : mapping
        What stands under "metadata" in the index.

    Raises
    ------
    FormatError
        If it isn't a checkpoint, or is a damaged one.
    OSError
        If a file can't be opened or read.
    """

    container = "checkpoint"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_header: int = MAX_HEADER,
        max_tensors: int = MAX_TENSORS,
    ) -> None:
        self.path, first = _locate(Path(path))
        index = first if first.suffix == ".json" else None
        self._limits = {"max_header": max_header, "max_tensors": max_tensors}
        self.index_name = index.name if index else None
        self.index_metadata: Mapping[str, Any] = {}
        self._notes: tuple[str, ...] = ()
        self._config = read_config(self.path / "config.json", max_header)
        with ExitStack() as stack:
            if index is None:
                file = _open_shard(first, max_header, max_tensors)
                stack.enter_context(file)
                shards: dict[str, _Shard] = {first.name: file}
            else:
                text = read_file(index, max_header)
                weight_map, self.index_metadata = _parse_index(index, text)
                shards, problems = _open_shards(self.path, weight_map, stack, max_header, max_tensors)
                total_size = self.index_metadata.get("total_size")
                more, notes = _compare(weight_map, shards, total_size, self._config or {})
                if problems + more:
                    raise FormatError(f"{index}: {listing(problems + more)}")
                for note in notes:
                    warnings.warn(f"{index}: {note}", SourceWarning, stacklevel=2)
                self._notes = tuple(f"{index.name}: {note}" for note in notes)
            self._opened = stack.pop_all()
        self.shards: Mapping[str, _Shard] = MappingProxyType(shards)
        self._shard_of = {name: shard for shard, source in shards.items() for name in source.tensors}
        self._tensors = {name: info for source in shards.values() for name, info in source.tensors.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors of all shards by name, shard after shard."""
        return MappingProxyType(self._tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the first shard."""
        return next((shard.metadata for shard in self.shards.values()), MappingProxyType({}))

    @property
    def config(self) -> dict[str, Any] | None:
        """`config.json`; None if there is none."""
        return self._config

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the index is out of step with its shards and nothing is lost by it; each is a warning as well."""
        return self._notes

    @property
    def beside(self) -> Mapping[str, int]:
        """The files of weights, and of states of training, that are none of the shards."""
        files = [path for path in sorted(self.path.rglob("*")) if path.suffix.lower() in _OF_NUMBERS and path.is_file()]
        sizes = {str(path.relative_to(self.path)): path.stat().st_size for path in files}
        return {name: nbytes for name, nbytes in sizes.items() if name not in self.shards}

    @property
    def nbytes(self) -> int:
        """The bytes of all files with tensors."""
        return sum(shard.nbytes for shard in self.shards.values())

    @property
    def identity(self) -> tuple[Identity, ...]:
        """What tells the files from others, and from themselves when they have changed."""
        return tuple(shard.identity for shard in self.shards.values())

    def written_as(self, name: str) -> str:
        """Return the name under which a shard, or the index, is written: of torch's the one for safetensors.

        Examples
        --------
        `pytorch_model-00001-of-00002.bin` becomes `model-00001-of-00002.safetensors`.
        """
        plain = name.removesuffix(".index.json")
        if not plain.endswith(".bin"):
            return name
        return plain.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors" + name[len(plain) :]

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again where it is unpickled; ValueError if the files are others then."""
        path = self.path if self.index_name is None else self.path / self.index_name
        return open_again, (type(self), path, self._limits, self.identity)

    def shard_of(self, name: str) -> str:
        """Return the name of the file that a tensor stands in."""
        try:
            return self._shard_of[name]
        except KeyError:
            raise KeyError(f"{self.path}: no tensor {quote(name)}") from None

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape."""
        return self.shards[self.shard_of(name)].read(name)

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        return self.shards[self.shard_of(name)].tiles(name, max_bytes, rows)

    def buffers(self, name: str) -> Sequence[Buffer]:
        """Return what reading a tensor holds besides its tile."""
        return self.shards[self.shard_of(name)].buffers(name)

    def close(self) -> None:
        """Close all files."""
        self._opened.close()


def _locate(path: Path) -> tuple[Path, Path]:
    """Return the directory and its index or single file."""
    if path.name.endswith((INDEX_SUFFIX, TORCH_INDEX)):
        return path.parent, path
    for name in _NAMES:
        if (path / name).exists():
            return path, path / name
    path.stat()
    raise no_checkpoint(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is an index, or a directory with one or with a single file."""
    if path.name.endswith((INDEX_SUFFIX, TORCH_INDEX)):
        return True
    return path.is_dir() and any((path / name).exists() for name in _NAMES)


def no_checkpoint(path: Path, models: Sequence[str] = ()) -> FormatError:
    """Return what says that a directory is none, what it is, and which of its files can be given instead."""
    none = f"{path}: none of {', '.join(_NAMES)} is in the directory"
    if (path / "adapter_config.json").exists():
        fix = "merge it into its model first, with peft's merge_and_unload()"
        return UnsupportedError(f"{none}: it has an adapter, which is no model; {fix}")
    if (foreign := foreign_directory(path)) is not None:
        return UnsupportedError(f"{none}: it has {foreign}")
    return FormatError(none + (f"; give what is in it: {listing(list(models))}" if models else ""))


def _open_shard(path: Path, max_header: int, max_tensors: int) -> _Shard:
    begin = beginning(path, LOOKED_AT)
    # A repository that was cloned without Git LFS has pointers in the place of its shards.
    if (foreign := foreign_file(path, begin, True)) is not None:
        raise UnsupportedError(f"{path}: is {foreign}")
    if not begin:
        raise FormatError(f"{path}: the file is empty")
    if path.suffix == ".bin":
        return TorchSource(path, max_header=max_header, max_tensors=max_tensors, unwrap=False)
    return SafetensorsSource(path, max_header=max_header, max_tensors=max_tensors)


def read_config(path: Path, limit: int) -> dict[str, Any] | None:
    """Return what a `config.json` says, None if there is none."""
    try:
        text = read_file(path, limit)
    except FileNotFoundError:
        return None
    return parse_object(text, str(path))


def _parse_index(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    index = parse_object(text, str(path))
    weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise FormatError(f"{path}: weight_map must be an object of file names by tensor name")
    if not isinstance(metadata, dict):
        raise FormatError(f"{path}: metadata must be an object")
    return weight_map, metadata


def _open_shards(
    directory: Path, weight_map: dict[str, str], stack: ExitStack, max_header: int, max_tensors: int
) -> tuple[dict[str, _Shard], list[str]]:
    """Open every shard that the index names; return them and what is wrong with them."""
    shards: dict[str, _Shard] = {}
    problems = []
    named = set(weight_map.values())
    for name in sorted(named):
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            problems.append(f"shard {quote(name)} must be a file name in the directory of the index")
            continue
        try:
            shards[name] = _open_shard(directory / name, max_header, max_tensors)
            stack.enter_context(shards[name])
        except FileNotFoundError:
            problems.append(f"shard {quote(name)} is missing")
        except UnicodeEncodeError:
            problems.append(f"shard {quote(name)} can't be a file name")
        except ValueError as e:
            problems.append(str(e))
    problems += [
        f"shard {quote(name)} is not in the index"
        for name in sorted(file.name for file in directory.iterdir())
        if re.fullmatch(_SHARDS[any(each.endswith(".bin") for each in named)], name) and name not in named
    ]
    return shards, problems


def _is_tied(name: str, tensors: Set[str], config: Mapping[str, Any]) -> bool:
    """Whether a model has a tensor under another name: the output layer and the embedding may be one."""
    if config.get("tie_word_embeddings") is False:
        return False
    ends = ("lm_head.", "embed_out.", "output_projection.", "predictions.decoder.", "predictions.bias")
    embeddings = ("embed_tokens.", "word_embeddings.", "wte.", "shared.")
    known = (*ends, *embeddings)
    return any(end in name for end in known) and any(
        end in other for other in tensors if other != name for end in known
    )


def _compare(
    weight_map: dict[str, str], shards: dict[str, _Shard], total_size: Any, config: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return in what the index and the shards differ: what loses tensors, and what does not."""
    problems, notes = [], []
    seen: dict[str, str] = {}
    for shard, source in shards.items():
        for name in source.tensors:
            if name in seen:
                problems.append(f"tensor {quote(name)} is in shards {quote(seen[name])} and {quote(shard)}")
            elif name not in weight_map:
                notes.append(
                    f"tensor {quote(name)} of shard {quote(shard)} is not in the index; it is read all the same"
                )
            seen.setdefault(name, shard)
    for name, shard in weight_map.items():
        if shard in shards and name not in shards[shard].tensors:
            problem = f"tensor {quote(name)} is not in shard {quote(shard)}"
            if name not in seen and _is_tied(name, seen.keys(), config):
                notes.append(f"{problem}; it is tied to another")
            else:
                problems.append(problem)
    size = sum(info.nbytes for source in shards.values() for info in source.tensors.values())
    if total_size is not None and not problems and total_size != size:
        shown = f"{total_size:,}" if isinstance(total_size, int) else quote(str(total_size))
        notes.append(f"total_size is {shown}, the tensors have {size:,} bytes")
    return problems, notes
