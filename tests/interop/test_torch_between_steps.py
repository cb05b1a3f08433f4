"""What may change between two steps of `modelopt_rs.interop.torch`: all of it is noticed, as by torch's optimizers."""

import copy
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")

from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from modelopt_rs.interop import torch as guest  # noqa: E402

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9}),
    ("Adagrad", {"lr_decay": 0.1}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("Adadelta", {"lr": 1.0}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adamax", {}),
]
SHAPES = [(4, 6), (7,), (2, 3, 4, 4), ()]


class Trained:
    """Parameters of one optimizer, and gradients that are the same for each such."""

    def __init__(self, module: Any, name: str, options: dict[str, Any], channels_last: bool = False) -> None:
        self.make = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=self.make, dtype=torch.float64) for shape in SHAPES]
        if channels_last:
            params[2] = params[2].to(memory_format=torch.channels_last)
        self.params = [torch.nn.Parameter(p) for p in params]
        groups = [{"params": self.params[:2]}, {"params": self.params[2:], "weight_decay": 0.1}]
        self.optimizer = getattr(module, name)(groups, **{"lr": 0.05, **options})
        self.fresh()

    def fresh(self) -> None:
        for p in self.params:
            p.grad = torch.randn(p.shape, generator=self.make, dtype=torch.float64)

    def states(self) -> list[Any]:
        """Tensors of states but the numbers, by parameter."""
        own = [self.optimizer.state[p] for p in self.params if p in self.optimizer.state]
        return [{k: x for k, x in state.items() if k not in ("step", "mu_product")} for state in own]


def replace_storage(t: Trained) -> None:
    for p in t.params:
        p.data = p.data * 1.5


def replace_layout(t: Trained) -> None:
    t.params[0].data = t.params[0].data.T.contiguous().T
    t.params[2].data = t.params[2].data.contiguous()


def replace_state(t: Trained) -> None:
    for p in t.params:
        if state := t.optimizer.state.get(p):
            for key, x in list(state.items()):
                if isinstance(x, torch.Tensor) and key != "step":
                    state[key] = x.clone()


def replace_dicts(t: Trained) -> None:
    for p in t.params:
        if state := t.optimizer.state.get(p):
            t.optimizer.state[p] = copy.deepcopy(state)


def move_state(t: Trained) -> None:
    for state in t.states():
        for x in state.values():
            x.data = x.data * 0.5


def change_state(t: Trained) -> None:
    for state in t.states():
        for x in state.values():
            x.mul_(0.5)


def share_memory(t: Trained) -> None:
    for state in t.states():
        for x in state.values():
            x.share_memory_()
    t.params[1].data.share_memory_()


def change_step(t: Trained) -> None:
    for p in t.params:
        if "step" in t.optimizer.state.get(p, {}):
            t.optimizer.state[p]["step"].add_(3)


def forget_one(t: Trained) -> None:
    t.optimizer.state.pop(t.params[1], None)


def change_rate(t: Trained) -> None:
    for group in t.optimizer.param_groups:
        group["lr"] *= 0.5


def tensor_rate(t: Trained) -> None:
    for group in t.optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64)


def change_decay(t: Trained) -> None:
    t.optimizer.param_groups[0]["weight_decay"] = 0.2
    t.optimizer.param_groups[1]["maximize"] ^= True


def no_gradients(t: Trained) -> None:
    t.params[0].grad = t.params[3].grad = None


def freeze(t: Trained) -> None:
    t.params[1].grad = None
    t.params[1].requires_grad_(False)


def strided_gradients(t: Trained) -> None:
    wide = torch.randn((6, 8), generator=t.make, dtype=torch.float64)
    t.params[0].grad = wide[:, ::2].T
    t.params[1].grad = torch.ones(1, dtype=torch.float64).expand(7)


def gradients_that_require_gradients(t: Trained) -> None:
    t.params[1].grad = t.params[1].grad.clone().requires_grad_()


def gradients_in_place(t: Trained) -> None:
    t.optimizer.zero_grad(set_to_none=False)
    for p in t.params:
        if p.grad is not None:
            p.grad.add_(0.25)


def load(t: Trained) -> None:
    in_groups = {p for group in t.optimizer.param_groups for p in group["params"]}
    for p in set(t.optimizer.state) - in_groups:
        del t.optimizer.state[p]  # torch's own state_dict knows no such
    t.optimizer.load_state_dict(copy.deepcopy(t.optimizer.state_dict()))


def add_group(t: Trained) -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    p.grad = torch.ones(3, dtype=torch.float64)
    t.params.append(p)
    t.optimizer.add_param_group({"params": [p], "lr": 0.01})


def drop_parameter(t: Trained) -> None:
    group = t.optimizer.param_groups[0]["params"]
    if len(group) > 1:
        del group[0]


def copy_all(t: Trained) -> None:
    t.optimizer, t.params = copy.deepcopy([t.optimizer, t.params])


