"""`modelopt_rs.interop.torch` against torch's own optimizers (extra `interop`)."""

import copy
import doctest
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")

from modelopt_rs.interop import torch as guest  # noqa: E402

DECAY = {"weight_decay": 0.1}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"momentum": 0.9, **DECAY},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ],
    "Adagrad": [{}, {"lr_decay": 0.01, "initial_accumulator_value": 0.5, **DECAY, "maximize": True}],
    "RMSprop": [{}, {"momentum": 0.9, **DECAY}, {"centered": True}, {"centered": True, "momentum": 0.5}],
    "Adadelta": [{}, {"rho": 0.8, **DECAY, "maximize": True}],
    "Adam": [{}, {"amsgrad": True, **DECAY}, {"decoupled_weight_decay": True, **DECAY, "maximize": True}],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.2, "maximize": True}],
    "NAdam": [{}, {"momentum_decay": 0.01, **DECAY}, {"decoupled_weight_decay": True, **DECAY}],
    "RAdam": [{}, DECAY, {"decoupled_weight_decay": True, **DECAY, "maximize": True}],
    "Adamax": [{}, {**DECAY, "betas": (0.8, 0.99)}],
}
CASES = [(name, options) for name, variants in OPTIONS.items() for options in variants]
NAMES = [*OPTIONS, "Lion"]


def lr_of(name: str) -> float:
    return 1.0 if name == "Adadelta" else 1e-2


def tolerance(name: str, dtype: Any) -> float:
    """Some 60 roundings of numbers near 1; torch keeps NAdam's product of momenta as a float32 number."""
    return 1e-5 if dtype == torch.float32 else 1e-9 if name == "NAdam" else 1e-13


def parameters(dtype: Any, seed: int = 0) -> list[Any]:
    """Contiguous ones, a transposed one, one in channels_last, a scalar."""
    make = torch.Generator().manual_seed(seed)
    shapes = [(31,), (5, 7), (2, 3, 4, 5), ()]
    tensors = [torch.randn(shape, generator=make, dtype=torch.float64).to(dtype) for shape in shapes]
    tensors[1] = torch.randn((7, 5), generator=make, dtype=torch.float64).to(dtype).T
    tensors[2] = tensors[2].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(t) for t in tensors]


def gradients(dtype: Any, steps: int, seed: int = 1) -> Iterator[list[Any]]:
    make = torch.Generator().manual_seed(seed)
    shapes = [tuple(p.shape) for p in parameters(dtype)]
    for _ in range(steps):
        size = 10.0 ** (torch.rand((), generator=make).item() * 4 - 3)
        yield [(torch.randn(s, generator=make, dtype=torch.float64) * size).to(dtype) for s in shapes]


def step(optimizer: Any, params: list[Any], grads: list[Any]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.step()


def assert_near(ours: list[Any], theirs: list[Any], atol: float) -> None:
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_60_steps_match_torch(name, options, dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    options = {"lr": lr_of(name), **options}
    a, b = getattr(guest, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for grads in gradients(dtype, 60):
        step(a, ours, grads)
        step(b, theirs, grads)
    assert_near(ours, theirs, tolerance(name, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_checkpoints_interchange_with_torch_both_ways(name, options, dtype):
    options = {"lr": lr_of(name), **options}
    ours, theirs = parameters(dtype), parameters(dtype)
    makers = [getattr(guest, name), getattr(torch.optim, name)]
    a, b = makers[0](ours, **options), makers[1](theirs, **options)
    for i, grads in enumerate(gradients(dtype, 60)):
        step(a, ours, grads)
        step(b, theirs, grads)
        if i in (20, 40):  # each goes on with the state of the other
            makers.reverse()
            buffers = [io.BytesIO(), io.BytesIO()]
            torch.save(a.state_dict(), buffers[0])
            torch.save(b.state_dict(), buffers[1])
            for buffer in buffers:
                buffer.seek(0)
            a, b = makers[0](ours), makers[1](theirs)
            a.load_state_dict(torch.load(buffers[0]))
            b.load_state_dict(torch.load(buffers[1]))
    assert_near(ours, theirs, 2 * tolerance(name, dtype))
    # torch's SGD doesn't count.
    common = a.state[ours[0]].keys() - ({"step"} if name == "SGD" else set())
    for p, q in zip(ours, theirs, strict=True):
        for key in common:
            x, y = a.state[p][key], b.state[q][key]
            assert x.shape == y.shape
            torch.testing.assert_close(x.double(), y.double(), rtol=1e-4, atol=1e-6)


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=61),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=3),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {})], ids=str)
@pytest.mark.parametrize("lr", [1e-2, "tensor"])
def test_torch_schedulers_work(scheduler, name, options, lr):
    groups = []
    for module in (guest, torch.optim):
        params = parameters(torch.float64)
        groups.append(
            (params, getattr(module, name)(params, lr=torch.tensor(1e-2) if lr == "tensor" else lr, **options))
        )
    schedules = [SCHEDULERS[scheduler](optimizer) for _, optimizer in groups]
    for grads in gradients(torch.float64, 60):
        for (params, optimizer), schedule in zip(groups, schedules, strict=True):
            step(optimizer, params, grads)
            schedule.step(*((1.0,) if scheduler == "ReduceLROnPlateau" else ()))
    # A learning rate in a float32 tensor has the same bits for both; torch rounds some products with it to float32.
    assert_near(groups[0][0], groups[1][0], 1e-6 if lr == "tensor" else 1e-12)
    assert float(groups[0][1].param_groups[0]["lr"]) == pytest.approx(float(groups[1][1].param_groups[0]["lr"]))


