"""Tensors by the number of their dtype, which stands in a file."""

from typing import Final

from modelopt_rs.dtypes import BY_ONNX_NUMBER, nbytes
from modelopt_rs.stream.model import TensorInfo

__all__ = ["STRING", "tensor_info"]

STRING: Final = 8
"""The dtype that has no bytes of its own."""


def tensor_info(name: str, dtype: int, shape: tuple[int, ...]) -> TensorInfo:
    """Return what the rest of the package calls a tensor with the number of its dtype."""
    spelled = BY_ONNX_NUMBER[dtype]
    return TensorInfo(name, spelled, shape, nbytes(spelled, shape))