CHANGES = [
    replace_storage,
    replace_layout,
    replace_state,
    replace_dicts,
    move_state,
    change_state,
    share_memory,
    change_step,
    forget_one,
    change_rate,
    tensor_rate,
    change_decay,
    no_gradients,
    freeze,
    strided_gradients,
    gradients_that_require_gradients,
    gradients_in_place,
    load,
    add_group,
    drop_parameter,
    copy_all,
]


def run(name: str, options: dict[str, Any], changes: list[Any], channels_last: bool) -> None:
    ours, theirs = (Trained(module, name, options, channels_last) for module in (guest, torch.optim))
    if name == "SGD":
        changes = [c for c in changes if c is not change_step]  # which torch doesn't count
    for t in (ours, theirs):
        t.optimizer.step()
        for change in changes:
            t.fresh()
            change(t)
            t.optimizer.step()
        t.optimizer.step()
    for p, q in zip(ours.params, theirs.params, strict=True):
        # torch keeps NAdam's product of momenta in float32.
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6 if name == "NAdam" else 1e-11, atol=1e-9)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("name", "options", "channels_last"), [(*case, False) for case in OPTIONS] + [("AdamW", {}, True)], ids=str
)
def test_a_change_between_steps_is_noticed(name, options, channels_last, change):
    run(name, options, [change], channels_last)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(OPTIONS), st.lists(st.sampled_from(CHANGES), min_size=2, max_size=6), st.booleans())
def test_changes_in_any_order_are_noticed(case, changes, channels_last):
    run(*case, changes, channels_last)


def test_versions_of_all_that_is_stepped_rise_in_each_step_and_no_others():
    t = Trained(guest, "AdamW", {})
    t.params[0].grad = None
    before = [p._version for p in t.params]
    for _ in range(3):
        t.optimizer.step()
    assert [p._version - v for p, v in zip(t.params, before, strict=True)] == [0, 3, 3, 3]


def everything(t: Trained) -> Any:
    tensors = [p.detach().clone() for p in t.params]
    return tensors, copy.deepcopy([dict(t.optimizer.state[p]) for p in t.params if p in t.optimizer.state])


def alias(t: Trained) -> None:
    t.params[0].grad = t.params[0].detach()


def alias_another(t: Trained) -> None:
    t.params[3].grad = t.params[1].detach()[2].view(())


def alias_a_state(t: Trained) -> None:
    t.params[1].grad = t.optimizer.state[t.params[1]]["exp_avg"]


def twice(t: Trained) -> None:
    t.optimizer.param_groups[1]["params"].append(t.params[0])


def bad_option(t: Trained) -> None:
    t.optimizer.param_groups[1]["betas"] = (0.9, 1.0)


def other_shape(t: Trained) -> None:
    t.params[3].data = torch.ones(2, dtype=torch.float64)


def not_dense(t: Trained) -> None:
    t.params[0].data = torch.ones(4, 12, dtype=torch.float64)[:, ::2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (alias, r"adamw_step: params\[0\] and grads\[0\] overlap in memory"),
        (alias_another, r"adamw_step: params\[1\] and grads\[1\] overlap in memory"),
        (alias_a_state, r"adamw_step: exp_avg\[1\] and grads\[1\] overlap in memory"),
        (twice, r"adamw_step: \w+\[0\] and \w+\[2\] overlap in memory"),
        (bad_option, r"adamw_step: betas\[1\] must be from 0 to below 1, got 1"),
        (other_shape, r"adamw_step: exp_avg\[1\] must have shape \(2,\) like params\[1\], got \(\)"),
        (not_dense, r"AdamW.step: params\[0\] must be dense, got shape \(4, 6\) with strides \(12, 2\)"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize(("steps", "channels_last"), [(1, False), (3, False), (3, True)])
def test_a_step_that_raises_has_changed_nothing(change, message, steps, channels_last):
    t = Trained(guest, "AdamW", {}, channels_last)
    for _ in range(steps):
        t.optimizer.step()
    change(t)
    before = everything(t)
    with pytest.raises((ValueError, TypeError), match="^" + message):
        t.optimizer.step()
    after = everything(t)
    for p, q in zip(before[0], after[0], strict=True):
        assert torch.equal(p, q)
    for a, b in zip(before[1], after[1], strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert a.keys() == b.keys()


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_step_by_descriptions_as_by_a_plan_bit_for_bit(name, options, dtype):
    make = torch.Generator().manual_seed(0)
    shapes = [(5,), (3, 7), (), (0, 2), (400,), (9000,)]
    given = [[torch.randn(s, generator=make, dtype=dtype) for s in shapes] for _ in range(5)]

    def stepped(count: int, **how: Any) -> tuple[list[Any], list[Any]]:
        params = [torch.nn.Parameter(p.clone()) for p in given[0][:count]]
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
        optimizer = getattr(guest, name)(groups, lr=0.05, **{k: v for k, v in options.items() if k != "lr"})
        for step, grads in enumerate(given[1:]):
            for i, (p, g) in enumerate(zip(params, grads, strict=False)):
                p.grad = None if (i, step) == (4, 1) else g.clone()  # it then is a step behind
            optimizer.step(**how)
        return params, [x for p in params for x in optimizer.state[p].values()]

    (planned, states) = stepped(6, nonfinite="raise")
    # With the largest their storages are held.
    for count in (5, 6):
        params, own = stepped(count)
        assert all(map(torch.equal, params + own, planned[:count] + states))


@pytest.mark.parametrize("n", [97, 2000])
def test_threads_change_no_bit_of_tensors(n):
    def stepped(threads: int) -> list[Any]:
        make = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, generator=make)) for _ in range(500)]
        optimizer = guest.AdamW(params, lr=0.1, threads=threads)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(n, generator=make)
            optimizer.step()
        return [p.detach() for p in params]

    assert all(map(torch.equal, stepped(1), stepped(3)))


