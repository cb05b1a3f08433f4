"""The steps of `mo.optim` against optax (extra `interop`), where the formulas are the same."""

from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

REASON = "the extra `interop` is not installed: "
optax = pytest.importorskip("optax", reason=REASON + "optax")
jax = pytest.importorskip("jax", reason=REASON + "jax")

LR = 2.0**-7
OPTAX = {"semantics": "optax"}
# optax has eps inside the root of adagrad, and corrects radam's root before it adds eps: with 0 the formulas are the
# same. Its nadam has no schedule of momentum, which is one that has ended; its rmsprop can have eps outside.
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("Adam", OPTAX, "adam", {}),
    ("Adam", {**OPTAX, "betas": (0.8, 0.95), "eps": 1e-3}, "adam", {"b1": 0.8, "b2": 0.95, "eps": 1e-3}),
    ("Adam", {**OPTAX, "amsgrad": True}, "amsgrad", {}),
    ("AdamW", {**OPTAX, "weight_decay": 0.1}, "adamw", {"weight_decay": 0.1}),
    ("NAdam", {"momentum_decay": 1e6}, "nadam", {}),
    ("RAdam", {"eps": 0.0}, "radam", {"eps": 0.0}),
    ("Adamax", {}, "adamax", {}),
    ("SGD", {}, "sgd", {}),
    ("SGD", {"momentum": 0.9}, "sgd", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}, "sgd", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"alpha": 0.9}, "rmsprop", {"eps_in_sqrt": False}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.9}, "rmsprop", {"eps_in_sqrt": False, "momentum": 0.9}),
    ("RMSprop", {"alpha": 0.9, "centered": True}, "rmsprop", {"eps_in_sqrt": False, "centered": True}),
    ("Adagrad", {"initial_accumulator_value": 0.1, "eps": 0.0}, "adagrad", {"eps": 0.0}),
    ("Adadelta", {}, "adadelta", {}),
    ("Lion", {"weight_decay": 0.1}, "lion", {"weight_decay": 0.1}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "ours", "alias", "theirs"), CASES, ids=str)
def test_b1_60_steps_match_optax(name, ours, alias, theirs, dtype):
    """Float64 shows that the formulas are the same.

    In float32 there are some 60 roundings of numbers up to 4 (1.5e-5 if none cancels another), and optax corrects with
    ``1 - b2**t`` in float32: at first 6e-8 of 1e-3, so 3e-5 of a step of 1e-2.
    """
    lr = 1.0 if name == "Adadelta" else LR
    rng = np.random.default_rng(0)
    p = rng.standard_normal(501).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        optimizer = getattr(mo.optim, name)(p, lr=lr, **ours)
        peer = getattr(optax, alias)(lr, **theirs)
        q = jax.numpy.array(p)
        state = peer.init(q)
        for _ in range(60):
            g = (rng.standard_normal(p.size) * 10.0 ** rng.uniform(-3, 1)).astype(dtype)
            updates, state = peer.update(jax.numpy.array(g), state, q)
            q = optax.apply_updates(q, updates)
            optimizer.step(g)
        assert q.dtype == dtype
        np.testing.assert_allclose(p, np.asarray(q), rtol=0, atol=2e-5 if dtype == np.float32 else 1e-12)
