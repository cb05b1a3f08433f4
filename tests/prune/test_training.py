"""Pruning while training: under every optimizer what was pruned is exactly zero, and as much as was asked for (B12)."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo
from modelopt_rs.prune import PrunedOptimizer
from optimizers import ALL, CODED, arrays, bits

BF16 = np.dtype(ml_dtypes.bfloat16)
OPTIMIZERS = [
    *ALL,
    *CODED,
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", {"amsgrad": True}),
]
HALF: list[tuple[str, dict[str, Any]]] = [
    (name, {**options, **how})
    for name, options in ALL
    for how in ({"master": True}, {"rounding_seed": 3})
    if not (name == "Muon" and "rounding_seed" in how)
]


def grow(step: int) -> float:
    return mo.prune.cubic(0.8, begin=2, end=8, initial=0.1)(step)


def make(name: str, params: Any, options: dict[str, Any]) -> mo.optim.Optimizer:
    return getattr(mo.optim, name)(params, lr=0.05, **options)


def kept(masks: dict[str, np.ndarray], params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks as bool."""
    return {
        k: np.unpackbits(m, axis=-1, bitorder="little", count=params[k].shape[-1]).astype(bool)
        for k, m in masks.items()
    }


def smallest(w: np.ndarray, gone: np.ndarray, count: int) -> np.ndarray:
    """Which `count` weights go: those that are gone, then the smallest, among equal ones the first."""
    magnitudes = np.where(gone, -1.0, np.abs(w.astype(np.float64))).ravel()
    mask = np.zeros(w.size, bool)
    mask[np.argsort(magnitudes, kind="stable")[:count]] = True
    return mask.reshape(w.shape)


def everything(optimizer: PrunedOptimizer) -> Any:
    inner = optimizer.optimizer
    states = [[np.asarray(v).tobytes() for v in state.values()] for state in inner.state]
    masks = {k: m.tobytes() for k, m in optimizer.masks.items()}
    return bits(inner.params), states, masks, optimizer.steps, optimizer.state_dict()["sparsity"]


# -------------------------------------------------------------------------------------------- zeros, exactly as many


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_b12_pruned_weights_are_zero_after_every_step_and_exactly_as_many_as_asked(name, options):
    params = arrays(name, 0)
    optimizer = PrunedOptimizer(make(name, params, options), grow, every=2)
    for step in range(1, 13):
        before = {k: np.zeros(p.shape, bool) for k, p in params.items()}
        before.update({k: ~m for k, m in kept(optimizer.masks, params).items()})
        ranked = {k: p.copy() for k, p in params.items()}
        optimizer.step(arrays(name, step))
        asked = grow(step - 1 + step % 2)
        for k, mask in kept(optimizer.masks, params).items():
            assert params[k].ndim == 2
            assert not params[k][~mask].any()
            assert np.isfinite(params[k]).all()
            np.testing.assert_array_equal(~mask, smallest(ranked[k], before[k], round(asked * mask.size)))
            if step % 2 == 0:  # what was zero by chance is not among the pruned
                assert np.count_nonzero(params[k]) >= mask.sum() - 2
    assert optimizer.sparsity == pytest.approx(0.8)
    assert "b" not in optimizer.masks or name == "Muon"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint16"])
@pytest.mark.parametrize(("name", "options"), HALF, ids=str)
def test_in_16_bits_weights_and_their_copies_are_zero(name, options, dtype):
    given = arrays(name, 0, np.float16 if dtype == "float16" else BF16)
    params = {k: p.view(np.uint16) if dtype == "uint16" else p for k, p in given.items()}
    more = {"dtype": "bf16"} if dtype == "uint16" else {}
    optimizer = PrunedOptimizer(make(name, params, {**options, **more}), grow)
    for step in range(1, 10):
        grads = arrays(name, step, BF16)
        optimizer.step({k: g.view(np.uint16) if dtype == "uint16" else g for k, g in grads.items()})
        for k, mask in kept(optimizer.masks, params).items():
            assert not given[k][~mask].astype(np.float32).any()
            assert (~mask).sum() == round(grow(step) * mask.size)
            master = optimizer.optimizer.state[list(params).index(k)].get("master")
            assert (master is not None) == ("master" in options)
            assert master is None or not master[~mask].any()


