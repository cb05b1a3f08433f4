"""Images as a model takes them: resized, framed, normalized, in its layout and dtype, in one pass."""

import math
import sys
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import shown

__all__ = ["Geometry", "Image"]

Resize: TypeAlias = Literal["letterbox", "stretch", "crop"] | None
Interpolation: TypeAlias = Literal["bilinear", "area", "nearest"]
ImageLayout: TypeAlias = Literal["NCHW", "NHWC"]
Images: TypeAlias = Array | Sequence[Array]

CHANNELS: Final = 4
PILLOW: Final = ("RGB", "RGBA", "L", "F")  # modes whose numbers are levels of the channels that they have here
LARGEST: Final = 2**31 - 1
LARGEST_FLOAT: Final = float(np.finfo(np.float32).max)
LEAST_FLOAT: Final = float(np.finfo(np.float32).tiny)
CODES: Final = {"uint8": (0, 255), "int8": (-128, 127)}
NUMBERS: Final = ("float32", "float16", "bfloat16")
CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "resize": ("letterbox", "stretch", "crop", None),
    "interpolation": ("bilinear", "area", "nearest"),
    "layout": ("NCHW", "NHWC"),
    "rounding": ("even", "away"),
}


class Geometry(NamedTuple):
    """Where an image lies in the output: a point (x, y) of it at ``(x * scale_x + left, y * scale_y + top)``.

    A box of the output lies in the image at ``((x - left) / scale_x, (y - top) / scale_y)``.
    """

    scale_x: float
    """Columns of the output to a column of the image."""
    scale_y: float
    """Rows of the output to a row of the image."""
    left: int
    """Columns of border left of the image; negative where as many of the resized image's are left out."""
    top: int
    """Rows of border above it; negative likewise."""
    width: int
    """Columns of the resized image."""
    height: int
    """Its rows."""


