"""Searched scales against what others search with, in one run: `python benches/search.py [--json FILE]`.

compressed-tensors' observer (in llm-compressor) and hqq's optimizer are written here in torch, by their formulas and
with their defaults. Ours must be no worse than they are; then both are timed in alternation, as in `paired.py`. The
zero points of hqq are floats: kept so they stand beside our offsets, and rounded to whole numbers, as most layouts
store them, beside our zero points. Before that the absolute speed, and what it is made of: tries of a scale for each
element, and instructions.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo
from arrays import COLUMNS, GROUP, decibels
from paired import THREADS, Case, measured, run

TIMES = {4: 20, 8: 5, 2: 5}  # as fast as others at least, by bits: what is searched at 4 bits is what is tuned
TARGET = 0.25  # G elements/s of int4 in two threads
# In groups of up to 64: 5 scales of the grid with both signs, the plain scale and the best one, that once more.
FACTORS, SIDES, ALONE = 5, 2, 3
TRIES = FACTORS * SIDES + ALONE
# A product and 2 to round for each scale, 2 limits for each sign, a product and a sum for each of 2 sums; alone a
# difference, and 3 sums. 16 numbers each.
INSTRUCTIONS = FACTORS * (1 + 2 + SIDES * (2 + 2 * 2)) + ALONE * (1 + 2 + 2 + 1 + 3 * 2)


def observer(x: Any, bits: int = 4) -> Any:
    """The MSE observer, symmetric: ranges smaller by up to a fifth in steps of a hundredth, norm 2.4, patience 5."""
    import torch

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = x.abs().amax(-1, keepdim=True)
    best, found, unlucky = torch.full_like(largest, torch.inf), largest.clone(), 0
    for i in range(20):
        scale = largest * (1 - i / 100) / ((high - low) / 2)
        back = torch.clamp(torch.round(x / scale), low, high) * scale
        error = (back - x).abs_().pow_(2.4).sum(-1, keepdim=True)
        better = error < best
        unlucky = 0 if better.any() else unlucky + 1
        if unlucky >= 5:
            break
        best, found = torch.where(better, error, best), torch.where(better, scale, found)
    return torch.clamp(torch.round(x / found), low, high) * found


def half_quadratic(x: Any, bits: int = 4, whole: bool = True) -> Any:
    """hqq's optimizer: the zero point by half-quadratic splitting, norm 0.7, beta 10, kappa 1.01, 20 rounds."""
    import torch

    top, beta = 2**bits - 1, 10.0
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (top / (high - low)).clamp(max=2e4)
    zero = torch.round(-low * scale)
    best, found = torch.inf, zero
    for _ in range(20):
        codes = torch.round(x * scale + zero).clamp(0, top)
        miss = x - (codes - zero) / scale
        error = float(miss.abs().mean())
        if error >= best:
            break
        best, found = error, zero
        size = miss.abs()
        shrunk = miss.sign() * torch.relu(size - size.pow(0.7 - 1) / beta)
        zero = (codes - (x - shrunk) * scale).mean(-1, keepdim=True)
        beta *= 1.01
    found = torch.round(found) if whole else found
    return (torch.round(x * scale + found).clamp(0, top) - found) / scale


def cases(x: np.ndarray) -> Iterator[Case]:
    import torch

    torch.set_num_threads(THREADS)
    groups = torch.from_numpy(x.reshape(-1, GROUP))

    def no_worse(ours: mo.QuantizedArray, theirs: Any) -> None:
        got, other = decibels(x, ours.dequantize()), decibels(x, theirs.numpy().reshape(x.shape))
        print(f"SQNR: ours {got:.2f} dB, theirs {other:.2f} dB")
        assert got >= other, (got, other)

    for bits, times in TIMES.items():
        for scheme, peer, theirs in (
            ("symmetric", "compressed-tensors' MSE observer", observer),
            ("asymmetric", "hqq's optimizer, whole zero points", half_quadratic),
            ("minmax", "hqq's optimizer", lambda x, bits: half_quadratic(x, bits, whole=False)),
        ):
            options: dict[str, Any] = {"bits": bits, "group_size": GROUP, "scheme": scheme, "search": "mse"}
            ours = lambda o=options: mo.quantize(x, **o)  # noqa: E731
            they = lambda f=theirs, b=bits: f(groups, b)  # noqa: E731
            yield Case(f"int{bits} {scheme}, groups of 32", peer, times, ours, they, no_worse)


def speed(x: np.ndarray, rounds: int) -> None:
    """The fastest of some calls in two threads by the clock, and in one by its CPU time, which others disturb less."""
    options: dict[str, Any] = {"bits": 4, "group_size": GROUP, "search": "mse", "nonfinite": "saturate"}
    q = mo.quantize(x, **options)
    wall, cpu = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        mo.quantize(x, out=q, **options)
        wall.append(time.perf_counter() - start)
        start = time.process_time()
        mo.quantize(x, out=q, threads=1, **options)
        cpu.append(time.process_time() - start)
    two, one = (x.size / min(t) / 1e9 for t in (wall, cpu))
    print(f"int4, groups of 32, out=: {two:.3f} G elements/s in two threads (at least {TARGET:g}), {one:.3f} a core")
    print(
        f"{TRIES} tries of each element in {INSTRUCTIONS / 16:.1f} instructions of 512 bits, "
        f"{1 / one / TRIES:.2f} ns a try"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--elements", type=int, default=1 << 23)
    arguments = parser.parse_args()
    shape = (arguments.elements // COLUMNS, COLUMNS)
    x = np.random.default_rng(13).standard_normal(shape, dtype=np.float32)
    mo.set_num_threads(THREADS)
    speed(x, arguments.rounds)
    return run([(f"searched scales, {x.size:,} elements", measured(cases(x), arguments.rounds))], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
