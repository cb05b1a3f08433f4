"""What models are worth at sizes that are asked for: `python benches/least_loss.py [MODEL ...]`.

Each model is stored by `optimize` at ten sizes, and at the sizes of five uniform codes beside these. Of each file the
error of the outputs (relative to them, on the inputs of the task; of magika's scores, and of the probabilities that are
made of them) and the metric of the task are printed. The models
are MiniLM (ONNX and directory: the mean cosine of 80 sentences to the original's), magika (labels that agree), the
digits and Fashion-MNIST (held-out accuracy). `optimize` sees none of the inputs; of "magika-inputs" it sees those of
other files than are measured, of "digits-inputs" and "fashion-inputs" some that the model was trained on. By the inputs
that it sees, or makes up, nothing is worse than uniform bits; by others it may be.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import digits_onnx
import magika_onnx
import minilm_onnx
from digits import digits, make, new_params, train
from fashion_mnist import PLACE, SIZES, fashion
from modelopt_rs import RunOptions, optimize_file, quantize_file
from modelopt_rs.cli.demo import find_model
from modelopt_rs.containers.onnx import OnnxSource
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.measure.output_errors import scores
from modelopt_rs.onnx.run.sessions import open_session

CODES: dict[str, dict[str, Any]] = {
    "8": {"bits": 8},
    "4": {"bits": 4},
    "4, groups of 64": {"bits": 4, "group_size": 64},
    "4, groups of 128": {"bits": 4, "group_size": 128},
    "2": {"bits": 2},
}
BUDGETS = 10
SLACK = 1.005  # a size is met within half a percent
Worth = Callable[[Path], tuple[float, float]]


@dataclass
class Model:
    """A model, what its file is worth (the error of its outputs, the metric), and options of all its quantizations.

    Of a classifier of probabilities the error is that of its scores, and `doubt` that of its probabilities, which a few
    inputs decide.
    """

    path: Path
    worth: Worth
    options: dict[str, Any]
    doubt: Callable[[Path], float] | None = None


def relative(x: np.ndarray, y: np.ndarray) -> float:
    """How far y is from x, relative to x."""
    return float(np.linalg.norm((y - x).astype(np.float64)) / np.linalg.norm(x.astype(np.float64)))


def outputs(path: Path, feed: dict[str, np.ndarray], name: str, batch: int = 16) -> np.ndarray:
    """An output of an ONNX model, a batch at a time."""
    session, count = open_session(path, threads=1), len(next(iter(feed.values())))
    parts = [session.run([name], {k: x[i : i + batch] for k, x in feed.items()})[0] for i in range(0, count, batch)]
    return np.concatenate(parts)


def both(path: Path, feed: dict[str, np.ndarray], name: str, batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Scores that the probabilities of an ONNX model are made of, and these."""
    with OnnxSource(path) as source:
        names = [*scores(source.model), name]
        observer, count = Observer(source.model, path, names, threads=1), len(next(iter(feed.values())))
        cut = [{k: x[i : i + batch] for k, x in feed.items()} for i in range(0, count, batch)]
        parts = [observer.outputs(each, names) for each in cut]
    first, last = (np.concatenate(each) for each in zip(*parts, strict=True))
    return first, last


def minilm(folder: Path) -> Model:
    """The sentence encoder as a graph."""
    path, feed = minilm_onnx.write(folder / "minilm.onnx"), minilm_onnx.tokenize(minilm_onnx.sentences())
    expected = minilm_onnx.embed(path, feed)

    def worth(other: Path) -> tuple[float, float]:
        found = minilm_onnx.embed(other, feed)
        return relative(expected, found), float((found * expected).sum(axis=1).mean())

    return Model(path, worth, {"run": RunOptions(rounds=0)})


def minilm_directory(folder: Path) -> Model:
    """The same as a directory, its table of words included; what is written is run as a graph."""
    graph = minilm(folder)

    def worth(other: Path) -> tuple[float, float]:
        return graph.worth(minilm_onnx.write(folder / "again.onnx", other))

    return Model(find_model(), worth, {"include": ["*word_embeddings.weight"], "only_dequantize": True})


def magika(folder: Path, seen: bool = False) -> Model:
    """The classifier of files; with inputs of others, where these are to be seen."""
    _, every = magika_onnx.features(magika_onnx.find_files())
    rows, others = every[::4], every[1::40]
    path, feed = magika_onnx.package_model() / "model.onnx", {"bytes": rows}
    expected = both(path, feed, magika_onnx.OUTPUT)

    def worth(other: Path) -> tuple[float, float]:
        found = both(other, feed, magika_onnx.OUTPUT)
        agree = float((found[1].argmax(axis=1) == expected[1].argmax(axis=1)).mean())
        return relative(expected[0], found[0]), agree

    def doubt(other: Path) -> float:
        return relative(expected[1], both(other, feed, magika_onnx.OUTPUT)[1])

    options = {"run": RunOptions(inputs={"bytes": others} if seen else None, rounds=0)}
    return Model(path, worth, options, doubt)


