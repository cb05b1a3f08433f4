"""LAMB, Adafactor and Muon, whose steps depend on whole tensors, against extended precision, and their laws."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core
from reference_optim_whole import ORACLES, Reference, states

BF16 = np.dtype(ml_dtypes.bfloat16)
FUNCTIONS = {function: getattr(mo.optim, function) for function in ORACLES}
KERNELS = ["lamb_step", "adafactor_step"]
SHARED = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"clip_value": 0.5, "grad_scale": 8.0},
    {"weight_decay": 0.1, "maximize": True, "clip_value": 0.5, "grad_scale": 0.25},
]
OWN: dict[str, list[dict[str, Any]]] = {
    "lamb_step": [{}, {"betas": (0.5, 0.9), "eps": 1e-3}],
    "adafactor_step": [{}, {"eps": (1e-3, 1e-2), "d": 2.0, "lr": 0.5, "beta2_decay": -0.5}],
    "muon_step": [
        {},
        {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
        {"ns_steps": 3, "ns_coefficients": (2.0, -1.5, 0.5), "momentum": 0.5, "adjust_lr_fn": "original"},
    ],
}
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "lamb_step": [(50,), (7, 9)],
    "adafactor_step": [(50,), (7, 9), (2, 3, 5)],
    "muon_step": [(5, 8), (8, 5)],
}
VARIANTS = [
    (function, shape, {**own, **shared})
    for function, shapes in SHAPES.items()
    for shape in shapes
    for own in OWN[function]
    for shared in SHARED
]
CHUNK = ref.CHUNK
# On both sides of where matrices are cut: 960 columns at a time, 32,768 elements.
MATRICES = [
    *[(1, 1), (1, 961), (961, 1), (34, 960), (35, 960), (34, 961), (35, 961), (70, 2000), (2, CHUNK), (3, CHUNK + 1)],
    *[
        (33_000, 2),
        (CHUNK, 1),
        (CHUNK + 1, 1),
        (9000, 3, 3),
        (5, 200, 170),
        (3, 181, 182),
        (2, 2, 40_000),
        (4, 0),
        (0, 4),
    ],
    *[(2, 0, 3), (0, 3, 3)],
]


def step(function: str, param: Any, grad: Any, state: dict[str, Any], t: int, **options: Any) -> None:
    more = {} if function == "muon_step" else {"step": t}
    FUNCTIONS[function](param, grad, **state, **more, **options)


def gradients(shape: tuple[int, ...], steps: int, dtype: Any, seed: int = 0) -> Iterator[np.ndarray]:
    """Noise of a size that changes, with zeros."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        g = rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 1)
        yield np.where(rng.random(shape) < 0.05, 0.0, g).astype(dtype)


