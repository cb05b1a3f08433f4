"""Mutants of ONNX models, made from what a model consists of: nodes, inputs, attributes, lengths, tensors, opsets."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

node = helper.make_node


def _floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _value(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray], **more: Any) -> Any:
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opset = more.pop("opset", 21)
    imports = [helper.make_opsetid("", opset), *more.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=10 if opset > 20 else 8, **more)


def _mlp() -> Any:
    nodes = [
        node("Transpose", ["w0"], ["t"], perm=[1, 0]),
        node("Gemm", ["x", "t", "b0"], ["h"], name="first"),
        node("Relu", ["h"], ["r"]),
        node("Identity", ["w1"], ["i"]),
        node("MatMul", ["r", "i"], ["m"], name="second"),
        node("Add", ["m", "b1"], ["y"]),
    ]
    weights = {"w0": _floats(32, 32), "b0": _floats(32), "w1": _floats(32, 16), "b1": _floats(16)}
    return _model(nodes, [_value("x", ["n", 32])], [_value("y", ["n", 16])], weights)


def _convolutions() -> Any:
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c"], pads=[1, 1, 1, 1], name="first"),
        node("BatchNormalization", ["c", "s", "o", "mean", "var"], ["n"], epsilon=1e-3),
        node("Clip", ["n", "low", "high"], ["r"]),
        node("Conv", ["r", "w1"], ["d"], group=16, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Split", ["d"], ["d0", "d1"], axis=1, num_outputs=2),
        node("Mul", ["d0", "d1"], ["m"]),
        node("GlobalAveragePool", ["m"], ["p"]),
        node("Flatten", ["p"], ["f"], axis=1),
        node("Gemm", ["f", "w2"], ["y"], transB=1, alpha=0.5),
    ]
    weights = {"w0": _floats(16, 4, 3, 3), "b0": _floats(16), "s": _floats(16), "o": _floats(16)}
    weights |= {"mean": _floats(16), "var": np.abs(_floats(16)), "w1": _floats(16, 1, 3, 3), "w2": _floats(40, 8)}
    weights |= {"low": np.float32(0), "high": np.float32(6)}
    return _model(nodes, [_value("x", [1, 4, 8, 8])], [_value("y", [1, 40])], weights)


def _attention() -> Any:
    """A layer with heads, whose shapes are computed, an embedding, and a norm."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("LayerNormalization", ["e", "g", "o"], ["n"], axis=-1),
        *(node("MatMul", ["n", f"w{k}"], [f"p{k}"]) for k in "qkv"),
        node("Shape", ["n"], ["s"]),
        node("Gather", ["s", "zero"], ["b"]),
        node("Gather", ["s", "one"], ["l"]),
        node("Concat", ["b", "l", "four", "eight"], ["heads"], axis=0),
        *(node("Reshape", [f"p{k}", "heads"], [f"r{k}"]) for k in "qkv"),
        *(node("Transpose", [f"r{k}"], [f"t{k}"], perm=[0, 2, 1, 3]) for k in "qv"),
        node("Transpose", ["rk"], ["tk"], perm=[0, 2, 3, 1]),
        node("MatMul", ["tq", "tk"], ["scores"]),
        node("Softmax", ["scores"], ["soft"], axis=-1),
        node("MatMul", ["soft", "tv"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "flat"], ["joined"]),
        node("MatMul", ["joined", "wo"], ["a"]),
        node("Add", ["a", "e"], ["y"]),
    ]
    weights = {"table": _floats(60, 32), "g": _floats(32), "o": _floats(32), "flat": np.array([0, -1, 32])}
    weights |= {f"w{k}": _floats(32, 32, seed=i) for i, k in enumerate("qkvo")}
    weights |= {name: np.array([n]) for name, n in {"zero": 0, "one": 1, "four": 4, "eight": 8}.items()}
    return _model(nodes, [_value("ids", ["b", "l"], 7)], [_value("y", ["b", "l", 32])], weights)


