"""Which weights are rounded by what goes into their layers, as decisions and reports say it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.planning.decide import Decision
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms

__all__ = ["WORDS", "Statistics", "decided_by_inputs", "moments_of", "statistics_kind", "unseen_in_words"]

WORDS: Final[Mapping[str | None, str]] = {"gptq": "GPTQ", "awq": "AWQ", None: "searched by what goes in"}
"""How weights are rounded, by the method."""

WORDLESS: Final[Mapping[str | None, str]] = {
    "gptq": "rounded without GPTQ",
    "awq": "rounded without AWQ",
    None: "searched whatever goes in",
}


class Statistics(Protocol):
    """Has what is known of the inputs of weights."""

    def of(self, name: str) -> Sequence[ColumnNorms | Hessian]:
        """Return it."""


def statistics_kind(method: str | None) -> type[Hessian] | type[ColumnNorms]:
    """Return what a method needs to know of the inputs of a layer."""
    return Hessian if method == "gptq" else ColumnNorms


def moments_of(found: ColumnNorms | Hessian) -> Array:
    """Return what `ByInputs` takes: the matrix of a Hessian, or the mean squares of columns.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> from modelopt_rs.planning.by_inputs import moments_of
    >>> norms = mo.prune.ColumnNorms()
    >>> norms.update(np.array([[3.0, 1.0], [4.0, 0.0]]))
    >>> moments_of(norms)
    array([12.5,  0.5])
    """
    if isinstance(found, Hessian):
        return found.matrix()
    assert found.square_sum is not None
    squares: Array = np.asarray(found.square_sum / max(found.rows, 1))
    return squares


def decided_by_inputs(
    decisions: Mapping[str, Decision], unseen: Mapping[str, str | None], method: str | None
) -> dict[str, Decision]:
    """Return the decisions with how weights are rounded, and where it isn't by their inputs, why.

    Parameters
    ----------
    decisions : mapping
    unseen : mapping
        By name of a weight why what goes into its layers isn't used; None: it is.
    method : str or None

    Raises
    ------
    OptionError
        If there is no weight whose inputs are used.
    """
    found, left = dict(decisions), dict[str, str]()
    for name, decision in decisions.items():
        if decision.action == "quantize":
            reason = unseen.get(name, "no layer's")
            words = WORDS[method] if reason is None else f"not {WORDS[method]}: {reason}"
            found[name] = replace(decision, reason=f"{decision.reason}; {words}")
            if reason is not None:
                left[name] = reason
    if left and len(left) == sum(each.action == "quantize" for each in decisions.values()):
        name, reason = next(iter(left.items()))
        got = "statistics" if method is None else repr(method)
        raise OptionError(
            f"method must be left out where no weight's inputs are known, got {got}: {quote(name)}: {reason}"
        )
    return found


def unseen_in_words(
    decisions: Mapping[str, Decision], unseen: Mapping[str, str | None], method: str | None
) -> list[str]:
    """Say how many weights keep searched scales, and why."""
    reasons = [
        reason
        for name, decision in decisions.items()
        if decision.action == "quantize" and (reason := unseen.get(name, "no layer's")) is not None
    ]
    if not reasons:
        return []
    most, _ = Counter(reasons).most_common(1)[0]
    weights = "1 weight is" if len(reasons) == 1 else f"{len(reasons):,} weights are"
    return [f"{weights} {WORDLESS[method]}: {most}"]
