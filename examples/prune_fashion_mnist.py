"""Prune and crop a classifier of Fashion-MNIST: `python examples/prune_fashion_mnist.py`.

As `prune_digits.py` does, with the model and the data of `fashion_mnist.py`: 60,000 images train it, 10,000 others test
it. The data are Debian's package `dataset-fashion-mnist`; another place of the four files can be given.
"""

import argparse
import sys
from pathlib import Path

from fashion_mnist import ABSENT, BATCH, LR, PLACE, SEEDS, SIZES, fashion
from prune_digits import Plan, draw, lost, mean_of, measure, show

MOST_LOST = 0.005  # of the accuracy, by half of the weights or half of the width


def main() -> int:
    """Prune, crop, print, draw; 1 if half costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path, nargs="?", default=PLACE, help="the directory of the data")
    parser.add_argument("--picture", type=Path, default=Path("prune_fashion_mnist.svg"), help="where it goes")
    parser.add_argument("--epochs", type=int, default=6, help="of training, and of fine-tuning")
    args = parser.parse_args()
    if not (args.place / "train-images-idx3-ubyte.gz").is_file():
        print(f"no data in {args.place}: apt-get install dataset-fashion-mnist", file=sys.stderr)
        return ABSENT
    data = fashion(args.place)
    plan = Plan(SIZES, BATCH, args.epochs, LR, args.epochs, LR / 2, SEEDS)
    models = mean_of(measure(data, plan, seed) for seed in plan.seeds)
    show(models)
    draw(models, "Fashion-MNIST: accuracy against size", args.picture)
    print(f"\naccuracy against size: {args.picture}")
    if lost(models) > MOST_LOST:
        print(f"half must lose at most {MOST_LOST:.1%}, got {lost(models):.1%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