class Image:
    """A plan that makes inputs of a model out of images: made once, called for every request.

    For each channel of a pixel ``y = (x * scale - mean) / std`` in float32, each step rounded, and with `quantization`
    ``clamp(round(y / q_scale) + zero_point)``. Before it the image is resized and framed, after it the channels are
    laid out; all in one pass over the pixels, and a batch is one parallel region. The result has the same bits for any
    number of threads, any instruction set, and for an image alone or in a batch.

    Parameters
    ----------
    size : (int, int), optional
        Rows and columns of the output. None (only with ``resize=None``): those of the images.
    resize : {"letterbox", "stretch", "crop"}, optional
        "letterbox": as large as it fits in, in the middle of a border; its sides are rounded half to even. "stretch":
        to the size. "crop": as small as it covers the size, the middle of it. None: images have the size.
    interpolation : {"bilinear", "area", "nearest"}
        "bilinear" as OpenCV's ``INTER_LINEAR``; with `antialias`, as Pillow's ``BILINEAR``. "area": the mean of what an
        output pixel covers (OpenCV's ``INTER_AREA`` where it shrinks). "nearest": the pixel that the middle of the
        output pixel lies in (Pillow's ``NEAREST``).
    antialias : bool
        Widen the bilinear filter where an image shrinks.
    layout : {"NCHW", "NHWC"}
        Of the output.
    swap_channels : bool
        Whether the first and the third channel change places: BGR to RGB. One channel stays as it is.
    scale, pad : float
        What levels are multiplied by; the level of the border.
    mean, std : float or sequence of float
        One for all channels or one each, in the order of the output's channels.
    dtype : {float32, float16, bfloat16, uint8, int8} or "bf16"
        Of the output; "bf16": bfloat16 bits as uint16.
    quantization : (float, int), optional
        Scale and zero point of uint8 and int8 outputs, which need them: those of the model's input. For levels as they
        are pass ``(scale, 0)``.
    rounding : {"even", "away"}
        Halves of codes: to even, as ONNX's QuantizeLinear and TensorFlow Lite's optimized kernels; away from 0, as the
        reference kernels of TensorFlow Lite.
    threads : int, optional
        Threads of each call; never changes the result.

    Raises
    ------
    TypeError
        If an argument has a wrong type.
    ValueError
        If an argument is out of its range, or `quantization` and `dtype` don't fit each other.

    See Also
    --------
    modelopt_rs.quant.Calibrator : Scales and zero points from data.

    Notes
    -----
    A uint8 image is resized to uint8 levels (rounded half to even), as OpenCV and Pillow do, so that what
    follows has only 256 values for each channel; an image of floats is not rounded. Weights are float32; columns are
    summed up first, then rows. Resizing copies no more than a row at a time.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> plan = mo.preprocess.Image(size=(4, 4), pad=255)
    >>> plan(np.zeros((2, 4, 3), np.uint8))[0, 0]
    array([[1., 1., 1., 1.],
           [0., 0., 0., 0.],
           [0., 0., 0., 0.],
           [1., 1., 1., 1.]], dtype=float32)
    >>> plan.geometry((2, 4))
    Geometry(scale_x=1.0, scale_y=1.0, left=0, top=1, width=4, height=2)
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        *,
        resize: Resize = "letterbox",
        interpolation: Interpolation = "bilinear",
        antialias: bool = False,
        layout: ImageLayout = "NCHW",
        swap_channels: bool = False,
        scale: float = 1 / 255,
        mean: ArrayLike = 0.0,
        std: ArrayLike = 1.0,
        pad: float = 114,
        dtype: DTypeLike | Literal["bf16"] = np.float32,
        quantization: tuple[float, int] | None = None,
        rounding: Literal["even", "away"] = "even",
        threads: int | None = None,
    ) -> None:
        self._options = {name: value for name, value in locals().items() if name != "self"}
        for name, choices in CHOICES.items():
            value = self._options[name]
            if not isinstance(value, str | None) or value not in choices:
                raise ValueError(f"Image: {name} must be {_listed(choices)}, got {shown(value)}")
        for name in ("antialias", "swap_channels"):
            if not isinstance(self._options[name], bool | np.bool_):
                raise TypeError(f"Image: {name} must be a bool, got {self._options[name]!r}")
        if antialias and interpolation != "bilinear":
            raise ValueError(f"Image: antialias must be False where interpolation is {interpolation!r}, got True")
        name, self._empty = _dtype(dtype)
        means, n_means = _by_channel("mean", mean)
        stds, n_stds = _by_channel("std", std)
        if 0.0 in stds:
            raise ValueError(f"Image: std must not be 0 in float32, got {std!r}")
        if n_means is not None and n_stds is not None and n_means != n_stds:
            raise ValueError(f"Image: std must have {n_means} numbers like mean, got {n_stds}")
        self._threads = threads
        self._plan = _core.ImagePlan(
            (_size(size, resize), resize or "same", "triangle" if antialias else interpolation, layout == "NCHW",
             bool(swap_channels)),
            (_number("scale", scale), means, stds, _number("pad", pad)),
            n_stds if n_means is None else n_means,
            (name, _codes(name, quantization, rounding)),
        )  # fmt: skip

    def __call__(self, images: Images, out: Array | None = None) -> Array:
        """Make the input of a model.

        Parameters
        ----------
        images : ndarray or list of ndarray
            One image (rows, columns, channels), a batch with one more axis before, or a list of images of any sizes:
            all of uint8, float32, float64, float16 or bfloat16 (computed in float32), with 1, 3 or 4 channels. Not
            written. Rows may lie anywhere: a part of an image, or one upside down, is read where it lies. Where pixels
            of a row lie apart (mirrored, channels reversed: see `swap_channels`) it is copied first. Images of Pillow
            are taken too (copied; as they are stored, whatever their EXIF says): of modes RGB, RGBA, L and F.
        out : ndarray, optional
            C-contiguous, of the plan's dtype: written and returned. A slice of a larger batch, the memory of a
            session's input; for one image the axis of the batch may be missing. No other array is allocated then.

        Returns
        -------
        ndarray
            Of shape (N, C, H, W) or (N, H, W, C); N is 1 for one image.

        Raises
        ------
        TypeError
            If an image or `out` has another dtype.
        ValueError
            If an image has another number of axes or channels, no pixels, or would shrink to none; if `out` has another
            shape, is read-only, not contiguous, or overlaps an image. Nothing is written then.

        Notes
        -----
        What is not finite in an image of floats spreads to the output pixels that it has a weight in. The code of NaN
        is the zero point; infinities saturate.
        """
        if type(images) is not np.ndarray:
            images = _pixels(images)
        if out is None:
            shape = self._plan.shape(images)
            if math.prod(shape) * self._empty.itemsize > sys.maxsize:
                raise ValueError(f"Image: size must make arrays of at most {sys.maxsize} bytes, got shape {shape}")
            out = np.empty(shape, self._empty)
        self._plan.run(images, out, self._threads)
        return out

    def geometry(self, shape: tuple[int, ...]) -> Geometry:
        """Say where an image of a shape lies in the output, to map boxes back.

        Parameters
        ----------
        shape : (int, int) or (int, int, int)
            Rows and columns of an image; its channels don't matter.

        Raises
        ------
        TypeError
            If `shape` is no tuple of integers.
        ValueError
            If there is no pixel, or none would be left.

        Examples
        --------
        >>> import modelopt_rs as mo
        >>> g = mo.preprocess.Image(size=(640, 640)).geometry((1080, 1920, 3))
        >>> (320 - g.left) / g.scale_x, (320 - g.top) / g.scale_y
        (960.0, 540.0)
        """
        whole = isinstance(shape, tuple) and all(_is_int(n) for n in shape)
        if not whole or len(shape) not in (2, 3):
            raise TypeError(f"geometry: shape must be 2 or 3 integers, got {shape!r}")
        rows, columns = (int(n) for n in shape[:2])
        if not (1 <= rows <= LARGEST and 1 <= columns <= LARGEST):
            raise ValueError(f"geometry: shape must have sides from 1 to {LARGEST}, got {shape!r}")
        height, width, top, left = self._plan.geometry(rows, columns)
        return Geometry(width / columns, height / rows, left, top, width, height)

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as the options that it was made of."""
        return _of_options, (self._options,)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"Image({given})"