def perceptron(path: Path, params: Any, x: np.ndarray, y: np.ndarray, seen: np.ndarray | None) -> Model:
    """A perceptron of `digits.py`; with inputs where some are to be seen."""
    digits_onnx.write(path, params)
    expected = outputs(path, {"pixels": x}, digits_onnx.OUTPUT, 1000)

    def worth(other: Path) -> tuple[float, float]:
        found = outputs(other, {"pixels": x}, digits_onnx.OUTPUT, 1000)
        return relative(expected, found), float((found.argmax(axis=1) == y).mean())

    return Model(path, worth, {"run": RunOptions(inputs=None if seen is None else {"pixels": seen}, rounds=0)})


def digits_model(folder: Path, seen: bool = False) -> Model:
    """The handwritten digits."""
    data = digits()
    some = data.x[:256] if seen else None
    return perceptron(folder / "digits.onnx", digits_onnx.trained(data), data.held_out_x, data.held_out_y, some)


def fashion_model(folder: Path, place: Path, seen: bool = False) -> Model:
    """Fashion-MNIST, two epochs."""
    data = fashion(place)
    params = new_params(SIZES, 0)
    train(params, make("AdamW", params, 2e-3, 2 * (len(data.y) // 128)), data.x, data.y, 2, 128)
    some = data.x[:256] if seen else None
    return perceptron(folder / "fashion.onnx", params, data.held_out_x, data.held_out_y, some)


def stored(path: Path) -> int:
    """Bytes of the weights."""
    return sum(f.stat().st_size for f in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def figures(model: Model, path: Path) -> tuple[float, list[str]]:
    """The error of a file's outputs, and cells of a table: it, that of probabilities, and the metric."""
    error, worth = model.worth(path)
    doubt = [] if model.doubt is None else [f"{model.doubt(path):.4f}"]
    return error, [f"{stored(path):,}", f"{error:.4f}", *doubt, f"{worth:.4f}"]


def run(title: str, model: Model, folder: Path) -> bool:
    """Print the tables of a model; say whether more bytes and the choice of bits never made it worse."""
    graph = model.path.suffix == ".onnx"
    out, table = folder / ("out.onnx" if graph else "out"), folder / f"{title}.json"
    how: dict[str, Any] = {**model.options, "overwrite": True, "durable": False, "threads": 1}
    plan = optimize_file(model.path, out, target_bpw=5.5, dry_run=True, table=table, **model.options)
    floor = plan.options["allocation"]["floor"]
    top = 0
    good = True
    print(f"\n{title}: the original {model.worth(model.path)[1]:.4f}\n")
    heads = ["bytes", "error", "worth"] if model.doubt is None else ["bytes", "error", "of probabilities", "worth"]
    print(f"| uniform bits | {' | '.join([*heads, f'optimize: {heads[0]}', *heads[1:]])} |")
    print(f"| {' | '.join(['---'] * (1 + 2 * len(heads)))} |")
    for name, code in CODES.items():
        quantize_file(model.path, out, uniform=True, **code, **how)
        size = stored(out)
        uniform, cells = figures(model, out)
        top = max(top, size)
        try:
            optimize_file(model.path, out, target_size=int(SLACK * size), table=table, **how)
        except ValueError as e:
            print(f"| {name} | {' | '.join([*cells, str(e), *['-'] * (len(heads) - 1)])} |")
            continue
        ours, more = figures(model, out)
        good &= ours <= uniform
        print(f"| {name} | {' | '.join([*cells, *more])} |", flush=True)
    print(f"\n| budget | loss | {' | '.join(heads)} |\n| {' | '.join(['---'] * (2 + len(heads)))} |")
    last = float("inf")
    for size in np.linspace(1.02 * floor, 1.1 * top, BUDGETS).astype(int):
        report = optimize_file(model.path, out, target_size=int(size), table=table, **how)
        error, cells = figures(model, out)
        good &= error <= last
        print(f"| {size:,} | {report.options['allocation']['loss']:.4f} | {' | '.join(cells)} |", flush=True)
        last = error
    return good


def main() -> int:
    """Print the tables of models; 1 if one got worse where it should not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="minilm, minilm-directory, magika, digits, fashion; the last three also with -inputs",
    )
    parser.add_argument("--fashion", type=Path, default=PLACE, help="the directory of Fashion-MNIST")
    args = parser.parse_args()
    known: dict[str, Callable[[Path], Model]] = {
        "minilm": minilm,
        "minilm-directory": minilm_directory,
        "magika": magika,
        "magika-inputs": lambda folder: magika(folder, seen=True),
        "digits": digits_model,
        "digits-inputs": lambda folder: digits_model(folder, seen=True),
        "fashion": lambda folder: fashion_model(folder, args.fashion),
        "fashion-inputs": lambda folder: fashion_model(folder, args.fashion, seen=True),
    }
    good = True
    for title in args.models or known:
        with tempfile.TemporaryDirectory(prefix="least-loss-") as folder:
            good &= run(title, known[title](Path(folder)), Path(folder))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
