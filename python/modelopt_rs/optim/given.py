"""Parameters and gradients as a caller gives them: an array, a list or a dict."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.arrays import as_array
from modelopt_rs.optim.options import Grads, Group
from modelopt_rs.optim.specification import PRECISION

__all__ = ["aligned", "learning_rates", "loaded", "named_params", "numbered", "whole"]

Where: TypeAlias = tuple[str, str]
"""A class and its method: joined in messages only, for that takes as long as a small step's checks."""
# What a gradient may be; NumPy makes numbers of what is computed of arrays without axes.
_ARRAYS = (np.ndarray, np.generic, type(None))


def named_params(function: str, given: Any, before: int) -> list[tuple[str, Array]]:
    """Name parameters, of any library: by the dict's keys, else by their places, after so many `before`.

    Examples
    --------
    >>> from modelopt_rs.optim.given import named_params
    >>> import numpy as np
    >>> named_params("SGD", [np.array(1.0), np.array(2.0)], 3)
    [('3', array(1.)), ('4', array(2.))]
    """
    if hasattr(given, "__dlpack__"):
        given = [given]
    if isinstance(given, Mapping):
        return [(name, as_array(p, f"{function}: params[{name!r}]")) for name, p in given.items()]
    if isinstance(given, list | tuple):
        names = [str(before + i) for i in range(len(given))]
        return named_params(function, dict(zip(names, given, strict=True)), before)
    got = type(given).__name__
    raise TypeError(f"{function}: params must be an array, a list or dict of arrays or a list of groups, got {got}")


def aligned(where: Where, grads: Grads, names: Sequence[str], single: bool) -> list[Array | None]:
    """Put gradients in the order of the parameters' names; `single`: these were one array."""
    if isinstance(grads, list | tuple):
        given: list[Array | None] = list(grads)
    elif isinstance(grads, Mapping):
        if unknown := set(grads) - set(names):
            got = min(unknown, key=str)
            raise ValueError(f"{'.'.join(where)}: grads must have the names of params, got {got!r}")
        given = [grads.get(name) for name in names]
        for i, (name, g) in enumerate(zip(names, given, strict=True)):
            if not isinstance(g, _ARRAYS):
                given[i] = as_array(g, f"{'.'.join(where)}: grads[{name!r}]")
    elif single:
        given = [grads]  # type: ignore[list-item]
    else:
        raise TypeError(f"{'.'.join(where)}: grads must be a list or a dict like params, got {type(grads).__name__}")
    if len(given) != len(names):
        raise ValueError(f"{'.'.join(where)}: grads must have {len(names)} arrays like params, got {len(given)}")
    return given


_LR, _FLOAT = itemgetter("lr"), {float}


def learning_rates(groups: Sequence[Group], step: int) -> tuple[float, ...]:
    """Return the learning rate of each group in a step: schedules are asked.

    Examples
    --------
    >>> from modelopt_rs.optim.given import learning_rates
    >>> learning_rates([{"lr": 0.1}, {"lr": lambda step: 1 / step}], 2)
    (0.1, 0.5)
    """
    rates = tuple(map(_LR, groups))
    # Most are floats: a look at each takes a third of a loop.
    if set(map(type, rates)) <= _FLOAT:
        return rates
    return tuple(_plain(lr(step) if callable(lr) else lr) for lr in rates)


def _plain(rate: Any) -> Any:
    """Return a number of NumPy as Python's, which a log can write; what is no number the step refuses."""
    return rate.item() if isinstance(rate, np.generic | np.ndarray) and rate.ndim == 0 else rate


def numbered(groups: Sequence[Group]) -> list[Group]:
    """Copy groups with numbers in the place of parameters, last, as in torch's state dicts.

    Examples
    --------
    >>> from modelopt_rs.optim.given import numbered
    >>> numbered([{"params": ["a"], "lr": 0.1}, {"params": ["b", "c"], "lr": 0.2}])
    [{'lr': 0.1, 'params': [0]}, {'lr': 0.2, 'params': [1, 2]}]
    """
    counts = [len(group["params"]) for group in groups]
    numbers = (list(range(end - n, end)) for n, end in zip(counts, accumulate(counts), strict=True))
    options = ({k: v for k, v in group.items() if k != "params"} for group in groups)
    return [{**given, "params": own} for given, own in zip(options, numbers, strict=True)]


def loaded(group: Group, given: Mapping[str, Any], names: Iterable[str]) -> Group:
    """Give the options of a group with those of a `state_dict`, but for how states are kept, and schedules."""
    keeps = {*PRECISION, "lr"} if callable(group["lr"]) or given.get("lr") is None else PRECISION
    return {**group, **{name: given[name] for name in names if name in given and name not in keeps}}


def whole(what: str, number: Any) -> int:
    """Give a count, checked."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
        raise ValueError(f"{what} must be an integer of at least 0, got {number!r}")
    return int(number)
