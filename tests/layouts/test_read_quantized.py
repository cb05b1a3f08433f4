"""Weights of files as QuantizedArray: the codes as they are, and the numbers of the plain view, bit for bit."""

import pickle

import numpy as np
import pytest

import modelopt_rs as mo
from modelopt_rs import files

RNG = np.random.default_rng(5)
X = RNG.standard_normal((24, 130)).astype(np.float32)
OPTIONS = [
    {"bits": bits, "scheme": scheme, "group_size": size}
    for bits in (8, 4, 2)
    for scheme in ("symmetric", "asymmetric")
    for size in (0, 26)
] + [{"format": name} for name in ("fp8_e4m3", "mxfp4", "nvfp4")]
NAMES = {np.dtype(np.float32): "F32", np.dtype(np.int8): "I8", np.dtype(np.float16): "F16", np.dtype(np.int32): "I32"}


def write(path, tensors):
    infos = [files.TensorInfo(name, NAMES[x.dtype], x.shape, x.nbytes) for name, x in tensors.items()]
    with files.SafetensorsSink(path, infos) as sink:
        for name, x in tensors.items():
            sink.write(name, x)
        sink.commit()
    return path


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_numbers_are_those_of_the_plain_view(tmp_path, options):
    x = X[:, :128].copy() if "format" in options else X
    source = write(tmp_path / "x.safetensors", {"fc.weight": x, "fc.bias": x[0].copy()})
    mo.quantize_file(source, tmp_path / "q.safetensors", **options)
    with files.open(tmp_path / "q.safetensors") as packed:
        q = packed.read_quantized("fc.weight")
        with pytest.raises(mo.UnsupportedError, match=r"fc\.bias.* is not quantized"):
            packed.read_quantized("fc.bias")
        with pytest.raises(KeyError):
            packed.read_quantized("other.weight")
    with files.open(tmp_path / "q.safetensors", dequantize=True) as plain:
        want = plain.read("fc.weight")
        again = plain.read_quantized("fc.weight")
    assert q.shape == x.shape
    assert q.dequantize().tobytes() == want.tobytes()
    assert again.codes.tobytes() == q.codes.tobytes()
    assert q.take([3, -1]).tobytes() == want[[3, -1]].tobytes()
    if "bits" in options:
        made = mo.quantize(x, bits=options["bits"], scheme=options["scheme"],
                           **({"group_size": 26} if options["group_size"] else {"axis": 0}))  # fmt: skip
        assert q.codes.dtype == made.codes.dtype
        assert q.codes.shape == made.codes.shape
        assert q.scheme == made.scheme
    read = pickle.loads(pickle.dumps(q))
    assert read.dequantize().tobytes() == want.tobytes()


@pytest.mark.parametrize("shape", [(1,), (24, 1), (24, 5)])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_int_quantized_weights_are_their_codes_and_scales(tmp_path, shape, asymmetric):
    codes = RNG.integers(-128, 128, X.shape, np.int8)
    scale = RNG.random(shape).astype(np.float16)
    tensors = {"fc.weight": codes, "fc.weight_scale": scale}
    points = np.zeros(shape, np.int8)
    if asymmetric:
        points = RNG.integers(-128, 128, shape, np.int8)
        tensors["fc.weight_zero_point"] = points
    with files.open(write(tmp_path / "x.safetensors", tensors)) as source:
        q = source.read_quantized("fc.weight")
    assert q.codes.tobytes() == codes.tobytes()
    each = [
        np.repeat(part.astype(np.float32), 130 // (shape[1] if len(shape) > 1 else 1), -1) for part in (scale, points)
    ]
    want = (codes.astype(np.float32) - each[1]) * each[0]
    assert q.dequantize().tobytes() == want.astype(np.float32).tobytes()
    assert q.scheme == ("asymmetric" if asymmetric else "symmetric")


def test_parts_that_do_not_fit_are_named(tmp_path):
    codes = np.zeros((4, 6), np.int8)
    for scale, points, text in (
        (np.ones((4, 4), np.float32), None, r"must have shape \(1,\), \(4, 1\) or \(4, groups\), got \(4, 4\)"),
        (np.ones((4, 1), np.int32), None, "must be F32, F16 or BF16, got I32"),
        (np.full((4, 1), np.inf, np.float32), None, "must be finite numbers"),
        (np.ones((4, 1), np.float32), np.zeros((4, 2), np.int8), r"must be I8 \(4, 1\), got \(4, 2\)"),
    ):
        tensors = {"w.weight": codes, "w.weight_scale": scale}
        if points is not None:
            tensors["w.weight_zero_point"] = points
        path = write(tmp_path / "x.safetensors", tensors)
        with files.open(path) as source, pytest.raises(mo.FormatError, match=text):
            source.read_quantized("w.weight")


def test_a_layout_without_a_twin_is_named(tmp_path):
    """Scales of bitsandbytes are quantized themselves, and its codes have the first number in the high bits."""
    source = write(tmp_path / "x.safetensors", {"fc.weight": X[:, :128].copy()})
    mo.quantize_file(source, tmp_path / "q.safetensors", format="nf4")
    with files.open(tmp_path / "q.safetensors") as packed, pytest.raises(mo.UnsupportedError, match="'bitsandbytes'"):
        packed.read_quantized("fc.weight")
