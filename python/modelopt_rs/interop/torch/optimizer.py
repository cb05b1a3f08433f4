"""What the optimizers for torch have in common."""

from collections.abc import Callable, Mapping
from itertools import repeat
from operator import is_
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from modelopt_rs import _core, optim
from modelopt_rs._types import Coding
from modelopt_rs.deprecated import of_today, renamed
from modelopt_rs.interop.torch.plan import Entry, Plan
from modelopt_rs.interop.torch.tensors import (
    EXCHANGE,
    NUMBERS,
    NUMPY_NAMES,
    SMALLEST,
    TORCH_NAMES,
    array_of,
    axis_order,
    check_number,
    step_of,
    tensors_of,
)
from modelopt_rs.optim.options import Groups, How, Nonfinite
from modelopt_rs.optim.specification import COMMON, FORMER, PRECISION, refuse_unknown
from modelopt_rs.optim.state import FORMER_CODINGS, BlockState

__all__ = ["Common", "LearningRate", "Optimizer", "Params"]

Params: TypeAlias = Any
"""What torch takes: an iterable of tensors, of named tensors or of groups."""
LearningRate: TypeAlias = "float | torch.Tensor"

GLOBAL_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)


class Common(TypedDict, total=False):
    """What every optimizer takes as well, by keyword."""

    maximize: bool
    state_bits: Literal[32, 8, 4]
    coding: Coding
    state_min_size: int
    rounding_seed: int | None
    threads: int | None


