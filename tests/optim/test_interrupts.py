"""Ctrl-C in a step: the step is made as a whole, or not at all, and all counters say so."""

import signal
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from modelopt_rs import _core


def interrupting(cls: Any, *, after: bool) -> Any:
    """An optimizer whose kernel is interrupted: what is raised comes when it has returned, or before."""

    class Interrupting(cls):  # type: ignore[misc]
        interrupted = False

        @classmethod
        def launch(cls, *arguments: Any) -> bool:
            first, cls.interrupted = not cls.interrupted, True
            if first and not after:
                signal.raise_signal(signal.SIGINT)
            stepped = super().launch(*arguments)
            if first:
                signal.raise_signal(signal.SIGINT)
            return bool(stepped)

    Interrupting.__name__ = cls.__name__
    return Interrupting


def made(cls: Any, dtypes: Any = (np.float32, np.float64)) -> Any:
    return cls([np.ones((4, 4), dtype) for dtype in dtypes], lr=0.1, ema_decay=0.5)


def grads(dtypes: Any = (np.float32, np.float64)) -> list[Any]:
    return [np.arange(16, dtype=dtype).reshape(4, 4) for dtype in dtypes]


def everything(optimizer: Any) -> Any:
    averages = {k: a.tobytes() for k, a in optimizer.averages.items()}
    params = {k: p.tobytes() for k, p in optimizer.params.items()}
    return params, averages, optimizer.steps, repr(optimizer.state_dict())


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam", "LAMB", "Muon", "Adafactor"])
@pytest.mark.parametrize("accumulates", [False, True])
def test_a_step_whose_kernel_was_interrupted_is_a_whole_step(name, accumulates):
    cls = getattr(mo.optim, name)
    want, got = made(cls), made(interrupting(cls, after=True))
    for optimizer in (want, got):
        if accumulates:
            optimizer.accumulate(grads())
    want.step(None if accumulates else grads())
    with pytest.raises(KeyboardInterrupt):
        got.step(None if accumulates else grads())
    assert everything(got) == everything(want)
    for optimizer in (want, got):
        optimizer.step(grads())
    assert everything(got) == everything(want)


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_a_step_that_is_interrupted_before_its_kernel_is_none(name):
    optimizer = made(interrupting(getattr(mo.optim, name), after=False))
    optimizer.accumulate(grads())
    before = everything(optimizer)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert everything(optimizer) == before


@pytest.mark.parametrize(("name", "cls"), [("adafactor_step", mo.optim.Adafactor), ("optim_step", mo.optim.Muon)])
def test_batches_of_matrix_optimizers_are_not_cut(name, cls, monkeypatch):
    """Of two precisions: a batch each."""
    kernel = getattr(_core, name)

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return kernel(*arguments)

    want, got = (cls([np.ones((4, 4), g.dtype) for g in grads()], lr=0.1) for _ in range(2))
    want.step(grads())
    monkeypatch.setattr(_core, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        got.step(grads())
    assert everything(got) == everything(want)


def test_gradients_are_accumulated_as_a_whole_and_counted(monkeypatch):
    kernel = _core.optim_step

    def interrupted(*arguments: Any) -> Any:
        kernel(*arguments)
        signal.raise_signal(signal.SIGINT)

    want, got = made(mo.optim.SGD), made(mo.optim.SGD)
    for _ in range(2):
        want.accumulate(grads())
    got.accumulate(grads())
    with monkeypatch.context() as patched:
        patched.setattr(_core, "optim_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            got.accumulate(grads())
    assert everything(got) == everything(want)


def test_masks_go_with_an_interrupted_step():
    def pruned(optimizer: Any) -> Any:
        return mo.prune.PrunedOptimizer(optimizer, mo.prune.linear(0.5, begin=0, end=2))

    kinds = (np.float32, np.float32)
    want = pruned(made(mo.optim.AdamW, kinds))
    got = pruned(made(interrupting(mo.optim.AdamW, after=True), kinds))
    want.step(grads(kinds))
    with pytest.raises(KeyboardInterrupt):
        got.step(grads(kinds))
    for optimizer in (want, got):
        optimizer.step(grads(kinds))
    assert {k: p.tobytes() for k, p in got.params.items()} == {k: p.tobytes() for k, p in want.params.items()}
    assert (got.steps, got.sparsity) == (want.steps, want.sparsity)


@pytest.mark.parametrize("bad", [np.ones((5, 4)), np.ones((4, 4), np.int32), np.ones((4, 4), np.float32)])
def test_gradients_of_which_one_cannot_be_accumulated_are_all_refused(bad):
    """Also where they are of two precisions, and where some were accumulated before."""
    optimizer = made(mo.optim.SGD)
    for _ in range(2):
        before = everything(optimizer)
        with pytest.raises((TypeError, ValueError), match=r"^accumulate_step: grads\[0\] must have "):
            optimizer.accumulate([grads()[0], bad])
        assert everything(optimizer) == before
        optimizer.accumulate(grads())
