"""Small states train as float32 states do, on handwritten digits (the model and the data of `examples/digits.py`)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import digits
import modelopt_rs as mo

SIZES, EPOCHS = (64, 32, 10), 8
CASES: list[tuple[str, float, dict[str, Any]]] = [
    ("Adam", 3e-3, {}),
    ("AdamW", 3e-3, {"weight_decay": 0.1}),
    ("Adagrad", 0.03, {}),
    ("Lion", 3e-4, {}),
    ("SGD", 0.05, {"momentum": 0.9}),
    ("RMSprop", 1e-3, {}),
]


@pytest.fixture(scope="module")
def data() -> digits.Data:
    pytest.importorskip("sklearn", reason="scikit-learn, which has the data, is not installed")
    return digits.digits()


def once(losses: Callable[..., float]) -> Callable[..., float]:
    """What float32 states reach is computed once: all small ones are compared with it."""
    known: dict[str, float] = {}

    def loss(data: digits.Data, *case: Any, **options: Any) -> float:
        key = repr((case, options))
        if key not in known:
            known[key] = losses(data, *case, **options)
        return known[key]

    return loss


@once
def loss(data: digits.Data, name: str, lr: float, **options: Any) -> float:
    """Of all images that were trained on, at the end: 0.1 to 1.7, far from where only noise is left."""
    params = digits.new_params(SIZES)
    optimizer = digits.make(name, params, lr, EPOCHS * (len(data.y) // digits.BATCH), state_min_size=0, **options)
    digits.train(params, optimizer, data.x, data.y, EPOCHS)
    return digits.loss_and_grads(params, data.x, data.y)[0]


@pytest.mark.parametrize(("name", "lr", "options"), CASES, ids=str)
def test_minifloat_states_train_to_the_loss_of_float32_states_within_2_percent(name, lr, options, data):
    """Over six starts 0.6 % to 0.9 % lower on average: noise in second moments makes the mean step a little longer."""
    assert loss(data, name, lr, state_bits=8, **options) == pytest.approx(loss(data, name, lr, **options), rel=0.02)


@pytest.mark.parametrize(("name", "lr", "options"), CASES, ids=str)
def test_dynamic_states_train_to_the_loss_of_float32_states_within_4_percent(name, lr, options, data):
    """Adam's are 2.6 % off, the others' at most 0.4 %: small second moments become 0."""
    got = loss(data, name, lr, state_bits=8, coding="dynamic", **options)
    assert got == pytest.approx(loss(data, name, lr, **options), rel=0.04)


def test_4_bit_states_train_to_the_loss_of_float32_states_within_5_percent(data):
    """3.3 % off, below: their second moments are larger."""
    name, lr, options = CASES[1]
    assert loss(data, name, lr, state_bits=4, **options) == pytest.approx(loss(data, name, lr, **options), rel=0.05)


L2 = np.float32(0.01)


@once
def converged_loss(data: digits.Data, name: str, lr: float, **options: Any) -> float:
    """With an L2 term, which keeps it far from 0, after 30 epochs; over two seeds."""
    total, epochs = 0.0, 30
    for seed in range(2):
        params = digits.new_params(SIZES, seed)
        optimizer = digits.make(name, params, lr, epochs * (len(data.y) // 64), state_min_size=0, **options)
        for batch in digits.batches(len(data.y), 64, epochs, seed):
            grads = digits.loss_and_grads(params, data.x[batch], data.y[batch])[1]
            optimizer.step({name: g + L2 * params[name] for name, g in grads.items()})
        total += digits.loss_and_grads(params, data.x, data.y)[0]
        total += L2 / 2 * sum(float((p**2).sum()) for p in params.values())
    return total


CONVERGED = [(name, lr, {**options, "weight_decay": 0.0}) for name, lr, options in CASES]
SMALL = [{"state_bits": 8}, {"state_bits": 8, "coding": "dynamic"}, {"state_bits": 4}]


@pytest.mark.parametrize(
    ("name", "lr", "options", "small"),
    [
        pytest.param(*case, small, id=f"{case[0]}-{small}", marks=pytest.mark.slow if case[0] == "AdamW" else ())
        for case in CONVERGED
        for small in SMALL
        if small["state_bits"] == 8 or case[0].startswith("Adam")
    ],
)
def test_small_states_converge_to_the_loss_of_float32_states_within_1_percent(name, lr, options, small, data):
    """But for Lion's in the dynamic map, 9 % off: a step moves them by a hundredth, and to nearest they stay behind."""
    got, want = (converged_loss(data, name, 3 * lr, **options, **states) for states in (small, {}))
    behind = name == "Lion" and small.get("coding") == "dynamic"
    assert got == pytest.approx(want, rel=0.12 if behind else 0.01)


@pytest.mark.parametrize(
    ("epochs", "title", "name", "lr", "options"),
    [
        *(pytest.param(6, *o, id=o[0]) for o in digits.OPTIMIZERS[::3]),
        *(pytest.param(20, *o, id=f"{o[0]}, 20 epochs", marks=pytest.mark.slow) for o in digits.OPTIMIZERS),
    ],
)
def test_every_optimizer_learns_to_read_digits(epochs, title, name, lr, options, data):
    params = digits.new_params()
    optimizer = digits.make(name, params, lr, epochs * (len(data.y) // digits.BATCH), **options)
    digits.train(params, optimizer, data.x, data.y, epochs)
    assert digits.accuracy(params, data.held_out_x, data.held_out_y) > 0.9


def test_the_average_of_the_weights_reads_digits_as_well(data):
    params = digits.new_params()
    average = {name: p.copy() for name, p in params.items()}
    optimizer = mo.optim.Adam(params, lr=3e-3)
    for batch in digits.batches(len(data.y), digits.BATCH, 10):
        optimizer.step(digits.loss_and_grads(params, data.x[batch], data.y[batch])[1])
        mo.optim.ema_step(list(average.values()), list(params.values()), decay=0.95)
    last, mean = (digits.loss_and_grads(p, data.held_out_x, data.held_out_y)[0] for p in (params, average))
    assert mean < 1.05 * last


def test_k_small_batches_step_as_one_large_one(data):
    whole, parts = digits.new_params(), digits.new_params()
    first, second = (mo.optim.SGD(p, lr=0.1, momentum=0.9) for p in (whole, parts))
    for batch in digits.batches(len(data.y), 64, 1):
        first.step(digits.loss_and_grads(whole, data.x[batch], data.y[batch])[1])
        for part in np.split(batch, 4):
            second.accumulate(digits.loss_and_grads(parts, data.x[part], data.y[part])[1])
        second.step()
    for name, p in whole.items():
        np.testing.assert_allclose(parts[name], p, atol=1e-5)


def test_the_gradients_of_the_model_are_those_of_its_loss(data):
    params = {name: p.astype(np.float64) for name, p in digits.new_params(SIZES).items()}
    x, y = data.x[:50].astype(np.float64), data.y[:50]
    rng = np.random.default_rng(1)
    way = {name: rng.standard_normal(p.shape) for name, p in params.items()}
    near = [
        digits.loss_and_grads({name: p + h * way[name] for name, p in params.items()}, x, y)[0] for h in (1e-6, -1e-6)
    ]
    grads = digits.loss_and_grads(params, x, y)[1]
    slope = sum(float((grads[name] * way[name]).sum()) for name in params)
    assert (near[0] - near[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)
