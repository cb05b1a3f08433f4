"""Pruning against torch and NumPy, in one run: `python benches/prune.py [--elements N] [--rounds N]`.

The answers are compared first, then both are timed in alternation, as in `paired.py`.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo
from paired import THREADS, Case, Plain, equal, measured, run

COLUMNS = 4096
TENSORS = 200


def but_for_ties(x: np.ndarray, few: int = 20) -> Any:
    """The peers prune all of several equal magnitudes, none, or any: where answers differ, there must be such."""

    def check(ours: Any, theirs: Any) -> None:
        ours, theirs = np.ravel(ours), np.ravel(theirs)
        at = np.flatnonzero(ours != theirs)
        assert len(at) <= few, at
        assert len(np.unique(np.abs(x.ravel()[at]))) <= few / 2, at

    return check


def equal_lists(x: np.ndarray) -> Any:
    same = but_for_ties(x)
    return lambda ours, theirs: same(np.concatenate(ours), np.concatenate([np.asarray(t) for t in theirs]))


def numpy_cases(x: np.ndarray, plain: Plain) -> Iterator[Case]:
    n, k = x.size, x.size // 2
    out = np.zeros_like(x)

    def partition() -> np.ndarray:
        magnitude = np.abs(x)
        cut = np.partition(magnitude.ravel(), k)[k]
        return x * (magnitude >= cut)

    eps = float(mo.reduce.kth_magnitude(x, k))
    yield Case(
        "magnitude at 50 %", "np.partition, product", 5, lambda: mo.prune.magnitude(x, 0.5), partition, but_for_ties(x)
    )
    yield Case(
        "magnitude at 50 %, out=",
        "np.partition, product",
        5,
        lambda: mo.prune.magnitude(x, 0.5, out=out, nonfinite="largest"),
        partition,
        but_for_ties(x),
    )
    yield Case(
        "threshold, out=",
        "w * (np.abs(w) > eps)",
        5,
        lambda: mo.prune.threshold(x, eps, out=out),
        lambda: x * (np.abs(x) > eps),
        equal,
    )
    yield Case(
        "threshold, out=, nonfinite='largest'",
        "w * (np.abs(w) > eps)",
        5,
        lambda: mo.prune.threshold(x, eps, out=out, nonfinite="largest"),
        lambda: x * (np.abs(x) > eps),
        equal,
    )
    for nan in ("raise", "largest"):
        yield Case(
            f"threshold, out=, nan={nan!r}",
            "a copy",
            1.25,
            lambda nan=nan: mo.prune.threshold(x, eps, out=out, nonfinite=nan),
            lambda: plain.copy(4 * n),
            at_most=True,
        )
        yield Case(
            f"n_of_m 2:4, out=, nan={nan!r}",
            "a copy",
            1.5,
            lambda nan=nan: mo.prune.n_of_m(x, out=out, nonfinite=nan),
            lambda: plain.copy(4 * n),
            at_most=True,
        )
    for axis in (0, 1):
        yield Case(
            f"norm 2 along axis {axis}",
            "np.linalg.norm",
            2,
            lambda axis=axis: mo.reduce.norm(x, axis=axis),
            lambda axis=axis: np.linalg.norm(x, axis=axis),
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-3),
        )
    half = mo.prune.magnitude(x, 0.5)
    bits, groups = mo.prune.compress(half), mo.prune.compress(mo.prune.n_of_m(x), n=2, m=4)
    yield Case(
        "compress, bitmask", "a copy", 1.5, lambda: mo.prune.compress(half), lambda: plain.copy(4 * n), at_most=True
    )
    yield Case(
        "decompress, bitmask, out=",
        "a copy",
        1.5,
        lambda: bits.decompress(out=out),
        lambda: plain.copy(4 * n),
        at_most=True,
    )
    two = mo.prune.n_of_m(x)
    yield Case(
        "compress, 2:4",
        "a copy",
        1.5,
        lambda: mo.prune.compress(two, n=2, m=4),
        lambda: plain.copy(4 * n),
        at_most=True,
    )
    yield Case(
        "decompress, 2:4, out=",
        "a copy",
        1.5,
        lambda: groups.decompress(out=out),
        lambda: plain.copy(4 * n),
        at_most=True,
    )


def torch_cases(x: np.ndarray) -> Iterator[Case]:
    import torch
    from torch.nn.utils import prune

    torch.set_num_threads(THREADS)
    t = torch.from_numpy(x)
    l1 = prune.L1Unstructured(amount=0.5)
    yield Case(
        "magnitude at 50 %",
        "torch l1_unstructured",
        50,
        lambda: mo.prune.magnitude(x, 0.5),
        lambda: l1.prune(t),
        but_for_ties(x),
    )

    def two_of_four() -> Any:
        groups = t.view(-1, 4)
        kept = groups.abs().topk(2, dim=1).indices
        return (groups * torch.zeros_like(groups).scatter_(1, kept, 1)).view_as(t)

    yield Case(
        "n_of_m 2:4", "torch topk over groups of 4", 15, lambda: mo.prune.n_of_m(x), two_of_four, but_for_ties(x, 2000)
    )

    norms = np.random.default_rng(3).uniform(0.5, 2, x.shape[1]).astype(np.float32)
    scale = torch.from_numpy(norms)

    def wanda() -> Any:
        order = torch.sort(t.abs() * scale, dim=-1, stable=True).indices
        mask = torch.zeros_like(t, dtype=torch.bool).scatter_(1, order[:, : t.shape[1] // 2], True)
        pruned = t.clone()
        pruned[mask] = 0
        return pruned

    yield Case("wanda per row of 4,096", "torch sort per row", 15, lambda: mo.prune.wanda(x, norms, 0.5), wanda, equal)

    parts = np.array_split(x.reshape(-1), TENSORS)

    def global_unstructured() -> Any:
        modules = []
        for part in parts:
            module = torch.nn.Module()
            module.weight = torch.nn.Parameter(torch.from_numpy(part))
            modules.append(module)
        prune.global_unstructured([(m, "weight") for m in modules], prune.L1Unstructured, amount=0.5)
        return [m.weight.detach() for m in modules]

    yield Case(
        f"global_magnitude, {TENSORS} tensors",
        "torch global_unstructured",
        50,
        lambda: mo.prune.global_magnitude(parts, 0.5),
        global_unstructured,
        equal_lists(x),
    )


def torch_sparsegpt(w: Any, h: Any, sparsity: float, block: int = 128) -> Any:
    """Algorithm 1 of the paper (arXiv 2301.00774) with damping of 1 %, in float32 but for the factor."""
    import torch

    w, n = w.clone(), w.shape[1]
    h = h + 0.01 * h.diagonal().mean() * torch.eye(n, dtype=h.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).to(w.dtype)
    for start in range(0, n, block):
        end = min(start + block, n)
        columns, factor = w[:, start:end], upper[start:end, start:end]
        scores = columns.abs() / factor.diagonal()
        goes = scores <= scores.flatten().sort().values[round(sparsity * scores.numel()) - 1]
        errors = torch.zeros_like(columns)
        for i in range(end - start):
            errors[:, i] = torch.where(goes[:, i], columns[:, i] / factor[i, i], 0)
            columns[:, i:] -= errors[:, i : i + 1] * factor[i, i:]
        columns[goes] = 0
        w[:, end:] -= errors @ upper[start:end, end:]
    return w


def sparsegpt_case(n: int) -> Case:
    import torch

    rng = np.random.default_rng(4)
    w = rng.standard_normal((n, n), dtype=np.float32)
    x = rng.standard_normal((2 * n, n), dtype=np.float32)
    x[:, 1:] += x[:, :-1]
    hessian = mo.prune.Hessian()
    hessian.update(x)
    h = hessian.second_derivative
    t, th = torch.from_numpy(w), torch.from_numpy(h)

    def as_good(ours: np.ndarray, theirs: Any) -> None:
        lost, lost_theirs = (np.linalg.norm((w - pruned) @ x.T) for pruned in (ours, theirs.numpy()))
        assert abs(lost / lost_theirs - 1) < 0.01, (lost, lost_theirs)
        assert np.count_nonzero(ours == 0) == w.size // 2

    return Case(
        f"sparsegpt at 50 %, {n} x {n}",
        "torch, algorithm 1",
        2,
        lambda: mo.prune.sparsegpt(w, h, 0.5),
        lambda: torch_sparsegpt(t, th, 0.5),
        as_good,
    )


def torch_gptq(w: Any, h: Any, group: int, block: int = 128) -> Any:
    """Algorithm 1 of the paper (arXiv 2210.17323) with damping of 1 %, symmetric groups of 4 bits."""
    import torch

    w, n = w.clone(), w.shape[1]
    h = h + 0.01 * h.diagonal().mean() * torch.eye(n, dtype=h.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).to(w.dtype)
    for start in range(0, n, block):
        end = min(start + block, n)
        columns, factor = w[:, start:end], upper[start:end, start:end]
        errors = torch.zeros_like(columns)
        for i in range(end - start):
            if (start + i) % group == 0:
                scale = columns[:, i : i + group].abs().amax(1) / 7
            rounded = (columns[:, i] / scale).round().clamp(-8, 7) * scale
            errors[:, i] = (columns[:, i] - rounded) / factor[i, i]
            columns[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
            columns[:, i] = rounded
        w[:, end:] -= errors @ upper[start:end, end:]
    return w


def gptq_case(n: int, group: int = 128) -> Case:
    """As published, with blocks of 128 columns and a factor in float64.

    The bound is the products that nobody can do without, in MKL: those of the columns behind each block (n**3 / 2 of
    float32) and of the factor (n**3 / 6 of float64). It does them twice: a product and a sum that are rounded each, as
    they have to be for the same bits everywhere, take two instructions in the place of one.
    """
    import torch

    rng = np.random.default_rng(5)
    w = rng.standard_normal((n, n), dtype=np.float32)
    x = rng.standard_normal((2 * n, n), dtype=np.float32)
    x[:, 1:] += x[:, :-1]
    hessian = mo.prune.Hessian()
    hessian.update(x)
    h = hessian.second_derivative
    t, th = torch.from_numpy(w), torch.from_numpy(h)

    def as_good(ours: mo.QuantizedArray, theirs: Any) -> None:
        lost, lost_theirs = (np.linalg.norm((w - rounded) @ x.T) for rounded in (np.asarray(ours), theirs.numpy()))
        assert lost < 1.001 * lost_theirs, (lost, lost_theirs)

    def products() -> None:
        for _ in range(2):
            torch.mm(t[:, : n // 2], t[: n // 2])
            torch.mm(th[:, : n // 6], th[: n // 6])

    return Case(
        f"gptq to 4 bits, groups of {group}, {n} x {n}",
        "torch, algorithm 1",
        3,
        lambda: mo.quant.gptq(w, h, group_size=group),
        lambda: torch_gptq(t, th, group),
        as_good,
        bound=products,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-rounds", type=int, default=3, help="against torch's sorts, which take seconds")
    parser.add_argument("--layer", type=int, default=4096, help="rows and columns of the layer for sparsegpt and gptq")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    args = parser.parse_args()
    x = np.random.default_rng(1).standard_normal((args.elements // COLUMNS, COLUMNS), dtype=np.float32)
    sections = [("against NumPy and the bound", numpy_cases(x, Plain(x)), args.rounds)]
    if importlib.util.find_spec("torch"):
        layers = (case(args.layer) for case in (sparsegpt_case, gptq_case))
        sections.append(("against torch", chain(torch_cases(x), layers), args.slow_rounds))
    chosen = ((title, (c for c in some if args.only in c.work), rounds) for title, some, rounds in sections)
    return run(((title, measured(some, rounds)) for title, some, rounds in chosen), args.json)


if __name__ == "__main__":
    sys.exit(main())