def test_a_closure_is_called_with_gradients_and_its_loss_comes_back():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = guest.SGD([w], lr=0.5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (w * w).sum() / 2
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 1.5
    assert w.tolist() == [0.5] * 3


@pytest.mark.parametrize("unscale", [False, True])
def test_a_grad_scaler_works_and_an_infinite_gradient_skips_the_step(unscale):
    results = []
    for module in (guest, torch.optim):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 50))
        optimizer = module.AdamW([w], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        scales = []
        for i in range(8):
            optimizer.zero_grad()
            scaler.scale((w * w).sum() * (float("inf") if i == 3 else 1.0)).backward()
            before = w.detach().clone()
            if unscale:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_([w], 1.0)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            assert torch.equal(before, w.detach()) == (i == 3)
        assert optimizer.state[w]["step"] == 7
        results.append((w.detach(), scales))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    assert results[0][1] == results[1][1]


def test_groups_have_their_options_and_can_be_added():
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    made = []
    for module, params in ((guest, ours), (torch.optim, theirs)):
        optimizer = module.Adam([{"params": params[:2], "lr": 0.1}, {"params": [params[2]], "betas": (0.5, 0.9)}])
        optimizer.add_param_group({"params": params[3], "weight_decay": 0.5})
        made.append(optimizer)
    for grads in gradients(torch.float64, 20):
        step(made[0], ours, grads)
        step(made[1], theirs, grads)
    assert_near(ours, theirs, 1e-13)


def test_parameters_without_gradient_are_left_and_do_not_count():
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    made = [guest.AdamW(ours), torch.optim.AdamW(theirs)]
    for i, grads in enumerate(gradients(torch.float64, 12)):
        for optimizer, params in zip(made, (ours, theirs), strict=True):
            optimizer.zero_grad()
            for k, (p, g) in enumerate(zip(params, grads, strict=True)):
                if i % (k + 1) == 0:
                    p.grad = g.clone()
            optimizer.step()
    assert_near(ours, theirs, 1e-13)
    assert [s["step"].item() for s in made[0].state.values()] == [12, 6, 4, 3]


def test_momentum_turned_on_later_begins_with_the_gradient():
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    made = [guest.SGD(ours, dampening=0.5), torch.optim.SGD(theirs, dampening=0.5)]
    for i, grads in enumerate(gradients(torch.float64, 12)):
        for optimizer, params in zip(made, (ours, theirs), strict=True):
            optimizer.param_groups[0]["momentum"] = 0.9 if i > 5 else 0.0
            step(optimizer, params, grads)
    assert_near(ours, theirs, 1e-13)


def test_momentum_may_be_turned_on_between_a_step_and_what_is_loaded():
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    made = [guest.SGD(ours), torch.optim.SGD(theirs)]
    for i, grads in enumerate(gradients(torch.float64, 6)):
        for optimizer, params in zip(made, (ours, theirs), strict=True):
            step(optimizer, params, grads)
            if i > 2:
                optimizer.param_groups[0]["momentum"] = 0.9
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_near(ours, theirs, 1e-13)


def test_tensors_are_stepped_where_they_are_and_gradients_are_not_written():
    w = torch.nn.Parameter(torch.ones(5))
    memory, grad = w.data_ptr(), torch.ones(1).expand(5)
    w.grad = grad
    optimizer = guest.Adam([w])
    optimizer.step()
    mean = optimizer.state[w]["exp_avg"].data_ptr()
    optimizer.step()
    assert (w.data_ptr(), optimizer.state[w]["exp_avg"].data_ptr()) == (memory, mean)
    assert w.grad is grad
    assert grad.tolist() == [1.0] * 5


def test_autograd_sees_that_a_saved_tensor_was_written():
    w = torch.nn.Parameter(torch.ones(3))
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    guest.SGD([w]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ----------------------------------------------------------------------------------------- 16 bits, states in blocks


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [None, 7])
def test_bfloat16_is_the_functional_step_bit_for_bit_also_beside_float32(name, seed):
    w, v = (
        torch.nn.Parameter(p.detach().to(d))
        for p, d in zip((torch.randn(5000), torch.randn(33)), (torch.bfloat16, torch.float32), strict=True)
    )
    want = [w.detach().clone().view(torch.uint16).numpy(), v.detach().clone().numpy()]
    optimizers = [
        getattr(mo.optim, name)(want[0], rounding_seed=seed, dtype="bf16"),
        getattr(mo.optim, name)(want[1]),
    ]
    ours = getattr(guest, name)([w, v], rounding_seed=seed)
    for _ in range(10):
        w.grad, v.grad = torch.randn(5000).to(torch.bfloat16), torch.randn(33)
        optimizers[0].step(w.grad.view(torch.uint16).numpy())
        optimizers[1].step(v.grad.numpy())
        ours.step()
    assert np.array_equal(w.detach().view(torch.uint16).numpy(), want[0])
    assert np.array_equal(v.detach().numpy(), want[1])
    assert all(x.dtype != torch.bfloat16 for x in ours.state[w].values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_states_of_16_bit_parameters_stay_so_when_loaded(dtype):
    w = torch.nn.Parameter(torch.randn(100).to(dtype))
    optimizer = guest.AdamW([w])
    for _ in range(3):
        w.grad = torch.randn(100).to(dtype)
        optimizer.step()
    other = guest.AdamW([torch.nn.Parameter(w.detach().clone())])
    other.load_state_dict(optimizer.state_dict())
    (got,), (want,) = other.state.values(), optimizer.state.values()
    assert got.keys() == want.keys()
    for key in got:
        assert got[key].dtype == torch.float32
        assert torch.equal(got[key], want[key])
        assert key == "step" or got[key].data_ptr() != want[key].data_ptr()
    theirs = torch.optim.AdamW([torch.nn.Parameter(w.detach().clone())])
    theirs.load_state_dict(optimizer.state_dict())
    p = theirs.param_groups[0]["params"][0]
    p.grad = w.grad.clone()
    theirs.step()
    other.load_state_dict(theirs.state_dict())
    assert next(iter(other.state.values()))["exp_avg"].dtype == torch.float32


BLOCKS = [
    *[
        (name, 8, coding)
        for name in ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Lion")
        for coding in ("minifloat", "dynamic")
    ],
    ("Adam", 4, "minifloat"),
    ("AdamW", 4, "minifloat"),
]


@pytest.mark.parametrize(("name", "bits", "coding"), BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_blocks_go_on_bit_for_bit_after_torch_save(name, bits, coding, dtype):
    options: dict[str, Any] = {"state_bits": bits, "coding": coding, **({"momentum": 0.9} if name == "SGD" else {})}
    make = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(shape, generator=make).to(dtype)) for shape in ((70, 80), (9,))]
    grads = [[torch.randn(p.shape, generator=make).to(dtype) for p in params] for _ in range(12)]
    optimizer = getattr(guest, name)(params, **options)
    for g in grads[:6]:
        step(optimizer, params, g)
    buffer = io.BytesIO()
    torch.save([optimizer.state_dict(), [p.detach() for p in params]], buffer)
    buffer.seek(0)
    state, values = torch.load(buffer)
    others = [torch.nn.Parameter(v) for v in values]
    other = getattr(guest, name)(others, **options)
    other.load_state_dict(state)
    for g in grads[6:]:
        step(optimizer, params, g)
        step(other, others, g)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    coded = [key for key in other.state[others[0]] if key.endswith(".codes")]
    assert coded
    assert all(other.state[others[0]][key].dtype == torch.uint8 for key in coded)
    assert not any(key.endswith(".codes") for key in other.state[others[1]])


def test_states_in_blocks_become_torchs_by_way_of_state_bits_32_and_the_reverse():
    w = torch.nn.Parameter(torch.randn(64, 100))
    coded, plain, theirs = guest.Adam([w], state_bits=8), guest.Adam([w]), torch.optim.Adam([w])
    w.grad = torch.randn(64, 100)
    coded.step()
    plain.load_state_dict(coded.state_dict())
    theirs.load_state_dict(plain.state_dict())
    theirs.step()
    coded.load_state_dict(theirs.state_dict())
    assert coded.param_groups[0]["state_bits"] == 8
    coded.step()
    assert coded.state[w]["step"] == 3
    assert coded.state[w]["exp_avg.codes"].dtype == torch.uint8
    # A block's error is at most 1/16 of a number, and it was coded twice.
    plain.load_state_dict(coded.state_dict())
    assert torch.allclose(plain.state[w]["exp_avg"], w.grad * (1 - 0.9**3), rtol=0.2, atol=1e-4)


def test_a_parameter_that_is_not_c_contiguous_has_no_states_in_blocks():
    w = torch.nn.Parameter(torch.randn(100, 100).T)
    optimizer = guest.Adam([w], state_bits=8)
    w.grad = torch.randn(100, 100)
    optimizer.step()
    assert optimizer.state[w]["exp_avg"].stride() == w.stride()
    v = torch.nn.Parameter(torch.randn(100, 100))
    optimizer = guest.Adam([v], state_bits=8)
    v.grad = torch.randn(100, 100)
    optimizer.step()
    v.data = v.data.T
    before = v.detach().clone()
    with pytest.raises(ValueError, match=r"^Adam.step: params\[0\] must be C-contiguous, for its state is in blocks"):
        optimizer.step()
    assert torch.equal(v, before)


def test_a_copy_goes_on_alike():
    w = torch.nn.Parameter(torch.randn(50))
    optimizer = guest.NAdam([w], threads=1)
    w.grad = torch.randn(50)
    optimizer.step()
    other = copy.deepcopy(optimizer)
    (v,) = other.param_groups[0]["params"]
    v.grad = w.grad.clone()
    for o in (optimizer, other):
        o.step()
    assert v is not w
    assert torch.equal(v, w)


def test_hooks_run_around_loading():
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    optimizer = guest.Adam([w])
    optimizer.step()
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda _, given: seen.append(len(given["state"])))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [1, 1]


