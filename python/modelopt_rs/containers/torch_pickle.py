"""What the pickles of torch.save say of tensors: which storage each lies in, and how."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, Final

from modelopt_rs.containers.pickles import OPAQUE, Function, load_pickle
from modelopt_rs.containers.torch_names import BESIDE, CLASSES, OF_NO_DTYPE, PACKAGES, STORAGES
from modelopt_rs.dtypes import DTYPES
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError, quote

__all__ = ["NumpyArray", "Storage", "StoredTensor", "load_objects"]

_MAX_AXES = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes of one or more tensors: `key` names them in the file."""

    key: str
    dtype: str
    elements: int
    first: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].bits // 8

    @property
    def end(self) -> int:
        """How many bytes of the file's storage it needs."""
        return (self.first + self.elements) * self.itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a view of a storage: strides and offset count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, each element once."""
        return math.prod(self.shape) * self.itemsize


class NumpyArray:
    """Stands for an array of NumPy, which is not read."""


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _DtypeName:
    dtype: str


def load_objects(file: IO[bytes], where: str, view: Callable[[Storage], None] = lambda storage: None) -> Any:
    """Read a pickle whose tensors lie in storages outside of it; `view` is told each storage.

    Raises
    ------
    FormatError
        If it is malformed, or a tensor doesn't lie within its storage. `LimitError`, `UnsupportedError`: see
        `load_pickle`.
    """

    def persistent(identity: Any) -> Storage:
        storage = _storage(identity)
        view(storage)
        return storage

    try:
        return load_pickle(file, _KNOWN, persistent)
    except FormatError as e:
        raise type(e)(f"{where}: {e}") from None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _storage(identity: Any) -> Storage:
    """Return the storage that a persistent id means: ("storage", type, key, device, elements[, view])."""
    if not isinstance(identity, tuple) or not 5 <= len(identity) <= 6 or identity[0] != "storage":
        raise UnsupportedError("the pickle has a persistent id that is none of a storage; save the state_dict() alone")
    _, kind, key, _, elements = identity[:5]
    if not isinstance(kind, _StorageType) or not isinstance(key, str) or not _is_size(elements):
        raise FormatError("the pickle has a storage without type, key or size")
    storage = Storage(key, kind.dtype, elements)
    if identity[5:] in ((), (None,)):
        return storage
    view = identity[5]
    if not isinstance(view, tuple) or len(view) != 3 or not _is_size(view[1]) or not _is_size(view[2]):
        raise FormatError(f"the pickle has a view of storage {quote(key)} without offset or size")
    if view[1] + view[2] > elements:
        raise FormatError(f"the pickle has a view of storage {quote(key)} that reaches beyond it")
    return replace(storage, first=view[1], elements=view[2])


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any = None, hooks: Any = None, lazily: Any = None
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise FormatError("the pickle has a tensor without a storage")
    _check_done(lazily)
    return _checked(StoredTensor(storage, storage.dtype, offset, shape, strides))


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, _DtypeName):
        raise FormatError("the pickle has a tensor without a storage or a dtype")
    _check_done(*rest[:1])
    return _checked(StoredTensor(storage, dtype.dtype, offset, shape, strides))


def _check_done(lazily: Any = None) -> None:
    """Refuse a tensor whose numbers are not those of its storage: torch would negate or conjugate them on reading."""
    for name in ("conj", "neg"):
        if isinstance(lazily, dict) and lazily.get(name):
            raise UnsupportedError(f"the pickle has a tensor with is_{name}(); save it after .resolve_{name}()")


def _checked(tensor: StoredTensor) -> StoredTensor:
    """Return a tensor that lies within its storage."""
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    sized = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not sized or not all(map(_is_size, (*shape, *strides, offset))):
        raise FormatError("the pickle has a tensor without shape, strides or offset")
    if len(shape) > _MAX_AXES:
        raise LimitError(f"the pickle has a tensor of {len(shape)} axes, at most {_MAX_AXES} are read")
    held = tensor.storage.elements * tensor.storage.itemsize // tensor.itemsize
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= held:
        raise FormatError(
            f"the pickle has a tensor of shape {shape} that reaches beyond the {held:,} elements of its storage"
        )
    if 0 not in shape and math.prod(shape) > held:
        raise UnsupportedError(
            f"the pickle has an expanded tensor of shape {shape} on {held:,} elements; save it after .contiguous()"
        )
    if tensor.storage.first * tensor.storage.itemsize % tensor.itemsize:
        raise FormatError("the pickle has a tensor that begins within an element of its storage")
    return tensor


def _same(tensor: Any, *rest: Any) -> Any:
    """Return the tensor that a parameter is made of."""
    if not isinstance(tensor, StoredTensor):
        raise FormatError("the pickle has a parameter without a tensor")
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
    """Return the tensor that one of a subclass of torch's is made of."""
    if not isinstance(function, Function) or function.call not in (_tensor, _tensor_of_dtype, _same):
        raise FormatError("the pickle has a tensor of a class that is made of none")
    if not isinstance(arguments, tuple):
        raise FormatError("the pickle has a tensor without arguments")
    return function.call(*arguments)


