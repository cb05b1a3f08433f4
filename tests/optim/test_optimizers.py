"""The optimizers as objects: groups, gradients in every form, checkpoints, schedules, and what is refused."""

import errno
import json
import re
import sys
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from optimizers import ALL, CODED, arrays, bits

BF16 = np.dtype(ml_dtypes.bfloat16)


def make(name: str, params: Any, **options: Any) -> mo.optim.Optimizer:
    return getattr(mo.optim, name)(params, **options)


# ------------------------------------------------------------------------------------------------------ the steps


@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
def test_every_optimizer_lowers_a_convex_loss(name, options):
    params = arrays(name, 0)
    optimizer = make(name, params, **options, lr=1.0 if name == "Adadelta" else 0.01)
    before = sum(float((p**2).sum()) for p in params.values())
    for _ in range(100):
        optimizer.step({k: p.copy() for k, p in params.items()})
    assert sum(float((p**2).sum()) for p in params.values()) < before


def test_steps_are_those_of_the_functions():
    params, wide = arrays("Adam", 0), arrays("Adam", 0)
    optimizer = mo.optim.AdamW(params, lr=0.1, weight_decay=0.01)
    states = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in wide.items()}
    for t in range(1, 10):
        grads = arrays("Adam", t)
        optimizer.step(grads, grad_scale=2.0, clip_value=0.3)
        for k, p in wide.items():
            mo.optim.adamw_step(
                p, grads[k], *states[k], step=t, lr=0.1, weight_decay=0.01, grad_scale=2.0, clip_value=0.3
            )
    assert bits(params) == bits(wide)


@pytest.mark.parametrize("form", ["array", "list", "dict", "groups"])
def test_params_come_in_every_form_and_gradients_in_the_same(form):
    p, q = np.ones(5, np.float32), np.ones((2, 2), np.float32)
    given, grads = {
        "array": (p, p.copy()),
        "list": ([p, q], (p.copy(), q.copy())),
        "dict": ({"p": p, "q": q}, {"q": q.copy(), "p": p.copy()}),
        "groups": ([{"params": [p]}, {"params": {"q": q}, "lr": 0.25}], [p.copy(), q.copy()]),
    }[form]
    optimizer = mo.optim.SGD(given, lr=0.5)
    optimizer.step(grads)
    assert (p == 0.5).all()
    assert (q == {"array": 1.0, "groups": 0.75}.get(form, 0.5)).all()


def test_a_parameter_without_gradient_stays_and_its_steps_are_counted_apart():
    params, alone = arrays("Adam", 0), arrays("Adam", 0)
    optimizer, other = mo.optim.Adam(params, lr=0.1), mo.optim.Adam(alone["a"], lr=0.1)
    for t in range(6):
        g = arrays("Adam", t)
        optimizer.step({"b": g["b"], **({"a": g["a"]} if t % 2 else {})})
        if t % 2:
            other.step(g["a"])
    assert ref.bits_of(params["a"]) == ref.bits_of(alone["a"])
    assert ref.bits_of(params["c"]) == ref.bits_of(alone["c"])
    assert [s["step"] for s in optimizer.state] == [3, 6, 0]


def test_options_of_groups_may_change_between_steps():
    p = np.ones(3, np.float32)
    optimizer = mo.optim.SGD(p, lr=0.5)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step(np.ones(3, np.float32))
    assert (p == 0.75).all()


def test_a_schedule_is_asked_with_the_number_of_the_step():
    asked = []
    p = np.zeros(1, np.float32)
    optimizer = mo.optim.SGD(p, lr=lambda t: asked.append(t) or 0.5**t)
    for _ in range(3):
        optimizer.step(-np.ones(1, np.float32))
    assert p[0] == 0.5 + 0.25 + 0.125
    assert asked[-3:] == [1, 2, 3]


