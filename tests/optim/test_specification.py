"""The signatures of step functions, classes and torch classes are copies of one: they are held equal here."""

import importlib.util
import inspect
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from modelopt_rs import _core
from modelopt_rs.optim import optimizers
from modelopt_rs.optim.derived import step_of as derived_step
from modelopt_rs.optim.specification import COMMON

NAMES = [name for name in mo.optim.__all__ if isinstance(getattr(mo.optim, name), type) and name[:1].isupper()]
CLASSES = [name for name in NAMES if name not in ("Optimizer", "BlockState", "StepResult")]
# What a class has besides its function: how a state starts, or which optional states there are.
ONLY_CLASS = {"initial_accumulator_value", "amsgrad", "centered", "decoupled_weight_decay"}
# What a step has besides its options.
ONLY_STEP = {"step", "mu_product", "grad_scale", "clip_value", "master", "nonfinite", "dtype", "threads"}
# What all classes have.
ALL_CLASSES = COMMON.keys() | {"ema_decay", "dtype", "threads"}
ANNOTATIONS = {"lr"}  # a class takes a schedule as well


def options(function: Any, leave: set[str]) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each parameter."""
    parameters = inspect.signature(function).parameters.values()
    types = function.__init__.__annotations__ if isinstance(function, type) else function.__annotations__
    return {
        p.name: (None if p.name in ANNOTATIONS else str(types.get(p.name)), p.default)
        for p in parameters
        if p.name not in leave | {"self", "params"}
        and (p.name not in ALL_CLASSES or p.kind is not p.KEYWORD_ONLY or not isinstance(function, type))
        and p.kind is not p.VAR_KEYWORD
    }


def step_of(name: str) -> Any:
    return getattr(mo.optim, f"{name.lower()}_step")


def states_of(name: str) -> list[str]:
    parameters = inspect.signature(step_of(name)).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][2:]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_options_of_its_step_function(name):
    function = options(step_of(name), ONLY_STEP | {"param", "grad", *states_of(name)})
    assert {function.pop(key)[1] for key in function.keys() & COMMON.keys()} <= {False, None}
    assert options(getattr(mo.optim, name), ONLY_CLASS) == function


@pytest.mark.parametrize("name", optimizers.__all__)
def test_a_step_function_and_a_torch_class_are_written_out_for_readers(name):
    """They work without: then they follow from the class, which type checkers and editors don't see."""
    where = step_of(name).__globals__["__name__"]
    assert where != "modelopt_rs.optim.derived", f"write out {name.lower()}_step in modelopt_rs/optim"
    if importlib.util.find_spec("torch") is not None:
        from modelopt_rs.interop.torch import optimizers as guests

        init = getattr(guests, name).__init__
        assert "derived" not in inspect.unwrap(init).__qualname__, f"write out {name} in {guests.__file__}"


# (That of NAdam returns a number for the next.)
@pytest.mark.parametrize("name", [name for name in optimizers.__all__ if name != "NAdam"])
def test_the_step_function_that_follows_from_a_class_is_the_one_that_is_written(name):
    written, derived = step_of(name), derived_step(getattr(mo.optim, name))
    shown = [
        {p.name: (p.kind, p.default) for p in inspect.signature(function).parameters.values()}
        for function in (written, derived)
    ]
    assert shown[0] == shown[1]
    results = []
    for function in (written, derived):
        rng = np.random.default_rng(7)
        arrays = [rng.random(33, np.float32) for _ in range(2 + len(states_of(name)))]
        momentum = {"momentum": 0.9} if "momentum" in shown[0] else {}
        function(*arrays, step=3, maximize=True, weight_decay=0.1, clip_value=0.5, **momentum)
        results.append(np.concatenate(arrays).tobytes())
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the extra `interop` is not installed: torch")
@pytest.mark.parametrize("name", optimizers.__all__)
def test_the_torch_class_that_follows_from_a_class_is_the_one_that_is_written(name):
    import torch

    from modelopt_rs.interop.torch import optimizers as guests

    results = []
    for cls in (getattr(guests, name), guests.derived(getattr(mo.optim, name))):
        w = torch.nn.Parameter(torch.arange(20.0))
        optimizer = cls([w], 0.125, weight_decay=0.1, maximize=True)
        for _ in range(2):
            w.grad = torch.sin(w.detach())
            optimizer.step()
        results.append(w.detach().numpy().tobytes())
        with pytest.raises(TypeError, match=f"^{name}: unknown option 'fused'"):
            cls([w], fused=True)
    assert results[0] == results[1]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_states_of_its_step_function(name):
    specification = getattr(mo.optim, name).specification
    assert specification.function == f"{name.lower()}_step"
    assert [s.name for s in specification.states] == states_of(name)
    optional = {s.name for s in specification.states if s.option}
    parameters = inspect.signature(step_of(name)).parameters
    if name != "Adafactor":
        assert optional == {s for s in states_of(name) if parameters[s].default is None}


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("Adafactor", "Muon")])
def test_a_class_has_the_numbers_that_the_kernel_takes(name):
    numbers = set(_core.specification(f"{name.lower()}_step")[0])
    assert numbers - {"mu_product"} <= options(getattr(mo.optim, name), set()).keys()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the extra `interop` is not installed: torch")
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("Adafactor", "Muon")])
def test_a_torch_class_has_the_options_of_the_class_with_torchs_defaults(name):
    import torch

    from modelopt_rs.interop import torch as guest

    ours, own = options(getattr(guest, name), {"decoupled_weight_decay"}), options(getattr(mo.optim, name), set())
    own.pop("semantics", None)  # torch's
    assert list(ours) == list(own)
    assert ours == own
    if theirs := getattr(torch.optim, name, None):
        parameters = inspect.signature(theirs).parameters
        given = {k: p.default for k, p in inspect.signature(getattr(guest, name)).parameters.items()}
        given = {k: v for k, v in given.items() if k not in ("params", "common")}
        defaults = {k: parameters[k].default for k in given}
        assert given == defaults


@pytest.mark.parametrize("name", CLASSES)
def test_states_in_blocks_are_taken_where_the_specification_says_so_and_nowhere_else(name):
    cls = getattr(mo.optim, name)
    p = np.ones((8, 8), np.float32)
    for extra in ({}, {"momentum": 0.9}, {"amsgrad": True}, {"centered": True}):
        given = {k: v for k, v in extra.items() if k in options(cls, set())}
        own = {**{k: v for k, (_, v) in options(cls, set()).items()}, **given}
        for bits in (8, 4):
            if bits in cls.specification.bits(own):
                optimizer = cls(p, state_bits=bits, state_min_size=0, **given)
                optimizer.step(np.ones((8, 8), np.float32))
                coded = {k: x for k, x in optimizer.state[0].items() if isinstance(x, mo.optim.BlockState)}
                assert coded.keys() == set(cls.state_names(own))
                assert all(x.signed == cls.is_signed(k) for k, x in coded.items())
            else:
                with pytest.raises(ValueError, match=f"^{name}: state_bits must be 32"):
                    cls(p, state_bits=bits, **given)