@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
def test_float64_and_strides_are_pruned_in_place(name, options):
    wide = {k: np.full((*p.shape, 2), 7.0) if p.ndim else np.full((), 7.0) for k, p in arrays(name, 0).items()}
    params = {k: w[..., 0] if w.ndim else w for k, w in wide.items()}
    for k, p in arrays(name, 0, np.float64).items():
        params[k][...] = p
    optimizer = PrunedOptimizer(make(name, params, options), 0.5)
    for step in range(1, 4):
        optimizer.step(arrays(name, step, np.float64))
    for k, mask in kept(optimizer.masks, params).items():
        assert not params[k][~mask].any()
        assert (wide[k][..., 1] == 7).all()


@pytest.mark.parametrize(("name", "options"), [*ALL, *CODED], ids=str)
def test_a_step_is_that_of_masked_gradients_with_masks_applied_after_it(name, options):
    """The bits of the optimizer alone, with NumPy's masks around it."""
    params, alone = arrays(name, 0), arrays(name, 0)
    optimizer, plain = PrunedOptimizer(make(name, params, options), grow), make(name, alone, options)
    gone = {k: np.zeros(p.shape, bool) for k, p in alone.items()}
    for step in range(1, 11):
        grads = arrays(name, step)
        optimizer.step(grads, clip_norm=1.0)
        for k in gone:
            if alone[k].ndim == 2:
                gone[k] = smallest(alone[k], gone[k], round(grow(step) * alone[k].size))
        plain.step({k: np.where(gone[k], np.float32(0), g) for k, g in grads.items()}, clip_norm=1.0)
        for k, mask in gone.items():
            alone[k][mask] = 0
        assert bits(params) == bits(alone)


@pytest.mark.parametrize(("name", "options"), [*ALL, *CODED], ids=str)
def test_gradients_of_pruned_weights_have_no_say(name, options):
    """Not in the norm that is clipped, in LAMB's, Adafactor's and Muon's matrices, in the scales of blocks; NaN too."""
    ends = []
    for large in (0.0, 1e6, np.nan):
        params = arrays(name, 0)
        optimizer = PrunedOptimizer(make(name, params, options), 0.7)
        for step in range(1, 6):
            grads = arrays(name, step)
            for k, mask in kept(optimizer.masks, params).items():
                grads[k][~mask] = large
            before = {k: g.copy() for k, g in grads.items()}
            optimizer.step(grads, clip_norm=1.0, nonfinite="raise")
            assert bits(grads) == bits(before)
        ends.append(bits(params))
    assert ends[0] == ends[1] == ends[2]


# ----------------------------------------------------------------------------------------------- nothing comes back


@given(st.integers(0, 2**32 - 1), st.sampled_from(["tensor", "row", "global"]), st.sampled_from([np.float32, BF16]))
def test_b12_what_is_pruned_stays_pruned_among_ties_and_zeros(seed, scope, dtype):
    """Weights of few magnitudes; some are zero, or become so, without being pruned; pruned ones are overwritten."""
    rng = np.random.default_rng(seed)
    params = {"a": rng.integers(-2, 3, (4, 9)).astype(dtype), "b": rng.integers(-1, 2, (3, 5)).astype(dtype)}
    params["a"][0] *= np.array(-1, dtype)  # of 0: -0
    shares = np.sort(rng.random(6))
    optimizer = PrunedOptimizer(mo.optim.SGD(params, lr=0.0), lambda step: float(shares[step - 1]), scope=scope)
    gone: dict[str, np.ndarray] = {}
    for share in shares:
        optimizer.step({k: np.zeros(p.shape, np.float32) for k, p in params.items()})
        masks = {k: ~m for k, m in kept(optimizer.masks, params).items()}
        for k, mask in masks.items():
            assert not params[k][mask].astype(np.float32).any()
            assert k not in gone or (mask >= gone[k]).all()
            if scope == "row":
                assert (mask.sum(axis=1) == round(share * mask.shape[1])).all()
            if scope == "tensor":
                assert mask.sum() == round(share * mask.size)
        if scope == "global":
            assert sum(int(mask.sum()) for mask in masks.values()) == round(share * 51)
        gone = masks
        for k, mask in masks.items():
            params[k][~mask & (rng.random(mask.shape) < 0.3)] = 0  # as training may
            if rng.random() < 0.5:  # someone writes into pruned places
                params[k][mask] = 5


