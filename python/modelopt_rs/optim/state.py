"""Optimizer states in blocks of 8- or 4-bit codes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Coding
from modelopt_rs.arguments import check_choice, check_flag, listed
from modelopt_rs.deprecated import renamed

__all__ = ["FORMER_CODINGS", "BlockState", "take_state", "zeros_of"]

_BLOCKS: dict[str, tuple[int, int]] = {"minifloat": (8, 256), "dynamic": (8, 256), "dynamic4": (4, 128)}
FORMER_CODINGS = {"float8": "minifloat", "four": "dynamic4"}
"""As version 0.1 wrote them into files: these are read for ever."""


class BlockState:
    """An optimizer's state in codes of 8 or 4 bits, with the largest magnitude of each block as float32.

    ``x[i] = absmax[i // block] * number(codes[i])``; 1.02 bytes an element with 8 bits (blocks of 256), 0.53 with 4
    bits (blocks of 128). Step functions take it in the place of a float32 array and decode, step and code again in one
    pass.

    Parameters
    ----------
    codes : ndarray of uint8
        One code a byte, or two (the first in the low bits), 1-D, in C order of the array. Written by steps.
    absmax : ndarray of float32
        One number a block, 1-D. Written by steps.
    shape : sequence of int
        The shape of what is coded: that of the parameter.
    coding : {"minifloat", "dynamic", "dynamic4"}
        "minifloat" (8 bits): small floats with 3 bits of mantissa. What is signed has 4 bits of exponent, down to 2e-5
        of the block's largest, and smaller ones become 0; what is not has 5, down to 2.5e-10, and smaller ones become
        that. To nearest by `from_array`, an error of at most 1/16 of the number; steps round by chance, by low bits of
        the other numbers that they make: twice that, but 0 on average. "dynamic" (8 bits): the maps of Dettmers et al.,
        in the order of bitsandbytes: finer for large numbers (under 1 %), coarser for small ones, always to nearest.
        "dynamic4" (4 bits): what is signed in the dynamic map of 4 bits, what is not by its root in 16 even steps from
        1/16, to nearest.
    signed : bool
        Whether it can be negative: first moments and momenta. Second moments cannot; with "minifloat" and "dynamic4"
        they have no 0, but in a block of zeros.

    Notes
    -----
    A NaN or an infinity spoils its block. A block whose largest magnitude is below 1e-37 becomes zeros.

    Small gradients beside a large one in the same block: with "minifloat" Adam moves an element as with float32 states
    if its gradient is at least 3e-5 of the block's largest; below, its first moment becomes 0. With "dynamic" second
    moments below 1.6e-7 of the block's largest become 0, as with bitsandbytes: Adam then jumps where the gradient is
    below 4e-4 of the block's largest (measured: a step of thousands of times lr, at 3e-4). With "dynamic4" elements
    hardly move whose gradient is below 1e-2 of it (a tenth as far, at 1e-3 not at all).

    References
    ----------
    Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861); Li, Chen and Zhu 2023,
    "Memory Efficient Optimizers with 4-bit States" (arXiv 2309.01507), here with blocks for both moments.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m = mo.optim.BlockState.zeros(p.shape, signed=True)
    >>> v = mo.optim.BlockState.zeros(p.shape, signed=False)
    >>> mo.optim.adamw_step(p, g, m, v, step=1, lr=0.1)
    >>> p.round(3), m.dequantize().round(3)
    (array([ 0.899, -1.898], dtype=float32), array([ 0.05, -0.05], dtype=float32))
    """

    __slots__ = ("absmax", "codes", "coding", "shape", "signed")

    @renamed({"coding": FORMER_CODINGS})
    def __init__(
        self, codes: Array, absmax: Array, shape: Sequence[int], *, coding: Coding = "minifloat", signed: bool
    ) -> None:
        check_choice("BlockState", "coding", coding, tuple(_BLOCKS))
        check_flag("BlockState", "signed", signed)
        self.codes, self.absmax, self.shape = codes, absmax, tuple(listed("BlockState", "shape", shape, "integers"))
        self.coding, self.signed = coding, bool(signed)

    @classmethod
    @renamed({"coding": FORMER_CODINGS})
    def zeros(cls, shape: Sequence[int], *, coding: Coding = "minifloat", signed: bool) -> "BlockState":
        """Make a state of zeros: what an optimizer starts with."""
        state = cls(np.empty(0, np.uint8), np.empty(0, np.float32), shape, coding=coding, signed=signed)
        bits, block = _BLOCKS[coding]
        size = state.size
        # The code of 0: in the dynamic maps the middle, or two of it.
        zero = {"minifloat": 0, "dynamic": 127 if signed else 0, "dynamic4": 0x77 if signed else 0}[coding]
        state.codes = (
            np.full(-(-size * bits // 8), zero, np.uint8) if zero else np.zeros(-(-size * bits // 8), np.uint8)
        )
        state.absmax = np.zeros(-(-size // block), np.float32)
        return state

    @classmethod
    @renamed({"coding": FORMER_CODINGS})
    def from_array(
        cls, x: Array, *, coding: Coding = "minifloat", signed: bool, threads: int | None = None
    ) -> "BlockState":
        """Code a float32 array, each number as the nearest that has a code."""
        state = cls.zeros(np.shape(x), coding=coding, signed=signed)
        _core.block_state("BlockState.from_array", state, x, True, threads)
        return state

    def dequantize(self, out: Array | None = None, threads: int | None = None) -> Array:
        """Give the numbers as float32, in `out` if given."""
        if out is None:
            out = np.empty(self.shape, np.float32)
        _core.block_state("BlockState.dequantize", self, out, False, threads)
        return out

    @property
    def size(self) -> int:
        """How many elements it has."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def bits(self) -> int:
        """Bits of a code: 8 or 4."""
        return _BLOCKS[self.coding][0]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.absmax.nbytes)

    def copy(self) -> "BlockState":
        """Copy codes and scales."""
        return BlockState(self.codes.copy(), self.absmax.copy(), self.shape, coding=self.coding, signed=self.signed)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("BlockState: copy must not be False: its numbers must be computed")
        x = self.dequantize()
        return x if dtype is None else x.astype(dtype)

    def __repr__(self) -> str:
        kind = "signed" if self.signed else "not signed"
        return f"BlockState(shape={self.shape}, coding={self.coding!r}, {kind}, nbytes={self.nbytes:,})"


