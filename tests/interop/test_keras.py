"""The steps of `mo.optim` against Keras, where the formulas are the same, and its helper (extra `interop`)."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
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


def of_dtype(dtype: str, code: str) -> str:
    return HEAD.replace("DTYPE", repr(dtype)) + code


SCRIPTS = {
    "torch": {
        "float32": of_dtype("float32", BACKENDS["torch"] + TAIL),
        "bfloat16": of_dtype("bfloat16", BACKENDS["torch"] + TAIL),
        "fit": of_dtype("float32", FIT),
        "limits": of_dtype("float32", LIMITS),
    },
    "jax": {
        "float32": of_dtype("float32", BACKENDS["jax"] + TAIL),
        "bfloat16": of_dtype("bfloat16", BACKENDS["jax"] + TAIL),
        "limits": of_dtype("float32", LIMITS),
    },
}
# One after the other: Keras has one backend in a process, whose imports take longer than all that is tested.
EACH = """
import json, sys, traceback
errors = {}
for name, script in json.load(sys.stdin).items():
    try:
        exec(script, {"__name__": name})
    except BaseException:
        errors[name] = traceback.format_exc()
print("\\n" + json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """What went wrong in the scripts of a backend, by their names."""

    @functools.cache
    def of(backend: str) -> dict[str, str]:
        pytest.importorskip(backend, reason=REASON + backend)
        home = str(tmp_path_factory.mktemp("keras"))
        environment = {**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": home, "JAX_PLATFORMS": "cpu"}
        command, scripts = [sys.executable, "-c", EACH], json.dumps(SCRIPTS[backend])
        done = subprocess.run(command, input=scripts, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_helper_trains_a_model(backend, dtype, errors):
    assert errors(backend).get(dtype) is None


def test_with_torch_fit_works_by_a_train_step(errors):
    assert errors("torch").get("fit") is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_keras_does_not_allow_is_as_documented(backend, errors):
    assert errors(backend).get("limits") is None
