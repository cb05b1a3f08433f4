"""The optimizers as objects, with torch's names and defaults: each says which step function it runs on which states."""

from typing import Any, Literal, Unpack

import numpy as np

from modelopt_rs._types import Array, Bf16, Semantics
from modelopt_rs.optim.adafactor import adafactor_step
from modelopt_rs.optim.muon import muon_step
from modelopt_rs.optim.optimizer import Common, Entry, Group, LearningRate, Optimizer, Params, learning_rate
from modelopt_rs.optim.state import BlockState

__all__ = [
    "LAMB",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
]


class SGD(Optimizer):
    """Gradient descent, with momentum: see `sgd_step`, and `Optimizer` for `params` and `common`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = np.array([1.0, -2.0], np.float32)
    >>> optimizer = mo.optim.SGD(w, lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     optimizer.step(w.copy())  # the gradient of w @ w / 2
    >>> w.round(3)
    array([ 0.72, -1.44], dtype=float32)
    """

    _function = "sgd_step"
    _numbers = ("momentum", "dampening")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if options["momentum"] != 0 else ()

    @staticmethod
    def _bits(options: Group) -> tuple[int, ...]:
        return (32, 8) if options["momentum"] != 0 else (32, 8, 4)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **common: Unpack[Common],
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov}, common)

    @classmethod
    def _check_options(cls, group: Group) -> None:
        if group["nesterov"] and not (group["momentum"] > 0 and group["dampening"] == 0):
            raise ValueError("SGD: nesterov must be False without momentum or with dampening, got True")
        super()._check_options(group)


class Adagrad(Optimizer):
    """Adagrad: see `adagrad_step`, and `Optimizer` for `params` and `common`.

    The sum of squares starts at `initial_accumulator_value`.
    """

    _function = "adagrad_step"
    _numbers = ("lr_decay", "eps")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("state_sum",)

    @staticmethod
    def _bits(options: Group) -> tuple[int, ...]:
        return (32, 8)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(params, options, common)

    @classmethod
    def new_state(cls, param: Array, options: Group) -> dict[str, Any]:
        """What a parameter starts with."""
        state = super().new_state(param, options)
        total = state["state_sum"]
        if (first := options["initial_accumulator_value"]) != 0:
            if isinstance(total, BlockState):
                full = np.full(param.shape, first, np.float32)
                state["state_sum"] = BlockState.from_array(full, coding=total.coding, signed=False)
            else:
                total.fill(first)
        return state


class RMSprop(Optimizer):
    """RMSprop: see `rmsprop_step`, and `Optimizer` for `params` and `common`."""

    _function = "rmsprop_step"
    _numbers = ("alpha", "eps", "momentum")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return (
            "square_avg",
            *(("momentum_buffer",) if options["momentum"] != 0 else ()),
            *(("grad_avg",) if options["centered"] else ()),
        )

    @staticmethod
    def _bits(options: Group) -> tuple[int, ...]:
        return (32,) if options["momentum"] != 0 or options["centered"] else (32, 8)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        }
        super().__init__(params, options, common)


class Adadelta(Optimizer):
    """Adadelta: see `adadelta_step`, and `Optimizer` for `params` and `common`."""

    _function = "adadelta_step"
    _numbers = ("rho", "eps")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        options = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, common)


class Adam(Optimizer):
    """Adam, or AMSGrad: see `adam_step`, and `Optimizer` for `params` and `common`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> params = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> optimizer = mo.optim.Adam(params, lr=mo.optim.schedule.cosine(0.1, 100))
    >>> optimizer.step({"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}, clip_norm=1.0)
    >>> params["b"].round(3)
    array([-0.1, -0.1], dtype=float32)
    """

    _function = "adam_step"
    _numbers = ("betas", "eps")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if options["amsgrad"] else ()))

    @staticmethod
    def _bits(options: Group) -> tuple[int, ...]:
        return (32,) if options["amsgrad"] else (32, 8, 4)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        semantics: Semantics = "torch",
        **common: Unpack[Common],
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "semantics": semantics,
        }
        super().__init__(params, options, common)


class AdamW(Optimizer):
    """AdamW, or AMSGrad with its decay: see `adamw_step`, and `Optimizer` for `params` and `common`."""

    _function = "adamw_step"
    _numbers = ("betas", "eps")
    _decoupled = True

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if options["amsgrad"] else ()))

    @staticmethod
    def _bits(options: Group) -> tuple[int, ...]:
        return (32,) if options["amsgrad"] else (32, 8, 4)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        semantics: Semantics = "torch",
        **common: Unpack[Common],
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "semantics": semantics,
        }
        super().__init__(params, options, common)


