"""`prune.importance` against float64 NumPy, written from the papers; same bits always; every message."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core
from modelopt_rs.prune.importance import BlockNorms

DTYPES = ref.DTYPES


def units(w, axis, size):
    """Each unit as float64, flat."""
    wide = np.moveaxis(np.asarray(w).astype(np.float64), axis, 0)
    return wide.reshape(wide.shape[0] // size, math.prod(wide.shape[1:]) * size)


def oracle(w, axis, criterion, norm=2, size=1, grad=None, scale=None, activations=None, activation_axis=-1):
    u = units(w, axis, size)
    if criterion == "norm":
        return np.array([ref.norm(row, norm) if row.size else 0.0 for row in u])
    if criterion == "variance":
        return u.var(axis=1)
    if criterion == "geometric_median":  # He et al. 2019, equation 5
        return np.array([sum(math.sqrt(((a - b) ** 2).sum()) for b in u) for a in u])
    if criterion == "scale":  # Liu et al. 2017
        return np.sqrt((scale.astype(np.float64).reshape(-1, size) ** 2).sum(axis=1))
    if criterion == "activation":
        a = np.abs(units(activations, activation_axis, size))
        return a.max(axis=1) if norm == math.inf else (a**norm).mean(axis=1)
    products = u * units(grad, axis, size)  # Molchanov et al. 2019, section 3
    return (products**2).sum(axis=1) if criterion == "taylor" else products.sum(axis=1) ** 2


def extras(criterion, w, axis, seed=1):
    """What a criterion needs besides the weight."""
    rng = np.random.default_rng(seed)
    if criterion.startswith("taylor"):
        return {"grad": rng.standard_normal(w.shape).astype(w.dtype)}
    if criterion == "scale":
        return {"scale": rng.standard_normal(w.shape[axis]).astype(w.dtype)}
    if criterion == "activation":
        return {"activations": rng.standard_normal((3, w.shape[axis], 5)).astype(w.dtype), "activation_axis": 1}
    return {}


CRITERIA = ["norm", "variance", "geometric_median", "taylor", "taylor_gate", "scale", "activation"]
each_criterion = pytest.mark.parametrize("criterion", CRITERIA)


def weight(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@each_criterion
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(12,), (12, 6), (6, 12, 3, 3), (2, 12, 67)])
def test_every_criterion_is_that_of_its_paper(criterion, dtype, shape):
    w = weight(shape, dtype)
    for axis, size in itertools.product(range(len(shape)), (1, 3)):
        if shape[axis] % size:
            continue
        more = extras(criterion, w, axis)
        for norm in (1, 2, math.inf) if criterion in ("norm", "activation") else (2,):
            got = mo.prune.importance(w, axis, criterion=criterion, norm=norm, size=size, **more)
            assert got.dtype == np.float64
            want = oracle(w, axis, criterion, norm, size, **more)
            # a sum of products cancels: its error is one of the largest term
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_norms_for_every_shape_and_layout(data):
    shape = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    w = weight(shape, data.draw(st.sampled_from(DTYPES)))
    w = w.transpose(data.draw(st.permutations(range(w.ndim))))
    w = w[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in range(w.ndim))]
    axis = data.draw(st.integers(-w.ndim, w.ndim - 1))
    norm = data.draw(st.sampled_from([1, 2, math.inf]))
    got = mo.prune.importance(w, axis, norm=norm, threads=2)
    np.testing.assert_allclose(got, oracle(w, axis, "norm", norm), rtol=1e-12)
    same = mo.prune.importance(np.ascontiguousarray(w), axis, norm=norm)
    assert ref.bits_of(got) == ref.bits_of(same)


@each_criterion
@pytest.mark.parametrize("shape", [(300, 700), (40_001, 3), (3, 40_001), (5, 70, 300), (64, 32, 3, 3)])
def test_b10_b11_bits_do_not_depend_on_the_threads_or_the_instruction_set(criterion, shape, isas):
    for axis in range(len(shape)):
        if criterion == "geometric_median" and shape[axis] > 1000:
            continue
        w = weight(shape)
        more = extras(criterion, w, axis)
        outcomes = set()
        for isa in isas:
            _core.set_isa(isa)
            for threads in (1, 2, 5):
                outcomes.add(ref.bits_of(mo.prune.importance(w, axis, criterion=criterion, threads=threads, **more)))
        assert len(outcomes) == 1


def test_columns_in_tiles_have_the_bits_of_the_whole():
    """Tiles of any multiple of a block: what a file is read in."""
    for columns in (7, 3000, 300_000):
        for norm in (1, 2, math.inf):
            rows = BlockNorms(columns, norm).rows
            w = weight((max(3, min(5 * rows // 2, 10**6 // columns)), columns))
            want = mo.prune.importance(w, 1, norm=norm)
            for step in (rows, 2 * rows, 4 * rows):
                blocks = BlockNorms(columns, norm, threads=1)
                for first in range(0, len(w), step):
                    blocks.add(w[first : first + step])
                assert ref.bits_of(blocks.norms()) == ref.bits_of(want)


def test_mixed_precisions_of_weight_and_gradient():
    w, grad = weight((4, 5), np.float16), weight((4, 5), np.float32, 1)
    got = mo.prune.importance(w, 0, criterion="taylor", grad=grad)
    np.testing.assert_allclose(got, oracle(w, 0, "taylor", grad=grad), rtol=1e-12)


def test_bfloat16_bits_in_uint16():
    w = weight((4, 5), ref.BF16)
    bits = w.view(np.uint16)
    np.testing.assert_array_equal(mo.prune.importance(bits, 1, dtype="bf16"), mo.prune.importance(w, 1))
    got = mo.prune.importance(bits, 1, criterion="taylor", grad=bits, dtype="bf16")
    np.testing.assert_array_equal(got, mo.prune.importance(w, 1, criterion="taylor", grad=w))


@each_criterion
def test_b12_nan_shows_in_its_slice(criterion):
    w = weight((4, 5))
    w[2, 3] = np.nan
    more = extras(criterion, w, 0)
    if criterion == "scale":
        more["scale"][2] = np.nan
    if criterion == "activation":
        more["activations"][0, 2, 0] = np.nan
    found = np.isnan(mo.prune.importance(w, 0, criterion=criterion, **more))
    everywhere = criterion == "geometric_median"  # a distance to it is NaN, too
    assert found.tolist() == [everywhere, everywhere, True, everywhere]


def test_a12_nothing_is_of_no_importance():
    for norm in (1, 2, math.inf):
        assert mo.prune.importance(np.zeros((3, 0), np.float32), 0, norm=norm).tolist() == [0, 0, 0]
        assert mo.prune.importance(np.zeros((3, 0), np.float32), 1, norm=norm).tolist() == []


W = weight((6, 4))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        (([1.0], 0), {}, TypeError, "importance: w must be a NumPy array, got list"),
        (
            (np.arange(3), 0),
            {},
            TypeError,
            "importance: w must have dtype float32, float64, float16 or bfloat16, got int64",
        ),
        ((W, 2), {}, ValueError, "importance: axis must be within the 2 axes of w, got 2"),
        ((W, 0.5), {}, TypeError, "importance: axis must be an integer, got 0.5"),
        (
            (W, 0),
            {"size": 4},
            ValueError,
            "importance: size must be at least 1 and divide the 6 indices of axis 0, got 4",
        ),
        (
            (W, 0),
            {"size": 0},
            ValueError,
            "importance: size must be at least 1 and divide the 6 indices of axis 0, got 0",
        ),
        ((W, 0), {"criterion": "l2"}, ValueError, "importance: criterion must be one of norm, variance"),
        ((W, 0), {"norm": 3}, ValueError, "importance: norm must be 1, 2 or inf, got 3"),
        ((W, 0), {"grad": W}, ValueError, "importance: grad must be None for criterion 'norm'"),
        ((W, 0), {"criterion": "taylor"}, ValueError, "importance: grad must be given for criterion 'taylor'"),
        ((W, 0), {"criterion": "scale"}, ValueError, "importance: scale must be given for criterion 'scale'"),
        ((W, 0), {"criterion": "activation"}, ValueError, "importance: activations must be given for criterion"),
        (
            (W, 0),
            {"criterion": "taylor", "grad": W.T},
            ValueError,
            "importance: grad must have shape (6, 4) like w, got (4, 6)",
        ),
        ((W, 0), {"criterion": "taylor", "grad": 1}, TypeError, "importance: grad must be a NumPy array, got int"),
        ((W, 0), {"criterion": "scale", "scale": W[0]}, ValueError, "importance: scale must have shape (6,), got (4,)"),
        ((W, 0), {"criterion": "scale", "scale": [1]}, TypeError, "importance: scale must be a NumPy array, got list"),
        (
            (W, 0),
            {"criterion": "activation", "activations": W},
            ValueError,
            "length 6 along activation_axis 1 like axis 0 of w",
        ),
        (
            (W, 0),
            {"criterion": "activation", "activations": W, "activation_axis": 5},
            ValueError,
            "importance: activation_axis must be within the 2 axes of activations, got 5",
        ),
        (
            (W, 0),
            {"criterion": "activation", "activations": W[:, :0], "activation_axis": 0},
            ValueError,
            "importance: activations must not be empty, got shape (6, 0)",
        ),
        ((W, 0), {"threads": 0}, ValueError, "importance: threads must be from 1 to"),
        ((W.astype(">f4"), 0), {}, TypeError, "importance: w has big-endian dtype '>f4'; use w.astype('=f4')"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_importance_refuses(args, kwargs, error, text):
    with pytest.raises(error, match=re.escape(text)):
        mo.prune.importance(*args, **kwargs)