def normal(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


# -------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize(
    ("dtype", "steps"), [(np.float32, 80), (np.float64, 80), pytest.param(np.float32, 400, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("function", "shape", "options"), VARIANTS, ids=str)
def test_b1_many_steps_match_the_reference(function, shape, options, dtype, steps):
    """Within the roundings: half a unit of the parameter each step, and some 64 relative ones of each update.

    Those of Muon grow with each of its iterations, which multiply small singular values by 3.4, and are relative to
    the norm: they are bounded all together.
    """
    steps = steps // 4 if function == "muon_step" else steps
    p = normal(shape, dtype, 1)
    state = states(function, p)
    want = Reference(function, p, options, state)
    largest = np.abs(p).astype(np.longdouble)
    for t, g in enumerate(gradients(shape, steps, dtype), 1):
        want.step(g)
        step(function, p, g, state, t, **options)
        largest = np.maximum(largest, np.abs(want.p))
    unit = np.longdouble(np.finfo(dtype).eps) / 2
    relative = 2000 * want.moved.max() if function == "muon_step" else 64 * want.moved
    assert np.all(np.abs(p - want.p) <= unit * (steps * largest + relative))
    for name, array in state.items():
        size = np.abs(want.states[name]).max()
        assert np.abs(array - want.states[name]).max() <= 3000 * unit * size, name


def one_step_matches(function: str, shape: tuple[int, ...], dtype: Any) -> None:
    """Three roundings of the parameter (of its decay, of the product, of the difference), some 16 of the update.

    Sums run in float64 and carry no error: float64 moments are off by the roots of their lengths.
    """
    p, g = normal(shape, dtype, 1), normal(shape, dtype, 2)
    state = states(function, p, 0.25)
    want = Reference(function, p, {"weight_decay": 0.1}, state, t=4)
    want.step(g)
    step(function, p, g, state, 5, weight_decay=0.1)
    unit = np.finfo(dtype).eps / 2
    assert np.all(np.abs(p - want.p) <= unit * (3 * np.abs(want.p) + 32 * want.moved)), shape
    bound = unit * (8 if dtype == np.float32 else 64)
    for name, array in state.items():
        size = np.abs(want.states[name]).max(initial=0)
        assert np.all(np.abs(array - want.states[name]) <= bound * size), (name, shape)


@pytest.mark.parametrize("function", KERNELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_b1_every_length_matches_the_reference(function, dtype):
    for n in [*range(258), *(2**k + d for k in range(9, 18) for d in (-1, 0, 1))]:
        one_step_matches(function, (n,), dtype)
        if function == "adafactor_step" and n < 2000:
            one_step_matches(function, (3, n), dtype)
            one_step_matches(function, (n, 5), dtype)
    one_step_matches(function, (), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_b1_matrices_on_both_sides_of_every_cut_match_the_reference(shape, dtype):
    one_step_matches("adafactor_step", shape, dtype)


@pytest.mark.parametrize("function", KERNELS)
@pytest.mark.parametrize("t", [1, 2, 1000, 2**24 + 1, 2**53])
def test_b6_any_step_number_gives_finite_numbers(function, t):
    p, g = np.float32([1.0, -2.0]), np.float32([0.5, 0.0])
    step(function, p, g, states(function, p), t)
    assert np.isfinite(p).all()


def test_lamb_moves_by_the_learning_rate_times_the_norm():
    p, g = normal((3, 1000)), normal((3, 1000), seed=1)
    before = p.copy()
    step("lamb_step", p, g, states("lamb_step", p), 1, lr=0.01)
    moved, size = (np.linalg.norm(x.astype(float)) for x in (p - before, before))
    assert abs(moved / size - 0.01) < 1e-6


def test_lamb_takes_the_ratio_to_be_1_where_a_norm_is_0():
    p, g = np.zeros(3, np.float32), np.float32([1.0, -2.0, 0.5])
    step("lamb_step", p, g, states("lamb_step", p), 1, lr=0.125, eps=0.0)
    np.testing.assert_allclose(p, [-0.125, 0.125, -0.125], rtol=1e-6)
    p = np.ones(3, np.float32)
    step("lamb_step", p, np.zeros(3, np.float32), states("lamb_step", p), 1, lr=0.125)
    assert (p == 1).all()


def test_lamb_sums_squares_that_float32_cannot_hold():
    p, g = np.full(4, 1e30, np.float32), np.ones(4, np.float32)
    step("lamb_step", p, g, states("lamb_step", p), 1, lr=0.5)
    np.testing.assert_allclose(p, 0.5e30, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_adafactor_leaves_a_parameter_without_gradient_where_it_is(shape):
    p = np.ones(shape, np.float32)
    for t in (1, 2):
        step("adafactor_step", p, np.zeros_like(p), states("adafactor_step", p), t)
    assert (p == 1).all()


def test_adafactor_forgets_what_the_state_held_before_the_first_step():
    for shape in ((6,), (2, 3)):
        p, q, g = normal(shape), normal(shape), normal(shape, seed=1)
        step("adafactor_step", p, g, states("adafactor_step", p), 1)
        step("adafactor_step", q, g, states("adafactor_step", q, 7.0), 1)
        assert ref.bits_of(p) == ref.bits_of(q)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_muon_makes_the_step_about_orthogonal(shape):
    p, g = np.zeros(shape, np.float64), normal(shape, np.float64, 3)
    step("muon_step", p, g, states("muon_step", p), 1, lr=1.0, ns_steps=10, ns_coefficients=(15 / 8, -10 / 8, 3 / 8))
    u, s, v = np.linalg.svd(g, full_matrices=False)
    want = -np.sqrt(max(1.0, shape[0] / shape[1])) * (u @ v)
    assert s[-1] / np.linalg.norm(s) > 0.01
    np.testing.assert_allclose(p, want, atol=0.05)


def test_b5_a_nan_gradient_goes_through():
    for function, whole in (("lamb_step", True), ("adafactor_step", False), ("muon_step", True)):
        p, g = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
        g[1, 2] = np.nan
        other = np.ones((3, 4), np.float32)
        one, two = states(function, p), states(function, p)
        pairs = {name: [one[name], two[name]] for name in one}
        step(function, [p, other], [g, np.ones_like(g)], pairs, 1)
        assert np.isnan(p[1, 2]), function
        assert np.isnan(p).all() or not whole, function
        assert np.isfinite(other).all(), function


# ---------------------------------------------------------------------------------------- dtypes, lists, layouts


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1, 1023), (41, 25), (35, 2000)], ids=str)
def test_a13_16_bit_parameters_are_the_float32_step_rounded_once(function, dtype, shape):
    if function == "adafactor_step" and shape[0] == 1:
        shape = shape[1:]
    param, grad = normal(shape, dtype), normal(shape, dtype, 1)
    wide = param.astype(np.float32)
    wide_states = states(function, wide, 0.25)
    step(function, wide, grad.astype(np.float32), wide_states, 3)
    for g in (grad, grad.astype(np.float32)):
        got, got_states = param.copy(), states(function, param, 0.25)
        step(function, got, g, got_states, 3)
        assert ref.bits_of(got) == ref.bits_of(wide.astype(dtype))
        assert ref.bits_of(tuple(got_states.values())) == ref.bits_of(tuple(wide_states.values()))
    if dtype == BF16:
        bits, bits_states = param.view(np.uint16).copy(), states(function, param, 0.25)
        step(function, bits, grad.view(np.uint16), bits_states, 3, dtype="bf16")
        assert ref.bits_of(bits.view(BF16)) == ref.bits_of(wide.astype(dtype))


def listed(function: str, params: list[np.ndarray], fill: float = 0.0) -> dict[str, list[Any]]:
    """The states of a list of parameters, None where one has no such state."""
    each = [states(function, p, fill) for p in params]
    names = {name: None for state in each for name in state}
    return {name: [state.get(name) for state in each] for name in names}


def sample(function: str, dtype: Any = np.float32) -> tuple[list[np.ndarray], list[np.ndarray]]:
    shapes: list[tuple[int, ...]] = [(3, 5), (0, 2), (4, 40), (40, 4), (1, 1), *[(i, 3) for i in range(1, 20)]]
    if function != "muon_step":
        shapes += [(70_001,), (), (0,), *[(i,) for i in range(1, 60)], *MATRICES, *[(256,)] * 40]
    return [normal(shape, dtype) for shape in shapes], [normal(shape, dtype, 1) for shape in shapes]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_list_is_stepped_as_its_arrays_one_by_one(function, dtype):
    params, grads = sample(function, dtype)
    if dtype == np.float32:
        params[2], grads[3] = params[2].astype(np.float16), grads[3].astype(BF16)
    alone = [(p.copy(), states(function, p, 0.25)) for p in params]
    for (p, state), g in zip(alone, grads, strict=True):
        step(function, p, g, state, 2, threads=1)
    for threads in (1, 3):
        got, lists = [p.copy() for p in params], listed(function, params, 0.25)
        step(function, got, tuple(grads), lists, 2, threads=threads)
        assert [ref.bits_of(p) for p in got] == [ref.bits_of(p) for p, _ in alone]
        for name, arrays in lists.items():
            assert [ref.bits_of(a) for a in arrays] == [ref.bits_of(s.get(name)) for _, s in alone], name


@pytest.mark.parametrize("function", KERNELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16], ids=str)
def test_b10_b11_bits_do_not_depend_on_the_instruction_set_or_the_threads(function, dtype, isas):
    params, grads = sample(function, dtype)
    want = None
    for isa in isas:
        _core.set_isa(isa)
        for threads in (1, 2, 3, 4):
            got, lists = [p.copy() for p in params], listed(function, params, 0.25)
            step(function, got, grads, lists, 3, threads=threads, weight_decay=0.1, clip_value=1.5)
            bits = [ref.bits_of(x) for x in (*got, *(a for arrays in lists.values() for a in arrays))]
            want = want or bits
            assert bits == want, f"{isa}, {threads} threads"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_empty_list_is_no_error_and_an_empty_array_keeps_its_state(function):
    step(function, [], [], {name: [] for name in states(function, np.ones((2, 2)))}, 1)
    p = np.ones((0, 5), np.float32)
    state = states(function, p, 0.25)
    step(function, p, p.copy(), state, 1)
    assert all((x == 0.25).all() for x in state.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_b3_a_gradient_in_any_layout_counts_by_its_indices_and_is_not_written(function):
    param = normal((6, 8))
    grad = np.asfortranarray(normal((6, 8), seed=1))
    grad.flags.writeable = False
    want = param.copy()
    step(function, want, np.ascontiguousarray(grad), states(function, want), 1)
    for layout in (grad, grad.copy()[::-1][::-1], np.repeat(grad, 2, 1)[:, ::2]):
        before, got = layout.tobytes(), param.copy()
        step(function, got, layout, states(function, got), 1)
        assert ref.bits_of(got) == ref.bits_of(want)
        assert layout.tobytes() == before


# ---------------------------------------------------------------------------------------------------- the errors


P, G, M, V = (np.ones((5, 4), np.float32) for _ in range(4))
ROW, COL, VARIANCE = np.ones((5, 1), np.float32), np.ones((1, 4), np.float32), np.ones(4, np.float32)
READ_ONLY = np.ones((5, 1), np.float32)
READ_ONLY.flags.writeable = False
WRONG_ARRAYS: list[tuple[str, list[Any], dict[str, Any], type[Exception], str]] = [
    ("lamb_step", [P, G, M[0], V], {}, ValueError, "exp_avg must have shape (5, 4) like param, got (4,)"),
    ("lamb_step", [[P], [G], [M], []], {}, ValueError, "exp_avg_sq must have 1 arrays like params, got 0"),
    ("lamb_step", [P, G, M, P], {}, ValueError, "param and exp_avg_sq overlap in memory"),
    ("adafactor_step", [P, G], {}, ValueError, "row_var must be given, of shape (5, 1), for param of 2 axes"),
    ("adafactor_step", [P, G, ROW], {}, ValueError, "col_var must be given, of shape (1, 4), for param of 2 axes"),
    (
        "adafactor_step",
        [[P, G[0]], [M, V[0]], [ROW, None], [COL, None]],
        {},
        ValueError,
        "variance[1] must be given, of shape (4,), for params[1] of 1 axes",
    ),
    ("adafactor_step", [P, G, ROW, COL, VARIANCE], {}, ValueError, "variance must be None for param of 2 axes"),
    (
        "adafactor_step",
        [[P[0]], [G[0]], [ROW], None, [VARIANCE]],
        {},
        ValueError,
        "row_var[0] must be None for params[0] of 1 axes",
    ),
    ("adafactor_step", [P, G, ROW[:, 0], COL], {}, ValueError, "row_var must have shape (5, 1), got (5,)"),
    ("adafactor_step", [P, G, COL, ROW], {}, ValueError, "row_var must have shape (5, 1), got (1, 4)"),
    ("adafactor_step", [[P], [G], [ROW], [COL, COL]], {}, ValueError, "col_var must have 1 arrays like params, got 2"),
    ("adafactor_step", [P, G, ROW, P[:1]], {}, ValueError, "param and col_var overlap in memory"),
    ("adafactor_step", [P, G, READ_ONLY, COL], {}, ValueError, "row_var must be writeable, got a read-only array"),
    (
        "adafactor_step",
        [P, G, ROW.astype(float), COL],
        {},
        TypeError,
        "row_var must have dtype float32 for param float32, got float64",
    ),
    ("adafactor_step", [P, G, 1.0, COL], {}, TypeError, "row_var must be a NumPy array or a list of NumPy arrays"),
    ("adafactor_step", [P.astype(int), G, ROW, COL], {}, TypeError, "param must have dtype float32, float64, float16"),
    ("adafactor_step", [P, G[:3], ROW, COL], {}, ValueError, "grad must have shape (5, 4) like param, got (3, 4)"),
    ("muon_step", [P[0], G[0], M[0]], {}, ValueError, "param must be a matrix, got shape (4,)"),
    ("muon_step", [[P, P[None]], [G], [M]], {}, ValueError, "params[1] must be a matrix, got shape (1, 5, 4)"),
    ("muon_step", [P, G, M.T], {}, ValueError, "momentum_buffer must have shape (5, 4) like param, got (4, 5)"),
    ("muon_step", [P, G, V[:3]], {}, ValueError, "momentum_buffer must have shape (5, 4) like param, got (3, 4)"),
    ("muon_step", [[P], [G], []], {}, ValueError, "momentum_buffer must have 1 arrays like params, got 0"),
    ("muon_step", [P, G, P], {}, ValueError, "param and momentum_buffer overlap in memory"),
    ("muon_step", [P, G, 1.0], {}, TypeError, "momentum_buffer must be a NumPy array or a list of NumPy arrays"),
    ("muon_step", [1.0, G, M], {}, TypeError, "param must be a NumPy array or a list of NumPy arrays, got float"),
    ("muon_step", [[P.tolist()], [G], [M]], {}, TypeError, "params[0] must be a NumPy array, got list"),
]
NOT_NEGATIVE, BELOW_ONE, POSITIVE = "at least 0 and finite", "from 0 to below 1", "greater than 0 and finite"
GIVEN: dict[str, list[Any]] = {
    "lamb_step": [P, G, M, V],
    "adafactor_step": [P, G, ROW, COL],
    "muon_step": [P, G, M],
}
WRONG_NUMBERS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *[
        (function, options, error, message)
        for function in FUNCTIONS
        for options, error, message in (
            ({"lr": -1.0}, ValueError, f"lr must be {NOT_NEGATIVE}, got -1"),
            ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
            ({"weight_decay": np.nan}, ValueError, f"weight_decay must be {NOT_NEGATIVE}, got NaN"),
            ({"grad_scale": 0.0}, ValueError, f"grad_scale must be {POSITIVE}, got 0"),
            ({"clip_value": 0.0}, ValueError, f"clip_value must be {POSITIVE}, got 0"),
            ({"threads": 0}, ValueError, "threads must be from 1 to 1024, got 0"),
            ({"dtype": "f16"}, ValueError, "dtype must be None or 'bf16', got 'f16'"),
        )
    ],
    ("lamb_step", {"betas": (1.0, 0.9)}, ValueError, f"betas[0] must be {BELOW_ONE}, got 1"),
    ("lamb_step", {"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
    ("lamb_step", {"eps": -1.0}, ValueError, f"eps must be {NOT_NEGATIVE}, got -1"),
    ("lamb_step", {"step": 0}, ValueError, "step must be from 1 to 2^53, got 0"),
    ("adafactor_step", {"step": 0}, ValueError, "step must be from 1 to 2^53, got 0"),
    ("adafactor_step", {"step": 1.0}, TypeError, "step must be an integer, got 1.0"),
    ("adafactor_step", {"beta2_decay": 0.1}, ValueError, "beta2_decay must be at most 0 and finite, got 0.1"),
    ("adafactor_step", {"d": 0.5}, ValueError, "d must be at least 1 and finite, got 0.5"),
    ("adafactor_step", {"eps": 1e-3}, TypeError, "eps must be a pair of numbers, got 0.001"),
    ("adafactor_step", {"eps": (-1.0, 1e-3)}, ValueError, f"eps[0] must be {NOT_NEGATIVE}, got -1"),
    ("adafactor_step", {"eps": (None, None)}, TypeError, "eps[1] must be a number, got None"),
    ("muon_step", {"momentum": -0.1}, ValueError, f"momentum must be {NOT_NEGATIVE}, got -0.1"),
    ("muon_step", {"eps": np.inf}, ValueError, f"eps must be {NOT_NEGATIVE}, got inf"),
    ("muon_step", {"ns_steps": 100}, ValueError, "ns_steps must be from 0 to 99, got 100"),
    ("muon_step", {"ns_steps": 5.0}, TypeError, "ns_steps must be an integer, got 5.0"),
    ("muon_step", {"ns_coefficients": (1, 2)}, TypeError, "ns_coefficients must be three numbers, got (1, 2)"),
    ("muon_step", {"ns_coefficients": (1, 2, np.inf)}, ValueError, "ns_coefficients must be finite, got (1, 2, inf)"),
    (
        "muon_step",
        {"adjust_lr_fn": "adam"},
        ValueError,
        "adjust_lr_fn must be None, 'original' or 'match_rms_adamw', got 'adam'",
    ),
]
WRONG = [*WRONG_ARRAYS, *((function, GIVEN[function], *more) for function, *more in WRONG_NUMBERS)]


@pytest.mark.parametrize(("function", "given", "options", "error", "message"), WRONG, ids=[w[0] + w[4] for w in WRONG])
def test_b7_what_is_wrong_is_refused_and_nothing_is_written(function, given, options, error, message):
    if function != "muon_step":
        options = {"step": 1, **options}
    with pytest.raises(error, match="^" + re.escape(f"{function}: {message}")):
        FUNCTIONS[function](*given, **options)
    assert all((x == 1).all() for x in (P, G, M, V, ROW, COL, VARIANCE))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_b5_error_if_nonfinite_looks_at_all_gradients_before_the_first_write(function):
    params = [np.ones((3, 4), np.float32) for _ in range(3)]
    grads = [np.ones((3, 4), np.float32) for _ in range(3)]
    grads[2][1, 2], grads[2][2, 3] = np.nan, np.inf
    state = listed(function, params)
    message = rf"^{function}: grads\[2\] has 2 non-finite values, first at index \(1, 2\); nothing was changed"
    with pytest.raises(ValueError, match=message):
        step(function, params, grads, state, 1, nonfinite="raise")
    assert all((p == 1).all() for p in params)
    assert all((s == 0).all() for group in state.values() for s in group)


def test_nothing_lost_muon_writes_nothing_where_its_products_fail(monkeypatch):
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("modelopt_rs.optim.muon.norm", fail)
    with pytest.raises(MemoryError):
        mo.optim.muon_step(P, G, M)
    assert all((x == 1).all() for x in (P, G, M))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_step_has_the_same_shared_options(function):
    shared = {"lr", "weight_decay", "maximize", "grad_scale", "clip_value", "nonfinite", "dtype", "threads"}
    parameters = inspect.signature(FUNCTIONS[function]).parameters
    assert shared <= set(parameters)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in shared)


@pytest.mark.parametrize("cls", [mo.optim.Adafactor, mo.optim.Muon])
def test_all_groups_and_precisions_are_checked_before_the_first_write(cls):
    params = [np.ones((3, 4), dtype) for dtype in (np.float32, np.float64)] + [np.ones((4, 3), np.float32)]
    optimizer = cls([{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.5}])
    before = [p.tobytes() for p in params], repr(optimizer.state_dict())
    wrong = [np.ones_like(p) for p in params[:2]] + [np.ones((5, 3), np.float32)]
    with pytest.raises(ValueError, match=r"grads\[0\] must have shape \(4, 3\)"):
        optimizer.step(wrong)
    assert ([p.tobytes() for p in params], repr(optimizer.state_dict())) == before
    nan = [*map(np.ones_like, params[:2]), np.full((4, 3), np.nan, np.float32)]
    with pytest.raises(ValueError, match="nothing was changed"):
        optimizer.step(nan, nonfinite="raise")
    assert not optimizer.step(nan, nonfinite="skip").stepped
    assert ([p.tobytes() for p in params], repr(optimizer.state_dict())) == before
    optimizer.step([np.ones_like(p) for p in params])
    assert all(p.tobytes() != b for p, b in zip(params, before[0], strict=True))