COMMON_OPTIONS: dict[str, Any] = {**{k: v for k, v in COMMON.items() if k != "master"}, "threads": None}


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
    coding : {"minifloat", "dynamic"}
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

    From one step to the next the memory of parameters and states may be held as it was: what a parameter has left
    (``p.data = ...``) is freed by the next step. Tensors of at most 1,024 elements in the mean (C-contiguous,
    states not in blocks) are stepped with the GIL held.

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
    _plan: Plan | None = None
    stepped = False
    """Whether the last call of `step` has stepped anything."""

    def __init_subclass__(cls) -> None:
        """Take former names."""
        super().__init_subclass__()
        if "__init__" in vars(cls):
            cls.__init__ = renamed(FORMER)(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, params: Params, options: dict[str, Any], common: Common) -> None:
        refuse_unknown(self._name, common, [*options, *COMMON_OPTIONS])
        super().__init__(params, {**options, **COMMON_OPTIONS, **common})

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _names(self, group: dict[str, Any]) -> list[str]:
        """Torch's names of the states that these options need."""
        return [TORCH_NAMES.get(name, name) for name in self._algorithm.state_names(group)]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters: a dict with "params" and whatever options it has of its own."""
        param_group.update(of_today(self._name, param_group, {}, FORMER))
        self._algorithm.check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    # ------------------------------------------------------------------------------------------------ steps

    def step(self, closure: Callable[[], Any] | None = None, *, nonfinite: Nonfinite = "propagate") -> Any:
        """Step all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Called first, with gradients enabled: it computes them anew and returns the loss.
        nonfinite : {"propagate", "raise", "skip"}
            What to do where a gradient is NaN or infinite: step all the same, as torch; raise; or step nothing. Either
            leaves everything as it was.

        Returns
        -------
        object
            What `closure` returned. Whether there was a step says the attribute `stepped`.

        Raises
        ------
        TypeError, ValueError
            If a tensor is not on the CPU, sparse, not dense or of another dtype, or an option is out of its range. All
            groups are checked before the first write: then nothing was changed.
        """
        if torch.compiler.is_compiling():
            return self._eager_step(closure, nonfinite=nonfinite)
        # torch would wrap this method in its hooks and a mark for its profiler, which takes longer than a small step.
        # Where torch has wrapped it, or that of a subclass, all is done already.
        hooks = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks, *GLOBAL_HOOKS)
        is_marked = any(hooks) or torch.autograd._profiler_enabled()
        if is_marked and type(self).step is Optimizer.step:
            return self._marked_step(closure, nonfinite)
        return self._step(closure, nonfinite)

    step.hooked = True  # type: ignore[attr-defined]  # by which torch knows that it need not wrap it

    def _step(self, closure: Callable[[], Any] | None = None, nonfinite: Nonfinite = "propagate") -> Any:
        loss, self.stepped = None, False
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
            names = [self._names(group) for group in self.param_groups]
            how = (1.0 if scale is None else float(scale), None, nonfinite, None)
            plan = self._plan if self._plan is not None and self._plan.holds(stepped, self.state, names) else None
            # With the states that the first step has made the second may need no plan.
            is_open = plan is None or plan.is_first
            if is_open and self._step_at_once((groups, names), (stepped, grads, self.state), how):
                self._plan, self.stepped = None, True
            else:
                self.stepped = self._step_planned(plan or self._planned(names), groups, grads, how)
            if self.stepped:
                torch.autograd.graph.increment_version(stepped)
        return loss

    @torch._disable_dynamo  # type: ignore[untyped-decorator]
    def _eager_step(self, closure: Callable[[], Any] | None = None, **how: Any) -> Any:
        """Step out of what `torch.compile` compiles: it has no copy of what a plan holds of memory."""
        return self.step(closure, **how)

    _marked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _step_at_once(self, how_many: tuple[Any, Any], tensors: tuple[Any, Any, Any], how: How) -> bool:
        """Step without a plan, which costs a tenth for small tensors; False where something about one is special."""
        if EXCHANGE is None or how[2] != "propagate":
            return False
        function, threads = self._algorithm.specification.function, self.defaults["threads"]
        return _core.tensors_step(EXCHANGE, function, *how_many, tensors, how[0], threads)

    def _step_planned(self, plan: Plan, groups: Groups, grads: list[torch.Tensor], how: How) -> bool:
        tensors = (plan.arrays, plan.gradients(grads), plan.states_as_arrays, None)
        first = plan.states_as_arrays[0]
        before = first["step"]
        try:
            if not self._algorithm.launch(groups, tensors, how, None, self.defaults["threads"]):
                return False
            self._finish(plan)
        except KeyboardInterrupt:
            # It is raised when the kernel has returned: all was stepped, and what goes with it is done now.
            if first["step"] != before:
                self._finish(plan)
            raise
        return True

    def _finish(self, plan: Plan) -> None:
        """Take over the states of a plan that was stepped, and their numbers."""
        plan.is_first = plan is not self._plan and any(p not in self.state for p in plan.params)
        if plan is not self._plan:
            self._plan = plan
            self.state.update(zip(plan.params, plan.states, strict=True))
        plan.count()

    def _planned(self, names: list[list[str]]) -> Plan:
        """A plan of a step; states are the optimizer's after it."""
        entries = []
        for group, own_names in zip(self.param_groups, names, strict=True):
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    entries.append(self._entry(f"{self._name}.step: params[{i}]", p, group, own_names))
        return Plan(entries, names)

    def _entry(self, where: str, p: torch.Tensor, options: dict[str, Any], names: list[str]) -> Entry:
        order = axis_order(where, p)
        param = array_of(where, p, order)
        state = self.state.get(p, {})
        missing = lacking(state, ["step", *names])
        if missing == ["step", *names] or begins(state, names):
            state = tensors_of(self._algorithm.new_state(param, state_options(options, order)), order)
        elif missing:
            raise ValueError(f"{where} must have {missing[0]!r} in its state, got {', '.join(state)}")
        for name in NUMBERS.keys() & state.keys():
            check_number(f"{where} must have a tensor of one number for {name!r} in its state", state[name])
        return Entry(where, p, state, order, param, self._arrays(where, state, order, param.shape))

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
            for group, mine, precision in zip(groups, self.param_groups, own, strict=False):
                group.update(precision)
                self._algorithm.check(group)
                for place, p in zip(group["params"], mine["params"], strict=False):
                    state = {k: v for k, v in given["state"].get(place, {}).items() if v is not None}
                    if state and not begins(state, self._names(group)):
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
        order = axis_order(f"{self._name}.load_state_dict: parameter {place}", p)
        param = array_of(f"{self._name}.load_state_dict: parameter {place}", p, order)
        # torch's SGD doesn't count; a buffer says that there was a step.
        given = {"step": float("momentum_buffer" in given), **given}
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        cast = {k: v.to(wide) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
        arrays = self._arrays(f"{self._name}.load_state_dict: parameter {place}", cast, order, param.shape)
        return tensors_of(self._algorithm.taken(where, param, state_options(group, order), arrays), order)

    def _arrays(self, where: str, state: Mapping[str, Any], order: list[int], shape: tuple[int, ...]) -> dict[str, Any]:
        """A state in the names and forms of `modelopt_rs.optim`, of the same memory."""
        made: dict[str, Any] = {"step": step_of(where, state["step"])}
        if "mu_product" in state:
            # torch's own has become 0 in float32 after some hundreds of steps, which the kernel refuses.
            made["mu_product"] = max(float(state["mu_product"]), SMALLEST)
        for key, x in state.items():
            name, _, part = key.partition(".")
            if part == "codes":
                if order != sorted(order):
                    raise ValueError(
                        f"{where} must be C-contiguous, for its state is in blocks, got its axes in the order {order}"
                    )
                codes, absmax, coding = x.numpy(), state[f"{name}.absmax"].numpy(), state[f"{name}.coding"]
                coding = FORMER_CODINGS.get(coding, coding)
                name = NUMPY_NAMES.get(name, name)
                made[name] = BlockState(codes, absmax, shape, coding=coding, signed=self._algorithm.is_signed(name))
            elif not part and key not in made and isinstance(x, torch.Tensor):
                made[NUMPY_NAMES.get(key, key)] = array_of(
                    where, x, order if x.dim() == len(order) else [], f" state {key!r}"
                )
        return made


def state_options(options: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """How the states of a parameter are kept: blocks are in C order and couldn't follow it to another."""
    return options if order == sorted(order) else {**options, "state_bits": 32}


def lacking(state: Mapping[str, Any], names: list[str]) -> list[str]:
    """Which of these there are neither as numbers nor in blocks."""
    return [key for key in names if key not in state and f"{key}.codes" not in state]


def begins(state: Mapping[str, Any], names: list[str]) -> bool:
    """Whether it has none: SGD's momentum may be turned on later, and begins with the gradient, as in torch."""
    return bool(names) and len(lacking(state, names)) == len(names)
