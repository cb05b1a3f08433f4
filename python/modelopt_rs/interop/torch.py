"""The optimizers of `modelopt_rs.optim` as `torch.optim.Optimizer`, for tensors on the CPU.

They take the place of torch's: learning-rate schedulers, closures, hooks, `torch.amp.GradScaler` and parameter groups
work, and a `state_dict` can be loaded by torch's optimizer of the same name and the reverse. Tensors are stepped where
they are, without a copy.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from operator import is_
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from modelopt_rs import _core, optim
from modelopt_rs._types import Array, Coding
from modelopt_rs.optim.specification import COMMON, PRECISION, own
from modelopt_rs.optim.state import BlockState

__all__ = [
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Common",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
]

Params: TypeAlias = Any
"""What torch takes: an iterable of tensors, of named tensors or of groups."""
LearningRate: TypeAlias = "float | torch.Tensor"

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_BF16 = np.dtype((type("bfloat", (np.void,), {}), 2))
"""Two bytes by the name bfloat16, by which the kernels know it: NumPy has none, and ml_dtypes may be absent."""
_TORCH = {"state_sum": "sum"}
"""States that have another name in torch."""
_NUMBERS = {"step": torch.float32, "mu_product": torch.float64}
_SMALLEST = 5e-324
_GLOBAL_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
_NUMPY = {torchs: ours for ours, torchs in _TORCH.items()}


class Common(TypedDict, total=False):
    """What every optimizer takes as well, by keyword."""

    maximize: bool
    state_bits: Literal[32, 8, 4]
    coding: Coding
    state_min_size: int
    rounding_seed: int | None
    threads: int | None


_COMMON: dict[str, Any] = {**{k: v for k, v in COMMON.items() if k != "master"}, "threads": None}


class _Entry(NamedTuple):
    """A parameter, its state, and both as arrays of the same memory."""

    where: str
    param: torch.Tensor
    state: dict[str, Any]
    order: list[int]
    array: Array
    arrays: dict[str, Any]


def _exchange() -> _core.TensorExchange | None:
    try:
        return _core.TensorExchange(torch.Tensor, _BF16)
    except ValueError:  # a torch before 2.10
        return None


_EXCHANGE = _exchange()


def _layout(tensors: list[torch.Tensor]) -> Any:
    """Where tensors lie, and how: something to compare."""
    found = None if _EXCHANGE is None else _EXCHANGE.layouts(tensors)
    return found or [(x.data_ptr(), x.shape, x.stride(), x.dtype) for x in tensors]


class _Plan:
    """The parameters of a step with their states as arrays, which the next step takes as long as nothing has moved.

    The arrays keep the memory alive, so that no other tensor can come to lie where one lay.
    """

    def __init__(self, entries: list[_Entry], names: list[tuple[str, ...]]) -> None:
        self.params = [e.param for e in entries]
        self.states = [e.state for e in entries]
        self.names = names
        self.arrays = [e.array for e in entries]
        self.states_as_arrays = [e.arrays for e in entries]
        self._keys = list(chain.from_iterable(self.states))
        self._values = list(chain.from_iterable(map(dict.values, self.states)))
        self._all = [*self.params, *(x for x in self._values if isinstance(x, torch.Tensor))]
        self._layout = _layout(self._all)
        numbered = [(e, name) for name in _NUMBERS for e in entries if name in e.state]
        self._numbers = [(e.arrays, name, e.state[name].numpy()) for e, name in numbered]
        self._lie = [(e.where, e.order) for e in entries]
        self._in_order = all(e.order == sorted(e.order) for e in entries)

    def holds(self, params: list[torch.Tensor], states: Mapping[torch.Tensor, Any], names: list[Any]) -> bool:
        """Whether these are the same tensors where they were, and their numbers those that the last step has left."""
        if len(params) != len(self.params) or names != self.names or not all(map(is_, params, self.params)):
            return False
        own_states: list[Any] = list(map(states.get, params))
        if not all(map(is_, own_states, self.states)) or list(chain.from_iterable(own_states)) != self._keys:
            return False
        if not all(map(is_, chain.from_iterable(map(dict.values, own_states)), self._values)):
            return False
        try:
            if _layout(self._all) != self._layout:
                return False
        except RuntimeError:  # it has no memory any more
            return False
        return all(view.item() == arrays[name] for arrays, name, view in self._numbers)

    def gradients(self, grads: list[torch.Tensor]) -> Sequence[Array | None]:
        """As arrays, in the order of axes of their parameters."""
        arrays = None if _EXCHANGE is None else _EXCHANGE.arrays(grads)
        if arrays is None:
            resolved = [g.resolve_neg() if g.layout == torch.strided else g for g in grads]
            return [_array(where, g, order, ".grad") for g, (where, order) in zip(resolved, self._lie, strict=True)]
        if self._in_order:
            return arrays
        return [a.transpose(order) if a.ndim > 1 else a for a, (_, order) in zip(arrays, self._lie, strict=True)]

    def count(self) -> None:
        """Bring the numbers of the states to torch's tensors."""
        for arrays, name, view in self._numbers:
            view[()] = arrays[name]
            # The kernel refuses 0.
            if name == "mu_product" and arrays[name] == 0:
                arrays[name] = _SMALLEST


