"""Small ONNX models, and what cropping must do with them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from modelopt_rs.onnx.crop.apply import crop_graph
from modelopt_rs.onnx.crop.coupling import GraphGroup, Refusal, find_groups


@dataclass
class Net:
    """Builds a graph node by node; every method of a node returns the name of its output."""

    inputs: dict[str, list[int | str]]
    outputs: list[str] = field(default_factory=lambda: ["y"])
    opset: int = 21
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.input_types: dict[str, int] = {}
        self.domains: set[str] = set()

    def w(self, name: str, *shape: int) -> str:
        """Add a weight."""
        self.weights[name] = (self.rng.standard_normal(shape) / 2).astype(np.float32)
        return name

    def positive(self, name: str, *shape: int) -> str:
        self.weights[name] = self.rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return name

    def ints(self, name: str, *numbers: int) -> str:
        self.weights[name] = np.array(numbers, np.int64)
        return name

    def int0(self, name: str, number: int) -> str:
        self.weights[name] = np.array(number, np.int64)
        return name

    def add(self, op: str, *inputs: str, out: str | list[str] = "", domain: str = "", **attributes) -> str:
        """Add a node."""
        outs = [out] if isinstance(out, str) else out
        outs = [each or f"{op.lower()}_{len(self.nodes)}" for each in outs]
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), outs, name=name, domain=domain, **attributes))
        self.domains.add(domain)
        return outs[0]

    def proto(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, self.input_types.get(name, TensorProto.FLOAT), shape)
            for name, shape in self.inputs.items()
        ]
        outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in self.outputs]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(self.domains - {""})]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def net() -> onnx.ModelProto:
    """Two convolutions, a MatMul and a Gemm, with biases."""
    net = Net({"x": ["batch", 8, 8, 8]})
    h = net.add("Relu", net.add("Conv", "x", net.w("first", 32, 8, 3, 3), net.w("first_bias", 32), pads=[1, 1, 1, 1]))
    h = net.add("Flatten", net.add("Relu", net.add("Conv", h, net.w("second", 16, 32, 4, 4), strides=[4, 4])))
    h = net.add("Relu", net.add("Add", net.add("MatMul", h, net.w("fc", 64, 256)), net.w("fc_bias", 256)))
    net.add("Gemm", h, net.w("head", 256, 32), net.w("head_bias", 32), out="y")
    return net.proto()


def with_node(source: Path, node: onnx.NodeProto, *, domain: str = "") -> Path:
    """Put a node behind the model's output."""
    proto = onnx.load(source)
    proto.graph.node[-1].output[0] = "last"
    proto.graph.node.append(node)
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(proto, source)
    return source


def groups_of(proto: onnx.ModelProto) -> tuple[ir.Model, dict[str, GraphGroup], dict[str, Refusal]]:
    model = ir.serde.deserialize_model(proto)
    groups, refusals = find_groups(model)
    return model, {group.name: group for group in groups}, {refusal.name: refusal for refusal in refusals}


def feeds_of(proto: onnx.ModelProto, dims: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    weights = {weight.name for weight in proto.graph.initializer}
    feeds = {}
    for value in proto.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value or (dims or {}).get(dim.dim_param, 2) for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[value.name] = rng.integers(0, 2, shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def zeroed(model: ir.Model, groups: list[GraphGroup], kept: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return the model with zeros for all weights that belong to a unit that goes."""
    proto = ir.serde.serialize_model(model)
    arrays = {weight.name: numpy_helper.to_array(weight).copy() for weight in proto.graph.initializer}
    for group in groups:
        if group.name not in kept:
            continue
        for member in (member for member in group.members if member.scored):
            view = np.moveaxis(arrays[member.name], member.axis, 0)
            for unit in np.setdiff1d(np.arange(group.units), kept[group.name]):
                start = member.offset + int(unit) * member.size
                view[start : start + member.size] = 0
    for weight in proto.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(arrays[weight.name], weight.name))
    return proto


def halves(groups: list[GraphGroup]) -> dict[str, np.ndarray]:
    """Choose about half of the units of every group, not in a regular pattern."""
    rng = np.random.default_rng(3)
    return {
        group.name: np.sort(rng.permutation(group.units)[: max(1, group.units // 2)]).astype(np.int64)
        for group in groups
    }


def crops(
    proto: onnx.ModelProto, dims: dict[str, int] | None = None, but: tuple[str, ...] = ("hidden",)
) -> dict[str, GraphGroup]:
    """Crop every group by half; the cropped model must do what the other does with zeros. Return the groups."""
    model, groups, _ = groups_of(proto)
    chosen = [group for group in groups.values() if group.kind not in but]
    kept, feeds = halves(chosen), feeds_of(proto, dims)
    wanted = run(zeroed(model, chosen, kept), feeds)
    before = {name: value.const_value.shape.numpy() for name, value in model.graph.initializers.items()}
    crop_graph(model, list(groups.values()), kept)
    small = ir.serde.serialize_model(model)
    onnx.checker.check_model(small, full_check=True)
    for array, other in zip(run(small, feeds), wanted, strict=True):
        assert array.shape == other.shape
        np.testing.assert_allclose(array, other, rtol=2e-5, atol=2e-5)
    after = {name: value.const_value.shape.numpy() for name, value in model.graph.initializers.items()}
    for group in chosen:
        for member in group.members:
            assert after[member.name][member.axis] < before[member.name][member.axis]
    return groups