class NAdam(Optimizer):
    """NAdam: see `nadam_step`, and `Optimizer` for `params` and `common`."""

    _function = "nadam_step"
    _numbers = ("betas", "eps", "momentum_decay", "mu_product")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        **common: Unpack[Common],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
        super().__init__(params, options, common)


class RAdam(Optimizer):
    """RAdam: see `radam_step`, and `Optimizer` for `params` and `common`."""

    _function = "radam_step"
    _numbers = ("betas", "eps")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, common)


class Adamax(Optimizer):
    """Adamax: see `adamax_step`, and `Optimizer` for `params` and `common`."""

    _function = "adamax_step"
    _numbers = ("betas", "eps")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, common)


class Lion(Optimizer):
    """Lion: see `lion_step`, and `Optimizer` for `params` and `common`."""

    _function = "lion_step"
    _numbers = ("betas",)
    _decoupled = True

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("exp_avg",)

    @staticmethod
    def _bits(options: Group) -> tuple[int, ...]:
        return (32, 8)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, options, common)


class LAMB(Optimizer):
    """LAMB: see `lamb_step`, and `Optimizer` for `params` and `common`."""

    _function = "lamb_step"
    _numbers = ("betas", "eps")

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, common)


class _Whole(Optimizer):
    """An optimizer with a step function of its own, which looks at whole parameters: called for each batch."""

    @classmethod
    def _step_batch(
        cls, group: Group, step: int, arrays: tuple[list[Array], list[Array]], states: list[Group], how: Group
    ) -> None:
        raise NotImplementedError

    @classmethod
    def _check_options(cls, group: Group) -> None:
        cls._step_batch(group, 1, ([], []), [], {})

    @classmethod
    def _run(cls, batches: list[list[Entry]], how: Group, dtype: Bf16, threads: int | None) -> list[float]:
        for batch in batches:
            states = [entry.state for entry in batch]
            masters = [state.get("master") for state in states]
            more = {
                "dtype": dtype,
                "threads": threads,
                "master": masters if any(m is not None for m in masters) else None,
                **how,
            }
            arrays = ([entry.param for entry in batch], [entry.grad for entry in batch])
            cls._step_batch(batch[0].options, states[0]["step"] + 1, arrays, states, more)
        return [0.0] * len(batches)


class Adafactor(_Whole):
    """Adafactor: see `adafactor_step`, and `Optimizer` for `params` and `common`. Groups are checked one by one."""

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
        options = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}
        super().__init__(params, options, common)

    @classmethod
    def _state_shapes(cls, param: Array, options: Group) -> dict[str, tuple[int, ...]]:
        if param.ndim < 2:
            return {"variance": param.shape}
        return {"row_var": (*param.shape[:-1], 1), "col_var": (*param.shape[:-2], 1, param.shape[-1])}

    @classmethod
    def _step_batch(
        cls, group: Group, step: int, arrays: tuple[list[Array], list[Array]], states: list[Group], how: Group
    ) -> None:
        row_var, col_var, variance = ([s.get(name) for s in states] for name in ("row_var", "col_var", "variance"))
        options = {
            name: group[name] for name in ("beta2_decay", "eps", "d", "weight_decay", "maximize", "rounding_seed")
        }
        more = {"step": step, "lr": learning_rate(group, step), **how}
        adafactor_step(arrays[0], arrays[1], row_var, col_var, variance, **options, **more)


class Muon(_Whole):
    """Muon, for matrices: see `muon_step`, and `Optimizer` for `params` and `common`. Groups are checked one by one."""

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
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        newton_schulz = {"ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps}
        super().__init__(params, {**options, **newton_schulz, "adjust_lr_fn": adjust_lr_fn}, common)

    @staticmethod
    def _states(options: Group) -> tuple[str, ...]:
        return ("momentum_buffer",)

    @classmethod
    def _check_options(cls, group: Group) -> None:
        if group["rounding_seed"] is not None:
            raise ValueError(f"Muon: rounding_seed must be None, got {group['rounding_seed']!r}; use master=True")
        super()._check_options(group)

    @classmethod
    def _step_batch(
        cls, group: Group, step: int, arrays: tuple[list[Array], list[Array]], states: list[Group], how: Group
    ) -> None:
        own = ("weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn", "maximize")
        buffers = [s["momentum_buffer"] for s in states]
        more = {"lr": learning_rate(group, step), **how}
        muon_step(arrays[0], arrays[1], buffers, **{name: group[name] for name in own}, **more)
