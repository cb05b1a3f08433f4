"""Gradients and parameters whose memory `modelopt_rs.interop.torch` can't simply look at (extra `interop`)."""

import contextlib
import gc
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")

from modelopt_rs import _core  # noqa: E402
from modelopt_rs.interop import torch as guest  # noqa: E402


class Named(torch.Tensor):
    """A subclass, as those of users."""


def negated(g: Any) -> Any:
    return torch.complex(g, -g).conj().imag


def sparse_strides(g: Any) -> Any:
    wide = torch.zeros(*g.shape, 3, dtype=g.dtype)
    wide[..., 1] = g
    return wide[..., 1]


def offset(g: Any) -> Any:
    return torch.cat([torch.zeros(3, dtype=g.dtype), g.reshape(-1)])[3:].reshape(g.shape)


FORMS: list[Any] = [
    negated,
    lambda g: g.as_subclass(Named),
    lambda g: g.clone().requires_grad_(),
    sparse_strides,
    offset,
    lambda g: torch.nn.Parameter(g),
    lambda g: torch.from_numpy(g.numpy().copy()),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(4, 6), (2, 1, 1, 2, 1, 1, 1, 2, 2), (0, 3), ()], ids=str)
def test_gradients_in_any_form_step_as_with_torch(form, shape):
    make = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=make, dtype=torch.float64)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    made = [guest.AdamW([ours], lr=0.1), torch.optim.AdamW([theirs], lr=0.1)]
    for _ in range(4):
        g = torch.randn(shape, generator=make, dtype=torch.float64)
        for p, optimizer in zip((ours, theirs), made, strict=True):
            p.grad = form(g.clone())
            optimizer.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_every_dtype_are_read_as_they_are(dtype, transposed):
    start = torch.randn(6, 5).to(dtype)
    p = torch.nn.Parameter(start.T.contiguous().T if transposed else start.clone())
    optimizer = guest.SGD([p], lr=1.0)
    want = start.float()
    for _ in range(3):
        p.grad = torch.randn(6, 5).to(dtype)
        optimizer.step()
        want = (want - p.grad.float()).to(dtype).float()
    assert torch.equal(p.detach().float(), want)


def negate_param(p: Any, state: dict[str, Any], form: Any) -> None:
    p.data = form(p.data)


def negate_state(p: Any, state: dict[str, Any], form: Any) -> None:
    state["exp_avg"] = form(state["exp_avg"])


def negate_state_in_place(p: Any, state: dict[str, Any], form: Any) -> None:
    state["exp_avg"].data = form(state["exp_avg"])


def negate_step(p: Any, state: dict[str, Any], form: Any) -> None:
    state["step"] = form(state["step"])


