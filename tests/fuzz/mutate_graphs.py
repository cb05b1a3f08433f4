"""Mutants of rarer ONNX models: fused, quantized, recurrent, of half precision, with types, sparse and outside.

Kept apart from `mutate_onnx`, whose seeds stay what they were.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from mutate_onnx import NUMBERS, Mutator, _floats, _graphs, _model, _value, node
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = helper.make_opsetid("com.microsoft", 1)


def _codes(*shape: int, dtype: Any = np.int8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 100, shape).astype(dtype)


def _fused() -> Any:
    """What onnxruntime's own optimizer makes of BERT."""
    own = {"domain": "com.microsoft"}
    nodes = [
        node("EmbedLayerNormalization", ["ids", "", "words", "places", "", "g", "b"], ["e", ""], **own),
        node("Attention", ["e", "w", "bias"], ["a"], num_heads=4, **own),
        node("SkipLayerNormalization", ["e", "a", "g", "b"], ["s"], **own),
        node("FusedMatMul", ["s", "v"], ["f"], transB=1, alpha=0.5, **own),
        node("BiasGelu", ["f", "fb"], ["h"], **own),
        node("MatMulNBits", ["h", "q", "qs"], ["y"], K=64, N=32, bits=4, block_size=32, **own),
    ]
    weights = {"words": _floats(60, 32), "places": _floats(16, 32), "g": _floats(32), "b": _floats(32)}
    weights |= {"w": _floats(32, 96), "bias": _floats(96), "v": _floats(64, 32), "fb": _floats(64)}
    weights |= {"q": _codes(32, 2, 16, dtype=np.uint8), "qs": np.abs(_floats(64))}
    made: Any = _model(nodes, [_value("ids", [1, "l"], 6)], [_value("y", [1, "l", 32])], weights, imports=[MICROSOFT])
    return made


def _quantized() -> Any:
    """Codes with scales, by outputs and in blocks of 4 bits, beside float weights."""
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
        node("MatMul", ["xd", "w"], ["h"]),
        node("DequantizeLinear", ["q4", "s4"], ["w4"], axis=0, block_size=16),
        node("MatMul", ["h", "w4"], ["k"]),
        node("DynamicQuantizeLinear", ["k"], ["kq", "ks", "kz"]),
        node("MatMulInteger", ["kq", "qi", "kz"], ["i"]),
        node("Cast", ["i"], ["c"], to=1),
        node("Mul", ["c", "ks"], ["m"]),
        node("MatMul", ["m", "v"], ["y"]),
    ]
    weights = {"xs": np.float32(0.02), "xz": np.uint8(128), "q": _codes(32, 32), "s": np.abs(_floats(32))}
    weights |= {"s4": np.abs(_floats(2, 32)), "qi": _codes(32, 32), "v": _floats(32, 16)}
    proto: Any = _model(nodes, [_value("x", ["n", 32])], [_value("y", ["n", 16])], weights)
    proto.graph.initializer.append(helper.make_tensor("q4", TensorProto.UINT4, [32, 32], bytes(512), raw=True))
    return proto


