"""H43, H57: every argument of every function of arrays, given what it doesn't take: a promised error that names it."""

import inspect
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from modelopt_rs import optim, preprocess, prune, quant, reduce
from modelopt_rs.optim import schedule

PROMISED = (TypeError, ValueError, MemoryError, IndexError)


def floats(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def w() -> Any:
    return floats(4, 8)


class OnAnotherDevice:
    """A tensor whose memory can't be had."""

    dtype, shape, device = "torch.float32", (4, 8), "cuda"

    def __array__(self, *args: object, **options: object) -> Any:
        raise TypeError("can't convert a tensor of cuda")


def frozen() -> Any:
    array = w()
    array.flags.writeable = False
    return array


def generator() -> Any:
    return (i for i in (1, 2))


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "an object": object,
    "a surrogate": lambda: "\ud800",
    "another word": lambda: "bogus",
    "no word": lambda: "",
    "bytes": lambda: b"x",
    "NaN": lambda: float("nan"),
    "NaN of NumPy": lambda: np.float64("nan"),
    "infinity": lambda: float("inf"),
    "-1": lambda: -1,
    "-0.5": lambda: -0.5,
    "2**70": lambda: 1 << 70,
    "-2**70": lambda: -(1 << 70),
    "2**63": lambda: 1 << 63,
    "2**40": lambda: 1 << 40,
    "True": lambda: True,
    "complex": lambda: 1j,
    "integers": lambda: np.zeros((4, 8), np.int64),
    "objects": lambda: np.full((4, 8), None, object),
    "texts": lambda: np.zeros((4, 8), "U3"),
    "swapped": lambda: np.zeros((4, 8), ">f4"),
    "swapped integers": lambda: np.zeros((4, 8), ">i2"),
    "swapped indices": lambda: np.zeros(2, ">u8"),
    "a swapped dtype": lambda: ">i2",
    "a swapped dtype of floats": lambda: np.dtype(">f4"),
    "complex array": lambda: np.zeros((4, 8), np.complex64),
    "no axes": lambda: np.array(3.0),
    "empty": lambda: np.zeros(0, np.float32),
    "NaN array": lambda: np.full((4, 8), np.nan, np.float32),
    "another shape": lambda: np.zeros((3, 5), np.float32),
    "two integers": lambda: np.array([1, 2]),
    "read-only": frozen,
    "masked": lambda: np.ma.masked_array(w()),
    "byte array": lambda: np.zeros((4, 8), np.uint8),
    "bool array": lambda: np.zeros((4, 8), bool),
    "another device": OnAnotherDevice,
    "a dict": dict,
    "a dict of numbers": lambda: {"w": 1},
    "a dict by numbers": lambda: {1: 2},
    "a list": list,
    "a list of None": lambda: [None],
    "a list of words": lambda: ["a"],
    "a list of integers": lambda: [1, 2],
    "a ragged list": lambda: [[1], [2, 3]],
    "a generator": generator,
    "a set": set,
    "a range": lambda: range(3),
    "a function": lambda: lambda *_: None,
    "a type": lambda: int,
    "a type of NumPy": lambda: np.float32,
    "quantized": lambda: mo.quantize(w()),
    "a module": lambda: types,
    "an ellipsis": lambda: ...,
    "a slice": lambda: slice(None),
    "a memoryview": lambda: memoryview(b"ab"),
}


def stats() -> Any:
    found = prune.InputStats(8)
    found.update(floats(32, 8))
    return found


def hessian() -> Any:
    found = prune.Hessian()
    found.update(floats(32, 8))
    return found


def norms() -> Any:
    found = prune.ColumnNorms()
    found.update(floats(32, 8))
    return found


def tensors() -> Any:
    return {"up": floats(16, 8), "b": floats(16), "down": floats(8, 16)}


def group() -> Any:
    return prune.Group("g", 16, (prune.Member("up", 0), prune.Member("b", 0), prune.Member("down", 1)))


def kept() -> Any:
    return np.array([0, 1])


def codes() -> Any:
    return np.zeros((4, 8), np.uint8)


