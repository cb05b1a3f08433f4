"""The steps of `mo.optim` against those of torch (extra `interop`)."""

import itertools
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")

CASES: list[tuple[str, str, tuple[str, ...], dict[str, Any]]] = [
    *[
        (f"{name.lower()}_step", name, ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ())), {})
        for name, amsgrad in itertools.product(("Adam", "AdamW"), (False, True))
    ],
    ("sgd_step", "SGD", (), {}),
    ("sgd_step", "SGD", ("momentum_buffer",), {"momentum": 0.9}),
    ("sgd_step", "SGD", ("momentum_buffer",), {"momentum": 0.9, "dampening": 0.1}),
    ("sgd_step", "SGD", ("momentum_buffer",), {"momentum": 0.9, "nesterov": True}),
    ("adagrad_step", "Adagrad", ("state_sum",), {"lr_decay": 0.01}),
    ("rmsprop_step", "RMSprop", ("square_avg",), {}),
    ("rmsprop_step", "RMSprop", ("square_avg", "momentum_buffer"), {"momentum": 0.9}),
    ("rmsprop_step", "RMSprop", ("square_avg", "grad_avg"), {}),
    ("adadelta_step", "Adadelta", ("square_avg", "acc_delta"), {}),
    ("nadam_step", "NAdam", ("exp_avg", "exp_avg_sq"), {}),
    ("radam_step", "RAdam", ("exp_avg", "exp_avg_sq"), {}),
    ("adamax_step", "Adamax", ("exp_avg", "exp_inf"), {}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("function", "name", "states", "options"), CASES, ids=str)
@pytest.mark.parametrize("shared", [{}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_b1_steps_match_torch(function, name, states, options, shared, dtype):
    rng = np.random.default_rng(0)
    p = rng.standard_normal(1003).astype(dtype)
    theirs = torch.nn.Parameter(torch.tensor(p))
    extra = {"amsgrad": True} if "max_exp_avg_sq" in states else {}
    extra |= {"centered": True} if "grad_avg" in states else {}
    defaults = {"weight_decay": 0.0, "lr": 1.0 if name == "Adadelta" else 1e-2}
    optimizer = getattr(torch.optim, name)([theirs], **options, **{**defaults, **shared}, **extra)
    arrays, product = {state: np.zeros_like(p) for state in states}, 1.0
    for t in range(1, 61):
        g = (rng.standard_normal(p.size) * 10.0 ** rng.uniform(-3, 1)).astype(dtype)
        theirs.grad = torch.tensor(g)
        optimizer.step()
        more = {"mu_product": product} if name == "NAdam" else {}
        result = getattr(mo.optim, function)(p, g, **arrays, step=t, **options, **{**defaults, **shared}, **more)
        product = result if name == "NAdam" else 1.0
    # torch keeps NAdam's product of momenta as a float32 number.
    tolerance = 1e-5 if dtype == np.float32 else 1e-9 if name == "NAdam" else 1e-13
    np.testing.assert_allclose(p, theirs.detach().numpy(), rtol=0, atol=tolerance)
