"""Repair without training: the least squares they claim to be, and what they keep."""

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo

RNG = np.random.default_rng
cases = given(st.integers(0, 999), st.integers(2, 12), st.integers(1, 5))


def sample(seed, features, outputs, rows=200):
    """Correlated inputs with a mean, a weight, a bias, and the inputs that stay."""
    rng = RNG(seed)
    x = rng.standard_normal((rows, features)) @ rng.standard_normal((features, features)) + rng.standard_normal(
        features
    )
    kept = np.sort(rng.permutation(features)[: rng.integers(1, features)])
    stats = mo.prune.InputStats(features)
    stats.update(x)
    return x, rng.standard_normal((outputs, features)), rng.standard_normal(outputs), kept, stats


@cases
def test_least_squares_is_that_of_numpy(seed, features, outputs):
    x, w, _, kept, stats = sample(seed, features, outputs)
    got, none = mo.prune.least_squares(w, kept, stats, ridge=1e-14)
    assert none is None
    want = np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)[0].T
    np.testing.assert_allclose(x[:, kept] @ got.T, x[:, kept] @ want.T, rtol=1e-6, atol=1e-6 * np.abs(x @ w.T).max())


@cases
def test_the_error_is_never_larger_than_that_of_plain_cropping(seed, features, outputs):
    x, w, b, kept, stats = sample(seed, features, outputs)
    target = x @ w.T + b

    def error(weight, bias):
        return ((x[:, kept] @ weight.T + bias - target) ** 2).sum()

    plain = error(w[:, kept], b)
    shifted = error(w[:, kept], mo.prune.compensate_bias(b, w, kept, stats.mean))
    repaired = error(mo.prune.least_squares(w, kept, stats)[0], b)
    both = error(*mo.prune.least_squares(w, kept, stats, bias=b))
    assert shifted <= plain * (1 + 1e-9)
    assert repaired <= plain * (1 + 1e-9)
    assert both <= min(shifted, repaired) * (1 + 1e-6) + 1e-9


@cases
def test_bias_keeps_the_mean_output(seed, features, outputs):
    x, w, b, kept, stats = sample(seed, features, outputs)
    mean = (x @ w.T + b).mean(axis=0)
    shifted = mo.prune.compensate_bias(b, w, kept, stats.mean)
    np.testing.assert_allclose((x[:, kept] @ w[:, kept].T + shifted).mean(axis=0), mean, rtol=1e-9, atol=1e-9)
    small, moved = mo.prune.least_squares(w, kept, stats, bias=b)
    np.testing.assert_allclose((x[:, kept] @ small.T + moved).mean(axis=0), mean, rtol=1e-9, atol=1e-9)


@cases
def test_inputs_that_follow_from_the_others_are_not_missed(seed, features, outputs):
    rng = RNG(seed)
    x = rng.standard_normal((100, features))
    x = np.concatenate([x, x @ rng.standard_normal((features, 3))], axis=1)
    stats = mo.prune.InputStats(features + 3)
    stats.update(x)
    w = rng.standard_normal((outputs, features + 3))
    small, _ = mo.prune.least_squares(w, np.arange(features), stats, ridge=1e-13)
    np.testing.assert_allclose(x[:, :features] @ small.T, x @ w.T, rtol=1e-7, atol=1e-7)


@cases
def test_a_large_ridge_is_plain_cropping(seed, features, outputs):
    _, w, _, kept, stats = sample(seed, features, outputs)
    small, _ = mo.prune.least_squares(w, kept, stats, ridge=1e15)
    np.testing.assert_allclose(small, w[:, kept], rtol=1e-9, atol=1e-9)


def test_dead_inputs_are_no_trouble():
    stats = mo.prune.InputStats(3)
    stats.update(np.zeros((5, 3)))
    w = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(mo.prune.least_squares(w, np.array([0, 2]), stats)[0], w[:, [0, 2]])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16], ids=str)
