"""Pruning while training: an optimizer under which pruned weights stay exactly zero."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelopt_rs._types import Array, Bf16
from modelopt_rs.arguments import check_choice, listed, shown
from modelopt_rs.deprecated import renamed
from modelopt_rs.errors import said_as
from modelopt_rs.optim.optimizer import Optimizer
from modelopt_rs.optim.options import Grads, Group, Nonfinite
from modelopt_rs.optim.result import StepResult
from modelopt_rs.optim.specification import Specification
from modelopt_rs.prune.unstructured import apply_mask, global_magnitude, magnitude, n_of_m, packed_shape
from modelopt_rs.quant.packing import unpack

__all__ = ["PrunedOptimizer"]

Sparsity: TypeAlias = float | Callable[[int], float]
"""A number, or a schedule: a function of the number of the step, which is 1 for the first."""
Bits: TypeAlias = NDArray[np.uint8]
_NAME = "PrunedOptimizer"


class PrunedOptimizer(Optimizer):
    """An optimizer that prunes by a schedule, and keeps at exactly zero what it has pruned.

    After each step the smallest magnitudes are zero, exactly ``round(sparsity * n)`` of them as in `magnitude`, for the
    largest sparsity that the schedule has given so far. What is pruned stays pruned.

    A step chooses masks where more is to be pruned, steps the optimizer with masked gradients, then masks the weights
    (and their float32 copies, with ``master=True``). The loss as a function of ``mask * w`` has ``mask * grad`` as its
    gradient: so pruned weights count neither for `clip_norm` nor in what LAMB, Adafactor and Muon take from a whole
    matrix, nor for the scales of states in blocks. The optimizer's states are left alone: where a weight was pruned,
    moments fade as under gradients of 0, and whatever they hold, the weight is 0.

    Parameters
    ----------
    optimizer : Optimizer
        Any of `modelopt_rs.optim`. Step it by this object only, which is an `Optimizer` itself: it accumulates, saves
        and loads (the masks as well) and has the same parameters, groups and states. Pruned weights are zero in
        `averages`, too.
    sparsity : float or function of the step, optional
        The share that goes, from 0 to 1; `constant`, `linear` and `cubic` make schedules. The first step is 1, as for
        learning rates.
    scope : {"tensor", "row", "global"}
        What loses that share: each parameter, each of its rows (slices of axis 0), or all of them as one.
    n, m, axis : int
        Instead of `sparsity`: `n` of each `m` consecutive weights along `axis` stay, chosen in the first step;
        see `n_of_m`.
    params : iterable of str or int, optional
        The names, or in a list the places, of the parameters to prune; else all of two and more axes.
    every : int
        Masks are chosen anew in steps 1, ``1 + every`` and so on.

    Attributes
    ----------
    optimizer : Optimizer
        As given.
    steps : int
        How many steps were made.
    masks : dict of ndarray of uint8
        A bit for each weight of the pruned parameters, by name, as ``mask="bits"`` gives them: what `apply_mask` takes.
        Empty before the first pruning.

    Raises
    ------
    TypeError
        If `optimizer` is none, `sparsity` is no number, or a parameter to prune has no floats or (with "global")
        another dtype than the first.
    ValueError
        If `sparsity`, `n`, `m`, `axis` or `every` are out of range, neither or both of `sparsity` and `m`
        are given, or `params` names no parameter, or one that doesn't fit.

    Notes
    -----
    Zeros go first: what `wanda` or `blocks` have pruned stays pruned, and nothing else, with ``scope="global"`` and its
    share of zeros as `sparsity`.

    References
    ----------
    Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, section 3.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = np.array([[4.0, -1.0, 3.0, 2.0]], dtype=np.float32)
    >>> grow = mo.prune.linear(0.5, begin=0, end=2)
    >>> optimizer = mo.prune.PrunedOptimizer(mo.optim.SGD([w], lr=0.1, momentum=0.9), grow)
    >>> for _ in range(3):
    ...     _ = optimizer.step([np.ones_like(w)])
    ...     print(optimizer.sparsity, w.round(2))
    0.25 [[3.9 0.  2.9 1.9]]
    0.5 [[3.71 0.   2.71 0.  ]]
    0.5 [[3.44 0.   2.44 0.  ]]
    """

    @renamed(keep="n", group="m")
    def __init__(
        self,
        optimizer: Optimizer,
        sparsity: Sparsity | None = None,
        *,
        scope: Literal["tensor", "row", "global"] = "tensor",
        n: int | None = None,
        m: int | None = None,
        axis: int = -1,
        params: Iterable[str | int] | None = None,
        every: int = 1,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, PrunedOptimizer):
            raise TypeError(f"{_NAME}: optimizer must be one of modelopt_rs.optim, got {type(optimizer).__name__}")
        if (sparsity is None) == (m is None):
            got = "neither" if sparsity is None else "both"
            raise ValueError(f"{_NAME}: sparsity or n and m must be given, got {got}")
        if (n is None) != (m is None):
            raise ValueError(f"{_NAME}: n and m must come together, got n={shown(n)}, m={shown(m)}")
        check_choice(_NAME, "scope", scope, ("tensor", "row", "global"))
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"{_NAME}: every must be an integer of at least 1, got {shown(every)}")
        self.optimizer, self.steps = optimizer, 0
        self.masks: dict[str, Bits] = {}
        self._sparsity, self._scope, self._every = sparsity, scope, every
        self._n_of_m = None if n is None or m is None else (n, m, axis)
        self._pruned = _chosen(optimizer.params, params, scope)
        self._asked = 0.0
        self._flags: dict[str, Bits] = {}
        self._refuse()

    def _refuse(self) -> None:
        """Refuse now what the first pruning would refuse, but for NaN."""
        empty = [np.zeros(w.shape, w.dtype) for w in self._pruned.values()]
        self._rank(_NAME, empty, 0.5 if callable(self._sparsity) else self._sparsity)

    @property
    def sparsity(self) -> float:
        """The share of the pruned parameters that is masked now."""
        unmasked = sum(int(np.count_nonzero(np.unpackbits(bits))) for bits in self.masks.values())
        weights = sum(self._pruned[name].size for name in self.masks)
        return 1 - unmasked / weights if weights else 0.0

    # What is the optimizer's is looked up there: it may be replaced between steps.

    @property
    def params(self) -> dict[str, Array]:
        """The parameters in order, by name."""
        return self.optimizer.params

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        """The options of each group of parameters."""
        return self.optimizer.param_groups

    @property
    def state(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The states of each parameter in order."""
        return self.optimizer.state

    @property
    def threads(self) -> int | None:  # type: ignore[override]
        """Threads of all calls."""
        return self.optimizer.threads

    @property
    def specification(self) -> Specification:  # type: ignore[override]
        """That of the optimizer."""
        return self.optimizer.specification

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each group in the next step."""
        return self.optimizer.rates

    @property
    def averages(self) -> dict[str, Array]:
        """The moving averages of the parameters, with zeros where weights are pruned."""
        return self.optimizer.averages

    def gradients(self, grads: Grads | None = None) -> tuple[list[tuple[int, Array]], int]:
        """Give what `step` takes: see `Optimizer.gradients`."""
        return self.optimizer.gradients(grads)

    def accumulate(self, grads: Grads) -> None:
        """Add gradients to what the next `step()` without gradients takes the mean of."""
        self.optimizer.accumulate(grads)

    def zero_accumulated(self) -> None:
        """Forget what was accumulated."""
        self.optimizer.zero_accumulated()

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
        """Prune what is due and step all parameters that have a gradient.

        Parameters
        ----------
        grads, grad_scale, clip_norm, clip_value, nonfinite
            As for `Optimizer.step`; gradients of pruned weights are taken as 0. Not written. A step that is skipped
            prunes nothing.

        Returns
        -------
        StepResult
            As `Optimizer.step`.

        Raises
        ------
        TypeError, ValueError
            As for `Optimizer.step`; the schedule gives no number from 0 to 1; masks are due and a weight is NaN. Then
            nothing was changed.
        """
        given, count = self.optimizer.gradients(grads)
        asked = max(self._asked, self._due())
        masks = self._masks(asked) if asked > self._asked else self.masks
        flags = (
            self._flags if masks is self.masks else {name: _on_end(self._pruned[name], masks[name]) for name in masks}
        )
        names = list(self.params)
        # The kernel takes the masks as well, but not into norms.
        by_kernel = self.optimizer.takes_masks
        as_given = by_kernel and clip_norm is None and nonfinite == "propagate"
        masked: list[Array | None] = [None] * len(names)
        for i, g in given:
            # A gradient that doesn't fit is the optimizer's to refuse.
            fits = names[i] in masks and isinstance(g, np.ndarray) and g.shape == self._pruned[names[i]].shape
            masked[i] = g
            if fits and not (as_given and _is_float(g)):
                with said_as({"apply_mask: w": f"{_NAME}.step: grads[{names[i]!r}]"}):
                    masked[i] = self._apply(g, masks[names[i]])
        how = (grad_scale * count, clip_norm, clip_value, nonfinite)
        bits = [flags.get(name) for name in names] if by_kernel and masks else None
        before, taken = self.optimizer.steps, (masks, flags, asked, self.steps + 1, masked)
        try:
            result = self.optimizer.step_masked(masked, how, bits)
            if result.stepped:
                self._take(*taken)
        except KeyboardInterrupt:
            # It is raised when all was stepped, and what goes with it is done now.
            if self.optimizer.steps != before:
                self._take(*taken)
            raise
        return result

    def _take(self, masks: Any, flags: Any, asked: float, number: int, masked: list[Array | None]) -> None:
        """Take over the masks of a step that was made, and prune what it has left."""
        self.masks, self._flags, self._asked, self.steps = masks, flags, asked, number
        averages = self.averages
        for name, taken, state in zip(self.params, masked, self.state, strict=True):
            if name in masks and (taken is None or not self.optimizer.takes_masks):
                self._zero(name, self._pruned[name], state.get("master"))
            if name in masks:
                self._zero(name, averages.get(name))

    def _zero(self, name: str, *written: Array | None) -> None:
        """Zero what is pruned."""
        for x in written:
            if x is not None:
                self._apply(x, self.masks[name], out=x)

    def _due(self) -> float:
        """What is to be pruned in the next step; 0 where masks are not chosen anew."""
        if self.steps % self._every:
            return 0.0
        if self._n_of_m is not None:
            n, m, _ = self._n_of_m
            return 1 - n / m
        step = self.steps + 1
        share = self._sparsity(step) if callable(self._sparsity) else self._sparsity
        if isinstance(share, bool) or not isinstance(share, int | float | np.floating):
            raise TypeError(f"{_NAME}.step: sparsity must be a number, got {share!r} for step {step}")
        if not 0 <= share <= 1:
            raise ValueError(f"{_NAME}.step: sparsity must be from 0 to 1, got {share!r} for step {step}")
        return float(share)

    def _masks(self, share: float) -> dict[str, Bits]:
        """Choose masks; nothing that was pruned comes back."""
        where, arrays = f"{_NAME}.step", list(self._pruned.values())
        chosen = self._rank(where, arrays, share)
        if any(np.any(new & ~old) for new, old in zip(chosen, self.masks.values(), strict=False)):
            # Weights that are zero without being pruned were ranked as low as those that are, or these were written.
            ranked = [self._above_pruned(w, self.masks[name]) for name, w in self._pruned.items()]
            chosen = self._rank(where, ranked, share)
        return dict(zip(self._pruned, chosen, strict=True))

    def _above_pruned(self, w: Array, mask: Bits) -> Array:
        """Copy weights so that those that were not pruned, and no others, are larger than 0."""
        copy = self._apply(w, mask)
        stays = unpack(mask, 1, copy.shape[-1] if copy.ndim else 1).reshape(copy.shape) != 0
        bits = copy.view(f"u{copy.itemsize}")
        bits[(bits << 1 == 0) & stays] = 1  # the smallest number of every format of floats
        return copy

    def _rank(self, where: str, arrays: list[Array], share: Any) -> list[Bits]:
        threads = self.optimizer.threads
        if self._scope == "global" and self._n_of_m is None:
            said = {
                f"global_magnitude: arrays[{i}]": f"{where}: params[{name!r}]" for i, name in enumerate(self._pruned)
            }
            with said_as({**said, "global_magnitude": where}):
                return global_magnitude(arrays, share, mask="bits", dtype=_bf16(arrays[0]), threads=threads)
        masks = []
        for name, w in zip(self._pruned, arrays, strict=True):
            said = {f"{function}: w": f"{where}: params[{name!r}]" for function in ("magnitude", "n_of_m")}
            with said_as({**said, "magnitude": where, "n_of_m": where}):
                if self._n_of_m is not None:
                    masks.append(n_of_m(w, *self._n_of_m, mask="bits", dtype=_bf16(w), threads=threads))
                    continue
                rows = tuple(range(1, w.ndim)) if self._scope == "row" else None
                masks.append(magnitude(w, share, axis=rows, mask="bits", dtype=_bf16(w), threads=threads))
        return masks

    def _apply(self, x: Array, mask: Bits, out: Array | None = None) -> Array:
        return apply_mask(x, mask, out=out, dtype=_bf16(x), threads=self.optimizer.threads)

    def state_dict(self) -> dict[str, Any]:
        """Give what the optimizer's `state_dict` gives, and the masks.

        ``{..., "step": int, "sparsity": float, "masks": {name: bits}}``: the number of steps here, and the sparsity
        that was asked for. Arrays are the objects' own, not copies.
        """
        own = {"step": self.steps, "sparsity": self._asked, "masks": dict(self.masks)}
        return {**self.optimizer.state_dict(), **own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy what `state_dict` gave for the same parameters. The next step then sets masked weights to zero.

        Without "state" (as version 0.1 gave it) the optimizer stays as it is.

        Raises
        ------
        TypeError, ValueError
            If something is missing or doesn't fit; then nothing was changed.
        """
        where = f"{_NAME}.load_state_dict"
        if missing := {"step", "sparsity", "masks"} - set(state_dict):
            raise ValueError(f"{where}: state_dict must have {sorted(missing)[0]!r}, got {list(state_dict)}")
        step, asked, masks = state_dict["step"], state_dict["sparsity"], dict(state_dict["masks"])
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"{where}: step must be an integer of at least 0, got {step!r}")
        if not (isinstance(asked, int | float) and 0 <= asked <= 1):
            raise ValueError(f"{where}: sparsity must be from 0 to 1, got {asked!r}")
        if masks and set(masks) != set(self._pruned):
            raise ValueError(f"{where}: masks must be of {list(self._pruned)}, got {list(masks)}")
        for name, bits in masks.items():
            shape = self._pruned[name].shape
            if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8:
                got = bits.dtype if isinstance(bits, np.ndarray) else type(bits).__name__
                raise TypeError(f"{where}: masks[{name!r}] must have dtype uint8, got {got}")
            if bits.shape != packed_shape(shape):
                want = packed_shape(shape)
                raise ValueError(f"{where}: masks[{name!r}] must have shape {want}, got {bits.shape}")
            with said_as({"unpack: packed": f"{where}: masks[{name!r}]"}):
                unpack(bits, 1, shape[-1] if shape else 1)
        if "state" in state_dict:
            self.optimizer.load_state_dict(state_dict)
        self.masks = {name: masks[name].copy() for name in self._pruned} if masks else {}
        self._flags = {name: _on_end(self._pruned[name], bits) for name, bits in self.masks.items()}
        self.steps, self._asked = step, float(asked)

    @property
    def _algorithm(self) -> str:
        return type(self.optimizer).__name__

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what `save` has written: see `Optimizer.load`.

        Raises
        ------
        ValueError
            If the file is of an optimizer without masks. Others as for `Optimizer.load`; then nothing was changed.
        """
        stored = self._stored(path)
        if "masks" not in stored:
            raise ValueError(f"{_NAME}.load: {os.fspath(path)} must hold masks, got none; load it into the optimizer")
        self.load_state_dict(stored)


def _is_float(x: Array) -> bool:
    return x.dtype.kind in "fV" or x.dtype == np.uint16


def _on_end(w: Array, bits: Bits) -> Bits:
    """The bits of a mask on end, as the kernel takes them: those of rows begin with a byte."""
    if w.ndim == 0 or w.shape[-1] % 8 == 0:
        return bits.reshape(-1)
    return np.packbits(unpack(bits, 1, w.shape[-1]).reshape(-1) != 0, bitorder="little")


def _chosen(params: dict[str, Array], names: Iterable[str | int] | None, scope: str) -> dict[str, Array]:
    """Give the parameters to prune, in the optimizer's order."""
    if isinstance(names, str):
        raise TypeError(f"{_NAME}: params must be a list of names, got the string {names!r}")
    given = {k for k, w in params.items() if w.ndim >= 2} if names is None else listed(_NAME, "params", names, "names")
    wanted = {str(name) for name in given}
    if unknown := wanted - set(params):
        raise ValueError(f"{_NAME}: params must name parameters of the optimizer, got {sorted(unknown)[0]!r}")
    if not wanted:
        what = "name a parameter" if names is not None else "be given where none has two axes or more"
        raise ValueError(f"{_NAME}: params must {what}, got none")
    chosen = {name: w for name, w in params.items() if name in wanted}
    first, like = next(iter(chosen.items()))
    for name, w in chosen.items():
        if scope == "row" and w.ndim < 2:
            raise ValueError(f"{_NAME}: params[{name!r}] must have rows for scope='row', got shape {w.shape}")
        if scope == "global" and w.dtype != like.dtype:
            got = f"params[{first!r}] for scope='global', got {w.dtype}"
            raise TypeError(f"{_NAME}: params[{name!r}] must have dtype {like.dtype} like {got}")
    return chosen


def _bf16(x: Array) -> Bf16:
    """Say how to read it: an optimizer's uint16 arrays are bfloat16 bits."""
    return "bf16" if x.dtype == np.uint16 else None