def test_a_sparsity_that_falls_leaves_the_masks():
    w = arrays("SGD", 0)["a"]
    asked = [0.25, 0.5, 0.25, 0.375, 0.625]
    optimizer = PrunedOptimizer(mo.optim.SGD([w], lr=0.1), lambda step: asked[step - 1])
    shares = []
    for step in range(1, 6):
        optimizer.step([arrays("SGD", step)["a"]])
        shares.append(optimizer.sparsity)
    assert shares == [0.25, 0.5, 0.5, 0.5, 0.625]


def test_before_the_schedule_begins_steps_are_those_of_the_optimizer():
    params, alone = arrays("AdamW", 0), arrays("AdamW", 0)
    begin = mo.prune.constant(0.5, begin=4)
    optimizer, plain = PrunedOptimizer(mo.optim.AdamW(params), begin), mo.optim.AdamW(alone)
    for step in range(1, 4):
        optimizer.step(arrays("AdamW", step))
        plain.step(arrays("AdamW", step))
        assert bits(params) == bits(alone)
        assert (optimizer.sparsity, optimizer.masks) == (0.0, {})
    optimizer.step(arrays("AdamW", 4))
    assert optimizer.sparsity == 0.5


@pytest.mark.parametrize("sparsity", [0, 0.0, 1, 1.0, np.float32(0.5)])
def test_all_nothing_and_numpy_numbers(sparsity):
    w = arrays("SGD", 0)["a"]
    optimizer = PrunedOptimizer(mo.optim.SGD(w, lr=0.1), sparsity)
    optimizer.step(arrays("SGD", 1)["a"])
    assert np.count_nonzero(w) == round((1 - sparsity) * w.size)
    assert optimizer.sparsity == sparsity


def test_what_wanda_has_pruned_stays_and_the_rest_is_trained():
    w = arrays("SGD", 0)["a"]
    mo.prune.wanda(w, np.linspace(1, 9, 40, dtype=np.float32), 0.5, out=w)
    zero = w == 0
    optimizer = PrunedOptimizer(mo.optim.Adam([w], lr=0.1), float(zero.mean()), scope="global")
    for step in range(1, 5):
        optimizer.step([arrays("SGD", step)["a"]])
        np.testing.assert_array_equal(w == 0, zero)


# ----------------------------------------------------------------------------------------------- what is pruned


@pytest.mark.parametrize(("keep", "group", "axis"), [(2, 4, -1), (1, 4, 1), (3, 5, 0)])
def test_n_of_m_holds_after_every_step(keep, group, axis):
    w = arrays("Adam", 0)["a"]
    want = mo.prune.n_of_m(w, keep, group, axis) != 0
    optimizer = PrunedOptimizer(mo.optim.Adam({"w": w}, lr=0.1), n=keep, m=group, axis=axis)
    for step in range(1, 6):
        optimizer.step({"w": arrays("Adam", step)["a"]})
        np.testing.assert_array_equal(w != 0, want)
    assert optimizer.sparsity == pytest.approx(1 - keep / group)


