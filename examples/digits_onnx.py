"""The digits classifier of `digits.py` as an ONNX model, made smaller: `python examples/digits_onnx.py`.

The perceptron is trained in NumPy, written with onnx.helper as frameworks export their linear layers (Gemm with the
weight as [outputs, inputs], ReLU between), quantized, pruned, cropped, and run in onnxruntime on the digits that were
held out. Needs `pip install scikit-learn` and the extra `onnx`.
"""

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from digits import BATCH, EPOCHS, Data, Params, digits, make, new_params, train
from modelopt_rs.onnx.run.sessions import open_session
from onnx_table import DATA, OURS, Task, arguments, as_json, draw, measure, models, show

OUTPUT = "scores"
MOST_LOST = {"8 bits": 0.01, "4 bits": 0.02}  # of the accuracy
VARIANTS = OURS | {
    "8 bits, activations too": ("quantize", "--calibrate", DATA),
    "half pruned": ("prune", "--sparsity", "0.5"),
    "2 of 4 pruned": ("prune", "--n-of-m", "2:4"),
    "half cropped": ("crop", "--keep", "0.5", "--what", "ffn"),
    "three quarters cropped": ("crop", "--keep", "0.25", "--what", "ffn"),
}


def trained(data: Data, epochs: int = EPOCHS) -> Params:
    """The classifier, trained with Adam."""
    params = new_params()
    train(params, make("Adam", params, 3e-3, epochs * (len(data.y) // BATCH)), data.x, data.y, epochs)
    return params


def build(params: Params) -> Any:
    """The perceptron of `digits.py` as an onnx.ModelProto: pixels in, scores of the ten digits out."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, x = [], [], "pixels"
    last = len(params) // 2 - 1
    for i in range(last + 1):
        weights.append(numpy_helper.from_array(np.ascontiguousarray(params[f"w{i}"].T), f"layer{i}.weight"))
        weights.append(numpy_helper.from_array(params[f"b{i}"], f"layer{i}.bias"))
        y = OUTPUT if i == last else f"layer{i}"
        inputs = [x, f"layer{i}.weight", f"layer{i}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [y], name=f"layer{i}", transB=1))
        if i < last:
            nodes.append(helper.make_node("Relu", [y], [f"relu{i}"], name=f"relu{i}"))
        x = f"relu{i}"
    pixels, classes = params["w0"].shape[0], params[f"w{last}"].shape[1]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", pixels])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def write(path: Path, params: Params) -> Path:
    """Write the perceptron to a file."""
    import onnx

    onnx.save(build(params), path)
    return path


def accuracy(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    """The part of the images whose highest score is that of what they show, in onnxruntime."""
    scores = open_session(path).run([OUTPUT], {"pixels": x})[0]
    return float((scores.argmax(axis=1) == y).mean())


def task(data: Data) -> Task:
    """The accuracy on held-out digits; timed on all of them."""
    feed = {"pixels": data.held_out_x}
    return Task(feed, feed, OUTPUT, lambda path: accuracy(path, data.held_out_x, data.held_out_y))


def main() -> int:
    """Train, export, make smaller, measure; 1 if a model of ours loses more than it may."""
    args = arguments(__doc__).parse_args()
    data = digits()
    with ExitStack() as stack:
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="digits-")))
        folder.mkdir(parents=True, exist_ok=True)
        original = write(folder / "digits.onnx", trained(data))
        np.savez(folder / "digits.npz", pixels=data.x)
        found, work = models(args, original, folder, VARIANTS), task(data)
        table = [measure(title, original, path, work, args) for title, path in found.items()]
    show(table, "digits", "accuracy")
    if args.picture:
        draw(table, "Handwritten digits in onnxruntime", "accuracy, %", "{:.1f}", 100, args.picture)
    if args.json:
        args.json.write_text(json.dumps(as_json(table), indent=1) + "\n")
    bad = [row for row in table if row.score < table[0].score - MOST_LOST.get(row.title, 1)]
    for row in bad:
        print(f"{row.title} must lose at most {MOST_LOST[row.title]:.1%}, got {row.score:.2%}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
