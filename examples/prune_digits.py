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

import charts
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
        grow = mo.prune.cubic(sparsity, begin=0, end=steps // 2)
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
    """Accuracy in percent against how many times smaller a model is stored: a line for each way."""
    ways = [
        ("pruned", "tuned", "pruned, fine-tuned", "first", "-"),
        ("pruned", "plain", "pruned, as it is", "first", ":"),
        ("cropped", "tuned", "cropped, fine-tuned", "second", "-"),
        ("cropped", "repaired", "cropped, repaired", "second", "--"),
        ("cropped", "plain", "cropped, as it is", "second", ":"),
    ]
    given = []
    for kind, worth, name, colour, dashes in ways:
        points = [m for m in models if m.kind in ("dense", kind)]
        smaller = [models[0].stored / m.stored for m in points]
        # The line of what is fine-tuned begins at the model that is not: all are the same model there.
        percent = [100 * getattr(m, "plain" if m.kind == "dense" else worth) for m in points]
        given.append(charts.Line(name, smaller, percent, colour, dashes, "o"))
    ticks = {times: f"{times}x" for times in (1, 2, 3, 4, 6, 8) if times <= 1.05 * max(max(each.x) for each in given)}
    y = "accuracy on held-out images"
    charts.save(charts.lines(given, title, "times smaller than the whole model", y, "{:.3g} %", ticks), path)


def lost(models: list[Model]) -> float:
    """What half of the weights or half of the width cost at most, after fine-tuning."""
    return max(models[0].tuned - m.tuned for m in models if m.share == 0.5)


def main() -> int:
    """Prune, crop, print, draw; 1 if half costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("prune_digits.svg"), help="where it goes")
    args = parser.parse_args()
    plan = Plan()
    models = mean_of(measure(digits(), plan, seed) for seed in plan.seeds)
    show(models)
    draw(models, "Handwritten digits: accuracy against size", args.picture)
    print(f"\naccuracy against size: {args.picture}")
    if lost(models) > MOST_LOST:
        print(f"half must lose at most {MOST_LOST:.1%}, got {lost(models):.1%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