def test_stats_are_the_same_in_pieces(dtype):
    x = RNG(0).standard_normal((3, 4000, 5)).astype(dtype)
    whole, pieces = mo.prune.InputStats(5), mo.prune.InputStats(5)
    whole.update(x)
    pieces.update(x[0])
    later = mo.prune.InputStats(5)
    for piece in x[1:]:
        later.update(piece)
    pieces.merge(later)
    flat = x.reshape(-1, 5).astype(np.float64)
    assert whole.count == pieces.count == 12_000
    for stats in (whole, pieces):
        np.testing.assert_allclose(stats.mean, flat.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(stats.products, flat.T @ flat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16], ids=str)
def test_dtypes_stay(dtype):
    _, w, b, kept, stats = sample(0, 6, 3)
    small, bias = mo.prune.least_squares(w.astype(dtype), kept, stats, bias=b.astype(dtype))
    assert small.dtype == bias.dtype == np.dtype(dtype)
    assert small.flags.c_contiguous
    assert mo.prune.compensate_bias(b.astype(dtype), w.astype(dtype), kept, stats.mean).dtype == np.dtype(dtype)


def test_refused_inputs_add_nothing():
    stats = mo.prune.InputStats(2)
    stats.update(np.ones((3, 2)))
    for bad in (np.array([[1.0, np.nan]]), np.ones((2, 3)), np.ones((2, 2), int), [[1.0, 2.0]]):
        with pytest.raises((TypeError, ValueError)):
            stats.update(bad)
    assert stats.count == 3
    assert stats.products.tolist() == [[3, 3], [3, 3]]


W, B, K = np.ones((2, 3)), np.ones(2), np.array([0, 2])
S = mo.prune.InputStats(3)
S.update(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: mo.prune.InputStats(0), ValueError, "InputStats: features must be at least 1, got 0"),
        (lambda: mo.prune.InputStats(2.0), TypeError, "InputStats: features must be an integer, got 2.0"),
        (lambda: S.update(np.ones((2, 4))), ValueError, "InputStats: x must have shape (..., 3), got (2, 4)"),
        (lambda: S.merge(None), TypeError, "InputStats: other must be InputStats, got NoneType"),
        (
            lambda: S.merge(mo.prune.InputStats(2)),
            ValueError,
            "InputStats: other must have 3 features, got 2",
        ),
        (lambda: S.update([1]), TypeError, "InputStats: x must be a NumPy array, got list"),
        (lambda: S.update(np.ones(3, int)), TypeError, "InputStats: x must have a float dtype, got int64"),
        (lambda: S.update(np.full(3, np.inf)), ValueError, "InputStats: x must be finite, got 3 numbers that are not"),
        (
            lambda: mo.prune.least_squares(W, K, None),
            TypeError,
            "least_squares: stats must be InputStats, got NoneType",
        ),
        (
            lambda: mo.prune.least_squares(W, K, mo.prune.InputStats(3)),
            ValueError,
            "least_squares: stats must be of one or more rows of the 3 inputs, got 0 rows of 3",
        ),
        (
            lambda: mo.prune.least_squares(B, K, S),
            ValueError,
            "least_squares: weight must have shape (out, in), got (2,)",
        ),
        (lambda: mo.prune.least_squares([1], K, S), TypeError, "least_squares: weight must be a NumPy array, got list"),
        (
            lambda: mo.prune.least_squares(W, K, S, ridge=0),
            ValueError,
            "least_squares: ridge must be above 0 and finite",
        ),
        (lambda: mo.prune.least_squares(W, [0.5], S), TypeError, "least_squares: kept must be a 1-d array of integers"),
        (
            lambda: mo.prune.least_squares(W, [2, 0], S),
            ValueError,
            "one or more ascending inputs from 0 to below 3, got",
        ),
        (lambda: mo.prune.least_squares(W, [3], S), ValueError, "ascending inputs from 0 to below 3, got [3]"),
        (
            lambda: mo.prune.least_squares(W, K, S, bias=np.ones(3)),
            ValueError,
            "least_squares: bias must have shape (2,), got (3,)",
        ),
        (
            lambda: mo.prune.compensate_bias(B, W, K, np.ones(2)),
            ValueError,
            "compensate_bias: mean must have shape (3,), got (2,)",
        ),
        (lambda: mo.prune.compensate_bias([1], W, K, S.mean), TypeError, "compensate_bias: bias must be a NumPy array"),
    ],
)
def test_messages(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()
