"""What may change between two steps of an optimizer object: nothing is kept that could go stale."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelopt_rs as mo
import reference as ref

BF16 = np.dtype(ml_dtypes.bfloat16)
N = 6


def numbers(seed: int, shape: Any = (5, 3), dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def made(**options: Any) -> tuple[list[np.ndarray], mo.optim.Optimizer]:
    params = [numbers(i) for i in range(N)]
    groups = [{"params": params[:4]}, {"params": params[4:], "weight_decay": 0.5}]
    return params, mo.optim.AdamW(groups, lr=0.1, **options)


def bits(optimizer: Any, params: list[np.ndarray]) -> Any:
    states = [[ref.bits_of(np.asarray(x)) for x in state.values()] for state in optimizer.state]
    return [ref.bits_of(p) for p in params], states


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=N, max_size=N),
            st.sampled_from(["", "lr", "state", "dict", "step", "load", "strided", "half"]),
            st.sampled_from([0.0, 0.3]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_steps_are_those_of_the_functions_whatever_changes_between(steps, wide):
    dtype = np.float64 if wide else np.float32
    params = [numbers(i, dtype=dtype if i % 2 else np.float32) for i in range(N)]
    alone = [p.copy() for p in params]
    states = [[np.zeros_like(p), np.zeros_like(p), 0] for p in params]
    optimizer = mo.optim.AdamW([{"params": params[:4]}, {"params": params[4:], "weight_decay": 0.5}], lr=0.1)
    lr = 0.1
    for t, (has, change, clip) in enumerate(steps):
        grads: list[Any] = [numbers(100 * t + i, dtype=p.dtype) if has[i] else None for i, p in enumerate(params)]
        if change == "lr":
            lr = 0.5**t
            for group in optimizer.param_groups:
                group["lr"] = lr
        elif change == "state":
            for i, state in enumerate(optimizer.state):
                state["exp_avg"] = state["exp_avg"] * 0.5
                states[i][0] = states[i][0] * 0.5
        elif change == "dict":
            optimizer.state[1] = {k: v if isinstance(v, int) else v.copy() for k, v in optimizer.state[1].items()}
        elif change == "step":
            optimizer.state[2]["step"] += 5
            states[2][2] += 5
        elif change == "load":
            optimizer.load_state_dict(optimizer.state_dict())
        elif change == "strided" and grads[0] is not None:
            grads[0] = np.asfortranarray(grads[0])
        elif change == "half" and grads[0] is not None:
            grads[0] = grads[0].astype(np.float16)
        optimizer.step(grads, clip_value=clip or None)
        for i, g in enumerate(grads):
            if g is not None:
                states[i][2] += 1
                m, v, step = states[i]
                decay = 0.5 if i >= 4 else 0.01
                mo.optim.adamw_step(alone[i], g, m, v, step=step, lr=lr, weight_decay=decay, clip_value=clip or None)
    assert [ref.bits_of(p) for p in params] == [ref.bits_of(p) for p in alone]
    assert [s["step"] for s in optimizer.state] == [s[2] for s in states]
    assert [ref.bits_of(s["exp_avg"]) for s in optimizer.state] == [ref.bits_of(s[0]) for s in states]


def alias(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    grads[0] = params[0]


def alias_another(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    grads[5] = params[0].reshape(5, 3)


def alias_a_state(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    grads[1] = optimizer.state[2]["exp_avg"]


def same_state_twice(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    optimizer.state[1]["exp_avg"] = optimizer.state[0]["exp_avg"]


def read_only(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    params[5].flags.writeable = False


def other_shape(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    params[5].resize((3, 3), refcheck=False)


def state_of_other_dtype(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    optimizer.state[4]["exp_avg_sq"] = np.zeros((5, 3))


def bad_option(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    optimizer.param_groups[1]["eps"] = -1.0


def bad_step(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    optimizer.state[5]["step"] = -3


def no_state(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    del optimizer.state[5]["exp_avg"]


def not_finite(params: list[np.ndarray], optimizer: Any, grads: list[Any]) -> None:
    grads[5][0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (alias, ValueError, r"adamw_step: params\[0\] and grads\[0\] overlap in memory"),
        (alias_another, ValueError, r"adamw_step: params\[0\] and grads\[1\] overlap in memory"),
        (alias_a_state, ValueError, r"adamw_step: exp_avg\[2\] and grads\[1\] overlap in memory"),
        (same_state_twice, ValueError, r"adamw_step: exp_avg\[0\] and exp_avg\[1\] overlap in memory"),
        (read_only, ValueError, r"adamw_step: params\[1\] must be writeable, got a read-only array"),
        (other_shape, ValueError, r"adamw_step: exp_avg\[1\] must have shape \(3, 3\) like params\[1\], got \(5, 3\)"),
        (state_of_other_dtype, TypeError, r"adamw_step: exp_avg_sq\[0\] must have dtype float32 for params\[0\]"),
        (bad_option, ValueError, r"adamw_step: eps must be at least 0 and finite, got -1"),
        (bad_step, ValueError, r"adamw_step: step must be from 1 to 2\^53, got -2"),
        (no_state, ValueError, r"adamw_step: the state of params\[5\] must have 'exp_avg' for these options, got step"),
        (not_finite, ValueError, r"adamw_step: grads\[1\] has .*nothing was changed"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_step_that_raises_has_changed_nothing(change, error, message):
    params, optimizer = made()
    grads = [numbers(10 + i) for i in range(N)]
    optimizer.step(grads)
    change(params, optimizer, grads)
    before = bits(optimizer, params)
    with pytest.raises(error, match="^" + message):
        optimizer.step(grads, nonfinite="raise")
    assert bits(optimizer, params) == before


def test_a_gradient_may_be_a_parameter_that_is_not_stepped():
    params, optimizer = made()
    before = params[0].copy()
    optimizer.step([None, params[0], None, None, None, None])
    assert (params[0] == before).all()
    assert [s["step"] for s in optimizer.state] == [0, 1, 0, 0, 0, 0]


def test_no_gradient_is_held_after_the_step():
    import sys

    params, optimizer = made()
    grads = [numbers(10 + i) for i in range(N)]
    held = [*params, *grads, *(x for s in optimizer.state for x in s.values() if isinstance(x, np.ndarray))]
    before = [sys.getrefcount(x) for x in held]
    for _ in range(3):
        optimizer.step(grads)
        with pytest.raises(ValueError, match="overlap"):
            optimizer.step([params[0], *grads[1:]])
    assert [sys.getrefcount(x) for x in held] == before


def test_master_copies_of_some_only():
    params = [numbers(0).astype(BF16), numbers(1), numbers(2).astype(BF16)]
    optimizer = mo.optim.Adam(params, lr=0.1, master=True)
    assert ["master" in s for s in optimizer.state] == [True, False, True]
    wide = [p.astype(np.float32) for p in params]
    alone = mo.optim.Adam(wide, lr=0.1)
    for t in range(5):
        grads = [numbers(10 * t + i) for i in range(3)]
        optimizer.step(grads)
        alone.step(grads)
    got = [s.get("master", p) for s, p in zip(optimizer.state, params, strict=True)]
    assert [ref.bits_of(p) for p in got] == [ref.bits_of(p) for p in wide]


@pytest.mark.parametrize("step", ["accumulate_step", "ema_step"])
def test_h18_a_float32_sum_takes_bfloat16_bits(step):
    more = {"decay": 0.5} if step == "ema_step" else {}
    x = numbers(0).astype(BF16)
    total, want = np.zeros((5, 3), np.float32), np.zeros((5, 3), np.float32)
    for _ in range(3):
        getattr(mo.optim, step)(total, x.view(np.uint16), dtype="bf16", **more)
        getattr(mo.optim, step)(want, x, **more)
    assert ref.bits_of(total) == ref.bits_of(want)
    narrow = np.zeros((5, 3), np.uint16)
    getattr(mo.optim, step)(narrow, x.view(np.uint16), dtype="bf16", **more)
    assert narrow.view(BF16).any()


def test_h18_gradients_of_bfloat16_bits_are_accumulated():
    p = numbers(0).astype(BF16)
    bits_, q = p.view(np.uint16).copy(), p.copy()
    optimizer, want = mo.optim.SGD(bits_, lr=0.5, dtype="bf16"), mo.optim.SGD(q, lr=0.5)
    for t in range(3):
        g = numbers(t).astype(BF16)
        optimizer.accumulate(g.view(np.uint16))
        want.accumulate(g)
    optimizer.step()
    want.step()
    assert ref.bits_of(bits_.view(BF16)) == ref.bits_of(q)
