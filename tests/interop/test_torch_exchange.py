"""Gradients and parameters whose memory `modelopt_rs.interop.torch` can't simply look at (extra `interop`)."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")

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


def test_a_parameter_whose_sign_is_lazy_is_refused_and_not_stepped_with_the_wrong_one():
    p = torch.nn.Parameter(torch.ones(()))
    optimizer = guest.AdamW([p], lr=0.1)
    for _ in range(2):
        p.grad = torch.ones(())
        optimizer.step()
    p.data = negated(torch.ones(()))
    with pytest.raises(RuntimeError, match="negative bit"):
        optimizer.step()
    assert (p.item(), optimizer.state[p]["step"].item()) == (1.0, 2.0)


def test_a_gradient_is_held_no_longer_than_the_step():
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = guest.AdamW([p])
    for _ in range(3):
        p.grad = torch.ones(5)
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