def test_names_or_places_choose_the_parameters():
    params = arrays("SGD", 0)
    optimizer = PrunedOptimizer(mo.optim.SGD(params, lr=0.1), 1.0, params=["c", "b"])
    optimizer.step(arrays("SGD", 1))
    assert [np.count_nonzero(p) for p in params.values()] == [1200, 0, 0]
    assert list(optimizer.masks) == ["b", "c"]
    groups = [{"params": list(arrays("Muon", 0).values())}, {"params": {"last": arrays("SGD", 0)["a"]}, "lr": 1.0}]
    optimizer = PrunedOptimizer(mo.optim.SGD(groups, lr=0.1), 1.0, params=[1, "last"])
    optimizer.step([np.ones((30, 40), np.float32), np.ones((20, 7), np.float32), None])
    assert {k: np.count_nonzero(p) for k, p in optimizer.optimizer.params.items()} == {"0": 1200, "1": 0, "last": 0}


def test_accumulated_gradients_are_masked_as_their_mean_is():
    first, second = arrays("AdamW", 0), arrays("AdamW", 0)
    one, two = (PrunedOptimizer(mo.optim.AdamW(p, lr=0.1), grow) for p in (first, second))
    for step in range(1, 8):
        parts = [arrays("AdamW", 10 * step + i) for i in range(2)]
        for part in parts:
            one.optimizer.accumulate(part)
        one.step(clip_norm=1.0)
        total = {k: parts[0][k] + parts[1][k] for k in parts[0]}
        two.step(total, grad_scale=2.0, clip_norm=1.0)
        assert bits(first) == bits(second)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    ends = []
    for n in (None, threads):
        w = np.random.default_rng(0).standard_normal((300, 999)).astype(np.float32)
        optimizer = PrunedOptimizer(mo.optim.Adam([w], threads=n), grow, scope="global")
        for step in range(1, 4):
            optimizer.step([np.random.default_rng(step).standard_normal(w.shape).astype(np.float32)])
        ends.append(everything(optimizer))
    assert ends[0] == ends[1]


# ----------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("before", [1, 5])
def test_a_loaded_checkpoint_goes_on_bit_for_bit(before, tmp_path):
    """Also before anything was pruned, and between two prunings."""
    params = arrays("AdamW", 0)
    schedule = mo.prune.cubic(0.8, begin=3, end=9)
    one = PrunedOptimizer(mo.optim.AdamW(params, lr=0.1), schedule, every=2)
    for step in range(1, before + 1):
        one.step(arrays("AdamW", step))
    one.optimizer.save(tmp_path / "o.safetensors")
    copies = {k: p.copy() for k, p in params.items()}
    two = PrunedOptimizer(mo.optim.AdamW(copies, lr=0.1), schedule, every=2)
    two.optimizer.load(tmp_path / "o.safetensors")
    state = one.state_dict()
    two.load_state_dict({**state, "masks": {k: m.copy() for k, m in state["masks"].items()}})
    for step in range(before + 1, 12):
        one.step(arrays("AdamW", step))
        two.step(arrays("AdamW", step))
        assert everything(one) == everything(two)


def test_a_loaded_mask_is_a_copy():
    one = PrunedOptimizer(mo.optim.SGD(arrays("SGD", 0), lr=0.1), 0.5)
    one.step(arrays("SGD", 1))
    two = PrunedOptimizer(mo.optim.SGD(arrays("SGD", 0), lr=0.1), 0.5)
    state = one.state_dict()
    two.load_state_dict(state)
    state["masks"]["a"][:] = 0
    assert two.sparsity == 0.5


