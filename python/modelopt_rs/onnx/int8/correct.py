"""Bias correction: the mean error of quantized weights taken out of the bias."""

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.onnx.int8.codes import ChannelCodes
from modelopt_rs.onnx.int8.equalize import weight_matrix
from modelopt_rs.onnx.int8.layers import Layer
from modelopt_rs.stream.model import TensorInfo

__all__ = ["correct_bias"]


def correct_bias(layer: Layer, mean: NDArray[np.float64], threads: int | None) -> None:
    """Subtract the mean output error ``E[Wq x] - E[W x] = (Wq - W) E[x]`` from a layer's bias.

    Of a Conv the mean of a channel is that of all its pixels. Reads the weight once.

    Parameters
    ----------
    layer : Layer
        Its bias is changed.
    mean : ndarray of float64
        Of each input channel.
    threads : int, optional

    References
    ----------
    Nagel et al. 2019, arXiv 1906.04721, section 4.2.
    """
    w = weight_matrix(layer)
    flat = np.ascontiguousarray(w.reshape(len(w), -1))
    coder = ChannelCodes(TensorInfo("w", "F32", flat.shape, flat.nbytes), 0, ("codes", "scale"), threads=threads)
    coder.begin(len(flat))
    made = dict(coder(flat))
    error = made["codes"].astype(np.float64) * made["scale"].astype(np.float64)[:, None] - flat
    by_input = error.reshape(w.shape).sum(axis=2)
    means = np.repeat(mean.reshape(layer.groups, -1), len(w) // layer.groups, axis=0)
    shift = (by_input * means).sum(axis=1)
    before = np.zeros(layer.outputs) if layer.bias is None else layer.bias.astype(np.float64)
    layer.bias = (before - shift).astype(np.float32)
    layer.changed = True
