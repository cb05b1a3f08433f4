"""States in blocks of codes, master copies and stochastic rounding: `BlockState` and what steps make of it."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core

BF16 = np.dtype(ml_dtypes.bfloat16)
CODINGS = ("minifloat", "dynamic", "dynamic4")
KINDS = [(coding, signed) for coding in CODINGS for signed in (True, False)]
STEPS: list[tuple[str, dict[str, bool], dict[str, Any]]] = [
    ("adam_step", {"exp_avg": True, "exp_avg_sq": False}, {"weight_decay": 0.1}),
    ("adamw_step", {"exp_avg": True, "exp_avg_sq": False}, {"grad_scale": 2.0, "clip_value": 1.0}),
    ("sgd_step", {"momentum_buffer": True}, {"lr": 0.1, "momentum": 0.9}),
    ("adagrad_step", {"state_sum": False}, {}),
    ("rmsprop_step", {"square_avg": False}, {}),
    ("lion_step", {"exp_avg": True}, {}),
]
CASES = [(f, s, o, c) for f, s, o in STEPS for c in CODINGS if c != "dynamic4" or f.startswith("adam")]
LOWEST = {True: 2e-5, False: 3e-10}  # of a block's largest: where minifloat ends, by whether it is signed
LENGTHS = [*range(0, 20), *range(120, 136), *range(250, 260), 511, 767, 768, 769, 1025, ref.CHUNK - 1, ref.CHUNK + 257]


def block(coding: str) -> int:
    return 128 if coding == "dynamic4" else 256


def table(coding: str, signed: bool) -> np.ndarray:
    """The number of every code, in units of the largest."""
    count = 16 if coding == "dynamic4" else 256
    codes = np.arange(count, dtype=np.uint8)
    packed = codes[::2] | codes[1::2] << 4 if coding == "dynamic4" else codes
    return mo.optim.BlockState(packed, np.ones(1, np.float32), (count,), coding=coding, signed=signed).dequantize()


def numbers(n: int, signed: bool, seed: int = 0) -> np.ndarray:
    """Over ten decades."""
    rng = np.random.default_rng(seed)
    x = (10.0 ** rng.uniform(-10, 0, n)).astype(np.float32)
    return x * rng.choice([-1, 1], n).astype(np.float32) if signed else x


# ------------------------------------------------------------------------------------------------------ the codes


@pytest.mark.parametrize(("coding", "signed"), KINDS)
def test_every_code_is_the_code_of_its_number(coding, signed):
    values = table(coding, signed)
    state = mo.optim.BlockState.from_array(values, coding=coding, signed=signed)
    assert np.isclose(state.absmax[0], 1.0, rtol=1e-6)
    assert ref.bits_of(state.dequantize()) == ref.bits_of(values)


@pytest.mark.parametrize(("coding", "signed"), KINDS)
def test_a_number_gets_the_nearest_code(coding, signed):
    """Numbers as good as in the middle may go either way; minifloat makes 0 of what is below its codes, or (not signed)
    the lowest."""
    size = block(coding)
    values = np.sort(table(coding, signed).astype(np.float64))
    x = numbers(200 * size, signed).reshape(200, size)
    x[:, 7] = 1.0  # so the largest is the unit
    got = mo.optim.BlockState.from_array(x.reshape(-1), coding=coding, signed=signed).dequantize().reshape(x.shape)
    if coding == "dynamic4" and not signed:  # the roots are coded
        values, x, got = np.sqrt(values), np.sqrt(x), np.sqrt(got)
    place = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    best = np.minimum(np.abs(x - values[place - 1]), np.abs(x - values[place]))
    error = np.abs(got.astype(np.float64) - x)
    smallest = values[values > 0].min()
    allowed = best * (1 + 1e-4) + 1e-7
    if coding == "minifloat":
        allowed = np.where(np.abs(x) < smallest, smallest, allowed)
    assert np.all(error <= allowed)


@pytest.mark.parametrize("signed", [True, False])
def test_the_error_of_minifloat_is_as_documented(signed):
    x = numbers(1 << 16, signed)
    got = mo.optim.BlockState.from_array(x, signed=signed).dequantize()
    largest = np.repeat(np.abs(x.reshape(-1, 256)).max(1), 256)
    lowest = LOWEST[signed] * largest
    assert np.all(np.abs(got - x) <= np.maximum(np.abs(x) / 16 * (1 + 1e-5), lowest))
    assert np.all((np.abs(x) < lowest / 2) <= (got == 0 if signed else got > 0))


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_maps_are_those_of_the_paper(signed):
    """Decades of 2^i (not signed: 2^(i+1)) parts; each code the mean of its part; 0 and 1; to two units of float32."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        values += [*means, *(-means if signed else [])]
    np.testing.assert_allclose(table("dynamic", signed), np.sort(values), rtol=3e-7, atol=0)


