"""Which weights are rounded by what goes into their layers, as decisions and reports say it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.quant.by_inputs import Moments

__all__ = [
    "UNREACHED",
    "WORDS",
    "KnownInputs",
    "SeenInputs",
    "Statistics",
    "check_any_pruned",
    "check_no_method",
    "decided_by_inputs",
    "moments_of",
    "statistics_kind",
    "unseen_in_words",
]

WORDS: Final[Mapping[str | None, str]] = {"gptq": "GPTQ", "awq": "AWQ", None: "searched by what goes in"}
"""How weights are rounded, by the method."""

WORDLESS: Final[Mapping[str | None, str]] = {
    "gptq": "rounded without GPTQ",
    "awq": "rounded without AWQ",
    None: "searched whatever goes in",
}


UNREACHED: Final = "no sample reaches its layer"


class Statistics(Protocol):
    """Has what is known of the inputs of weights."""

    def of(self, name: str) -> Sequence[ColumnNorms | Hessian]:
        """Return it; of no rows where no sample reaches the layer."""

    def keep(self, names: Sequence[str]) -> None:
        """Collect that of these weights only; in this order they will be asked for."""


class KnownInputs:
    """What is known of the inputs of the weights of a model.

    Parameters
    ----------
    method : str or None
        How weights are rounded by it.
    unseen : mapping
        By name of a weight why its inputs are not known; None: they are.
    statistics : Statistics or None
        None: nothing is looked at, for nothing is written.

    Attributes
    ----------
    method : str or None
    unseen : mapping
    statistics : Statistics or None
    moments : mapping
        By name of a weight what gives the moments of its inputs.
    groups : mapping
        By name of a weight how many parts of it have inputs of their own, where it is more than one.
    fix : str
        What helps where no weight can be rounded so.
    unreached : set of str
        The weights whose inputs were asked for, and that no sample reached: they have no moments.
    """

    def __init__(self, method: str | None, unseen: Mapping[str, str | None], statistics: Statistics | None) -> None:
        self.method, self.unseen, self.statistics = method, unseen, statistics
        names = [name for name, reason in unseen.items() if reason is None]
        self.moments: Mapping[str, Moments] = {name: partial(self._of, name) for name in names}
        self.groups: Mapping[str, int] = {}
        self.fix = "leave it out"
        self.unreached: set[str] = set()
        self._decisions: Mapping[str, Decision] = {}

    def _of(self, name: str) -> Array:
        assert self.statistics is not None
        seen = self.statistics.of(name)
        # A layer's own code may take a weight and never call the layer; an expert may get no token.
        if any(each.count == 0 for each in seen):
            self.unreached.add(name)
            return np.empty(0)
        found = [moments_of(each, self.method) for each in seen]
        return found[0] if len(found) == 1 else np.stack(found)

    @property
    def is_looked_at(self) -> bool:
        """Whether inputs are looked at; not where nothing is written."""
        return self.statistics is not None

    def leave(self, reasons: Mapping[str, str]) -> None:
        """Leave weights to be rounded whatever goes into their layers."""
        self.unseen = {**self.unseen, **reasons}
        self.moments = {name: each for name, each in self.moments.items() if name not in reasons}

    def decided(self, decisions: Mapping[str, Decision], names: Iterable[str]) -> dict[str, Decision]:
        """Return decisions that say how weights are rounded.

        From now on the inputs of these weights alone are looked at, in this order.
        """
        if self.statistics is not None:
            self.statistics.keep([name for name in names if name in self.moments])
        self._decisions = decisions
        return decided_by_inputs(decisions, self.unseen, self.method, self.fix)

    def reached(self, decided: Mapping[str, Decision]) -> tuple[dict[str, Decision], list[str]]:
        """Return the decisions as it turned out, once weights are rounded, and what should be known of it."""
        unseen = {**self.unseen, **dict.fromkeys(self.unreached, UNREACHED)}
        late = {
            name: _rounded(self._decisions[name], UNREACHED, self.method) for name in self.unreached & decided.keys()
        }
        return {**decided, **late}, unseen_in_words(self._decisions, unseen, self.method)


class SeenInputs:
    """What is known of the inputs of weights that are pruned, and which of their layers no sample reached.

    Parameters
    ----------
    statistics : Statistics or None
    """

    def __init__(self, statistics: Statistics | None) -> None:
        self.statistics = statistics
        self._unreached: set[str] = set()

    def of(self, name: str) -> Sequence[ColumnNorms | Hessian]:
        """Return it."""
        assert self.statistics is not None
        found = self.statistics.of(name)
        if any(each.count == 0 for each in found):
            self._unreached.add(name)
        return found

    def reached(self, decisions: Mapping[str, Decision]) -> dict[str, Decision]:
        """Return the decisions as it turned out, once weights are pruned."""
        return {**decisions, **dict.fromkeys(self._unreached, Decision("copy", UNREACHED))}

    def words(self) -> list[str]:
        """Say how many weights are left alone for it."""
        count = len(self._unreached)
        weights = "1 weight is" if count == 1 else f"{count:,} weights are"
        return [f"{weights} not pruned: {UNREACHED}"] if count else []


def check_no_method(then: QuantizeOptions | None) -> None:
    """Refuse a second step that would look at the inputs of a model that there is not yet."""
    if then is not None and then.method is not None:
        raise OptionError(f"then must have no method, got {then.method!r}: quantize what comes out")


def statistics_kind(method: str | None) -> type[Hessian] | type[ColumnNorms]:
    """Return what a method needs to know of the inputs of a layer."""
    return Hessian if method == "gptq" else ColumnNorms


def moments_of(found: ColumnNorms | Hessian, method: str | None = None) -> Array:
    """Return what `ByInputs` takes: for "gptq" the matrix of a Hessian, else the mean squares of columns.

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
        return (
            found.second_derivative
            if method == "gptq"
            else np.ascontiguousarray(found.second_derivative.diagonal()) / 2
        )
    assert found.square_sum is not None
    squares: Array = np.asarray(found.square_sum / max(found.count, 1))
    return squares