# ---------------------------------------------------------------------------------------------------------- errors


def bad_gradients() -> list[tuple[Any, Any, type[Exception], str]]:
    ones = torch.ones(3, 4)
    wide = torch.ones(3, 8)[:, ::2]
    what = "must be a dense tensor of float32, float64, float16 or bfloat16 on the CPU, got "
    return [
        (ones, ones.to_sparse(), TypeError, f"params[0].grad {what}torch.float32 (torch.sparse_coo, cpu)"),
        (ones * 1j, ones * 1j, TypeError, f"params[0] {what}torch.complex64"),
        (ones.to("meta"), ones.to("meta"), TypeError, f"params[0] {what}torch.float32 (torch.strided, meta)"),
        (wide, ones, ValueError, "params[0] must be dense, got shape (3, 4) with strides (8, 2); use p.data = "),
    ]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_what_cannot_be_stepped_is_refused_and_nothing_is_changed(name, place):
    value, grad, error, message = bad_gradients()[place]
    good, bad = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(value)
    good.grad, bad.grad = torch.ones(5), grad
    optimizer = getattr(guest, name)([{"params": [good]}, {"params": [bad]}])
    with pytest.raises(error, match="^" + re.escape(f"{name}.step: {message}")):
        optimizer.step()
    assert good.tolist() == [1.0] * 5
    assert not optimizer.state


