"""Optimizer steps against torch and NumPy, in one run: `python benches/optim.py [--elements N] [--rounds N] ...`.

The answers to a first step are compared, then both are timed in alternation, as in `paired.py`; torch's step finds its
gradients in place.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo
from paired import THREADS, WRONG, Case, Plain, Row, Thunk, close, measure, measured, paired, run

LR, DECAY, BETAS, EPS = 1e-3, 1e-2, (0.9, 0.999), 1e-8
ADAMW_BYTES = 28  # an element: parameter, two states read and written, the gradient read
CODED_BYTES = 16  # the same with states of a byte each
# Before what is timed comes a pause, in which caches go cold and threads fall asleep; steps of a training follow work.
IN_A_ROW = 10


class Ours:
    """Copies of parameters and gradients, and the states that a step needs."""

    def __init__(
        self,
        function: str,
        params: list[np.ndarray],
        grads: list[np.ndarray],
        states: int,
        coding: str | None = None,
        **options: Any,
    ):
        self.params, self.grads = [p.copy() for p in params], grads
        self.states = [[self.state(p.shape, coding, i == 0) for p in params] for i in range(states)]
        self.function, self.options, self.t = getattr(mo.optim, function), options, 0

    @staticmethod
    def state(shape: tuple[int, ...], coding: str | None, signed: bool) -> Any:
        if coding is None:
            return np.zeros(shape, np.float32)
        return mo.optim.BlockState.zeros(shape, coding=coding, signed=signed)

    def step(self) -> list[np.ndarray]:
        self.t += 1
        arguments = [self.params, self.grads, *self.states]
        if len(self.params) == 1:
            arguments = [argument[0] for argument in arguments]
        self.function(*arguments, step=self.t, **{"lr": LR, **self.options})
        return self.params


def torch_step(name: str, params: list[np.ndarray], grads: list[np.ndarray], **options: Any) -> Thunk:
    import torch

    torch.set_num_threads(THREADS)

    def tensor(x: np.ndarray) -> Any:
        return torch.from_numpy(x).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)

    theirs = [torch.nn.Parameter(tensor(p.copy())) for p in params]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = tensor(g)
    optimizer = getattr(torch.optim, name)(theirs, lr=LR, **options)

    def step() -> Any:
        optimizer.step()
        return theirs

    return step


def bitsandbytes_adamw(params: list[np.ndarray], grads: list[np.ndarray]) -> Thunk:
    import bitsandbytes
    import torch

    torch.set_num_threads(THREADS)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = torch.from_numpy(g)
    optimizer = bitsandbytes.optim.AdamW8bit(theirs, lr=LR, weight_decay=DECAY)

    def step() -> Any:
        optimizer.step()
        return theirs

    return step


def numpy_adamw(params: list[np.ndarray], grads: list[np.ndarray]) -> Thunk:
    (p,), (g,) = [p.copy() for p in params], grads
    m, v, t = np.zeros_like(p), np.zeros_like(p), 0

    def step() -> list[np.ndarray]:
        nonlocal p, m, v, t
        t += 1
        p *= 1 - LR * DECAY
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g**2
        p -= LR * (m / (1 - BETAS[0] ** t)) / (np.sqrt(v / (1 - BETAS[1] ** t)) + EPS)
        return [p]

    return step


def same(ours: list[np.ndarray], theirs: Any) -> None:
    for a, b in list(zip(ours, theirs, strict=True))[:50]:
        close(1e-5, 1e-6)(a.reshape(-1)[:100_000], b if isinstance(b, np.ndarray) else b.detach().numpy()[:100_000])


def some(ours: list[np.ndarray], theirs: Any) -> None:
    """The first numbers, of arrays too large to compare whole. (In a first step, codes of states change nothing.)"""
    same([ours[0][:100_000]], [theirs[0][:100_000]])


def same_bf16(ours: list[np.ndarray], theirs: Any) -> None:
    """torch keeps bfloat16 states: after one step the parameters are within one unit of bfloat16."""
    wide = (ours[0][:100_000].astype(np.uint32) << 16).view(np.float32)
    close(2**-7, 1e-3)(wide, theirs[0].detach()[:100_000].float().numpy())


def cases(n: int) -> Iterator[Case]:
    rng = np.random.default_rng(3)

    def arrays(count: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        one, other = ([rng.standard_normal(size, dtype=np.float32) for _ in range(count)] for _ in range(2))
        return one, other

    big = arrays(1, n)
    plain = Plain(big[0][0])
    for peer, target, options in (("fused=True", 1.0, {"fused": True}), ("foreach=True", 5.0, {"foreach": True})):
        ours, theirs = Ours("adamw_step", *big, 2), torch_step("AdamW", *big, **options)
        yield Case(f"AdamW f32, {n:,}", f"torch {peer}", target, ours.step, theirs, some)
    yield Case(f"AdamW f32, {n:,}", "NumPy formula", 6.0, Ours("adamw_step", *big, 2).step, numpy_adamw(*big), some)
    for coding, target in (("minifloat", 20.0), ("dynamic", 10.0)):
        ours, theirs = Ours("adamw_step", *big, 2, coding), bitsandbytes_adamw(*big)
        yield Case(f"AdamW 8 bits, {coding}, {n:,}", "bitsandbytes AdamW8bit", target, ours.step, theirs, some)
    ours, theirs = Ours("adamw_step", *big, 2, "minifloat"), torch_step("AdamW", *big, fused=True)
    yield Case(f"AdamW 8 bits, minifloat, {n:,}", "torch fused=True, f32 states", 1.3, ours.step, theirs, some,
               bound=lambda: plain.copy(CODED_BYTES * n / 2))  # fmt: skip
    for function, name, count, options in (
        ("sgd_step", "SGD", 1, {"momentum": 0.9}),
        ("adagrad_step", "Adagrad", 1, {}),
    ):
        ours, theirs = Ours(function, *big, count, **options), torch_step(name, *big, fused=True, **options)
        yield Case(f"{name} f32, {n:,}", "torch fused=True", 1.0, ours.step, theirs, some)
    brain = [[(x.view(np.uint32) >> 16).astype(np.uint16) for x in xs] for xs in big]
    ours, theirs = Ours("adamw_step", *brain, 2, dtype="bf16"), torch_step("AdamW", *brain, fused=True)
    yield Case(f"AdamW bf16, f32 states, {n:,}", "torch fused=True, bf16 states", 1.3, ours.step, theirs, same_bf16)
    del big, brain
    for count, size, target in ((300, 16_384, 1.2), (2000, 256, 8.0)):
        small = arrays(count, size)
        for peer in ("fused", "foreach"):
            ours, theirs = Ours("adamw_step", *small, 2), torch_step("AdamW", *small, **{peer: True})
            yield Case(f"AdamW, {count:,} arrays of {size:,}", f"torch {peer}=True", target, ours.step, theirs, same)


def small_case() -> Case:
    one = np.ones(1000, np.float32)
    ours, theirs = Ours("adamw_step", [one], [one], 2), torch_step("AdamW", [one], [one], fused=True)
    return Case("AdamW, 1,000 elements", "torch fused=True", 8.0, ours.step, theirs, same)


def torch_object(module: Any, params: list[np.ndarray], grads: list[np.ndarray], **options: Any) -> Thunk:
    """A step of AdamW of torch, or of ours for torch's tensors."""
    import torch

    torch.set_num_threads(THREADS)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = torch.from_numpy(g)
    optimizer = module.AdamW(theirs, lr=LR, **options)

    def step() -> list[np.ndarray]:
        optimizer.step()
        return [p.detach().numpy() for p in theirs[:50]]

    return step


