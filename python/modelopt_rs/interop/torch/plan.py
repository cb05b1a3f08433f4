"""The parameters of a step and their states, prepared once for the steps that follow."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from modelopt_rs._types import Array
from modelopt_rs.interop.torch.tensors import EXCHANGE, NUMBERS, SMALLEST, array_of, is_at, trace_of

__all__ = ["Entry", "Plan"]


class Entry(NamedTuple):
    """A parameter, its state, and both as arrays of the same memory."""

    where: str
    param: torch.Tensor
    state: dict[str, Any]
    order: list[int]
    array: Array
    arrays: dict[str, Any]


class Plan:
    """The parameters of a step with their states as arrays, which the next step takes as long as nothing has moved.

    The arrays keep the memory alive, so that no other tensor can come to lie where one lay.
    """

    def __init__(self, entries: list[Entry], names: list[list[str]]) -> None:
        self.is_first = False
        """Whether the step that it was made for has made states."""
        self.params = [e.param for e in entries]
        self.states = [e.state for e in entries]
        self.names = names
        self.arrays = [e.array for e in entries]
        self.states_as_arrays = [e.arrays for e in entries]
        # As long as these are held, no other object comes to have the address of one.
        self._held = [list(state.items()) for state in self.states]
        self._trace = trace_of(self.params, dict(zip(self.params, self.states, strict=True)))
        numbered = [(e, name) for name in NUMBERS for e in entries if name in e.state]
        self._numbers = [(e.arrays, name, e.state[name].numpy()) for e, name in numbered]
        self._lie = [(e.where, e.order) for e in entries]
        self._in_order = all(e.order == sorted(e.order) for e in entries)

    def holds(self, params: list[torch.Tensor], states: dict[torch.Tensor, Any], names: list[Any]) -> bool:
        """Whether these are the same tensors where they were, and their numbers those that the last step has left."""
        if len(params) != len(self.params) or names != self.names:
            return False
        try:
            if not is_at(self._trace, params, states):
                return False
        except RuntimeError:  # it has no memory any more
            return False
        return all(view.item() == arrays[name] for arrays, name, view in self._numbers)

    def gradients(self, grads: list[torch.Tensor]) -> Sequence[Array | None]:
        """As arrays, in the order of axes of their parameters."""
        arrays = None if EXCHANGE is None else EXCHANGE.arrays(grads)
        if arrays is None:
            resolved = [g.resolve_neg() if g.layout == torch.strided else g for g in grads]
            return [array_of(where, g, order, ".grad") for g, (where, order) in zip(resolved, self._lie, strict=True)]
        if self._in_order:
            return arrays
        return [a.transpose(order) if a.ndim > 1 else a for a, (_, order) in zip(arrays, self._lie, strict=True)]

    def count(self) -> None:
        """Bring the numbers of the states to torch's tensors."""
        for arrays, name, view in self._numbers:
            view[()] = arrays[name]
            # The kernel refuses 0.
            if name == "mu_product" and arrays[name] == 0:
                arrays[name] = SMALLEST
