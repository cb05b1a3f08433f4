"""Every optimizer with options that change its steps, and parameters for them."""

from typing import Any

import numpy as np

import reference as ref

ALL: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"initial_accumulator_value": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Adadelta", {}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adamax", {}),
    ("Lion", {}),
    ("LAMB", {"weight_decay": 0.1}),
    ("Adafactor", {}),
    ("Muon", {}),
]
CODED: list[tuple[str, dict[str, Any]]] = [
    (name, {**options, "state_bits": bits, "coding": coding, "state_min_size": 0})
    for name, options in (
        ("SGD", {"momentum": 0.9}),
        ("Adagrad", {}),
        ("RMSprop", {}),
        ("Adam", {}),
        ("AdamW", {}),
        ("Lion", {}),
    )
    for bits, coding in ((8, "minifloat"), (8, "dynamic"), (4, "minifloat"))
    if bits == 8 or name.startswith("Adam")
]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {"a": (30, 40), "b": (20, 7)} if name == "Muon" else {"a": (30, 40), "b": (7,), "c": ()}


def arrays(name: str, seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(shape), np.float32).astype(dtype) for k, shape in shapes(name).items()}


def bits(params: dict[str, np.ndarray]) -> Any:
    return ref.bits_of(tuple(params.values()))