def test_clip_norm_scales_all_gradients_down_together():
    params = {"a": np.zeros(2, np.float32), "b": np.zeros((1, 2), np.float32)}
    grads = {"a": np.float32([3, 0]), "b": np.float32([[0, 4]])}
    mo.optim.SGD(params, lr=1.0).step(grads, clip_norm=1.0)
    np.testing.assert_allclose(params["a"], [-0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(params["b"], [[0, -0.8]], rtol=1e-6)
    mo.optim.SGD(params, lr=1.0).step(grads, clip_norm=6.0, grad_scale=1.0)
    np.testing.assert_allclose(params["a"], [-3.6, 0], rtol=1e-6)
    assert grads["a"][0] == 3
    assert mo.optim.global_norm([grads["a"], None, grads["b"]]) == 5.0


def test_a_step_after_k_accumulated_gradients_is_that_of_their_mean():
    params, other = arrays("Adam", 0), arrays("Adam", 0)
    optimizer, want = (mo.optim.SGD(p, lr=0.1, momentum=0.9) for p in (params, other))
    for t in range(4):
        grads = [arrays("Adam", 10 * t + i) for i in range(4)]
        for g in grads:
            optimizer.accumulate(g)
        optimizer.step()
        want.step({k: np.asarray(sum(g[k] for g in grads) / np.float32(4), np.float32) for k in params})
    for k in params:
        np.testing.assert_allclose(params[k], other[k], atol=1e-6)


def test_accumulated_16_bit_gradients_are_summed_in_float32():
    total = np.zeros(3, np.float32)
    for _ in range(1000):
        mo.optim.accumulate_step(total, np.full(3, 0.001, np.float16))
    np.testing.assert_allclose(total, 1000 * np.float32(np.float16(0.001)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_moving_average_is_that_of_the_formula(dtype):
    rng = np.random.default_rng(0)
    averages = [np.zeros((3, 5), dtype), np.zeros(40_000, dtype)]
    want = [np.zeros(a.shape, np.longdouble) for a in averages]
    for _ in range(50):
        params = [rng.standard_normal(a.shape).astype(dtype) for a in averages]
        mo.optim.ema_step(averages, params, decay=0.9)
        want = [w + (1 - np.longdouble(0.9)) * (p - w) for w, p in zip(want, params, strict=True)]
    for a, w in zip(averages, want, strict=True):
        assert np.abs(a - w).max() <= 20 * np.finfo(dtype).eps


# ---------------------------------------------------------------------------------------- precision of states


def test_small_parameters_keep_float32_states():
    params = {"w": np.zeros(5000, np.float32), "b": np.zeros(10, np.float32)}
    optimizer = mo.optim.AdamW(params, state_bits=8)
    assert isinstance(optimizer.state[0]["exp_avg"], mo.optim.BlockState)
    assert isinstance(optimizer.state[1]["exp_avg"], np.ndarray)
    optimizer.step({k: p + 1 for k, p in params.items()})
    assert sum(s.nbytes for s in optimizer.state[0].values() if not isinstance(s, int)) <= 2.04 * 5000


@pytest.mark.parametrize("kind", ["master", "stochastic", "bits"])
def test_16_bit_parameters_train_as_float32_ones(kind):
    wide = arrays("Adam", 0)
    params = arrays("Adam", 0, BF16)
    wide = {k: p.astype(np.float32) for k, p in params.items()}
    if kind == "bits":
        params = {k: p.view(np.uint16) for k, p in params.items()}
    options = {"rounding_seed": 5} if kind == "stochastic" else {"master": True}
    optimizer = mo.optim.Adam(params, lr=1e-3, dtype="bf16" if kind == "bits" else None, **options)
    want = mo.optim.Adam(wide, lr=1e-3)
    for t in range(100):
        g = {k: x.astype(BF16) for k, x in arrays("Adam", t).items()}
        want.step(g)
        optimizer.step({k: x.view(np.uint16) for k, x in g.items()} if kind == "bits" else g)
    for k, p in params.items():
        got = p.view(BF16).astype(np.float32)
        if kind == "stochastic":
            assert abs((got - wide[k]).mean()) < 2e-2
        else:
            assert ref.bits_of(p.view(BF16)) == ref.bits_of(wide[k].astype(BF16))


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(("name", "options"), [*ALL, *CODED], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=str)
def test_a_loaded_optimizer_goes_on_bit_for_bit(name, options, dtype, tmp_path):
    if dtype == BF16:
        options = {**options, "master": True}
    params = arrays(name, 0, dtype)
    optimizer = make(name, params, **options)
    for t in range(5):
        optimizer.step(arrays(name, t))
    optimizer.save(tmp_path / "o.safetensors")
    copies = {k: p.copy() for k, p in params.items()}
    loaded, given = make(name, copies, **options), make(name, {k: p.copy() for k, p in copies.items()}, **options)
    loaded.load(tmp_path / "o.safetensors")
    given.load_state_dict(optimizer.state_dict())
    for t in range(5, 10):
        for o in (optimizer, loaded, given):
            o.step(arrays(name, t))
    assert bits(copies) == bits(params)
    assert bits(given.params) == bits(params)


def test_options_are_loaded_and_a_schedule_stays(tmp_path):
    p = np.ones(3, np.float32)
    mo.optim.Adam(p, lr=0.5, betas=(0.5, 0.75)).save(tmp_path / "o")
    schedule = mo.optim.schedule.constant(0.25)
    first, second = mo.optim.Adam(p), mo.optim.Adam(p, lr=schedule)
    first.load(tmp_path / "o")
    second.load(tmp_path / "o")
    assert (first.param_groups[0]["lr"], tuple(first.param_groups[0]["betas"])) == (0.5, (0.5, 0.75))
    assert second.param_groups[0]["lr"] is schedule
    mo.optim.Adam(p, lr=schedule).save(tmp_path / "o")
    first.load(tmp_path / "o")
    assert first.param_groups[0]["lr"] == 0.5


def test_a_float32_checkpoint_can_be_loaded_into_blocks_and_back():
    p = np.ones(300, np.float32)
    wide, small = mo.optim.Adam(p), mo.optim.Adam(p, state_bits=8, state_min_size=0)
    wide.step(np.random.default_rng(0).standard_normal(300).astype(np.float32))
    small.load_state_dict(wide.state_dict())
    assert isinstance(small.state[0]["exp_avg"], mo.optim.BlockState)
    np.testing.assert_allclose(small.state[0]["exp_avg"].dequantize(), wide.state[0]["exp_avg"], rtol=1 / 16, atol=1e-5)
    again = mo.optim.Adam(p)
    again.load_state_dict(small.state_dict())
    assert ref.bits_of(again.state[0]["exp_avg"]) == ref.bits_of(small.state[0]["exp_avg"].dequantize())
    assert again.state[0]["step"] == 1


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    p = np.ones(3, np.float32)
    path = tmp_path / "o.safetensors"
    mo.optim.Adam(p).save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("modelopt_rs.containers.safetensors_sink.AtomicFile.write_at", full)
    with pytest.raises(OSError, match="No space left"):
        mo.optim.Adam(p).save(path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["o.safetensors"]


def test_what_was_not_saved_by_this_optimizer_is_refused_and_nothing_changes(tmp_path):
    p = np.ones(3, np.float32)
    path = tmp_path / "o.safetensors"
    optimizer = mo.optim.Adam({"w": p})
    optimizer.step({"w": p.copy()})
    before = optimizer.state_dict()["state"][0]["exp_avg"].copy()
    mo.optim.SGD({"w": p}).save(path)
    with pytest.raises(ValueError, match=r"^Adam\.load: .*o\.safetensors must hold Adam, got SGD"):
        optimizer.load(path)
    mo.optim.Adam({"v": p}).save(path)
    with pytest.raises(ValueError, match=r"must have the parameters \['w'\], got \['v'\]"):
        optimizer.load(path)
    mo.optim.Adam({"w": np.ones(4, np.float32)}).save(path)
    with pytest.raises(ValueError, match=r"Adam\.load_state_dict: state_dict must have 'exp_avg' of shape \(3,\)"):
        optimizer.load(path)
    infos = [mo.files.TensorInfo("w", "F32", (3,), 12)]
    for text in (
        None,
        "{",
        json.dumps({"version": 1}),
        json.dumps({"version": 1, "algorithm": "Adam", "names": ["w"], "state": [], "groups": []}),
    ):
        with mo.files.SafetensorsSink(path, infos, {"modelopt_rs.optim": text} if text else {}) as sink:
            sink.write("w", p)
            sink.commit()
        with pytest.raises(mo.FormatError, match=re.escape(str(path))):
            optimizer.load(path)
    with pytest.raises(FileNotFoundError):
        optimizer.load(tmp_path / "none")
    assert (optimizer.state[0]["exp_avg"] == before).all()
    assert optimizer.state[0]["step"] == 1


# ------------------------------------------------------------------------------------------------------ the errors


P = np.ones(3, np.float32)
WRONG: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: mo.optim.Adam(1.0),
        TypeError,
        "Adam: params must be an array, a list or dict of arrays or a list of groups, got float",
    ),
    (lambda: mo.optim.Adam([1.0]), TypeError, "Adam: params['0'] must be a NumPy array, got float"),
    (
        lambda: mo.optim.Adam([{"params": P, "momentum": 1}]),
        TypeError,
        "Adam: unknown option 'momentum' in a parameter group",
    ),
    (
        lambda: mo.optim.Adam(P, fused=True),
        TypeError,
        "Adam: unknown option 'fused'; it has lr, betas, eps, weight_decay, amsgrad, semantics, maximize, state_bits",
    ),
    (
        lambda: mo.optim.Muon({"w": np.ones((2, 2), np.float32), "b": P}),
        ValueError,
        "Muon: params must be matrices, got one of shape (3,); step biases, norms and tables with AdamW",
    ),
    (lambda: mo.optim.Adam(P, lr=-1), ValueError, "adam_step: lr must be at least 0 and finite, got -1"),
    (lambda: mo.optim.Adam(P, betas=(0.9, 1.0)), ValueError, "adam_step: betas[1] must be from 0 to below 1, got 1"),
    (lambda: mo.optim.Adam(P, state_bits=16), ValueError, "Adam: state_bits must be 32, 8 or 4, got 16"),
    (
        lambda: mo.optim.Adam(P, state_bits=8, coding="int8"),
        ValueError,
        "Adam: coding must be 'minifloat' or 'dynamic', got 'int8'",
    ),
    (lambda: mo.optim.Lion(P, state_bits=4), ValueError, "Lion: state_bits must be 32 or 8 for these options, got 4"),
    (lambda: mo.optim.NAdam(P, state_bits=8), ValueError, "NAdam: state_bits must be 32 for these options, got 8"),
    (
        lambda: mo.optim.Adam(P, amsgrad=True, state_bits=8),
        ValueError,
        "Adam: state_bits must be 32 for these options, got 8",
    ),
    (
        lambda: mo.optim.SGD(P, nesterov=True),
        ValueError,
        "SGD: nesterov must be False without momentum or with dampening, got True",
    ),
    (
        lambda: mo.optim.Adam([{"params": {"a": P}}, {"params": {"a": P}}]),
        ValueError,
        "Adam: params must have different names, got 'a' twice",
    ),
    (
        lambda: mo.optim.Adam(P).step(),
        ValueError,
        "Adam.step: grads must be given where none were accumulated, got None",
    ),
    (
        lambda: mo.optim.Adam([P]).step(P),
        TypeError,
        "Adam.step: grads must be a list or a dict like params, got ndarray",
    ),
    (lambda: mo.optim.Adam([P]).step([P, P]), ValueError, "Adam.step: grads must have 1 arrays like params, got 2"),
    (
        lambda: mo.optim.Adam({"a": P}).step({"b": P}),
        ValueError,
        "Adam.step: grads must have the names of params, got 'b'",
    ),
    (
        lambda: mo.optim.Adam(P).step(P.copy(), clip_norm=0.0),
        ValueError,
        "Adam.step: clip_norm must be greater than 0, got 0.0",
    ),
    (
        lambda: mo.optim.Adam(P).load_state_dict({"state": {}, "param_groups": []}),
        ValueError,
        "Adam.load_state_dict: state_dict must have groups of [1] parameters, got []",
    ),
    (lambda: mo.optim.ema_step(P, P.copy(), decay=1.0), ValueError, "ema_step: decay must be from 0 to below 1, got 1"),
    (
        lambda: mo.optim.ema_step(P, P[:2].copy(), decay=0.5),
        ValueError,
        "ema_step: param must have shape (3,) like average, got (2,)",
    ),
    (
        lambda: mo.optim.accumulate_step([P], []),
        ValueError,
        "accumulate_step: grads must have 1 arrays like totals, got 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call()
    assert (P == 1).all()


def test_all_groups_are_checked_before_the_first_is_written():
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    optimizer = mo.optim.Adam([{"params": {"p": p}}, {"params": {"q": q}, "lr": 0.5}])
    for bad in (np.ones(4, np.float32), np.ones(3)):
        with pytest.raises((ValueError, TypeError), match=r"^adam_step: grad"):
            optimizer.step([np.ones(3, np.float32), bad])
    with pytest.raises(ValueError, match="nothing was changed"):
        optimizer.step([np.ones(3, np.float32), np.float32([1, np.nan, 1])], nonfinite="raise")
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.step([np.ones(3, np.float32)] * 2)
    assert (p == 1).all()
    assert (q == 1).all()
    assert not any(s["step"] or s["exp_avg"].any() for s in optimizer.state)


def test_c8_two_threads_that_step_one_parameter_are_told_or_take_turns():
    """Each step that is not refused takes 1 away: none is lost."""
    p, g = np.zeros(40_000, np.float32), np.ones(40_000, np.float32)
    done = [0, 0]

    def many(i: int) -> None:
        for _ in range(3000):
            try:
                mo.optim.sgd_step(p, g, step=1, lr=1.0, threads=1)
                done[i] += 1
            except ValueError as error:
                assert str(error) == "sgd_step: param is in use by another call"  # noqa: PT017

    threads = [threading.Thread(target=many, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (p == -sum(done)).all()
    # How many are refused is up to the machine: one that stops a thread within a call lets the other ask in vain.
    assert sum(done) > 0


def test_c15_steps_leak_no_reference_whether_they_work_or_fail():
    p, g = np.ones(300, np.float32), np.ones(300, np.float32)
    m, v = (mo.optim.BlockState.zeros((300,), signed=signed) for signed in (True, False))
    held = [p, g, m, v, m.codes, m.absmax]
    before = [sys.getrefcount(x) for x in held]
    for _ in range(2000):
        mo.optim.adam_step([p], [g], [m], [v], step=1)
        with pytest.raises(ValueError, match="lr must be"):
            mo.optim.adam_step([p], [g], [m], [v], step=1, lr=-1.0)
        with pytest.raises(ValueError, match="overlap"):
            mo.optim.adam_step([p], [p], [m], [v], step=1)
        with pytest.raises(ValueError, match="must have shape"):
            mo.optim.adam_step([p], [g[:3]], [m], [v], step=1)
    assert [sys.getrefcount(x) for x in held] == before


# -------------------------------------------------------------------------------------------------- schedules


def test_schedules_meet_their_ends():
    s = mo.optim.schedule
    assert s.cosine(1.0, 10, 0.1)(1) == 1.0
    assert s.cosine(1.0, 10, 0.1)(11) == pytest.approx(0.1)
    assert s.polynomial(1.0, 10, 2.0, 0.1)(6) == pytest.approx(0.1 + 0.9 * 0.25)
    assert s.linear_warmup(s.cosine(1.0, 10), 5)(16) == 0.0
    assert s.one_cycle(1.0, 100)(30) == pytest.approx(1.0)
    assert s.one_cycle(1.0, 100)(100) == s.one_cycle(1.0, 100)(1000) == pytest.approx(0.04e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.constant(-1.0), "constant: lr must be at least 0 and finite, got -1.0"),
        (lambda s: s.cosine(1.0, 0), "cosine: steps must be at least 1 and finite, got 0"),
        (lambda s: s.step_decay(1.0, 0), "step_decay: every must be at least 1 and finite, got 0"),
        (lambda s: s.exponential(float("nan"), 1), "exponential: lr must be at least 0 and finite, got nan"),
        (lambda s: s.polynomial(1.0, 5, -1), "polynomial: power must be at least 0 and finite, got -1"),
        (lambda s: s.linear_warmup(1.0, 5, 2.0), "linear_warmup: start must be from 0 to 1, got 2.0"),
        (lambda s: s.one_cycle(1.0, 10, pct_start=1.0), "one_cycle: pct_start must be between 0 and 1, got 1.0"),
        (lambda s: s.one_cycle(1.0, 10, anneal="exp"), "one_cycle: anneal must be 'cos' or 'linear', got 'exp'"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call(mo.optim.schedule)


def test_an_optimizer_shows_what_it_steps_and_how_far_it_is() -> None:
    params = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    optimizer = mo.optim.AdamW([{"params": params["w"], "lr": 0.5}, {"params": params["b"]}], lr=0.25)
    assert repr(optimizer) == "AdamW(2 params, steps=0, lr=(0.5, 0.25))"
    optimizer.step([np.ones_like(p) for p in params.values()])
    assert "steps=1" in repr(optimizer)
