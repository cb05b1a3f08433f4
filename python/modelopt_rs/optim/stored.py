"""What an optimizer keeps beside its parameters, as dicts and as files."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.optim.arrays import wide_dtype
from modelopt_rs.optim.checkpoint import load_states, save_states
from modelopt_rs.optim.options import Group
from modelopt_rs.optim.specification import PRECISION
from modelopt_rs.optim.state import BlockState

__all__ = ["Stored"]


class Stored:
    """The part of an `Optimizer` that gives and takes its states."""

    param_groups: list[Group]
    state: list[dict[str, Any]]
    steps: int
    _name: Any
    _names: list[str]
    _params: list[Array]
    _defaults: Group
    _totals: dict[int, Array]
    _summed: set[int]
    _accumulated: int
    _averages: list[Array]
    _ema_decay: float | None

    @classmethod
    def new_state(cls, param: Array, options: Group) -> dict[str, Any]:
        """What a parameter starts with."""
        raise NotImplementedError

    def _weights(self, copy: bool = False) -> list[Array]:
        raise NotImplementedError

    def _with_groups(self) -> list[tuple[Array, Group]]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Give states and options in torch's form: ``{"state": {i: {name: value}}, "param_groups": [{...}]}``.

        Parameters are numbered in order; "params" of a group are such numbers. Besides: "steps"; "accumulated",
        ``{"count": int, "sums": {i: array}}``, where gradients were accumulated; "averages", ``{i: array}``, with
        `ema_decay`. Arrays are the optimizer's own, not copies.
        """
        groups, first = [], 0
        for group in self.param_groups:
            n = len(group["params"])
            groups.append(
                {**{k: v for k, v in group.items() if k != "params"}, "params": list(range(first, first + n))}
            )
            first += n
        states = {i: dict(state) for i, state in enumerate(self.state)}
        made: dict[str, Any] = {"state": states, "param_groups": groups, "steps": self.steps}
        if self._accumulated:
            sums = {i: self._totals[i] for i in sorted(self._summed)}
            made["accumulated"] = {"count": self._accumulated, "sums": sums}
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
        places = [i for group in groups for i in group["params"]]
        fresh = [
            self.taken(f"{where} must have {{}} for parameter {k}", p, group, given.get(i))
            for k, (i, (p, group)) in enumerate(zip(places, self._with_groups(), strict=True))
        ]
        steps = state_dict.get("steps", max((state["step"] for state in fresh), default=0))
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
            raise ValueError(f"{where}['steps'] must be an integer of at least 0, got {steps!r}")
        accumulated = state_dict.get("accumulated") or {"count": 0, "sums": {}}
        totals = self._copied(f"{where}['accumulated']", places, accumulated["sums"])
        averages = self._copied(f"{where}['averages']", places, state_dict.get("averages", {}))
        for group, new in zip(self.param_groups, groups, strict=True):
            for name in self._defaults:
                keeps = name in PRECISION or (name == "lr" and (callable(group["lr"]) or new.get("lr") is None))
                if name in new and not keeps:
                    group[name] = new[name]
        self.state[:] = fresh
        self.steps, self._accumulated = int(steps), int(accumulated["count"])
        self._totals, self._summed = totals, set(totals)
        if self._ema_decay is not None:
            self._averages = [averages.get(k, w) for k, w in enumerate(self._weights(copy=True))]

    def _copied(self, where: str, places: list[Any], given: Mapping[Any, Array]) -> dict[int, Array]:
        """Copies of sums or averages, by the places of parameters."""
        copies = {}
        for k, (i, p) in enumerate(zip(places, self._params, strict=True)):
            if i in given:
                if np.shape(given[i]) != p.shape:
                    raise ValueError(f"{where} must have shape {p.shape} for parameter {k}, got {np.shape(given[i])}")
                copies[k] = np.array(given[i], wide_dtype(p), order="C")
        return copies

    @classmethod
    def taken(cls, where: str, param: Array, options: Group, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Copy a given state in the form that these options want; `where` is an error's text, {} what is wanted."""
        own = cls.new_state(param, options)
        if given is None:
            return own
        for name, value in own.items():
            if name not in given:
                if name == "master":
                    continue
                raise ValueError(f"{where.format(repr(name))}, got {', '.join(given)}")
            new = given[name]
            if isinstance(value, int | float):
                own[name] = type(value)(new)
                continue
            if tuple(np.shape(new) if not isinstance(new, BlockState) else new.shape) != value.shape:
                raise ValueError(f"{where.format(f'{name!r} of shape {value.shape}')}, got {np.shape(new)}")
            if isinstance(value, BlockState):
                same = isinstance(new, BlockState) and new.coding == value.coding
                if same and (new.codes.shape, new.absmax.shape) != (value.codes.shape, value.absmax.shape):
                    raise ValueError(f"{where.format(f'{name!r} of {value.nbytes} bytes')}, got {new.nbytes}")
                numbers = (
                    new.copy()
                    if same
                    else BlockState.from_array(np.asarray(new, np.float32), coding=value.coding, signed=value.signed)
                )
                own[name] = numbers
            else:
                value[...] = np.asarray(new)
        return own

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that `state_dict` has to a safetensors file, all or nothing.

        `load` then goes on bit for bit, also between two calls of `accumulate`, given the same parameters, which are
        not part of the file (master copies and averages are). A learning rate given as a schedule is not stored, its
        place is.
        """
        save_states(path, self._name, self._names, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what `save` has written for an optimizer of this kind with the same names of parameters.

        Raises
        ------
        FormatError
            If it is no such file. ValueError: it is of another optimizer. OSError: it can't be read. Nothing was
            changed.
        """
        self.load_state_dict(load_states(path, self._name, self._names))