def first(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    same([p[:100_000] for p in ours[:50]], [p[:100_000] for p in theirs[:50]])


def faces(n: int, rounds: int, calls: int) -> Iterator[Row]:
    """What users call against the step functions, and against torch's fused optimizer."""
    import torch

    from modelopt_rs.interop import torch as guest

    rng = np.random.default_rng(5)
    for count, size, target in ((2000, 256, 1.3), (300, 16_384, 1.3), (1, 1000, 2.0)):
        params, grads = ([rng.standard_normal(size, dtype=np.float32) for _ in range(count)] for _ in range(2))
        function, own = Ours("adamw_step", params, grads, 2), [p.copy() for p in params]
        optimizer = mo.optim.AdamW(own if count > 1 else own[0], lr=LR)
        given = grads if count > 1 else grads[0]
        work, what = f"optim.AdamW.step, {count:,} of {size:,}", "adamw_step"

        def step(optimizer: Any = optimizer, given: Any = given, own: list[np.ndarray] = own) -> list[np.ndarray]:
            optimizer.step(given)
            return own

        if count > 1:
            yield measure(Case(work, what, target, step, function.step, first, at_most=True, calls=IN_A_ROW), rounds)
            continue
        first(step(), function.step())
        a, b = paired(repeated(step, calls), repeated(function.step, calls), rounds)
        more = 1e6 * statistics.median(x - y for x, y in zip(a, b, strict=True)) / calls
        ms = [1e3 * statistics.median(t) for t in (a, b)]
        yield Row(f"{work}, {calls:,} steps", f"{what}; us more", *ms, more, f"<= {target:g} us", more <= target)
    for count, size, target in ((2000, 256, 2.0), (200, 64, 2.0), (1, 1000, 2.0), (300, 16_384, 1.1), (1, n, 1.0)):
        params, grads = ([rng.standard_normal(size, dtype=np.float32) for _ in range(count)] for _ in range(2))
        ours, theirs = torch_object(guest, params, grads), torch_object(torch.optim, params, grads, fused=True)
        work = f"interop.torch.AdamW.step, {count:,} of {size:,}"
        case = Case(
            work, "torch fused=True", target, ours, theirs, first, calls=IN_A_ROW if 100_000 <= count * size < n else 1
        )
        yield measure_calls(case, rounds, calls) if count * size < 100_000 else measure(case, rounds)


def repeated(run: Thunk, calls: int) -> Thunk:
    def loop() -> Any:
        for _ in range(calls):
            result = run()
        return result

    return loop


def measure_calls(case: Case, rounds: int, calls: int) -> Row:
    """Many calls, timed together. The answers to the first are compared: thousands of steps on one gradient end at
    parameters that stand still, and what is left of their steps is rounding."""
    row = measure(case, rounds=1)
    if row.target == WRONG:
        return row
    ours, theirs = repeated(case.ours, calls), repeated(case.theirs, calls)
    work = f"{case.work}, {calls:,} steps"
    return measure(replace(case, work=work, ours=ours, theirs=theirs, check=lambda ours, theirs: None), rounds)


def bounds(n: int, rounds: int) -> Iterator[Row]:
    """A copy in two threads of as many bytes as the step moves; and a state that is all subnormal (B8)."""
    x = np.zeros((n // 16_000, 16_000), np.float32)
    flat, ones = [x.reshape(-1)], [np.ones(x.size, np.float32)]
    plain = Plain(x)
    for work, nbytes, coding, kind in (
        ("AdamW f32", ADAMW_BYTES, None, np.float32),
        ("AdamW 8 bits, minifloat", CODED_BYTES, "minifloat", np.float32),
        ("AdamW bf16, f32 states", 22, None, np.uint16),
    ):
        # The bits of bfloat16 are those of a float32's upper half: a 1 as uint16 would be a subnormal number.
        params, grads = (
            [(y.view(np.uint32) >> 16).astype(kind) if kind == np.uint16 else y for y in ys] for ys in (flat, ones)
        )
        ours = Ours("adamw_step", params, grads, 2, coding, **({"dtype": "bf16"} if kind == np.uint16 else {}))
        copies = lambda nbytes=nbytes: plain.copy(nbytes * x.size / 2)  # noqa: E731
        case = Case(f"{work}, {x.size:,}", "copy of its bytes", 1.15, ours.step, copies, at_most=True)
        yield measure(case, rounds)
    # Roots and divisions set a pace of their own: as many elements in steps of some that lie in the L2 cache.
    some_of = np.zeros(64_000, np.float32)
    cached = Ours("adamw_step", [some_of], [some_of + np.float32(1)], 2, threads=1)
    in_cache = repeated(cached.step, max(1, x.size // some_of.size))
    coded = Ours("adamw_step", flat, ones, 2, "minifloat", threads=1)
    work = f"AdamW 8 bits, minifloat, one thread, {x.size:,}"
    yield measure(Case(work, "float32 in the cache", 1.8, coded.step, in_cache, at_most=True), rounds)
    normal, tiny = (Ours("adamw_step", flat, ones, 2, lr=0.0, clip_value=limit) for limit in (1.0, 1e-38))
    tiny.grads = [np.full(x.size, 1e-40, np.float32)]
    for states in tiny.states:
        states[0].fill(1e-40)
    yield measure(
        Case(f"AdamW f32, subnormal states, {x.size:,}", "normal states", 1.5, tiny.step, normal.step, at_most=True),
        rounds,
    )


def steps(n: int, rounds: int, calls: int) -> Iterator[Row]:
    yield from measured(cases(n), rounds)
    yield measure_calls(small_case(), rounds, calls)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=64_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1000, help="of small steps that are timed together")
    parser.add_argument("--faces", action="store_true", help="only what users call")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    args = parser.parse_args()
    n, rounds = args.elements, args.rounds
    users = "what users call", faces(n, rounds, args.calls)
    sections = (
        ("steps", steps(n, rounds, args.calls)),
        users,
        ("steps against the bound", bounds(n, rounds)),
    )
    return run([users] if args.faces else sections, args.json)


if __name__ == "__main__":
    sys.exit(main())