BAD_STATES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"step": -1}, ValueError, "step must be an integer of at least 0, got -1"),
    ({"step": True}, ValueError, "step must be an integer of at least 0, got True"),
    ({"sparsity": 1.5}, ValueError, "sparsity must be from 0 to 1, got 1.5"),
    ({"sparsity": "x"}, ValueError, "sparsity must be from 0 to 1, got 'x'"),
    ({"masks": {"b": np.zeros(1, np.uint8)}}, ValueError, "masks must be of ['a'], got ['b']"),
    ({"masks": {"a": [1]}}, TypeError, "masks['a'] must have dtype uint8, got list"),
    ({"masks": {"a": np.zeros((30, 40), bool)}}, TypeError, "masks['a'] must have dtype uint8, got bool"),
    ({"masks": {"a": np.zeros((30, 4), np.uint8)}}, ValueError, "masks['a'] must have shape (30, 5), got (30, 4)"),
]


@pytest.mark.parametrize(("change", "kind", "text"), BAD_STATES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_state_is_refused_and_changes_nothing(change, kind, text):
    optimizer = PrunedOptimizer(mo.optim.SGD(arrays("SGD", 0), lr=0.1), 0.5)
    optimizer.step(arrays("SGD", 1))
    before = everything(optimizer)
    with pytest.raises(kind, match=re.escape(f"PrunedOptimizer.load_state_dict: {text}")):
        optimizer.load_state_dict({**optimizer.state_dict(), **change})
    assert everything(optimizer) == before


def test_a_state_that_lacks_something_or_has_bits_outside_is_refused():
    optimizer = PrunedOptimizer(mo.optim.SGD({"w": np.ones((2, 3), np.float32)}, lr=0.1), 0.5)
    with pytest.raises(ValueError, match=r"load_state_dict: state_dict must have 'masks', got \['step', 'sparsity'\]"):
        optimizer.load_state_dict({"step": 0, "sparsity": 0.0})
    bad = {"step": 1, "sparsity": 0.5, "masks": {"w": np.full((2, 1), 15, np.uint8)}}
    with pytest.raises(ValueError, match=r"PrunedOptimizer.load_state_dict: masks\['w'\] must have zero padding bits"):
        optimizer.load_state_dict(bad)
    assert (optimizer.steps, optimizer.masks) == (0, {})


# ----------------------------------------------------------------------------------------------- refused


W, V = np.ones((3, 8), np.float32), np.ones(8, np.float32)
REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("SGD", {"sparsity": 0.5}, TypeError, "optimizer must be one of modelopt_rs.optim, got str"),
    ([W], {}, ValueError, "sparsity or n and m must be given, got neither"),
    ([W], {"sparsity": 0.5, "n": 2, "m": 4}, ValueError, "sparsity or n and m must be given, got both"),
    ([W], {"sparsity": 0.5, "n": 2}, ValueError, "n and m must come together, got n=2, m=None"),
    ([W], {"sparsity": 1.5}, ValueError, "sparsity must be from 0 to 1, got 1.5"),
    ([W], {"sparsity": float("nan")}, ValueError, "sparsity must be from 0 to 1, got NaN"),
    ([W], {"sparsity": "half"}, TypeError, "sparsity must be a number, got 'half'"),
    ([W], {"sparsity": 0.5, "scope": "layer"}, ValueError, "scope must be 'tensor', 'row' or 'global', got 'layer'"),
    ([W], {"sparsity": 0.5, "every": 0}, ValueError, "every must be an integer of at least 1, got 0"),
    ([W], {"sparsity": 0.5, "every": 1.5}, ValueError, "every must be an integer of at least 1, got 1.5"),
    ([W], {"sparsity": 0.5, "params": [1]}, ValueError, "params must name parameters of the optimizer, got '1'"),
    ([W], {"sparsity": 0.5, "params": "0"}, TypeError, "params must be a list of names, got the string '0'"),
    ([W], {"sparsity": 0.5, "params": []}, ValueError, "params must name a parameter, got none"),
    ([V], {"sparsity": 0.5}, ValueError, "params must be given where none has two axes or more, got none"),
    (
        [W, V],
        {"sparsity": 0.5, "params": [1], "scope": "row"},
        ValueError,
        "params['1'] must have rows for scope='row', got shape (8,)",
    ),
    (
        [W, W.astype(np.float64)],
        {"sparsity": 0.5, "scope": "global"},
        TypeError,
        "params['1'] must have dtype float32 like params['0'] for scope='global', got float64",
    ),
    (
        [W],
        {"n": 2, "m": 4, "axis": 0},
        ValueError,
        "params['0'] must have a multiple of 4 elements along axis 0, got 3",
    ),
    ([W], {"n": 4, "m": 4}, ValueError, "n must be from 1 to below m (4), got 4"),
    ([W], {"n": 2, "m": 4, "axis": 2}, ValueError, "axis must be within the 2 axes of w, got 2"),
]


