"""The optimizers as objects, with torch's names and defaults: each says which step function it runs on which states."""

from typing import Any, Unpack

from modelopt_rs._types import Semantics
from modelopt_rs.optim.optimizer import Common, LearningRate, Optimizer, Params

__all__ = ["LAMB", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop"]


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
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if options["momentum"] != 0 else ()

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


class Adagrad(Optimizer):
    """Adagrad: see `adagrad_step`, and `Optimizer` for `params` and `common`.

    The sum of squares starts at `initial_accumulator_value`.
    """

    _function = "adagrad_step"
    _numbers = (
        "lr_decay",
        "eps",
    )

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
        return ("state_sum",)

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


class RMSprop(Optimizer):
    """RMSprop: see `rmsprop_step`, and `Optimizer` for `params` and `common`."""

    _function = "rmsprop_step"
    _numbers = (
        "alpha",
        "eps",
        "momentum",
    )

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
        return (
            "square_avg",
            *(("momentum_buffer",) if options["momentum"] != 0 else ()),
            *(("grad_avg",) if options["centered"] else ()),
        )

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
    _numbers = (
        "rho",
        "eps",
    )

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
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
    _numbers = (
        "betas",
        "eps",
    )

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if options["amsgrad"] else ()))

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
    _numbers = (
        "betas",
        "eps",
    )
    _decoupled = True

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if options["amsgrad"] else ()))

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
    _numbers = (
        "betas",
        "eps",
        "momentum_decay",
        "mu_product",
    )

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
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
    _numbers = (
        "betas",
        "eps",
    )

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
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
    _numbers = (
        "betas",
        "eps",
    )

    @staticmethod
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
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
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

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
    def _states(options: dict[str, Any]) -> tuple[str, ...]:
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
