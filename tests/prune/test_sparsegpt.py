"""SparseGPT against its algorithm in NumPy, a column at a time, and what its correction is worth."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core

SIZES = [(1, 1), (3, 2), (2, 63), (65, 64), (5, 65), (130, 130), (64, 200), (7, 400)]


def inputs(n: int, rows: int = 0, seed: int = 0) -> np.ndarray:
    """Correlated inputs of different sizes."""
    rng = np.random.default_rng([seed, n])
    mixed = rng.standard_normal((rows or 3 * n + 5, n)) @ (np.eye(n) + rng.standard_normal((n, n)) / math.sqrt(n))
    return mixed * np.exp2(rng.uniform(-2, 2, n))


def hessian(x: np.ndarray) -> np.ndarray:
    return 2 / len(x) * x.T @ x


def weights(rows: int, n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng([seed, rows, n]).standard_normal((rows, n))


W, X = weights(6, 40), inputs(40)
H = hessian(X)


def zeros(w: np.ndarray) -> int:
    return int(np.count_nonzero(w == 0))


# ---- the algorithm


@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("block", [1, 7, 64, 128, 10**6])
def test_sparsegpt_is_the_algorithm_of_the_paper(rows, n, block):
    w, h = weights(rows, n), hessian(inputs(n))
    for sparsity in (0.0, 0.3, 0.5, 0.9, 1.0) if block == 7 else (0.3, 0.9):  # the ends once: the oracle is slow
        got = mo.prune.sparsegpt(w, h, sparsity, block_size=block)
        want = ref.sparsegpt(w, h, sparsity, block_size=block)
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)
        np.testing.assert_array_equal(got == 0, want == 0)


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 2), (4, 8), (2, 3), (5, 24), (31, 32)])
@pytest.mark.parametrize("block", [1, 50, 128])
def test_groups_are_chosen_when_they_are_reached(keep, group, block):
    w, h = weights(9, 6 * group), hessian(inputs(6 * group))
    got = mo.prune.sparsegpt(w, h, n=keep, m=group, block_size=block)
    np.testing.assert_allclose(got, ref.sparsegpt(w, h, n=keep, m=group), rtol=1e-8, atol=1e-8)
    assert (np.count_nonzero(got.reshape(-1, group), axis=1) == keep).all()


@pytest.mark.parametrize("damping", [0, 1e-4, 0.01, 1.0, 1e12])
def test_damping_is_in_units_of_the_mean_of_the_diagonal(damping):
    for scale in (1.0, 1e-6, 1e6):
        got = mo.prune.sparsegpt(W, scale * H, 0.5, damping=damping)
        np.testing.assert_allclose(got, ref.sparsegpt(W, H, 0.5, damping=damping), rtol=1e-7, atol=1e-7)


def test_nothing_is_corrected_where_inputs_are_independent():
    np.testing.assert_array_equal(mo.prune.sparsegpt(W, np.eye(40), 0.5), mo.prune.magnitude(W, 0.5))
    want = mo.prune.wanda(W, np.sqrt(np.diag(H)), n=2, m=4)
    np.testing.assert_array_equal(mo.prune.sparsegpt(W, np.diag(np.diag(H)), n=2, m=4, damping=0), want)


def test_float32_is_near_the_algorithm_in_float64():
    w, h = weights(30, 200).astype(np.float32), hessian(inputs(200))
    for share in ({"sparsity": 0.5}, {"n": 2, "m": 4}):
        got, want = mo.prune.sparsegpt(w, h, **share), ref.sparsegpt(w, h, **share)
        assert got.dtype == np.float32
        assert np.mean((got == 0) != (want == 0)) < 0.002
        np.testing.assert_allclose(np.median(np.abs(got - want)), 0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
def test_16_bits_are_computed_in_float32_and_rounded_once(dtype):
    w = weights(30, 200).astype(dtype)
    h = hessian(inputs(200))
    wide = mo.prune.sparsegpt(w.astype(np.float32), h, 0.6)
    assert ref.bits_of(mo.prune.sparsegpt(w, h, 0.6)) == ref.bits_of(ref.cast(wide.astype(np.float64), np.dtype(dtype)))


# ---- exactly so many, ties, dead inputs, NaN


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_b12_exactly_the_share_goes_in_blocks_of_any_size(dtype):
    w = W.astype(dtype)
    for block in (1, 3, 16, 40):
        for k in range(0, 241, 7):
            assert zeros(mo.prune.sparsegpt(w, H, k / 240, block_size=block)) == k


def test_b12_among_equal_ones_the_lowest_index_goes_first():
    w = np.ones((3, 8), np.float32)
    got = mo.prune.sparsegpt(w, np.eye(8), 0.25, block_size=4)
    want = np.ones((3, 8))
    want[0, :3] = want[0, 4:7] = 0
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(mo.prune.sparsegpt(w, np.eye(8), n=1, m=4), np.tile([0, 0, 0, 1], (3, 2)))


def test_dead_inputs_lose_their_weights_and_disturb_no_others():
    x = X.copy()
    x[:, [3, 17, 39]] = 0
    h = hessian(x)
    got = mo.prune.sparsegpt(W, h, 0.3)
    np.testing.assert_allclose(got, ref.sparsegpt(W, h, 0.3), rtol=1e-8, atol=1e-8)
    assert (got[:, [3, 17, 39]] == 0).all()
    assert zeros(mo.prune.sparsegpt(W, h, 0.0)) == 18
    assert zeros(mo.prune.sparsegpt(W, np.zeros((40, 40)), 0.5)) == 240


def test_b12_nan_is_refused_and_named_or_stays_and_spoils_nothing():
    w = W.copy()
    w[2, 5], w[4, 7] = math.nan, math.inf
    for out in (None, np.full_like(w, 9)):
        with pytest.raises(
            ValueError, match=r"^sparsegpt: w has 1 NaN, first at index \(2, 5\); pass nonfinite=\"largest\""
        ):
            mo.prune.sparsegpt(w, H, 0.5, out=out)
        assert out is None or (out == 9).all()
    for share in ({"sparsity": 0.5}, {"sparsity": 0.996}, {"n": 1, "m": 2}):
        got = mo.prune.sparsegpt(w, H, nonfinite="largest", **share)
        assert np.isnan(got[2, 5])
        assert np.isfinite(got).sum() >= 238
    assert zeros(mo.prune.sparsegpt(w, H, 1.0, nonfinite="largest")) == 240


# ---- what it is worth


@pytest.mark.parametrize("share", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"n": 2, "m": 4}], ids=str)
def test_outputs_change_less_than_by_magnitude_and_by_wanda(share):
    rng = np.random.default_rng(6)
    # Few causes, as in a network: the inputs say much of each other.
    x = rng.standard_normal((600, 16)) @ rng.standard_normal((16, 256)) + 0.3 * rng.standard_normal((600, 256))
    w = weights(64, 256)
    norms = np.linalg.norm(x, axis=0)

    def error(pruned: np.ndarray) -> float:
        return float(np.linalg.norm((w - pruned) @ x.T))

    by_magnitude = mo.prune.n_of_m(w, **share) if "n" in share else mo.prune.magnitude(w, **share)
    by_wanda = mo.prune.wanda(w, norms, **share)
    corrected = mo.prune.sparsegpt(w, hessian(x), **share)
    assert error(corrected) < 0.5 * error(by_wanda)
    assert error(corrected) < 0.5 * error(by_magnitude)


# ---- arrays


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_c5_any_layout_is_read_and_written(dtype):
    w = weights(12, 40).astype(dtype)
    want = mo.prune.sparsegpt(w, H, 0.5)
    frame = np.zeros((24, 120), dtype)
    frame[::2, ::3] = w
    for view in (np.asfortranarray(w), frame[::2, ::3], w[::-1, ::-1].copy()[::-1, ::-1]):
        assert ref.bits_of(mo.prune.sparsegpt(view, H, 0.5)) == ref.bits_of(want)
    out = np.full_like(w, 9)
    assert mo.prune.sparsegpt(w, H, 0.5, out=out) is out
    assert ref.bits_of(out) == ref.bits_of(want)
    view = frame[::2, ::3]
    assert mo.prune.sparsegpt(view, H, 0.5, out=view) is view
    assert ref.bits_of(view.copy()) == ref.bits_of(want)
    assert (frame[1::2] == 0).all()
    assert ref.bits_of(mo.prune.sparsegpt(w, np.asfortranarray(H), 0.5)) == ref.bits_of(want)
    upper = np.triu(np.full((40, 40), 7.0), 1)
    assert ref.bits_of(mo.prune.sparsegpt(w, np.tril(H) + upper, 0.5)) == ref.bits_of(want)


def test_c7_empty_layers_stay_empty():
    assert mo.prune.sparsegpt(np.zeros((0, 40)), H, 0.5).shape == (0, 40)
    assert mo.prune.sparsegpt(np.zeros((3, 0)), np.zeros((0, 0)), 0.5).shape == (3, 0)
    assert mo.prune.sparsegpt(np.zeros((3, 0)), np.zeros((0, 0)), n=2, m=4).shape == (3, 0)


def test_bfloat16_bits_are_pruned_as_bfloat16():
    w = W.astype(ml_dtypes.bfloat16)
    got = mo.prune.sparsegpt(w.view(np.uint16), H, 0.5, dtype="bf16")
    assert ref.bits_of(got) == ref.bits_of(mo.prune.sparsegpt(w, H, 0.5).view(np.uint16))


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_b10_b11_bits_do_not_depend_on_the_instruction_set_or_the_threads(dtype, isas):
    """Beside test_bits.py, whose layers are narrow: many columns, several tiles and blocks."""
    w, h = weights(150, 330).astype(dtype), hessian(inputs(330))
    for share in ({"sparsity": 0.5}, {"n": 2, "m": 6, "block_size": 60}):
        wanted = None
        for isa in isas:
            _core.set_isa(isa)
            for threads in (1, 2, 5):
                got = ref.bits_of(mo.prune.sparsegpt(w, h, threads=threads, **share))
                wanted = wanted or got
                assert got == wanted, f"{isa}, {threads} threads"


def test_c2_a_panic_is_an_internal_error_and_nothing_is_written():
    out = np.full_like(W, 9)
    _core.set_fault(True)
    try:
        with pytest.raises(mo.InternalError, match=r"^sparsegpt: .*please report"):
            mo.prune.sparsegpt(W, H, 0.5, out=out)
    finally:
        _core.set_fault(False)
    assert (out == 9).all()
    assert zeros(mo.prune.sparsegpt(W, H, 0.5, out=out)) == 120


# ---- the Hessian


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_a_hessian_of_batches_is_that_of_all_rows(dtype):
    x = np.random.default_rng(3).standard_normal((4, 30, 7)).astype(dtype)
    one, a, b, none = (mo.prune.Hessian() for _ in range(4))
    one.update(x)
    a.update(x[:1])
    b.update(x[1])
    b.update(x[2:])
    none.merge(a)
    none.merge(b)
    none.merge(mo.prune.Hessian())
    want = hessian(x.reshape(-1, 7).astype(np.float64))
    for got in (one, none):
        assert got.count == 120
        np.testing.assert_allclose(got.second_derivative, want, rtol=1e-9, atol=1e-12)
    assert a.count == 30
    np.testing.assert_allclose(a.second_derivative, hessian(x[0].astype(np.float64)), rtol=1e-9, atol=1e-12)


def test_a_hessian_is_taken_as_its_matrix():
    h = mo.prune.Hessian()
    h.update(X)
    assert ref.bits_of(mo.prune.sparsegpt(W, h, 0.5)) == ref.bits_of(mo.prune.sparsegpt(W, h.second_derivative, 0.5))


def test_refused_inputs_add_nothing_to_a_hessian():
    h = mo.prune.Hessian()
    for bad in (np.float32([[1, math.inf]]), np.ones((2, 2), int), [[1.0]], np.ones((3, 0)), np.float32(1)):
        with pytest.raises((TypeError, ValueError)):
            h.update(bad)
    assert h.count == 0
    h.update(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"^Hessian: x must have shape \(..., 2\), got \(4, 3\)"):
        h.update(np.ones((4, 3)))
    other = mo.prune.Hessian()
    other.update(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"^Hessian: other must have 2 features, got 3"):
        h.merge(other)
    assert h.count == 3
    np.testing.assert_array_equal(h.second_derivative, np.full((2, 2), 2.0))


# ---- errors, before anything is written


def prune(*args: Any, **kwargs: Any) -> Any:
    return lambda: mo.prune.sparsegpt(*args, **kwargs)


BAD = H.copy()
BAD[30, 30] = -1
NOT_FINITE = H.copy()
NOT_FINITE[5, 1] = math.nan
OUT = np.full_like(W, 9)
MESSAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "1-d": (
        prune(W[0], H, 0.5),
        ValueError,
        r"^sparsegpt: w must have 2 dimensions \(out, in\), got shape \(40,\)",
    ),
    "integers": (prune(W.astype(int), H, 0.5), TypeError, r"^sparsegpt: w must have dtype float32"),
    "list": (prune([[1.0]], H, 0.5), TypeError, r"^sparsegpt: w must be a NumPy array, got list"),
    "neither": (prune(W, H), ValueError, r"^sparsegpt: sparsity or n and m must be given, got neither"),
    "both": (
        prune(W, H, 0.5, n=2, m=4),
        ValueError,
        r"^sparsegpt: sparsity or n and m must be given, got both",
    ),
    "group alone": (
        prune(W, H, m=4),
        ValueError,
        r"^sparsegpt: n and m must come together, got n=None, m=4",
    ),
    "sparsity": (prune(W, H, 1.5), ValueError, r"^sparsegpt: sparsity must be from 0 to 1, got 1.5"),
    "keep": (prune(W, H, n=4, m=4), ValueError, r"^sparsegpt: n must be from 1 to below m \(4\), got 4"),
    "group": (prune(W, H, n=4, m=33), ValueError, r"^sparsegpt: m must be from 2 to 32, got 33"),
    "multiple": (
        prune(W, H, n=2, m=7),
        ValueError,
        r"^sparsegpt: w must have a multiple of 7 elements along axis 1, got 40",
    ),
    "hessian list": (prune(W, [1.0], 0.5), TypeError, r"^sparsegpt: hessian must be a NumPy array, got list"),
    "hessian dtype": (
        prune(W, H.astype(np.float32), 0.5),
        TypeError,
        r"^sparsegpt: hessian must have dtype float64, got float32",
    ),
    "hessian shape": (
        prune(W, H[:, 1:], 0.5),
        ValueError,
        r"^sparsegpt: hessian must have shape \(40, 40\), got \(40, 39\)",
    ),
    "hessian nan": (prune(W, NOT_FINITE, 0.5, out=OUT), ValueError, r"^sparsegpt: hessian must be finite, is not"),
    "hessian indefinite": (
        prune(W, BAD, 0.5, out=OUT),
        ValueError,
        r"^sparsegpt: hessian must be positive definite, is not at index 30; raise damping",
    ),
    "hessian of nothing": (
        prune(W, mo.prune.Hessian(), 0.5),
        ValueError,
        r"^Hessian: second_derivative must come after an update, got none",
    ),
    "damping": (prune(W, H, 0.5, damping=-1), ValueError, r"^sparsegpt: damping must be finite and at least 0, got -1"),
    "damping nan": (
        prune(W, H, 0.5, damping=math.nan),
        ValueError,
        r"^sparsegpt: damping must be finite and at least 0, got NaN",
    ),
    "damping text": (prune(W, H, 0.5, damping="x"), TypeError, r"^sparsegpt: damping must be a number, got 'x'"),
    "block": (prune(W, H, 0.5, block_size=0), ValueError, r"^sparsegpt: block_size must be at least 1, got 0"),
    "block text": (prune(W, H, 0.5, block_size="x"), TypeError, r"^sparsegpt: block_size must be an integer, got 'x'"),
    "nonfinite": (
        prune(W, H, 0.5, nonfinite="x"),
        ValueError,
        r"^sparsegpt: nonfinite must be 'raise' or 'largest', got \"x\"",
    ),
    "threads": (prune(W, H, 0.5, threads=0), ValueError, r"^sparsegpt: threads must be from 1 to"),
    "out shape": (
        prune(W, H, 0.5, out=np.empty((6, 39))),
        ValueError,
        r"^sparsegpt: out must have shape \(6, 40\) like w, got \(6, 39\)",
    ),
    "out dtype": (
        prune(W, H, 0.5, out=np.empty((6, 40), np.float32)),
        TypeError,
        r"^sparsegpt: out must have dtype float64, got float32",
    ),
    "out mask": (
        prune(W, H, 0.5, out=np.empty((6, 40), np.uint8)),
        TypeError,
        r"^sparsegpt: out must have dtype float64, got uint8",
    ),
    "overlap": (prune(W[1:], H, 0.5, out=W[:-1]), ValueError, r"^sparsegpt: out and w overlap in memory"),
    "overlap of the hessian": (
        prune(H[:6], H, 0.5, out=H[6:12]),
        ValueError,
        r"^sparsegpt: (hessian is in use|.*overlap)",
    ),
    "merge": (
        lambda: mo.prune.Hessian().merge(None),
        TypeError,
        r"^Hessian: other must be a Hessian, got NoneType",
    ),
    "update list": (
        lambda: mo.prune.Hessian().update([1.0]),
        TypeError,
        r"^Hessian: x must be a NumPy array, got list",
    ),
    "update integers": (
        lambda: mo.prune.Hessian().update(np.ones(3, int)),
        TypeError,
        r"^Hessian: x must have a float dtype, got int64",
    ),
    "update 0-d": (
        lambda: mo.prune.Hessian().update(np.array(1.0)),
        ValueError,
        r"^Hessian: x must have shape \(..., columns\), at least one, got \(\)",
    ),
    "update infinite": (
        lambda: mo.prune.Hessian().update(np.float32([[1, math.inf]])),
        ValueError,
        r"^Hessian: x must be finite, got 1 numbers that are not; nothing was added",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_argument_is_named_and_nothing_is_written(name):
    call, error, message = MESSAGES[name]
    before = W.tobytes(), H.tobytes()
    with pytest.raises(error, match=message):
        call()
    assert (W.tobytes(), H.tobytes()) == before
    assert (OUT == 9).all()
