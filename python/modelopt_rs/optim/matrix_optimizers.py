"""Adafactor and Muon as objects: they look at whole parameters, and have kernels of their own."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Unpack

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import AdafactorCall, Array, Bf16, StepCommon, StepNonfinite
from modelopt_rs.arguments import shown
from modelopt_rs.interrupts import uninterrupted
from modelopt_rs.optim.arrays import as_arrays
from modelopt_rs.optim.muon import MuonCall, run_muon
from modelopt_rs.optim.optimizer import Optimizer
from modelopt_rs.optim.options import Common, Group, Groups, How, LearningRate, Params, StepTensors
from modelopt_rs.optim.specification import Specification, State, own

__all__ = ["Adafactor", "Muon"]

Arrays: TypeAlias = tuple[list[Array], list[Array], list[Array | None] | None]


class _Whole(Optimizer):
    """An optimizer that looks at whole parameters, and whose kernel takes calls: one for each batch."""

    takes_masks = False

    @classmethod
    def _call(cls, group: Group, step: int, common: StepCommon, arrays: Arrays, states: list[Group]) -> Any:
        """Step number `step` of parameters of a group as a call; arrays: params, grads, masters."""
        raise NotImplementedError

    @classmethod
    def _run(cls, calls: list[Any], nonfinite: StepNonfinite, dtype: Bf16, threads: int | None) -> None:
        """Check all calls, then step them."""
        raise NotImplementedError

    @classmethod
    def _check_options(cls, group: Group) -> None:
        lr = group["lr"]
        common = (lr(1) if callable(lr) else lr, 1.0, None, group["weight_decay"], group["maximize"])
        cls._run([cls._call(group, 1, common, ([], [], None), [])], "propagate", None, None)

    @classmethod
    def launch(cls, groups: Groups, tensors: StepTensors, how: How, dtype: Bf16, threads: int | None) -> bool:
        """Check all batches, then step them: parameters of one group, number of step and precision."""
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
        stepped = [state for batch in batches.values() for *_, state in batch]
        if nonfinite == "skip":
            if any(_has_nonfinite(grad, dtype, threads) for batch in batches.values() for _, _, grad, _ in batch):
                return False
            nonfinite = "propagate"
        calls = []
        for batch in batches.values():
            ((group, lr), *_), *_ = batch
            _, own_params, own_grads, own_states = (list(column) for column in zip(*batch, strict=True))
            masters = [state.get("master") for state in own_states]
            arrays = (own_params, own_grads, masters if any(m is not None for m in masters) else None)
            common = (lr, grad_scale, clip_value, group["weight_decay"], group["maximize"])
            calls.append(cls._call(group, own_states[0]["step"] + 1, common, arrays, own_states))
        with uninterrupted():
            cls._run(calls, nonfinite, dtype, threads)
            for state in stepped:
                state["step"] += 1
        return True


class Adafactor(_Whole):
    """Adafactor: see `adafactor_step`, and `Optimizer` for `params` and `common`."""

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
    def _call(cls, group: Group, step: int, common: StepCommon, arrays: Arrays, states: list[Group]) -> AdafactorCall:
        row_var, col_var, variance = ([s.get(name) for s in states] for name in ("row_var", "col_var", "variance"))
        params, grads, masters = arrays
        given = (params, grads, row_var, col_var, variance, masters, group["rounding_seed"])
        return given, common, (step, group["beta2_decay"], group["eps"], group["d"])

    @classmethod
    def _run(cls, calls: list[AdafactorCall], nonfinite: StepNonfinite, dtype: Bf16, threads: int | None) -> None:
        _core.adafactor_step(calls, nonfinite, dtype, threads)


class Muon(_Whole):
    """Muon, for matrices: see `muon_step`, and `Optimizer` for `params` and `common`.

    Biases, norms and tables go to an optimizer of their own, such as `AdamW`.
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
    def _call(cls, group: Group, step: int, common: StepCommon, arrays: Arrays, states: list[Group]) -> MuonCall:
        params, grads, masters = arrays
        buffers = [state["momentum_buffer"] for state in states]
        own = ("momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
        return MuonCall((params, grads, buffers, masters), common, **{name: group[name] for name in own})

    @classmethod
    def _run(cls, calls: list[MuonCall], nonfinite: StepNonfinite, dtype: Bf16, threads: int | None) -> None:
        run_muon(calls, nonfinite, dtype, threads)


def _has_nonfinite(grad: Array, dtype: Bf16, threads: int | None) -> bool:
    # A float32 sum may stand beside parameters of bfloat16 bits.
    bits = dtype if grad.dtype == np.uint16 else None
    return bool(_core.count_nonfinite(grad, None, False, bits, threads))
