"""Pruning of single weights, of blocks, and the storage of what is pruned, against plain NumPy."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo
import reference as ref

RNG = np.random.default_rng(5)
W = ref.wild(240, np.float32).reshape(6, 40)
NORMS = np.linspace(0.5, 2, 40).astype(np.float32)
TIES = RNG.integers(-3, 4, (6, 40)).astype(np.float32)


def pruned(w: np.ndarray, stays: np.ndarray) -> np.ndarray:
    return np.where(stays, w, np.zeros((), w.dtype))


def same(got: Any, want: Any) -> None:
    assert ref.bits_of(got) == ref.bits_of(want)


def magnitudes(w: np.ndarray) -> np.ndarray:
    return np.abs(w.astype(np.float64))


# ---- exactly k, ties, NaN


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("data", ["wild", "ties", "zeros"])
def test_b12_magnitude_prunes_exactly_k_for_every_k_the_lowest_index_first(dtype, data):
    w = {"wild": ref.wild(67, dtype), "ties": TIES.ravel()[:67].astype(dtype), "zeros": np.zeros(67, dtype)}[data]
    for k in range(68):
        stays = ref.kept(magnitudes(w), k)
        same(mo.prune.magnitude(w, k / 67), pruned(w, stays))
        same(mo.prune.magnitude(w, k / 67, mask="bool"), stays)
        same(mo.prune.magnitude(w, k / 67, mask="bits"), np.packbits(stays, bitorder="little"))


def test_b12_the_number_of_zeros_is_rounded_as_python_rounds():
    w = np.arange(1, 11, dtype=np.float32)
    for sparsity in (0, 0.05, 0.15, 0.25, 0.35, 0.449, 0.45, 1 / 3, 0.95, 1):
        assert np.count_nonzero(mo.prune.magnitude(w, sparsity) == 0) == round(sparsity * 10)


@given(st.integers(0, 300), st.floats(0, 1), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_b12_magnitude_matches_a_stable_sort(n, sparsity, levels, seed):
    w = np.random.default_rng(seed).integers(-levels, levels + 1, n).astype(np.float32)
    same(mo.prune.magnitude(w, sparsity), pruned(w, ref.kept(np.abs(w), round(sparsity * n))))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_magnitude_prunes_the_same_share_along_any_axes(axis):
    w = ref.wild(5 * 6 * 7, np.float32).reshape(5, 6, 7)
    axes = (axis,) if isinstance(axis, int) else axis
    axes = tuple(a % 3 for a in axes)
    order = [a for a in range(3) if a not in axes] + list(axes)
    moved = w.transpose(order)
    rows = moved.reshape(-1, math.prod(w.shape[a] for a in axes))
    stays = np.stack([ref.kept(np.abs(row), round(0.3 * row.size)) for row in rows]).reshape(moved.shape)
    want = pruned(w, stays.transpose(np.argsort(order)))
    same(mo.prune.magnitude(w, 0.3, axis=axis), want)
    out = np.full_like(w, 9)
    assert mo.prune.magnitude(w, 0.3, axis=axis, out=out) is out
    same(out, want)
    in_place = w.copy()
    mo.prune.magnitude(in_place, 0.3, axis=axis, out=in_place)
    same(in_place, want)


def test_long_arrays_match_numpy():
    w = RNG.standard_normal((1 << 11) * 1100, dtype=np.float32).reshape(-1, 1100)
    for sparsity in (0.1, 0.5, 0.999):
        same(mo.prune.magnitude(w, sparsity), pruned(w, ref.kept(np.abs(w), round(sparsity * w.size))))
    coarse = np.round(w * 4)
    same(mo.prune.magnitude(coarse, 0.6), pruned(coarse, ref.kept(np.abs(coarse), round(0.6 * w.size))))


def test_global_magnitude_ranks_all_arrays_as_one():
    arrays = [TIES, W, np.zeros((0, 3), np.float32), np.array(2.5, np.float32), W[::2, ::-3]]
    flat = np.concatenate([np.ravel(a) for a in arrays])
    for sparsity in (0, 0.2, 0.5, 0.77, 1):
        stays = ref.kept(np.abs(flat), round(sparsity * flat.size))
        parts = np.split(stays, np.cumsum([a.size for a in arrays])[:-1])
        want = [pruned(a, part.reshape(a.shape)) for a, part in zip(arrays, parts, strict=True)]
        same(mo.prune.global_magnitude(arrays, sparsity), want)
        masks = mo.prune.global_magnitude(arrays, sparsity, mask="bool")
        same(masks, [part.reshape(a.shape) for a, part in zip(arrays, parts, strict=True)])
        out = [np.full(a.shape, 9, np.float32) for a in arrays]
        mo.prune.global_magnitude(arrays, sparsity, out=out)
        same(out, want)
    assert mo.prune.global_magnitude([], 0.5) == []


@pytest.mark.parametrize("eps", [0.0, 1e-30, 0.3, 0.1, 1.0, 65504.0, math.inf])
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_threshold_keeps_what_is_larger_exactly(dtype, eps):
    w = ref.wild(500, dtype)
    same(mo.prune.threshold(w, eps), pruned(w, magnitudes(w) > eps))
    at = np.array([eps], np.float64).astype(dtype)
    if np.isfinite(magnitudes(at)).all():
        same(mo.prune.threshold(at, float(magnitudes(at)[0])), np.zeros(1, dtype))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("keep", "group"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 3), (5, 24), (31, 32)])
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_n_of_m_keeps_the_largest_of_each_group(dtype, keep, group, axis):
    shape = [3, 5, 2]
    shape[axis] = 3 * group
    w = np.round(ref.wild(math.prod(shape), np.float32)).astype(dtype).reshape(shape)
    moved = np.moveaxis(w, axis, -1)
    rows = moved.reshape(-1, group)
    stays = np.stack([ref.kept(magnitudes(row), group - keep) for row in rows]).reshape(moved.shape)
    stays = np.moveaxis(stays, -1, axis)
    same(mo.prune.n_of_m(w, keep, group, axis), pruned(w, stays))
    same(mo.prune.n_of_m(w, keep, group, axis, mask="bool"), stays)
    in_place = w.copy()
    mo.prune.n_of_m(in_place, keep, group, axis, out=in_place)
    same(in_place, pruned(w, stays))


def test_wanda_ranks_each_row_by_weight_times_norm():
    scores = np.abs(W) * NORMS
    want = np.stack([ref.kept(row, 12) for row in scores])
    same(mo.prune.wanda(W, NORMS, 0.3), pruned(W, want))
    want = np.concatenate([ref.kept(row, 2) for row in scores.reshape(-1, 4)]).reshape(W.shape)
    same(mo.prune.wanda(W, NORMS, n=2, m=4), pruned(W, want))
    same(mo.prune.wanda(W, NORMS, n=2, m=4, mask="bool"), want)


def test_column_norms_of_batches_are_those_of_all_rows():
    x = RNG.standard_normal((4, 30, 7)).astype(np.float32)
    one, a, b = mo.prune.ColumnNorms(), mo.prune.ColumnNorms(), mo.prune.ColumnNorms()
    one.update(x)
    a.update(x[:1])
    b.update(x[1:])
    a.merge(b)
    want = np.sqrt(np.square(x.reshape(-1, 7).astype(np.float64)).sum(0))
    np.testing.assert_allclose(one.norms, want, rtol=1e-6)
    np.testing.assert_allclose(a.norms, want, rtol=1e-6)
    assert a.count == one.count == 120


@pytest.mark.parametrize("block", [(2, 4), (1, 8), (6, 40), (1, 1), (3, 5)])
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_blocks_are_pruned_whole(block, norm):
    a, b = block
    split = W.reshape(6 // a, a, 40 // b, b).swapaxes(1, 2).reshape(6 // a, 40 // b, -1)
    scores = np.linalg.norm(split.astype(np.float64), norm, axis=-1)
    stays = ref.kept(scores, round(0.4 * scores.size))
    same(mo.prune.blocks(W, block, 0.4, norm=norm, mask="bool"), stays)
    whole = stays.repeat(a, axis=0).repeat(b, axis=1)
    same(mo.prune.blocks(W, block, 0.4, norm=norm), pruned(W, whole))


# ---- masks and storage


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 8), (3, 13), (2, 3, 9), (0, 4), (4, 0)])
def test_masks_in_bits_and_bools_say_the_same(shape):
    w = ref.wild(math.prod(shape), np.float32).reshape(shape)
    stays = mo.prune.magnitude(w, 0.5, mask="bool")
    bits = mo.prune.magnitude(w, 0.5, mask="bits")
    want = pruned(w, stays)
    same(mo.prune.apply_mask(w, stays), want)
    same(mo.prune.apply_mask(w, bits), want)
    same(mo.prune.magnitude(w, 0.5), want)
    out = np.full_like(w, 9)
    same(mo.prune.apply_mask(w, bits, out=out), want)


def test_c6_a_mask_of_other_bytes_than_0_and_1_is_read_as_true():
    mask = np.array([24, 2, 1, 0], np.uint8).view(bool)
    same(mo.prune.apply_mask(np.float32([1, np.nan, 3, np.inf]), mask), np.float32([1, np.nan, 3, 0]))


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 1])
def test_what_is_compressed_comes_back(dtype, sparsity):
    for shape in [(6, 40), (3, 5, 17), (300,), (0, 3), (3, 0), ()]:
        w = mo.prune.magnitude(ref.wild(math.prod(shape), dtype).reshape(shape), sparsity)
        small = mo.prune.compress(w)
        back = small.decompress()
        assert (back.dtype, back.shape) == (w.dtype, w.shape)
        np.testing.assert_array_equal(back, w)
        assert len(small.values) == np.count_nonzero(w)
        out = np.full_like(w, 9)
        assert small.decompress(out=out) is out
        same(out, back)


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (4, 8), (3, 16), (9, 32)])
def test_n_of_m_comes_back_and_is_smaller(keep, group):
    w = mo.prune.n_of_m(RNG.standard_normal((5, 64)).astype(np.float32), keep, group)
    small = mo.prune.compress(w, n=keep, m=group)
    same(small.decompress(), w)
    bits = 2 if group <= 4 else 4 if group <= 16 else 8
    assert small.nbytes == w.size * keep // group * 4 + w.size * keep // group * bits // 8


def test_csr_is_scipys():
    sparse = pytest.importorskip("scipy.sparse")
    w = mo.prune.magnitude(W, 0.8)
    data, indices, indptr = mo.prune.to_csr(w)
    same(sparse.csr_array((data, indices, indptr), shape=w.shape).toarray(), w + np.float32(0))
    want = sparse.csr_array(w)
    np.testing.assert_array_equal(indices, want.indices)
    np.testing.assert_array_equal(indptr, want.indptr)


# ---- schedules


def test_schedules_follow_their_formulas():
    for step in range(40):
        t = min(max((step - 10) / 20, 0), 1)
        want = 0 if step < 10 else 0.2 + (0.8 - 0.2) * t
        assert mo.prune.linear(0.8, begin=10, end=30, initial=0.2)(step) == pytest.approx(want)
        want = 0 if step < 10 else 0.8 + (0.2 - 0.8) * (1 - t) ** 3
        assert mo.prune.cubic(0.8, begin=10, end=30, initial=0.2)(step) == pytest.approx(want)
        assert mo.prune.constant(0.8, begin=10)(step) == (0.8 if step >= 10 else 0)


# ---- errors, before anything is written


def test_b12_nan_is_refused_and_named_or_is_the_largest():
    for place in range(0, 240, 7):
        w = W.copy()
        w.flat[place] = math.nan
        at = rf"\({place // 40}, {place % 40}\)"
        calls = {
            "threshold": lambda w=w, **kw: mo.prune.threshold(w, 0.5, **kw),
            "magnitude": lambda w=w, **kw: mo.prune.magnitude(w, 0.5, **kw),
            "n_of_m": lambda w=w, **kw: mo.prune.n_of_m(w, axis=1, **kw),
            "wanda": lambda w=w, **kw: mo.prune.wanda(w, NORMS, 0.5, **kw),
        }
        for name, call in calls.items():
            for out in (None, np.full_like(w, 9)):
                with pytest.raises(
                    ValueError, match=rf"^{name}: w has 1 NaN, first at index {at}; pass nonfinite=\"largest\""
                ):
                    call(out=out)
                assert out is None or (out == 9).all()
            assert np.isnan(call(nonfinite="largest").flat[place])
        with pytest.raises(ValueError, match=r"^magnitude: w has 1 NaN, first at index " + at):
            mo.prune.magnitude(w, 0.5, axis=0)
        with pytest.raises(ValueError, match=r"^global_magnitude: arrays\[1\] has 1 NaN, first at index " + at):
            mo.prune.global_magnitude([W, w], 0.5)


HALF = W.astype(np.float16)
MESSAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "sparsity above": (
        lambda: mo.prune.magnitude(W, 1.5),
        ValueError,
        r"^magnitude: sparsity must be from 0 to 1, got 1.5",
    ),
    "sparsity nan": (
        lambda: mo.prune.magnitude(W, math.nan),
        ValueError,
        r"^magnitude: sparsity must be from 0 to 1, got NaN",
    ),
    "sparsity text": (lambda: mo.prune.magnitude(W, "x"), TypeError, r"^magnitude: sparsity must be a number, got 'x'"),
    "axis": (
        lambda: mo.prune.magnitude(W, 0.5, axis=2),
        ValueError,
        r"^magnitude: axis must be within the 2 axes of w, got 2",
    ),
    "axis twice": (
        lambda: mo.prune.magnitude(W, 0.5, axis=(0, -2)),
        ValueError,
        r"^magnitude: axis must name each axis once",
    ),
    "mask": (
        lambda: mo.prune.magnitude(W, mask="x"),
        ValueError,
        r"^magnitude: mask must be None, 'bool' or 'bits', got 'x'",
    ),
    "nan": (
        lambda: mo.prune.magnitude(W, nonfinite="x"),
        ValueError,
        r"^magnitude: nonfinite must be 'raise' or 'largest', got \"x\"",
    ),
    "eps": (lambda: mo.prune.threshold(W, -1), ValueError, r"^threshold: eps must be at least 0, got -1"),
    "out shape": (
        lambda: mo.prune.magnitude(W, out=np.empty(3, np.float32)),
        ValueError,
        r"^magnitude: out must have shape \(6, 40\) like w, got \(3,\)",
    ),
    "out dtype": (
        lambda: mo.prune.magnitude(W, out=HALF),
        TypeError,
        r"^magnitude: out must have dtype float32, got float16",
    ),
    "out of bytes": (
        lambda: mo.prune.n_of_m(W, out=np.empty(W.shape, np.uint8)),
        TypeError,
        r"^n_of_m: out must have dtype float32, got uint8",
    ),
    "outs of bytes": (
        lambda: mo.prune.global_magnitude([W], out=[np.empty(W.shape, np.bool_)]),
        TypeError,
        r"^global_magnitude: out\[0\] must have dtype float32, got bool",
    ),
    "out of a mask": (
        lambda: mo.prune.magnitude(W, mask="bool", out=W.copy()),
        TypeError,
        r"^magnitude: out must have dtype bool for mask='bool', got float32",
    ),
    "out of bits": (
        lambda: mo.prune.magnitude(W, mask="bits", out=np.empty((6, 4), np.uint8)),
        ValueError,
        r"^magnitude: out must have shape \(6, 5\) for mask='bits', got \(6, 4\)",
    ),
    "overlap": (lambda: mo.prune.magnitude(W[1:], out=W[:-1]), ValueError, r"^magnitude: out and w overlap in memory"),
    "dtypes": (
        lambda: mo.prune.global_magnitude([W, HALF]),
        TypeError,
        r"^global_magnitude: arrays\[1\] must have dtype float32 like arrays\[0\], got float16",
    ),
    "list lengths": (
        lambda: mo.prune.global_magnitude([W], out=[]),
        ValueError,
        r"^global_magnitude: out must have 1 arrays",
    ),
    "group": (lambda: mo.prune.n_of_m(W, 2, 33), ValueError, r"^n_of_m: m must be from 2 to 32, got 33"),
    "keep": (lambda: mo.prune.n_of_m(W, 4, 4), ValueError, r"^n_of_m: n must be from 1 to below m \(4\), got 4"),
    "multiple": (
        lambda: mo.prune.n_of_m(W, 2, 7),
        ValueError,
        r"^n_of_m: w must have a multiple of 7 elements along axis 1, got 40",
    ),
    "wanda 1-d": (
        lambda: mo.prune.wanda(W[0], NORMS, 0.5),
        ValueError,
        r"^wanda: w must have 2 dimensions \(out, in\)",
    ),
    "wanda neither": (
        lambda: mo.prune.wanda(W, NORMS),
        ValueError,
        r"^wanda: sparsity or n and m must be given",
    ),
    "wanda norms": (
        lambda: mo.prune.wanda(W, -NORMS, 0.5),
        ValueError,
        r"^wanda: x_stats must be finite and at least 0",
    ),
    "wanda dtype": (
        lambda: mo.prune.wanda(W, NORMS.astype(np.float64), 0.5),
        TypeError,
        r"^wanda: x_stats must have dtype float32 for w float32, got float64",
    ),
    "wanda shape": (lambda: mo.prune.wanda(W, NORMS[1:], 0.5), ValueError, r"^wanda: x_stats must have shape \(40,\)"),
    "block": (lambda: mo.prune.blocks(W, (4, 4)), ValueError, r"^blocks: block must divide the shape \(6, 40\) of w"),
    "block axes": (
        lambda: mo.prune.blocks(W, (2,)),
        ValueError,
        r"^blocks: block must have a positive integer for each",
    ),
    "block sparsity": (
        lambda: mo.prune.blocks(W, (2, 4), 2),
        ValueError,
        r"^blocks: sparsity must be from 0 to 1, got 2",
    ),
    "block dtype": (
        lambda: mo.prune.blocks(TIES.astype(int), (2, 4)),
        TypeError,
        r"^blocks: w must have dtype float32",
    ),
    "mask shape": (
        lambda: mo.prune.apply_mask(W, np.ones(3, bool)),
        ValueError,
        r"^apply_mask: mask must have shape \(6, 40\) like w, got \(3,\)",
    ),
    "mask dtype": (lambda: mo.prune.apply_mask(W, W), TypeError, r"^apply_mask: mask must have dtype bool, or uint8"),
    "too many": (
        lambda: mo.prune.compress(W, n=2, m=4),
        ValueError,
        r"^compress: w must have at most 2 non-zero of each 4 consecutive weights, got more; prune it by n_of_m first",
    ),
    "csr": (lambda: mo.prune.to_csr(W[0]), ValueError, r"^to_csr: w must be a matrix of fewer than 2\*\*31 columns"),
    "schedule": (
        lambda: mo.prune.cubic(0.5, begin=3, end=2),
        ValueError,
        r"^cubic: end must be at least begin \(3\), got 2",
    ),
    "column norms": (
        lambda: mo.prune.ColumnNorms().update(np.float32([[1, math.inf]])),
        ValueError,
        r"^ColumnNorms: x must be finite, is not in column 1",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_argument_is_named(name):
    call, error, message = MESSAGES[name]
    before = W.tobytes()
    with pytest.raises(error, match=message):
        call()
    assert W.tobytes() == before


def test_storage_that_does_not_go_together_is_refused():
    small = mo.prune.compress(mo.prune.magnitude(W, 0.5))
    out = np.full_like(W, 9)
    bits = small.bitmask.copy()
    bits[0, 0] ^= 1
    broken = mo.prune.BitmaskArray(small.values, bits, small.row_offsets, small.shape)
    with pytest.raises(ValueError, match=r"^decompress: bitmask must have a bit for each value of row 0"):
        broken.decompress(out=out)
    broken = mo.prune.BitmaskArray(small.values, small.bitmask, small.row_offsets[::-1].copy(), small.shape)
    with pytest.raises(ValueError, match=r"^decompress: row_offsets must ascend from 0 to the number of values"):
        broken.decompress(out=out)
    groups = mo.prune.compress(mo.prune.n_of_m(W), n=2, m=4)
    broken = mo.prune.GroupsArray(groups.values, groups.indices * 0, 2, 4, groups.shape)
    with pytest.raises(ValueError, match=r"^decompress: indices must ascend from 0 to below 4 in each group"):
        broken.decompress(out=out)
    assert (out == 9).all()


def test_bfloat16_bits_are_pruned_as_bfloat16():
    w = W.astype(ml_dtypes.bfloat16)
    got = mo.prune.magnitude(w.view(np.uint16), 0.5, dtype="bf16")
    same(got, mo.prune.magnitude(w, 0.5).view(np.uint16))
