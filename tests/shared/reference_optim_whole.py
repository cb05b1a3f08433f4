"""The steps that look at whole tensors, as their papers write them, in extended precision."""

from typing import Any

import numpy as np

from reference_optim import Real, prepare

State = dict[str, Any]


def norm(x: Any) -> Any:
    return np.sqrt((x * x).sum())


def lamb(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    """You et al. 2020, algorithm 2: what is taken from the parameter."""
    b1, b2 = map(Real, o["betas"])
    s["exp_avg"] = b1 * s["exp_avg"] + (1 - b1) * g
    s["exp_avg_sq"] = b2 * s["exp_avg_sq"] + (1 - b2) * g * g
    u = s["exp_avg"] / (1 - b1**t) / (np.sqrt(s["exp_avg_sq"] / (1 - b2**t)) + Real(o["eps"]))
    u = u + Real(o.get("weight_decay", 0.0)) * p
    ratio = norm(p) / norm(u) if norm(p) > 0 and norm(u) > 0 else Real(1)
    return Real(o["lr"]) * ratio * u


def adafactor(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    """Shazeer and Stern 2018, algorithms 4 and 5, with the learning rate and the floors of torch."""
    size = np.sqrt(Real(max(p.size, 1)))
    fresh = Real(t) ** Real(o["beta2_decay"])
    first, second = o["eps"]
    floor = Real(o["epsilon"] if first is None else first)
    alpha = max(Real(second), norm(p) / size) * min(Real(o["lr"]), 1 / np.sqrt(Real(t)))
    if p.ndim < 2:
        v = s["variance"] = (1 - fresh) * s["variance"] + fresh * g * g
    else:
        s["row_var"] = (1 - fresh) * s["row_var"] + fresh * (g * g).mean(axis=-1, keepdims=True)
        s["col_var"] = (1 - fresh) * s["col_var"] + fresh * (g * g).mean(axis=-2, keepdims=True)
        v = s["row_var"] * s["col_var"] / np.maximum(s["row_var"].mean(axis=-2, keepdims=True), floor)
    u = g / np.sqrt(np.maximum(v, floor * floor))
    return alpha / max(Real(1), norm(u) / size / Real(o["d"])) * u


def muon(p: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    """Jordan et al. 2024, with torch's form of the momentum."""
    mu = Real(o["momentum"])
    s["momentum_buffer"] = mu * s["momentum_buffer"] + (1 - mu) * g
    x = mu * s["momentum_buffer"] + (1 - mu) * g if o["nesterov"] else s["momentum_buffer"]
    rows, cols = x.shape
    x = x / max(norm(x), Real(o["eps"]))
    a, b, c = map(Real, o["ns_coefficients"])
    x = x.T if rows > cols else x
    for _ in range(o["ns_steps"]):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if rows > cols else x
    if o["adjust_lr_fn"] == "match_rms_adamw":
        return Real(o["lr"]) * Real(0.2) * np.sqrt(Real(max(rows, cols))) * x
    return Real(o["lr"]) * np.sqrt(max(Real(1), Real(rows) / Real(cols))) * x


LAMB = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
ADAFACTOR = {"lr": 1e-2, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "decoupled": True}
MUON = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "ns_coefficients": (3.4445, -4.775, 2.0315),
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
    "decoupled": True,
}
# By function: oracle and the defaults of its options.
ORACLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lamb_step": (lamb, LAMB),
    "adafactor_step": (adafactor, ADAFACTOR),
    "muon_step": (muon, MUON),
}


def states(function: str, p: np.ndarray, fill: float = 0.0) -> State:
    """The state that a step of `p` needs, in its dtype."""
    dtype = np.float64 if p.dtype == np.float64 else np.float32
    shapes = {"exp_avg": p.shape, "exp_avg_sq": p.shape}
    if function == "muon_step":
        shapes = {"momentum_buffer": p.shape}
    elif function == "adafactor_step":
        shapes = {"variance": p.shape}
        if p.ndim > 1:
            shapes = {"row_var": (*p.shape[:-1], 1), "col_var": (*p.shape[:-2], 1, p.shape[-1])}
    return {name: np.full(shape, fill, dtype) for name, shape in shapes.items()}


class Reference:
    """One parameter in extended precision; `moved` is the sum of what its steps moved it."""

    def __init__(self, function: str, p: np.ndarray, options: dict[str, Any], state: State, t: int = 0) -> None:
        self.oracle, defaults = ORACLES[function]
        self.options = {"decoupled": False, "epsilon": np.finfo(p.dtype).eps, **defaults, **options}
        self.p = p.astype(Real)
        self.states = {name: x.astype(Real) for name, x in state.items()}
        self.moved = np.zeros(p.shape, Real)
        self.t = t

    def step(self, grad: np.ndarray) -> None:
        self.t += 1
        if self.p.size == 0:  # nothing has a mean: its state stays
            return
        o = self.options
        # LAMB's decay is part of its direction, not of the gradient.
        g = prepare(self.p, grad.astype(Real), {**o, "decoupled": True})
        update = self.oracle(self.p, g, self.states, self.t, o)
        kept = 1 - Real(o["lr"]) * Real(o.get("weight_decay", 0.0)) if o["decoupled"] else Real(1)
        self.moved += np.abs(update) + np.abs(self.p * (1 - kept))
        self.p = self.p * kept - update
