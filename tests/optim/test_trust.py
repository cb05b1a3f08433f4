"""What a training loop relies on: gradients that are not finite, schedules, what a step says, averages."""

import inspect
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from optimizers import ALL, CODED, arrays, bits

BF16 = np.dtype(ml_dtypes.bfloat16)


def kept(optimizer: Any) -> Any:
    states = [
        [
            x.codes.tobytes() + x.absmax.tobytes() if isinstance(x, mo.optim.BlockState) else np.asarray(x).tobytes()
            for x in s.values()
        ]
        for s in optimizer.state
    ]
    return [ref.bits_of(p) for p in optimizer.params.values()], states, optimizer.steps


# ----------------------------------------------------------------------------------------------- not finite


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16, "bits"])
def test_h50_clipping_is_torchs_where_a_gradient_is_not_finite(bad, dtype):
    """H50: a NaN makes all NaN; an infinity makes what is finite 0 and itself NaN."""
    torch = pytest.importorskip("torch")
    kind = BF16 if dtype == "bits" else np.dtype(dtype)
    grads = {
        "w": np.array([1.0, bad, 2.0]).astype(kind),
        "b": np.array([100.0]).astype(kind),
        "z": np.array([3.0]).astype(kind),
    }
    params = {k: np.zeros(g.shape, kind) for k, g in grads.items()}
    given = {k: (x.view(np.uint16) if dtype == "bits" else x) for k, x in grads.items()}
    held = {k: (x.view(np.uint16) if dtype == "bits" else x) for k, x in params.items()}
    result = mo.optim.SGD(held, lr=1.0, dtype="bf16" if dtype == "bits" else None).step(given, clip_norm=1.0)
    theirs = {k: torch.zeros(g.shape, requires_grad=True) for k, g in grads.items()}
    for k, t in theirs.items():
        t.grad = torch.from_numpy(grads[k].astype(np.float32))
    norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
    for k, t in theirs.items():
        np.testing.assert_array_equal(-params[k].astype(np.float32), t.grad.numpy())
    assert result.norm is not None
    np.testing.assert_equal(result.norm, float(norm))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"clip_norm": "1"}, TypeError, "SGD.step: clip_norm must be a number, got '1'"),
        ({"clip_norm": True}, TypeError, "SGD.step: clip_norm must be a number, got True"),
        ({"clip_norm": 1.0, "grad_scale": "1"}, TypeError, "SGD.step: grad_scale must be a number, got '1'"),
        ({"clip_norm": 1.0, "nonfinite": "ignore"}, ValueError, "SGD.step: nonfinite must be 'propagate', 'raise' or"),
        ({"clip_norm": 0.0}, ValueError, "SGD.step: clip_norm must be greater than 0, got 0.0"),
        ({"clip_norm": 1.0, "grad_scale": -1.0}, ValueError, "sgd_step: grad_scale must be greater than 0"),
    ],
)
def test_options_of_a_step_are_checked_with_clipping_too(options, error, said):
    w = np.ones(3, np.float32)
    optimizer = mo.optim.SGD([w], lr=0.1)
    with pytest.raises(error) as caught:
        optimizer.step([np.ones(3, np.float32)], **options)
    assert str(caught.value).startswith(said)
    assert (w == 1).all()
    assert optimizer.steps == 0


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "options"), [*ALL, *CODED], ids=str)
def test_h50_a_step_is_skipped_or_refused_before_anything_moves(name, options, bad, clip):
    """H50: in every group, whichever parameter has it, also where groups are stepped one by one."""
    made = arrays(name, 0)
    groups = [{"params": {k: p}} for k, p in made.items()]
    optimizer = getattr(mo.optim, name)(groups, lr=0.1, ema_decay=0.5, **options)
    optimizer.step(arrays(name, 1))
    for where in made:
        grads = arrays(name, 2)
        grads[where].reshape(-1)[-1] = bad
        before = kept(optimizer)
        assert optimizer.step(grads, nonfinite="skip", clip_norm=clip).stepped is False
        assert kept(optimizer) == before
        for how in ({"nonfinite": "raise"},):
            with pytest.raises(ValueError, match="nothing was changed"):
                optimizer.step(grads, clip_norm=clip, **how)
            assert kept(optimizer) == before
    again = getattr(mo.optim, name)([{"params": {k: p}} for k, p in arrays(name, 0).items()], lr=0.1, **options)
    again.step(arrays(name, 1))
    good = arrays(name, 3)
    assert optimizer.step(good, nonfinite="skip", clip_norm=clip).stepped
    again.step(good, clip_norm=clip)
    assert bits(optimizer.params) == bits(again.params)


