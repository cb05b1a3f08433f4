"""Optimizer steps as the papers and torch's documentation write them, in extended precision, one element at a time."""

from typing import Any

import numpy as np

Real = np.longdouble
State = dict[str, Any]


def zeros(n: int, names: tuple[str, ...]) -> State:
    return {name: np.zeros(n, Real) for name in names}


def prepare(p: Any, g: Any, o: dict[str, Any]) -> Any:
    """What is done to every gradient first."""
    g = g / Real(o.get("grad_scale", 1.0)) * (-1 if o.get("maximize") else 1)
    if o.get("clip_value") is not None:
        g = np.clip(g, -Real(o["clip_value"]), Real(o["clip_value"]))
    return g if o["decoupled"] else g + Real(o.get("weight_decay", 0.0)) * p


def sgd(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    if "momentum_buffer" not in s:
        return Real(o["lr"]) * g
    momentum = Real(o["momentum"])
    fresh = g if t == 1 else momentum * s["momentum_buffer"] + (1 - Real(o.get("dampening", 0.0))) * g
    s["momentum_buffer"] = fresh
    return Real(o["lr"]) * (g + momentum * fresh if o.get("nesterov") else fresh)


def adagrad(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    s["state_sum"] = s["state_sum"] + g * g
    lr = Real(o["lr"]) / (1 + (t - 1) * Real(o.get("lr_decay", 0.0)))
    return lr * g / (np.sqrt(s["state_sum"]) + Real(o["eps"]))


def rmsprop(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    alpha = Real(o["alpha"])
    s["square_avg"] = alpha * s["square_avg"] + (1 - alpha) * g * g
    variance = s["square_avg"]
    if "grad_avg" in s:
        s["grad_avg"] = alpha * s["grad_avg"] + (1 - alpha) * g
        variance = np.maximum(variance - s["grad_avg"] ** 2, 0)
    direction = g / (np.sqrt(variance) + Real(o["eps"]))
    if "momentum_buffer" in s:
        direction = s["momentum_buffer"] = Real(o["momentum"]) * s["momentum_buffer"] + direction
    return Real(o["lr"]) * direction


def adadelta(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    rho, eps = Real(o["rho"]), Real(o["eps"])
    s["square_avg"] = rho * s["square_avg"] + (1 - rho) * g * g
    delta = np.sqrt(s["acc_delta"] + eps) / np.sqrt(s["square_avg"] + eps) * g
    s["acc_delta"] = rho * s["acc_delta"] + (1 - rho) * delta * delta
    return Real(o["lr"]) * delta


def _means(g: Any, s: State, o: dict[str, Any]) -> tuple[Any, Any]:
    b1, b2 = map(Real, o["betas"])
    s["exp_avg"] = b1 * s["exp_avg"] + (1 - b1) * g
    if "exp_avg_sq" in s:
        s["exp_avg_sq"] = b2 * s["exp_avg_sq"] + (1 - b2) * g * g
    return b1, b2


def adam(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    b1, b2 = _means(g, s, o)
    bc1, bc2, eps = 1 - b1**t, 1 - b2**t, Real(o["eps"])
    size, semantics = s["exp_avg_sq"], o.get("semantics", "torch")
    if semantics == "optax":
        size = size / bc2
    if "max_exp_avg_sq" in s:
        size = s["max_exp_avg_sq"] = np.maximum(s["max_exp_avg_sq"], size)
    if semantics == "keras":
        return Real(o["lr"]) * np.sqrt(bc2) / bc1 * s["exp_avg"] / (np.sqrt(size) + eps)
    root = np.sqrt(size) if semantics == "optax" else np.sqrt(size) / np.sqrt(bc2)
    return Real(o["lr"]) / bc1 * s["exp_avg"] / (root + eps)


def nadam(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    b1, b2 = _means(g, s, o)
    mu, following = (b1 * (1 - Real(0.5) * Real(0.96) ** (i * Real(o["momentum_decay"]))) for i in (t, t + 1))
    product = s["product"] = s.get("product", Real(1)) * mu
    root = np.sqrt(s["exp_avg_sq"] / (1 - b2**t)) + Real(o["eps"])
    lr = Real(o["lr"])
    return (lr * (1 - mu) / (1 - product) * g + lr * following / (1 - product * following) * s["exp_avg"]) / root


def radam(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    b1, b2 = _means(g, s, o)
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / (1 - b2**t)
    step = Real(o["lr"]) * s["exp_avg"] / (1 - b1**t)
    if length <= 5:
        return step
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return step * np.sqrt(ratio) * np.sqrt(1 - b2**t) / (np.sqrt(s["exp_avg_sq"]) + Real(o["eps"]))


def adamax(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    b1, b2 = _means(g, s, o)
    s["exp_inf"] = np.maximum(b2 * s["exp_inf"], np.abs(g) + Real(o["eps"]))
    return Real(o["lr"]) / (1 - b1**t) * s["exp_avg"] / s["exp_inf"]


def lion(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    b1, b2 = map(Real, o["betas"])
    direction = np.sign(b1 * s["exp_avg"] + (1 - b1) * g)
    s["exp_avg"] = b2 * s["exp_avg"] + (1 - b2) * g
    return Real(o["lr"]) * direction


ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
MEANS = ("exp_avg", "exp_avg_sq")
# By function: oracle, the states that it always has, the defaults of its options.
ORACLES: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "sgd_step": (sgd, (), {"lr": 1e-3}),
    "adagrad_step": (adagrad, ("state_sum",), {"lr": 1e-2, "eps": 1e-10}),
    "rmsprop_step": (rmsprop, ("square_avg",), {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8}),
    "adadelta_step": (adadelta, ("square_avg", "acc_delta"), {"lr": 1.0, "rho": 0.9, "eps": 1e-6}),
    "adam_step": (adam, MEANS, ADAM),
    "adamw_step": (adam, MEANS, {**ADAM, "weight_decay": 1e-2, "decoupled": True}),
    "nadam_step": (nadam, MEANS, {**ADAM, "lr": 2e-3, "momentum_decay": 4e-3}),
    "radam_step": (radam, MEANS, ADAM),
    "adamax_step": (adamax, ("exp_avg", "exp_inf"), {**ADAM, "lr": 2e-3}),
    "lion_step": (lion, ("exp_avg",), {"lr": 1e-4, "betas": (0.9, 0.99), "decoupled": True}),
}


class Reference:
    """One parameter in extended precision; `moved` is the sum of what its steps moved it."""

    def __init__(self, function: str, p: np.ndarray, extra: tuple[str, ...], options: dict[str, Any]) -> None:
        self.oracle, states, defaults = ORACLES[function]
        self.options = {"decoupled": False, **defaults, **options}
        self.p = p.astype(Real)
        self.states = zeros(p.size, states + extra)
        self.moved = np.zeros(p.size, Real)
        self.t = 0

    def step(self, grad: np.ndarray) -> None:
        self.t += 1
        o = self.options
        g = prepare(self.p, grad.astype(Real), o)
        decayed = self.p
        if o["decoupled"]:
            decayed = self.p * (1 - Real(o["lr"]) * Real(o.get("weight_decay", 0.0)))
        update = self.oracle(self.p, g, self.states, self.t, o)
        new = decayed - update
        self.moved += np.abs(update) + np.abs(decayed - self.p)
        self.p = new
