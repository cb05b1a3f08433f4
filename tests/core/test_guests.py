"""Arrays of other libraries: taken by every function without a copy, given back by DLPack, refused clearly."""

import array
import gc

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo

X = np.random.default_rng(17).standard_normal((4, 6)).astype(np.float32)
WAYS = {
    "quantize": lambda x: mo.quantize(x, bits=4, axis=0).codes,
    "quantize given": lambda x: mo.quantize(x, scale=0.1, rounding="away").codes,
    "fake_quantize": mo.fake_quantize,
    "quantize_linear": lambda x: mo.quant.quantize_linear(x, 0.1),
    "absmax": lambda x: mo.reduce.absmax(x, axis=1),
    "minmax": lambda x: np.stack(mo.reduce.minmax(x, axis=0)),
    "embeddings": mo.preprocess.quantize_embeddings,
    "threshold": lambda x: mo.prune.threshold(x, 0.5),
    "magnitude": lambda x: mo.prune.magnitude(x, 0.5),
    "n_of_m": lambda x: mo.prune.n_of_m(x, 1, 2),
    "importance": lambda x: mo.prune.importance(x, 0),
    "compress": lambda x: mo.prune.compress(x).values,
    "take": lambda x: mo.prune.take(x, [2, 0], axis=0),
}


def calibrated(x):
    calibrator = mo.quant.Calibrator()
    calibrator.update(x)
    return np.array(calibrator.range())


WAYS["Calibrator"] = calibrated


def guests(kind):
    if kind == "buffer":
        return [memoryview(X.copy())]
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(X.copy()), torch.from_numpy(X.T.copy()).T]