def test_h50_what_was_accumulated_is_forgotten_with_a_skipped_step():
    p = np.zeros(2, np.float32)
    optimizer = mo.optim.SGD(p, lr=1.0)
    optimizer.accumulate(np.float32([1, np.nan]))
    assert not optimizer.step(nonfinite="skip").stepped
    optimizer.accumulate(np.float32([1, 2]))
    assert optimizer.step(nonfinite="skip").stepped
    np.testing.assert_array_equal(p, [-1, -2])


@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor", "Muon"])
def test_h50_another_word_is_refused(name):
    optimizer = getattr(mo.optim, name)(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="nonfinite must be 'propagate', 'raise' or 'skip', got 'no'"):
        optimizer.step(np.ones((2, 2), np.float32), nonfinite="no")


# ----------------------------------------------------------------------------------------------- what a step says


def test_h59_a_step_gives_the_norm_before_clipping_whether_it_stepped_and_the_rates():
    p, q = np.zeros(1, np.float32), np.zeros(1, np.float32)
    optimizer = mo.optim.SGD([{"params": [p]}, {"params": [q], "lr": lambda step: 1.0 / step}], lr=0.5)
    assert optimizer.rates == (0.5, 1.0)
    grads = [np.float32([3]), np.float32([4])]
    assert optimizer.step(grads) == (True, None, (0.5, 1.0))
    assert optimizer.rates == (0.5, 0.5)
    result = optimizer.step(grads, clip_norm=1.0, grad_scale=2.0)
    assert (result.stepped, result.norm, result.rates) == (True, 2.5, (0.5, 0.5))
    assert optimizer.step(grads, clip_norm=np.inf).norm == 5.0


def test_the_norm_of_nan_and_infinity_is_nan():
    assert np.isnan(mo.optim.global_norm([np.float32([np.inf]), np.float32([np.nan])]))
    assert np.isnan(mo.optim.global_norm([np.float32([np.nan]), np.float32([np.inf])]))
    assert mo.optim.global_norm([np.float32([-np.inf]), np.float32([1])]) == np.inf
    assert mo.optim.global_norm([]) == 0.0


# ----------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam", "LAMB", "Adafactor", "Muon"])
def test_h51_a_schedule_goes_by_the_optimizers_steps_and_corrections_by_the_parameters(name):
    """H51: a layer that is unfrozen after four steps joins the schedule where it stands."""
    asked: list[int] = []

    def lr(step: int) -> float:
        asked.append(step)
        return 0.1 / step

    params = [np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)]
    optimizer = getattr(mo.optim, name)(params, lr=lr)
    grad = np.full((2, 2), 0.5, np.float32)
    asked.clear()
    for _ in range(4):
        optimizer.step([grad, None])
    optimizer.step([grad, grad])
    assert asked == [1, 2, 3, 4, 5]
    assert [state["step"] for state in optimizer.state] == [5, 1]
    alone = np.ones((2, 2), np.float32)
    getattr(mo.optim, name)(alone, lr=0.1 / 5).step(grad)
    assert ref.bits_of(params[1]) == ref.bits_of(alone)


