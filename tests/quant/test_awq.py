"""AWQ's factors against the formula in NumPy, and that they never lose more than none."""

import math
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core


def layer(rows: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs of which some are large."""
    rng = np.random.default_rng([seed, rows, n])
    return rng.standard_normal((rows, n)), rng.standard_normal((3 * n + 5, n)) * np.exp2(rng.uniform(-5, 5, n))


def loss(w: np.ndarray, s: np.ndarray, m: np.ndarray, **how: Any) -> float:
    lost = w - mo.fake_quantize(w * s, **how) / s
    return float(np.sum(np.square(lost.astype(np.float64) * m)))


def formula(w: np.ndarray, m: np.ndarray, grid: int, **how: Any) -> np.ndarray:
    found = []
    for i in range(grid):
        powers = np.maximum(m ** (i / grid), 1e-4)
        found.append(powers / np.sqrt(powers.max() * powers.min()))
    return min(found, key=lambda s: loss(w, s, m, **how))


W, X = layer(30, 70)
M = np.sqrt(np.mean(np.square(X), axis=0))
CUTS: list[dict[str, Any]] = [{"axis": 0}, {"group_size": 16}, {"group_size": 7}, {"group_size": 100}]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "minmax"])
def test_the_factors_are_the_best_of_the_grid(cut, scheme):
    for bits in (8, 4, 2):
        for grid in (1, 7, 20):
            how = {"bits": bits, "scheme": scheme, **cut}
            got = mo.quant.awq_scales(W, M, grid=grid, **how)
            np.testing.assert_allclose(got, formula(W, M, grid, **how), rtol=1e-12)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("search", [None, "mse"])
def test_the_weighted_error_is_never_more_than_without_factors(dtype, search):
    for seed in range(5):
        w, x = layer(65, 70, seed)
        m, w = np.sqrt(np.mean(np.square(x), axis=0)), w.astype(dtype)
        for bits in (4, 2):
            how = {"bits": bits, "group_size": 16}
            s = mo.quant.awq_scales(w, m, search=search, **how)
            assert s.dtype == (np.float64 if dtype == np.float64 else np.float32)
            wide = w.astype(s.dtype)
            if search:
                # As it counts there: columns by what they count.
                counts = np.square(m) / np.square(s.astype(np.float64))
                least = loss(wide, np.ones_like(s), m, **how)
                weights = (counts / counts.max()).astype(np.float32)
                assert loss(wide, s, m, search=search, weights=weights, **how) <= least
            else:
                assert loss(wide, s, m, **how) <= loss(wide, np.ones_like(s), m, **how)


def test_equal_inputs_need_no_factors():
    for value in (1.0, 3.7, 0.0):
        np.testing.assert_array_equal(mo.quant.awq_scales(W, np.full(70, value), group_size=16), np.ones(70))


def test_all_statistics_say_the_same():
    norms, stats, hessian = mo.prune.ColumnNorms(), mo.prune.InputStats(70), mo.prune.Hessian()
    for each in (norms, stats, hessian):
        each.update(X[:100])
        each.update(X[100:])
        np.testing.assert_allclose(mo.quant.awq_scales(W, each, axis=0), mo.quant.awq_scales(W, M, axis=0), rtol=1e-6)


def test_threads_and_instruction_sets_change_no_bit():
    w, x = layer(200, 133)
    m = np.sqrt(np.mean(np.square(x), axis=0))
    best = _core.isa()
    try:
        for options in ({"group_size": 32}, {"axis": 0, "search": "mse", "scheme": "asymmetric"}):
            found = []
            for isa in ("portable", "avx2", "avx512"):
                try:
                    _core.set_isa(isa)
                except ValueError:
                    continue
                small = w.astype(np.float32)
                found += [ref.bits_of(mo.quant.awq_scales(small, m, threads=n, **options)) for n in (1, 3)]
            assert all(each == found[0] for each in found)
    finally:
        _core.set_isa(best)


def test_empty_layers_have_factors_of_1():
    for shape in ((0, 4), (3, 0)):
        got = mo.quant.awq_scales(np.zeros(shape), np.ones(shape[1]), group_size=4)
        np.testing.assert_array_equal(got, np.ones(shape[1]))


def call(*args: Any, **kwargs: Any) -> Any:
    return lambda: mo.quant.awq_scales(*args, **{"group_size": 16, **kwargs})


BAD = np.where(np.arange(70) == 3, math.nan, M)
NAN = W.copy()
NAN[2, 5] = math.inf
MESSAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "list": (call([[1.0]], M), TypeError, r"w must be a NumPy array, got list$"),
    "1-d": (call(W[0], M), ValueError, r"w must have 2 dimensions \(out, in\), got shape \(70,\)"),
    "integers": (call(W.astype(int), M), TypeError, r"w must have dtype float32"),
    "infinite": (call(NAN, M), ValueError, r"w must be finite, has 1 non-finite value, first at index \(2, 5\)$"),
    "stats": (
        call(W, 3),
        TypeError,
        r"x_stats must be ColumnNorms, InputStats, a Hessian or an array of float64, got int$",
    ),
    "stats of nothing": (call(W, mo.prune.ColumnNorms()), ValueError, r"x_stats must have seen inputs, got none$"),
    "stats dtype": (call(W, M.astype(np.float32)), TypeError, r"x_stats must have dtype float64, got float32"),
    "stats shape": (call(W, M[1:]), ValueError, r"x_stats must have shape \(70,\), got \(69,\)"),
    "stats nan": (call(W, BAD), ValueError, r"x_stats must be finite and not negative$"),
    "bits": (call(W, M, bits=3), ValueError, r"bits must be 8, 4 or 2, got 3"),
    "axis": (call(W, M, group_size=None, axis=1), ValueError, r"axis must be None or 0"),
    "neither": (call(W, M, group_size=None), ValueError, r"group_size or axis=0 must be given, got neither$"),
    "grid": (call(W, M, grid=0), ValueError, r"grid must be from 1 to 10,000, got 0$"),
    "search": (call(W, M, search="x"), ValueError, r"search must be None or 'mse', got \"x\"$"),
    "minmax": (
        call(W, M, scheme="minmax", scale_dtype="float16"),
        ValueError,
        r"scale_dtype must be None for scheme 'minmax'",
    ),
    "threads": (call(W, M, threads=0), ValueError, r"threads must be"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_name_the_argument(name):
    function, kind, text = MESSAGES[name]
    with pytest.raises(kind, match=f"^awq_scales: {text}"):
        function()
