"""Calls of functions of arrays with what they don't take: dtypes, shapes, strides, objects, numbers."""

import inspect
import random
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import modelopt_rs as mo
from modelopt_rs.errors import OptionError

PROMISED = (TypeError, ValueError, MemoryError)
DTYPES = ["f4", "f8", "f2", ">f4", "i1", "u1", "i4", "i8", "u8", "?", "c8", "O", "S3", "U2", "M8[s]", "V3"]


def _functions() -> list[Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for module in (mo, mo.reduce, mo.optim, mo.prune, mo.quant):
        for name in getattr(module, "__all__", dir(module)):
            function = getattr(module, name, None)
            if not callable(function) or name.startswith("_") or name.endswith(("_file", "_files")):
                continue
            if inspect.isclass(function) and not issubclass(function, mo.optim.Optimizer):
                continue  # reports and options: no arrays
            if name in ("set_num_threads", "num_threads", "Optimizer"):
                continue
            found[f"{function.__module__}.{name}"] = function
    return [found[name] for name in sorted(found)]


FUNCTIONS = _functions()


class _Odd:
    """What says that it is an array, and isn't one."""

    __array_interface__ = {"shape": (1 << 40,), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012

    def __array__(self, *args: object, **options: object) -> Any:
        raise RuntimeError("no array")


class _Number:
    def __float__(self) -> float:
        return float("nan")

    def __index__(self) -> int:
        return -1


def _array(pick: random.Random) -> Any:
    shape = pick.choice([(), (0,), (1,), (7,), (64,), (4, 8), (8, 4), (2, 3, 4), (0, 5), (1,) * 32, (33, 65)])
    dtype = pick.choice(DTYPES) if pick.random() < 0.3 else pick.choice(["f4", "f4", "f8", "f2"])
    count = int(np.prod(shape))
    try:
        array = np.arange(count, dtype=np.int64).astype(dtype).reshape(shape)
    except (TypeError, ValueError):
        array = np.zeros(shape, dtype)
    what = pick.randrange(12)
    if what == 0 and array.ndim:
        array = array[::-1]
    elif what == 1:
        array = array.T
    elif what == 2 and array.ndim:
        array = array[..., ::2]
    elif what == 3:
        array = np.broadcast_to(array, (3, *shape)) if array.ndim < 31 else array
    elif what == 4:
        array.flags.writeable = False
    elif what == 5 and array.dtype.kind == "f" and array.size:
        array = array.copy()
        array.flat[pick.randrange(array.size)] = pick.choice([np.nan, np.inf, -np.inf, 0])
    elif what == 6:
        array = np.ma.masked_array(array)
    elif what == 7 and array.dtype.kind == "f":
        array = array.astype(ml_dtypes.bfloat16)
    elif what == 8 and array.dtype.itemsize > 1 and not array.dtype.hasobject:
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
        array = raw.view(array.dtype).reshape(array.shape) if array.ndim else array
    return array


ODD: list[Callable[[], Any]] = [
    lambda: None,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: -float("inf"),
    lambda: -1,
    lambda: 0,
    lambda: 1,
    lambda: 2,
    lambda: 0.5,
    lambda: 3.7,
    lambda: 1 << 31,
    lambda: 1 << 63,
    lambda: 1 << 70,
    lambda: -(1 << 70),
    lambda: True,
    lambda: "",
    lambda: "mse",
    lambda: "symmetric",
    lambda: "\ud800",
    lambda: b"x",
    lambda: 1j,
    lambda: [],
    lambda: [1.0],
    lambda: [None],
    lambda: {},
    lambda: {"w": np.ones(4, np.float32)},
    lambda: {1: 2},
    lambda: set(),
    lambda: object(),
    lambda: _Odd(),
    lambda: _Number(),
    lambda: np.float32(np.nan),
    lambda: np.array(3),
    lambda: np.dtype("f4"),
    lambda: np.float32,
    lambda: (x for x in ()),
    lambda: range(3),
    lambda: lambda *_: None,
    lambda: slice(None),
    lambda: Ellipsis,
    lambda: mo.quantize(np.ones((4, 8), np.float32)),
    lambda: np.ones((4, 8), np.float32)[None],
    lambda: memoryview(b"abcd"),
]


def _anything(pick: random.Random, name: str) -> Any:
    roll = pick.random()
    if name == "threads":
        return pick.choice([None, 1, 2]) if roll < 0.7 else pick.choice(ODD[:16])()
    if roll < 0.45:
        return _array(pick)
    if roll < 0.55:
        return [_array(pick) for _ in range(pick.randrange(3))]
    if roll < 0.6:
        return {f"p{i}": _array(pick) for i in range(pick.randrange(3))}
    return pick.choice(ODD)()


def _is_in_words(function: Callable[..., Any], error: BaseException, name: Any) -> bool:
    """Whether an error says in one line which function's argument is wrong (H43, H57), by the name that was given."""
    if isinstance(error, MemoryError):
        return True
    if function is mo.as_array and isinstance(name, str) and str(error).startswith(f"{name} must "):
        return True
    names = [function.__name__]
    if isinstance(error, OptionError):  # which names the option alone: a command shows its flag
        names += list(inspect.signature(function).parameters)
    if inspect.isclass(function) and issubclass(function, mo.optim.Optimizer):
        names += [f"{function.__name__}.step", "accumulate_step"]
        own = getattr(function.specification, "function", None)  # PrunedOptimizer's is that of what it wraps
        names += [own] if own else []
    text = str(error)
    is_short = "\n" not in text and not isinstance(error, UnicodeError)
    return is_short and any(text.startswith((f"{name}: ", f"{name} '", f"{name} must ")) for name in names)


def misuse(seed: int) -> BaseException | None:
    """Call a function with odd arguments; return an error that isn't one of those it may raise."""
    pick = random.Random(seed)
    function = pick.choice(FUNCTIONS)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        needed = parameter.default is inspect.Parameter.empty
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not needed and pick.random() < 0.75:
            continue
        if parameter.kind == parameter.KEYWORD_ONLY:
            named[parameter.name] = _anything(pick, parameter.name)
        else:
            positional.append(_anything(pick, parameter.name)) if needed else named.update(
                {parameter.name: _anything(pick, parameter.name)}
            )
    try:
        result = function(*positional, **named)
        if isinstance(result, mo.optim.Optimizer):
            result.step(pick.choice([_anything(pick, "grads"), [np.ones(7, np.float32)]]))
    except PROMISED as error:
        return None if _is_in_words(function, error, named.get("name")) else error
    except BaseException as error:
        if isinstance(error, RuntimeError) and str(error) == "no array":
            return None  # what the argument itself raises
        return error
    return None
