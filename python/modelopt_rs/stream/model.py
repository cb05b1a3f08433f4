"""What a model file is to the rest of the package: a source of named tensors in row tiles, and a sink.

A new container is one `Source` and one `Sink`; a new operation is one transform; neither knows the other.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Protocol, Self

from modelopt_rs._types import Array
from modelopt_rs.dtypes import is_packed
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.stream.buffer import Buffer

__all__ = [
    "Sink",
    "Source",
    "TensorInfo",
    "Tile",
    "is_kernel",
    "is_merged",
    "is_recurrent",
    "is_weight",
    "may_be_weight",
]


KERNEL: Final = re.compile(r".*/(?:vars/\d+|\w*kernel(?::0)?|\w*embeddings?(?::0)?)")
MERGED: Final = re.compile(r"(?:.*\.)?experts\.(?!weight$|\w*(?:bias|scale))[a-z]\w*")
RECURRENT: Final = re.compile(r"(?:.*\.)?weight_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?")


def is_weight(name: str) -> bool:
    """Whether a tensor has the name of a layer's weight."""
    return name == "weight" or name.endswith(".weight")


def is_recurrent(name: str) -> bool:
    """Whether a tensor has the name of a weight of torch's recurrent layers.

    Examples
    --------
    >>> from modelopt_rs.stream.model import is_recurrent
    >>> is_recurrent("lstm.weight_hh_l1_reverse"), is_recurrent("lstm.bias_hh_l1")
    (True, False)
    """
    return RECURRENT.fullmatch(name) is not None


def is_kernel(name: str) -> bool:
    """Whether a tensor has the path of a variable of Keras or Flax that may be a layer's weight.

    Examples
    --------
    >>> from modelopt_rs.stream.model import is_kernel
    >>> is_kernel("layers/dense/vars/0"), is_kernel("dense/dense/kernel:0"), is_kernel("dense/dense/bias:0")
    (True, True, False)
    """
    return KERNEL.fullmatch(name) is not None


def is_merged(name: str) -> bool:
    """Whether a tensor has the name of the weights of all experts in one, [experts, rows, columns].

    Examples
    --------
    >>> from modelopt_rs.stream.model import is_merged
    >>> is_merged("mlp.experts.gate_up_proj"), is_merged("mlp.experts.gate_up_proj_bias"), is_merged("experts.0.w1")
    (True, False, False)
    >>> is_merged("experts.weight")  # of a layer that is called so
    False
    """
    return MERGED.fullmatch(name) is not None


def may_be_weight(name: str) -> bool:
    """Whether a tensor has the name of a weight in one of the ways above."""
    return is_weight(name) or is_recurrent(name) or is_kernel(name) or is_merged(name)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model file: its name, its dtype as the format spells it, its shape and its bytes.

    `dtype` is safetensors' spelling for every format ("F32", "F16", "BF16", "F64", "I8", "U8", "I64" ...).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def columns(self) -> int:
        """Elements of a row: the length of the last axis, but 1 for a flat tensor, so that it can be cut as well.

        Also 1 where several elements share a byte: a row may then begin within one.
        """
        return self.shape[-1] if len(self.shape) > 1 and not is_packed(self.dtype) else 1

    @property
    def rows(self) -> int:
        """How many rows the tensor has: the product of all axes but the last (of a flat tensor, its elements).

        Where several elements share a byte, it is the bytes of the tensor.
        """
        if is_packed(self.dtype):
            return self.nbytes
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row (0 where the tensor is empty)."""
        return self.nbytes // self.rows if self.rows else 0


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive rows of one tensor: `array` is 2-D, (rows, columns).

    bfloat16 comes as uint16 (pass `dtype="bf16"` to the array functions); every other dtype as NumPy's own.
    """

    first_row: int
    array: Array


class Source(Protocol):
    """A model file or directory that is open for reading.

    Attributes
    ----------
    container : str
        The name of the container that it is.
    path : Path
        Where it is.
    """

    container: str
    path: Path

    def __repr__(self) -> str:
        """Say what is open; it may be closed by now."""
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.tensors):,} tensors)"

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, in the order of the file."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's own metadata."""
        return MappingProxyType({})

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The model's `config.json`; None where it has none."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What should be known of the file, in a sentence each: reports have them as warnings."""
        return ()

    @property
    def beside(self) -> Mapping[str, int]:
        """Files of numbers that are not read, and that what is written has copies of: their bytes, by name."""
        return MappingProxyType({})

    @property
    def graph(self) -> Any:
        """The graph that computes with the tensors, an `onnx_ir.Model`; None where there are tensors alone."""
        return None

    @property
    def nbytes(self) -> int:
        """The bytes of all its files."""

    def read(self, name: str) -> Array:
        """Return one tensor, whole, in its own shape."""

    def read_quantized(self, name: str, *, threads: int | None = None) -> QuantizedArray:
        """Return a quantized weight as its codes, scales and zero points; no floats are made of it.

        Of compressed-tensors' `pack-quantized` (8, 4 and 2 bits) and `int-quantized` (8 bits), and of the layouts of
        named formats, see `modelopt_rs.quant.formats`. Of a convolution the matrix that is stored.

        Parameters
        ----------
        name : str
            The weight's plain name (`fc.weight`).
        threads : int, optional
            Threads of this call; never changes the result.

        Raises
        ------
        KeyError
            If there is no such weight.
        FormatError
            If its tensors don't fit each other. `UnsupportedError`: it is not quantized, or in a way that
            `QuantizedArray` does not have.
        """
        from modelopt_rs.layouts.quantized import read_quantized

        return read_quantized(self, name, threads)

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused.

        `rows`: only these, which are consecutive.
        """

    def buffers(self, name: str) -> Sequence[Buffer]:
        """Return what reading a tensor holds besides its tile."""
        return ()

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


class Sink(Protocol):
    """A model file that is being written to a temporary; nothing shows at its path before `commit`.

    It is made with the list of all its tensors (`Sequence[TensorInfo]`), so that the header goes first.
    Leaving the `with` block without `commit` removes the temporary.

    Attributes
    ----------
    path : Path
        The destination.
    """

    path: Path

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The tensors that must be written before `commit`."""

    def write_at(self, name: str, row: int, array: Array) -> None:
        """Write rows of one tensor from `row` on. They may come in any order, each once."""

    def next_row(self, name: str) -> int:
        """Return the first row of a tensor that is not written."""

    def write(self, name: str, array: Array) -> None:
        """Append the next rows of one tensor. Tensors may be interleaved, the rows of one come in order."""
        self.write_at(name, self.next_row(name), array)

    def commit(self, *, verify: bool = True) -> None:
        """Check that all is written, flush, and put the temporary in the place of `path` at once.

        With `verify` it is read back first with the strict parser, and each tensor's digest compared.
        """

    def abort(self) -> None:
        """Remove the temporary; `path` stays as it was."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.abort()