def decided_by_inputs(
    decisions: Mapping[str, Decision],
    unseen: Mapping[str, str | None],
    method: str | None,
    fix: str,
) -> dict[str, Decision]:
    """Return the decisions with how weights are rounded, and where it isn't by their inputs, why.

    Parameters
    ----------
    decisions : mapping
    unseen : mapping
        By name of a weight why what goes into its layers isn't used; None: it is.
    method : str or None
    fix : str
        What helps where that is so of all.

    Raises
    ------
    OptionError
        If there is no weight whose inputs are used.
    """
    found, left = dict(decisions), dict[str, str]()
    for name, decision in decisions.items():
        if decision.action == "quantize":
            reason = unseen.get(name, "no layer's")
            found[name] = _rounded(decision, reason, method)
            if reason is not None:
                left[name] = reason
    if method is not None and not any(each.action == "quantize" for each in decisions.values()):
        text = f"method must be left out where no weight is quantized, got {method!r}"
        raise OptionError(f"{text}{_first_reason(decisions)}; {fix}")
    if left and len(left) == sum(each.action == "quantize" for each in decisions.values()):
        most, _ = Counter(left.values()).most_common(1)[0]
        name = next(name for name, reason in left.items() if reason == most)
        if method is None:
            raise OptionError(
                f"statistics must be of this model's weights, got none of those that are coded: {quote(name)}: {most}"
            )
        text = f"method must be left out where it can round no weight, got {method!r}: {quote(name)}: {most}"
        raise OptionError(f"{text}; {fix}")
    return found


def check_any_pruned(decisions: Mapping[str, Decision], method: str) -> None:
    """Refuse to run a model for nothing.

    Raises
    ------
    OptionError
        If no weight is pruned.
    """
    if not any(each.action == "prune" for each in decisions.values()):
        text = f"method must be 'magnitude' where no weight is pruned by its inputs, got {method!r}"
        raise OptionError(f"{text}{_first_reason(decisions)}; use 'magnitude', or include others")


def _first_reason(decisions: Mapping[str, Decision]) -> str:
    """Return why one of the weights is left alone that most are alike to."""
    if not decisions:
        return ""
    most, _ = Counter(each.reason for each in decisions.values()).most_common(1)[0]
    name = next(name for name, each in decisions.items() if each.reason == most)
    return f", as {quote(name)}: {most}"


def _rounded(decision: Decision, reason: str | None, method: str | None) -> Decision:
    words = WORDS[method] if reason is None else f"not {WORDS[method]}: {reason}"
    return replace(decision, reason=f"{decision.reason}; {words}")


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
