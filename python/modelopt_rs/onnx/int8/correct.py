"""Bias correction: the mean error of quantized weights taken out of the bias."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.onnx.int8.codes import ChannelCodes, Sums
from modelopt_rs.onnx.int8.equalize import weight_matrix
from modelopt_rs.onnx.int8.layers import Layer
from modelopt_rs.stream.model import TensorInfo

__all__ = ["correct_bias", "is_correctable"]

TOGETHER: Final = 2**20  # weights that are rounded at a time


def is_correctable(layer: Layer, asked: bool | None) -> bool:
    """Say whether a layer's bias is to be corrected: by default where no node comes in for it."""
    return layer.kind == "conv" or layer.bias is not None if asked is None else asked


def correct_bias(layer: Layer, mean: NDArray[np.float64], sums: Sums, threads: int | None) -> None:
    """Subtract the mean output error ``E[Wq x] - E[W x] = (Wq - W) E[x]`` from a layer's bias.

    Of a Conv the mean of a channel is that of all its pixels. Reads the weight once.

    Parameters
    ----------
    layer : Layer
        Its bias is changed.
    mean : ndarray of float64
        Of each input channel.
    sums : Sums
        Of its kernel.
    threads : int, optional

    References
    ----------
    Nagel et al. 2019, arXiv 1906.04721, section 4.2.
    """
    w, means = weight_matrix(layer), mean.reshape(layer.groups, -1)
    shift = np.zeros(len(w))
    step = max(TOGETHER // max(w[0].size, 1), 1)
    for first in range(0, len(w), step):
        part = np.ascontiguousarray(w[first : first + step])
        info = TensorInfo("w", "F32", part.shape, part.nbytes)
        coder = ChannelCodes(info, 0, ("codes", "scale"), sums=sums, threads=threads)
        coder.begin(info.rows)
        made = dict(coder(part.reshape(info.rows, -1)))
        error = made["codes"].reshape(part.shape) * made["scale"].astype(np.float64)[:, None, None] - part
        group = np.arange(first, first + len(part)) // (len(w) // layer.groups)
        shift[first : first + step] = (error.sum(axis=2) * means[group]).sum(axis=1)
    before = np.zeros(layer.outputs) if layer.bias is None else layer.bias.astype(np.float64)
    layer.bias = (before - shift).astype(np.float32)
    layer.changed = True
