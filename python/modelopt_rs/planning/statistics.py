"""Files of what is known of the inputs of layers: written by `calibrate_file`, or an importance matrix of llama.cpp."""

import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.containers.gguf import MAX_STATISTICS, read_gguf
from modelopt_rs.containers.reading import open_regular, read_file
from modelopt_rs.containers.safetensors import SafetensorsSource
from modelopt_rs.containers.system import read_place
from modelopt_rs.errors import FormatError, OptionError, quote
from modelopt_rs.prune.repair import InputStats
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.stream.model import TensorInfo

__all__ = ["KINDS", "MARK", "PARTS", "StatisticsFile", "arrays_of", "infos_of"]

MARK: Final = "modelopt_rs.statistics"
"""The key of a file's metadata that says what it is; its value is the version of this form."""

KINDS: Final = ("hessian", "norms")
PARTS: Final = {"hessian": "products", "norms": "squares"}
"""What is stored of a weight besides the number of rows: sums of ``x xᵀ``, or of squares, in float64.

Of a convolution ``x`` are its patches, of each kernel position the channels; the sums of groups lie below each other.
"""

# Of the families that llama.cpp calls "llama" and those built alike: what stands behind blk.N. and its module.
MODULES: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS: Final = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
MAX_NAME: Final = 4096


def _start(path: Path) -> bytes:
    """Return the first bytes of a file; what is none is not waited for."""
    fd = open_regular(path)
    try:
        return read_place(fd, 9, 0)
    finally:
        os.close(fd)


def infos_of(name: str, columns: int, kind: str, groups: int = 1) -> list[TensorInfo]:
    """Return the tensors that stand for the inputs of a weight."""
    shape = (groups * columns, columns) if kind == "hessian" else (columns,)
    found = TensorInfo(f"{name}.{PARTS[kind]}", "F64", shape, 8 * int(np.prod(shape)))
    return [found, TensorInfo(f"{name}.rows", "I64", (1,), 8)]


