"""Weights to int8 with a scale for each output channel, and biases to int32, for integer kernels.

Processors with AVX2 or AVX-512 but without VNNI add two products of a byte and a signed byte in 16 bits (vpmaddubsw),
and saturate: onnxruntime's results would depend on the machine. ``255 * 128 = 32,640`` fits, so two codes that are
added may make 128 together, and are then as fine as they can be; of two with different signs each may be 127. Which two
these are is the order of onnxruntime's MLAS: neighbours along the inputs, of a Conv for each position of its kernel
(convsym.cpp: MlasConvSymPackW; qlinearconv.cc: ReorderFilter; the packing of QgemmU8S8KernelAvx2). A depthwise Conv
adds in 32 bits (qdwconv.cpp). Where the order is not known codes go to 64. The alternative, unsigned weights, is exact
everywhere and half as fast (a Conv 115 us instead of 49, a MatMul 96 instead of 47); of signed activations onnxruntime
does not fuse a Conv with a Relu.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core, reduce
from modelopt_rs._types import Array
from modelopt_rs.dtypes import widened
from modelopt_rs.quant import dequantize, quantize
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["LARGEST", "Bias", "ChannelCodes", "Scaling", "Sums"]

LARGEST: Final = 127
"""The largest code of a weight."""
# A bias is at most so many steps: int32 has room for the products besides.
BIAS_STEPS = 2**30

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bias:
    """A bias that is added to products of integers: ``round(values / scale)``, ``scale = x_scale * weight scale``.

    Attributes
    ----------
    names : (str, str)
        The tensor of int32 that it becomes, and its scales.
    values : ndarray of float32
    x_scale : float
        The scale of the activations.
    """

    names: tuple[str, str]
    values: Vector
    x_scale: float


class Sums(Enum):
    """What a kernel adds in 16 bits."""

    NOTHING = "nothing"
    """Every product is added in 32."""
    PAIRS = "pairs"
    """Products of two neighbouring inputs, from the first on."""
    ANY = "any"
    """Of any two."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a weight is multiplied by before: a number for each input channel, and for each output channel."""

    inputs: Vector | None = None
    outputs: Vector | None = None


