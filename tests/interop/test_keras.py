"""The steps of `mo.optim` against Keras, where the formulas are the same, and its helper (extra `interop`)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

# Keras reads both when it is imported, and would write a configuration into the home directory.
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", os.devnull)
REASON = "the extra `interop` is not installed: "
pytest.importorskip("torch", reason=REASON + "torch")
keras = pytest.importorskip("keras", reason=REASON + "keras")

# Keras keeps it, and its product with the decay, as float32: these are exact.
LR = 2.0**-7
ADAM = {"semantics": "keras", "eps": 1e-7}
# Keras has epsilon inside the root of RMSprop and Adagrad and outside the maximum of Adamax: the formulas are the same
# with 0. Its Nadam has torch's schedule of momentum with a decay of 1.
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("Adam", ADAM, "Adam", {}),
    ("Adam", {**ADAM, "betas": (0.8, 0.95), "eps": 1e-3}, "Adam", {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}),
    ("Adam", {**ADAM, "amsgrad": True}, "Adam", {"amsgrad": True}),
    ("AdamW", {**ADAM, "weight_decay": 0.125}, "AdamW", {"weight_decay": 0.125}),
    ("NAdam", {"momentum_decay": 1.0, "eps": 1e-7}, "Nadam", {}),
    ("Adamax", {"eps": 0.0}, "Adamax", {"epsilon": 0.0}),
    ("SGD", {}, "SGD", {}),
    ("SGD", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}, "SGD", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"alpha": 0.9, "eps": 0.0}, "RMSprop", {"epsilon": 0.0}),
    ("RMSprop", {"alpha": 0.9, "eps": 0.0, "momentum": 0.9}, "RMSprop", {"epsilon": 0.0, "momentum": 0.9}),
    ("RMSprop", {"alpha": 0.9, "eps": 0.0, "centered": True}, "RMSprop", {"epsilon": 0.0, "centered": True}),
    ("Adagrad", {"initial_accumulator_value": 0.1, "eps": 0.0}, "Adagrad", {"epsilon": 0.0}),
    ("Adadelta", {"rho": 0.95, "eps": 1e-7}, "Adadelta", {}),
    ("Lion", {}, "Lion", {}),
    ("Lion", {"weight_decay": 0.125}, "Lion", {"weight_decay": 0.125}),
]


# Keras's own variables on torch.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "ours", "peer", "theirs"), CASES, ids=str)
def test_b1_50_steps_match_keras(name, ours, peer, theirs, dtype):
    """Float64 shows that the formulas are the same.

    In float32 there are some 50 roundings of numbers up to 4 (1.2e-5 if none cancels another), and Keras corrects with
    ``1 - beta_2**t`` in float32: at first 6e-8 of 1e-3, so 3e-5 of a step of 1e-2.
    """
    lr = 1.0 if name == "Adadelta" else LR
    rng = np.random.default_rng(0)
    p = rng.standard_normal(501).astype(dtype)
    variable = keras.Variable(p.copy(), dtype=dtype)
    optimizer = getattr(mo.optim, name)(p, lr=lr, **ours)
    reference = getattr(keras.optimizers, peer)(learning_rate=lr, **theirs)
    for _ in range(50):
        g = (rng.standard_normal(p.size) * 10.0 ** rng.uniform(-3, 1)).astype(dtype)
        reference.apply([keras.ops.convert_to_tensor(g)], [variable])
        optimizer.step(g)
    want = keras.ops.convert_to_numpy(variable.value)
    assert want.dtype == dtype
    np.testing.assert_allclose(p, want, rtol=0, atol=2e-5 if dtype == "float32" else 1e-12)


# What each backend needs to compute gradients, then what must hold for all.
HEAD = """
import numpy as np, keras, modelopt_rs as mo
from modelopt_rs.interop.keras import Optimizer
keras.utils.set_random_seed(0)
dtype = DTYPE
layers = [keras.layers.Dense(8, "tanh", dtype=dtype), keras.layers.Dense(1, dtype=dtype)]
model = keras.Sequential([keras.Input((6,)), *layers])
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 6)).astype(np.float32)
y = np.tanh(x @ rng.standard_normal((6, 1)).astype(np.float32))
variables = model.trainable_variables
"""
BACKENDS = {
    "torch": """
import torch
def gradients():
    model.zero_grad()
    loss = torch.mean((model(x).float() - torch.tensor(y)) ** 2)
    loss.backward()
    return float(loss), [v.value.grad for v in variables]