def bert() -> Any:
    shapes = {"query": (8, 8), "key": (8, 8), "value": (8, 8)}
    inner = "encoder.layer.0.attention"
    found = {f"{inner}.self.{name}.{part}": floats(*shape[: 2 - i]) for name, shape in shapes.items()
             for i, part in enumerate(("weight", "bias"))}  # fmt: skip
    return found | {f"{inner}.output.dense.weight": floats(8, 8)}


CONFIG = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}


class Calls:
    """What is called, with arguments that it takes; and what messages may begin with."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]], tuple[str, ...]]] = {}
        self.public: set[Any] = set()

    def add(self, function: Any, *also: str, **arguments: Callable[[], Any]) -> None:
        self.public.add(function)
        name = function.__name__
        module = function.__module__.removeprefix("modelopt_rs.")
        self.found[f"{module}.{name}"] = (function, arguments, (name, *also))

    def method(self, name: str, made: Callable[[], Any], **arguments: Callable[[], Any]) -> None:
        kind = type(made())
        self.found[f"{kind.__name__}.{name}"] = (
            lambda **given: getattr(made(), name)(**given),
            arguments | {"self": made},
            (kind.__name__, f"{kind.__name__}.{name}", name, f"{kind.__name__.lower()}_step", "accumulate_step"),
        )


def value(x: Any) -> Callable[[], Any]:
    return lambda: x


def _arrays(calls: Calls) -> None:
    more = {"kth_magnitude": {"k": value(3)}, "quantile": {"q": value(0.5)}, "topk": {"k": value(3)}}
    calls.add(reduce.allclose, a=w, b=w)
    for name in sorted(set(reduce.__all__) - {"allclose"}):
        calls.add(getattr(reduce, name), x=w, **more.get(name, {}))
    calls.add(mo.quantize, x=w)
    calls.add(mo.fake_quantize, x=w)
    calls.add(mo.dequantize, q=lambda: mo.quantize(w()))
    calls.add(quant.pack, codes=codes, bits=value(4))
    calls.add(quant.unpack, packed=lambda: np.zeros((4, 4), np.uint8), bits=value(4), n=value(8))
    calls.add(quant.quantize_linear, x=w, scale=value(0.5))
    calls.add(quant.dequantize_linear, q=lambda: np.zeros((4, 8), np.int8), scale=value(0.5))
    calls.add(quant.requantize_linear, q=lambda: np.zeros((4, 8), np.int8), scale=value(0.5),
              zero_point=value(None), to_scale=value(0.25))  # fmt: skip
    calls.add(quant.linear, x=w, w=lambda: mo.quantize(w(), axis=0))
    calls.add(quant.gptq, w=w, hessian=hessian)
    calls.add(quant.awq_scales, w=w, x_stats=lambda: np.ones(8), group_size=value(4))
    calls.add(quant.Calibrator)
    calls.method("update", quant.Calibrator, x=w)
    calls.method("merge", quant.Calibrator, other=quant.Calibrator)
    eye = lambda: mo.quantize(np.eye(8, dtype=np.float32), axis=0)  # noqa: E731
    calls.method("take", eye, indices=value(3))
    calls.method("dequantize", eye)
    calls.method("prepack", eye)
    calls.add(preprocess.quantize_embeddings, x=w)
    calls.add(preprocess.Image, size=value((8, 8)))
    images = lambda: np.zeros((4, 8, 3), np.uint8)  # noqa: E731
    calls.method("__call__", lambda: preprocess.Image((8, 8)), images=images)
    calls.method("geometry", lambda: preprocess.Image((8, 8)), shape=value((4, 8, 3)))
    calls.add(mo.as_array, obj=w)
    calls.add(mo.to_dlpack, array=w)
    calls.add(mo.set_num_threads, n=mo.get_num_threads)
    calls.add(mo.num_threads, n=value(2))


def _prune(calls: Calls) -> None:
    half = value(0.5)
    calls.add(prune.threshold, w=w, eps=value(0.1))
    calls.add(prune.magnitude, w=w)
    calls.add(prune.global_magnitude, arrays=lambda: [w(), w()])
    calls.add(prune.n_of_m, w=w)
    calls.add(prune.apply_mask, w=w, mask=lambda: np.ones((4, 8), bool))
    calls.add(prune.wanda, w=w, x_stats=lambda: norms().norms, sparsity=half)
    calls.add(prune.sparsegpt, w=w, hessian=hessian, sparsity=half)
    calls.add(prune.blocks, w=lambda: floats(8, 8), block=value((2, 2)))
    calls.add(prune.compress, w=w)
    calls.add(prune.to_csr, w=w)
    calls.add(prune.take, x=w, indices=kept, axis=value(0))
    calls.add(prune.importance, w=w, axis=value(0))
    calls.add(prune.crop, tensors=tensors, groups=lambda: [group()])
    calls.add(prune.plan_crop, tensors=tensors, groups=lambda: [group()])
    calls.add(prune.apply_crop, tensors=tensors, groups=lambda: [group()], kept=lambda: {"g": kept()})
    calls.add(prune.mlp_groups, "Group", "Layer", tensors=tensors, weights=value(["up", "down"]))
    layers = lambda: [prune.Layer("up", "b"), prune.Layer("down")]  # noqa: E731
    calls.add(prune.chain_groups, "Group", "Layer", tensors=tensors, layers=layers)
    calls.add(prune.transformer_groups, tensors=bert, config=lambda: dict(CONFIG), what=value("heads"))
    report = lambda: prune.plan_crop(bert(), prune.transformer_groups(bert(), CONFIG, "heads"))  # noqa: E731
    calls.add(prune.cropped_config, config=lambda: dict(CONFIG), report=report)
    calls.add(prune.least_squares, weight=w, kept=kept, stats=stats)
    calls.add(prune.compensate_bias, bias=lambda: floats(4), weight=w, kept=kept, mean=lambda: floats(8))
    grown = {"sparsity": half, "begin": value(0), "end": value(10)}
    calls.add(prune.cubic, **grown)
    calls.add(prune.linear, **grown)
    calls.add(prune.constant, sparsity=half)
    calls.add(prune.InputStats, features=value(8))
    calls.method("update", stats, x=w)
    calls.method("merge", stats, other=stats)
    calls.add(prune.Hessian)
    calls.method("update", hessian, x=w)
    calls.add(prune.ColumnNorms)
    calls.method("update", norms, x=w)
    calls.method("merge", norms, other=norms)
    calls.add(prune.Group, name=value("g"), units=value(4), members=lambda: (prune.Member("a", 0),))
    calls.add(prune.Member, name=value("a"), axis=value(0))
    calls.add(prune.Layer, weight=value("a"))
    adam = lambda: optim.Adam({"w": w()})  # noqa: E731
    calls.add(prune.PrunedOptimizer, "magnitude", optimizer=adam, sparsity=half)


def _optim(calls: Calls) -> None:
    rate = {"lr": value(0.1), "steps": value(10), "every": value(2), "gamma": value(0.5), "max_lr": value(0.1)}
    rate |= {"schedule": value(0.1)}
    for name in schedule.__all__:
        function = getattr(schedule, name)
        needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        calls.add(function, **{name: rate[name] for name in needed})
    plain = {"step": value(1), "lr": value(0.1), "decay": value(0.9)}
    adafactor = {"row_var": lambda: floats(4, 1), "col_var": lambda: floats(1, 8)}
    for name in optim.__all__:
        each = getattr(optim, name)
        if name.endswith("_step"):
            needed = [p.name for p in inspect.signature(each).parameters.values() if p.default is p.empty]
            positive = lambda: np.abs(w())  # noqa: E731
            of_name = plain | (adafactor if name == "adafactor_step" else {})
            calls.add(each, **{arg: of_name.get(arg, positive) for arg in needed}, **adafactor_of(name, adafactor))
        elif inspect.isclass(each) and issubclass(each, optim.Optimizer) and each is not optim.Optimizer:
            calls.add(each, each.specification.function, params=lambda: {"w": w()})
    calls.add(optim.global_norm, "norm", grads=w)
    calls.add(optim.BlockState, codes=codes, absmax=lambda: floats(1), shape=value((4, 8)), signed=value(True))
    calls.method("step", lambda: optim.AdamW({"w": w()}), grads=lambda: {"w": w()})
    calls.method("accumulate", lambda: optim.AdamW({"w": w()}), grads=lambda: {"w": w()})


def adafactor_of(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments if name == "adafactor_step" else {}


CALLS = Calls()
_arrays(CALLS)
_prune(CALLS)
_optim(CALLS)
# What functions return, and what has no arguments.
RETURNED = {"QuantizedArray", "PackedWeight", "Format", "formats", "get_num_threads", "BitmaskArray", "GroupsArray",
            "CropReport", "GroupReport", "StepResult", "Optimizer", "EmbeddingKind", "Geometry"}  # fmt: skip


# What a service calls; messages of others may show all digits of what came.
INFERENCE = [
    name for name in CALLS.found if name.startswith(("quant", "preprocess", "reduce", "Image", "QuantizedArray"))
]
HUGE = {"10**400": lambda: 10**400, "huge integers": lambda: [10**400, -(10**400)]}


def problem(names: tuple[str, ...], arguments: set[str], error: BaseException) -> str | None:
    """Say in what an error breaks the promise."""
    text = str(error)
    if not isinstance(error, PROMISED) or isinstance(error, UnicodeError):
        return f"{type(error).__name__}: {text[:200]}"
    if isinstance(error, MemoryError):
        return None
    begins = any(re.match(rf"{re.escape(name)}( '[^']*')?: ", text) for name in names)
    named = any(re.search(rf"\b{name}s?\b", text) for name in arguments)
    is_short = "\n" not in text and len(text) < 400
    return None if begins and named and is_short else text[:300]


@pytest.mark.parametrize("name", CALLS.found)
@pytest.mark.filterwarnings("ignore")
def test_h43_a_wrong_argument_is_refused_by_name(name: str) -> None:
    function, right, names = CALLS.found[name]
    threads = mo.get_num_threads()
    given = {k: v() for k, v in right.items() if k != "self"}
    function(**given)  # what is right is taken
    arguments = set(right) | (set() if "self" in right else set(inspect.signature(function).parameters))
    found = []
    for argument in sorted(arguments - {"self", "common"}):
        for what, wrong in (WRONG | (HUGE if name in INFERENCE else {})).items():
            given = {k: v() for k, v in right.items() if k != "self"}
            try:
                with np.errstate(all="ignore"):
                    function(**{**given, argument: wrong()})
            except BaseException as error:
                said = problem(names, arguments, error)
                if said is not None:
                    found.append(f"{argument}={what}: {said}")
    mo.set_num_threads(threads)
    assert found == []


def test_every_public_function_of_arrays_is_in_the_table() -> None:
    public = {
        name: getattr(module, name)
        for module in (reduce, quant, preprocess, prune, optim, schedule)
        for name in module.__all__
        if callable(getattr(module, name))
    }
    assert {name for name, each in public.items() if each not in CALLS.public} <= RETURNED


@pytest.mark.parametrize("name", INFERENCE)
@pytest.mark.filterwarnings("ignore")
def test_what_is_too_large_or_of_another_byte_order_is_shown(name: str) -> None:
    function, right, _ = CALLS.found[name]
    arguments = set(right) | (set() if "self" in right else set(inspect.signature(function).parameters))
    found, threads = [], mo.get_num_threads()
    for argument in sorted(arguments - {"self", "common", "scale", "to_scale"}):
        for what in (10**30, -(10**30), 10**400, ">i2", ">f4", np.zeros((4, 8), ">f4"), np.zeros((4, 8), ">i2")):
            given = {k: v() for k, v in right.items() if k != "self"}
            try:
                function(**{**given, argument: what})
            except (TypeError, ValueError, IndexError) as error:
                text = str(error)
                order = "has big-endian dtype" in text and "; use " in text
                if not (order or (" must " in text and ", got " in text)):
                    found.append(f"{argument}={str(what)[:20]}: {text}")
    mo.set_num_threads(threads)
    assert found == []


@pytest.mark.parametrize("name", [name for name in CALLS.found if "dtype" in
                                  getattr(inspect.signature(CALLS.found[name][0]), "parameters", {})])  # fmt: skip
def test_h43_a_dtype_that_is_no_unicode(name: str) -> None:
    function, right, names = CALLS.found[name]
    with pytest.raises((TypeError, ValueError), match=rf"^{names[0]}(\w|:)*.* dtype must be .*, got '\\ud800'$"):
        function(**{**{k: v() for k, v in right.items()}, "dtype": "\ud800"})