def _recurrent() -> Any:
    nodes = [
        node(
            "GRU", ["x", "gw", "gr", "gb"], ["g", ""], hidden_size=16, direction="bidirectional", linear_before_reset=1
        ),
        node("Transpose", ["g"], ["t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["t", "flat"], ["f"]),
        node("RNN", ["f", "rw", "rr"], ["r"], hidden_size=16, activations=["Tanh"]),
        node("Squeeze", ["r", "one"], ["q"]),
        node("Slice", ["big", "zero", "cut", "one"], ["lw"]),
        node("LSTM", ["q", "lw", "lr", "", "lengths"], ["y", "", "c"], hidden_size=16),
        node("Einsum", ["y", "e"], ["z"], equation="tdbh,ho->tbo"),
    ]
    weights = {"gw": _floats(2, 48, 8), "gr": _floats(2, 48, 16), "gb": _floats(2, 96), "rw": _floats(1, 16, 32)}
    weights |= {"rr": _floats(1, 16, 16), "big": _floats(1, 80, 16), "lr": _floats(1, 64, 16), "e": _floats(16, 24)}
    weights |= {"flat": np.array([0, 0, -1]), "one": np.array([1]), "zero": np.array([0]), "cut": np.array([64])}
    outputs = [_value("z", ["t", "b", 24]), _value("c", [1, "b", 16])]
    made: Any = _model(nodes, [_value("x", ["t", "b", 8]), _value("lengths", ["b"], 6)], outputs, weights)
    return made


def _half() -> Any:
    nodes = [
        node("Cast", ["w"], ["wc"], to=10),
        node("Conv", ["x", "wc"], ["c"], pads=[1, 1]),
        node("ConvTranspose", ["c", "u"], ["t"], strides=[2], group=2),
        node("Cast", ["t"], ["f"], to=1),
        node("Transpose", ["f"], ["ft"], perm=[0, 2, 1]),
        node("Cast", ["b16"], ["b"], to=1),
        node("MatMul", ["ft", "b"], ["y"]),
    ]
    weights = {"w": _floats(16, 8, 3), "u": _floats(16, 16, 2).astype(np.float16)}
    inputs = [_value("x", ["n", 8, "l"], TensorProto.FLOAT16)]
    proto: Any = _model(nodes, inputs, [_value("y", ["n", "m", 16])], weights)
    proto.graph.initializer.append(helper.make_tensor("b16", TensorProto.BFLOAT16, [32, 16], bytes(1024), raw=True))
    return proto


def _bodies() -> Any:
    """Loop and Scan with weights of their own and of outside, a sequence between."""
    state = [_value("i", [], 7), _value("go", [], 9), _value("s", ["n", 16])]
    body = helper.make_graph(
        [node("MatMul", ["s", "w"], ["m"]), node("MatMul", ["m", "own"], ["t"]), node("Identity", ["go"], ["on"])],
        "loop", state, [_value("on", [], 9), _value("t", ["n", 16])], [numpy_helper.from_array(_floats(16, 16), "own")],
    )  # fmt: skip
    step = helper.make_graph(
        [node("MatMul", ["p", "w"], ["q"]), node("Add", ["q", "h"], ["o"]), node("Identity", ["o"], ["k"])],
        "scan", [_value("h", [2, 16]), _value("p", [2, 16])], [_value("o", [2, 16]), _value("k", [2, 16])],
    )  # fmt: skip
    nodes = [
        node("Loop", ["times", "", "x"], ["l"], body=body),
        node("SplitToSequence", ["l"], ["parts"], axis=0),
        node("ConcatFromSequence", ["parts"], ["joined"], axis=0, new_axis=0),
        node("Reshape", ["joined", "shape"], ["r"]),
        node("Scan", ["start", "r"], ["last", "y"], num_scan_inputs=1, body=step),
    ]
    weights = {"w": _floats(16, 16), "times": np.int64(2), "shape": np.array([-1, 2, 16]), "start": _floats(2, 16)}
    outputs = [_value("y", ["t", 2, 16]), _value("last", [2, 16])]
    made: Any = _model(nodes, [_value("x", ["n", 16])], outputs, weights, opset=17)
    return made


SEEDS: list[Callable[[], Any]] = [_fused, _quantized, _recurrent, _half, _bodies]
PLACES = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../m.onnx",
    "m.onnx",
    "nothing.bin",
    "a\0b",
    "x" * 300,
    "/dev/zero",
    "/proc/self/mem",
]


class GraphMutator(Mutator):
    """Makes mutants of these, by the changes of `Mutator` and by more."""

    seeds = SEEDS

    def mutant(self) -> bytes:
        """Return a model; in some of them a name is no text."""
        data = bytearray(super().mutant())
        if self._random.random() < 0.05:
            word = self._random.choice([b"MatMul", b"com.microsoft", b"words", b"axis", b"loop", b"perm"])
            at = data.find(word)
            if at >= 0:
                data[at : at + 2] = b"\xff\xfe"
        return bytes(data)

    def _change(self, proto: Any) -> None:
        if self._random.random() < 0.5:
            super()._change(proto)
            return
        graph = self._random.choice(list(_graphs(proto.graph)))
        changes = [self._outside, self._sparse, self._typed, self._training, self._twice, self._version, self._small]
        changes += [self._kind, self._kind]
        try:
            self._random.choice(changes)(proto, graph)
        except (IndexError, ValueError, TypeError):
            return

    def _outside(self, proto: Any, graph: Any) -> None:
        """Data in another file, or said to be there."""
        pick, tensor = self._random, self._random.choice(graph.initializer)
        size = len(tensor.raw_data)
        tensor.data_location = pick.choice([1, 1, 1, 2])
        if pick.random() < 0.9:
            tensor.ClearField("raw_data")
        for key, value in {
            "location": pick.choice(PLACES),
            "offset": str(pick.choice([0, 4096, *NUMBERS])),
            "length": str(pick.choice([size, *NUMBERS])) if pick.random() < 0.8 else pick.choice(["", "-", "1e3", "٣"]),
        }.items():
            if pick.random() < 0.8:
                tensor.external_data.add(key=key, value=value)

    def _sparse(self, proto: Any, graph: Any) -> None:
        pick, tensor = self._random, self._random.choice(graph.initializer)
        dims = list(tensor.dims)
        values = numpy_helper.from_array(np.ones(3, np.float32), tensor.name)
        indices = numpy_helper.from_array(np.array(pick.choice([[0, 1, 2], [5, 5, 5], [-1, 0, 1 << 40]])), "i")
        sparse = helper.make_sparse_tensor(values, indices, dims)
        if pick.random() < 0.7:
            graph.initializer.remove(tensor)
        if pick.random() < 0.7:
            graph.sparse_initializer.append(sparse)
        else:
            graph.node.add().CopyFrom(node("Constant", [], [tensor.name], sparse_value=sparse))

    def _typed(self, proto: Any, graph: Any) -> None:
        pick = self._random
        each = pick.choice([*graph.input, *graph.output, *graph.value_info])
        type_ = pick.choice(
            [each.type, helper.make_tensor_type_proto(pick.randrange(28), pick.choice([None, [], [3]]))]
        )
        for _ in range(pick.choice([1, 1, 2, 30])):
            make = pick.choice([helper.make_sequence_type_proto, helper.make_optional_type_proto, self._map])
            type_ = make(type_)
        each.type.CopyFrom(type_)

    def _map(self, type_: Any) -> Any:
        return helper.make_map_type_proto(self._random.choice([7, 8, 1, 0]), type_)

    def _training(self, proto: Any, graph: Any) -> None:
        info = proto.training_info.add()
        info.algorithm.CopyFrom(proto.graph)
        if self._random.random() < 0.5:
            info.initialization.CopyFrom(helper.make_graph([], "i", [], [], list(proto.graph.initializer)))
        info.update_binding.add(key="w", value=self._random.choice(["w", "nothing", ""]))

    def _twice(self, proto: Any, graph: Any) -> None:
        """A name that another value has, of the same graph or one around it."""
        pick = self._random
        tensor = pick.choice(proto.graph.initializer)
        what = pick.randrange(4)
        if what == 0:
            graph.initializer.add().CopyFrom(tensor)
        elif what == 1:
            graph.value_info.add().CopyFrom(_value(tensor.name, [pick.choice(NUMBERS)], pick.randrange(28)))
        elif what == 2:
            graph.output.add().CopyFrom(_value(tensor.name, list(tensor.dims), tensor.data_type))
        else:
            pick.choice(graph.node).output[0] = tensor.name

    def _version(self, proto: Any, graph: Any) -> None:
        for entry in proto.opset_import:
            if entry.domain == "":
                entry.version = self._random.randrange(6, 26)

    def _small(self, proto: Any, graph: Any) -> None:
        """Nothing, a number, or one row."""
        pick, tensor = self._random, self._random.choice(graph.initializer)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # which another change has made of it: there are no data
            return
        array = numpy_helper.to_array(tensor)
        new = pick.choice([array[:0], array[..., :0], array.reshape(-1)[:1].reshape(()), array[:1]])
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new).reshape(new.shape), tensor.name))

    def _kind(self, proto: Any, graph: Any) -> None:
        """Numbers of another kind, as many bytes as they take: floats of 8 bits, 4 and 2 bits, 16 bits, complex."""
        pick, tensor = self._random, self._random.choice(graph.initializer)
        kind = pick.choice([k for k in onnx.TensorProto.DataType.values() if k not in (0, 8)])
        bits = {14: 64, 15: 128, 1: 32, 6: 32, 12: 32, 7: 64, 11: 64, 13: 64, 4: 16, 5: 16, 10: 16, 16: 16}.get(kind, 8)
        bits = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}.get(kind, bits)
        count = int(np.prod(list(tensor.dims), dtype=object))
        tensor.CopyFrom(
            onnx.TensorProto(
                name=tensor.name, dims=list(tensor.dims), data_type=kind, raw_data=bytes(-(-count * bits // 8))
            )
        )
