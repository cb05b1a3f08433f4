"""Arguments of the wrong type: refused by what the annotations of a function say, before anything is done with them."""

import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

__all__ = [
    "check_choice",
    "check_fields",
    "check_flag",
    "check_number",
    "check_types",
    "listed",
    "shown",
    "shown_dtype",
]

SHOWN = 60  # characters of a value that came
# What a type of an annotation takes, and what it is called.
TAKEN: Final[dict[Any, tuple[tuple[type, ...], str]]] = {
    bool: ((bool, np.bool_), "a bool"),
    int: ((int, np.integer), "an int"),
    float: ((int, float, np.integer, np.floating), "a number"),
    str: ((str,), "a str"),
    Mapping: ((Mapping,), "a mapping"),
    Sequence: ((Sequence,), "a sequence"),
    Iterable: ((Iterable,), "an iterable"),
    os.PathLike: ((os.PathLike,), "a path"),
    type(None): ((type(None),), "None"),
}


def check_types(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are not of the types that a function is annotated with.

    Parameters
    ----------
    function : callable
    arguments : mapping
        Its arguments by name: `locals()` in its first line. What else is in it does not matter.

    Raises
    ------
    TypeError
        If one is of another type.

    Examples
    --------
    >>> from modelopt_rs.arguments import check_types
    >>> def half(bits: int, name: str | None = None):
    ...     check_types(half, locals())
    >>> half(4)
    >>> half("4")
    Traceback (most recent call last):
    TypeError: half: bits must be an int, got '4'
    """
    _check(function.__name__, _hints(function), arguments)


def check_choice(function: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is none of some words or numbers, None among them or not: a TypeError where it is of no such type.

    Examples
    --------
    >>> from modelopt_rs.arguments import check_choice
    >>> check_choice("threshold", "mask", "bits", (None, "bool", "bits"))
    >>> check_choice("threshold", "mask", "byte", (None, "bool", "bits"))
    Traceback (most recent call last):
    ValueError: threshold: mask must be None, 'bool' or 'bits', got 'byte'
    """
    is_plain = value is None or isinstance(value, str | int | float)
    if is_plain and value in choices:
        return
    *most, last = map(repr, choices)
    text = f"{function}: {name} must be {', '.join(most)} or {last}, got {shown(value)}"
    raise (ValueError if is_plain and value is not None else TypeError)(text)


def check_number(function: str, name: str, value: Any) -> None:
    """Refuse what is no number. A bool is none."""
    if type(value) is not float and type(value) is not int and not _is(value, float):
        raise TypeError(f"{function}: {name} must be a number, got {shown(value)}")


def check_flag(function: str, name: str, value: Any) -> None:
    """Refuse what is no bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be a bool, got {shown(value)}")


def listed(function: str, name: str, value: Any, of: str) -> list[Any]:
    """Return the items of an argument; TypeError where it has none."""
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{function}: {name} must be a list of {of}, got {shown(value)}") from None


def check_fields(options: Any) -> None:
    """Refuse the same of a dataclass: the first line of its `__post_init__`. NumPy's numbers become Python's."""
    kind: Any = type(options)
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    _check(kind.__name__, _hints(kind), values)
    for name, value in values.items():
        if isinstance(value, np.generic):
            object.__setattr__(options, name, value.item())


@lru_cache(maxsize=64)
def _hints(function: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(function).items() if name != "return"}


def _check(where: str, hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        if name in arguments and not _fits(arguments[name], hint):
            raise TypeError(f"{where}: {name} must be {_words(hint)}, got {shown(arguments[name])}")


@lru_cache(maxsize=256)
def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    return any(_is(value, member) for member in _members(hint))


def _is(value: Any, hint: Any) -> bool:
    plain: Any = get_origin(hint) or hint
    if plain is Any:
        return True
    if plain is Literal:
        # Which of them it is, is a question of its value.
        return isinstance(value, tuple({type(each) for each in get_args(hint)}))
    if plain is Callable or plain is get_origin(Callable[..., Any]):
        return callable(value)
    if plain in (int, float) and isinstance(value, bool | np.bool_):
        return False
    taken = TAKEN[plain][0] if plain in TAKEN else (plain,) if isinstance(plain, type) else (object,)
    if plain is Sequence:
        # A text is a sequence of texts, and never meant as one.
        texts, members = isinstance(value, str | bytes), get_args(hint)
        return isinstance(value, Sequence) and not texts and all(_fits(each, *members) for each in value)
    if plain is Iterable and isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, taken)


def _words(hint: Any) -> str:
    members = [member for member in _members(hint) if member is not type(None)]
    words = []
    for member in members:
        plain = get_origin(member) or member
        if plain is str and any((get_origin(other) or other) is os.PathLike for other in members):
            continue  # a path
        word = _word(plain, member)
        if word not in words:
            words.append(word)
    if len(members) < len(_members(hint)):
        words.append("None")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _word(plain: Any, member: Any) -> str:
    if plain is Sequence and str in get_args(member):
        return "a sequence of str"
    if plain in TAKEN:
        return TAKEN[plain][1]
    if plain is get_origin(Callable[..., Any]):
        return "a callable"
    if plain is Literal:
        *most, last = map(repr, get_args(member))
        return f"{', '.join(most)} or {last}" if most else last
    name = getattr(plain, "__name__", str(plain))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def shown(value: Any) -> str:
    """Show what came: a short number, text or list itself, anything else by its type."""
    if isinstance(value, list | tuple) and len(value) <= 8:
        text = repr(value)
        return text if len(text) <= SHOWN and "\n" not in text else type(value).__name__
    if value is None or isinstance(value, bool | int | float | str):
        try:
            text = repr(value)
        except ValueError:  # an int of more digits than Python writes
            return type(value).__name__
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return type(value).__name__


def shown_dtype(dtype: Any) -> str:
    """Show what came for a dtype: also classes, and the dtypes of other libraries, by name."""
    if isinstance(dtype, type):
        return dtype.__name__
    return str(dtype) if type(dtype).__name__ == "dtype" else shown(dtype)