class Optimizer(torch.optim.Optimizer):
    """What all have in common. Use a subclass; for torch's own arguments see its optimizer of the same name.

    Not taken are torch's `foreach`, `fused`, `capturable` and `differentiable`.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        float32, float64, float16 or bfloat16, on the CPU, dense (C-contiguous, or so after a permutation of the axes,
        as in ``channels_last``). Gradients may have any strides.
    maximize : bool
        Ascend instead of descend.
    state_bits : {32, 8, 4}
        Bits of a state's element: float32 (float64 for float64 parameters), or codes in blocks, for the same algorithms
        as in `modelopt_rs.optim.Optimizer`. Only of C-contiguous parameters; others keep float32 states.
    coding : {"float8", "dynamic"}
        How 8 bits are coded, see `modelopt_rs.optim.BlockState`.
    state_min_size : int
        Parameters of fewer elements keep float32 states.
    rounding_seed : int, optional
        Round parameters in 16 bits by chance with this seed instead of to nearest.
    threads : int, optional
        Threads of a step, of all groups; never changes a result.

    Notes
    -----
    `state` is torch's: by parameter "step" and tensors by torch's names. A state in blocks is three entries,
    ``"exp_avg.codes"``, ``"exp_avg.absmax"`` and ``"exp_avg.coding"``; to hand it to torch, load it first into one
    from here with ``state_bits=32``. States of parameters in 16 bits are float32; torch rounds them when it loads
    them.

    With a `GradScaler` gradients are divided by the scale on the way, and stay scaled.

    From one step to the next the memory of parameters and states is held as it was: what a parameter has left
    (``p.data = ...``) is freed by the next step.

    Examples
    --------
    >>> import torch
    >>> from modelopt_rs.interop.torch import AdamW
    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = AdamW([w], lr=0.1)
    >>> (w @ w / 2).backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([ 0.8990, -1.8980])
    """

    _algorithm: ClassVar[type[optim.Optimizer]]
    _step_supports_amp_scaling = True
    _plan: _Plan | None = None

    def __init__(self, params: Params, options: dict[str, Any], common: Common) -> None:
        if unknown := set(common) - set(_COMMON):
            raise TypeError(f"{self._name}: unknown option {sorted(unknown)[0]!r}")
        super().__init__(params, {**options, **_COMMON, **common})

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters: a dict with "params" and whatever options it has of its own."""
        self._algorithm.check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    # ------------------------------------------------------------------------------------------------ steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Called first, with gradients enabled: it computes them anew and returns the loss.

        Returns
        -------
        object
            What `closure` returned.

        Raises
        ------
        TypeError, ValueError
            If a tensor is not on the CPU, sparse, not dense or of another dtype, or an option is out of its range. All
            groups are checked before the first write: then nothing was changed.
        """
        # torch would wrap this method in its hooks and a mark for its profiler, which takes longer than a small step.
        # Where torch has wrapped it, or that of a subclass, all is done already.
        hooks = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks, *_GLOBAL_HOOKS)
        is_marked = any(hooks) or torch.autograd._profiler_enabled()
        if is_marked and type(self).step is Optimizer.step:
            return self._marked_step(closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # by which torch knows that it need not wrap it

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # GradScaler sets both.
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return loss
        groups, stepped, grads = [], [], []
        for group in self.param_groups:
            params = group["params"]
            own_grads = [p.grad for p in params]
            if any(map(is_, own_grads, repeat(None))):
                params = [p for p, grad in zip(params, own_grads, strict=True) if grad is not None]
                own_grads = [grad for grad in own_grads if grad is not None]
            stepped += params
            grads += own_grads
            groups.append((group, len(params)))
        if stepped:
            plan = self._planned(stepped)
            given = plan.gradients(grads)
            how = (1.0 if scale is None else float(scale), None, False)
            self._algorithm.launch(
                groups, (plan.arrays, given, plan.states_as_arrays), how, None, self.defaults["threads"]
            )
            if plan is not self._plan:
                self.state.update(zip(plan.params, plan.states, strict=True))
                self._plan = plan
            plan.count()
            torch.autograd.graph.increment_version(stepped)
        return loss

    _marked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _planned(self, stepped: list[torch.Tensor]) -> _Plan:
        """The plan of the last step, or another if anything has changed; states are the optimizer's after the step."""
        names = [self._algorithm.state_names(group) for group in self.param_groups]
        if self._plan is not None and self._plan.holds(stepped, self.state, names):
            return self._plan
        entries = []
        for group, own_names in zip(self.param_groups, names, strict=True):
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    where = f"{self._name}.step: params[{i}]"
                    entries.append(self._entry(where, p, group, [_TORCH.get(name, name) for name in own_names]))
        return _Plan(entries, names)

    def _entry(self, where: str, p: torch.Tensor, options: dict[str, Any], names: list[str]) -> _Entry:
        order = _order(where, p)
        param = _array(where, p, order)
        state = self.state.get(p, {})
        missing = [key for key in names if key not in state and f"{key}.codes" not in state]
        # SGD's momentum may be turned on later; torch then begins with the gradient, as in a first step.
        if "step" not in state or (names and len(missing) == len(names)):
            state = _tensors(self._algorithm.new_state(param, _kept(options, order)), order)
        elif missing:
            raise ValueError(f"{where} must have {missing[0]!r} in its state, got {', '.join(state)}")
        return _Entry(where, p, state, order, param, self._arrays(where, state, order, param.shape))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy states and options from a `state_dict`, of this optimizer or of torch's of the same name.

        How this optimizer keeps its states (`state_bits`, `coding`, `state_min_size`) stays; what is kept otherwise in
        `state_dict` is coded or decoded.

        Raises
        ------
        ValueError
            If groups, parameters, names or shapes are others, or an option is out of its range; then nothing was
            changed.
        """
        # torch would cast each state to the dtype of its parameter: it is given none, between the hooks of others.
        states: dict[torch.Tensor, dict[str, Any]] = {}
        own = [{name: group[name] for name in PRECISION & group.keys()} for group in self.param_groups]

        def take(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            groups = [{**self.defaults, **group} for group in given["param_groups"]]
            # Where the numbers of groups or parameters are others, torch raises.
            for group, mine, kept in zip(groups, self.param_groups, own, strict=False):
                group.update(kept)
                self._algorithm.check(group)
                for place, p in zip(group["params"], mine["params"], strict=False):
                    if state := {k: v for k, v in given["state"].get(place, {}).items() if v is not None}:
                        states[p] = self._taken(place, p, group, state)
            return {"state": {}, "param_groups": groups}

        def put(_: Any) -> None:
            self.state.update(states)

        hooks = [
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(put, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _taken(self, place: int, p: torch.Tensor, group: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        where = f"{self._name}.load_state_dict: state_dict must have {{}} for parameter {place}"
        order = _order(f"{self._name}.load_state_dict: parameter {place}", p)
        param = _array(f"{self._name}.load_state_dict: parameter {place}", p, order)
        # torch's SGD doesn't count; a buffer says that there was a step.
        given = {"step": float("momentum_buffer" in given), **given}
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        cast = {k: v.to(wide) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
        arrays = self._arrays(f"{self._name}.load_state_dict: parameter {place}", cast, order, param.shape)
        return _tensors(self._algorithm.taken(where, param, _kept(group, order), arrays), order)

    def _arrays(self, where: str, state: Mapping[str, Any], order: list[int], shape: tuple[int, ...]) -> dict[str, Any]:
        """A state in the names and forms of `modelopt_rs.optim`, of the same memory."""
        made: dict[str, Any] = {"step": int(state["step"])}
        if "mu_product" in state:
            # torch's own has become 0 in float32 after some hundreds of steps, which the kernel refuses.
            made["mu_product"] = max(float(state["mu_product"]), _SMALLEST)
        for key, x in state.items():
            name, _, part = key.partition(".")
            if part == "codes":
                if order != sorted(order):
                    raise ValueError(
                        f"{where} must be C-contiguous, for its state is in blocks, got its axes in the order {order}"
                    )
                codes, absmax, coding = x.numpy(), state[f"{name}.absmax"].numpy(), state[f"{name}.coding"]
                name = _NUMPY.get(name, name)
                made[name] = BlockState(codes, absmax, shape, coding=coding, signed=self._algorithm.is_signed(name))
            elif not part and key not in made and isinstance(x, torch.Tensor):
                made[_NUMPY.get(key, key)] = _array(where, x, order if x.dim() == len(order) else [], f" state {key!r}")
        return made


def _kept(options: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """How the states of a parameter are kept: blocks are in C order and couldn't follow it to another."""
    return options if order == sorted(order) else {**options, "state_bits": 32}


def _order(where: str, p: torch.Tensor) -> list[int]:
    """The order of a parameter's axes in which it is C-contiguous: element by element, the order doesn't matter."""
    if p.layout != torch.strided or p.is_contiguous():
        return list(range(p.dim()))
    order = sorted(range(p.dim()), key=p.stride, reverse=True)
    if not p.permute(order).is_contiguous():
        got = f"shape {tuple(p.shape)} with strides {p.stride()}"
        raise ValueError(f"{where} must be dense, got {got}; use p.data = p.data.contiguous()")
    return order


def _array(where: str, x: torch.Tensor, order: list[int], part: str = "") -> Array:
    """A tensor's memory, its axes in this order."""
    if x.device.type != "cpu" or x.layout != torch.strided or x.dtype not in _FLOATS:
        got = f"{x.dtype} ({x.layout}, {x.device})"
        raise TypeError(
            f"{where}{part} must be a dense tensor of float32, float64, float16 or bfloat16 on the CPU, got {got}"
        )
    x = x.detach() if x.requires_grad else x
    array: Array = x.view(torch.uint16).numpy().view(_BF16) if x.dtype == torch.bfloat16 else x.numpy()
    return array if len(order) < 2 else array.transpose(order)


def _tensors(state: Mapping[str, Any], order: list[int]) -> dict[str, Any]:
    """A state in torch's names and forms."""
    # The product in float64, which torch takes as well: float32 would not go on bit for bit.
    made: dict[str, Any] = {
        name: torch.tensor(float(state[name]), dtype=dtype) for name, dtype in _NUMBERS.items() if name in state
    }
    back = np.argsort(order).tolist()
    for name, x in state.items():
        key = _TORCH.get(name, name)
        if isinstance(x, BlockState):
            made[f"{key}.codes"], made[f"{key}.absmax"] = torch.from_numpy(x.codes), torch.from_numpy(x.absmax)
            made[f"{key}.coding"] = x.coding
        elif isinstance(x, np.ndarray):
            made[key] = torch.from_numpy(x.transpose(back))
    return made


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
