"""Small ONNX models, each with weights in another place; and what onnx itself finds in a model."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto, helper, numpy_helper

from modelopt_rs.files import TensorInfo
from modelopt_rs.files.onnx import OnnxSink, OnnxSource

# The dtypes of arrays that onnx makes tensors of.
NUMBERS = [n for n in TensorProto.DataType.values() if n not in (0, TensorProto.STRING)]


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(graph: Any, *, ir_version: int = 10, opset: int = 17, **more: Any) -> ModelProto:
    domains = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=domains, **more)


def mlp(rows: int = 64, columns: int = 32) -> ModelProto:
    """MatMul with a weight, and Add with a bias, as initializers; and all that may stand beside them."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first", doc_string="what it does"),
            helper.make_node("Add", ["h", "b"], ["y"], name="second"),
        ],
        "mlp",
        [value("x", ["n", rows])],
        [value("y", ["n", columns])],
        [numpy_helper.from_array(numbers((rows, columns)), "w"), numpy_helper.from_array(numbers((columns,), 1), "b")],
        doc_string="a graph",
        value_info=[value("h", ["n", columns])],
    )
    proto = model(graph, producer_name="tests", doc_string="a model")
    helper.set_model_props(proto, {"author": "nobody", "license": "é"})
    return proto


def dtype_model(dtype: int, size: int, *, raw: bool) -> ModelProto:
    """One initializer of a dtype, as raw or as typed data, which is the output as well."""
    whole = np.random.default_rng(size).integers(0, 2, (size, 3))
    tensor = helper.make_tensor("w", dtype, whole.shape, whole.astype(helper.tensor_dtype_to_np_dtype(dtype)))
    if raw:
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "w")
    node = helper.make_node("Identity", ["w"], ["y"])
    return model(helper.make_graph([node], "g", [], [value("y", [size, 3], dtype)], [tensor]), opset=25, ir_version=13)


def constants() -> ModelProto:
    """Weights in Constant nodes: as a tensor, as lists, small, and as the graph's output."""
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(numbers((64, 32)))),
        helper.make_node("Constant", [], ["small"], value=numpy_helper.from_array(np.float32(2))),
        helper.make_node("Constant", [], ["list"], value_floats=[float(i) for i in range(32)]),
        helper.make_node("Constant", [], ["whole"], value_ints=list(range(400))),
        helper.make_node("Constant", [], ["kept"], value=numpy_helper.from_array(numbers((20, 20), 2))),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "small"], ["c"]),
        helper.make_node("Add", ["c", "list"], ["y"]),
        helper.make_node("Identity", ["whole"], ["z"]),
    ]
    outputs = [value("y", ["n", 32]), value("z", [400], TensorProto.INT64), value("kept", [20, 20])]
    return model(helper.make_graph(nodes, "constants", [value("x", ["n", 64])], outputs))