def test_h58_a_warm_up_reaches_the_peak_and_then_the_schedule_begins():
    """H58: it reached 0.655 of it, as the schedule had gone on below."""
    s = mo.optim.schedule
    lr = s.linear_warmup(s.cosine(1.0, 10), 4)
    assert [round(lr(t), 4) for t in range(1, 6)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert max(lr(t) for t in range(1, 30)) == lr(5) == 1.0
    assert [lr(t) for t in range(5, 20)] == [s.cosine(1.0, 10)(t) for t in range(1, 16)]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("start", [0.25, 1.0, 1e-3])
def test_h58_a_warm_up_is_torchs_sequence_of_two_schedulers(steps, start):
    torch = pytest.importorskip("torch")
    s, rates = mo.optim.schedule, torch.optim.lr_scheduler
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    parts = [rates.LinearLR(theirs, start, 1.0, steps), rates.CosineAnnealingLR(theirs, 10)]
    scheduler = rates.SequentialLR(theirs, parts, [steps])
    ours = s.linear_warmup(s.cosine(0.5, 10), steps, start)
    for t in range(1, steps + 11):
        assert ours(t) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6, abs=1e-9)
        theirs.step()
        scheduler.step()


@pytest.mark.slow
def test_h58_a_warm_up_is_optaxs():
    optax = pytest.importorskip("optax")
    s = mo.optim.schedule
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.5, 4, 14)
    ours = s.linear_warmup(s.cosine(0.5, 10), 4, 0.0)
    for t in range(1, 20):
        assert ours(t) == pytest.approx(float(theirs(t - 1)), rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_h58_a_warm_up_is_that_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    s = mo.optim.schedule
    for make, ours in (
        (lambda o: transformers.get_cosine_schedule_with_warmup(o, 4, 14), s.cosine(0.5, 10)),
        (lambda o: transformers.get_linear_schedule_with_warmup(o, 4, 14), s.polynomial(0.5, 10)),
        (lambda o: transformers.get_constant_schedule_with_warmup(o, 4), s.constant(0.5)),
    ):
        theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler, lr = make(theirs), s.linear_warmup(ours, 4, 0.0)
        for t in range(1, 15):
            assert lr(t) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6, abs=1e-9)
            theirs.step()
            scheduler.step()


def test_h57_arguments_in_the_wrong_order_are_named():
    s = mo.optim.schedule
    with pytest.raises(TypeError, match=r"^linear_warmup: steps must be a number, got function"):
        s.linear_warmup(100, s.constant(0.1))


# ----------------------------------------------------------------------------------------------- averages, sums


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16, "bits"])
@pytest.mark.parametrize("master", [False, True])
def test_averages_are_those_of_ema_step(dtype, master):
    kind = BF16 if dtype == "bits" else np.dtype(dtype)
    w = np.linspace(-1, 1, 7).astype(kind)
    held = w.view(np.uint16) if dtype == "bits" else w
    optimizer = mo.optim.Adam(
        {"w": held}, lr=0.1, ema_decay=0.75, master=master, dtype="bf16" if dtype == "bits" else None
    )
    want = w.astype(np.float64 if dtype == np.float64 else np.float32)
    for t in range(3):
        optimizer.step({"w": np.full(7, t + 1, want.dtype)})
        source = optimizer.state[0].get("master", w)
        mo.optim.ema_step(want, source, decay=0.75)
    assert ref.bits_of(optimizer.averages["w"]) == ref.bits_of(want)
    assert mo.optim.Adam({"w": held}).averages == {}


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"^Adam: ema_decay must be from 0 to below 1, got"):
        mo.optim.Adam(np.ones(3, np.float32), ema_decay=decay)


def test_h18_sums_of_all_precisions_together_with_bfloat16_bits():
    """H18: float32, float64 and bits side by side, clipped by their norm."""
    kinds = {"wide": np.float64, "own": np.float32, "half": BF16}
    params = {k: np.ones(5).astype(kind) for k, kind in kinds.items()}
    held = {k: p.view(np.uint16) if k == "half" else p for k, p in params.items()}
    plain = {k: p.copy() for k, p in params.items()}
    one, two = mo.optim.SGD(held, lr=0.5, dtype="bf16", ema_decay=0.5), mo.optim.SGD(plain, lr=0.5)
    for t in range(1, 4):
        grads = {k: np.full(5, t).astype(kind) for k, kind in kinds.items()}
        one.accumulate({k: g.view(np.uint16) if k == "half" else g for k, g in grads.items()})
        two.accumulate(grads)
    assert one.step(clip_norm=1.0, nonfinite="raise") == two.step(clip_norm=1.0)
    assert [ref.bits_of(p) for p in params.values()] == [ref.bits_of(p) for p in plain.values()]


