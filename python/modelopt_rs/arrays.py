"""Arrays of other libraries: which are taken, and how their memory is shared. The one place that decides.

Every function of arrays asks here for what is no NumPy array, the compiled ones too.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array

__all__ = ["Shared", "as_array", "to_dlpack"]

# Kinds of DLPack's devices whose memory is the CPU's: its own, and what is pinned for CUDA and for ROCm.
_CPU: Final = (1, 3, 11)
# Kinds of numbers by DLPack's code and bits that NumPy has no dtype for, and the dtypes of `ml_dtypes`.
_EXTENSIONS: Final = {
    (4, 16): "bfloat16",
    (7, 8): "float8_e3m4",
    (8, 8): "float8_e4m3",
    (9, 8): "float8_e4m3b11fnuz",
    (10, 8): "float8_e4m3fn",
    (11, 8): "float8_e4m3fnuz",
    (12, 8): "float8_e5m2",
    (13, 8): "float8_e5m2fnuz",
    (14, 8): "float8_e8m0fnu",
    (0, 4): "int4",
    (1, 4): "uint4",
    (0, 2): "int2",
    (1, 2): "uint2",
    (17, 4): "float4_e2m1fn",
}
_KINDS: Final = {name: kind for kind, name in _EXTENSIONS.items()}


def as_array(obj: Any, name: str = "as_array: obj") -> Array:
    """Return the memory of an array of any library on the CPU as a NumPy array, without a copy.

    What exports DLPack (torch, JAX, PyArrow, CuPy's pinned memory) or the buffer protocol (`memoryview`, `array.array`,
    TensorFlow's tensors) is taken, by every function of this package too. bfloat16, float8 and 4- and 2-bit numbers
    become arrays of `ml_dtypes`; without that package unsigned integers of their size.

    Parameters
    ----------
    obj : object
        A NumPy array is returned as it is.
    name : str
        How errors name it.

    Returns
    -------
    ndarray
        It can be written if `obj` can, or is an `OrtValue` of onnxruntime: not what JAX, PyArrow or an older DLPack
        exports.

    Raises
    ------
    TypeError
        If it is no array of such a library, is on another device, is sparse or strided over shared bytes, or has a
        mask.
    ValueError
        If it is a tensor that requires a gradient, or is conjugated or negated lazily; if the name is empty or can't be
        printed.

    References
    ----------
    DLPack 1.1; Python enhancement proposal 3118 (buffers).

    Examples
    --------
    >>> import array, modelopt_rs as mo
    >>> mo.as_array(array.array("f", [1.0, -2.0]))
    array([ 1., -2.], dtype=float32)
    >>> float(mo.reduce.absmax(array.array("f", [1.0, -2.0])))
    2.0
    """
    if type(obj) is np.ndarray or (isinstance(obj, np.ndarray) and not isinstance(obj, np.ma.MaskedArray)):
        return obj
    if not isinstance(name, str):
        raise TypeError(f"as_array: name must be a str, got {type(name).__name__}")
    if not name.isprintable() or not name:
        raise ValueError(f"as_array: name must be letters that can be printed, got {name!a:.80}")
    if isinstance(obj, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(obj).__name__}; its mask would be lost")
    if not isinstance(obj, np.generic | bytes | str | type):
        if hasattr(obj, "__dlpack__"):
            return _of_dlpack(obj, name)
        try:
            view = memoryview(obj)
        except TypeError:
            pass
        except ValueError as why:  # a view that was released
            raise TypeError(f"{name} must be an array of numbers, got {type(obj).__name__}; {why}") from None
        else:
            return _of_buffer(view, obj, name)
    raise TypeError(f"{name} must be a NumPy array, got {type(obj).__name__}")


def _of_buffer(view: memoryview, obj: Any, name: str) -> Array:
    try:
        return np.asarray(view)
    except (ValueError, TypeError, RuntimeError) as why:
        raise TypeError(f"{name} must be an array of numbers, got {type(obj).__name__}; {why}") from None


def _of_dlpack(obj: Any, name: str) -> Array:
    kind, arg = type(obj).__name__, name.rpartition(" ")[2]
    if getattr(obj, "requires_grad", False):
        raise ValueError(f"{name} must not require a gradient, got {kind} with requires_grad; pass {arg}.detach()")
    for lazily, resolved in (("is_conj", "resolve_conj"), ("is_neg", "resolve_neg")):
        if _says(obj, lazily):
            raise ValueError(f"{name} must hold its numbers, got {kind} with {lazily}(); pass {arg}.{resolved}()")
    try:
        device = tuple(int(number) for number in obj.__dlpack_device__())
        found = _core.dlpack_array(_capsule(obj), _is_written_by_ort(obj)) if device[0] in _CPU else None
    except MemoryError:
        raise
    except Exception as why:  # whatever another library raises of its own arrays
        text = " ".join(str(why).split())
        raise TypeError(f"{name} must be an array whose memory can be shared, got {kind}; {text}") from None
    if device[0] not in _CPU:
        got = getattr(obj, "device", device)
        raise TypeError(f"{name} must be on the CPU, got {kind} on device {got}; move it there first")
    if found is None:
        raise TypeError(f"{name} must be a dense array of NumPy's or ml_dtypes' dtypes, got {kind}")
    array, code, bits = found
    twin = _EXTENSIONS.get((code, bits))
    return array if twin is None else _viewed(array, twin)


def _is_written_by_ort(obj: Any) -> bool:
    """Whether it is an onnxruntime `OrtValue` that may be written: its DLPack can't say so."""
    held = getattr(obj, "_numpy_obj", None)
    return type(obj).__module__.startswith("onnxruntime.") and (held is None or bool(held.flags.writeable))


def _says(obj: Any, question: str) -> bool:
    """Whether a method of torch's tensors says yes; what has no such method doesn't."""
    method: Callable[[], object] | None = getattr(obj, question, None)
    return bool(method()) if callable(method) else False


def _capsule(obj: Any) -> Any:
    try:
        return obj.__dlpack__(max_version=(1, 1))
    except TypeError as why:
        if "max_version" not in str(why):
            raise
        return obj.__dlpack__()  # it knows no versions


def _viewed(array: Array, twin: str) -> Array:
    try:
        import ml_dtypes
    except ImportError:
        return array
    kind = getattr(ml_dtypes, twin, None)
    return array if kind is None else array.view(kind)


class Shared:
    """An array for other libraries: what `to_dlpack` returns. It exports DLPack, and nothing else."""

    __slots__ = ("_array", "_kind")

    def __init__(self, array: Array, kind: tuple[int, int] | None) -> None:
        self._array, self._kind = array, kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._array.__dlpack__(**options)
        if self._kind is not None and not _core.dlpack_retype(capsule, *self._kind):
            raise BufferError(
                "to_dlpack: the importer must know DLPack 1.0, which says how numbers of 4 and 2 bits lie"
            )
        return capsule

    def __repr__(self) -> str:
        return f"Shared({self._array!r})"


def to_dlpack(array: Array, dtype: str | None = None) -> Shared:
    """Return an array for other libraries to share its memory, also of dtypes that NumPy can't export.

    ``torch.from_dlpack(mo.to_dlpack(x))`` is a tensor of the same memory: bfloat16 and float8 too, of
    `ml_dtypes` or as bits. Numbers of 4 and 2 bits are exported one a byte, as DLPack 1.1 has them; whether they
    are taken is up to the importer.

    Parameters
    ----------
    array : ndarray
        Any array that `as_array` takes.
    dtype : str, optional
        What the bits of an array of unsigned integers are: "bfloat16", "float8_e4m3fn" and so on.

    Returns
    -------
    Shared
        To be imported, as often as wanted. It keeps the memory.

    Raises
    ------
    TypeError
        If it is no array, `dtype` is none of these or of another size, or bytes are swapped.
    ValueError
        If it has negative strides, which importers don't take (torch ends the process).

    References
    ----------
    DLPack 1.1.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> x = np.array([1.0, 2.0], np.float32)
    >>> np.shares_memory(np.from_dlpack(mo.to_dlpack(x)), x)
    True
    """
    array = as_array(array, "to_dlpack: array")
    if not array.dtype.isnative:
        order = array.dtype.str
        raise TypeError(f"to_dlpack: array has big-endian dtype '{order}'; use array.astype('={order[1:]}')")
    if any(step < 0 for step in array.strides):  # torch would end the process
        raise ValueError(f"to_dlpack: array must have no negative strides, got {array.strides}; pass a copy")
    twin = array.dtype.name if dtype is None else dtype
    kind = _KINDS.get(twin) if isinstance(twin, str) else None
    if kind is None:
        if dtype is not None:
            got = repr(dtype) if isinstance(dtype, str) else type(dtype).__name__
            raise TypeError(f"to_dlpack: dtype must be one of {', '.join(_KINDS)}, got {got}")
        return Shared(array, None)
    size = max(kind[1], 8) // 8
    if array.dtype.itemsize != size or (
        dtype is not None and array.dtype.kind not in "uiV" and array.dtype.name != twin
    ):
        raise TypeError(f"to_dlpack: array must have items of {size} bytes for {twin}, got {array.dtype}")
    return Shared(array.view(f"u{size}"), kind)
