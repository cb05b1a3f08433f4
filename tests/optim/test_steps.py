"""Optimizer steps against extended precision, and their laws (B1 to B7, C1 to C5)."""

import ctypes
import inspect
import itertools
import mmap
import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from reference_optim import ORACLES, Reference

BF16 = np.dtype(ml_dtypes.bfloat16)
SHARED = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"clip_value": 0.5, "grad_scale": 8.0},
    {"weight_decay": 0.1, "maximize": True, "clip_value": 0.5, "grad_scale": 0.25},
]
OWN: dict[str, list[tuple[tuple[str, ...], dict[str, Any]]]] = {
    "sgd_step": [
        ((), {}),
        (("momentum_buffer",), {"momentum": 0.9}),
        (("momentum_buffer",), {"momentum": 0.9, "dampening": 0.3}),
        (("momentum_buffer",), {"momentum": 0.9, "nesterov": True}),
    ],
    "adagrad_step": [((), {}), ((), {"lr_decay": 0.01})],
    "rmsprop_step": [
        (extra, {"momentum": 0.9} if "momentum_buffer" in extra else {})
        for extra in ((), ("momentum_buffer",), ("grad_avg",), ("momentum_buffer", "grad_avg"))
    ],
    "adam_step": [
        (extra, {"semantics": semantics})
        for extra, semantics in itertools.product(((), ("max_exp_avg_sq",)), ("torch", "keras", "optax"))
    ],
    "adamw_step": [((), {}), (("max_exp_avg_sq",), {})],
}
VARIANTS = [
    (function, extra, {**own, **shared})
    for function in ORACLES
    for extra, own in OWN.get(function, [((), {})])
    for shared in SHARED
]
FUNCTIONS = {function: getattr(mo.optim, function) for function in ORACLES}


def names_of(function: str, extra: tuple[str, ...]) -> list[str]:
    return [*ORACLES[function][1], *extra]


