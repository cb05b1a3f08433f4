"""The optimizers of `modelopt_rs.optim` for torch, with torch's names and defaults."""

from __future__ import annotations

import inspect
from typing import Any, Unpack

from modelopt_rs import optim
from modelopt_rs.interop.torch.optimizer import Common, LearningRate, Optimizer, Params
from modelopt_rs.optim.derived import own_options
from modelopt_rs.optim.specification import own

__all__ = ["LAMB", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop"]


class SGD(Optimizer):
    """Gradient descent, with momentum, as `torch.optim.SGD`: see `Optimizer` for `params` and `common`.

    Momentum that is turned on later begins with the gradient, as in a first step. torch doesn't count SGD's steps: the
    "step" of a state is ignored by it and, where it comes from there, too small. Only `rounding_seed` looks at it.
    """

    _algorithm = optim.SGD

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


class Adagrad(Optimizer):
    """Adagrad, as `torch.optim.Adagrad`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.Adagrad

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


class RMSprop(Optimizer):
    """RMSprop, as `torch.optim.RMSprop`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.RMSprop

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
    """Adadelta, as `torch.optim.Adadelta`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.Adadelta

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
    """Adam, or AMSGrad, as `torch.optim.Adam`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.Adam

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class AdamW(Optimizer):
    """AdamW, or AMSGrad with its decay, as `torch.optim.AdamW`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.AdamW

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class NAdam(Optimizer):
    """NAdam, as `torch.optim.NAdam`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.NAdam

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class RAdam(Optimizer):
    """RAdam, as `torch.optim.RAdam`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.RAdam

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), common)


class Adamax(Optimizer):
    """Adamax, as `torch.optim.Adamax`: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.Adamax

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
    """Lion, which torch doesn't have: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.Lion

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
    """LAMB, which torch doesn't have: see `Optimizer` for `params` and `common`."""

    _algorithm = optim.LAMB

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


def derived(algorithm: type[optim.Optimizer]) -> type[Optimizer]:
    """Make of a class of `modelopt_rs.optim` that for torch: where nobody has written it out.

    Examples
    --------
    >>> import torch
    >>> from modelopt_rs import optim
    >>> from modelopt_rs.interop.torch.optimizers import derived
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> w.grad = torch.tensor([2.0])
    >>> derived(optim.Lion)([w], lr=0.25).step()
    >>> w.item()
    0.75
    """
    options = [p for p in own_options(algorithm) if p.name != "semantics"]
    signature = inspect.Signature([inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD), *options])

    def __init__(self: Optimizer, params: Params, *args: Any, **given: Any) -> None:
        common: Any = {name: given.pop(name) for name in given.keys() - signature.parameters.keys()}
        bound = signature.bind(params, *args, **given)
        bound.apply_defaults()
        Optimizer.__init__(self, bound.arguments.pop("params"), bound.arguments, common)

    name = algorithm.__name__
    made = type(name, (Optimizer,), {"_algorithm": algorithm, "__init__": __init__})
    made.__doc__ = f"{name}: see `modelopt_rs.optim.{name}`, and `Optimizer` for `params` and what all take."
    made.__signature__ = signature  # type: ignore[attr-defined]
    return made


for _name in optim.optimizers.__all__:
    if _name not in __all__:
        globals()[_name] = derived(getattr(optim, _name))
        __all__.append(_name)
