"""Dtypes of arrays."""

import numpy as np

from modelopt_rs._types import Array

__all__ = ["bf16_to_float32"]


def bf16_to_float32(bits: Array) -> Array:
    """Make float32 of bfloat16 bits in uint16: they are its upper half."""
    return np.asarray(bits.astype(np.uint32) << 16).view(np.float32)
