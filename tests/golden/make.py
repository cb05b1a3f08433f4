"""Write what a version of the package writes, to be read by every later one: `python make.py FOLDER` with that version.

`0.1` was made so by version 0.1 (commit 69cfbde). A new version gets a folder of its own; old ones are never written
again.
"""

import sys
from pathlib import Path

import numpy as np

import modelopt_rs as mo

SHAPES = {"up.weight": (16, 64), "down.weight": (8, 32), "norm.weight": (32,)}
FILES = {
    "int8": {"bits": 8},
    "int4": {"bits": 4, "group_size": 32},
    "int4-asymmetric": {"bits": 4, "group_size": 32, "scheme": "asymmetric"},
    "int2": {"bits": 2, "group_size": 32, "scheme": "asymmetric"},
}


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """Values that every NumPy makes the same."""
    n = int(np.prod(shape))
    state = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(6364136223846793005)
    return ((state >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32).reshape(shape)


def checkpoints(folder: Path) -> None:
    """Quantized and pruned files, and the plain floats that they hold."""
    arrays = {name: weights(shape) for name, shape in SHAPES.items()}
    infos = [mo.files.TensorInfo(name, "F32", x.shape, x.nbytes) for name, x in arrays.items()]
    source = folder / "source.safetensors"
    with mo.files.SafetensorsSink(source, infos) as sink:
        for name, array in arrays.items():
            sink.write(name, array)
        sink.commit()
    for name, options in FILES.items():
        mo.quantize_file(source, folder / f"{name}.safetensors", **options)
    mo.prune_file(source, folder / "bitmask.safetensors", sparsity=0.75, format="bitmask")
    for path in sorted(folder.glob("*.safetensors")):
        with mo.files.open(path, dequantize=True) as plain:
            np.savez(path.with_suffix(".npz"), **{name: plain.read(name) for name in plain.tensors})


def model(folder: Path) -> None:
    """ONNX models with weights in 8 and 4 bits."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    floats = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    w = numpy_helper.from_array(weights((64, 32)), "w")
    graph = helper.make_graph(nodes, "g", [floats("x", ["batch", 64])], [floats("y", ["batch", 32])], [w])
    source = folder / "source.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), source)
    for bits in (8, 4):
        mo.quantize_file(source, folder / f"int{bits}.onnx", bits=bits, run=None)


def optimizers(folder: Path) -> None:
    """Checkpoints of optimizers after three steps, with what they had stepped."""
    for name, options in {"adamw": {}, "adamw-8": {"state_bits": 8, "state_min_size": 0}, "lion": {}}.items():
        params = {"w": weights((8, 64))}
        kind = mo.optim.Lion if name == "lion" else mo.optim.AdamW
        optimizer = kind(params, lr=0.01, **options)
        for _ in range(3):
            optimizer.step({"w": params["w"].copy()})
        optimizer.save(folder / f"{name}.optim")
        before = params["w"].copy()
        optimizer.step({"w": before.copy()})
        np.savez(folder / f"{name}-steps.npz", before=before, after=params["w"])


if __name__ == "__main__":
    to = Path(sys.argv[1])
    to.mkdir(exist_ok=True)
    checkpoints(to)
    model(to)
    optimizers(to)
    print(mo.__version__, sorted(path.name for path in to.iterdir()))
