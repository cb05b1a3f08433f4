"""Tensors of torch on the CPU as arrays of the same memory, and states in torch's names and forms."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.dtypes import DTYPES, FLOATS
from modelopt_rs.optim.state import BlockState

__all__ = [
    "EXCHANGE",
    "NUMBERS",
    "NUMPY_NAMES",
    "SMALLEST",
    "TORCH_NAMES",
    "array_of",
    "axis_order",
    "check_number",
    "is_at",
    "step_of",
    "tensors_of",
    "trace_of",
]

TORCH_FLOATS = {getattr(torch, str(DTYPES[name].word)) for name in FLOATS}
BF16 = np.dtype((type("bfloat", (np.void,), {}), 2))
"""Two bytes by the name bfloat16, by which the kernels know it: NumPy has none, and ml_dtypes may be absent."""
TORCH_NAMES = {"state_sum": "sum"}
"""States that have another name in torch."""
NUMBERS = {"step": torch.float32, "mu_product": torch.float64}
SMALLEST = 5e-324
NUMPY_NAMES = {torchs: ours for ours, torchs in TORCH_NAMES.items()}


def _exchange() -> _core.TensorExchange | None:
    try:
        return _core.TensorExchange(torch.Tensor, BF16)
    except ValueError:  # a torch before 2.10
        return None


EXCHANGE = _exchange()


def trace_of(params: list[torch.Tensor], states: dict[torch.Tensor, dict[str, Any]]) -> Any:
    """Which parameters these are, what each has for a state, where all of it lies and how: something to compare.

    Only as long as someone holds them: what is freed may be followed by another object at its address.
    """
    found = None if EXCHANGE is None else EXCHANGE.trace(params, states)
    if found is not None or not all(p in states for p in params):
        return found
    return [(_trace(p), id(own := states[p]), [(id(k), _trace(x)) for k, x in own.items()]) for p in params]


def is_at(trace: Any, params: list[torch.Tensor], states: dict[torch.Tensor, dict[str, Any]]) -> bool:
    """Whether `trace_of` would give the same."""
    if EXCHANGE is not None and isinstance(trace, bytes):
        return EXCHANGE.is_at(trace, params, states)
    return bool(trace_of(params, states) == trace)


def _trace(x: Any) -> tuple[Any, ...]:
    return (id(x), x.data_ptr(), x.shape, x.stride(), x.dtype, x.is_neg()) if isinstance(x, torch.Tensor) else (id(x),)


def axis_order(where: str, p: torch.Tensor) -> list[int]:
    """The order of a parameter's axes in which it is C-contiguous: element by element, the order doesn't matter."""
    if p.layout != torch.strided or p.is_contiguous():
        return list(range(p.dim()))
    order = sorted(range(p.dim()), key=p.stride, reverse=True)
    if not p.permute(order).is_contiguous():
        got = f"shape {tuple(p.shape)} with strides {p.stride()}"
        raise ValueError(f"{where} must be dense, got {got}; use p.data = p.data.contiguous()")
    return order


def check_number(what: str, x: Any) -> None:
    """Refuse what is not plainly one number on the CPU, which each step reads and writes."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{what}, got {type(x).__name__}")
    if x.device.type != "cpu" or x.layout != torch.strided or x.is_complex():
        raise TypeError(f"{what}, got {x.dtype} ({x.layout}, {x.device})")
    if x.numel() != 1 or x.is_neg() or x.requires_grad:
        got = f"shape {tuple(x.shape)}, is_neg() {x.is_neg()}, requires_grad {x.requires_grad}"
        raise ValueError(f"{what}, neither negated lazily nor with gradients, got {got}")


def step_of(where: str, x: Any) -> int:
    """How many steps a state has seen, in whatever form of a number."""
    try:
        step = float(x)
    except (TypeError, ValueError, RuntimeError):  # as torch says it of complex numbers
        step = -1.0
    if not (step >= 0 and step.is_integer()):
        raise ValueError(f"{where} must have a whole number of at least 0 for 'step' in its state, got {x!r}")
    return int(x)


def array_of(where: str, x: torch.Tensor, order: list[int], part: str = "") -> Array:
    """A tensor's memory, its axes in this order."""
    if x.device.type != "cpu" or x.layout != torch.strided or x.dtype not in TORCH_FLOATS:
        got = f"{x.dtype} ({x.layout}, {x.device})"
        raise TypeError(
            f"{where}{part} must be a dense tensor of float32, float64, float16 or bfloat16 on the CPU, got {got}"
        )
    if x.is_neg():
        raise ValueError(
            f"{where}{part} must not be negated lazily, got a tensor whose is_neg() is True; use .resolve_neg()"
        )
    x = x.detach() if x.requires_grad else x
    array: Array = x.view(torch.uint16).numpy().view(BF16) if x.dtype == torch.bfloat16 else x.numpy()
    return array if len(order) < 2 else array.transpose(order)


def tensors_of(state: Mapping[str, Any], order: list[int]) -> dict[str, Any]:
    """A state in torch's names and forms."""
    # The product in float64, which torch takes as well: float32 would not go on bit for bit.
    made: dict[str, Any] = {
        name: torch.tensor(float(state[name]), dtype=dtype) for name, dtype in NUMBERS.items() if name in state
    }
    back = np.argsort(order).tolist()
    for name, x in state.items():
        key = TORCH_NAMES.get(name, name)
        if isinstance(x, BlockState):
            made[f"{key}.codes"], made[f"{key}.absmax"] = torch.from_numpy(x.codes), torch.from_numpy(x.absmax)
            made[f"{key}.coding"] = x.coding
        elif isinstance(x, np.ndarray):
            made[key] = torch.from_numpy(x.transpose(back))
    return made