def test_options_of_all_groups_are_checked_before_the_first_write():
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    optimizer = guest.AdamW([{"params": [p]} for p in params])
    for p in params:
        p.grad = torch.ones(5)
    optimizer.param_groups[1]["betas"] = (0.9, 1.5)
    with pytest.raises(ValueError, match=r"^adamw_step: betas\[1\] must be from 0 to below 1, got 1.5"):
        optimizer.step()
    assert all(p.tolist() == [1.0] * 5 for p in params)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("Adam", {"lr": -1.0}, ValueError, "adam_step: lr must be at least 0 and finite, got -1"),
        ("Adam", {"foreach": True}, TypeError, "Adam: unknown option 'foreach'"),
        ("Adam", {"state_bits": 16}, ValueError, "Adam: state_bits must be 32, 8 or 4, got 16"),
        ("SGD", {"nesterov": True}, ValueError, "SGD: nesterov must be False without momentum"),
        ("RMSprop", {"alpha": 1.0}, ValueError, "rmsprop_step: alpha must be from 0 to below 1, got 1"),
    ],
)
def test_wrong_options_are_refused_at_once(name, options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        getattr(guest, name)([torch.nn.Parameter(torch.ones(2))], **options)


def test_what_cannot_be_loaded_is_refused_and_nothing_is_changed():
    params = [torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(90, 90))]
    optimizer = guest.Adam(params, state_bits=8)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    kept = before["state"]

    def without(place: int, key: str) -> dict[int, Any]:
        return {**kept, place: {k: v for k, v in kept[place].items() if k != key}}

    where = "Adam.load_state_dict: state_dict must have "
    group = {**before["param_groups"][0], "lr": 0.5}
    for state, message in [
        (without(0, "exp_avg_sq"), where + "'exp_avg_sq' for parameter 0, got step, exp_avg"),
        ({0: {**kept[0], "exp_avg": torch.ones(4)}}, where + "'exp_avg' of shape (5,) for parameter 0, got (4,)"),
        ({1: {**kept[1], "exp_avg.codes": torch.ones(4, dtype=torch.uint8)}}, where + "'exp_avg' of 8228 bytes for"),
    ]:
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            optimizer.load_state_dict({"state": state, "param_groups": [group]})
    with pytest.raises(ValueError, match=r"^Adam: state_bits must be 32 for these options, got 8"):
        optimizer.load_state_dict({"state": kept, "param_groups": [{**group, "amsgrad": True}]})
    for groups in ([group, group], [{**group, "params": [0]}]):
        with pytest.raises(ValueError, match="loaded state dict"):
            optimizer.load_state_dict({"state": kept, "param_groups": groups})
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for state, want in zip(after["state"].values(), kept.values(), strict=True):
        assert all(torch.equal(x, want[k]) if isinstance(x, torch.Tensor) else x == want[k] for k, x in state.items())
    assert not optimizer._optimizer_load_state_dict_pre_hooks