def test_a_parameter_that_got_no_gradient_while_others_did_is_left_as_it_is():
    p, q = np.ones(2, np.float32), np.ones(2, np.float32)
    optimizer = mo.optim.AdamW([p, q], lr=0.1, weight_decay=0.5)
    optimizer.accumulate([np.ones(2, np.float32), None])
    optimizer.step()
    assert (q == 1).all()
    assert [s["step"] for s in optimizer.state] == [1, 0]


# ----------------------------------------------------------------------------------------------- help


def test_h63_signatures_can_be_read_and_dir_has_what_is_public():
    """H63: types by their names, common options in the signatures of classes, no modules in `dir`."""
    for name in mo.optim.__all__:
        x = getattr(mo.optim, name)
        if callable(x) and name not in ("BlockState", "StepResult", "Optimizer"):
            assert len(str(inspect.signature(x))) < 700, name
        if name in ("AdamW", "SGD", "Muon"):
            shown = str(inspect.signature(x))
            assert all(option in shown for option in ("master", "state_bits", "ema_decay", "rounding_seed", "threads"))
    assert dir(mo.optim) == sorted(mo.optim.__all__)


SCHEDULES = {
    "constant": lambda s: s.constant(0.1),
    "step_decay": lambda s: s.step_decay(0.1, 2),
    "exponential": lambda s: s.exponential(0.1, 0.5),
    "cosine": lambda s: s.cosine(0.1, 5),
    "polynomial": lambda s: s.polynomial(0.1, 5, 0.5),
    "linear_warmup": lambda s: s.linear_warmup(s.linear_warmup(s.cosine(0.1, 4), 2), 2, 0.0),
    "one_cycle": lambda s: s.one_cycle(0.1, 6),
}


@pytest.mark.parametrize("name", mo.optim.schedule.__all__)
def test_h58_what_is_no_step_is_refused_by_every_schedule(name):
    """Counted from 0 all rates would be those of the step before, and a warm-up would begin below 0."""
    lr = SCHEDULES[name](mo.optim.schedule)
    for step in (0, -3, float("nan")):
        with pytest.raises(ValueError, match=f"^{name}: step must be at least 1, the first, got {step}$"):
            lr(step)
    with pytest.raises(TypeError, match=f"^{name}: step must be a number, got '1'"):
        lr("1")
    assert all(0 <= lr(step) <= 0.1 for step in (1, np.int64(2), 3, 50, 10**9))


def test_a_rate_that_grows_out_of_all_numbers_is_refused_by_name():
    lr = mo.optim.schedule.exponential(0.1, 2.0)
    optimizer = mo.optim.SGD([np.zeros(2, np.float32)], lr=lr)
    optimizer.steps = 5000
    with pytest.raises(ValueError, match=r"^sgd_step: lr must be at least 0 and finite, got inf"):
        optimizer.step([np.ones(2, np.float32)])


@pytest.mark.parametrize("rate", [np.float32(0.5), np.float64(0.5), np.array(0.5), 0.5])
@pytest.mark.parametrize("is_schedule", [True, False])
def test_h59_rates_are_numbers_that_a_log_can_write(rate, is_schedule):
    optimizer = mo.optim.SGD([np.ones(2, np.float32)], lr=(lambda step: rate) if is_schedule else rate)
    assert json.loads(json.dumps(optimizer.rates)) == [0.5]
    result = optimizer.step([np.ones(2, np.float32)])
    assert type(result.rates[0]) is float
    np.testing.assert_array_equal(optimizer.params["0"], 0.5)
