"""Which tensors of a model an operation takes, which it leaves alone, and why.

The default takes what is known to stand it best: the weights of layers, but not embeddings and heads. `include` and
`exclude` globs change it. Every tensor gets a decision and a one-line reason.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from modelopt_rs.errors import OptionError, UnsupportedError, quote
from modelopt_rs.layouts.registry import LAYOUTS
from modelopt_rs.planning.families import kept_by_default
from modelopt_rs.stream.model import TensorInfo, is_recurrent

__all__ = [
    "Action",
    "Decision",
    "Moved",
    "check_bits_of",
    "check_globs",
    "check_plain",
    "decide",
    "matches",
    "moved_in_words",
    "not_read",
]

Action: TypeAlias = Literal["quantize", "prune", "copy"]


def check_globs(include: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse one string where there must be several."""
    for name, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str):
            raise TypeError(f"{name} must be a sequence of globs, got one string")


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with one tensor, and why."""

    action: Action
    reason: str
    moved: "Moved | None" = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Why a weight has other bits than those asked for: in words that hold for others, too, and in its own."""

    bits: int
    why: str
    of_this: str

    @property
    def words(self) -> str:
        """The bits and why."""
        return f"{self.bits} bits ({self.of_this})"


def moved_in_words(decisions: Iterable[Decision]) -> list[str]:
    """Say how many weights have more bits than asked for, and why.

    Examples
    --------
    >>> from modelopt_rs.planning.decide import Decision, Moved, moved_in_words
    >>> moved = Moved(8, "their error at 4 bits is over 0.15", "error at 4 bits 0.21")
    >>> moved_in_words([Decision("quantize", moved.words, moved), Decision("copy", "a norm")])
    ['1 weight at 8 bits: their error at 4 bits is over 0.15']
    """
    counts = Counter((each.moved.bits, each.moved.why) for each in decisions if each.moved and each.action != "copy")
    return [f"{n:,} weight{'' if n == 1 else 's'} at {bits} bits: {why}" for (bits, why), n in counts.most_common()]


def check_plain(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> None:
    """Refuse a model whose weights are stored in some layout already.

    Raises
    ------
    UnsupportedError
        If it is one.
    """
    for layout in LAYOUTS:
        mark = layout.mark(tensors)
        if mark is not None:
            raise UnsupportedError(
                f"the model is {layout.state} already (it has tensor {quote(mark)}): dequantize it first"
            )
    unread = not_read(config)
    if unread is not None:
        raise UnsupportedError(f"the model {unread}")


def not_read(config: Mapping[str, Any]) -> str | None:
    """Say of a model in which no layout finds weights that it is quantized, and what to do; None if nothing says so.

    Examples
    --------
    >>> from modelopt_rs.planning.decide import not_read
    >>> not_read({"quantization_config": {"quant_method": "gptq"}})[:78]
    "is quantized already by 'gptq' (quantization_config in config.json), which is "
    >>> not_read({"quantization": {"bits": 4, "group_size": 64}})[:63]
    'is quantized already by MLX (quantization in config.json), whic'
    >>> not_read({})
    """
    key, said = "quantization_config", config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    by = quote(method) if isinstance(method, str) else "a method that it does not name"
    if not said:
        key, said, by = "quantization", config.get("quantization"), "MLX"
        if not isinstance(said, Mapping) or not {"bits", "group_size"} <= said.keys():
            return None
    return (
        f"is quantized already by {by} ({key} in config.json), which is not read here: take the model that it was "
        f"made of; if its weights are plain floats, remove {key} from config.json"
    )


def decide(
    action: Literal["quantize", "prune"],
    tensors: Mapping[str, TensorInfo],
    cannot: Mapping[str, str | None],
    include: Sequence[str],
    exclude: Sequence[str],
    default: Mapping[str, Decision] | None = None,
) -> dict[str, Decision]:
    """Decide for each tensor whether an action takes it.

    Parameters
    ----------
    action : str
        What is done with tensors.
    tensors : mapping
        The tensors of the model by name.
    cannot : mapping
        For each tensor why it can't be done with it; None if it can.
    include, exclude : sequence of str
        Globs over names: what to take besides the default, and what not to. `exclude` wins.
    default : mapping, optional
        What is done with each tensor that it can be done with and that no glob names; by default its name decides.

    Raises
    ------
    OptionError
        If a glob matches no tensor, or an include glob only tensors that it can't be done with.
    """
    included = matches(tensors, include, "include")
    excluded = matches(tensors, exclude, "exclude")
    plan = {}
    for name, info in tensors.items():
        reason = cannot[name]
        if name in excluded:
            plan[name] = Decision("copy", f"excluded by {excluded[name]!r}")
        elif reason is not None:
            plan[name] = Decision("copy", reason)
        elif name in included:
            plan[name] = Decision(action, f"included by {included[name]!r}")
        elif default is not None:
            plan[name] = default[name]
        else:
            reason = kept_by_default(name)
            layer = "weight of a linear layer" if len(info.shape) == 2 else "weight of a convolution"
            layer = "weight of a recurrent layer" if is_recurrent(name) else layer
            plan[name] = Decision("copy", reason) if reason else Decision(action, layer)
    _check_included(action, tensors, cannot, include)
    return plan


def check_bits_of(globs: Iterable[str], decisions: Mapping[str, Decision]) -> None:
    """Refuse a glob that gives no weight its bits."""
    for glob in globs:
        matched = [name for name in decisions if is_match(name, glob)]
        if not matched:
            raise OptionError(f"bits_of {glob!r} matches no tensor")
        if not any(decisions[name].action == "quantize" for name in matched):
            reason = decisions[matched[0]].reason
            raise OptionError(f"bits_of {glob!r}: tensor {quote(matched[0])} is not quantized: {reason}")


def matches(tensors: Mapping[str, TensorInfo], globs: Sequence[str], option: str) -> dict[str, str]:
    """Return the names that globs match, each with the first that does; OptionError where one matches none."""
    found: dict[str, str] = {}
    for glob in globs:
        names = [name for name in tensors if is_match(name, glob)]
        if not names:
            raise OptionError(f"{option} {glob!r} matches no tensor{_escaped(tensors, glob)}")
        for name in names:
            found.setdefault(name, glob)
    return found


def is_match(name: str, glob: str) -> bool:
    """Whether a name matches a glob, or is the same text."""
    return name == glob or fnmatchcase(name, glob)


def _escaped(tensors: Mapping[str, TensorInfo], glob: str) -> str:
    """Say how to write a bracket that a name has, if the glob matches with all of its brackets taken so."""
    literal = glob.replace("[", "[[]")
    if not any(fnmatchcase(name, literal) for name in tensors):
        return ""
    return f"; [ begins a set of characters: write [[] for it, as in {literal!r}"


def _check_included(
    action: str, tensors: Mapping[str, TensorInfo], cannot: Mapping[str, str | None], include: Sequence[str]
) -> None:
    """Refuse a glob that can't have any effect; one that also matches a bias or a norm is welcome."""
    for glob in include:
        refused = {name: reason for name, reason in cannot.items() if is_match(name, glob)}
        if all(refused.values()):
            # Who writes a glob thinks of the largest.
            name = max(refused, key=lambda name: tensors[name].nbytes)
            raise OptionError(f"include {glob!r}: tensor {quote(name)} can't be {action}d: {refused[name]}")