def test_optimizers_in_threads_of_python_step_as_one_after_the_other_bit_for_bit():
    def made() -> list[Any]:
        make = torch.Generator().manual_seed(0)
        params = [[torch.nn.Parameter(torch.randn(n, generator=make)) for n in (3000, 5)] for _ in range(4)]
        for p in itertools.chain(*params):
            p.grad = torch.randn(p.shape, generator=make)
        return [guest.AdamW(own, lr=0.1) for own in params]

    def steps(optimizer: Any) -> list[Any]:
        for _ in range(20):
            optimizer.step()
        return [p.detach() for p in optimizer.param_groups[0]["params"]]

    want = [steps(optimizer) for optimizer in made()]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(steps, made()))
    assert all(map(torch.equal, itertools.chain(*want), itertools.chain(*got)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_16_bits_may_move_too(dtype):
    w = torch.nn.Parameter(torch.ones(50).to(dtype))
    optimizer = guest.SGD([w], lr=0.25)
    for _ in range(2):
        w.grad = torch.ones(50).to(dtype)
        optimizer.step()
        w.data = w.data.clone()
    assert w.tolist() == [0.5] * 50


def test_a_changed_dtype_is_noticed():
    w = torch.nn.Parameter(torch.ones(50))
    optimizer = guest.SGD([w], lr=0.25)
    w.grad = torch.ones(50)
    optimizer.step()
    w.data = w.data.double()
    w.grad = torch.ones(50, dtype=torch.float64)
    optimizer.step()
    assert w.dtype == torch.float64
    assert w.tolist() == [0.5] * 50


@pytest.mark.parametrize("n", [7, 3000])
def test_16_and_32_bits_of_one_list_step_as_in_lists_of_their_own_bit_for_bit(n):
    make = torch.Generator().manual_seed(0)
    kinds = [torch.bfloat16, torch.float32, torch.float16]
    given = [[torch.randn(n, generator=make).to(dtype) for dtype in kinds] for _ in range(5)]
    apart, together = ([torch.nn.Parameter(p.clone()) for p in given[0]] for _ in range(2))
    optimizers = [*(guest.AdamW([p], lr=0.1) for p in apart), guest.AdamW(together, lr=0.1)]
    for grads in given[1:]:
        for p, q, g in zip(apart, together, grads, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(torch.equal, apart, together))


def test_amsgrad_that_is_turned_on_later_is_refused_in_a_later_step_too():
    t = Trained(guest, "AdamW", {})
    for _ in range(2):
        t.optimizer.step()
    t.optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match=re.escape("AdamW.step: params[0] must have 'max_exp_avg_sq' in its state")):
        t.optimizer.step()


class Overridden(guest.AdamW):
    """As users write them."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("cls", [guest.AdamW, Overridden])
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_of_steps_run_once_each_and_see_what_torch_shows_them(cls, everywhere):
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    optimizer, seen = cls([w], lr=0.5), []
    optimizer.step()
    before = lambda o, args, kwargs: seen.append(("before", o is optimizer, w.detach().clone()))  # noqa: E731
    after = lambda o, args, kwargs: seen.append(("after", o is optimizer, w.detach().clone()))  # noqa: E731
    if everywhere:
        made = [
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ]
    else:
        made = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        optimizer.step()
    finally:
        for hook in made:
            hook.remove()
    optimizer.step()
    assert [(what, is_it) for what, is_it, _ in seen] == [("before", True), ("after", True)]
    assert not torch.equal(seen[0][2], seen[1][2])


def test_the_profiler_sees_steps():
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    optimizer = guest.AdamW([w])
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}


def test_a_pre_hook_may_give_other_arguments():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = guest.SGD([w], lr=0.5)

    def closure() -> Any:
        w.grad = torch.ones(3)
        return 7

    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, closure), {}))
    assert optimizer.step() == 7
    assert w.tolist() == [0.5] * 3
