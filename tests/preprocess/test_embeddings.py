"""Embeddings as bytes and bits: the codes of the libraries that make and search them."""

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
from modelopt_rs import _core
from modelopt_rs.preprocess import quantize_embeddings

RNG = np.random.default_rng(3)


def theirs(x, kind, ranges):
    """The formula of sentence-transformers, in NumPy."""
    if kind.endswith("binary"):
        bits = np.packbits(x > 0, axis=-1)
        return bits if kind == "ubinary" else (bits - 128).astype(np.int8)
    starts = ranges[0]
    steps = (ranges[1] - starts) / 255
    steps = np.where(steps == 0, 1, steps)
    codes = np.clip(np.floor((x - starts) / steps), 0, 255)
    return codes.astype(np.uint8) if kind == "uint8" else (codes - 128).astype(np.int8)


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_codes_are_those_of_the_formula_for_every_instruction_set_and_threads(kind, dtype):
    before = _core.isa()
    for shape in [(3, 1), (17, 7), (1000, 384), (5, 4, 33)]:
        x = RNG.standard_normal(shape).astype(dtype)
        x.reshape(-1)[::97] *= 3
        flat = x.reshape(-1, shape[-1]).astype(np.float32)
        ranges = np.stack([flat.min(0) * np.float32(0.8), flat.max(0) * np.float32(0.8)])
        ranges[1, 0] = ranges[0, 0]
        want = theirs(x, kind, ranges)
        for isa in ("portable", "avx2", "avx512"):
            try:
                _core.set_isa(isa)
            except ValueError:
                continue
            for threads in (1, 2):
                given = None if kind.endswith("binary") else ranges
                got = quantize_embeddings(x, kind, given, threads=threads)
                assert got.dtype == want.dtype
                assert (got == want).all()
    _core.set_isa(before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
def test_sentence_transformers_gives_the_same(kind):
    util = pytest.importorskip("sentence_transformers.util.quantization")
    x = RNG.standard_normal((300, 96)).astype(np.float32)
    assert (quantize_embeddings(x, kind) == util.quantize_embeddings(x, kind)).all()
    if kind.endswith("int8"):
        ranges = np.stack([x.min(0), x.max(0)]) / 2
        got, want = quantize_embeddings(x, kind, ranges), util.quantize_embeddings(x, kind, ranges=ranges)
        assert got.dtype == want.dtype
        assert (got == want).all()


@pytest.mark.slow
def test_faiss_and_usearch_give_the_same():
    x = RNG.standard_normal((200, 40)).astype(np.float32)
    faiss = pytest.importorskip("faiss")
    quantizer = faiss.ScalarQuantizer(40, faiss.ScalarQuantizer.QT_8bit)
    quantizer.train(x)
    y = x * np.float32(1.2)
    ranges = np.stack([x.min(0), x.max(0)])
    assert (quantize_embeddings(y, "faiss_sq8", ranges) == quantizer.compute_codes(y)).all()
    index = pytest.importorskip("usearch.index").Index(ndim=40, metric="cos", dtype="i8")
    index.add(np.arange(200), x)
    assert (quantize_embeddings(x, "usearch_i8") == index.get(np.arange(200), dtype="i8")).all()
    assert (quantize_embeddings(x, "usearch_b1") == np.packbits(x > 0, axis=-1)).all()


def test_kept_ranges_make_codes_independent_of_the_batch(tmp_path):
    from safetensors.numpy import load_file, save_file

    x = RNG.standard_normal((64, 24)).astype(np.float32)
    calibrator = mo.quant.Calibrator(axis=-1)
    for batch in np.split(x, 4):
        calibrator.update(batch)
    whole = quantize_embeddings(x, "int8")
    save_file({"ranges": np.stack(calibrator.range())}, tmp_path / "ranges.safetensors")
    ranges = load_file(tmp_path / "ranges.safetensors")["ranges"]
    for kept in (ranges, calibrator.range()):
        assert (np.concatenate([quantize_embeddings(row, "int8", kept)[None] for row in x]) == whole).all()


def test_what_is_not_finite_gets_the_lowest_code_or_the_ends():
    x = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    ranges = np.array([[0] * 4, [1] * 4], np.float32)
    assert quantize_embeddings(x, "uint8", ranges).tolist() == [[0, 255, 0, 127]]
    assert quantize_embeddings(x, "faiss_sq8", ranges).tolist() == [[0, 255, 0, 127]]
    assert quantize_embeddings(x, "ubinary").tolist() == [[0b01010000]]
    assert quantize_embeddings(np.zeros((1, 3), np.float32), "usearch_i8").tolist() == [[0, 0, 0]]
    assert quantize_embeddings(x.astype(ml_dtypes.bfloat16), "uint8", ranges).tolist() == [[0, 255, 0, 127]]


def test_out_is_written_and_what_is_wrong_is_named():
    x = RNG.standard_normal((4, 10)).astype(np.float32)
    out = np.empty((4, 2), np.uint8)
    assert quantize_embeddings(x, "ubinary", out=out) is out
    assert (out == np.packbits(x > 0, axis=-1)).all()
    assert quantize_embeddings(x[:0], "int8", np.zeros((2, 10), np.float32)).shape == (0, 10)
    for bad, error, text in (
        ({"kind": "int4"}, ValueError, "kind must be one of int8, uint8, binary"),
        ({"x": [1.0]}, TypeError, "x must be a NumPy array, got list"),
        ({"x": x.astype(np.int8)}, TypeError, "x must have dtype float32"),
        ({"x": x[:, :0], "kind": "binary"}, ValueError, "x must have vectors of at least 1 element"),
        ({"x": x[0]}, ValueError, "ranges must be given for fewer than two vectors, got x of shape (10,)"),
        ({"x": x[:0]}, ValueError, "ranges must be given for fewer than two vectors, got x of shape (0, 10)"),
        ({"ranges": np.stack([x.max(0), x.min(0)])}, ValueError, "ranges must be minima, then maxima, got a minimum"),
        ({"ranges": np.zeros((2, 9))}, ValueError, "ranges must have shape (2, 10), got (2, 9)"),
        ({"ranges": np.full((2, 10), np.nan)}, ValueError, "ranges must be finite"),
        ({"ranges": "a"}, TypeError, "ranges must be an array of numbers, got str"),
        (
            {"ranges": np.zeros((2, 10)), "kind": "binary"},
            ValueError,
            "ranges must be None for 'binary', which has none",
        ),
        ({"out": np.empty((4, 9), np.int8)}, ValueError, "out must have shape (4, 10), got (4, 9)"),
    ):
        with pytest.raises(error, match="quantize_embeddings: ") as caught:
            quantize_embeddings(**({"x": x} | bad))
        assert text in str(caught.value)
