"""The errors, and how messages show what stands in a file: escaped, cut, and numbers with thousands separators."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from modelopt_rs._core import FormatError, InternalError, LimitError, UnsupportedError

__all__ = [
    "ArgumentError",
    "FormatError",
    "InPlaceError",
    "InternalError",
    "LimitError",
    "OptionError",
    "ScaleRangeError",
    "SourceWarning",
    "UnsupportedError",
    "binary_size",
    "check_mapping",
    "check_option",
    "listing",
    "quote",
    "said_as",
]

MAX_QUOTE = 128  # bytes of a file's own text in a message
MAX_LISTED = 10


class ArgumentError(ValueError):
    """An argument of a function has a wrong value.

    Attributes
    ----------
    function : str
        The function that was called.
    problem : str
        Which argument must be what, and what came.
    """

    def __init__(self, function: str, problem: str) -> None:
        super().__init__(f"{function}: {problem}")
        self.function, self.problem = function, problem

    def __reduce__(self) -> tuple[type["ArgumentError"], tuple[str, str]]:
        return type(self), (self.function, self.problem)


class OptionError(ValueError):
    """An option has a wrong value, or asks for what can't be done with this model.

    Attributes
    ----------
    problem : str
        The message without its reasons.
    reasons : tuple of str
        Where there are many, each of them: a command shows them in a line each.
    """

    def __init__(self, problem: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(f"{problem}: {listing(list(reasons))}" if reasons else problem)
        self.problem, self.reasons = problem, tuple(reasons)

    def __reduce__(self) -> tuple[type["OptionError"], tuple[str, tuple[str, ...]]]:
        return type(self), (self.problem, self.reasons)


class ScaleRangeError(ValueError):
    """Numbers are so large that scales in 16 bits can't hold theirs: other codes, or scales in 32 bits, can."""


class InPlaceError(OSError):
    """Something failed after the new file or directory took its place: it is there, whole.

    It may not be on the disk yet, or what it replaced could not be removed: the message says which.
    """


class SourceWarning(UserWarning):
    """What should be known of a model file that is opened: each is in the report of what reads it as well."""


def check_mapping(function: str, name: str, value: object, of: str) -> None:
    """Refuse what is no mapping where names are looked up.

    Raises
    ------
    TypeError
        If it is none.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{function}: {name} must be a mapping of {of}, got {type(value).__name__}")
    other = next((key for key in value if not isinstance(key, str)), None)
    if other is not None:
        raise TypeError(f"{function}: {name} must have keys of str, got {type(other).__name__}")


def check_option(name: str, value: object, known: Sequence[object]) -> None:
    """Refuse a value of an option that is none of those that it has.

    Raises
    ------
    OptionError
        If it is another.

    Examples
    --------
    >>> from modelopt_rs.errors import check_option
    >>> check_option("scope", "row", ("tensor", "row", "global"))
    >>> check_option("scope", "layer", ("tensor", "row", "global"))
    Traceback (most recent call last):
    modelopt_rs.errors.OptionError: scope must be 'tensor', 'row' or 'global', got 'layer'
    """
    if value not in known:
        *most, last = map(repr, known)
        raise OptionError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")


@contextmanager
def said_as(names: Mapping[str, str]) -> Iterator[None]:
    """Raise errors that begin with a key of `names` with its value instead: for functions that are built from others.

    The one place that looks into messages: kernels say their own names, and users have called something else.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> from modelopt_rs.errors import said_as
    >>> with said_as({"norm: x": "blocks: w"}):
    ...     mo.reduce.norm(np.array(["a"]))
    Traceback (most recent call last):
    TypeError: blocks: w must have dtype float32, float64, float16 or bfloat16, of integers or bool, got <U1
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        for name, other in names.items():
            if text.startswith(name):
                raise type(error)(other + text.removeprefix(name)) from None
        raise


def quote(text: str, limit: int = MAX_QUOTE) -> str:
    """Return `text` in quotes without control characters and the like, cut at `limit` bytes."""
    out = []
    length = 0
    for c in text[: limit + 1]:
        shown = c
        if c in "'\\":
            shown = "\\" + c
        elif not c.isprintable():
            shown = c.encode("unicode_escape").decode()
        length += len(shown.encode())
        if length > limit:
            out.append("...")
            break
        out.append(shown)
    return "'" + "".join(out) + "'"


def binary_size(n: int) -> str:
    """Return a number of bytes as people read it: '4.1 GiB'."""
    size = float(n)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{n:,} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def listing(problems: list[str]) -> str:
    """Return the first ten of `problems` in one line, and how many there are besides."""
    more = len(problems) - MAX_LISTED
    return "; ".join(problems[:MAX_LISTED]) + (f"; and {more:,} more" if more > 0 else "")
