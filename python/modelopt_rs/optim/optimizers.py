"""The optimizers as objects, with torch's names and defaults: each says which step function it runs on which states."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from modelopt_rs._types import Array, Semantics
from modelopt_rs.arguments import check_number
from modelopt_rs.optim.optimizer import Optimizer
from modelopt_rs.optim.options import Common, Group, LearningRate, Params
from modelopt_rs.optim.specification import Specification, own
from modelopt_rs.optim.state import BlockState

__all__ = [
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
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
    ...     _ = optimizer.step(w.copy())  # the gradient of w @ w / 2
    >>> w.round(3)
    array([ 0.72, -1.44], dtype=float32)
    """

    specification = Specification.of("sgd_step")

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
        super().__init__(params, own(locals()), common)

    @classmethod
    def _check_options(cls, group: Group) -> None:
        if group["nesterov"] and not (group["momentum"] > 0 and group["dampening"] == 0):
            raise ValueError("SGD: nesterov must be False without momentum or with dampening, got True")
        super()._check_options(group)


class Adagrad(Optimizer):
    """Adagrad: see `adagrad_step`, and `Optimizer` for `params` and `common`.

    The sum of squares starts at `initial_accumulator_value`.
    """

    specification = Specification.of("adagrad_step")

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
        super().__init__(params, own(locals()), common)

    @classmethod
    def new_state(cls, param: Array, options: Group) -> dict[str, Any]:
        """What a parameter starts with."""
        state = super().new_state(param, options)
        total = state["state_sum"]
        check_number("Adagrad", "initial_accumulator_value", options["initial_accumulator_value"])
        if (first := options["initial_accumulator_value"]) != 0:
            if isinstance(total, BlockState):
                full = np.full(param.shape, first, np.float32)
                state["state_sum"] = BlockState.from_array(full, coding=total.coding, signed=False)
            else:
                total.fill(first)
        return state


class RMSprop(Optimizer):
    """RMSprop: see `rmsprop_step`, and `Optimizer` for `params` and `common`."""

    specification = Specification.of("rmsprop_step")

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
        super().__init__(params, own(locals()), common)


class Adadelta(Optimizer):
    """Adadelta: see `adadelta_step`, and `Optimizer` for `params` and `common`."""

    specification = Specification.of("adadelta_step")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class Adam(Optimizer):
    """Adam, or AMSGrad: see `adam_step`, and `Optimizer` for `params` and `common`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> params = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> optimizer = mo.optim.Adam(params, lr=mo.optim.schedule.cosine(0.1, 100))
    >>> _ = optimizer.step({"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}, clip_norm=1.0)
    >>> params["b"].round(3)
    array([-0.1, -0.1], dtype=float32)
    """

    specification = Specification.of("adam_step")

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
        super().__init__(params, own(locals()), common)


class AdamW(Optimizer):
    """AdamW, or AMSGrad with its decay: see `adamw_step`, and `Optimizer` for `params` and `common`."""

    specification = Specification.of("adamw_step")

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
        super().__init__(params, own(locals()), common)


class NAdam(Optimizer):
    """NAdam: see `nadam_step`, and `Optimizer` for `params` and `common`."""

    specification = Specification.of("nadam_step")

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
        super().__init__(params, own(locals()), common)


class RAdam(Optimizer):
    """RAdam: see `radam_step`, and `Optimizer` for `params` and `common`."""

    specification = Specification.of("radam_step")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class Adamax(Optimizer):
    """Adamax: see `adamax_step`, and `Optimizer` for `params` and `common`."""

    specification = Specification.of("adamax_step")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class Lion(Optimizer):
    """Lion: see `lion_step`, and `Optimizer` for `params` and `common`."""

    specification = Specification.of("lion_step")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class LAMB(Optimizer):
    """LAMB: see `lamb_step`, and `Optimizer` for `params` and `common`."""

    takes_masks = False
    specification = Specification.of("lamb_step")

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)
