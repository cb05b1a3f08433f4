"""How convolutions cut what they take into the rows that they multiply their weights with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.onnx.weights import Use

__all__ = ["Patches"]

PATCH_BYTES = 32 * 2**20  # of the patches of an image that are made at a time


@dataclass(frozen=True, slots=True)
class Patches:
    """How a convolution cuts its input: what it multiplies its weights with, a row for each output position.

    Columns are in the order of kernel positions, of each its channels.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.measure.patches import Patches
    >>> patches = Patches((2,), (1,), (1,), (0, 0), "NOTSET", 1)
    >>> [rows.tolist() for rows in patches.rows(np.arange(3.0).reshape(1, 1, 3), 0)]
    [[[0.0, 1.0], [1.0, 2.0]]]
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    groups: int

    @classmethod
    def of(cls, use: Use, shape: Sequence[int]) -> "Patches":
        """Return what a Conv does, given the shape of its weight."""
        kernel, attributes = tuple(shape[2:]), use.node.attributes
        ones = (1,) * len(kernel)

        def ints(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(attributes[name].as_ints()) if name in attributes else default

        return cls(
            kernel,
            ints("strides", ones),
            ints("dilations", ones),
            ints("pads", (0,) * (2 * len(kernel))),
            attributes["auto_pad"].as_string() if "auto_pad" in attributes else "NOTSET",
            attributes.get_int("group", 1),
        )

    def rows(self, x: Array, group: int) -> Iterator[Array]:
        """Yield the patches of the channels of one group, some at a time."""
        channels = x.shape[1] // self.groups
        x = x[:, group * channels : (group + 1) * channels]
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        x = np.pad(x, [(0, 0), (0, 0), *self._pads(x.shape[2:], spans)])
        axes = tuple(range(2, x.ndim))
        if any(length < span for length, span in zip(x.shape[2:], spans, strict=True)):
            return
        windows = np.lib.stride_tricks.sliding_window_view(x, spans, axes)  # (batch, channels, out ..., kernel ...)
        steps = [slice(None, None, step) for step in (*self.strides, *self.dilations)]
        windows = np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, -1)
        columns = windows[0].size // max(1, int(np.prod(windows.shape[1 : 1 + len(axes)]))) if len(windows) else 1
        each = max(1, int(np.prod(windows.shape[2 : 1 + len(axes)]))) * columns * x.itemsize
        together = max(1, PATCH_BYTES // max(1, each))
        for image in windows:
            for first in range(0, len(image), together):
                yield np.ascontiguousarray(image[first : first + together]).reshape(-1, columns)

    def _pads(self, lengths: Sequence[int], spans: Sequence[int]) -> list[tuple[int, int]]:
        n = len(lengths)
        if self.auto_pad in ("NOTSET", ""):
            return list(zip(self.pads[:n], self.pads[n:], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * n
        pads = []
        for length, span, step in zip(lengths, spans, self.strides, strict=True):
            missing = max((-(-length // step) - 1) * step + span - length, 0)
            less, more = missing // 2, missing - missing // 2
            pads.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return pads