def test_a_state_that_lacks_one_of_several_is_refused():
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    optimizer = guest.Adam([w])
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    before = w.detach().clone()
    with pytest.raises(
        ValueError, match=r"^Adam.step: params\[0\] must have 'max_exp_avg_sq' in its state, got step, exp"
    ):
        optimizer.step()
    assert torch.equal(w.detach(), before)


def test_the_examples_run():
    assert doctest.testmod(guest).failed == 0


def test_torchs_product_of_momenta_may_have_become_0():
    ours, theirs = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizers = [guest.NAdam([ours]), torch.optim.NAdam([theirs])]
    for p, optimizer in zip((ours, theirs), optimizers, strict=True):
        p.grad = torch.ones(3)
        for _ in range(400):
            optimizer.step()
    assert optimizers[1].state[theirs]["mu_product"] == 0
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    for optimizer in optimizers:
        optimizer.step()
    assert_near([ours], [theirs], 1e-5)


def test_the_base_package_does_not_import_torch():
    code = "import sys, modelopt_rs; assert not {'torch', 'keras', 'modelopt_rs.interop'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lamb_which_torch_does_not_have_steps_as_that_of_arrays():
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(np.float32) for shape in ((20, 30), (7,))]
    params = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in start]
    arrays = [x.copy() for x in start]
    theirs, ours = guest.LAMB(params, lr=0.1, weight_decay=0.01), mo.optim.LAMB(arrays, lr=0.1, weight_decay=0.01)
    for _ in range(5):
        grads = [rng.standard_normal(x.shape).astype(np.float32) for x in start]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(g)
        theirs.step()
        ours.step(grads)
    assert [p.detach().numpy().tobytes() for p in params] == [x.tobytes() for x in arrays]
