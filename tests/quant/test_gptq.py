"""GPTQ against its algorithm in NumPy, a column at a time, and what its correction is worth."""

import math
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
import reference_gptq
from modelopt_rs import _core


def inputs(n: int, rows: int = 0, seed: int = 0) -> np.ndarray:
    """Correlated inputs of different sizes."""
    rng = np.random.default_rng([seed, n])
    mixed = rng.standard_normal((rows or 3 * n + 5, n)) @ (np.eye(n) + rng.standard_normal((n, n)) / math.sqrt(n))
    return mixed * np.exp2(rng.uniform(-2, 2, n))


def second_moments(x: np.ndarray) -> np.ndarray:
    return 2 / len(x) * x.T @ x


def weights(rows: int, n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng([seed, rows, n]).standard_normal((rows, n))


def loss(w: np.ndarray, q: Any, h: np.ndarray) -> float:
    d = w.astype(np.float64) - q.dequantize(np.float64)
    return float(np.sum((d @ h) * d))


def bits_of(q: Any) -> list[Any]:
    return [ref.bits_of(part) for part in q.parts.values()]


W, H = weights(6, 40), second_moments(inputs(40))
CUTS: list[dict[str, Any]] = [{}, {"axis": 0}, {"group_size": 8}, {"group_size": 7}, {"group_size": 64}]


# ---- the algorithm


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 2), (65, 64), (5, 65), (2, 130)])
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "minmax"])
def test_gptq_is_the_algorithm_of_the_paper(rows, n, cut, scheme):
    w, h = weights(rows, n), second_moments(inputs(n))
    for bits in (8, 4, 2):
        how = {"bits": bits, "scheme": scheme, **cut}
        got = mo.quant.gptq(w, h, **how)
        np.testing.assert_allclose(got.dequantize(np.float64), reference_gptq.gptq(w, h, **how)[1], rtol=0, atol=1e-9)
        assert (got.bits, got.scheme, got.axis, got.group_size) == (
            bits,
            scheme,
            cut.get("axis"),
            cut.get("group_size"),
        )


@pytest.mark.parametrize("order", [(True, True), ("groups", False), ("groups", True), (False, True)], ids=str)
@pytest.mark.parametrize("how", [{}, {"search": "mse"}, {"scale_dtype": "float16", "scheme": "asymmetric"}], ids=str)
def test_columns_are_taken_in_any_order_and_come_back(order, how):
    for n, size in ((40, 8), (45, 16), (20, 32)):
        w, h = weights(5, n), second_moments(inputs(n))
        options = {"group_size": size, "act_order": order[0], "static_groups": order[1], **how}
        got = mo.quant.gptq(w, h, **options).dequantize(np.float64)
        np.testing.assert_allclose(got, reference_gptq.gptq(w, h, **options)[1], rtol=0, atol=1e-9)