@pytest.mark.parametrize(("params", "options", "kind", "text"), REFUSED, ids=[text for *_, text in REFUSED])
def test_what_cannot_be_is_refused_at_once(params, options, kind, text):
    optimizer = params if isinstance(params, str) else mo.optim.SGD([p.copy() for p in params], lr=0.1)
    with pytest.raises(kind, match=re.escape(f"PrunedOptimizer: {text}")):
        PrunedOptimizer(optimizer, **options)


GRADS = {"a": np.ones((30, 40), np.float32), "b": np.ones(7, np.float32), "c": np.ones((), np.float32)}
BAD_STEPS: list[tuple[Any, dict[str, Any], Any, type[Exception], str]] = [
    (None, {}, 0.9, ValueError, "SGD.step: grads must be given where none were accumulated, got None"),
    ([V], {}, 0.9, ValueError, "SGD.step: grads must have 3 arrays like params, got 1"),
    ({**GRADS, "a": np.ones((40, 30), np.float32)}, {}, 0.9, ValueError, "grads[0] must have shape (30, 40)"),
    ({**GRADS, "a": [1.0]}, {}, 0.9, TypeError, "SGD.step: grads['a'] must be a NumPy array, got list"),
    ({**GRADS, "a": np.ones((30, 40), int)}, {}, 0.9, TypeError, "PrunedOptimizer.step: grads['a'] must have dtype"),
    ({**GRADS, "b": np.full(7, np.nan, np.float32)}, {"nonfinite": "raise"}, 0.9, ValueError, "grads[1]"),
    (GRADS, {"clip_norm": 0.0}, 0.9, ValueError, "SGD.step: clip_norm must be greater than 0, got 0.0"),
    (GRADS, {}, 1.5, ValueError, "PrunedOptimizer.step: sparsity must be from 0 to 1, got 1.5 for step 2"),
    (GRADS, {}, "x", TypeError, "PrunedOptimizer.step: sparsity must be a number, got 'x' for step 2"),
]


@pytest.mark.parametrize(("grads", "how", "share", "kind", "text"), BAD_STEPS, ids=[text for *_, text in BAD_STEPS])
def test_a_step_that_raises_has_changed_nothing(grads, how, share, kind, text):
    """Although more was to be pruned in it."""
    schedule = lambda step: 0.5 if step == 1 else share  # noqa: E731
    optimizer = PrunedOptimizer(mo.optim.SGD(arrays("SGD", 0), lr=0.1, momentum=0.9), schedule)
    optimizer.step(arrays("SGD", 1))
    before = everything(optimizer)
    with pytest.raises(kind, match=re.escape(text)):
        optimizer.step(grads, **how)
    assert everything(optimizer) == before


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_b12_nan_among_the_weights_is_refused_when_masks_are_due(scope):
    w = arrays("SGD", 0)["a"]
    optimizer = PrunedOptimizer(mo.optim.SGD({"w": w}, lr=0.1), 0.5, scope=scope)
    w[3, 4] = np.nan
    before = everything(optimizer)
    with pytest.raises(
        ValueError, match=re.escape("PrunedOptimizer.step: params['w'] has 1 NaN, first at index (3, 4)")
    ):
        optimizer.step({"w": arrays("SGD", 1)["a"]})
    assert everything(optimizer) == before
