"""Small optimizer states on Fashion-MNIST: `python examples/fashion_mnist.py`.

60,000 images train a perceptron (in NumPy, as in `digits.py`) with AdamW whose states are float32, 8 bits or 4 bits;
10,000 others test it. Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747). The data are Debian's package
`dataset-fashion-mnist`; another place of the four files can be given.
"""

import argparse
import gzip
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import charts
from digits import Data, accuracy, make, new_params, state_bytes, train

PLACE = Path("/usr/share/datasets/fashion-mnist")
ABSENT = 66  # the exit code where the data are not there, as sysexits.h has it: 2 is a wrong option
SIZES = (784, 256, 128, 10)
BATCH, LR, SEEDS = 128, 2e-3, (0, 1)
STATES: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("8 bits, minifloat", {"state_bits": 8}),
    ("8 bits, dynamic", {"state_bits": 8, "coding": "dynamic"}),
    ("4 bits", {"state_bits": 4}),
]
MOST_LOST = 0.003  # of the accuracy, by 8 bits


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes: two zeros, the type, the number of axes, their lengths (big-endian), the bytes."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def fashion(place: Path) -> Data:
    """The images as rows of numbers of about unit variance."""
    parts = []
    for name in ("train", "t10k"):
        images = read_idx(place / f"{name}-images-idx3-ubyte.gz")
        parts.append((images.reshape(len(images), -1).astype(np.float32) / 255 - 0.286) / 0.353)
        parts.append(read_idx(place / f"{name}-labels-idx1-ubyte.gz").astype(np.int64))
    return Data(*parts)


def main() -> int:
    """Train with each kind of state; 1 if 8 bits lose more than they may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path, nargs="?", default=PLACE, help="the directory of the data")
    parser.add_argument("--picture", type=Path, default=Path("fashion_mnist.svg"), help="where it goes")
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    if not (args.place / "train-images-idx3-ubyte.gz").is_file():
        print(f"no data in {args.place}: apt-get install dataset-fashion-mnist", file=sys.stderr)
        return ABSENT
    data = fashion(args.place)
    steps = len(data.y) // BATCH
    reached, sizes = {}, []
    print("| AdamW's states  | test accuracy | last epoch's loss | state, bytes a number | seconds |")
    print("| --------------- | ------------- | ----------------- | --------------------- | ------- |")
    for title, options in STATES:
        start, accuracies, losses = time.perf_counter(), [], []
        for seed in SEEDS:
            params = new_params(SIZES, seed)
            optimizer = make("AdamW", params, LR, args.epochs * steps, **options)
            losses += train(params, optimizer, data.x, data.y, args.epochs, BATCH)[-steps:]
            accuracies.append(accuracy(params, data.held_out_x, data.held_out_y))
        reached[title] = float(np.mean(accuracies))
        seconds, size = time.perf_counter() - start, state_bytes(optimizer)
        print(
            f"| {title:15} | {reached[title]:13.2%} | {np.mean(losses):17.4f} | {size:21.2f} | {seconds:7.1f} |",
            flush=True,
        )
        sizes.append(size)
    panels = [
        charts.Panel("state, bytes a number", sizes, "{:.3g}"),
        charts.Panel("accuracy, %", [100 * share for share in reached.values()], "{:.1f}"),
    ]
    title = "AdamW on Fashion-MNIST: small states train as float32 states do"
    charts.save(charts.bars(list(reached), panels, title, list(reached)[1:]), args.picture)
    print(f"\nsizes and accuracies: {args.picture}")
    lost = reached["float32"] - min(reached["8 bits, minifloat"], reached["8 bits, dynamic"])
    if lost > MOST_LOST:
        print(f"8 bits must lose at most {MOST_LOST:.1%}, got {lost:.2%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