@pytest.mark.parametrize("change", [negate_param, negate_state, negate_state_in_place, negate_step])
@pytest.mark.parametrize("form", [torch._neg_view, lambda x: torch._neg_view(-x)], ids=["same memory", "other memory"])
@pytest.mark.parametrize("n", [5, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_negated_lazily_is_refused_and_not_stepped_with_the_wrong_sign(change, form, n, dtype):
    params = [torch.nn.Parameter(torch.ones(n).to(dtype)) for _ in range(2)]
    optimizer = guest.AdamW(params, lr=0.1)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones(n).to(dtype)
        optimizer.step()
    change(params[1], optimizer.state[params[1]], form)
    before = [x.clone() for p in params for x in (p, *optimizer.state[p].values())]
    with pytest.raises(ValueError, match=r"^AdamW.step: params\[1\].* must .*negated lazily"):
        optimizer.step()
    after = [x for p in params for x in (p, *optimizer.state[p].values())]
    assert all(map(torch.equal, before, after))


def test_a_step_of_0_that_is_negated_lazily_is_refused():
    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    optimizer = guest.AdamW([p])
    optimizer.step()
    optimizer.state[p]["step"] = torch._neg_view(torch.tensor(-0.0))
    with pytest.raises(ValueError, match="negated lazily"):
        optimizer.step()


@pytest.mark.parametrize(
    ("step", "error", "got"),
    [
        (5, TypeError, "got int"),
        (None, TypeError, "got NoneType"),
        (torch.tensor(1j), TypeError, "got torch.complex64"),
        (torch.ones((), device="meta"), TypeError, "got torch.float32 \\(torch.strided, meta\\)"),
        (torch.ones(2), ValueError, "got shape \\(2,\\)"),
        (torch.tensor(2.5), ValueError, "whole number of at least 0 for 'step' in its state, got tensor\\(2.5"),
        (torch.tensor(float("nan")), ValueError, "whole number .*, got tensor\\(nan"),
        (torch.tensor(-3.0), ValueError, "whole number .*, got tensor\\(-3"),
    ],
    ids=str,
)
def test_a_number_of_steps_that_is_none_is_refused(step, error, got):
    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    optimizer = guest.AdamW([p])
    optimizer.step()
    before = p.detach().clone()
    optimizer.state[p]["step"] = step
    with pytest.raises(error, match=r"^AdamW.step: params\[0\] must have a .*" + got):
        optimizer.step()
    if not isinstance(step, torch.Tensor) or (step.device.type == "cpu" and step.numel() == 1):
        state = optimizer.state_dict()
        state["state"][0]["step"] = "x" if step is None else -1 if step == 5 else step
        with pytest.raises(ValueError, match=r"^AdamW.load_state_dict: parameter 0 must have a whole number"):
            optimizer.load_state_dict(state)
    assert torch.equal(p, before)


@pytest.mark.parametrize(("dtype", "n"), [(torch.float32, 3000), (torch.float16, 3000), (torch.bfloat16, 3000)])
def test_the_first_step_has_planned_the_second(dtype, n, monkeypatch):
    from modelopt_rs.interop.torch import optimizer as module

    planned = []
    monkeypatch.setattr(module, "axis_order", lambda where, p: planned.append(where) or list(range(p.dim())))
    params = [torch.nn.Parameter(torch.ones(n).to(dtype)) for _ in range(3)]
    optimizer = guest.AdamW(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones(n).to(dtype)
        optimizer.step()
    assert len(planned) == 3


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(("name", "how"), [("optimizer_step", {"nonfinite": "raise"}), ("tensors_step", {})])
def test_a_step_whose_kernel_was_interrupted_is_a_whole_step(at, name, how, monkeypatch):
    kernel = getattr(_core, name)

    def interrupted(*arguments: Any) -> Any:
        if kernel(*arguments) is not False:
            signal.raise_signal(signal.SIGINT)
        return False

    def trained(interrupts: bool) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3000))
        optimizer = guest.AdamW([p], lr=0.1)
        for step in range(4):
            p.grad = torch.full((3000,), 1.0 + step)
            if interrupts and step == at:
                with monkeypatch.context() as patched:
                    patched.setattr(_core, name, interrupted)
                    # The first has no states yet, and goes by a plan.
                    with (
                        contextlib.nullcontext()
                        if (name, at) == ("tensors_step", 0)
                        else pytest.raises(KeyboardInterrupt)
                    ):
                        optimizer.step(**how)
            else:
                optimizer.step(**how)
        return [p.detach(), *optimizer.state[p].values()]

    assert all(map(torch.equal, trained(False), trained(True)))


@pytest.mark.parametrize("n", [5, 3000])
def test_a_step_inside_of_what_torch_compiles_is_the_same_step(n):
    def trained(compiles: bool) -> list[Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(n, 2)
        optimizer, calls = guest.AdamW(model.parameters(), lr=0.1), []
        optimizer.register_step_post_hook(lambda *_: calls.append(1))

        def step(x: Any) -> None:
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()

        step = torch.compile(step, backend="eager") if compiles else step
        for i in range(4):
            step(torch.full((1, n), 1.0 + i))
        return [*(p.detach() for p in model.parameters()), torch.tensor(calls)]

    assert all(map(torch.equal, trained(False), trained(True)))


@pytest.mark.parametrize("n", [5, 3000])
def test_a_gradient_is_held_no_longer_than_the_step(n):
    p = torch.nn.Parameter(torch.ones(n))
    optimizer = guest.AdamW([p])
    for _ in range(3):
        p.grad = torch.ones(n)
        seen = weakref.ref(p.grad)
        optimizer.step()
        p.grad = None
        gc.collect()
        assert seen() is None


def test_a_torch_without_the_exchange_of_descriptions_works_too():
    tests = Path(__file__).with_name("test_torch_between_steps.py")
    code = (
        "import sys, torch, pytest\n"
        "del torch.Tensor.__dlpack_c_exchange_api__\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'AdamW or any_order', {str(tests)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
