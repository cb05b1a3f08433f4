"""`prune.take` against NumPy's indexing: every dtype, axis, layout, thread count and instruction set."""

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core

DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32"),
    *("float64", "complex64", "complex128", "datetime64[s]", "S3", "U2", ">f4", ">i2", "longdouble"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
]


def array(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_take_is_indexing_for_every_dtype_and_axis(dtype, axis):
    x = array((5, 7, 9), dtype)
    indices = np.array([0, 1, 2, 4, 3])
    got = mo.prune.take(x, indices, axis)
    assert got.dtype == x.dtype
    assert got.flags.c_contiguous
    assert (got == np.take(x, indices, axis)).all()


def test_take_of_objects():
    x = np.array([[1, "a"], [None, 2.5]], dtype=object)
    assert mo.prune.take(x, np.array([1]), 1).tolist() == [["a"], [2.5]]


@given(st.data())
def test_take_is_indexing_for_every_shape_and_layout(data):
    shape = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    x = array(shape, data.draw(st.sampled_from(["uint8", "float16", "float32", "float64"])))
    x = x.transpose(data.draw(st.permutations(range(x.ndim))))
    x = x[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in range(x.ndim))]
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    n = x.shape[axis]
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=12)) if n else [], dtype=np.int64)
    np.testing.assert_array_equal(mo.prune.take(x, indices, axis, threads=2), np.take(x, indices, axis))


@pytest.mark.parametrize("shape", [(3, 100_003), (70_001, 3), (3, 40_001, 2), (1, 300, 1000), (9, 5, 7001)])
@pytest.mark.parametrize("kind", ["random", "blocks", "all", "reversed"])
def test_b10_b11_take_has_the_same_bits_for_every_thread_count_and_instruction_set(shape, kind, isas):
    x = array(shape, np.float32)
    for axis, n in enumerate(shape):
        rng = np.random.default_rng(axis)
        indices = {
            "random": np.sort(rng.permutation(n)[: (n + 1) // 2]),
            "blocks": np.flatnonzero(np.arange(n) // 16 % 2 == 0),
            "all": np.arange(n),
            "reversed": np.arange(n)[::-1],
        }[kind]
        want = np.take(x, indices, axis)
        for isa in isas:
            _core.set_isa(isa)
            for threads in (1, 2, 5):
                np.testing.assert_array_equal(mo.prune.take(x, indices, axis, threads=threads), want)


def test_take_writes_and_returns_out():
    x, out = array((4, 6), np.int16), np.zeros((4, 2), np.int16)
    assert mo.prune.take(x, np.array([5, 0]), 1, out=out) is out
    np.testing.assert_array_equal(out, x[:, [5, 0]])


def test_c6_bytes_of_bools_are_moved_as_they_are():
    x = np.uint8([24, 2, 1, 0]).view(bool)
    assert mo.prune.take(x, np.array([0, 1, 3]), 0).view(np.uint8).tolist() == [24, 2, 0]


X = np.arange(12, dtype=np.float32).reshape(3, 4)
ZERO = np.array([0])
READ_ONLY = np.zeros((3, 1), np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        (([1], ZERO, 0), {}, TypeError, "take: x must be a NumPy array, got list"),
        ((np.ma.array(X), ZERO, 0), {}, TypeError, "take: x must be a NumPy array, got MaskedArray"),
        ((X, np.array([0.5]), 0), {}, TypeError, "take: indices must be a 1-d array of integers, got float64"),
        ((X, np.array([[0]]), 0), {}, TypeError, "take: indices must be a 1-d array of integers, got int64 of shape"),
        ((X, np.array([0, 4]), 1), {}, ValueError, "from 0 to below the 4 indices of axis 1, got 4"),
        (
            (X, np.array([-1]), 1),
            {},
            ValueError,
            "take: indices must be from 0 to below the 4 indices of axis 1, got -1",
        ),
        ((X, ZERO, 0.5), {}, TypeError, "take: axis must be an integer, got 0.5"),
        ((X, ZERO, 2), {}, ValueError, "take: axis must be within the 2 axes of x, got 2"),
        ((X, ZERO, 1), {"threads": 0}, ValueError, "take: threads must be from 1 to"),
        ((X, ZERO, 1), {"out": [1]}, TypeError, "take: out must be a NumPy array of dtype float32"),
        ((X, ZERO, 1), {"out": np.zeros((3, 1))}, TypeError, "dtype float32 like x, got float64"),
        ((X, ZERO, 1), {"out": np.zeros((3, 2), "f4")}, ValueError, "take: out must have shape (3, 1), got (3, 2)"),
        ((X, ZERO, 1), {"out": READ_ONLY}, ValueError, "take: out must be writeable, got a read-only array"),
        ((X, ZERO, 1), {"out": X[:, :1]}, ValueError, "take: out must be C-contiguous"),
        ((X, np.arange(3), 0), {"out": X}, ValueError, "take: out and x overlap in memory"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_take_refuses(args, kwargs, error, text):
    before = X.copy()
    with pytest.raises(error, match=re.escape(text)):
        mo.prune.take(*args, **kwargs)
    np.testing.assert_array_equal(X, before)


def test_c2_a_panic_becomes_an_internal_error():
    _core.set_fault(True)
    try:
        for call in (
            lambda: mo.prune.take(X, np.array([0]), 0),
            lambda: mo.prune.importance(X, 0),
        ):
            with pytest.raises(mo.InternalError):
                call()
    finally:
        _core.set_fault(False)
    assert ref.bits_of(mo.prune.take(X, np.array([0]), 0)) == ref.bits_of(X[:1])