# None of these copies what it is given: a pickle could name one list again and again.


def _dict(items: Any = None, *rest: Any) -> dict[Any, Any]:
    if isinstance(items, dict):
        return items
    from_pairs: dict[Any, Any] = {}
    while isinstance(items, list) and items:
        item = items.pop()
        if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[0], str):
            raise FormatError("the pickle has a dict of what are no pairs of a text and something")
        from_pairs[item[0]] = item[1]
    return dict(reversed(from_pairs.items()))


def _list(items: Any = None, *rest: Any) -> Any:
    return [] if items is None else items


def _shape(items: Any = (), *rest: Any) -> Any:
    return items


def _refusing(kind: str, fix: str) -> Callable[..., Any]:
    """Return what refuses a tensor that is none of numbers in a storage, and says what to save instead."""

    def refuse(*rest: Any, **options: Any) -> Any:
        raise UnsupportedError(f"the pickle has a {kind} tensor; save it after .{fix}()")

    return refuse


def _without_numbers(*rest: Any, **options: Any) -> Any:
    raise UnsupportedError(
        "the pickle has a tensor on the device meta, which has no numbers; load them before it is saved"
    )


class _Known(dict[str, Any]):
    """All that a pickle may name."""

    def __missing__(self, name: str) -> Function:
        if OF_NO_DTYPE.fullmatch(name):
            raise UnsupportedError(f"the pickle has a tensor of {name.replace(' ', '.')}, which safetensors can't hold")
        if name.split(" ")[0].split(".")[0] not in PACKAGES:
            raise KeyError(name)
        return Function(name, lambda *rest, **options: OPAQUE)


def _known() -> Mapping[str, Any]:
    """Return all that a pickle may name."""
    functions: dict[str, Callable[..., Any]] = {
        "torch._utils _rebuild_tensor": _tensor,
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
        "torch._utils _rebuild_parameter": _same,
        "torch._utils _rebuild_parameter_with_state": _same,
        "torch._tensor _rebuild_from_type_v2": _of_type,
        "torch.nn.parameter Parameter": _same,
        "torch._utils _rebuild_sparse_tensor": _refusing("sparse", "to_dense"),
        "torch._utils _rebuild_qtensor": _refusing("quantized", "dequantize"),
        "torch._utils _rebuild_nested_tensor": _refusing("nested", "to_padded_tensor"),
        "torch._utils _rebuild_meta_tensor_no_storage": _without_numbers,
        "torch Size": _shape,
        "collections OrderedDict": _dict,
        "collections Counter": _dict,
        "collections defaultdict": lambda *rest: {},
        **{f"{module} dict": _dict for module in ("builtins", "__builtin__")},
        **{
            f"{module} {name}": _list for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "list")
        },
        **{f"{module}.multiarray _reconstruct": lambda *rest: NumpyArray() for module in ("numpy.core", "numpy._core")},
        **{name: lambda *rest, **options: OPAQUE for name in BESIDE},
    }
    storages = {f"{module} {name}": dtype for module in ("torch", "torch.cuda") for name, dtype in STORAGES.items()}
    known = {
        **dict.fromkeys(CLASSES, OPAQUE),
        **{name: Function(name, call) for name, call in functions.items()},
        **{name: _StorageType(dtype) for name, dtype in storages.items()},
        "torch.storage UntypedStorage": _StorageType("U8"),
        **{
            f"torch {each.word}": _DtypeName(each.name) for each in DTYPES.values() if each.word and each.in_safetensors
        },
    }
    return _Known(known)


_KNOWN: Final = _known()