def test_the_4_bit_maps_are_those_of_the_paper():
    signed = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0]
    np.testing.assert_allclose(table("dynamic4", True), [*(-x for x in signed[-2::-1]), 0, *signed], rtol=3e-7)
    np.testing.assert_allclose(table("dynamic4", False), (np.arange(1, 17) / 16) ** 2, rtol=3e-7)


@pytest.mark.parametrize("coding", ["minifloat", "dynamic4"])
def test_a_second_moment_never_becomes_0(coding):
    x = np.full(256, 1e-30, np.float32)
    x[0] = 1.0
    assert (mo.optim.BlockState.from_array(x, coding=coding, signed=False).dequantize() > 0).all()


@pytest.mark.parametrize(("coding", "signed"), KINDS)
def test_zeros_and_what_is_too_small_become_zeros(coding, signed):
    for value in (0.0, 1e-38, 1e-45):
        state = mo.optim.BlockState.from_array(np.full(300, value, np.float32), coding=coding, signed=signed)
        if coding == "dynamic4" and not signed and value > 1e-45:
            continue  # its root is not too small
        assert not np.any(state.dequantize()) or value > 0
    assert not mo.optim.BlockState.zeros((300,), coding=coding, signed=signed).dequantize().any()


@pytest.mark.parametrize(("coding", "signed"), KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_b5_what_is_not_finite_spoils_its_block_alone(coding, signed, bad):
    x = np.ones(3 * 256, np.float32)
    x[300] = bad
    got = mo.optim.BlockState.from_array(x, coding=coding, signed=signed).dequantize()
    size = block(coding)
    spoilt = slice(300 // size * size, 300 // size * size + size)
    assert not np.isfinite(got[spoilt][x[spoilt] != 1]).any()
    got[spoilt] = 1
    np.testing.assert_allclose(got, 1, rtol=1e-6)


def test_a_state_takes_at_most_1_02_bytes_an_element():
    n = 1 << 20
    sizes = {c: mo.optim.BlockState.zeros((n,), coding=c, signed=True).nbytes / n for c in CODINGS}
    assert sizes["minifloat"] == sizes["dynamic"] <= 1.02
    assert sizes["dynamic4"] <= 0.54


# ------------------------------------------------------------------------------------------------------ the steps


def start(states: dict[str, bool], n: int, coding: str, seed: int) -> dict[str, mo.optim.BlockState]:
    return {
        name: mo.optim.BlockState.from_array(numbers(n, signed, seed + i), coding=coding, signed=signed)
        for i, (name, signed) in enumerate(states.items())
    }


@pytest.mark.parametrize(("function", "states", "options", "coding"), CASES, ids=str)
def test_a_step_is_that_of_float32_between_decoding_and_coding(function, states, options, coding):
    """To the bit; but minifloat codes by chance: then each state has one of the two codes around its number."""
    step = getattr(mo.optim, function)
    for n in LENGTHS:
        rng = np.random.default_rng(n)
        p, g = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
        blocks = start(states, n, coding, n)
        plain = {name: state.dequantize() for name, state in blocks.items()}
        for dtype in (np.dtype(np.float32), np.dtype(np.float16), BF16):
            want, got = p.astype(dtype), p.astype(dtype)
            now = {name: x.copy() for name, x in plain.items()}
            coded = {name: state.copy() for name, state in blocks.items()}
            step(want, g.astype(dtype), **now, step=3, **options)
            step(got, g.astype(dtype), **coded, step=3, **options)
            assert ref.bits_of(got) == ref.bits_of(want), n
            for name, signed in states.items():
                again = mo.optim.BlockState.from_array(now[name], coding=coding, signed=signed)
                assert ref.bits_of(coded[name].absmax) == ref.bits_of(again.absmax)
                if coding != "minifloat":
                    assert ref.bits_of(coded[name].codes) == ref.bits_of(again.codes)
                    continue
                error = np.abs(coded[name].dequantize() - now[name])
                lowest = LOWEST[signed] * np.repeat(again.absmax, block(coding))[:n]
                assert np.all(error <= np.maximum(np.abs(now[name]) / 8 * (1 + 1e-5), lowest))


def test_minifloat_codes_of_steps_are_right_on_average():
    """Of a million numbers the mean relative error is below 6 standard errors of a fair choice."""
    n = 1 << 20
    rng = np.random.default_rng(0)
    p, coded, exact = np.zeros(n, np.float32), {}, {}
    for name, signed in STEPS[0][1].items():
        coded[name] = mo.optim.BlockState.zeros((n,), signed=signed)
    for t in range(1, 6):
        g = rng.standard_normal(n).astype(np.float32)
        exact = {name: state.dequantize() for name, state in coded.items()}
        mo.optim.adam_step(p.copy(), g, **exact, step=t)
        mo.optim.adam_step(p, g, **coded, step=t)
    for name, x in exact.items():
        large = np.abs(x) > 1e-3 * np.abs(x).max()
        error = (coded[name].dequantize()[large] - x[large]) / np.abs(x[large])
        assert abs(error.mean(dtype=np.float64)) <= 6 / 8 / 2 / np.sqrt(error.size), name


def test_second_moments_in_minifloat_are_those_of_float32_on_average():
    """After 3,000 steps of gradients over two decades: within 1.5 %. Random bits that were too small by 3e-4 on average
    made them 2.5 % smaller."""
    n = 1 << 13
    rng = np.random.default_rng(0)
    p, q, scale = np.zeros(n, np.float32), np.zeros(n, np.float32), 10.0 ** rng.uniform(-2, 0, n)
    coded = {name: mo.optim.BlockState.zeros((n,), signed=signed) for name, signed in STEPS[0][1].items()}
    plain = {name: np.zeros(n, np.float32) for name in coded}
    for t in range(1, 3001):
        g = (scale * rng.standard_normal(n, np.float32)).astype(np.float32)
        mo.optim.adam_step(p, g, **coded, step=t)
        mo.optim.adam_step(q, g, **plain, step=t)
    ratio = coded["exp_avg_sq"].dequantize() / plain["exp_avg_sq"]
    assert abs(ratio.mean() - 1) <= 0.015


def movement(function: str, states: dict[str, bool], part: float, coded: bool) -> float:
    """How far elements get in 500 steps whose gradients are about `part` of that of another one in their block."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(256).astype(np.float32)
    g = (part * (1 + 0.1 * rng.standard_normal(256))).astype(np.float32)
    g[0] = 1
    p, kept = start.copy(), {}
    for name, signed in states.items():
        kept[name] = mo.optim.BlockState.zeros((256,), signed=signed) if coded else np.zeros(256, np.float32)
    for t in range(1, 501):
        getattr(mo.optim, function)(p, g, **kept, step=t, lr=1e-3)
    return float(np.abs(p - start)[1:].mean())


@pytest.mark.parametrize("part", [1.0, 1e-2, 3e-3, 1e-3, 1e-4, 3e-5], ids=str)
@pytest.mark.parametrize("function", ["adam_step", "rmsprop_step", "adagrad_step"])
def test_small_gradients_beside_a_large_one_move_elements_as_with_float32_states(function, part):
    """Within 1 %; with second moments down to 2e-5 of the largest only, 1e-3 moved them a quarter as far."""
    states = next(states for name, states, _ in STEPS if name == function)
    assert movement(function, states, part, coded=True) == pytest.approx(
        movement(function, states, part, coded=False), rel=0.01
    )


@pytest.mark.parametrize(("function", "states", "options", "coding"), CASES, ids=str)
def test_b10_b11_lists_threads_and_instruction_sets_change_no_bits(function, states, options, coding, isas):
    step = getattr(mo.optim, function)
    lengths = [1, 0, 300, 70_001, 256, 767, 9]
    rng = np.random.default_rng(1)
    params = [rng.standard_normal(n).astype(np.float32) for n in lengths]
    grads = [rng.standard_normal(n).astype(np.float32) for n in lengths]

    def run(isa: str, threads: int, alone: bool) -> list[Any]:
        _core.set_isa(isa)
        ps = [p.copy() for p in params]
        blocks = [start(states, n, coding, n) for n in lengths]
        if alone:
            for p, g, s in zip(ps, grads, blocks, strict=True):
                step(p, g, **s, step=2, threads=threads, **options)
        else:
            lists = {name: [s[name] for s in blocks] for name in states}
            step(ps, grads, **lists, step=2, threads=threads, **options)
        return [
            ref.bits_of((p, *(x for s in b.values() for x in (s.codes, s.absmax))))
            for p, b in zip(ps, blocks, strict=True)
        ]

    want = run("portable", 1, True)
    for isa in isas:
        for threads in (1, 2, 5):
            assert run(isa, threads, False) == want, (isa, threads)


# ------------------------------------------------------------------------------------- master copies and rounding


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
def test_a_master_copy_is_stepped_as_float32_and_the_parameter_is_its_rounding(dtype):
    rng = np.random.default_rng(0)
    master = rng.standard_normal(2000).astype(np.float32)
    wide, param = master.copy(), master.astype(dtype)
    states = [[np.zeros(2000, np.float32) for _ in range(2)] for _ in range(2)]
    for t in range(1, 50):
        g = rng.standard_normal(2000).astype(np.float32)
        mo.optim.adamw_step(wide, g, *states[0], step=t, lr=1e-4)
        mo.optim.adamw_step(param, g, *states[1], step=t, lr=1e-4, master=master)
        assert ref.bits_of(master) == ref.bits_of(wide)
        assert ref.bits_of(param) == ref.bits_of(wide.astype(dtype))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-3, 3e-6, 2e-7], ids=str)
def test_stochastic_rounding_gives_a_neighbour_and_the_number_on_average(dtype, size):
    """Also for subnormal float16. The mean of 2^16 roundings is within 6 standard deviations of an even coin."""
    n = 1 << 16
    grad = np.full(n, size, np.float32)
    for part in (0.1, 0.5, 0.9):
        p = np.zeros(n, dtype)
        mo.optim.sgd_step(p, grad, step=1, lr=part, rounding_seed=3)
        want = np.float32(-part) * np.float32(size)
        values = np.unique(p.astype(np.float64))
        assert len(values) <= 2
        gap = np.ptp(values) if len(values) == 2 else 0.0
        assert values.min() - 1e-12 <= want <= values.max() + 1e-12 or len(values) == 1
        assert abs(p.astype(np.float64).mean() - want) <= 6 * gap / 2 / np.sqrt(n) + 1e-9 * size


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
def test_stochastic_rounding_leaves_what_has_16_bits_as_it_is(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    got = every.copy()
    mo.optim.sgd_step(got, np.zeros(1 << 16, np.float32), step=1, lr=0.0, rounding_seed=1)
    nan = np.isnan(every.astype(np.float32))
    assert ref.bits_of(got[~nan]) == ref.bits_of(every[~nan])
    assert np.isnan(got[nan].astype(np.float32)).all()


def test_stochastic_rounding_depends_on_seed_step_and_place_and_nothing_else(isas):
    n = 3 * ref.CHUNK + 77
    g = np.random.default_rng(0).standard_normal(n).astype(np.float32)

    def run(seed: int = 1, step: int = 1, threads: int = 1, first: int = 0) -> bytes:
        params = [np.ones(k, BF16) for k in ([5] if first else []) + [n]]
        grads = [g[: p.size] for p in params]
        mo.optim.sgd_step(params, grads, step=step, lr=1e-3, rounding_seed=seed, threads=threads)
        return params[-1].tobytes()

    want = run()
    assert all(run(threads=t) == want for t in (2, 3, 8))
    for isa in isas:
        _core.set_isa(isa)
        assert run() == want
    assert len({want, run(seed=2), run(step=2), run(first=1)}) == 4


def test_small_steps_are_not_lost_by_stochastic_rounding():
    n, steps = 4096, 100
    p, lost = np.ones(n, BF16), np.ones(n, BF16)
    g = np.ones(n, np.float32)
    for t in range(1, steps + 1):
        mo.optim.sgd_step(p, g, step=t, lr=1e-4, rounding_seed=0)
        mo.optim.sgd_step(lost, g, step=t, lr=1e-4)
    assert (lost == 1).all()
    assert abs(p.astype(np.float32).mean() - (1 - steps * 1e-4)) < 5e-4


# ------------------------------------------------------------------------------------------------------ the errors


def state(n: int = 8, coding: str = "minifloat", signed: bool = True) -> mo.optim.BlockState:
    return mo.optim.BlockState.zeros((n,), coding=coding, signed=signed)


M, V = state(), state(signed=False)
ERRORS: list[tuple[str, list[Any], dict[str, Any], type[Exception], str]] = [
    (
        "adam_step",
        [M, np.zeros(8, np.float32)],
        {},
        TypeError,
        "adam_step: exp_avg_sq must be a BlockState like the others, got ndarray",
    ),
    (
        "adam_step",
        [M, M],
        {},
        ValueError,
        "adam_step: exp_avg_sq must be coded as minifloat, signed=false, got minifloat, signed=true",
    ),
    (
        "adam_step",
        [M, state(coding="dynamic", signed=False)],
        {},
        ValueError,
        "adam_step: exp_avg_sq must be coded as minifloat",
    ),
    (
        "adam_step",
        [state(9), state(9, signed=False)],
        {},
        ValueError,
        "adam_step: exp_avg must have shape (8,) like param, got (9,)",
    ),
    ("adadelta_step", [V, V], {}, ValueError, "adadelta_step: square_avg must be a float32 array, got a BlockState"),
    (
        "lion_step",
        [state(coding="dynamic4")],
        {},
        ValueError,
        "lion_step: exp_avg must be a float32 array, got a BlockState: this algorithm, or this form of it",
    ),
    (
        "sgd_step",
        [],
        {"master": np.zeros(8, np.float32)},
        TypeError,
        "sgd_step: param must have dtype float16 or bfloat16 for a master, got float32",
    ),
    (
        "sgd_step",
        [],
        {"rounding_seed": -1},
        ValueError,
        "sgd_step: rounding_seed must be at least 0 and below 2^63, got -1",
    ),
    ("sgd_step", [], {"rounding_seed": 1.5}, TypeError, "sgd_step: rounding_seed must be an integer, got 1.5"),
]


@pytest.mark.parametrize(("function", "states", "options", "error", "message"), ERRORS, ids=[e[-1] for e in ERRORS])
def test_states_that_do_not_fit_are_refused(function, states, options, error, message):
    p = np.ones(8, np.float32)
    with pytest.raises(error, match="^" + re.escape(message)):
        getattr(mo.optim, function)(p, p.copy(), *states, step=1, lr=0.1, **options)
    assert (p == 1).all()


def test_float64_parameters_have_no_states_in_blocks():
    p = np.ones(8)
    with pytest.raises(
        TypeError, match=r"^adam_step: param must have dtype float32, .* for states in blocks, got float64"
    ):
        mo.optim.adam_step(p, p.copy(), M, V, step=1)


def test_b4_one_state_for_two_parameters_is_refused():
    ps = [np.ones(8, np.float32) for _ in range(2)]
    with pytest.raises(ValueError, match=r"^lion_step: exp_avg\[0\] and exp_avg\[1\] overlap in memory"):
        mo.optim.lion_step(ps, [p.copy() for p in ps], [M, M], step=1)


def test_a_state_that_is_no_state_is_refused():
    text = r"^BlockState: coding must be 'minifloat', 'dynamic' or 'dynamic4', got 'int8'"
    with pytest.raises(ValueError, match=text):
        mo.optim.BlockState.zeros((3,), coding="int8", signed=True)
    short = mo.optim.BlockState(np.zeros(7, np.uint8), np.zeros(1, np.float32), (8,), signed=True)
    with pytest.raises(ValueError, match="must have 8 bytes of codes and 1 of absmax for its shape, got 7 and 1"):
        short.dequantize()
    huge = mo.optim.BlockState(np.zeros(7, np.uint8), np.zeros(1, np.float32), (2**40, 2**40), signed=True)
    with pytest.raises(ValueError, match="of codes"):
        huge.dequantize(np.zeros(7, np.float32))
    with pytest.raises(TypeError, match=r"array must have dtype float32, got float64"):
        mo.optim.BlockState.from_array(np.zeros(3), signed=True)
    assert repr(M) == "BlockState(shape=(8,), coding='minifloat', signed, nbytes=12)"
    assert np.asarray(M, np.float64).dtype == np.float64


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Lion"])
def test_b8_means_that_fade_stay_subnormal_and_can_be_put_to_zero_in_place(name):
    """Results are IEEE's, slow as they are; `threshold` clears what has faded and leaves all else, to the bit."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    w = np.ones((3, 65), np.float32)
    optimizer = getattr(mo.optim, name)([w], lr=0.01, **options)
    used = np.zeros_like(w)
    used[0] = 1e-3
    for step in range(10_000 if name == "Lion" else 1200):
        optimizer.step([np.full_like(w, 1e-3) if step == 0 else used])
    tiny = np.finfo(np.float32).tiny
    mean = optimizer.state[0]["momentum_buffer" if name == "SGD" else "exp_avg"]
    assert ((np.abs(mean[1:]) > 0) & (np.abs(mean[1:]) < tiny)).all()
    before = mean[0].copy()
    mo.prune.threshold(mean, tiny, out=mean)
    assert not mean[1:].any()
    np.testing.assert_array_equal(mean[0], before)
