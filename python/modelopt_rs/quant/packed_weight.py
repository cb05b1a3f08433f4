"""Weights that lie as products read them: `PackedWeight`."""

from dataclasses import dataclass

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Parts, Scheme, Spec

__all__ = ["PackedWeight", "prepacked"]

_LINE = 64  # bytes that panels are a multiple of, and begin at one


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """Weights that lie as products read them, once and in order; made by `QuantizedArray.prepack`, taken by `linear`.

    Attributes
    ----------
    panels : ndarray of uint8
        ``(ceil(out / 16), bytes)``: 16 rows each. Of each group there are 64 bytes of scales (float32, one for each
        row), 64 of zero points (int32) or offsets (float32) where the scheme has some, and then codes: 4 bytes of each
        row in turn, of groups of more than 256 elements in pieces of 128.
    shape : tuple of int
        ``(out, in)``.
    bits : {8, 4, 2}
    scheme : {"symmetric", "asymmetric", "minmax"}
    group_size : int or None
        None: a scale for each row.
    """

    panels: Array
    shape: tuple[int, int]
    bits: int
    scheme: Scheme
    group_size: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of the panels."""
        return self.panels.nbytes

    def __array__(self, *_: object, **__: object) -> Array:
        raise TypeError("PackedWeight: it can't be made an array; keep the QuantizedArray for its numbers")

    def __repr__(self) -> str:
        cut = "axis=0" if self.group_size is None else f"group_size={self.group_size}"
        return f"PackedWeight(shape={self.shape}, bits={self.bits}, scheme={self.scheme!r}, {cut})"


def prepacked(w: tuple[Parts, Spec, tuple[int, ...]], bits: int, scheme: Scheme, threads: int | None) -> PackedWeight:
    """Bring a weight (parts, specification, shape) into panels."""
    _, spec, shape = w
    panels, size = _core.packed_shape(spec, shape)
    room = np.empty(panels * size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    packed = room[start : start + panels * size].reshape(panels, size)
    _core.prepack(w, packed, threads)
    group_size = spec[2]
    assert not isinstance(group_size, tuple), "packed_shape has refused tiles"
    return PackedWeight(packed, (shape[0], shape[1]), bits, scheme, group_size)