class ChannelCodes(Transform):
    """The transform of a weight to codes ``round(w / scale)``, with a scale for each output channel.

    What 127 is the code of is the largest weight of a channel, or the largest sum of two that are added in 16 bits.

    Parameters
    ----------
    info : TensorInfo
        The weight: any number of axes if its channels are the first, else two.
    axis : {0, 1}
        The axis of the output channels; the other is that of the inputs (of a Conv, within a group).
    names : (str, str)
        Of the codes and of the scales.
    scaling : Scaling
        What is folded in.
    sums : Sums
        What kernels add in 16 bits. Neighbours of a Conv are the input channels of a position of its kernel; then those
        of the next.
    biases : sequence of Bias
        One for each node that has the weight. Where one is very large beside the weights of its channel, their scale is
        larger.
    threads : int, optional

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.onnx.int8.codes import ChannelCodes
    >>> codes = ChannelCodes(TensorInfo("w", "F32", (2, 2), 16), 0, ("w_quantized", "w_scale"))
    >>> codes.begin(2)
    >>> dict(codes(np.array([[1.0, 1.0], [4.0, -1.0]], np.float32)))["w_quantized"]
    array([[ 64,  64],
           [127, -32]], dtype=int8)
    """

    def __init__(
        self,
        info: TensorInfo,
        axis: int,
        names: tuple[str, str],
        *,
        scaling: Scaling | None = None,
        sums: Sums = Sums.PAIRS,
        biases: Sequence[Bias] = (),
        threads: int | None = None,
    ) -> None:
        self._info, self._axis, self._sums, self._biases, self._threads = info, axis, sums, biases, threads
        self._scaling = scaling or Scaling()
        self._names = names
        self._channels = info.shape[axis]
        # Rows of a tile that belong together: all of an output channel, or two input channels, which are added.
        self.row_multiple = max(math.prod(info.shape[1:]) // info.columns, 1) if axis == 0 else 2
        vector = (self._channels,)
        self.outputs: Sequence[TensorInfo] = [
            TensorInfo(names[0], "I8", info.shape, math.prod(info.shape)),
            TensorInfo(names[1], "F32", vector, 4 * self._channels),
            *(TensorInfo(name, dtype, vector, 4 * self._channels) for bias in biases for name, dtype in _parts(bias)),
        ]
        self.sweeps = 1 if axis == 0 else 2
        vectors = Buffer("f4", 2 + 2 * len(biases))  # peaks, scales, biases and theirs
        self.buffers = [
            Buffer("f4", 3 * info.columns),  # widened, with a sentinel and scaled; and numbers again
            Buffer("u1", info.columns),
            Buffer("f4", 2),  # sentinels
            vectors if axis == 0 else vectors.times(self._channels, 0),
        ]
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Get ready for the first tile."""
        self._done = 0
        self._measuring = self.sweeps == 2
        self._peak: Vector = np.zeros(self._channels if self._measuring else 0, np.float32)
        self._scale: Vector | None = None

    def __call__(self, array: Array) -> Rows:
        """Take the next tile: measure it, or return its codes."""
        w = np.asarray(widened(array, self._info.dtype), np.float32)
        w = self._scaled(w if self._axis == 1 else w.reshape(len(array) // self.row_multiple, -1))
        first, self._done = self._done, self._done + len(w)
        if self._measuring:
            # NaN stays: `quantize` names it in the next pass.
            self._peak = np.maximum(self._peak, self._peaks(w))
            return []
        if self._axis == 1:
            return [(self._names[0], self._codes(w, self._sentinels(self._peak, slice(None)))[0])]
        rows = slice(first, self._done)
        codes, scale = self._codes(w, self._sentinels(self._peaks(w), rows))
        return [(self._names[0], codes.reshape(array.shape)), *self._vectors(scale, rows)]

    def end(self) -> Rows:
        """Return, after the last pass, the scales and biases of columns."""
        self._done = 0
        if self._measuring:
            self._measuring = False
            return []
        if self._axis == 0 or self._scale is None:
            return []
        return self._vectors(self._scale, slice(None))

    def _scaled(self, w: Vector) -> Vector:
        """Multiply a tile, a matrix of rows, by what is folded in."""
        rows = slice(self._done, self._done + len(w))
        inputs, outputs = self._scaling.inputs, self._scaling.outputs
        if inputs is not None and self._axis == 0:
            w = w * self._of_columns(inputs, rows, w.shape[1])
        elif inputs is not None:
            w = w * inputs[rows, None]
        if outputs is not None:
            w = w * (outputs[rows, None] if self._axis == 0 else outputs)
        return w

    def _of_columns(self, inputs: Vector, rows: slice, columns: int) -> Vector:
        """Return the factors of the input channels for each element of rows: a Conv has only its group's in a row."""
        within = self._info.shape[1]
        each = np.repeat(inputs.reshape(-1, within), columns // within, axis=1)
        if len(each) == 1:
            return each
        group = np.arange(rows.start, rows.stop) // (self._channels // len(each))
        return np.asarray(each[group])

    def _peaks(self, w: Vector) -> Vector:
        """Return the numbers of channels whose code is to be the largest."""
        each: Vector = np.asarray(reduce.absmax(w, axis=1 - self._axis, threads=self._threads))
        if self._sums is Sums.ANY:
            return np.asarray(each * np.float32(LARGEST / 64), np.float32)
        if self._axis == 0 and w.shape[1] > (within := self._info.shape[1]):
            w = np.ascontiguousarray(np.swapaxes(w.reshape(len(w), within, -1), 1, 2)).reshape(len(w), -1)
        half = w.shape[1 - self._axis] // 2
        if self._sums is Sums.NOTHING or not half:
            return each
        one, other = (w[:, i : 2 * half : 2] if self._axis == 0 else w[i : 2 * half : 2] for i in (0, 1))
        return np.asarray(np.maximum(each, reduce.absmax(one + other, axis=1 - self._axis, threads=self._threads)))

    def _sentinels(self, peak: Vector, rows: slice) -> Vector:
        """Return what the largest number of a channel would be if 127 were its code."""
        for bias in self._biases:
            least = np.abs(bias.values[rows]).astype(np.float64) * LARGEST / (bias.x_scale * BIAS_STEPS)
            peak = np.maximum(peak, least.astype(np.float32))
        return peak

    def _codes(self, w: Vector, sentinels: Vector) -> tuple[NDArray[np.int8], Vector]:
        """Quantize rows or columns together with the sentinels that set their scale."""
        # No kernel takes a scale that is given; one more element for each channel makes the scale.
        wider = np.concatenate([w, sentinels[:, None] if self._axis == 0 else sentinels[None]], axis=1 - self._axis)
        made = quantize(wider, axis=self._axis, threads=self._threads)
        back = dequantize(made, threads=self._threads)
        keep = (slice(None), slice(-1)) if self._axis == 0 else (slice(-1), slice(None))
        self.figures += ErrorFigures(*_core.error_stats(w, np.ascontiguousarray(back[keep]), None, self._threads))
        self._scale = made.scale
        return np.ascontiguousarray(made.codes[keep]), made.scale

    def _vectors(self, scale: Vector, rows: slice) -> list[tuple[str, Array]]:
        made: list[tuple[str, Array]] = [(self._names[1], scale)]
        for bias in self._biases:
            step = np.float32(bias.x_scale) * scale
            steps = np.rint(bias.values[rows] / step.astype(np.float64)).astype(np.int32)
            made += [(bias.names[0], steps), (bias.names[1], step)]
        return made


def _parts(bias: Bias) -> tuple[tuple[str, str], tuple[str, str]]:
    return (bias.names[0], "I32"), (bias.names[1], "F32")