def zeros_of(shape: tuple[int, ...], dtype: Any, coding: Coding | None, *, signed: bool) -> "Array | BlockState":
    """Make what a state starts with: numbers, or blocks of a coding."""
    return np.zeros(shape, dtype) if coding is None else BlockState.zeros(shape, coding=coding, signed=signed)


def take_state(where: str, own: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Copy a given state into a new one in its form; `where` is an error's text, {} what is wanted."""
    for name, value in own.items():
        if name not in given:
            if name == "master":
                continue
            raise ValueError(f"{where.format(repr(name))}, got {', '.join(given)}")
        new = given[name]
        if isinstance(value, int | float):
            own[name] = type(value)(new)
            continue
        if tuple(np.shape(new) if not isinstance(new, BlockState) else new.shape) != value.shape:
            raise ValueError(f"{where.format(f'{name!r} of shape {value.shape}')}, got {np.shape(new)}")
        if isinstance(value, BlockState):
            own[name] = _recoded(where.format(f"{name!r} of {value.nbytes} bytes"), value, new)
        else:
            value[...] = np.asarray(new)


def _recoded(where: str, own: BlockState, given: Any) -> BlockState:
    """Copy a given state, of numbers or of blocks, as blocks like `own`; `where` is an error's text."""
    if not isinstance(given, BlockState) or given.coding != own.coding:
        return BlockState.from_array(np.asarray(given, np.float32), coding=own.coding, signed=own.signed)
    if (given.codes.shape, given.absmax.shape) != (own.codes.shape, own.absmax.shape):
        raise ValueError(f"{where}, got {given.nbytes}")
    return given.copy()
