"""Small ONNX models whose layers compute in int8, made and run with the packages onnx and onnxruntime alone."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from modelopt_rs.files.onnx import OnnxSink, OnnxSource
from modelopt_rs.onnx.int8.activations import quantize_activations
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.transform import Copy

node = helper.make_node
Normal = Callable[..., np.ndarray]


def normal(*shape: int, scale: float = 1.0, rng: np.random.Generator | None = None) -> np.ndarray:
    """Numbers of a normal distribution: the same for the same shape, but where `rng` is given."""
    return (scale * (rng or np.random.default_rng(shape)).standard_normal(shape)).astype(np.float32)


def numbers() -> Normal:
    """As `normal`, but other numbers in each call."""
    return partial(normal, rng=np.random.default_rng(3))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Mapping[str, Sequence[int | str | None]],
    weights: Mapping[str, np.ndarray],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model with inputs of float32 that the checker likes."""
    initializers = [numpy_helper.from_array(np.array(w, order="C"), name) for name, w in weights.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(list(nodes), "g", values, results, initializers)
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    onnx.checker.check_model(made, full_check=True)
    return made


class Int8:
    """A model in a file before and after `quantize_activations`."""

    def __init__(
        self,
        folder: Path,
        proto: onnx.ModelProto,
        activations: str,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_memory: int = 2**28,
        **onnx_options: Any,
    ) -> None:
        folder = Path(tempfile.mkdtemp(dir=folder))  # several may be compared
        self.before, self.after = folder / "before.onnx", folder / "after.onnx"
        self.before.write_bytes(proto.SerializeToString())
        options = QuantizeOptions(include=include, exclude=exclude)
        execution = Execution(max_memory, None, None, 0)
        with OnnxSource(self.before) as source:
            self.transforms, self.decisions = quantize_activations(
                source.model,
                source.tensors,
                options,
                OnnxOptions(activations=activations, **onnx_options),
                path=source.path,
                threads=1,
            )
            left = [info for name, info in source.tensors.items() if name in source.model.graph.initializers]
            every = {**{info.name: Copy(info) for info in left}, **self.transforms}
            tensors = [info for transform in every.values() for info in transform.outputs]
            with OnnxSink(self.after, source.model, tensors, overwrite=True) as sink:
                for name, transform in every.items():
                    for part, _, rows in TensorJob(source, name, transform).run(execution):
                        sink.write(part, rows)
                sink.commit(verify=True)
        self.proto = onnx.load(self.after)
        onnx.checker.check_model(self.proto, full_check=True)
        self.weights = {each.name: numpy_helper.to_array(each) for each in self.proto.graph.initializer}

    def run(self, feed: Mapping[str, np.ndarray], *, fused: bool = True) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The outputs before and after, in float64."""
        found = []
        for path in (self.before, self.after):
            session = _session(path, fused=fused)
            found.append([np.asarray(y, np.float64) for y in session.run(None, dict(feed))])
        return found[0], found[1]

    def sqnr(self, feed: Mapping[str, np.ndarray], *, fused: bool = True) -> float:
        """The least signal to noise of the outputs, in dB."""
        return min(
            float(10 * np.log10(np.square(x).sum() / max(np.square(x - y).sum(), 1e-30)))
            for x, y in zip(*self.run(feed, fused=fused), strict=True)
        )

    @property
    def operators(self) -> list[str]:
        return [each.op_type for each in self.proto.graph.node]

    @property
    def fused(self) -> list[str]:
        """The operators that onnxruntime makes of it."""
        path = self.after.with_suffix(".optimized.onnx")
        _session(self.after, path)
        return [each.op_type for each in onnx.load(path).graph.node]

    def grid(self, name: str) -> tuple[float, int]:
        """Scale and zero point of the QuantizeLinear that takes a value."""
        found = next(n for n in self.proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name)
        return float(self.weights[found.input[1]]), int(self.weights[found.input[2]])


def _session(path: Path, optimized: Path | None = None, *, fused: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def convolutions(*, opset: int = 17) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, a residual block, pooling and a classifier."""
    normal = numbers()
    return model(
        [
            node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
            node("Relu", ["c1"], ["r1"]),
            node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
            node("Clip", ["c2", "zero", "six"], ["r2"]),
            node("Conv", ["r2", "w3"], ["c3"], pads=[1] * 4, group=16),
            node("Add", ["c3", "p1"], ["a"]),
            node("Relu", ["a"], ["r3"]),
            node("GlobalAveragePool", ["r3"], ["g"]),
            node("Flatten", ["g"], ["f"]),
            node("Gemm", ["f", "w4", "b4"], ["y"], transB=1),
        ],
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 10]},
        {
            "w1": normal(16, 3, 3, 3, scale=0.3),
            "b1": normal(16, scale=0.1),
            "w2": normal(16, 16, 3, 3, scale=0.1),
            "b2": normal(16, scale=0.1),
            "zero": np.float32(0),
            "six": np.float32(6),
            "w3": normal(16, 1, 3, 3, scale=0.3),
            "w4": normal(10, 16, scale=0.3),
            "b4": normal(10, scale=0.1),
        },
        opset=opset,
    )