def _of_options(options: dict[str, Any]) -> Image:
    return Image(**options)


def _pixels(images: Any) -> Any:
    """Return images of Pillow as arrays, the rest as it is."""
    if isinstance(images, list | tuple):
        return [_of_pillow(image, f"images[{i}]") for i, image in enumerate(images)]
    return _of_pillow(images, "images")


def _of_pillow(image: Any, name: str) -> Any:
    if not hasattr(image, "getbands"):
        return image
    if image.mode not in PILLOW:
        modes, fix = f"{', '.join(PILLOW[:-1])} or {PILLOW[-1]}", "pass image.convert('RGB')"
        raise ValueError(f"Image: {name} must have mode {modes}, got an image of mode {image.mode}; {fix}")
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _listed(choices: tuple[Any, ...]) -> str:
    words = [repr(choice) for choice in choices]
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _size(size: Any, resize: Resize) -> tuple[int, int] | None:
    if size is None:
        if resize is not None:
            raise ValueError(f"Image: size must be given where resize is {resize!r}, got None")
        return None
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(_is_int(n) for n in size):
        raise TypeError(f"Image: size must be two integers, rows and columns, got {size!r}")
    if not all(1 <= n <= LARGEST for n in size):
        raise ValueError(f"Image: size must be from 1 to {LARGEST}, got {size!r}")
    return int(size[0]), int(size[1])


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"Image: {name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int
        number = math.inf
    if not abs(number) <= LARGEST_FLOAT:
        raise ValueError(f"Image: {name} must be finite in float32, got {shown(value)}")
    return number


def _by_channel(name: str, value: Any) -> tuple[list[float], int | None]:
    """One number for each of 4 channels, and how many were given where there was one for each."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except OverflowError:  # an int
        raise ValueError(f"Image: {name} must be finite in float32, got {shown(value)}") from None
    except (TypeError, ValueError):
        raise TypeError(f"Image: {name} must be a number or one for each channel, got {shown(value)}") from None
    if numbers.ndim > 1 or (numbers.ndim == 1 and numbers.size not in (1, 3, 4)):
        raise ValueError(f"Image: {name} must be a number, or 1, 3 or 4 of them, got {value!r}")
    rounded = [float(np.float32(n)) if abs(n) <= LARGEST_FLOAT else math.nan for n in numbers.ravel()]
    if any(math.isnan(n) for n in rounded):
        raise ValueError(f"Image: {name} must be finite in float32, got {value!r}")
    channels = numbers.size if numbers.size > 1 else None
    return (rounded * CHANNELS)[:CHANNELS] if len(rounded) == 1 else (rounded + rounded[-1:])[:CHANNELS], channels


def _dtype(dtype: Any) -> tuple[str, np.dtype[Any]]:
    if isinstance(dtype, str) and dtype == "bf16":
        return "bfloat16", np.dtype(np.uint16)
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or wanted.name not in (*NUMBERS, *CODES) or not wanted.isnative:
        got = repr(dtype) if wanted is None else wanted
        raise TypeError(f"Image: dtype must be float32, float16, bfloat16, 'bf16', uint8 or int8, got {got}")
    return wanted.name, wanted


def _codes(dtype: str, quantization: Any, rounding: str) -> tuple[float, int, int, int, bool] | None:
    if dtype not in CODES:
        if quantization is not None:
            raise ValueError(f"Image: quantization must be None where dtype is {dtype}, got {quantization!r}")
        return None
    if quantization is None:
        fix = "pass the (scale, zero_point) of the model's input, or (scale, 0) for levels as they are"
        raise ValueError(f"Image: quantization must be given where dtype is {dtype}, got None; {fix}")
    if not isinstance(quantization, tuple | list) or len(quantization) != 2:
        raise TypeError(f"Image: quantization must be (scale, zero_point), got {quantization!r}")
    # As ONNX's initializers and TensorFlow Lite's parameters are read: arrays of one number.
    scale, zero_point = (v.flat[0] if isinstance(v, np.ndarray) and v.size == 1 else v for v in quantization)
    step = float(np.float32(_number("quantization's scale", scale)))
    if not step >= LEAST_FLOAT:
        raise ValueError(f"Image: quantization's scale must be a normal positive float32, got {scale!r}")
    least, largest = CODES[dtype]
    if not _is_int(zero_point):
        raise TypeError(f"Image: quantization's zero_point must be an integer, got {zero_point!r}")
    if not least <= zero_point <= largest:
        text = f"from {least} to {largest} for {dtype}, got {zero_point}"
        raise ValueError(f"Image: quantization's zero_point must be {text}")
    return step, int(zero_point), least, largest, rounding == "away"
