"""LAMB, Adafactor and Muon against those of Optax and torch (extra `interop`)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

SHARED = [{}, {"weight_decay": 0.1, "maximize": True}]
SHAPES = [(5, 7), (3,), (), (1, 1), (40, 1000), (500, 3), (4, 3, 3, 3), (2, 20, 500)]


def parameters(shapes: list[tuple[int, ...]], dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def gradients(params: list[np.ndarray], steps: int) -> Iterator[list[np.ndarray]]:
    rng = np.random.default_rng(1)
    for _ in range(steps):
        yield [np.asarray(rng.standard_normal(p.shape) * 10.0 ** rng.uniform(-3, 1), p.dtype) for p in params]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shared", SHARED, ids=str)
@pytest.mark.parametrize("own", [{}, {"eps": (1e-3, 1e-2), "d": 2.0, "lr": 0.05, "beta2_decay": -0.5}], ids=str)
def test_b1_adafactor_matches_torch_and_goes_on_from_its_states(own, shared, dtype, torch):
    """Half of the steps are torch's alone: the other half starts from copies of its states."""
    params, options = parameters(SHAPES, dtype), {**own, **shared}
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    optimizer = torch.optim.Adafactor(theirs, **options)
    states: dict[str, list[Any]] = {}
    for t, grads in enumerate(gradients(params, 40), 1):
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        if t > 20:
            mo.optim.adafactor_step(params, grads, **states, step=t, **options)
        optimizer.step()
        if t == 20:
            params = [p.detach().numpy().copy() for p in theirs]
            for name in ("row_var", "col_var", "variance"):
                found = [optimizer.state[p].get(name) for p in theirs]
                states[name] = [None if x is None else x.numpy().copy() for x in found]
    tolerance = 2e-5 if dtype == np.float32 else 1e-13
    for p, their in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, their.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
        {"ns_steps": 0},
        {"momentum": 0.5, "weight_decay": 0.0, "ns_steps": 2, "ns_coefficients": (2.0, -1.5, 0.5)},
    ],
    ids=str,
)
def test_b1_muon_matches_torch_within_its_bfloat16(options, dtype, torch):
    """torch iterates in bfloat16: a hundredth of each step, whose elements are at most 1 times the adjustment."""
    params, lr, steps = parameters([(5, 7), (7, 5), (64, 64), (1, 9)], dtype), 1e-3, 20
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    optimizer = torch.optim.Muon(theirs, lr=lr, **options)
    buffers = [np.zeros_like(p) for p in params]
    for grads in gradients(params, steps):
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        mo.optim.muon_step(params, grads, buffers, lr=lr, **options)
    for p, their, buffer in zip(params, theirs, buffers, strict=True):
        np.testing.assert_allclose(p, their.detach().numpy(), rtol=0, atol=0.01 * lr * steps)
        exact = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(buffer, optimizer.state[their]["momentum_buffer"].numpy(), rtol=0, atol=exact)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"b1": 0.5, "b2": 0.9, "eps": 1e-3}], ids=str)
def test_b1_lamb_matches_optax(options):
    optax = pytest.importorskip("optax", reason="not installed: optax")
    import jax.numpy as jnp

    params = [*parameters([(5, 7), (2000,), (64, 64), ()], np.float32), np.zeros(5, np.float32)]
    theirs = [jnp.array(p) for p in params]
    optimizer = optax.lamb(1e-2, **options)
    state = optimizer.init(theirs)
    ours = {"betas": (options.get("b1", 0.9), options.get("b2", 0.999)), "eps": options.get("eps", 1e-6)}
    means, squares = ([np.zeros_like(p) for p in params] for _ in range(2))
    for t, grads in enumerate(gradients(params, 60), 1):
        updates, state = optimizer.update([jnp.array(g) for g in grads], state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        decay = options.get("weight_decay", 0.0)
        mo.optim.lamb_step(params, grads, means, squares, step=t, lr=1e-2, weight_decay=decay, **ours)
    for p, their in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, np.asarray(their), rtol=2e-5, atol=2e-5)