def perceptron() -> onnx.ModelProto:
    """Gemm and MatMul with Add, by two Relus."""
    normal = numbers()
    return model(
        [
            node("Gemm", ["x", "w1", "b1"], ["h1"]),
            node("Relu", ["h1"], ["r1"]),
            node("MatMul", ["r1", "w2"], ["m2"]),
            node("Add", ["m2", "b2"], ["h2"]),
            node("Relu", ["h2"], ["r2"]),
            node("MatMul", ["r2", "w3"], ["y"]),
        ],
        {"x": ["batch", 24]},
        {"y": ["batch", 12]},
        {
            "w1": normal(24, 40, scale=0.2),
            "b1": normal(40, scale=0.1),
            "w2": normal(40, 32, scale=0.2),
            "b2": normal(32, scale=0.1),
            "w3": normal(32, 12, scale=0.2),
        },
    )


def attention(*, normed: str = "LayerNormalization") -> onnx.ModelProto:
    """One block of a transformer: normalized, attention of one head, normalized, two layers."""
    n, normal = 32, numbers()
    norms = {"LayerNormalization": _norm, "decomposed": _decomposed}[normed]
    return model(
        [
            *norms("x", "n1", "1"),
            *(each for name in "qkv" for each in _linear("n1", name)),
            node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
            node("MatMul", ["q", "kt"], ["s"]),
            node("Softmax", ["s"], ["p"], axis=-1),
            node("MatMul", ["p", "v"], ["o"]),
            *_linear("o", "out"),
            node("Add", ["x", "out"], ["h"]),
            *norms("h", "n2", "2"),
            *_linear("n2", "up"),
            node("Relu", ["up"], ["act"]),
            *_linear("act", "down"),
            node("Add", ["h", "down"], ["y"]),
        ],
        {"x": ["batch", "length", n]},
        {"y": ["batch", "length", n]},
        {
            **{f"{name}_w": normal(n, n, scale=n**-0.5) for name in ("q", "k", "v", "out")},
            **{f"{name}_b": normal(n, scale=0.1) for name in ("q", "k", "v", "out", "down")},
            "up_w": normal(n, 2 * n, scale=n**-0.5),
            "up_b": normal(2 * n, scale=0.1),
            "down_w": normal(2 * n, n, scale=(2 * n) ** -0.5),
            **{f"gamma{i}": 1 + normal(n, scale=0.1) for i in "12"},
            **{f"beta{i}": normal(n, scale=0.1) for i in "12"},
            "eps": np.float32(1e-5),
        },
    )


def _linear(x: str, name: str) -> list[onnx.NodeProto]:
    return [node("MatMul", [x, f"{name}_w"], [f"{name}_m"]), node("Add", [f"{name}_m", f"{name}_b"], [name])]


def _norm(x: str, out: str, i: str) -> list[onnx.NodeProto]:
    return [node("LayerNormalization", [x, f"gamma{i}", f"beta{i}"], [out])]


def _decomposed(x: str, out: str, i: str) -> list[onnx.NodeProto]:
    return [
        node("ReduceMean", [x], [f"mean{i}"], axes=[-1]),
        node("Sub", [x, f"mean{i}"], [f"centred{i}"]),
        node("Mul", [f"centred{i}", f"centred{i}"], [f"square{i}"]),
        node("ReduceMean", [f"square{i}"], [f"var{i}"], axes=[-1]),
        node("Add", [f"var{i}", "eps"], [f"vareps{i}"]),
        node("Sqrt", [f"vareps{i}"], [f"std{i}"]),
        node("Div", [f"centred{i}", f"std{i}"], [f"unit{i}"]),
        node("Mul", [f"unit{i}", f"gamma{i}"], [f"scaled{i}"]),
        node("Add", [f"scaled{i}", f"beta{i}"], [out]),
    ]