def _bodies() -> Any:
    """An If whose bodies have weights, and an LSTM; of an opset that 4 bits must raise."""
    then = helper.make_graph(
        [
            node("Constant", [], ["w"], value=numpy_helper.from_array(_floats(32, 32))),
            node("MatMul", ["h", "w"], ["o"]),
        ],
        "then",
        [],
        [_value("o", ["n", 1, 32])],
    )
    other = helper.make_graph(
        [node("MatMul", ["h", "v"], ["o"])],
        "else",
        [],
        [_value("o", ["n", 1, 32])],
        [numpy_helper.from_array(_floats(32, 32), "v")],
    )
    nodes = [
        node("LSTM", ["x", "lw", "lr"], ["", "h"], hidden_size=32),
        node("Squeeze", ["h", "axes"], ["q"]),
        node("ReduceMean", ["q"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"lw": _floats(1, 128, 16), "lr": _floats(1, 128, 32), "axes": np.array([0]), "zero": np.float32(0)}
    return _model(nodes, [_value("x", ["n", 1, 16])], [_value("y", ["n", 1, 32])], weights, opset=17)


def _functions() -> Any:
    body = [node("MatMul", ["a", "w"], ["m"]), node("Relu", ["m"], ["o"])]
    inner = helper.make_function("own", "layer", ["a", "w"], ["o"], body, [helper.make_opsetid("", 21)])
    calls = [node("layer", ["a", "w"], ["b"], domain="own"), node("Tanh", ["b"], ["o"])]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    outer = helper.make_function("own", "block", ["a", "w"], ["o"], calls, imports)
    nodes = [
        node("block", ["x", "w0"], ["h"], domain="own"),
        node("MatMul", ["h", "w1"], ["m"]),
        node("Gelu", ["m"], ["g"], domain="com.microsoft"),
        node("block", ["g", "w0"], ["y"], domain="own"),
    ]
    weights = {"w0": _floats(32, 32), "w1": _floats(32, 32)}
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("com.microsoft", 1)]
    more = {"functions": [inner, outer], "imports": imports}
    return _model(nodes, [_value("x", ["n", 32])], [_value("y", ["n", 32])], weights, **more)


SEEDS: list[Callable[[], Any]] = [_mlp, _convolutions, _attention, _bodies, _functions]
NUMBERS = [0, 1, -1, 2, 3, 7, 16, 17, 31, 32, 33, 64, 255, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, -(1 << 63)]
OPERATORS = [
    "Identity",
    "Transpose",
    "Cast",
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "Gather",
    "LSTM",
    "GRU",
    "Reshape",
    "Slice",
    "Split",
    "Concat",
    "Shape",
    "Relu",
    "Add",
    "Mul",
    "Softmax",
    "LayerNormalization",
    "BatchNormalization",
    "Squeeze",
    "Unsqueeze",
    "Pad",
    "Resize",
    "Constant",
    "ConstantOfShape",
    "Expand",
    "Where",
    "ReduceMean",
    "Flatten",
    "If",
    "Loop",
    "Scan",
    "Einsum",
    "DequantizeLinear",
    "QuantizeLinear",
    "Dropout",
    "TopK",
    "Tile",
    "Range",
]


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for each in graph.node:
        for attribute in each.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


class Mutator:
    """Makes mutants of models; the same seed makes the same."""

    seeds = SEEDS

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def mutant(self) -> bytes:
        """Return a model, changed in one to four places; of some the bytes are changed as well."""
        proto = self._random.choice(self.seeds)()
        for _ in range(self._random.choice((1, 1, 1, 2, 2, 3, 4))):
            self._change(proto)
        data = bytearray(proto.SerializeToString())
        if self._random.random() < 0.05:
            for _ in range(self._random.randint(1, 4)):
                data[self._random.randrange(len(data))] = self._random.randrange(256)
        if self._random.random() < 0.01:
            del data[self._random.randrange(len(data)) :]
        return bytes(data)

    def _change(self, proto: Any) -> None:
        pick = self._random
        graphs = list(_graphs(proto.graph))
        graph = pick.choice([*graphs, *graphs, *proto.functions])
        is_graph = hasattr(graph, "initializer")
        changes = [self._input, self._input, self._output, self._attribute, self._attribute, self._operator]
        changes += [self._order, self._chain, self._model]
        changes += [self._tensor, self._tensor, self._type, self._subgraph] if is_graph else []
        try:
            pick.choice(changes)(proto, graph)
        except (IndexError, ValueError, TypeError):  # what can't be written, or isn't there, is no mutant
            return

    def _names(self, proto: Any, graph: Any) -> list[str]:
        names = [name for each in graph.node for name in (*each.input, *each.output)]
        names += [tensor.name for tensor in proto.graph.initializer]
        return [*names, "", "nothing"]

    def _input(self, proto: Any, graph: Any) -> None:
        pick, each = self._random, self._random.choice(graph.node)
        what = pick.randrange(4)
        if what == 0:
            each.input.append(pick.choice(self._names(proto, graph)))
        elif what == 1:
            del each.input[pick.randrange(len(each.input))]
        elif what == 2:
            pick.shuffle(inputs := list(each.input))
            each.input[:] = inputs
        else:
            each.input[pick.randrange(len(each.input))] = pick.choice(self._names(proto, graph))

    def _output(self, proto: Any, graph: Any) -> None:
        pick, each = self._random, self._random.choice(graph.node)
        what = pick.randrange(3)
        if what == 0:
            each.output.append(pick.choice([*self._names(proto, graph), "fresh"]))
        elif what == 1:
            del each.output[pick.randrange(len(each.output))]
        else:
            each.output[pick.randrange(len(each.output))] = pick.choice([*self._names(proto, graph), *each.input])

    def _attribute(self, proto: Any, graph: Any) -> None:
        pick, each = self._random, self._random.choice(graph.node)
        names = [
            "perm",
            "axis",
            "axes",
            "to",
            "transA",
            "transB",
            "group",
            "alpha",
            "block_size",
            "split",
            "keepdims",
            "pads",
            "start",
            "end",
            "allowzero",
        ]
        names += ["hidden_size", "num_outputs", "epsilon", "value", "kernel_shape", "direction", "equation", "mode"]
        if each.attribute and pick.random() < 0.7:
            old = pick.choice(each.attribute)
            if pick.random() < 0.2:
                each.attribute.remove(old)
                return
            if old.ints and pick.random() < 0.6:
                old.ints[pick.randrange(len(old.ints))] = pick.choice(NUMBERS)
                return
            if old.type == onnx.AttributeProto.INT and pick.random() < 0.5:
                old.i = pick.choice(NUMBERS)
                return
            name = old.name
            each.attribute.remove(old)
        else:
            name = pick.choice(names)
        new = each.attribute.add()
        new.CopyFrom(helper.make_attribute(name, self._anything()))
        if pick.random() < 0.05:
            new.type = pick.randrange(16)
        if pick.random() < 0.05:
            new.ref_attr_name = "other"

    def _anything(self) -> Any:
        pick = self._random
        array = np.array([pick.choice([0, 1, -1, 32]) for _ in range(pick.randrange(1, 5))])
        every: list[Callable[[], Any]] = [
            lambda: pick.choice(NUMBERS),
            lambda: [pick.choice(NUMBERS) for _ in range(pick.randrange(1, 6))],
            lambda: pick.choice([0.5, -1.0, float("nan"), float("inf"), 1e300 * 0]),
            lambda: [0.5, float("nan")],
            lambda: pick.choice(["", "abc", "NOTSET", "bidirectional", "ij,jk->ik"]),
            lambda: ["a", "b"],
            lambda: numpy_helper.from_array(pick.choice([array, array.astype(np.float32), _floats(32, 32)]), "t"),
            lambda: helper.make_graph([], "empty", [], []),
        ]
        return pick.choice(every)()

    def _operator(self, proto: Any, graph: Any) -> None:
        pick, each = self._random, self._random.choice(graph.node)
        if pick.random() < 0.8:
            each.op_type = pick.choice([*OPERATORS, "", "layer", "block", "\udc00" if pick.random() < 0 else "X" * 300])
        else:
            each.domain = pick.choice(["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "own", "stranger"])

    def _order(self, proto: Any, graph: Any) -> None:
        pick, nodes = self._random, list(self._random.sample(list(graph.node), len(graph.node)))
        what = pick.randrange(4)
        if what == 0:
            copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
            del graph.node[:]
            graph.node.extend(copies)
        elif what == 1:
            del graph.node[pick.randrange(len(graph.node))]
        elif what == 2:
            graph.node.add().CopyFrom(pick.choice(nodes))
        else:
            each = pick.choice(nodes)
            each.input[pick.randrange(len(each.input))] = pick.choice(pick.choice(nodes).output)

    def _chain(self, proto: Any, graph: Any) -> None:
        """A long chain before an input: what walks it by paths never ends."""
        pick, each = self._random, self._random.choice(graph.node)
        at = pick.randrange(len(each.input))
        name, kind = each.input[at], pick.choice(["Identity", "Add", "Mul", "Transpose", "Cast", "Concat"])
        count, tag = pick.choice([2, 40, 200]), pick.randrange(1 << 30)
        for i in range(count):
            inputs = [name, name] if kind in ("Add", "Mul", "Concat") or pick.random() < 0.1 else [name]
            name = f"chain_{tag}_{i}"
            graph.node.add().CopyFrom(
                node(kind, inputs, [name], **{"Cast": {"to": 1}, "Concat": {"axis": 0}}.get(kind, {}))
            )
        each.input[at] = name

    def _model(self, proto: Any, graph: Any) -> None:
        pick = self._random
        what = pick.randrange(5)
        if what == 0:
            imports = pick.choice([proto, *proto.functions]).opset_import
            pick.choice(imports).version = pick.choice([0, 1, 5, 6, 7, 9, 11, 12, 13, 17, 18, 21, 23, 99, -1, 1 << 40])
        elif what == 1:
            domain = pick.choice(["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "other"])
            proto.opset_import.add(domain=domain, version=pick.choice([1, 13, 17, 21]))
        elif what == 2:
            del proto.opset_import[pick.randrange(len(proto.opset_import))]
        elif what == 3:
            proto.ir_version = pick.choice([0, 3, 4, 7, 8, 9, 10, 11, 99])
        elif proto.functions:
            function = pick.choice(proto.functions)
            function.node.add().CopyFrom(
                node(pick.choice(["layer", "block"]), list(function.input), ["z"], domain="own")
            )

    def _tensor(self, proto: Any, graph: Any) -> None:
        pick, tensor = self._random, self._random.choice(graph.initializer)
        what = pick.randrange(6)
        if what == 0:
            tensor.dims[pick.randrange(len(tensor.dims))] = pick.choice(NUMBERS)
        elif what == 1:
            tensor.dims[:] = pick.choice(
                [[], [tensor.dims[0], -1], [*tensor.dims, 1], [1, *tensor.dims], list(tensor.dims)[::-1]]
            )
        elif what == 2:
            tensor.data_type = pick.randrange(28)
        elif what == 3:
            data = bytearray(tensor.raw_data)
            place = pick.randrange(len(data)) // 4 * 4
            data[place : place + 4] = np.float32(pick.choice([np.nan, np.inf, -np.inf, 1e38, 1e-45, 0])).tobytes()
            tensor.raw_data = bytes(data)
        elif what == 4:
            array = numpy_helper.to_array(tensor)
            new = pick.choice(
                [array.astype(np.float16), array.astype(np.float64), array.astype(np.int64), np.repeat(array, 2, 0)]
            )
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), tensor.name))
        else:
            shape = pick.choice([list(tensor.dims), [*tensor.dims, 2], [pick.choice(NUMBERS)]])
            graph.input.add().CopyFrom(_value(tensor.name, shape, tensor.data_type))

    def _type(self, proto: Any, graph: Any) -> None:
        pick, each = self._random, self._random.choice([*graph.input, *graph.output])
        what = pick.randrange(6)
        if what == 0:
            each.type.tensor_type.ClearField("shape")
        elif what == 1:
            each.type.ClearField("tensor_type")
        elif what == 2:
            dims = each.type.tensor_type.shape.dim
            dims[pick.randrange(len(dims))].dim_value = pick.choice(NUMBERS)
        elif what == 3:
            each.type.tensor_type.elem_type = pick.randrange(28)
        elif what == 4:
            each.name = pick.choice(self._names(proto, graph))
        else:
            graph.value_info.add().CopyFrom(
                _value(
                    pick.choice(self._names(proto, graph)) or "v",
                    [pick.choice(NUMBERS) for _ in range(pick.randrange(4))],
                )
            )

    def _subgraph(self, proto: Any, graph: Any) -> None:
        """A body, at times with the graph around it in it."""
        pick, inner = self._random, onnx.GraphProto()
        inner.CopyFrom(pick.choice(list(_graphs(proto.graph))))
        if pick.random() < 0.5:
            del inner.input[:]
        names = [value.name for value in inner.output]
        outputs = [f"body_{i}_{pick.randrange(1000)}" for i in range(len(names))]
        kind = pick.choice(["If", "Loop", "Scan"])
        bodies = {"then_branch": inner, "else_branch": inner} if kind == "If" else {"body": inner}
        inputs = [pick.choice(self._names(proto, graph)) for _ in range(1 if kind == "If" else 3)]
        graph.node.add().CopyFrom(node(kind, inputs, outputs, **bodies))