def branches() -> ModelProto:
    """If: initializers and constants of the same names in both bodies, one of them the body's output."""
    out = [value("o", [32, 32])]
    then = helper.make_graph(
        [helper.make_node("Add", ["w", "w2"], ["o"])],
        "then",
        [],
        out,
        [numpy_helper.from_array(numbers((32, 32), i), name) for i, name in enumerate(("w", "w2"))],
    )
    constant = helper.make_node("Constant", [], ["w2"], value=numpy_helper.from_array(numbers((32, 32), 4)))
    inner_out = [value("i", [32, 32])]
    tensor = numpy_helper.from_array(numbers((32, 32), 9), "i")
    inner = [
        helper.make_graph([], "direct", [], inner_out, [tensor]),
        helper.make_graph([helper.make_node("Identity", ["w2"], ["i"])], "outer", [], inner_out),
    ]
    choose = helper.make_node("If", ["c"], ["o"], then_branch=inner[0], else_branch=inner[1])
    other = helper.make_graph([constant, choose], "else", [], out)
    nodes = [
        helper.make_node("If", ["c"], ["k"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["x", "k"], ["y"]),
    ]
    inputs = [value("x", ["n", 32]), value("c", [], TensorProto.BOOL)]
    return model(helper.make_graph(nodes, "branches", inputs, [value("y", ["n", 32])]))


def loop() -> ModelProto:
    """Loop and Scan, with an initializer and a constant in the body."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["s"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", ["n", 32])],
        [value("go_on", [], TensorProto.BOOL), value("s", ["n", 32])],
        [numpy_helper.from_array(numbers((32, 32)) / 8, "w")],
    )
    step = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(numbers((32, 32), 3) / 8)),
            helper.make_node("MatMul", ["row", "w"], ["r"]),
            helper.make_node("Add", ["sum", "r"], ["next"]),
            helper.make_node("Identity", ["next"], ["each"]),
        ],
        "step",
        [value("sum", [32]), value("row", [32])],
        [value("next", [32]), value("each", [32])],
    )
    nodes = [
        helper.make_node("Loop", ["times", "", "x"], ["h"], body=body),
        helper.make_node("Scan", ["zero", "h"], ["last", "y"], body=step, num_scan_inputs=1),
    ]
    initializers = [
        numpy_helper.from_array(np.int64(3), "times"),
        numpy_helper.from_array(np.zeros(32, np.float32), "zero"),
    ]
    return model(helper.make_graph(nodes, "loop", [value("x", ["n", 32])], [value("y", ["n", 32])], initializers))


def functions() -> ModelProto:
    """A function with a large constant in its body, used twice; and an attribute with a tensor that is no weight."""
    body = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(numbers((32, 32)))),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
    ]
    function = helper.make_function("custom", "dense", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    fill = helper.make_tensor("fill", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("dense", ["x"], ["h"], domain="custom"),
        helper.make_node("dense", ["h"], ["m"], domain="custom"),
        helper.make_node("ConstantOfShape", ["shape"], ["two"], value=fill),
        helper.make_node("Mul", ["m", "two"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.array([1], np.int64), "shape")
    graph = helper.make_graph(nodes, "f", [value("x", ["n", 32])], [value("y", ["n", 32])], [shape])
    return model(graph, functions=[function], opsets=[helper.make_opsetid("custom", 1)])


def old_version() -> ModelProto:
    """IR version 3: the initializers are inputs as well."""
    proto = mlp()
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    for tensor in proto.graph.initializer:
        proto.graph.input.append(value(tensor.name, list(tensor.dims)))
    return proto


def strings() -> ModelProto:
    """Text in a tensor, more than 1 KiB of it, and a default of an input."""
    texts = helper.make_tensor("texts", TensorProto.STRING, [300], [b"text %d" % i for i in range(300)])
    nodes = [helper.make_node("Identity", ["texts"], ["t"]), helper.make_node("Mul", ["x", "scale"], ["y"])]
    inputs = [value("x", [20, 20]), value("scale", [20, 20])]
    outputs = [value("t", [300], TensorProto.STRING), value("y", [20, 20])]
    scale = numpy_helper.from_array(numbers((20, 20), 5), "scale")
    return model(helper.make_graph(nodes, "strings", inputs, outputs, [texts, scale]))


CORPUS = {
    "mlp": mlp,
    "constants": constants,
    "branches": branches,
    "loop": loop,
    "functions": functions,
    "old": old_version,
    "strings": strings,
}


def save(path: Path, proto: ModelProto, *, external: bool = False) -> Path:
    more = {"save_as_external_data": True, "location": path.name + ".bin", "size_threshold": 0} if external else {}
    onnx.save(ModelProto.FromString(proto.SerializeToString()), path, **more)
    return path


def key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(array)
    data = repr(array.tolist()).encode() if array.dtype.kind in "OU" else array.tobytes()
    return array.dtype.name if array.dtype.kind not in "OU" else "text", array.shape, data


def upstream(proto: ModelProto) -> Counter[Any]:
    """Every tensor that onnx finds in a model."""
    found: Counter[Any] = Counter()

    def tensor(t: TensorProto) -> None:
        found[key(numpy_helper.to_array(t))] += 1

    def nodes(all_of_them: Any) -> None:
        for node in all_of_them:
            for attribute in node.attribute:
                for t in [attribute.t] * attribute.HasField("t") + list(attribute.tensors):
                    tensor(t)
                if node.op_type == "Constant" and attribute.name == "value_ints":
                    found[key(np.array(attribute.ints, np.int64))] += 1
                if node.op_type == "Constant" and attribute.name == "value_floats":
                    found[key(np.array(attribute.floats, np.float32))] += 1
                for g in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                    graph(g)

    def graph(g: Any) -> None:
        for t in g.initializer:
            tensor(t)
        nodes(g.node)

    graph(proto.graph)
    for function in proto.functions:
        nodes(function.node)
    return found


def ours(source: OnnxSource) -> Counter[Any]:
    """Every tensor that stands in a source's graph; the large ones of the main graph as `read` gives them."""
    found: Counter[Any] = Counter()
    for tensor in all_tensors(source.model):
        if tensor.dtype == ir.DataType.STRING:
            texts = [text.decode() for text in tensor.string_data()]
            found[key(np.array(texts, object).reshape(tensor.shape.numpy()))] += 1
        else:
            found[key(tensor.numpy())] += 1
    return found


def all_tensors(graph_model: ir.Model) -> Iterator[Any]:
    graphs = list(graph_model.graphs())
    for function in graph_model.functions.values():
        graphs += [function.graph, *function.graph.subgraphs()]
    for graph in graphs:
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.value


def copy(source: OnnxSource, path: Path, **options: Any) -> Path:
    """Write what a source has, in small tiles."""
    with OnnxSink(path, source.model, list(source.tensors.values()), **options) as sink:
        for name in source.tensors:
            for tile in source.tiles(name, 700):
                sink.write(name, tile.array)
        sink.commit()
    return path


def resave(path: Path, to: Path, **options: Any) -> Path:
    with OnnxSource(path) as source:
        return copy(source, to, **options)


def infos(arrays: dict[str, np.ndarray]) -> list[TensorInfo]:
    return [TensorInfo(name, "F32", a.shape, a.nbytes) for name, a in arrays.items()]