def arrays_of(
    found: Sequence[Hessian | ColumnNorms], shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return what is stored of the inputs of a weight: sums, and the number of rows; zeros where nothing was seen."""
    if not found[0].count:
        return np.zeros(shape), np.zeros(1, np.int64)
    sums: list[Any] = [
        each.square_sum if isinstance(each, ColumnNorms) else each.stats and each.stats.products for each in found
    ]
    return sums[0] if len(sums) == 1 else np.concatenate(sums), np.array([found[0].count], np.int64)


class StatisticsFile:
    """What is known of the inputs of weights, read when it is asked for.

    Parameters
    ----------
    path : path
        A file that `calibrate_file` wrote, or an importance matrix of llama.cpp, as .gguf or in the older form (.dat).

    Attributes
    ----------
    kind : {"hessian", "norms"}
    columns : mapping
        By name of a weight how many inputs it has.
    groups : dict
        By name of a weight how many parts of it have inputs of their own, where it is said.

    Raises
    ------
    FormatError
        If it is none of these, or malformed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._source: SafetensorsSource | None = None
        self._norms: dict[str, NDArray[np.float64]] = {}
        self.groups: dict[str, int] = {}
        start = _start(self.path)
        if start[:4] == b"GGUF":
            self._norms = _of_gguf(self.path)
        elif start[8:9] == b"{":
            self._open()
            return
        else:
            self._norms = _of_dat(self.path)
        self.kind = "norms"
        self.columns: Mapping[str, int] = {name: len(each) for name, each in self._norms.items()}

    def _open(self) -> None:
        source = SafetensorsSource(self.path)
        version, self.kind = source.metadata.get(MARK), source.metadata.get("kind", "")
        if version != "1" or self.kind not in KINDS:
            source.close()
            if version is None:
                what = "is no file of statistics, such as calibrate_file (modelopt-rs calibrate) writes"
                raise FormatError(f"{self.path}: {what}")
            got = f"version {quote(version)}, kind {quote(self.kind)}"
            raise FormatError(f"{self.path}: statistics must be of version 1, got {got}")
        end = f".{PARTS[self.kind]}"
        shapes = {n.removesuffix(end): info.shape for n, info in source.tensors.items() if n.endswith(end)}
        self.columns = {name: shape[-1] if shape else 0 for name, shape in shapes.items()}
        for name, columns in self.columns.items():
            self.groups[name] = max(shapes[name][0] // max(columns, 1), 1) if self.kind == "hessian" and columns else 1
            for info in infos_of(name, columns, self.kind, self.groups[name]):
                got_info = source.tensors.get(info.name)
                if got_info is None or (got_info.dtype, got_info.shape) != (info.dtype, info.shape):
                    source.close()
                    raise FormatError(f"{self.path}: tensor {quote(info.name)} must be {info.dtype} of {info.shape}")
        self._source = source

    def of(self, name: str) -> Sequence[ColumnNorms | Hessian]:
        """Return what is known of the inputs of a weight."""
        if self._source is None:
            return [_norms(self._norms[name], 1)]
        sums = self._source.read(f"{name}.{PARTS[self.kind]}")
        rows = int(self._source.read(f"{name}.rows").reshape(-1)[0])
        if rows < 0 or not np.isfinite(sums).all():
            raise FormatError(f"{self.path}: sums of {quote(name)} must be finite, of no negative number of rows")
        if self.kind == "norms":
            return [_norms(sums.reshape(-1), rows)]
        found = []
        for products in np.split(sums, self.groups[name]):
            stats = InputStats(len(products))
            stats.products, stats.count = products, rows
            found.append(Hessian.of(stats))
        return found

    def keep(self, names: Sequence[str]) -> None:
        """Do nothing: what is not asked for is not read."""

    def close(self) -> None:
        """Close the file."""
        if self._source is not None:
            self._source.close()

    def check(
        self, columns: Mapping[str, int], method: str | None, groups: Mapping[str, int] = MappingProxyType({})
    ) -> dict[str, str | None]:
        """Return why the inputs of weights are not known; None: they are.

        Parameters
        ----------
        columns : mapping
            By name of a weight of the model how many inputs it has.
        method : str or None
        groups : mapping
            By name how many parts of a weight have inputs of their own, where it is more than one.

        Raises
        ------
        OptionError
            If they don't fit the method or the model.
        """
        if method == "gptq" and self.kind != "hessian":
            raise OptionError("statistics must have Hessians for method 'gptq', got norms alone")
        for name, wanted in columns.items():
            if self.columns.get(name, wanted) != wanted:
                raise OptionError(
                    f"statistics of {quote(name)} must have {wanted:,} inputs, got {self.columns[name]:,}"
                )
            if self.groups.get(name, 1) != groups.get(name, 1) and name in self.columns:
                wanted, got = groups.get(name, 1), self.groups.get(name, 1)
                raise OptionError(f"statistics of {quote(name)} must have {wanted:,} groups, got {got:,}")
        return {name: None if name in self.columns else "the statistics have nothing of it" for name in columns}


def _norms(squares: NDArray[np.float64], rows: int) -> ColumnNorms:
    found = ColumnNorms()
    found.square_sum, found.count = squares, rows
    return found


def hugging_face_name(name: str) -> str:
    """Return the name of a weight in a Hugging Face model of the family of LLaMA.

    Examples
    --------
    >>> from modelopt_rs.planning.statistics import hugging_face_name
    >>> hugging_face_name("blk.3.ffn_down.weight")
    'model.layers.3.mlp.down_proj.weight'
    """
    match = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.weight", name, re.ASCII)
    if match is None or match[2] not in MODULES:
        return OTHERS.get(name, name)
    return f"model.layers.{match[1]}.{MODULES[match[2]]}.weight"


def _of_dat(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the older form: of each of n tensors its name, how often it was called, and sums of squares."""
    data, at, found = read_file(path, MAX_STATISTICS), 4, {}
    try:
        (n,) = struct.unpack_from("<i", data)
        for _ in range(n):
            (length,) = struct.unpack_from("<i", data, at)
            if not 0 < length <= MAX_NAME:
                raise struct.error
            name = data[at + 4 : at + 4 + length].decode()
            calls, size = struct.unpack_from("<ii", data, at + 4 + length)
            at += 12 + length
            if size < 1 or at + 4 * size > len(data):
                raise struct.error
            values = np.frombuffer(data, "<f4", size, at).astype(np.float64) / max(calls, 1)
            at += 4 * size
            found[hugging_face_name(name)] = _checked(path, name, values)
    except (struct.error, UnicodeDecodeError):
        found = {}
    if not found:
        raise FormatError(f"{path}: no file of statistics, and no importance matrix of llama.cpp")
    return found


def _of_gguf(path: Path) -> dict[str, NDArray[np.float64]]:
    tensors = {name: array.astype(np.float64) for name, array in read_gguf(path).items()}
    found = {}
    for name, sums in tensors.items():
        base = name.removesuffix(".in_sum2")
        counts = tensors.get(f"{base}.counts")
        if base == name or counts is None or counts.size != 1:  # experts have counts of their own
            continue
        found[hugging_face_name(base)] = _checked(path, base, sums.reshape(-1) / max(float(counts.reshape(-1)[0]), 1.0))
    if not found:
        raise FormatError(f"{path}: no importance matrix: it has no sums of squares")
    return found


def _checked(path: Path, name: str, squares: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(squares).all() or squares.min(initial=0.0) < 0.0:
        raise FormatError(f"{path}: sums of squares of {quote(name)} must be finite and not negative")
    return squares