def test_act_order_without_groups_takes_columns_by_the_diagonal():
    for cut in ({}, {"axis": 0}):
        ordered = [mo.quant.gptq(W, H, act_order=order, **cut) for order in (True, "groups")]
        want = reference_gptq.gptq(W, H, act_order=True, **cut)[1]
        for got in ordered:
            np.testing.assert_allclose(got.dequantize(np.float64), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("damp", [1e-4, 0.01, 1.0, 1e12])
def test_damp_is_in_units_of_the_mean_of_the_diagonal(damp):
    want = reference_gptq.gptq(W, H, damp=damp, group_size=8)[1]
    for scale in (1.0, 1e-6, 1e6):
        got = mo.quant.gptq(W, scale * H, damping=damp, group_size=8)
        np.testing.assert_allclose(got.dequantize(np.float64), want, rtol=0, atol=1e-7)


# ---- laws


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("how", [{}, {"search": "mse"}, {"scale_dtype": "bfloat16"}], ids=str)
def test_independent_inputs_give_plain_rounding_bit_for_bit(dtype, how):
    w = weights(70, 75).astype(dtype)
    for scheme in ("symmetric", "asymmetric", "minmax")[: 2 if "scale_dtype" in how else 3]:
        for bits in (8, 4, 2):
            for cut in CUTS:
                options = {"bits": bits, "scheme": scheme, **cut, **how}
                got = mo.quant.gptq(w, np.eye(75), act_order="groups", **options)
                assert bits_of(got) == bits_of(mo.quantize(w, **options)), options


@pytest.mark.parametrize("cut", CUTS[1:], ids=str)
@pytest.mark.parametrize("search", [None, "mse"])
def test_the_error_of_the_outputs_is_less_than_that_of_plain_rounding(cut, search):
    # At 2 bits the plain formula's scales leave three numbers: what is corrected then ends beyond them.
    for seed in range(4):
        w, h = weights(30, 96, seed), second_moments(inputs(96, seed=seed))
        for bits in (4, 2) if search else (8, 4):
            for scheme in ("symmetric", "asymmetric"):
                options = {"bits": bits, "scheme": scheme, "search": search, **cut}
                assert loss(w, mo.quant.gptq(w, h, **options), h) < loss(w, mo.quantize(w, **options), h), options


@pytest.mark.parametrize("order", [(False, False), (False, True), (True, True), ("groups", False)], ids=str)
def test_block_size_changes_no_bit(order):
    w, h = weights(9, 150).astype(np.float32), second_moments(inputs(150))
    for cut in CUTS:
        options = {"act_order": order[0], "static_groups": order[1], "search": "mse", **cut}
        want = bits_of(mo.quant.gptq(w, h, **options))
        for block in (1, 5, 32, 200, 10**9):
            assert bits_of(mo.quant.gptq(w, h, block_size=block, **options)) == want


def test_rows_do_not_know_of_each_other():
    w, h = weights(130, 50).astype(np.float32), second_moments(inputs(50))
    for options in ({"axis": 0}, {"group_size": 16}, {"group_size": 16, "search": "mse"}):
        whole = mo.quant.gptq(w, h, **options)
        for rows in (slice(0, 1), slice(3, 70), slice(100, 130)):
            assert bits_of(mo.quant.gptq(w[rows], h, **options)) == bits_of(whole[rows])


def test_threads_and_instruction_sets_change_no_bit():
    w, h = weights(150, 200).astype(np.float32), second_moments(inputs(200))
    calls = [{"group_size": 32}, {"group_size": 48, "search": "mse", "act_order": "groups"}, {"axis": 0, "bits": 2}]
    calls += [
        {"group_size": 32, "act_order": True, "static_groups": True, "scheme": "asymmetric"},
        {"scheme": "minmax"},
    ]
    best = _core.isa()
    try:
        for options in calls:
            found = []
            for isa in ("portable", "avx2", "avx512"):
                try:
                    _core.set_isa(isa)
                except ValueError:
                    continue
                found += [bits_of(mo.quant.gptq(w, h, threads=threads, **options)) for threads in (1, 3)]
            assert all(each == found[0] for each in found)
    finally:
        _core.set_isa(best)


def test_scales_at_the_ends_of_the_range_of_floats_correct_by_what_codes_stand_for():
    for scale in (1e-37, 1e36):
        w = (weights(30, 96) * scale).astype(np.float32)
        got = mo.quant.gptq(w, second_moments(inputs(96)), group_size=8)
        want = mo.quant.gptq((w / np.float32(scale)).astype(np.float32), second_moments(inputs(96)), group_size=8)
        assert np.mean(got.codes == want.codes) > 0.9


# ---- dead inputs, singular Hessians


def test_dead_inputs_are_rounded_and_disturb_no_others():
    x = inputs(40)
    x[:, [3, 17, 39]] = 0
    h = second_moments(x)
    for options in ({"axis": 0}, {"group_size": 8}, {"group_size": 8, "act_order": "groups"}):
        got = mo.quant.gptq(W, h, **options)
        np.testing.assert_allclose(got.dequantize(np.float64), reference_gptq.gptq(W, h, **options)[1], atol=1e-9)
    plain = mo.quantize(W, bits=4, axis=0).dequantize(np.float64)
    got = mo.quant.gptq(W, h, axis=0).dequantize(np.float64)
    np.testing.assert_array_equal(got[:, [3, 17, 39]], plain[:, [3, 17, 39]])
    assert bits_of(mo.quant.gptq(W, np.zeros((40, 40)), group_size=8)) == bits_of(mo.quantize(W, bits=4, group_size=8))


def test_fewer_rows_than_inputs_need_damping():
    h = second_moments(inputs(40, rows=7))
    for damp in (0.001, 0.01, 1.0):
        assert loss(W, mo.quant.gptq(W, h, group_size=8, damping=damp), h) < loss(
            W, mo.quantize(W, bits=4, group_size=8), h
        )
    with pytest.raises(
        ValueError, match=r"^gptq: hessian must be positive definite, is not at index \d+; raise damping$"
    ):
        mo.quant.gptq(W, np.ones((40, 40)), damping=0)


@pytest.mark.parametrize(("rows", "damp"), [(0, 1e-6), (100, 1e-3), (20, 1e-5)])
def test_float32_loses_no_more_than_float64_where_hardly_anything_is_damped(rows, damp):
    w, h = weights(40, 200).astype(np.float32), second_moments(inputs(200, rows=rows))
    damped = h + damp * h.diagonal().mean() * np.eye(200)
    for cut in ({"axis": 0}, {"group_size": 32}, {"group_size": 32, "search": "mse", "act_order": "groups"}):
        got, want = (mo.quant.gptq(x, h, damping=damp, **cut) for x in (w, w.astype(np.float64)))
        assert loss(w, got, damped) < 1.001 * loss(w, want, damped)


# ---- arrays


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
def test_16_bits_are_computed_in_float32(dtype):
    w = weights(30, 200).astype(dtype)
    h = second_moments(inputs(200))
    assert bits_of(mo.quant.gptq(w, h, group_size=32)) == bits_of(mo.quant.gptq(w.astype(np.float32), h, group_size=32))
    if dtype == ref.BF16:
        got = mo.quant.gptq(w.view(np.uint16), h, group_size=32, dtype="bf16")
        assert bits_of(got) == bits_of(mo.quant.gptq(w, h, group_size=32))


def test_strides_the_upper_triangle_and_what_a_hessian_gathered():
    w = W.astype(np.float32)
    want = bits_of(mo.quant.gptq(w, H, group_size=8, act_order="groups"))
    for given in (np.asfortranarray(w), w[::-1][::-1], np.repeat(w, 2, axis=1)[:, ::2]):
        assert bits_of(mo.quant.gptq(given, H, group_size=8, act_order="groups")) == want
    upper = np.triu(np.full_like(H, 1e9), 1)
    for h in (np.asfortranarray(H), np.tril(H) + upper):
        assert bits_of(mo.quant.gptq(w, h, group_size=8, act_order="groups")) == want
    gathered, other = mo.prune.Hessian(), mo.prune.Hessian()
    gathered.update(inputs(40)[:50])
    other.update(inputs(40)[50:])
    gathered.merge(other)
    assert bits_of(mo.quant.gptq(w, gathered)) == bits_of(mo.quant.gptq(w, gathered.second_derivative))


def test_empty_layers_stay_empty():
    for shape in ((0, 40), (3, 0)):
        for cut in CUTS:
            got = mo.quant.gptq(np.zeros(shape), np.eye(shape[1]), **cut)
            assert bits_of(got) == bits_of(mo.quantize(np.zeros(shape), bits=4, **cut))


def test_out_is_rewritten_and_a_refused_call_changes_nothing():
    out = mo.quantize(np.ones_like(W), bits=4, group_size=8)
    before = bits_of(out)
    bad = W.copy()
    bad[2, 5] = math.nan
    for w, h in ((bad, H), (W, -H), (W, H * math.inf)):
        with pytest.raises(ValueError, match=r"^gptq: (w|hessian) must be"):
            mo.quant.gptq(w, h, group_size=8, out=out)
        assert bits_of(out) == before
    assert mo.quant.gptq(W, H, group_size=8, out=out) is out
    assert bits_of(out) == bits_of(mo.quant.gptq(W, H, group_size=8))


# ---- messages


def call(*args: Any, **kwargs: Any) -> Any:
    return lambda: mo.quant.gptq(*args, **kwargs)


def with_at(array: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


OTHER = mo.quantize(W, bits=8, group_size=8)
MESSAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "1-d": (call(W[0], H), ValueError, r"w must have 2 dimensions \(out, in\), got shape \(40,\)"),
    "list": (call([[1.0]], H), TypeError, r"w must be a NumPy array, got list"),
    "integers": (call(W.astype(int), H), TypeError, r"w must have dtype float32"),
    "nan": (
        call(with_at(W, (2, 5), math.nan), H),
        ValueError,
        r"w must be finite, has 1 non-finite value, first at index \(2, 5\)$",
    ),
    "hessian list": (call(W, [1.0]), TypeError, r"hessian must be a Hessian or an array of float64, got list$"),
    "hessian dtype": (call(W, H.astype(np.float32)), TypeError, r"hessian must have dtype float64, got float32"),
    "hessian shape": (call(W, H[:, 1:]), ValueError, r"hessian must have shape \(40, 40\), got \(40, 39\)"),
    "hessian nan": (call(W, with_at(H, (5, 1), math.nan)), ValueError, r"hessian must be finite, is not"),
    "indefinite": (
        call(W, with_at(H, (30, 30), -1), act_order=True),
        ValueError,
        r"hessian must be positive definite, is not at index 30; raise damping$",
    ),
    "bits": (call(W, H, bits=3), ValueError, r"bits must be 8, 4 or 2, got 3"),
    "scheme": (call(W, H, scheme="x"), ValueError, r"scheme must be 'symmetric', 'asymmetric' or 'minmax', got \"x\""),
    "axis": (call(W, H, axis=1), ValueError, r"axis must be None or 0, which has a scale for each row, got 1$"),
    "group_size": (call(W, H, group_size=0), ValueError, r"group_size must be at least 1"),
    "both": (call(W, H, group_size=8, axis=0), ValueError, r"axis and group_size must not both be given"),
    "act_order": (call(W, H, act_order="x"), ValueError, r"act_order must be False, True or 'groups', got 'x'$"),
    "scattered groups": (
        call(W, H, act_order=True, group_size=8),
        ValueError,
        r"static_groups must be True for act_order=True with group_size, got False; or pass act_order='groups'",
    ),
    "static_groups": (call(W, H, static_groups=2), ValueError, r"static_groups must be True or False, got 2$"),
    "damp": (call(W, H, damping=-1), ValueError, r"damping must be finite and at least 0, got -1$"),
    "damp type": (call(W, H, damping="x"), TypeError, r"damping must be a number, got 'x'$"),
    "block_size": (call(W, H, block_size=0), ValueError, r"block_size must be at least 1, got 0$"),
    "search": (call(W, H, search="x"), ValueError, r"search must be None or 'mse', got \"x\"$"),
    "scale_dtype": (call(W, H, scale_dtype="x"), ValueError, r"scale_dtype must be None, 'float32'"),
    "minmax": (
        call(W, H, scheme="minmax", scale_dtype="float16"),
        ValueError,
        r"scale_dtype must be None for scheme 'minmax'$",
    ),
    "out type": (call(W, H, out=1), TypeError, r"out must be a QuantizedArray, got int$"),
    "out": (call(W, H, group_size=8, out=OTHER), ValueError, r"out must have bits=4, .*, got bits=8"),
    "threads": (call(W, H, threads=0), ValueError, r"threads must be"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_name_the_argument(name):
    function, kind, text = MESSAGES[name]
    with pytest.raises(kind, match=f"^gptq: {text}"):
        function()