def state(function: str, param: np.ndarray, extra: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    dtype = np.float64 if param.dtype == np.float64 else np.float32
    return {name: np.zeros(param.shape, dtype) for name in names_of(function, extra)}


def step(function: str, param: Any, grad: Any, states: dict[str, Any], t: int, **options: Any) -> None:
    FUNCTIONS[function](param, grad, **states, step=t, **options)


def gradients(n: int, steps: int, dtype: Any, seed: int = 0) -> Iterator[np.ndarray]:
    """Noise of a size that changes, with zeros."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        g = rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 1)
        g[rng.random(n) < 0.05] = 0.0
        yield g.astype(dtype)


# -------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize(
    ("dtype", "steps"), [(np.float32, 200), (np.float64, 50), pytest.param(np.float32, 1000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("function", "extra", "options"), VARIANTS, ids=str)
def test_b1_hundreds_of_steps_match_the_reference(function, extra, options, dtype, steps):
    """Within the roundings: half a unit of the parameter each step, and some 64 relative ones of each update.

    The updates' roundings are 16 at most; the mean of gradients of mixed signs, which cancel, makes them more.
    """
    n = 50  # of float64 fewer steps: the same formula, and roundings that hardly add up
    p = np.random.default_rng(1).standard_normal(n).astype(dtype)
    want = Reference(function, p, extra, options)
    states, product, largest = state(function, p, extra), 1.0, np.abs(p).astype(np.longdouble)
    for t, g in enumerate(gradients(n, steps, dtype), 1):
        want.step(g)
        if function == "nadam_step":
            product = mo.optim.nadam_step(p, g, **states, step=t, mu_product=product, **options)
        else:
            step(function, p, g, states, t, **options)
        largest = np.maximum(largest, np.abs(want.p))
    unit = np.longdouble(np.finfo(dtype).eps) / 2
    # Lion moves by whole steps: one sign that rounding turned is allowed for.
    turned = 2e-4 if function == "lion_step" else 0
    bound = unit * (steps * largest + 64 * want.moved) + turned
    assert np.all(np.abs(p - want.p) <= bound)
    for name, array in states.items():
        size = np.abs(want.states[name]).max()
        assert np.abs(array - want.states[name]).max() <= 3000 * unit * size, name


@pytest.mark.parametrize("function", ORACLES)
@pytest.mark.parametrize("t", [1, 2, 1000, 2**24 + 1, 2**53 - 1])
def test_b6_any_step_number_gives_finite_numbers(function, t):
    p, g = np.float32([1.0, -2.0]), np.float32([0.5, 0.0])
    step(function, p, g, state(function, p), t)
    assert np.isfinite(p).all()


def test_b6_the_corrections_of_a_late_step_are_those_of_the_reference():
    p, g = np.float64([1.0]), np.float64([0.5])
    m, v = np.float64([0.25]), np.float64([0.125])
    mo.optim.adam_step(p, g, m, v, step=12_345, lr=0.1)
    b1, b2 = np.longdouble(0.9), np.longdouble(0.999)
    mean, square = b1 / 4 + (1 - b1) / 2, b2 / 8 + (1 - b2) / 4
    want = 1 - np.longdouble(0.1) / (1 - b1**12_345) * mean / (
        np.sqrt(square) / np.sqrt(1 - b2**12_345) + np.longdouble(1e-8)
    )
    assert abs(p[0] - want) <= 1e-15


def test_sgd_forgets_what_the_buffer_held_before_the_first_step():
    p, g, buffer = np.float32([1.0]), np.float32([0.5]), np.float32([np.nan])
    mo.optim.sgd_step(p, g, buffer, step=1, lr=0.1, momentum=0.9, dampening=0.5)
    assert (p[0], buffer[0]) == (np.float32(0.95), 0.5)


def test_lion_leaves_a_parameter_without_gradient_and_mean_where_it_is():
    for zero in (0.0, -0.0):
        p, m = np.float32([1.0]), np.zeros(1, np.float32)
        mo.optim.lion_step(p, np.float32([zero]), m, step=1)
        assert p[0] == 1.0


def test_b5_nan_and_infinite_gradients_go_through_as_in_torch():
    p = np.ones(3, np.float32)
    m, v = np.zeros(3, np.float32), np.zeros(3, np.float32)
    mo.optim.adam_step(p, np.float32([np.nan, np.inf, 1.0]), m, v, step=1)
    assert np.isnan(p[:2]).all()
    assert np.isfinite(p[2])


# ---------------------------------------------------------------------------------------- dtypes, lists, layouts


@pytest.mark.parametrize("function", ORACLES)
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
@pytest.mark.parametrize("n", [1, 7, 1023, 1025, 70_000])
def test_a13_16_bit_parameters_are_the_float32_step_rounded_once(function, dtype, n):
    rng = np.random.default_rng(n)
    param, grad = (rng.standard_normal(n).astype(dtype) for _ in range(2))
    wide, states = param.astype(np.float32), state(function, param)
    wide_states = state(function, wide)
    step(function, wide, grad.astype(np.float32), wide_states, 3)
    for g in (grad, grad.astype(np.float32)):
        got, got_states = param.copy(), {name: array.copy() for name, array in states.items()}
        step(function, got, g, got_states, 3)
        assert ref.bits_of(got) == ref.bits_of(wide.astype(dtype))
        assert ref.bits_of(tuple(got_states.values())) == ref.bits_of(tuple(wide_states.values()))
    if dtype == BF16:
        bits = param.view(np.uint16).copy()
        step(function, bits, grad.view(np.uint16), states, 3, dtype="bf16")
        assert ref.bits_of(bits.view(BF16)) == ref.bits_of(wide.astype(dtype))


@pytest.mark.parametrize("function", ORACLES)
def test_a_list_is_stepped_as_its_arrays_one_by_one(function):
    shapes = [(3, 5), (0,), (70_001,), (), *[(i,) for i in range(1, 60)], (4, 40_000), *[(256,)] * 40]
    rng = np.random.default_rng(4)
    params = [np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes]
    grads = [np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes]
    params[5], grads[7] = params[5].astype(np.float16), grads[7].astype(BF16)
    alone = [(p.copy(), state(function, p)) for p in params]
    for (p, states), g in zip(alone, grads, strict=True):
        step(function, p, g, states, 2, threads=1)
    for threads in (1, 3):
        got = [p.copy() for p in params]
        lists = {name: [np.zeros(p.shape, np.float32) for p in params] for name in names_of(function, ())}
        step(function, got, tuple(grads), lists, 2, threads=threads)
        assert [ref.bits_of(p) for p in got] == [ref.bits_of(p) for p, _ in alone]
        for name, arrays in lists.items():
            assert [ref.bits_of(a) for a in arrays] == [ref.bits_of(s[name]) for _, s in alone]


def test_an_empty_list_is_no_error():
    mo.optim.adam_step([], [], [], [], step=1)


@pytest.mark.parametrize("function", ORACLES)
def test_b3_a_gradient_in_any_layout_counts_by_its_indices_and_is_not_written(function):
    rng = np.random.default_rng(5)
    param = rng.standard_normal((6, 8)).astype(np.float32)
    grad = np.asfortranarray(rng.standard_normal((6, 8)).astype(np.float32))
    grad.flags.writeable = False
    want, got = param.copy(), param.copy()
    step(function, want, np.ascontiguousarray(grad), state(function, want), 1)
    for layout in (grad, grad.copy()[::-1][::-1], np.repeat(grad, 2, 1)[:, ::2]):
        before, got = layout.tobytes(), param.copy()
        step(function, got, layout, state(function, got), 1)
        assert ref.bits_of(got) == ref.bits_of(want)
        assert layout.tobytes() == before


LAYOUTS = {
    "transposed": lambda x: np.asfortranarray(x),
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "every third": lambda x: np.repeat(x, 3, axis=1)[:, ::3],
    "swapped": lambda x: np.ascontiguousarray(x.T).T,
    "misaligned": lambda x: np.frombuffer(bytearray(b"?" + x.tobytes()), x.dtype, offset=1).reshape(x.shape),
}


@pytest.mark.parametrize("function", ORACLES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_b3_c3_c5_parameters_and_states_in_any_layout_are_stepped_by_their_indices(function, layout):
    rng = np.random.default_rng(6)
    param, grad = (rng.standard_normal((6, 8)).astype(np.float32) for _ in range(2))
    want, states = param.copy(), state(function, param)
    step(function, want, grad, states, 1)
    place = LAYOUTS[layout]
    got = place(param)
    given = {name: place(np.zeros((6, 8), np.float32)) for name in states}
    strides = got.strides
    step(function, got, place(grad), given, 1)
    assert got.strides == strides
    assert ref.bits_of(got.copy("C")) == ref.bits_of(want)
    assert [ref.bits_of(x.copy("C")) for x in given.values()] == [ref.bits_of(x) for x in states.values()]


def test_b4_interleaved_views_of_one_buffer_are_accepted():
    flat, grads = np.ones((4, 9), np.float32), np.ones((4, 9), np.float32)
    mo.optim.sgd_step([flat[:, i::3] for i in range(3)], [grads[:, i::3] for i in range(3)], step=1, lr=0.5)
    assert (flat == 0.5).all()


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="needs mprotect")
@pytest.mark.parametrize("function", ORACLES)
def test_b2_nothing_is_touched_beyond_an_array(function):
    """Each array ends where a page begins that may not be touched."""
    page = mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    areas = [mmap.mmap(-1, 3 * page) for _ in range(2 + len(state(function, np.ones(1, np.float32))))]
    for area in areas:
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for guard in (address, address + 2 * page):
            assert protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    for n in range(258):
        for at in (2 * page - 4 * n, page):  # up to the end, and from the beginning
            whole = [np.ndarray(n, np.float32, area, at) for area in areas]
            for x in whole:
                x[...] = 0.5
            step(function, whole[0], whole[1], dict(zip(state(function, whole[0]), whole[2:], strict=True)), 1)


def test_b4_disjoint_slices_of_one_buffer_are_accepted():
    flat = np.ones(100, np.float32)
    parts = [flat[:30], flat[30:31], flat[31:]]
    mo.optim.sgd_step(parts, [np.ones_like(p) for p in parts], step=1, lr=0.5)
    assert (flat == 0.5).all()


# ---------------------------------------------------------------------------------------------------- the errors


def arrays(shape: tuple[int, ...] = (5, 4), dtype: Any = np.float32) -> list[np.ndarray]:
    return [np.ones(shape, dtype) for _ in range(4)]


def read_only() -> np.ndarray:
    x = np.ones((5, 4), np.float32)
    x.flags.writeable = False
    return x


def one_place() -> np.ndarray:
    """One row that is five."""
    return np.lib.stride_tricks.as_strided(np.ones(4, np.float32), (5, 4), (0, 4))


P, G, M, V = arrays()
WRONG_ARRAYS: list[tuple[list[Any], type[Exception], str]] = [
    ([[P], [G, G], [M], [V]], ValueError, "adam_step: grads must have 1 arrays like params, got 2"),
    ([[P], [G], [M], []], ValueError, "adam_step: exp_avg_sq must have 1 arrays like params, got 0"),
    ([[P], [G.T], [M], [V]], ValueError, "adam_step: grads[0] must have shape (5, 4) like params[0], got (4, 5)"),
    ([P, G[:3], M, V], ValueError, "adam_step: grad must have shape (5, 4) like param, got (3, 4)"),
    ([P, G, M[0], V], ValueError, "adam_step: exp_avg must have shape (5, 4) like param, got (4,)"),
    ([[P, P], [G, G], arrays()[:2], arrays()[:2]], ValueError, "adam_step: params[0] and params[1] overlap in memory"),
    ([P, P, M, V], ValueError, "adam_step: param and grad overlap in memory"),
    ([P, G, M, M], ValueError, "adam_step: exp_avg and exp_avg_sq overlap in memory"),
    ([read_only(), G, M, V], ValueError, "adam_step: param must be writeable, got a read-only array"),
    ([[P], [G], [read_only()], [V]], ValueError, "adam_step: exp_avg[0] must be writeable, got a read-only array"),
    ([np.broadcast_to(P[0], (5, 4)), G, M, V], ValueError, "adam_step: param must be writeable, got a read-only array"),
    (
        [one_place(), G, M, V],
        ValueError,
        "adam_step: param must have a place for each element, got stride 0 along axis 0",
    ),
    (
        [np.lib.stride_tricks.as_strided(P, (5, 4), (8, 4)), G, M, V],
        ValueError,
        "adam_step: param must have a place for each element, got stride 8 along axis 0",
    ),
    (
        [np.lib.stride_tricks.as_strided(P[::-1, ::-1], (5, 4), (-4, -12)), G, M, V],
        ValueError,
        "adam_step: param must have a place for each element, got stride -12 along axis 1",
    ),
    ([P.T, P.T, M.T, V.T], ValueError, "adam_step: param and grad overlap in memory"),
    (
        [[P[:, ::2], P[:, 2:]], [G[:, ::2], G[:, 2:]], [M[:, ::2], M[:, 2:]], [V[:, ::2], V[:, 2:]]],
        ValueError,
        "adam_step: params[0] and params[1] overlap in memory",
    ),
    ([P.astype(int), G, M, V], TypeError, "adam_step: param must have dtype float32, float64, float16 or bfloat16"),
    ([P, G.astype(">f4"), M, V], TypeError, "adam_step: grad has big-endian dtype '>f4'; use grad.astype('=f4')"),
    ([P, G.astype(float), M, V], TypeError, "adam_step: grad must have dtype float32, float16 or bfloat16 for param"),
    (
        [P, G, M.astype(float), V],
        TypeError,
        "adam_step: exp_avg must have dtype float32 for param float32, got float64",
    ),
    (
        [[P, P.astype(float)], [G, G.astype(float)], [M, M.astype(float)], [V, V.astype(float)]],
        TypeError,
        "adam_step: params[1] must be computed in the precision of params[0] (float32), got float64",
    ),
    ([[P.tolist()], [G], [M], [V]], TypeError, "adam_step: params[0] must be a NumPy array, got list"),
    ([1.0, G, M, V], TypeError, "adam_step: param must be a NumPy array or a list of NumPy arrays, got float"),
    ([np.ma.masked_array(P), G, M, V], TypeError, "adam_step: param must be a NumPy array, got MaskedArray"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG_ARRAYS, ids=[m for _, _, m in WRONG_ARRAYS])
def test_arrays_that_do_not_go_together_are_refused_and_nothing_is_written(given, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        mo.optim.adam_step(*given, step=1, lr=0.1)
    assert all((x == 1).all() for x in (P, G, M, V))


NOT_NEGATIVE, BELOW_ONE, POSITIVE = "at least 0 and finite", "from 0 to below 1", "greater than 0 and finite"
WRONG_NUMBERS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("adam_step", {"lr": -1.0}, ValueError, f"lr must be {NOT_NEGATIVE}, got -1"),
    ("adam_step", {"lr": np.nan}, ValueError, f"lr must be {NOT_NEGATIVE}, got NaN"),
    ("adam_step", {"lr": np.inf}, ValueError, f"lr must be {NOT_NEGATIVE}, got inf"),
    ("adam_step", {"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
    ("adam_step", {"betas": (1.0, 0.9)}, ValueError, f"betas[0] must be {BELOW_ONE}, got 1"),
    ("adam_step", {"betas": (0.9, -0.1)}, ValueError, f"betas[1] must be {BELOW_ONE}, got -0.1"),
    ("adam_step", {"betas": (0.9, 0.99, 0.999)}, TypeError, "betas must be a pair of numbers, got (0.9, 0.99, 0.999)"),
    ("adamw_step", {"betas": (0.9,)}, TypeError, "betas must be a pair of numbers, got (0.9,)"),
    ("lion_step", {"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
    ("adamax_step", {"betas": (0.9, "x")}, TypeError, "betas[1] must be a number, got 'x'"),
    ("adam_step", {"eps": -1e-8}, ValueError, f"eps must be {NOT_NEGATIVE}, got -0.00000001"),
    ("adam_step", {"weight_decay": -1.0}, ValueError, f"weight_decay must be {NOT_NEGATIVE}, got -1"),
    ("adam_step", {"grad_scale": 0.0}, ValueError, f"grad_scale must be {POSITIVE}, got 0"),
    ("adam_step", {"clip_value": 0.0}, ValueError, f"clip_value must be {POSITIVE}, got 0"),
    ("adam_step", {"step": 0}, ValueError, "step must be from 1 to 2^53, got 0"),
    ("adam_step", {"step": 1.0}, TypeError, "step must be an integer, got 1.0"),
    ("adam_step", {"semantics": "jax"}, ValueError, "semantics must be 'torch', 'keras' or 'optax', got \"jax\""),
    ("adam_step", {"threads": 0}, ValueError, "threads must be from 1 to 1024, got 0"),
    ("adam_step", {"dtype": "f16"}, ValueError, "dtype must be None or 'bf16', got 'f16'"),
    ("sgd_step", {"momentum": 0.9}, ValueError, "momentum_buffer must be given with momentum=0.9"),
    ("sgd_step", {"nesterov": True}, ValueError, "nesterov must be False without momentum or with dampening, got True"),
    ("adagrad_step", {"lr_decay": -1.0}, ValueError, f"lr_decay must be {NOT_NEGATIVE}, got -1"),
    ("rmsprop_step", {"alpha": 1.0}, ValueError, f"alpha must be {BELOW_ONE}, got 1"),
    ("rmsprop_step", {"momentum": 0.9}, ValueError, "momentum_buffer must be given with momentum=0.9"),
    ("adadelta_step", {"rho": 1.0}, ValueError, f"rho must be {BELOW_ONE}, got 1"),
    ("nadam_step", {"momentum_decay": -1.0}, ValueError, f"momentum_decay must be {NOT_NEGATIVE}, got -1"),
    ("nadam_step", {"mu_product": 0.0}, ValueError, f"mu_product must be {POSITIVE}, got 0"),
]


@pytest.mark.parametrize(("function", "options", "error", "message"), WRONG_NUMBERS, ids=lambda v: str(v)[:40])
def test_b7_numbers_out_of_range_are_refused_and_nothing_is_written(function, options, error, message):
    p, g = np.ones(3, np.float32), np.ones(3, np.float32)
    states = state(function, p)
    with pytest.raises(error, match="^" + re.escape(f"{function}: {message}")):
        step(
            function, p, g, states, **{"t": options.get("step", 1), **{k: v for k, v in options.items() if k != "step"}}
        )
    assert (p == 1).all()
    assert all((s == 0).all() for s in states.values())


def test_b5_error_if_nonfinite_looks_at_all_gradients_before_the_first_write():
    params = [np.ones((3, 4), np.float32) for _ in range(3)]
    grads = [np.ones((3, 4), np.float32) for _ in range(3)]
    grads[2][1, 2], grads[2][2, 3] = np.nan, np.inf
    states = [[np.zeros((3, 4), np.float32) for _ in range(3)] for _ in range(2)]
    message = r"^adam_step: grads\[2\] has 2 non-finite values, first at index \(1, 2\); nothing was changed"
    with pytest.raises(ValueError, match=message):
        mo.optim.adam_step(params, grads, *states, step=1, nonfinite="raise")
    assert all((p == 1).all() for p in params)
    assert all((s == 0).all() for group in states for s in group)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_step_has_the_same_shared_options(function):
    shared = {
        "maximize",
        "grad_scale",
        "clip_value",
        "weight_decay",
        "nonfinite",
        "dtype",
        "threads",
        "lr",
        "step",
    }
    assert shared <= set(inspect.signature(FUNCTIONS[function]).parameters)
