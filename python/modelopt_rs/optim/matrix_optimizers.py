"""Adafactor and Muon as objects: they look at whole parameters, and have step functions of their own."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16
from modelopt_rs.arguments import shown
from modelopt_rs.optim.adafactor import adafactor_step
from modelopt_rs.optim.arrays import as_arrays
from modelopt_rs.optim.interrupts import uninterrupted
from modelopt_rs.optim.muon import muon_step
from modelopt_rs.optim.optimizer import Optimizer
from modelopt_rs.optim.options import Common, Group, Groups, How, LearningRate, Params, Tensors
from modelopt_rs.optim.specification import Specification, State, own

__all__ = ["Adafactor", "Muon"]


class _Whole(Optimizer):
    """An optimizer with a step function of its own, which looks at whole parameters: called for each batch."""

    takes_masks = False

    @classmethod
    def _step_batch(
        cls, group: Group, step: int, arrays: tuple[list[Array], list[Array]], states: list[Group], more: Group
    ) -> None:
        raise NotImplementedError

    @classmethod
    def _check_options(cls, group: Group) -> None:
        lr = group["lr"]
        cls._step_batch(group, 1, ([], []), [], {"lr": lr(1) if callable(lr) else lr})

    @classmethod
    def launch(cls, groups: Groups, tensors: Tensors, how: How, dtype: Bf16, threads: int | None) -> bool:
        """Check and step one batch after the other: parameters of one group, number of step and precision."""
        grad_scale, clip_value, nonfinite, rates = how
        rates = rates if rates is not None else tuple(group["lr"] for group, _ in groups)
        options = [(group, lr) for (group, count), lr in zip(groups, rates, strict=True) for _ in range(count)]
        batches: dict[Any, list[tuple[tuple[Group, Any], Array, Array, Group]]] = {}
        params, grads, states, _ = tensors
        for (group, lr), param, grad, state in zip(options, params, as_arrays(grads), states, strict=True):
            if grad is not None:
                # By what it is, not by its value: what can't be a rate the core refuses.
                key = (id(group), id(lr), state["step"], param.dtype == np.float64)
                batches.setdefault(key, []).append(((group, lr), param, grad, state))
        if nonfinite not in ("propagate", "raise", "skip"):
            function, got = cls.specification.function, repr(nonfinite)
            raise ValueError(f"{function}: nonfinite must be 'propagate', 'raise' or 'skip', got {got}")
        ordered = list(batches.items())
        if nonfinite != "propagate":
            # First what the kernel then refuses, before its first write.
            bad = [any(_has_nonfinite(grad, dtype, threads) for _, _, grad, _ in batch) for _, batch in ordered]
            if nonfinite == "skip" and any(bad):
                return False
            ordered = [
                item for first in (True, False) for item, is_bad in zip(ordered, bad, strict=True) if is_bad == first
            ]
        with uninterrupted():
            for _, batch in ordered:
                ((group, lr), *_), *_ = batch
                _, own_params, own_grads, own_states = (list(column) for column in zip(*batch, strict=True))
                masters = [state.get("master") for state in own_states]
                more = {
                    "grad_scale": grad_scale,
                    "clip_value": clip_value,
                    "nonfinite": "raise" if nonfinite == "raise" else "propagate",
                    "lr": lr,
                    "dtype": dtype,
                    "threads": threads,
                    "master": masters if any(m is not None for m in masters) else None,
                }
                cls._step_batch(group, own_states[0]["step"] + 1, (own_params, own_grads), own_states, more)
                for state in own_states:
                    state["step"] += 1
        return True


class Adafactor(_Whole):
    """Adafactor: see `adafactor_step`, and `Optimizer` for `params` and `common`. Groups are checked one by one."""

    # A parameter has the last one, or the two others: see `_state_shapes`.
    specification = Specification(
        "adafactor_step", (), tuple(State(name, False, None) for name in ("row_var", "col_var", "variance")), (0, ())
    )

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)

    @classmethod
    def _state_shapes(cls, param: Array, options: Group) -> dict[str, tuple[int, ...]]:
        if param.ndim < 2:
            return {"variance": param.shape}
        return {"row_var": (*param.shape[:-1], 1), "col_var": (*param.shape[:-2], 1, param.shape[-1])}

    @classmethod
    def _step_batch(
        cls, group: Group, step: int, arrays: tuple[list[Array], list[Array]], states: list[Group], more: Group
    ) -> None:
        row_var, col_var, variance = ([s.get(name) for s in states] for name in ("row_var", "col_var", "variance"))
        options = {
            name: group[name] for name in ("beta2_decay", "eps", "d", "weight_decay", "maximize", "rounding_seed")
        }
        adafactor_step(arrays[0], arrays[1], row_var, col_var, variance, step=step, **options, **more)


class Muon(_Whole):
    """Muon, for matrices: see `muon_step`, and `Optimizer` for `params` and `common`.

    Biases, norms and tables go to an optimizer of their own, such as `AdamW`. Of several groups each is checked just
    before it is stepped, so one that is refused leaves those before it stepped.
    """

    # The kernel's two other states are for the time of a step.
    specification = Specification("muon_step", (), (State("momentum_buffer", True, None),), (0, ()))

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)

    @classmethod
    def _check_options(cls, group: Group) -> None:
        if group["rounding_seed"] is not None:
            raise ValueError(f"Muon: rounding_seed must be None, got {shown(group['rounding_seed'])}; use master=True")
        super()._check_options(group)

    @classmethod
    def new_state(cls, param: Array, options: Group) -> Group:
        """What a parameter starts with; ValueError of one that is no matrix: biases and norms are for another."""
        if param.ndim != 2:
            got = f"got one of shape {param.shape}"
            raise ValueError(f"Muon: params must be matrices, {got}; step biases, norms and tables with AdamW")
        return super().new_state(param, options)

    @classmethod
    def _step_batch(
        cls, group: Group, step: int, arrays: tuple[list[Array], list[Array]], states: list[Group], more: Group
    ) -> None:
        names = (
            "weight_decay",
            "momentum",
            "nesterov",
            "ns_coefficients",
            "eps",
            "ns_steps",
            "adjust_lr_fn",
            "maximize",
        )
        buffers = [s["momentum_buffer"] for s in states]
        options = {name: group[name] for name in names}
        muon_step(arrays[0], arrays[1], buffers, **options, **more)


def _has_nonfinite(grad: Array, dtype: Bf16, threads: int | None) -> bool:
    # A float32 sum may stand beside parameters of bfloat16 bits.
    bits = dtype if grad.dtype == np.uint16 else None
    return bool(_core.count_nonfinite(grad, None, False, bits, threads))