""",
    "jax": """
import jax
def loss_of(values):
    out, _ = model.stateless_call(values, [v.value for v in model.non_trainable_variables], x)
    return jax.numpy.mean((out - y) ** 2)
compiled = jax.jit(jax.value_and_grad(loss_of))
def gradients():
    return compiled([v.value for v in variables])
""",
}
TAIL = """
optimizer = Optimizer(mo.optim.AdamW, variables, lr=0.02)
places = [v.value.data_ptr() for v in variables] if keras.backend.backend() == "torch" else None
first, grads = gradients()
mine = [keras.ops.convert_to_numpy(v.value) for v in variables]
again = mo.optim.AdamW([m.copy() for m in mine], lr=0.02)
held = [v.value for v in variables]  # JAX's arrays never change
for i in range(100):
    loss, grads = gradients()
    optimizer.apply(grads, clip_norm=10.0)
    if i < 5:
        again.step([keras.ops.convert_to_numpy(g) for g in grads], clip_norm=10.0)
        for v, p in zip(variables, again.param_groups[0]["params"]):
            assert np.array_equal(keras.ops.convert_to_numpy(v.value), p)
assert loss < first / 5, (first, loss)
if places:
    assert places == [v.value.data_ptr() for v in variables]
else:
    assert all(np.array_equal(np.asarray(h), m) for h, m in zip(held, mine))
# Assigned in between, and a variable without a gradient.
last = keras.ops.convert_to_numpy(variables[1].value)
variables[0].assign(np.full(variables[0].shape, 3.0, np.float32))
optimizer.optimizer.param_groups[0]["lr"] = 0.0
optimizer.apply([gradients()[1][0], None, *gradients()[1][2:]])
assert (keras.ops.convert_to_numpy(variables[0].value) == 3).all()
assert np.array_equal(keras.ops.convert_to_numpy(variables[1].value), last)
before = [keras.ops.convert_to_numpy(v.value) for v in variables]
try:
    optimizer.apply([np.ones(1, np.float32)] * len(variables))
except ValueError as error:
    assert "must have shape" in str(error), error
else:
    raise AssertionError("shapes")
assert all(np.array_equal(keras.ops.convert_to_numpy(v.value), b) for v, b in zip(variables, before))
"""
FIT = """
import torch
class Model(keras.Sequential):
    def train_step(self, data):
        x, y = data
        self.zero_grad()
        loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        loss.backward()
        optimizer.apply([v.value.grad for v in self.trainable_variables])
        self.metrics[0].update_state(loss)
        return {"loss": self.metrics[0].result()}
model = Model(model.layers)
model.compile(optimizer=None, loss="mse")
optimizer = Optimizer(mo.optim.Adam, model.trainable_variables, lr=0.02)
losses = model.fit(x, y, epochs=30, verbose=0).history["loss"]
assert losses[-1] < losses[0] / 5, losses
w = variables[0].value
loss = (w * w).sum()
optimizer.apply([torch.ones_like(v.value) for v in variables])
try:
    loss.backward()
except RuntimeError as error:
    assert "inplace" in str(error)
else:
    raise AssertionError("autograd did not see the step")
"""
LIMITS = """
class Traced(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        np.asarray(gradient)
try:
    model.compile(optimizer=mo.optim.Adam([np.ones(1, np.float32)]), loss="mse")
except ValueError as error:
    assert "Could not interpret optimizer" in str(error)
else:
    raise AssertionError("compile took it")
model.compile(optimizer=Traced(), loss="mse")
try:
    model.fit(x, y, verbose=0)
    assert keras.backend.backend() == "torch"
except Exception as error:
    assert type(error).__name__ == "TracerArrayConversionError", error
"""


def run(backend: str, code: str, folder: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_helper_trains_a_model(backend, dtype, tmp_path):
    pytest.importorskip(backend, reason=REASON + backend)
    run(backend, HEAD.replace("DTYPE", repr(dtype)) + BACKENDS[backend] + TAIL, tmp_path)


def test_with_torch_fit_works_by_a_train_step(tmp_path):
    run("torch", HEAD.replace("DTYPE", "'float32'") + FIT, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_keras_does_not_allow_is_as_documented(backend, tmp_path):
    pytest.importorskip(backend, reason=REASON + backend)
    run(backend, HEAD.replace("DTYPE", "'float32'") + LIMITS, tmp_path)
