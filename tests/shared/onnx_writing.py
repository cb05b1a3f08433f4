"""A model of one weight, written by the package."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from modelopt_rs.files import TensorInfo
from modelopt_rs.files.onnx import OnnxSink, OnnxSource, placeholder
from onnx_samples import mlp, numbers

W = numbers((64, 32))


def graph(shape: tuple[int, int] = (64, 32), dtype: Any = None) -> tuple[Any, list[TensorInfo]]:
    """A model of one MatMul whose weight is still to come."""
    model = ir.from_proto(mlp(1, shape[1]))
    model.graph.initializers["w"].const_value = placeholder("w", dtype or ir.DataType.FLOAT, shape)
    model.graph.initializers["w"].shape = ir.Shape(shape)
    model.graph.inputs[0].shape = ir.Shape(["n", shape[0]])
    return model, [TensorInfo("w", "F32", shape, 4 * shape[0] * shape[1])]


def write(path: Path, array: np.ndarray = W, **options: Any) -> Path:
    model, tensors = graph(array.shape)
    with OnnxSink(path, model, tensors, **{"overwrite": True, **options}) as sink:
        for row in np.array_split(array, 5):
            sink.write("w", row)
        sink.commit()
    return path


def weight(path: Path) -> np.ndarray:
    with OnnxSource(path) as source:
        return source.read("w")


def data_files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.endswith(".data")]
