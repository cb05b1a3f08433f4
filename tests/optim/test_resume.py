"""A run that is killed anywhere and resumed from what was saved goes on bit for bit."""

import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from optimizers import ALL, CODED, arrays

BF16 = np.dtype(ml_dtypes.bfloat16)
STEPS, PARTS = 3, 2


def schedule(step: int) -> float:
    return 0.1 / step


def make(name: str, params: dict[str, np.ndarray], options: dict[str, Any], pruned: bool) -> mo.optim.Optimizer:
    optimizer: mo.optim.Optimizer = getattr(mo.optim, name)(params, lr=schedule, ema_decay=0.9, **options)
    if pruned:
        optimizer = mo.prune.PrunedOptimizer(optimizer, mo.prune.linear(0.6, begin=0, end=3))
    return optimizer


def everything(optimizer: mo.optim.Optimizer) -> Any:
    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [plain(v) for v in x]
        if isinstance(x, mo.optim.BlockState):
            return x.codes.tobytes(), x.absmax.tobytes()
        return ref.bits_of(x) if isinstance(x, np.ndarray) else repr(x)

    params = {k: ref.bits_of(p) for k, p in optimizer.params.items()}
    return params, plain({k: v for k, v in optimizer.state_dict().items() if k != "param_groups"})


def micro(optimizer: mo.optim.Optimizer, name: str, at: int, dtype: Any) -> None:
    """One micro-batch; with every second one a step. The last parameter is frozen at first."""
    grads: dict[str, Any] = arrays(name, at + 1, dtype)
    if at < PARTS:
        grads["b"] = None
    optimizer.accumulate(grads)
    if at % PARTS == PARTS - 1:
        optimizer.step(clip_norm=1.0)


CASES: list[tuple[str, dict[str, Any], Any]] = [
    *((name, options, np.float32) for name, options in [*ALL, *CODED]),
    *((name, {"master": True}, BF16) for name, _ in ALL),
    *((name, {"rounding_seed": 3}, BF16) for name, _ in ALL if name != "Muon"),
    ("AdamW", {"state_bits": 8, "state_min_size": 0, "master": True, "rounding_seed": 1}, np.float16),
    ("AdamW", {}, np.float64),
]


@pytest.mark.parametrize(
    ("name", "options", "dtype", "pruned"), [*((*c, False) for c in CASES), *((*c, True) for c in CASES[::3])], ids=str
)
def test_h52_a_run_killed_after_any_micro_batch_goes_on_bit_for_bit(name, options, dtype, pruned, tmp_path):
    """H52: sums of gradients, masks, averages, the schedule's place and the counters of rounding are saved."""
    params = arrays(name, 0, dtype)
    optimizer = make(name, params, options, pruned)
    saved: list[tuple[Path, dict[str, np.ndarray]]] = []
    ends = []
    for at in range(STEPS * PARTS + 1):
        ends.append(everything(optimizer))
        path = tmp_path / f"{at}.safetensors"
        optimizer.save(path)
        saved.append((path, {k: p.copy() for k, p in params.items()}))
        if at < STEPS * PARTS:
            micro(optimizer, name, at, dtype)
    for killed, (path, weights) in enumerate(saved):
        again = make(name, weights, options, pruned)
        again.load(path)
        assert everything(again) == ends[killed]
        for at in range(killed, STEPS * PARTS):
            micro(again, name, at, dtype)
        assert everything(again) == ends[-1]


def test_h52_a_state_dict_holds_it_too_and_may_be_kept_by_numpy():
    params = arrays("AdamW", 0)
    one = make("AdamW", params, {}, True)
    for at in range(3):
        micro(one, "AdamW", at, np.float32)
    two = make("AdamW", {k: p.copy() for k, p in params.items()}, {}, True)
    held = io.BytesIO()
    np.save(held, np.array(one.optimizer.state_dict()["accumulated"]["sums"][0]))
    two.load_state_dict(one.state_dict())
    for optimizer in (one, two):
        for at in range(3, 6):
            micro(optimizer, "AdamW", at, np.float32)
    assert everything(one) == everything(two)


def test_h52_loading_forgets_what_was_accumulated_before(tmp_path):
    p = np.ones(3, np.float32)
    optimizer = mo.optim.SGD(p, lr=1.0)
    optimizer.save(tmp_path / "empty.safetensors")
    optimizer.accumulate(np.ones(3, np.float32))
    optimizer.load(tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match=r"^SGD\.step: grads must be given where none were accumulated"):
        optimizer.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, r"\['steps'\] must be an integer of at least 0, got -1"),
        ({"steps": 1.5}, r"\['steps'\] must be an integer of at least 0, got 1.5"),
        (
            {"accumulated": {"count": 1, "sums": {0: np.zeros(2, np.float32)}}},
            r"\['accumulated'\] must have shape \(3,\) for parameter 0, got \(2,\)",
        ),
        ({"averages": {0: np.zeros(2)}}, r"\['averages'\] must have shape \(3,\) for parameter 0, got \(2,\)"),
    ],
)
def test_h52_a_wrong_state_dict_is_refused_and_changes_nothing(change, message):
    optimizer = mo.optim.Adam(np.ones(3, np.float32), ema_decay=0.5)
    optimizer.accumulate(np.ones(3, np.float32))
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"^Adam\.load_state_dict: state_dict" + message):
        optimizer.load_state_dict({**optimizer.state_dict(), **change})
    assert everything(optimizer) == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9}),
        ("RMSprop", {"momentum": 0.9, "centered": True}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"amsgrad": True}),
    ],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_h52_loaded_options_bring_the_states_that_they_ask_for(name, options, by_file, tmp_path):
    """An optimizer made without them goes on as the one that was saved, and the reverse."""
    p = np.linspace(-1, 1, 50, dtype=np.float32)
    for saved, made in [(options, {}), ({}, options)]:
        one, weights = getattr(mo.optim, name)(p.copy(), **saved), p.copy()
        one.step(p)
        weights[:] = next(iter(one.params.values()))
        two = getattr(mo.optim, name)(weights, **made)
        if by_file:
            one.save(tmp_path / "o.safetensors")
            two.load(tmp_path / "o.safetensors")
        else:
            two.load_state_dict(one.state_dict())
        for optimizer in (one, two):
            optimizer.step(p)
        assert everything(one) == everything(two)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "adam_step: lr must be at least 0"),
        ({"betas": (0.9,)}, TypeError, "adam_step: betas must be a pair of numbers"),
        ({"amsgrad": "x"}, TypeError, "Adam: amsgrad must be "),
    ],
)
def test_h52_options_out_of_their_range_are_not_loaded(change, error, message):
    optimizer = mo.optim.Adam(np.ones(3, np.float32))
    optimizer.step(np.ones(3, np.float32))
    before, state = repr(optimizer.param_groups), optimizer.state_dict()
    state["param_groups"][0].update(change)
    with pytest.raises(error, match="^" + message):
        optimizer.load_state_dict(state)
    assert repr(optimizer.param_groups) == before


def test_h53_masks_do_not_go_lost_in_silence(tmp_path):
    """H53: a file without masks isn't one of a pruned run."""
    p = {"w": np.ones((4, 4), np.float32)}
    mo.optim.SGD(p).save(tmp_path / "o.safetensors")
    pruned = mo.prune.PrunedOptimizer(mo.optim.SGD(p), 0.5)
    with pytest.raises(ValueError, match=r"^PrunedOptimizer\.load: .* must hold masks, got none"):
        pruned.load(tmp_path / "o.safetensors")
