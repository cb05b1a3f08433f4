"""Images against OpenCV, Pillow and torchvision, and in the memory of an onnxruntime session's input."""

import numpy as np
import pytest

from modelopt_rs.preprocess import Image

REASON = "the extra `interop` is not installed: "
RNG = np.random.default_rng(14)
# What is in photographs, noise, and edges from 0 to 255.
SHAPES = [(1080, 1920), (480, 641), (333, 500), (97, 64), (2, 3), (1, 1)]
SIZES = [(640, 640), (224, 224), (31, 1000), (360, 640)]


def picture(shape, kind):
    if kind == "noise":
        return RNG.integers(0, 256, (*shape, 3), np.uint8)
    if kind == "edges":
        return (RNG.integers(0, 2, (*shape, 3)) * 255).astype(np.uint8)
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.stack([np.sin(x / 9 + c) * np.cos(y / 7 - c) * 120 + 128 for c in range(3)], -1).astype(np.uint8)


def ours(x, size, **options):
    return Image(size=size, resize="stretch", scale=1, layout="NHWC", **options)(x)[0]


@pytest.mark.parametrize("kind", ["waves", "noise", "edges"])
def test_bilinear_is_within_one_level_of_opencv(kind):
    cv2 = pytest.importorskip("cv2", reason=REASON + "opencv-python-headless")
    for shape in SHAPES:
        x = picture(shape, kind)
        for size in SIZES:
            theirs = cv2.resize(x, size[::-1], interpolation=cv2.INTER_LINEAR)
            assert np.abs(ours(x, size) - theirs).max() <= 1, (shape, size)


@pytest.mark.parametrize("kind", ["waves", "noise", "edges"])
def test_area_is_within_one_level_of_opencv_where_it_shrinks(kind):
    cv2 = pytest.importorskip("cv2", reason=REASON + "opencv-python-headless")
    for shape in SHAPES[:4]:
        x = picture(shape, kind)
        for size in [(shape[0] // 2, shape[1] // 2), (shape[0] // 3 + 1, shape[1] - 1), (7, 9)]:
            theirs = cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(ours(x, size, interpolation="area") - theirs).max() <= 1, (shape, size)


@pytest.mark.parametrize("kind", ["waves", "noise", "edges"])
def test_antialiased_bilinear_is_within_one_level_of_pillow(kind):
    pillow = pytest.importorskip("PIL.Image", reason=REASON + "pillow")
    for shape in SHAPES:
        x = picture(shape, kind)
        for size in SIZES:
            theirs = pillow.fromarray(x).resize(size[::-1], pillow.Resampling.BILINEAR)
            assert np.abs(ours(x, size, antialias=True) - np.asarray(theirs, np.float32)).max() <= 1, (shape, size)


def inside(n, size):
    """Where the middle of an output pixel lies in a pixel, not between two: there Pillow goes by how it rounded."""
    return (2 * np.arange(size) + 1) * n % (2 * size) != 0


def test_nearest_is_that_of_pillow():
    pillow = pytest.importorskip("PIL.Image", reason=REASON + "pillow")
    for shape in SHAPES:
        x = picture(shape, "noise")
        for size in SIZES:
            theirs = np.asarray(pillow.fromarray(x).resize(size[::-1], pillow.Resampling.NEAREST))
            clear = np.ix_(inside(shape[0], size[0]), inside(shape[1], size[1]))
            np.testing.assert_array_equal(ours(x, size, interpolation="nearest")[clear], theirs[clear])


def test_normalized_is_what_torchvision_makes():
    functional = pytest.importorskip("torchvision.transforms.functional", reason=REASON + "torchvision")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    x = picture((37, 53), "noise")
    theirs = functional.normalize(functional.to_tensor(x), mean, std).numpy()
    np.testing.assert_allclose(Image(resize=None, mean=mean, std=std)(x)[0], theirs, rtol=0, atol=1e-6)


def test_an_input_is_made_in_the_memory_that_a_session_reads():
    ort = pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx.helper")
    shape = [2, 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    memory = np.zeros(shape, np.float32)
    binding, plan = session.io_binding(), Image(size=(8, 8))
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(memory))
    binding.bind_output("y")
    for _ in range(3):
        x = RNG.integers(0, 256, (2, 20, 30, 3), np.uint8)
        plan(x, out=memory)
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], plan(x))


def test_an_ort_value_is_written_unless_it_holds_what_must_not_be():
    ort = pytest.importorskip("onnxruntime", reason=REASON + "onnxruntime")
    x, plan = RNG.integers(0, 256, (2, 20, 30, 3), np.uint8), Image(size=(8, 8))
    value = ort.OrtValue.ortvalue_from_shape_and_type([2, 3, 8, 8], np.float32)
    assert plan(x, out=value) is value
    np.testing.assert_array_equal(value.numpy(), plan(x))
    frozen = np.zeros((2, 3, 8, 8), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="Image: out must be writeable, got a read-only array"):
        plan(x, out=ort.OrtValue.ortvalue_from_numpy(frozen))
