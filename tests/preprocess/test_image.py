"""Images against the plain formula in float32 and a float64 resize, then the laws of layouts, cutting, and refusals."""

import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from modelopt_rs import preprocess
from modelopt_rs.preprocess import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INT8 = {"dtype": np.int8, "quantization": (0.02, -3)}
RNG = np.random.default_rng(14)


def levels(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def formula(x, *, scale=1 / 255, mean=0.0, std=1.0, swap=False, layout="NCHW"):
    """The plain formula, in float32 in its order; `x` is a batch."""
    f = np.float32
    if swap and x.shape[-1] > 1:
        x = x[..., [2, 1, 0, 3][: x.shape[-1]]]
    y = (x.astype(f) * f(scale) - np.asarray(mean, f)) / np.asarray(std, f)
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if layout == "NCHW" else y


def quantized(y, scale, zero_point, low, high, rounding="even"):
    v = y / np.float32(scale)
    v = np.where(np.isnan(v), 0, v)
    v = np.clip(v.astype(np.float64), -1e6, 1e6)
    rounded = np.rint(v) if rounding == "even" else np.sign(v) * np.floor(np.abs(v) + 0.5)
    return np.clip(rounded + zero_point, low, high).astype(np.int64)


def bits(x):
    x = np.ascontiguousarray(x)
    return x.view(f"u{x.itemsize}")


def same(a, b):
    assert a.shape == b.shape
    np.testing.assert_array_equal(bits(a), bits(b))


def weights(kind, n, size):
    """The matrix of a resize along one axis, in float64."""
    ratio, matrix = n / size, np.zeros((size, n))
    for i in range(size):
        middle = (i + 0.5) * ratio
        if kind == "nearest":
            matrix[i, ((2 * i + 1) * n) // (2 * size)] = 1
        elif kind == "area":
            low, high = i * ratio, (i + 1) * ratio
            for j in range(int(low), min(int(np.ceil(high - 1e-9)), n)):
                matrix[i, j] = max(0.0, min(high, j + 1) - max(low, j)) / ratio
        else:
            width = max(ratio, 1.0) if kind == "triangle" else 1.0
            offsets = (np.arange(n) + 0.5 - middle) / width
            row = np.maximum(0, 1 - np.abs(offsets))
            if kind == "bilinear":
                place = np.clip(middle - 0.5, 0, n - 1)
                row = np.maximum(0, 1 - np.abs(np.arange(n) - place))
            matrix[i] = row / row.sum()
    return matrix


def resized(x, size, kind):
    rows, columns = weights(kind, x.shape[0], size[0]), weights(kind, x.shape[1], size[1])
    return np.einsum("ih,jw,hwc->ijc", rows, columns, x.astype(np.float64))


KINDS = {
    "bilinear": {},
    "triangle": {"antialias": True},
    "area": {"interpolation": "area"},
    "nearest": {"interpolation": "nearest"},
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_b1_a_batch_of_levels_is_the_plain_formula_bit_for_bit(channels, layout, isa):
    mean, std = ([*MEAN, 0.3][:channels], [*STD, 0.7][:channels]) if channels > 1 else (0.4, 0.3)
    for width in [1, 2, 3, 15, 16, 17, 63, 64, 65, 129, 200]:
        x = levels(2, 5, width, channels)
        for swap in (False, True):
            options = {"mean": mean, "std": std, "layout": layout, "swap_channels": swap}
            want = formula(x, mean=mean, std=std, swap=swap, layout=layout)
            same(Image(resize=None, **options)(x), want)
            same(Image(resize=None, dtype=np.float16, **options)(x), want.astype(np.float16))
            brain = want.astype(ml_dtypes.bfloat16)
            same(Image(resize=None, dtype=ml_dtypes.bfloat16, **options)(x), brain)
            same(Image(resize=None, dtype="bf16", **options)(x), brain.view(np.uint16))
            for dtype, zero_point in (("int8", -3), ("uint8", 128)):
                for rounding in ("even", "away"):
                    codes = {"dtype": dtype, "quantization": (0.02, zero_point), "rounding": rounding}
                    info = np.iinfo(dtype)
                    got = Image(resize=None, **options, **codes)(x)
                    assert got.dtype == dtype
                    coded = quantized(want, 0.02, zero_point, info.min, info.max, rounding)
                    np.testing.assert_array_equal(got, coded)


@pytest.mark.parametrize(
    ("scale", "mean", "std"), [(1 / 255, 0, 1), (1, 127.5, 127.5), (1, 0, 3e-39), (1e-30, 0, 1e30)]
)
def test_b1_every_level_is_the_plain_formula_for_any_constants(scale, mean, std, isa):
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    for layout in ("NCHW", "NHWC"):
        with np.errstate(over="ignore", under="ignore"):
            want = formula(x, scale=scale, mean=mean, std=std, layout=layout)
        same(Image(resize=None, scale=scale, mean=mean, std=std, layout=layout)(x), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_b1_floats_are_the_plain_formula_bit_for_bit(dtype, isa):
    x = (RNG.standard_normal((2, 7, 67, 3)) * 100).astype(dtype)
    want = formula(x.astype(np.float32), mean=MEAN, std=STD)
    same(Image(resize=None, mean=MEAN, std=STD)(x), want)
    got = Image(resize=None, mean=MEAN, std=STD, dtype="int8", quantization=(0.3, 5))(x)
    np.testing.assert_array_equal(got, quantized(want, 0.3, 5, -128, 127))


def test_a2_the_code_of_nan_is_the_zero_point_and_infinities_saturate(isa):
    x = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32).reshape(1, 1, 4, 1)
    for zero_point in (-7, 0, 100):
        got = Image(resize=None, scale=1, dtype=np.int8, quantization=(1.0, zero_point))(x)
        assert got.ravel().tolist() == [zero_point, 127, -128, zero_point + 1]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_b1_resized_levels_are_a_float64_resize_rounded_to_levels(kind, channels):
    shapes = [((1, 1), (3, 5)), ((2, 1), (1, 4)), ((1, 2), (7, 1)), ((31, 47), (31, 20)), ((45, 64), (15, 32))]
    for shape, size in [*shapes, ((40, 33), (91, 70)), ((120, 90), (17, 23)), ((3, 500), (2, 7))]:
        x = levels(*shape, channels)
        got = Image(size=size, resize="stretch", scale=1, layout="NHWC", **KINDS[kind])(x)[0]
        want = resized(x, size, kind)
        off = np.abs(got - want)
        assert (off <= 0.5 + 1e-4).all(), off.max()
        assert (got == np.rint(got)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_b1_resized_floats_are_a_float64_resize(kind):
    for size in [(9, 11), (80, 60)]:
        x = RNG.standard_normal((37, 29, 3)).astype(np.float32)
        got = Image(size=size, resize="stretch", scale=1, layout="NHWC", **KINDS[kind])(x)[0]
        np.testing.assert_allclose(got, resized(x, size, kind), rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (7, 7), (1, 2), (200, 41)])
def test_b1_a_letterbox_is_the_resized_image_within_its_border(shape, layout):
    x = levels(*shape, 3)
    plan = Image(size=(40, 48), pad=100, mean=MEAN, std=STD, layout=layout)
    g = plan.geometry(x.shape)
    inner = Image(size=(g.height, g.width), resize="stretch", scale=1, layout="NHWC")(x)
    framed = np.full((1, 40, 48, 3), 100, np.float32)
    framed[:, g.top : g.top + g.height, g.left : g.left + g.width] = inner
    same(plan(x), formula(framed, mean=MEAN, std=STD, layout=layout))
    ratio = min(40 / shape[0], 48 / shape[1])
    assert (g.height, g.width) == (round(shape[0] * ratio), round(shape[1] * ratio))
    assert (g.top, g.left) == ((40 - g.height) // 2, (48 - g.width) // 2)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (7, 7), (1, 3), (200, 41)])
def test_b1_a_crop_is_the_middle_of_the_resized_image(shape):
    x = levels(*shape, 3)
    plan = Image(size=(24, 20), resize="crop", scale=1, layout="NHWC")
    g = plan.geometry(x.shape)
    whole = Image(size=(g.height, g.width), resize="stretch", scale=1, layout="NHWC")(x)
    same(plan(x), np.ascontiguousarray(whole[:, -g.top : 24 - g.top, -g.left : 20 - g.left]))
    assert g.height == 24 or g.width == 20


def test_geometry_maps_a_box_of_the_output_back():
    g = Image(size=(640, 640)).geometry((1080, 1920, 3))
    assert g == preprocess.Geometry(640 / 1920, 360 / 1080, 0, 140, 640, 360)
    assert ((320 - g.left) / g.scale_x, (320 - g.top) / g.scale_y) == (960.0, 540.0)


def test_b11_the_same_bits_for_instruction_sets_threads_and_ways_of_cutting(isas):
    from modelopt_rs import _core

    shapes = [(1, 1), (2, 1), (333, 500), (64, 48), (480, 270)]
    for kind in KINDS:
        for options in ({}, {"layout": "NHWC", "swap_channels": True}, INT8, {"dtype": np.float16}):
            images = [levels(*shape, 3) for shape in shapes]
            want = None
            for isa in isas:
                _core.set_isa(isa)
                for threads in (1, 2, 3, 8):
                    plan = Image(size=(160, 224), mean=MEAN, std=STD, threads=threads, **options, **KINDS[kind])
                    whole = plan(images)
                    want = whole if want is None else want
                    same(whole, want)
                same(np.concatenate([plan(image) for image in images]), want)
                same(np.concatenate([plan(images[:2]), plan(images[2:])]), want)


CUTS = {
    "a part": lambda x: x[3:-2, 5:-7],
    "upside down": lambda x: x[::-1],
    "every other row": lambda x: x[1::2],
    "every other row, upside down": lambda x: x[::-2, 4:],
    "one column": lambda x: x[:, 9:10],
    "one row again and again": lambda x: np.broadcast_to(x[3:4], x.shape),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("cut", CUTS)
def test_parts_of_images_are_read_where_they_lie(cut, dtype):
    x = levels(41, 53, 3).astype(dtype)
    part = CUTS[cut](x)
    assert not part.flags.c_contiguous
    whole, others = np.ascontiguousarray(part), [levels(9, 8, 3).astype(dtype), CUTS[cut](x), x]
    for options in ({"size": (24, 30), "resize": "crop"}, {"size": (24, 30), "resize": "stretch", "layout": "NHWC"}):
        plan = Image(**options)
        same(plan(part), plan(whole))
        same(plan(others), plan([np.ascontiguousarray(each) for each in others]))
    same(Image(resize=None, **INT8)(part), Image(resize=None, **INT8)(whole))


def test_parts_of_a_batch_are_read_where_they_lie():
    x = levels(5, 41, 53, 3)
    plan = Image(size=(24, 24), resize="stretch")
    for part in (x[:, 3:-2, 5:-7], x[::-2], x[1:4, ::-1, 1:], x[:, 20:21], x[:0, 3:]):
        same(plan(part), plan(np.ascontiguousarray(part)))


def test_a_part_of_an_image_is_not_copied():
    frame, plan, out = levels(2000, 3000, 3), Image(size=(64, 64), threads=1), np.empty((1, 3, 64, 64), np.float32)
    for part in (frame[:1500, :2500], frame[::-1], frame[::3]):
        plan(part, out=out)
        tracemalloc.start()
        plan(part, out=out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000, peak


def test_what_is_written_is_no_part_of_the_image():
    memory = levels(64, 64, 3)
    plan = Image(size=(8, 8), layout="NHWC", dtype=np.uint8, quantization=(1 / 255, 0))
    before = memory.copy()
    with pytest.raises(ValueError, match="Image: out and images overlap in memory"):
        plan(memory[::-1, 8:], out=memory.reshape(-1)[640:832].reshape(8, 8, 3))
    assert (memory == before).all()


def test_c5_any_strides_give_what_a_contiguous_copy_gives():
    x = levels(60, 80, 6)
    plan = Image(size=(32, 32), mean=MEAN, std=STD)
    planes = np.ascontiguousarray(x[..., :3].transpose(2, 0, 1))
    views = [x[::-1, ::-1, 2::-1], x[::2, 1::3, ::2], x[5:40, 7:70, :3], planes.transpose(1, 2, 0)]
    for view in [*views, np.broadcast_to(x[:1, :, :3], (9, 80, 3))]:
        same(plan(view), plan(np.ascontiguousarray(view)))
    with_offset = np.frombuffer(b"\0" + x[..., :3].tobytes(), np.uint8)[1:].reshape(60, 80, 3)
    same(plan(with_offset), plan(np.ascontiguousarray(x[..., :3])))


def test_out_may_be_a_slice_of_a_batch_and_nothing_else_is_written():
    x = levels(3, 20, 30, 3)
    for options in ({}, INT8, {"dtype": np.float16, "layout": "NHWC"}):
        plan = Image(size=(16, 24), **options)
        want = plan(x)
        batch = np.full((7, *want.shape[1:]), 9, want.dtype)
        assert plan(x, out=batch[2:5]).base is batch
        same(batch[2:5], want)
        assert (batch[:2] == 9).all()
        assert (batch[5:] == 9).all()
        plan(x[1], out=batch[6])
        plan(x[1], out=batch[:1])
        same(batch[6], want[1])
        same(batch[0], want[1])


def test_no_array_is_allocated_where_out_is_given():
    x, plan = levels(4, 300, 400, 3), Image(size=(224, 224), threads=1)
    out = plan(x)
    tracemalloc.start()
    plan(x, out=out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000


def test_an_empty_batch_gives_an_empty_batch():
    assert Image(size=(8, 9))(levels(0, 5, 6, 3)).shape == (0, 3, 8, 9)


def test_a_plan_goes_to_another_process_as_its_options():
    plan = Image(size=(8, 9), resize="crop", mean=MEAN, std=STD, **INT8)
    x = levels(30, 20, 3)
    same(pickle.loads(pickle.dumps(plan))(x), plan(x))
    assert "resize='crop'" in repr(plan)


@pytest.mark.slow
def test_a9_a_huge_image_is_resized():
    x = np.zeros((70_000, 40_000, 1), np.uint8)
    x[35_000:, :] = 200
    got = Image(size=(70, 40), scale=1, interpolation="area")(x)[0, 0]
    assert (got[:35] == 0).all()
    assert (got[35:] == 200).all()


X = np.zeros((4, 5, 3), np.uint8)
OPTIONS = [
    ({"size": None}, ValueError, "Image: size must be given where resize is 'letterbox', got None"),
    ({"size": 640}, TypeError, "Image: size must be two integers, rows and columns, got 640"),
    ({"size": (0, 4)}, ValueError, "Image: size must be from 1 to 2147483647, got (0, 4)"),
    ({"resize": "fit"}, ValueError, "Image: resize must be 'letterbox', 'stretch', 'crop' or None, got 'fit'"),
    (
        {"interpolation": "cubic"},
        ValueError,
        "Image: interpolation must be 'bilinear', 'area' or 'nearest', got 'cubic'",
    ),
    ({"layout": "CHW"}, ValueError, "Image: layout must be 'NCHW' or 'NHWC', got 'CHW'"),
    ({"rounding": "up"}, ValueError, "Image: rounding must be 'even' or 'away', got 'up'"),
    ({"antialias": 1}, TypeError, "Image: antialias must be a bool, got 1"),
    (
        {"antialias": True, "interpolation": "area"},
        ValueError,
        "Image: antialias must be False where interpolation is 'area', got True",
    ),
    ({"scale": "1"}, TypeError, "Image: scale must be a number, got '1'"),
    ({"scale": 1e39}, ValueError, "Image: scale must be finite in float32, got 1e+39"),
    ({"pad": float("nan")}, ValueError, "Image: pad must be finite in float32, got nan"),
    ({"mean": "a"}, TypeError, "Image: mean must be a number or one for each channel, got 'a'"),
    ({"mean": (1, 2)}, ValueError, "Image: mean must be a number, or 1, 3 or 4 of them, got (1, 2)"),
    ({"mean": float("inf")}, ValueError, "Image: mean must be finite in float32, got inf"),
    ({"std": 1e-60}, ValueError, "Image: std must not be 0 in float32, got 1e-60"),
    ({"mean": (1, 2, 3), "std": (1, 2, 3, 4)}, ValueError, "Image: std must have 3 numbers like mean, got 4"),
    (
        {"dtype": np.float64},
        TypeError,
        "Image: dtype must be float32, float16, bfloat16, 'bf16', uint8 or int8, got float64",
    ),
    (
        {"dtype": "int9"},
        TypeError,
        "Image: dtype must be float32, float16, bfloat16, 'bf16', uint8 or int8, got 'int9'",
    ),
    (
        {"dtype": np.int8},
        ValueError,
        "Image: quantization must be given where dtype is int8, got None; pass the (scale, zero_point) of the model's "
        "input, or (scale, 0) for levels as they are",
    ),
    (
        {"quantization": (1.0, 0)},
        ValueError,
        "Image: quantization must be None where dtype is float32, got (1.0, 0)",
    ),
    ({"dtype": np.int8, "quantization": 1}, TypeError, "Image: quantization must be (scale, zero_point), got 1"),
    (
        {"dtype": np.int8, "quantization": (0.0, 0)},
        ValueError,
        "Image: quantization's scale must be a normal positive float32, got 0.0",
    ),
    (
        {"dtype": np.int8, "quantization": (1.0, 0.5)},
        TypeError,
        "Image: quantization's zero_point must be an integer, got 0.5",
    ),
    (
        {"dtype": np.uint8, "quantization": (1.0, -1)},
        ValueError,
        "Image: quantization's zero_point must be from 0 to 255 for uint8, got -1",
    ),
]


def test_scale_and_zero_point_may_be_arrays_without_axes_as_initializers_of_onnx_are():
    given = (np.array(0.1, np.float32), np.array(-3, np.int8))
    plans = [Image(size=(8, 8), dtype=np.int8, quantization=q) for q in (given, (np.float32(0.1), -3))]
    assert (plans[0](X) == plans[1](X)).all()


@pytest.mark.parametrize(("options", "error", "text"), OPTIONS)
def test_an_option_that_cannot_be_is_refused(options, error, text):
    with pytest.raises(error) as caught:
        Image(**{"size": (8, 8), **options})
    assert str(caught.value) == text


CALLS = [
    (3, {}, TypeError, "Image: images must be a NumPy array, got int"),
    (X[0], {}, ValueError, "Image: images must have 3 axes (rows, columns, channels) or 4 with a batch before them, "
     "got shape (5, 3); for one channel pass x[..., None]"),
    ([X[None]], {}, ValueError, "Image: images[0] must have 3 axes (rows, columns, channels), got shape (1, 4, 5, 3)"),
    ([], {}, ValueError, "Image: images must have at least one image, got an empty list"),
    (X.astype(np.int8), {}, TypeError,
     "Image: images must have dtype uint8, float32, float64, float16 or bfloat16, got int8"),
    (X.astype(">f4"), {}, TypeError, "Image: images has big-endian dtype '>f4'; use images.astype('=f4')"),
    (X[..., :2], {}, ValueError, "Image: images must have 1, 3 or 4 channels last, got shape (4, 5, 2)"),
    (X[..., :1], {"mean": MEAN}, ValueError,
     "Image: images must have 3 channels as mean and std have, got shape (4, 5, 1)"),
    ([X, X[..., :1]], {}, ValueError, "Image: images[1] must have 3 channels like images[0], got shape (4, 5, 1)"),
    ([X, X.astype("f4")], {}, TypeError, "Image: images[1] must have dtype uint8 like images[0], got float32"),
    (X[:0], {}, ValueError, "Image: images must have pixels, got 0 rows and 5 columns"),
    (np.zeros((1, 99, 3), np.uint8), {}, ValueError, "Image: images must keep a pixel of each side when it is "
     "fitted into (8, 8), got 1 rows and 99 columns; use resize=\"stretch\" or \"crop\""),
    ([X, X[1:]], {"resize": None, "size": None}, ValueError,
     "Image: images[1] must have 4 rows and 5 columns where resize=None, got shape (3, 5, 3)"),
    (np.ma.array(X), {}, TypeError, "Image: images must be a NumPy array, got MaskedArray; its mask would be lost"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "options", "error", "text"), CALLS)
def test_an_image_that_does_not_fit_is_refused(images, options, error, text):
    with pytest.raises(error) as caught:
        Image(**{"size": (8, 8), **options})(images)
    assert str(caught.value) == text


def test_an_out_that_does_not_fit_is_refused_and_not_written():
    plan, good = Image(size=(8, 8)), np.full((1, 3, 8, 8), 7, np.float32)
    locked = good.copy()
    locked.flags.writeable = False
    outs = [
        (good[:, :2], ValueError, "Image: out must have shape (1, 3, 8, 8), got (1, 2, 8, 8)"),
        (good[0], ValueError, "Image: out must have shape (1, 3, 8, 8), got (3, 8, 8)"),
        (good.astype(np.float16), TypeError, "Image: out must have dtype float32, got float16"),
        (locked, ValueError, "Image: out must be writeable, got a read-only array"),
        (
            np.zeros((1, 3, 8, 16), np.float32)[..., ::2],
            ValueError,
            "Image: out must be C-contiguous and aligned, got another layout; pass a contiguous array",
        ),
    ]
    for out, error, text in outs:
        with pytest.raises(error) as caught:
            plan([X], out=out)
        assert str(caught.value) == text
    with pytest.raises(ValueError, match="Image: images\\[1\\] must have pixels"):
        plan([X, X[:0]], out=np.concatenate([good, good]))
    assert (good == 7).all()
    raw = np.zeros(8 * 8 * 3 * 4, np.uint8)
    with pytest.raises(ValueError, match="Image: out and images overlap in memory"):
        plan(raw[: 5 * 4 * 3].reshape(4, 5, 3), out=raw.view(np.float32).reshape(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("shape", "error", "text"),
    [
        (5, TypeError, "geometry: shape must be 2 or 3 integers, got 5"),
        ((5,), TypeError, "geometry: shape must be 2 or 3 integers, got (5,)"),
        ((0, 5), ValueError, "geometry: shape must have sides from 1 to 2147483647, got (0, 5)"),
        (
            (1, 99),
            ValueError,
            "geometry: shape must keep a pixel of each side when it is fitted into (8, 8), got 1 rows and 99 columns; "
            'use resize="stretch" or "crop"',
        ),
    ],
)
def test_a_shape_without_a_geometry_is_refused(shape, error, text):
    with pytest.raises(error) as caught:
        Image(size=(8, 8)).geometry(shape)
    assert str(caught.value) == text
