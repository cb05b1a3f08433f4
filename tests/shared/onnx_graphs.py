"""Small ONNX models for the tests of graphs, made and run with the packages onnx and onnxruntime alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import modelopt_rs as mo
import reference
from modelopt_rs.files import TensorInfo
from modelopt_rs.onnx import quantize_weights
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.model import Source, Tile

SPELLED = {"float32": "F32", "float16": "F16", "float64": "F64", "int8": "I8", "int64": "I64", "uint8": "U8"}
SMALL = 1024  # bytes: smaller initializers are not told to a transform

node = helper.make_node


def value(name: str, shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray],
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model that the checker likes."""
    initializers = [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=opsets)
    made.ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model in onnxruntime; float64 where the numbers are floats."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Or a MatMul that it fuses would compute with activations of 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y, np.float64) for y in session.run(None, dict(feeds))]


class Memory(Source):
    """A source whose tensors are in memory, in tiles of at most `rows` rows."""

    path = Path("model.onnx")
    metadata: Mapping[str, str] = {}

    def __init__(self, arrays: Mapping[str, np.ndarray], rows: int | None = None) -> None:
        self.arrays, self._rows = arrays, rows
        self._tensors = {
            name: TensorInfo(name, SPELLED.get(a.dtype.name, "BF16"), a.shape, a.nbytes) for name, a in arrays.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        info = self.tensors[name]
        array = self.arrays[name].reshape(info.rows, info.columns)
        array = array.view(np.uint16) if info.dtype == "BF16" else array
        wanted, step = range(info.rows) if rows is None else rows, max(max_bytes // info.row_nbytes, 1)
        for first in range(wanted.start, wanted.stop, step):
            yield Tile(first, array[first : min(first + step, wanted.stop)].copy())

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def close(self) -> None:
        pass


class Quantized:
    """A model after `quantize_weights`: `proto` with all values, and the decisions."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        options: QuantizeOptions | None = None,
        onnx_options: OnnxOptions | None = None,
        *,
        max_memory: int = 2**28,
        check: bool = True,
    ) -> None:
        model = ir.from_proto(proto)
        arrays = {
            name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value.nbytes >= SMALL
        }
        source = Memory(arrays)
        self.transforms, self.decisions = quantize_weights(
            model,
            source.tensors,
            options or QuantizeOptions(),
            onnx_options or OnnxOptions(accuracy_level=0),
            max_memory=max_memory,
        )
        self.written: dict[str, bytes] = {}
        execution = Execution(max_memory, None, None, 0)
        for name, transform in self.transforms.items():
            for part, _, rows in TensorJob(source, name, transform).run(execution):
                self.written[part] = self.written.get(part, b"") + np.ascontiguousarray(rows).tobytes()
            for info in transform.outputs:
                initializer = model.graph.initializers[info.name]
                data = self.written[info.name]
                assert len(data) == info.nbytes, info
                initializer.const_value = _tensor(initializer.const_value, data)
        self.model = model
        self.proto = ir.to_proto(model)
        if check:
            onnx.checker.check_model(self.proto, full_check=True)

    @property
    def operators(self) -> list[str]:
        """Of all nodes, but what makes float32 of stored scales."""
        return [n.op_type for n in self.model.graph.all_nodes() if not str(n.name).endswith("scale_Cast")]

    def decision(self, name: str) -> Decision:
        return self.decisions[name]


def _tensor(placeholder: Any, data: bytes) -> Any:
    raw = np.frombuffer(data, np.uint8)
    shape = placeholder.shape.numpy()
    if placeholder.dtype.bitwidth < 8:
        return ir.PackedTensor(raw.copy(), placeholder.dtype, shape=shape, name=placeholder.name)
    return ir.tensor(raw.view(placeholder.dtype.numpy()).reshape(shape).copy(), name=placeholder.name)


def dense(
    w: np.ndarray,
    options: QuantizeOptions,
    block: int,
    in_axis: int,
    out_axis: int | None,
    scale_dtype: Any = np.float32,
) -> np.ndarray:
    """A weight as its codes stand for it: blocks along `in_axis`, or (0) a scale for each index of `out_axis`.

    Scales of the plain formula are those of the reference; searched ones are those of the array function.
    """
    if block:
        moved = np.ascontiguousarray(np.moveaxis(w, in_axis, -1))
        kind: tuple[int | None, int | None] = (None, block)
    else:
        moved, kind = w, (out_axis, None)
    scheme = options.spec.scheme
    if options.search is not None:
        half = options.has_half_scales or scale_dtype == np.float16
        found = mo.quantize(
            np.ascontiguousarray(moved),
            bits=options.bits,
            scheme=scheme,
            axis=kind[0],
            group_size=kind[1],
            search="mse" if block or out_axis is not None else None,
            scale_dtype="float16" if half else None,
        )
        numbers = found.dequantize()
        return np.moveaxis(numbers, -1, in_axis) if block else numbers
    affine = reference.quantize(moved, options.bits, scheme, *kind)
    affine.scale = affine.scale.astype(scale_dtype).astype(np.float32)
    numbers = reference.dequantize(affine, np.float32, *kind)
    return np.moveaxis(numbers, -1, in_axis) if block else numbers


def with_weight(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The model with another value of one initializer."""
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    for tensor in other.graph.initializer:
        if tensor.name == name:
            new = change(numpy_helper.to_array(tensor)).astype(numpy_helper.to_array(tensor).dtype)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), name))
            return other
    raise AssertionError(f"no initializer {name}")
