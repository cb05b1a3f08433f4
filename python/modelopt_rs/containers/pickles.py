"""Pickles read as data: a machine of our own with the few instructions that containers of tensors need.

Nothing in a pickle is imported or called. What it names is looked up in a table of stand-ins; what isn't there is an
error. Python's own unpickler is not used, even restricted: a file can make it allocate without bounds (memo, bytearray)
and overflow the stack (a deep tuple as a key).
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from modelopt_rs.errors import FormatError, LimitError, UnsupportedError, quote

__all__ = ["MAX_OPCODES", "OPAQUE", "Function", "load_pickle"]

MAX_OPCODES = 2_000_000  # of some forty for a tensor
_VALUES: Final = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: Final[Mapping[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KEYS = (str, int, float, bytes, type(None))  # comparing and hashing them has no depth


class _Opaque:
    """Stands for an object that is no tensor and holds none: settings, random states, dates."""


OPAQUE: Final = _Opaque()


@dataclass(frozen=True, slots=True)
class Function:
    """What stands for a function or a class that a pickle calls."""

    name: str
    call: Callable[..., Any]


def load_pickle(
    file: IO[bytes],
    known: Mapping[str, Any],
    persistent: Callable[[Any], Any],
    max_opcodes: int = MAX_OPCODES,
) -> Any:
    """Read one pickle from a file, which then stands behind it.

    Dicts of every kind become `dict`, sets become lists; the states of objects are dropped.

    Parameters
    ----------
    file : binary file
        Its `read(n)` must not allocate more than it has.
    known : mapping of str to object
        What stands for a global, by its module and name with a space between.
    persistent : callable
        What stands for an object that is outside of the pickle, by its id.
    max_opcodes : int
        The most instructions to follow.

    Raises
    ------
    FormatError
        If it is malformed. `LimitError`: it is over the limit. `UnsupportedError`: it names what isn't known.
    """
    machine = _Machine(known, persistent)
    try:
        for n, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if n >= max_opcodes:
                raise LimitError(f"the pickle has more than {max_opcodes:,} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as e:
        raise FormatError(f"the pickle is damaged: {quote(str(e))}") from None
    raise FormatError("the pickle is cut short")


class _Machine:
    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        self._known, self._persistent = known, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            if argument >> 32:  # no bytes have so many, and dicts of chosen large numbers are slow
                raise FormatError(f"the pickle notes a value under {argument:,}")
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name not in ("PROTO", "FRAME") and not self._contain(name) and not self._object(name, argument):
            raise UnsupportedError(f"the pickle has the instruction {name}, which no state dict needs")

    def _marked(self) -> list[Any]:
        """Return what lies over the last mark, and remove both."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _contain(self, name: str) -> bool:
        """Make or fill a container; False if it is another instruction."""
        match name:
            case "EMPTY_DICT":
                self._stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                self._stack.append([])
            case "TUPLE":
                items = self._marked()
                self._stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                last = [self._stack.pop() for _ in range(n)]
                self._stack.append(tuple(reversed(last)))
            case "LIST" | "FROZENSET":
                items = self._marked()
                self._stack.append(items)
            case "DICT":
                items = self._marked()
                self._stack.append({})
                self._put(items)
            case "APPEND":
                self._extend([self._stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._marked())
            case "SETITEM":
                value, key = self._stack.pop(), self._stack.pop()
                self._put([key, value])
            case "SETITEMS":
                self._put(self._marked())
            case "POP":
                self._stack.pop()
            case "POP_MARK":
                self._marked()
            case "DUP":
                self._stack.append(self._stack[-1])
            case _:
                return False
        return True

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if target is not OPAQUE:
            if not isinstance(target, list):
                raise FormatError(f"the pickle appends to a {type(target).__name__}")
            target.extend(items)

    def _put(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if target is not OPAQUE:
            if not isinstance(target, dict):
                raise FormatError(f"the pickle sets items of a {type(target).__name__}")
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key, len(target))] = value

    def _object(self, name: str, argument: Any) -> bool:
        """Name or make an object; False if it is another instruction."""
        match name:
            case "GLOBAL":
                self._stack.append(self._find(argument))
            case "STACK_GLOBAL":
                attribute, module = self._stack.pop(), self._stack.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise FormatError("the pickle names a global by what is no text")
                self._stack.append(self._find(f"{module} {attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self._stack.pop(), self._stack.pop()
                if not isinstance(function, Function) or not isinstance(arguments, tuple):
                    raise FormatError(f"the pickle calls a {type(function).__name__}")
                self._stack.append(function.call(*arguments))
            case "NEWOBJ_EX":
                self._stack.pop()
                return self._object("NEWOBJ", None)
            case "BUILD":
                self._stack.pop()  # of the states of stand-ins nothing is kept
            case "BINPERSID":
                self._stack.append(self._persistent(self._stack.pop()))
            case _:
                return False
        return True

    def _find(self, name: str) -> Any:
        try:
            return self._known[name]
        except KeyError:
            raise UnsupportedError(
                f"the pickle asks for {quote(name.replace(' ', '.'))}, which is no part of a state dict, and nothing "
                "in a file is executed; where you trust it, load it with torch and save its state_dict()"
            ) from None


def _key(key: Any, n: int) -> Any:
    """Return a key of a dict, which must be plain; what stands for a class gets a number."""
    if key is OPAQUE or isinstance(key, Function):
        return f"object {n}"
    if not isinstance(key, _KEYS):
        raise UnsupportedError(f"the pickle has a dict with a {type(key).__name__} as a key")
    if isinstance(key, int) and abs(key) >> 60:  # many of them can have one hash
        raise UnsupportedError("the pickle has a dict with a number of more than 60 bits as a key")
    return key
