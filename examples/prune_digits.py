"""Prune and crop a trained classifier of handwritten digits: `python examples/prune_digits.py`.

The model and the data are those of `digits.py`. Its weights are pruned to 50, 80 and 90 % zeros, its hidden layers
cropped to 50 and 25 % of their width: as they are, repaired without training (cropped ones: the next layer by least
squares), and fine-tuned. A picture shows the accuracy against the bytes that are stored. Needs the extra `demo`.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import modelopt_rs as mo
from digits import BATCH, EPOCHS, SIZES, Data, Params, accuracy, digits, forward, make, new_params, train

SPARSITIES, WIDTHS = (0.5, 0.8, 0.9), (0.5, 0.25)
MOST_LOST = 0.015  # of the accuracy, by half of the weights or half of the width


@dataclass
class Plan:
    """How a model is trained, and how it is trained again after pruning."""

    sizes: tuple[int, ...] = SIZES
    batch: int = BATCH
    epochs: int = EPOCHS
    lr: float = 3e-3
    tune_epochs: int = 20
    tune_lr: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass
class Model:
    """What became of a model: how many bytes it takes, and what it is worth before and after training."""

    kind: str
    share: float
    stored: float
    plain: float
    repaired: float
    tuned: float

    @property
    def name(self) -> str:
        """As the table says it."""
        rest = {"pruned": f" to {self.share:.0%} zeros", "cropped": f" to {self.share:.0%} width"}
        return self.kind + rest.get(self.kind, "")


def stored(params: Params) -> int:
    """Bytes of a model: of each array as it is, or as a bitmask and what is not zero, whichever is less."""
    return sum(min(p.nbytes, mo.prune.compress(p).nbytes) for p in params.values())


def weights(params: Params) -> list[str]:
    """The names of the matrices."""
    return [name for name in params if name.startswith("w")]


def pruned(params: Params, sparsity: float) -> Params:
    """The smallest weights of all matrices together are zero."""
    names = weights(params)
    zeroed = mo.prune.global_magnitude([params[name] for name in names], sparsity)
    return {**params, **dict(zip(names, zeroed, strict=True))}


def cropped(params: Params, keep: float, x: np.ndarray) -> tuple[Params, Params]:
    """Narrower hidden layers, as they are and repaired: what reads them comes close to its old outputs on `x`."""
    names = weights(params)
    groups = mo.prune.mlp_groups(params, names, [f"b{name[1:]}" for name in names], transposed=True)
    small, report = mo.prune.crop(params, groups, keep=keep)
    repaired, kept = dict(small), [group.kept for group in report.groups]
    for i, inputs in enumerate(forward(params, x)[1:-1], 1):
        outputs = kept[i] if i < len(kept) else slice(None)
        stats = mo.prune.InputStats(inputs.shape[1])
        stats.update(inputs)
        weight, bias = params[f"w{i}"].T[outputs], params[f"b{i}"][outputs]
        weight, repaired[f"b{i}"] = mo.prune.least_squares(weight, kept[i - 1], stats, bias=bias)
        repaired[f"w{i}"] = np.ascontiguousarray(weight.T)
    return small, repaired


def tuned(params: Params, data: Data, plan: Plan, sparsity: float = 0.0) -> Params:
    """A copy, trained again; with `sparsity`, pruned to it on the way (the cubic schedule, over half of the steps)."""
    copies = {name: p.copy() for name, p in params.items()}
    steps = plan.tune_epochs * (len(data.y) // plan.batch)
    optimizer = make("AdamW", copies, plan.tune_lr, steps)
    if sparsity:
        grow = partial(mo.prune.cubic, sparsity=sparsity, begin=0, end=steps // 2)
        optimizer = mo.prune.PrunedOptimizer(optimizer, grow, scope="global", every=10)
    train(copies, optimizer, data.x, data.y, plan.tune_epochs, plan.batch)
    return copies


def measure(data: Data, plan: Plan, seed: int) -> list[Model]:
    """Train one model, then prune and crop it."""
    right = partial(accuracy, x=data.held_out_x, y=data.held_out_y)
    whole = new_params(plan.sizes, seed)
    steps = plan.epochs * (len(data.y) // plan.batch)
    train(whole, make("AdamW", whole, plan.lr, steps), data.x, data.y, plan.epochs, plan.batch)
    longer = tuned(whole, data, plan)
    models = [Model("dense", 1.0, stored(whole), right(whole), right(whole), right(longer))]
    for sparsity in SPARSITIES:
        sparse, again = pruned(whole, sparsity), tuned(whole, data, plan, sparsity)
        models.append(Model("pruned", sparsity, stored(again), right(sparse), right(sparse), right(again)))
    for width in WIDTHS:
        small, repaired = cropped(whole, width, data.x)
        again = tuned(repaired, data, plan)
        models.append(Model("cropped", width, stored(small), right(small), right(repaired), right(again)))
    return models


def mean_of(runs: Iterable[list[Model]]) -> list[Model]:
    """The mean of what each seed gave."""
    means = []
    for models in zip(*runs, strict=True):
        numbers = [(m.stored, m.plain, m.repaired, m.tuned) for m in models]
        means.append(Model(models[0].kind, models[0].share, *np.mean(numbers, axis=0).tolist()))
    return means


def show(models: list[Model]) -> None:
    """Print the table."""
    print("| model                | bytes stored | of dense | as it is | repaired | fine-tuned |")
    print("| -------------------- | ------------ | -------- | -------- | -------- | ---------- |")
    for m in models:
        repaired = f"{m.repaired:8.1%}" if m.kind == "cropped" else " " * 8
        share = m.stored / models[0].stored
        print(f"| {m.name:20} | {m.stored:12,.0f} | {share:8.2f} | {m.plain:8.1%} | {repaired} | {m.tuned:10.1%} |")


def draw(models: list[Model], title: str, path: Path) -> None:
    """Accuracy against size, drawn by the logarithm of the errors: so the best, which lie close, can be told apart."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"dense": "black", "pruned": "tab:blue", "cropped": "tab:orange"}
    lines = [
        ("pruned", "tuned", "pruned, fine-tuned", "o-"),
        ("pruned", "plain", "pruned, as it is", "o:"),
        ("cropped", "tuned", "cropped, fine-tuned", "s-"),
        ("cropped", "repaired", "cropped, repaired by least squares", "s--"),
        ("cropped", "plain", "cropped, as it is", "s:"),
    ]
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.invert_yaxis()
    for kind, worth, label, style in lines:
        points = [(m.stored / 1024, 1 - getattr(m, worth)) for m in models if m.kind in ("dense", kind)]
        axes.plot(*zip(*points, strict=True), style, color=colours[kind], label=label, linewidth=1.6, markersize=5)
    for m in models:  # what each size is, above the picture: zeros in one row, widths in the other
        x, row = m.stored / 1024, 1.055 if m.kind == "cropped" else 1.015
        unit = {"dense": "dense", "pruned": f"{100 * m.share:g} % zeros", "cropped": f"{100 * m.share:g} % width"}[
            m.kind
        ]
        axes.axvline(x, color=colours[m.kind], alpha=0.25, linewidth=0.8, zorder=0)
        axes.text(x, row, unit, transform=axes.get_xaxis_transform(), ha="center", color=colours[m.kind], fontsize=9)
    errors = [1 - worth for m in models for worth in (m.plain, m.repaired, m.tuned)]
    best, worst = 0.85 * min(errors), 1.15 * max(errors)
    axes.set_ylim(worst, best)
    ticks = (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
    ticks = [error for error in ticks if best <= error <= worst]
    axes.set_yticks(ticks, [f"{100 - 100 * error:g} %" for error in ticks])
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set(xlabel="stored, KiB", ylabel="accuracy on held-out images")
    axes.set_title(title, pad=36)
    axes.grid(visible=True, axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def lost(models: list[Model]) -> float:
    """What half of the weights or half of the width cost at most, after fine-tuning."""
    return max(models[0].tuned - m.tuned for m in models if m.share == 0.5)


def main() -> int:
    """Prune, crop, print, draw; 1 if half costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("prune_digits.png"), help="where the picture goes")
    args = parser.parse_args()
    plan = Plan()
    models = mean_of(measure(digits(), plan, seed) for seed in plan.seeds)
    show(models)
    draw(models, "Handwritten digits: accuracy against size", args.out)
    print(f"\naccuracy against size: {args.out}")
    if lost(models) > MOST_LOST:
        print(f"half must lose at most {MOST_LOST:.1%}, got {lost(models):.1%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