@pytest.mark.parametrize("kind", ["buffer", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_h17_every_function_takes_what_shares_its_memory(way, kind):
    want = WAYS[way](X)
    for guest in guests(kind):
        assert np.asarray(WAYS[way](guest)).tobytes() == want.tobytes()


@pytest.mark.slow
def test_memory_is_shared_both_ways_and_kept():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3)
    view = mo.as_array(tensor)
    view[1] = 5
    assert tensor.tolist() == [0, 5, 0]
    assert view.flags.writeable
    assert mo.as_array(view) is view
    out = torch.empty(2, dtype=torch.int8)
    assert mo.quant.quantize_linear(np.array([1.0, -2.0], np.float32), 1.0, out=out) is out
    assert out.tolist() == [1, -2]
    tensor = torch.arange(100_000.0)
    view = mo.as_array(tensor)
    del tensor
    gc.collect()
    assert view.sum(dtype=np.float64) == 99_999 * 50_000
    words = array.array("i", [1, 2])
    assert mo.as_array(words).dtype == np.int32
    assert not mo.as_array(memoryview(b"ab")).flags.writeable


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_numbers_that_numpy_lacks_come_in_and_go_out_where_they_lie(name):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([1.0, 2.0, 4.0]).to(getattr(torch, name))
    view = mo.as_array(tensor)
    assert view.dtype == getattr(ml_dtypes, name)
    assert view.astype(np.float32).tolist() == [1, 2, 4]
    back = torch.from_dlpack(mo.to_dlpack(view))
    assert back.dtype == tensor.dtype
    assert back.data_ptr() == tensor.data_ptr()
    bits = view.view(f"u{view.itemsize}")
    assert torch.from_dlpack(mo.to_dlpack(bits, name)).float().tolist() == [1, 2, 4]
    if name == "bfloat16":
        assert mo.quantize(tensor).codes.tolist() == mo.quantize(view).codes.tolist()


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy asks for DLPack 1.0 since 2.1")
def test_numbers_of_4_and_2_bits_go_out_one_a_byte():
    for name in ("int4", "uint4", "int2", "uint2"):
        x = np.array([1, 0, 1]).astype(getattr(ml_dtypes, name))
        shared = mo.to_dlpack(x)

        class Wrapped:
            def __dlpack_device__(self, shared=shared):
                return shared.__dlpack_device__()

            def __dlpack__(self, shared=shared, **options):
                return shared.__dlpack__(**options)

        again = mo.as_array(Wrapped())
        assert again.dtype == x.dtype
        assert np.shares_memory(again, x)
        with pytest.raises(BufferError, match=r"the importer must know DLPack 1\.0"):
            shared.__dlpack__()
    for bad, dtype, text in (
        (X, "bfloat16", "array must have items of 2 bytes for bfloat16, got float32"),
        (X, "float9", "dtype must be one of bfloat16"),
        ([1], None, "array must be a NumPy array, got list"),
    ):
        with pytest.raises(TypeError, match="to_dlpack: ") as caught:
            mo.to_dlpack(bad, dtype)
        assert text in str(caught.value)


@pytest.mark.slow
def test_jax_and_pyarrow_are_read_only():
    jnp = pytest.importorskip("jax.numpy")
    view = mo.as_array(jnp.arange(3, dtype=jnp.bfloat16))
    assert view.dtype == ml_dtypes.bfloat16
    assert not view.flags.writeable
    assert mo.quantize(jnp.arange(3.0)).codes.tolist() == [0, 64, 127]
    pyarrow = pytest.importorskip("pyarrow")
    numbers = pyarrow.array(np.arange(3, dtype=np.float32))
    assert mo.quantize(numbers).codes.tolist() == [0, 64, 127]
    with pytest.raises(ValueError, match="quantize_linear: out must be writeable, got a read-only array"):
        mo.quant.quantize_linear(numbers, 1.0, out=pyarrow.array(np.zeros(3, np.int8)))
    with pytest.raises(
        TypeError, match=r"quantize: x must be an array whose memory can be shared, got DoubleArray; .*null"
    ):
        mo.quantize(pyarrow.array([1.0, None]))


def test_what_importers_do_not_take_is_not_exported():
    for given, error, text in (
        (np.zeros(3, ">u2"), TypeError, "to_dlpack: array has big-endian dtype '>u2'; use array.astype('=u2')"),
        (np.zeros(3, ">f4"), TypeError, "to_dlpack: array has big-endian dtype '>f4'; use array.astype('=f4')"),
        (np.ones((5, 7), np.float32)[::-1], ValueError, "to_dlpack: array must have no negative strides, got (-28, 4); "
         "pass a copy"),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            mo.to_dlpack(given, "bfloat16" if given.dtype.itemsize == 2 else None)
        assert str(caught.value) == text


@pytest.mark.slow
def test_what_has_no_numbers_to_share_says_why():
    torch = pytest.importorskip("torch")
    cases = [
        (torch.ones(2, requires_grad=True), ValueError, "must not require a gradient, got Tensor .*; pass x.detach()"),
        (torch.ones(2, dtype=torch.complex64).conj(), ValueError, "got Tensor with is_conj.*; pass x.resolve_conj"),
        (torch._neg_view(torch.ones(2)), ValueError, "got Tensor with is_neg.*; pass x.resolve_neg"),
        (torch.ones(2, 2).to_sparse(), TypeError, "whose memory can be shared, got Tensor; "),
        (torch.empty(2, device="meta"), TypeError, "whose memory can be shared, got Tensor; "),
        ([1.0], TypeError, "must be a NumPy array, got list"),
        (b"ab", TypeError, "must be a NumPy array, got bytes"),
        (np.float32(1), TypeError, "must be a NumPy array, got float32"),
        (np.ma.array([1.0]), TypeError, "got MaskedArray; its mask would be lost"),
    ]

    class Elsewhere:
        device = "cuda:0"

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **options):
            raise AssertionError(options)

    cases.append((Elsewhere(), TypeError, "must be on the CPU, got Elsewhere on device cuda:0; move it there first"))
    for guest, error, text in cases:
        with pytest.raises(error, match=f"quantize: x .*{text}"):
            mo.quantize(guest)
        with pytest.raises(error, match=f"absmax: x .*{text}"):
            mo.reduce.absmax(guest)


@pytest.mark.parametrize("name", ["", "\ud800", "x\n"])
def test_a_name_that_can_not_be_printed_is_refused(name):
    with pytest.raises(ValueError, match="as_array: name must be letters that can be printed, got '"):
        mo.as_array([1.0], name)
