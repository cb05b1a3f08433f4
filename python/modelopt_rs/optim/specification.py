"""What an algorithm is made of, from which step functions, classes and torch classes follow.

Names of numbers and states, which states are optional, which can be negative and which may be in blocks are the
kernel's own and stand in Rust (a `Kind` in `src/kernels/optim/`); options and their defaults are the signature of the
class in `optimizers.py`. The step function and the torch class follow from it; where they are written out for readers
and editors, `tests/optim/test_specification.py` holds them equal.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from modelopt_rs import _core
from modelopt_rs.arguments import check_choice, check_flag, check_number
from modelopt_rs.optim.state import FORMER_CODINGS

__all__ = ["COMMON", "FORMER", "PRECISION", "Specification", "State", "check_common", "own", "refuse_unknown"]

COMMON: dict[str, Any] = {
    "maximize": False,
    "state_bits": 32,
    "coding": "minifloat",
    "state_min_size": 4096,
    "master": False,
    "rounding_seed": None,
}
"""The options of a group that all optimizers have, and their defaults."""
_FLAGS = {"maximize", "master", "nesterov", "amsgrad", "centered", "decoupled_weight_decay"}
FORMER: dict[str, dict[str, str]] = {"coding": FORMER_CODINGS}
"""Values of version 0.1 that are others now."""
PRECISION = {"state_bits", "coding", "state_min_size", "master"}
"""Those of how states are kept, which a loaded state does not change."""


class State(NamedTuple):
    """A state that an algorithm may have."""

    name: str
    signed: bool
    option: str | None
    """The option that asks for it; None: it always has it."""


class Specification(NamedTuple):
    """What a kernel takes."""

    function: str
    numbers: tuple[str, ...]
    states: tuple[State, ...]
    blocks: tuple[int, tuple[int, ...]]
    """With how many states they may be in blocks, and of how many bits."""

    @classmethod
    def of(cls, function: str) -> "Specification":
        """Give that of a step function."""
        numbers, states, blocks = _core.specification(function)
        return cls(function, numbers, tuple(State(*state) for state in states), blocks)

    def names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Name the states that these options ask for."""
        return tuple(s.name for s in self.states if s.option is None or options[s.option])

    def signed(self, name: str) -> bool:
        """Whether a state can be negative."""
        return next(s.signed for s in self.states if s.name == name)

    def bits(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Give what `state_bits` may be with these options."""
        (count, bits), wanted = self.blocks, len(self.names(options))
        return (32, 8, 4) if wanted == 0 else (32, *bits) if wanted == count else (32,)


def own(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give an optimizer's own options of the arguments of its `__init__`, which are its `locals()`."""
    return {k: v for k, v in arguments.items() if k not in ("self", "params", "common", "__class__")}


def refuse_unknown(name: str, given: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Refuse options that an optimizer has not, and say which it has.

    Examples
    --------
    >>> from modelopt_rs.optim.specification import refuse_unknown
    >>> refuse_unknown("SGD", {"learning_rate": 0.1}, ["lr", "momentum"])
    Traceback (most recent call last):
    TypeError: SGD: unknown option 'learning_rate'; it has lr, momentum
    """
    if unknown := set(given) - set(known):
        raise TypeError(f"{name}: unknown option {min(unknown)!r}{where}; it has {', '.join(known)}")


def check_common(name: str, options: Mapping[str, Any]) -> None:
    """Refuse values that the options of an optimizer can't have; `name` is its class's."""
    check_choice(name, "state_bits", options["state_bits"], (32, 8, 4))
    check_choice(name, "coding", options["coding"], ("minifloat", "dynamic"))
    check_number(name, "state_min_size", options["state_min_size"])
    if "momentum" in options:
        check_number(name, "momentum", options["momentum"])
    for flag in sorted(_FLAGS & set(options)):
        check_flag(name, flag, options[flag])
