"""Parameters together with their states: what every optimizer object does. Its algorithms stand in `optimizers.py`."""

import inspect
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Coding
from modelopt_rs.arguments import check_choice, check_number
from modelopt_rs.deprecated import of_today, renamed
from modelopt_rs.optim.accumulated import Accumulated
from modelopt_rs.optim.arrays import as_arrays, by_precision, copied, wide_copy, wide_dtype
from modelopt_rs.optim.average import ema_call
from modelopt_rs.optim.clipping import check_limits, clipped
from modelopt_rs.optim.given import aligned, learning_rates, loaded, named_params, numbered, whole
from modelopt_rs.optim.options import Common, Grads, Group, Groups, How, Nonfinite, Params, StepTensors
from modelopt_rs.optim.result import StepResult
from modelopt_rs.optim.specification import COMMON, FORMER, Specification, check_common, refuse_unknown
from modelopt_rs.optim.state import take_state, zeros_of

__all__ = ["Optimizer"]


class Optimizer:
    """Parameters, grouped, with their states. Parameters are written in place; gradients never are.

    Use one of its subclasses: `SGD`, `Adagrad`, `RMSprop`, `Adadelta`, `Adam`, `AdamW`, `NAdam`, `RAdam`, `Adamax`,
    `Lion`, `LAMB`, `Adafactor`, `Muon`.

    Parameters
    ----------
    params : ndarray, list or dict of ndarray, or list of dict
        What `step` writes: float32, float64, float16 or bfloat16. A list of dicts is parameter groups, as in torch:
        each has "params" (an array, a list or a dict) and whatever options it has of its own.
    maximize : bool
        Ascend instead of descend.
    state_bits : {32, 8, 4}
        Bits of a state's element: float32 (float64 for float64 parameters), or codes in blocks (`BlockState`): 8 for
        SGD with momentum, Adagrad, RMSprop (without momentum, not centered), Adam, AdamW and Lion, 4 for Adam and
        AdamW.
    coding : {"minifloat", "dynamic"}
        How 8 bits are coded, see `BlockState`.
    state_min_size : int
        Parameters of fewer elements keep float32 states (biases and norms: small, and easily harmed).
    master : bool
        Keep float32 copies of parameters in 16 bits; the copies are stepped.
    rounding_seed : int, optional
        Round parameters in 16 bits by chance with this seed instead of to nearest.
    ema_decay : float, optional
        Keep an exponential moving average of each parameter (of its float32 copy, where it has one) in `averages`, of
        which this much stays in each step, from 0 to below 1: see `ema_step`.
    dtype : "bf16", optional
        Read uint16 parameters and gradients as bfloat16 bits.
    threads : int, optional
        Threads of all calls; never changes a result.

    Attributes
    ----------
    param_groups : list of dict
        The options of each group, which may be changed between steps, and under "params" its arrays.
    state : list of dict
        For each parameter in order: "step" (how many it has had, which corrects its means) and its states by name.
    steps : int
        How many steps were made, whichever parameters had a gradient: a learning rate given as a schedule goes by it.
    threads : int or None
        As given.
    specification : Specification
        Of the class: its step function, numbers and states.
    """

    specification: ClassVar[Specification]
    takes_masks: ClassVar[bool] = True
    """Whether a step may be told which weights stay zero."""

    def __init_subclass__(cls) -> None:
        """Show the options that all have in the signatures of classes, as `help` prints them; take former names."""
        super().__init_subclass__()
        if "__init__" in vars(cls):
            cls.__init__ = renamed(FORMER)(cls.__init__)  # type: ignore[method-assign]
        shown = inspect.signature(cls.__init__)
        own = [p for p in shown.parameters.values() if p.name != "self" and p.kind is not p.VAR_KEYWORD]
        if len(own) < len(shown.parameters) - 1:
            common = {**COMMON, **dict.fromkeys(("ema_decay", "dtype", "threads"))}
            own += [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v) for k, v in common.items()]
        cls.__signature__ = shown.replace(parameters=own, return_annotation=shown.empty)  # type: ignore[attr-defined]

    @classmethod
    def state_names(cls, options: Group) -> tuple[str, ...]:
        """Name the states that these options need."""
        return cls.specification.names(options)

    @classmethod
    def is_signed(cls, state: str) -> bool:
        """Whether a state can be negative."""
        return cls.specification.signed(state)

    @classmethod
    def _bits(cls, options: Group) -> tuple[int, ...]:
        """What `state_bits` may be with these options."""
        return cls.specification.bits(options)

    def __init__(self, params: Params, own: Group, common: Common) -> None:
        given: Group = dict(common)
        self._dtype: Bf16 = given.pop("dtype", None)
        check_choice(self._name, "dtype", self._dtype, (None, "bf16"))
        self.threads: int | None = given.pop("threads", None)
        self._ema_decay: float | None = given.pop("ema_decay", None)
        refuse_unknown(self._name, given, [*own, *COMMON, "ema_decay", "dtype", "threads"])
        self._defaults: Group = {**own, **COMMON, **given}
        self.param_groups: list[Group] = []
        self._params: list[Array] = []
        self._names: list[str] = []
        self._groups: Groups = []
        self._single = hasattr(params, "__dlpack__")
        for group in self._grouped(params):
            self._add(group)
        self.state: list[dict[str, Any]] = [self.new_state(p, g) for p, g in self._with_groups()]
        if (decay := self._ema_decay) is not None:
            check_number(self._name, "ema_decay", decay)
            if not 0 <= decay < 1:
                raise ValueError(f"{self._name}: ema_decay must be from 0 to below 1, got {decay!r}")
        self.steps, self._accumulated = 0, Accumulated(self._params)
        self._averages = self._weights(copy=True) if self._ema_decay is not None else []

    def __repr__(self) -> str:
        """Say what is stepped and how far it is; `param_groups` have all options."""
        return f"{self._name}({len(self._params):,} params, steps={self.steps:,}, lr={self.rates})"

    @property
    def params(self) -> dict[str, Array]:
        """The parameters in order, by name; those without one by their place."""
        return dict(zip(self._names, self._params, strict=True))

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each group in the next step."""
        return learning_rates(self.param_groups, self.steps + 1)

    @property
    def averages(self) -> dict[str, Array]:
        """The moving averages of the parameters by name, float32 (or float64); empty without `ema_decay`."""
        return dict(zip(self._names, self._averages, strict=False))

    def _weights(self, copy: bool = False) -> list[Array]:
        """The parameters, or their wide copies where they have some."""
        held = [state.get("master", p) for state, p in zip(self.state, self._params, strict=True)]
        return [wide_copy(w) for w in held] if copy else held

    @classmethod
    def check(cls, options: Group) -> None:
        """Refuse now what the first step would refuse."""
        cls._check_precision(options)
        cls._check_options(options)

    @classmethod
    def _check_options(cls, group: Group) -> None:
        _core.check_options(cls.specification.function, group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _algorithm(self) -> str:
        """The name of the algorithm in files."""
        return type(self).__name__

    def _grouped(self, params: Params) -> list[Group]:
        if isinstance(params, list | tuple) and params and all(isinstance(group, dict) for group in params):
            return list(params)
        return [{"params": params}]

    def _add(self, group: Group) -> None:
        named = named_params(self._name, group.get("params"), len(self._params))
        options = of_today(self._name, {k: v for k, v in group.items() if k != "params"}, {}, FORMER)
        refuse_unknown(self._name, options, self._defaults, " in a parameter group")
        full: Group = {"params": [p for _, p in named], **self._defaults, **options}
        self.check(full)
        taken = set(self._names)
        for name, p in named:
            if name in taken:
                raise ValueError(f"{self._name}: params must have different names, got {name!r} twice")
            taken.add(name)
            self._params.append(p)
            self._names.append(name)
        self.param_groups.append(full)
        self._groups.append((full, len(named)))

    def _with_groups(self) -> list[tuple[Array, Group]]:
        """Each parameter with the options of its group."""
        return list(zip(self._params, [g for g, count in self._groups for _ in range(count)], strict=True))

    @classmethod
    def _check_precision(cls, options: Group) -> None:
        check_common(cls.__name__, options)
        bits, allowed = options["state_bits"], cls._bits(options)
        if bits not in allowed:
            what = " or ".join(map(str, allowed))
            raise ValueError(f"{cls.__name__}: state_bits must be {what} for these options, got {bits}")

    @classmethod
    def _state_shapes(cls, param: Array, options: Group) -> dict[str, tuple[int, ...]]:
        """The states of a parameter and their shapes."""
        return dict.fromkeys(cls.state_names(options), param.shape)

    @classmethod
    def new_state(cls, param: Array, options: Group) -> dict[str, Any]:
        """What a parameter starts with."""
        state: dict[str, Any] = {"step": 0}
        wide = wide_dtype(param)
        if "mu_product" in cls.specification.numbers:
            state["mu_product"] = 1.0
        coded = options["state_bits"] < 32 and wide is np.float32 and param.size >= options["state_min_size"]
        coding: Coding = "dynamic4" if options["state_bits"] == 4 else options["coding"]
        for name, shape in cls._state_shapes(param, options).items():
            state[name] = zeros_of(shape, wide, coding if coded else None, signed=cls.is_signed(name))
        if options.get("master") and param.dtype.itemsize == 2:
            state["master"] = wide_copy(param)
        return state

    # ------------------------------------------------------------------------------------------------ steps

    @renamed({"nonfinite": {True: "raise", False: "propagate"}}, error_if_nonfinite="nonfinite")
    def step(
        self,
        grads: Grads | None = None,
        *,
        grad_scale: float = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite: Nonfinite = "propagate",
    ) -> StepResult:
        """Step all parameters that have a gradient.

        Parameters
        ----------
        grads : ndarray, list or dict of ndarray, optional
            As `params` were given: an array, a list in their order (of all groups), or a dict by their names. A
            parameter whose gradient is None or missing is left as it is. Without it: the mean of what was accumulated.
        grad_scale : float
            Gradients are divided by it first.
        clip_norm : float, optional
            If the 2-norm of all gradients together, after their scale, is greater, they are scaled down to it. If it is
            NaN, all become NaN; if it is infinite, 0, and NaN what is infinite: as `torch.nn.utils.clip_grad_norm_`.
        clip_value : float, optional
            Gradients are clamped to ± this after all scaling.
        nonfinite : {"propagate", "raise", "skip"}
            What to do where a gradient is NaN or infinite: step all the same; raise, with nothing changed; or step
            nothing: then no state and no number of steps moves, and what was accumulated is forgotten.

        Returns
        -------
        StepResult
            ``(stepped, norm, rates)``: whether it was not skipped, the norm before clipping (None without `clip_norm`)
            and the learning rate of each group.

        Raises
        ------
        TypeError, ValueError
            As for `adam_step`. All groups are checked before the first write: then nothing was changed.
        """
        given, count = self._given(grads)
        return self.step_masked(given, (grad_scale * count, clip_norm, clip_value, nonfinite), None)

    def step_masked(
        self,
        given: list[Array | None],
        how: tuple[float, float | None, float | None, Nonfinite],
        masks: list[Array | None] | None,
    ) -> StepResult:
        """Clip, step, count and average; how: grad_scale, clip_norm, clip_value, nonfinite.

        Where a bit of a mask is 0 (`takes_masks`), the gradient counts as 0 and the parameter becomes 0.
        """
        grad_scale, clip_norm, clip_value, nonfinite = how
        norm = None
        if clip_norm is not None and check_limits(f"{self._name}.step", clip_norm, grad_scale, nonfinite):
            limits = (clip_norm, grad_scale, nonfinite)
            given, norm = clipped(given, limits, dtype=self._dtype, threads=self.threads)
            if math.isfinite(norm):
                nonfinite = "propagate"  # there is nothing to look for any more
                grad_scale *= max(1.0, norm / clip_norm)
        rates = learning_rates(self.param_groups, self.steps + 1)
        launched = (grad_scale, clip_value, nonfinite, rates)
        tensors, number = (self._params, given, self.state, masks), self.steps + 1
        place = 0 if given and given[0] is not None else next((k for k, g in enumerate(given) if g is not None), None)
        before = None if place is None else self.state[place]["step"]
        try:
            stepped = self.launch(self._groups, tensors, launched, self._dtype, self.threads)
            self._finish(number if stepped else self.steps)
        except KeyboardInterrupt:
            # It is raised when the kernel has returned: all was stepped, and what goes with it is done now.
            if place is not None and self.state[place]["step"] != before:
                self._finish(number)
            raise
        return StepResult(stepped, norm, rates)

    def _finish(self, number: int) -> None:
        """Forget what was accumulated, count and average, once for a number of steps."""
        self._accumulated.clear()
        if self.steps == number:
            return
        pairs = zip(self._averages, self._weights(), strict=True) if self._averages else ()
        calls = [ema_call(*lists, self._ema_decay or 0.0) for lists in by_precision(pairs)] if pairs else []
        self.steps = number
        if calls:
            _core.optim_step(calls, "propagate", self._dtype, self.threads)

    def gradients(self, grads: Grads | None = None) -> tuple[list[tuple[int, Array]], int]:
        """Give what `step` takes: gradients, each with the place of its parameter, and how many were added up in each.

        Raises
        ------
        TypeError, ValueError
            If they are not as `params`, or None where none were accumulated.
        """
        given, count = self._given(grads)
        return [(i, g) for i, g in enumerate(as_arrays(given)) if g is not None], count

    def accumulate(self, grads: Grads) -> None:
        """Add gradients to what the next `step()` without gradients takes the mean of.

        A parameter that gets no gradient until then is left as it is. What was accumulated is part of `state_dict` and
        of what `save` writes.
        """
        self._accumulated.add(self._aligned("accumulate", grads), dtype=self._dtype, threads=self.threads)

    def zero_accumulated(self) -> None:
        """Forget what was accumulated."""
        self._accumulated.clear()

    def _given(self, grads: Grads | None) -> tuple[list[Array | None], int]:
        if self._single and type(grads) is np.ndarray:
            return [grads], 1
        return self._accumulated.sums(f"{self._name}.step") if grads is None else (self._aligned("step", grads), 1)

    def _aligned(self, method: str, grads: Grads) -> list[Array | None]:
        return aligned((type(self).__name__, method), grads, self._names, self._single)

    @classmethod
    def launch(cls, groups: Groups, tensors: StepTensors, how: How, dtype: Bf16, threads: int | None) -> bool:
        """Check all, then step all that have a gradient and count their steps; False where they were skipped."""
        return _core.optimizer_step(cls.specification.function, groups, tensors, how, dtype, threads)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Give states and options in torch's form: ``{"state": {i: {name: value}}, "param_groups": [{...}]}``.

        Parameters are numbered in order; "params" of a group are such numbers. Besides: "steps"; "accumulated",
        ``{"count": int, "sums": {i: array}}``, where gradients were accumulated; "averages", ``{i: array}``, with
        `ema_decay`. Arrays are the optimizer's own, not copies.
        """
        made: dict[str, Any] = {
            "state": {i: dict(state) for i, state in enumerate(self.state)},
            "param_groups": numbered(self.param_groups),
        }
        made["steps"] = self.steps
        if self._accumulated.count:
            made["accumulated"] = self._accumulated.as_dict()
        if self._ema_decay is not None:
            made["averages"] = dict(enumerate(self._averages))
        return made

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy states and options from a `state_dict` of an optimizer of this kind with as many parameters.

        A state that is stored as numbers is coded where this optimizer keeps blocks, and the reverse. A parameter
        without an entry starts anew. A learning rate given as a schedule stays. Without "steps" (as in torch's) they
        are the most that a parameter has had; without "accumulated" what was accumulated is forgotten; without
        "averages" they start from the parameters.

        Raises
        ------
        ValueError
            If groups, parameters, names or shapes are others; then nothing was changed.
        """
        where = f"{self._name}.load_state_dict: state_dict"
        groups, given = list(state_dict["param_groups"]), dict(state_dict["state"])
        want, got = [len(g["params"]) for g in self.param_groups], [len(g["params"]) for g in groups]
        if want != got:
            raise ValueError(f"{where} must have groups of {want} parameters, got {got}")
        options = [loaded(group, new, self._defaults) for group, new in zip(self.param_groups, groups, strict=True)]
        for group in options:
            self.check(group)
        places = [(i, own) for group, own in zip(groups, options, strict=True) for i in group["params"]]
        # Which states there are depends on the options that are loaded with them.
        fresh = [
            self.taken(f"{where} must have {{}} for parameter {k}", p, own, given.get(i))
            for k, ((i, own), p) in enumerate(zip(places, self._params, strict=True))
        ]
        places = [i for i, _ in places]
        steps = whole(f"{where}['steps']", state_dict.get("steps", max((s["step"] for s in fresh), default=0)))
        accumulated = state_dict.get("accumulated") or {"count": 0, "sums": {}}
        totals = copied(f"{where}['accumulated']", self._params, places, accumulated["sums"])
        averages = copied(f"{where}['averages']", self._params, places, state_dict.get("averages", {}))
        for group, own in zip(self.param_groups, options, strict=True):
            group.update(own)
        self.state[:] = fresh
        self.steps = steps
        self._accumulated.set(totals, int(accumulated["count"]))
        if self._ema_decay is not None:
            self._averages = [averages.get(k, w) for k, w in enumerate(self._weights(copy=True))]

    @classmethod
    def taken(cls, where: str, param: Array, options: Group, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Copy a given state in the form that these options want; `where` is an error's text, {} what is wanted."""
        own = cls.new_state(param, options)
        if given is not None:
            take_state(where, own, given)
        return own

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that `state_dict` has to a safetensors file, all or nothing.

        `load` then goes on bit for bit, also between two calls of `accumulate`, given the same parameters, which are
        not part of the file (master copies and averages are). A learning rate given as a schedule is not stored, its
        place is.
        """
        from modelopt_rs.optim.checkpoint import save_states

        save_states(path, self._algorithm, list(self.params), self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what `save` has written for an optimizer of this kind with the same names of parameters.

        Raises
        ------
        FormatError
            If it is no such file. ValueError: it is of another optimizer. OSError: it can't be read. Nothing was
            changed.
        """
        self.load_state_dict(self._stored(path))

    def _stored(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        from modelopt_rs.optim.checkpoint import load_states

        return load_states(path, self._algorithm, list(self.params))
