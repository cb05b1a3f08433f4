"""Train a classifier of handwritten digits in plain NumPy, with every optimizer: `python examples/digits.py`.

The data set is scikit-learn's 1,797 images of 8 x 8 pixels; a quarter is held out. The model is a perceptron with one
hidden layer whose forward and backward pass stand below in full: what `modelopt_rs.optim` needs of a training loop is
arrays of parameters and arrays of gradients. Needs the extra `demo`.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import charts
import modelopt_rs as mo

Params = dict[str, np.ndarray]
SIZES = (64, 128, 10)
EPOCHS, BATCH = 40, 32
SMALL = {"state_min_size": 0}  # so that these small matrices have states in codes, too

# What each is trained with; the learning rate is where a cosine begins.
OPTIMIZERS: list[tuple[str, str, float, dict[str, Any]]] = [
    ("SGD", "SGD", 0.2, {}),
    ("SGD, momentum", "SGD", 0.05, {"momentum": 0.9, "nesterov": True}),
    ("Adagrad", "Adagrad", 0.03, {}),
    ("RMSprop", "RMSprop", 1e-3, {}),
    ("Adadelta", "Adadelta", 1.0, {}),
    ("Adam", "Adam", 3e-3, {}),
    ("AdamW", "AdamW", 3e-3, {}),
    ("NAdam", "NAdam", 3e-3, {}),
    ("RAdam", "RAdam", 3e-3, {}),
    ("Adamax", "Adamax", 5e-3, {}),
    ("Lion", "Lion", 3e-4, {"weight_decay": 0.1}),
    ("LAMB", "LAMB", 1e-2, {}),
    ("Adafactor", "Adafactor", 0.03, {}),
    ("AdamW, 8 bits", "AdamW", 3e-3, {"state_bits": 8, **SMALL}),
    ("AdamW, 8 bits, dynamic", "AdamW", 3e-3, {"state_bits": 8, "coding": "dynamic", **SMALL}),
    ("AdamW, 4 bits", "AdamW", 3e-3, {"state_bits": 4, **SMALL}),
]
BESIDE = "AdamW"  # what the others are compared with in the picture
ENOUGH = 0.97  # of the held-out digits, for Adam


@dataclass
class Data:
    """Images as rows of numbers from 0 to 1, and what they show."""

    x: np.ndarray
    y: np.ndarray
    held_out_x: np.ndarray
    held_out_y: np.ndarray


def digits(seed: int = 0) -> Data:
    """scikit-learn's digits, a quarter of them held out."""
    from sklearn.datasets import load_digits

    images = load_digits()
    order = np.random.default_rng(seed).permutation(len(images.target))
    x, y = (images.data[order] / 16).astype(np.float32), images.target[order]
    held = len(y) // 4
    return Data(x[held:], y[held:], x[:held], y[:held])


def new_params(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Params:
    """Weights of He et al. 2015 (arXiv 1502.01852), biases of 0."""
    rng = np.random.default_rng(seed)
    params = {}
    for i, (n, m) in enumerate(pairwise(sizes)):
        params[f"w{i}"] = (rng.standard_normal((n, m)) * np.sqrt(2 / n)).astype(np.float32)
        params[f"b{i}"] = np.zeros(m, np.float32)
    return params


def forward(params: Params, x: np.ndarray) -> list[np.ndarray]:
    """What each layer gives: the input, the hidden layers (ReLU), the scores of the classes."""
    layers = [x]
    last = len(params) // 2 - 1
    for i in range(last + 1):
        scores = layers[-1] @ params[f"w{i}"] + params[f"b{i}"]
        layers.append(scores if i == last else np.maximum(scores, 0))
    return layers


def loss_and_grads(params: Params, x: np.ndarray, y: np.ndarray) -> tuple[float, Params]:
    """Mean cross-entropy, and its gradient by each parameter."""
    layers = forward(params, x)
    scores = layers[-1] - layers[-1].max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores).sum(axis=1))
    rows = np.arange(len(y))
    loss = float((log_sum - scores[rows, y]).mean())
    back = np.exp(scores - log_sum[:, None])
    back[rows, y] -= 1
    back /= np.float32(len(y))
    grads = {}
    for i in reversed(range(len(params) // 2)):
        grads[f"w{i}"], grads[f"b{i}"] = layers[i].T @ back, back.sum(axis=0)
        if i:
            back = (back @ params[f"w{i}"].T) * (layers[i] > 0)
    return loss, grads


def accuracy(params: Params, x: np.ndarray, y: np.ndarray) -> float:
    """The part of the images whose highest score is that of what they show."""
    return float((forward(params, x)[-1].argmax(axis=1) == y).mean())


def batches(n: int, size: int, epochs: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Places of images, each once in an epoch, in another order each time."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


def train(
    params: Params, optimizer: mo.optim.Optimizer, x: np.ndarray, y: np.ndarray, epochs: int = EPOCHS, size: int = BATCH
) -> list[float]:
    """Train in place; the loss of each batch on the way."""
    losses = []
    for batch in batches(len(y), size, epochs):
        loss, grads = loss_and_grads(params, x[batch], y[batch])
        optimizer.step(grads)
        losses.append(loss)
    return losses


def make(name: str, params: Params, lr: float, steps: int, **options: Any) -> mo.optim.Optimizer:
    """An optimizer by name, its learning rate falling as a cosine."""
    return getattr(mo.optim, name)(params, lr=mo.optim.schedule.cosine(lr, steps), **options)


def state_bytes(optimizer: mo.optim.Optimizer) -> float:
    """Bytes of state for each number of the parameters."""
    arrays = [x for state in optimizer.state for x in state.values() if not isinstance(x, int | float)]
    return sum(x.nbytes for x in arrays) / sum(p.size for group in optimizer.param_groups for p in group["params"])


def draw(curves: dict[str, list[float]], reached: dict[str, float], per_epoch: int, path: Path) -> None:
    """The mean loss of each epoch: a small chart for each optimizer, AdamW's line in all of them."""
    epochs = {name: np.reshape(losses, (-1, per_epoch)).mean(axis=1) for name, losses in curves.items()}
    said = {name: f"{share:.1%}" for name, share in reached.items()}
    title = f"Handwritten digits: loss in each epoch, and accuracy reached. Grey: {BESIDE}"
    charts.save(charts.multiples(epochs, said, BESIDE, title), path)


def main() -> int:
    """Train with each, print what they reach, draw their losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("digits.svg"), help="where it goes (default digits.svg)")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    data = digits()
    per_epoch = len(data.y) // BATCH
    curves, reached = {}, {}
    print("| optimizer               | held-out accuracy | last epoch's loss | state, bytes a number | seconds |")
    print("| ----------------------- | ----------------- | ----------------- | --------------------- | ------- |")
    for title, name, lr, options in OPTIMIZERS:
        params = new_params()
        optimizer = make(name, params, lr, args.epochs * per_epoch, **options)
        start = time.perf_counter()
        losses = train(params, optimizer, data.x, data.y, args.epochs)
        seconds = time.perf_counter() - start
        curves[title], reached[title] = losses, accuracy(params, data.held_out_x, data.held_out_y)
        last, size = np.mean(losses[-per_epoch:]), state_bytes(optimizer)
        print(f"| {title:23} | {reached[title]:17.1%} | {last:17.5f} | {size:21.2f} | {seconds:7.2f} |", flush=True)
    draw(curves, reached, per_epoch, args.picture)
    print(f"\nthe loss curves: {args.picture}")
    if reached["Adam"] < ENOUGH:
        print(f"Adam must reach {ENOUGH:.0%}, got {reached['Adam']:.1%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
