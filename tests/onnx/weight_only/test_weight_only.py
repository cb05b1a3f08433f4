"""A graph rewritten to quantized weights computes what the float graph computes with those weights dequantized."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from modelopt_rs import UnsupportedError  # noqa: E402
from modelopt_rs.errors import OptionError  # noqa: E402
from modelopt_rs.files import TensorInfo  # noqa: E402
from modelopt_rs.files.onnx import OnnxSink, OnnxSource  # noqa: E402
from modelopt_rs.onnx import quantize_weights  # noqa: E402
from modelopt_rs.onnx.weight_only import plan  # noqa: E402
from modelopt_rs.planning.onnx import OnnxOptions  # noqa: E402
from modelopt_rs.planning.quantize import QuantizeOptions  # noqa: E402
from modelopt_rs.stream.execution import Execution  # noqa: E402
from modelopt_rs.stream.job import rewrite  # noqa: E402
from onnx_graphs import Quantized, dense, model, node, run, value, with_weight  # noqa: E402

EXACT = OnnxOptions(accuracy_level=0)
PORTABLE = OnnxOptions(target="portable")
SCHEMES = ("symmetric", "asymmetric")


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def off(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest difference over the largest value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True))


def matmul(k: int = 128, n: int = 264, dtype: Any = np.float32, opset: int = 17) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(
        [node("MatMul", ["x", "w"], ["y"], name="dense")],
        [value("x", ["b", k], element)],
        [value("y", ["b", n], element)],
        {"w": weights(k, n).astype(dtype)},
        opset=opset,
    )


def inputs(proto: onnx.ModelProto, batch: int = 3) -> dict[str, np.ndarray]:
    """Reproducible inputs; a symbolic dimension is `batch`."""
    feeds = {}
    for i, info in enumerate(proto.graph.input):
        shape = [d.dim_value or batch for d in info.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        x = np.random.default_rng(7 + i).normal(size=shape)
        feeds[info.name] = (np.abs(x) * 10).astype(dtype) if dtype.kind == "i" else x.astype(dtype)
    return feeds


class Case:
    """A model with the weight "w", and how it is cut into blocks: by 8 bits and by fewer, for each target."""

    def __init__(self, proto: onnx.ModelProto, axes: tuple[int, int], blocks: dict[tuple[str, int], int]) -> None:
        self.proto, (self.in_axis, self.out_axis), self.blocks = proto, axes, blocks


def _blocks(onnxruntime8: int, below: int) -> dict[tuple[str, int], int]:
    return {(target, bits): (onnxruntime8 if target == "onnxruntime" else 0) if bits == 8 else below
            for target in ("onnxruntime", "portable") for bits in (8, 4, 2)}  # fmt: skip


def _one(operator: str, w: np.ndarray, x: list[Any], y: list[Any], **attributes: Any) -> onnx.ModelProto:
    return model([node(operator, ["x", "w"], ["y"], **attributes)], [value("x", x)], [value("y", y)], {"w": w})


def _recurrent(operator: str, gates: int, dirs: int) -> onnx.ModelProto:
    made = node(operator, ["x", "w", "r"], ["y"], hidden_size=4, direction="bidirectional" if dirs == 2 else "forward")
    # So small that it stays: one weight changes at a time.
    r = weights(dirs, 4 * gates, 4, seed=1) * np.float32(0.1)
    arrays = {"w": weights(dirs, 4 * gates, 256), "r": r}
    return model([made], [value("x", [5, "b", 256])], [value("y", [5, dirs, "b", 4])], arrays)


CASES: dict[str, Callable[[], Case]] = {
    "MatMul": lambda: Case(matmul(), (0, 1), _blocks(128, 32)),
    "MatMul, 100 inputs": lambda: Case(matmul(100, 360), (0, 1), _blocks(128, 32)),
    "Gemm": lambda: Case(_one("Gemm", weights(128, 264), ["b", 128], ["b", 264]), (0, 1), _blocks(128, 32)),
    "Gemm, transB": lambda: Case(
        _one("Gemm", weights(264, 128), ["b", 128], ["b", 264], transB=1), (1, 0), _blocks(128, 32)
    ),
    "Conv": lambda: Case(_one("Conv", weights(16, 64, 3, 3), ["b", 64, 9, 9], ["b", 16, 7, 7]), (1, 0), _blocks(0, 32)),
    "Conv, depthwise": lambda: Case(
        _one("Conv", weights(256, 1, 3, 3), ["b", 256, 9, 9], ["b", 256, 7, 7], group=256), (1, 0), _blocks(0, 0)
    ),
    "Conv, 1-dimensional": lambda: Case(
        _one("Conv", weights(24, 48, 5), ["b", 48, 9], ["b", 24, 5]), (1, 0), _blocks(0, 16)
    ),
    "Conv, of points": lambda: Case(
        _one("Conv", weights(96, 64, 1, 1), ["b", 64, 9, 9], ["b", 96, 9, 9]), (1, 0), _blocks(0, 32)
    ),
    "ConvTranspose": lambda: Case(
        _one("ConvTranspose", weights(64, 10, 3, 3), ["b", 64, 9, 9], ["b", 10, 11, 11]), (0, 1), _blocks(0, 32)
    ),
    "LSTM": lambda: Case(_recurrent("LSTM", 4, 1), (2, 1), _blocks(0, 32)),
    "GRU, both directions": lambda: Case(_recurrent("GRU", 3, 2), (2, 1), _blocks(0, 32)),
    "Gather": lambda: Case(
        model(
            [node("Gather", ["w", "i"], ["y"])],
            [value("i", ["b", 2], TensorProto.INT64)],
            [value("y", ["b", 2, 64])],
            {"w": weights(80, 64)},
        ),
        (1, 0),
        _blocks(0, 32),
    ),
}


# Of the names, bits, schemes and targets each pair: what fails needs two of them at most.
WAYS = [
    (8, "symmetric", "onnxruntime"), (8, "asymmetric", "portable"), (4, "asymmetric", "onnxruntime"),
    (4, "symmetric", "portable"), (2, "symmetric", "onnxruntime"), (2, "asymmetric", "portable"),
]  # fmt: skip
TURNS = [((8, "onnxruntime"), (4, "portable")), ((8, "portable"), (4, "onnxruntime"))]
each_pair = pytest.mark.parametrize(
    ("name", "bits", "target"), [(name, *way) for i, name in enumerate(CASES) for way in TURNS[i % 2]]
)


def expected(case: Case, options: QuantizeOptions, block: int) -> onnx.ModelProto:
    change = lambda w: dense(w, options, block, case.in_axis, case.out_axis)  # noqa: E731
    return with_weight(case.proto, "w", change)


@pytest.mark.parametrize(("bits", "scheme", "target"), WAYS)
@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_with_the_weights_that_the_codes_stand_for(
    name: str, bits: int, scheme: str, target: str
) -> None:
    case, options = CASES[name](), QuantizeOptions(bits=bits, scheme=scheme)
    small = Quantized(case.proto, options, OnnxOptions(target=target, accuracy_level=0))
    assert small.decisions["w"].action == "quantize", small.decisions["w"].reason
    feeds = inputs(case.proto)
    want = run(expected(case, options, case.blocks[target, bits]), feeds)
    assert off(run(small.proto, feeds), want) < 2e-5, small.decisions["w"].reason
    assert off(run(case.proto, feeds), want) > 2e-5  # the tolerance can tell the float weights from their codes
    if target == "portable":
        assert [opset.domain for opset in small.proto.opset_import] == [""]


@each_pair
def test_scales_by_the_plain_formula_in_float32(name: str, bits: int, target: str) -> None:
    case, options = CASES[name](), QuantizeOptions(bits=bits, search=None, scale_dtype="float32")
    small = Quantized(case.proto, options, OnnxOptions(target=target, accuracy_level=0))
    assert "F16" not in {info.dtype for info in small.transforms["w"].outputs}
    want = run(expected(case, options, case.blocks[target, bits]), inputs(case.proto))
    assert off(run(small.proto, inputs(case.proto)), want) < 2e-5


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("name", CASES)
def test_h34_scales_of_16_bits_are_folded_and_cost_nothing_in_a_call(name: str, target: str, tmp_path: Path) -> None:
    """4 bits in blocks of 32 cost 4.5 bits a weight without zero points, and what runs is the same."""
    import onnxruntime

    case, options = CASES[name](), QuantizeOptions(bits=4, scheme="symmetric")
    small = Quantized(case.proto, options, OnnxOptions(target=target, accuracy_level=0))
    outputs = small.transforms["w"].outputs
    assert {info.dtype for info in outputs if "scale" in info.name} == {"F16"}
    if name in ("MatMul", "Gemm", "Gather", "Conv, of points", "Gemm, transB"):
        size = math.prod(next(t for t in case.proto.graph.initializer if t.name == "w").dims)
        assert 8 * sum(info.nbytes for info in outputs) == 4.5 * size
    session = onnxruntime.SessionOptions()
    session.optimized_model_filepath = str(tmp_path / "run.onnx")
    session.log_severity_level = 3
    onnxruntime.InferenceSession(small.proto.SerializeToString(), session, providers=["CPUExecutionProvider"])
    left = [n for n in onnx.load(tmp_path / "run.onnx").graph.node if n.name.endswith("scale_Cast")]
    assert not left


@pytest.mark.parametrize("name", ["MatMul", "Gemm, transB", "Conv", "GRU, both directions"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_one_scale_for_a_whole_tensor(name: str, scheme: str, bits: int) -> None:
    case, options = CASES[name](), QuantizeOptions(bits=bits, scheme=scheme)
    small = Quantized(case.proto, options, OnnxOptions(target="portable", per_tensor=True))
    # A matrix that is turned has a scale for each output all the same.
    axis = case.out_axis if name == "Gemm, transB" else None
    want = run(with_weight(case.proto, "w", lambda w: dense(w, options, 0, 0, axis)), inputs(case.proto))
    assert off(run(small.proto, inputs(case.proto)), want) < 2e-5


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [None, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(("trans_b", "target"), [(0, "onnxruntime"), (1, "portable")])
def test_gemm_keeps_its_factors_and_its_bias(alpha: float, beta: float | None, trans_b: int, target: str) -> None:
    shape = (264, 128) if trans_b else (128, 264)
    made = node("Gemm", ["x", "w"] if beta is None else ["x", "w", "c"], ["y"], alpha=alpha, transB=trans_b)
    if beta is not None:
        made.attribute.append(helper.make_attribute("beta", beta))
    arrays = {"w": weights(*shape)} | ({} if beta is None else {"c": weights(3, 1, seed=4)})
    proto = model([made], [value("x", [3, 128])], [value("y", [3, 264])], arrays)
    options, axes = QuantizeOptions(bits=4), ((1, 0) if trans_b else (0, 1))
    small = Quantized(proto, options, OnnxOptions(target=target, accuracy_level=0))
    assert "Gemm" not in small.operators
    want = run(with_weight(proto, "w", lambda w: dense(w, options, 32, *axes)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


def test_level_4_is_the_default_and_near() -> None:
    proto = matmul()
    small = Quantized(proto, QuantizeOptions(bits=4), OnnxOptions())
    # Scales of float16 are made float32 while a runtime loads the model.
    [cast, made] = small.proto.graph.node
    assert (cast.op_type, cast.output[0]) == ("Cast", made.input[2])
    assert {a.name: a.i for a in made.attribute} == {
        "K": 128, "N": 264, "bits": 4, "block_size": 32, "accuracy_level": 4,
    }  # fmt: skip
    want = run(with_weight(proto, "w", lambda w: dense(w, QuantizeOptions(bits=4), 32, 0, 1)), inputs(proto))
    assert 0 < off(run(small.proto, inputs(proto)), want) < 0.03


@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_every_group_size_works_or_is_refused(group_size: int, bits: int, target: str) -> None:
    proto, options = matmul(512, 264), QuantizeOptions(bits=bits, group_size=group_size)
    if bits == 2 and group_size in (16, 256):
        with pytest.raises(
            OptionError, match=r"^group_size must be 0 or one of 32, 64, 128 for an ONNX model of 2 bits"
        ):
            Quantized(proto, options, OnnxOptions(target=target))
        return
    small = Quantized(proto, options, OnnxOptions(target=target, accuracy_level=0))
    want = run(with_weight(proto, "w", lambda w: dense(w, options, group_size, 0, 1)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


def test_group_size_0_is_a_scale_for_each_output_also_for_onnxruntime() -> None:
    proto, options = matmul(opset=13), QuantizeOptions(bits=8, group_size=0)
    small = Quantized(proto, options, EXACT)
    assert small.operators == ["DequantizeLinear", "MatMul"]
    assert small.proto.opset_import[0].version == 13
    want = run(with_weight(proto, "w", lambda w: dense(w, options, 0, 0, 1)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("bits", [8, 4])
def test_float16_models_have_scales_of_float16(bits: int, target: str) -> None:
    proto, options = matmul(dtype=np.float16), QuantizeOptions(bits=bits)
    small = Quantized(proto, options, OnnxOptions(target=target, accuracy_level=0))
    assert [info.dtype for info in small.transforms["w"].outputs][1] == "F16"
    block = 32 if bits == 4 else 128 if target == "onnxruntime" else 0
    want = run(with_weight(proto, "w", lambda w: dense(w, options, block, 0, 1, np.float16)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-3


def test_float16_weights_behind_a_cast_have_scales_of_what_the_node_takes() -> None:
    nodes = [node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT), node("MatMul", ["x", "wide"], ["y"])]
    arrays = {"w": weights(128, 264).astype(np.float16)}
    proto = model(nodes, [value("x", ["b", 128])], [value("y", ["b", 264])], arrays)
    options = QuantizeOptions(bits=4)
    small = Quantized(proto, options, EXACT)
    assert small.operators == ["MatMulNBits"]
    plain = matmul()
    want = run(
        with_weight(plain, "w", lambda _: dense(arrays["w"].astype(np.float32), options, 32, 0, 1)), inputs(plain)
    )
    assert off(run(small.proto, inputs(plain)), want) < 2e-5


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_bfloat16_weights_behind_a_cast(target: str, trans_b: int) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    nodes = [
        node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        node("Gemm", ["x", "wide"], ["y"], transB=trans_b),
    ]
    shape = (264, 128) if trans_b else (128, 264)
    w = weights(*shape).astype(ml_dtypes.bfloat16)
    proto = model(nodes, [value("x", ["b", 128])], [value("y", ["b", 264])], {"w": w})
    options = QuantizeOptions(bits=8)
    small = Quantized(proto, options, OnnxOptions(target=target, accuracy_level=0))
    plain = _one("Gemm", w.astype(np.float32), ["b", 128], ["b", 264], transB=trans_b)
    block, axes = (128 if target == "onnxruntime" else 0), ((1, 0) if trans_b else (0, 1))
    want = run(with_weight(plain, "w", lambda w: dense(w, options, block, *axes)), inputs(plain))
    assert off(run(small.proto, inputs(plain)), want) < 2e-5


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_matrix_behind_a_transpose_is_stored_as_its_node_wants_it(bits: int, target: str) -> None:
    nodes = [
        node("Identity", ["w"], ["same"]),
        node("Transpose", ["same"], ["turned"], perm=[1, 0]),
        node("MatMul", ["x", "turned"], ["y"]),
    ]
    proto = model(nodes, [value("x", ["b", 128])], [value("y", ["b", 264])], {"w": weights(264, 128)})
    options = QuantizeOptions(bits=bits)
    small = Quantized(proto, options, OnnxOptions(target=target, accuracy_level=0))
    assert small.operators == (["MatMulNBits"] if target == "onnxruntime" else ["DequantizeLinear", "MatMul"])
    block = 32 if bits == 4 else 128 if target == "onnxruntime" else 0
    want = run(with_weight(proto, "w", lambda w: dense(w, options, block, 1, 0)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_convolution_behind_a_transpose_and_a_cast_keeps_the_transpose(bits: int, target: str) -> None:
    nodes = [
        node("Transpose", ["w"], ["turned"], perm=[3, 2, 0, 1]),
        node("Cast", ["turned"], ["wide"], to=TensorProto.FLOAT),
        node("Conv", ["x", "wide"], ["y"]),
    ]
    w = weights(3, 3, 64, 16).astype(np.float16)  # [kh, kw, in, out]
    proto = model(nodes, [value("x", ["b", 64, 9, 9])], [value("y", ["b", 16, 7, 7])], {"w": w})
    options = QuantizeOptions(bits=bits, scheme="asymmetric")
    small = Quantized(proto, options, OnnxOptions(target=target))
    assert small.operators[-2:] == ["Transpose", "Conv"]
    change = lambda w: dense(w.astype(np.float32), options, 32 if bits == 4 else 0, 2, 3)  # noqa: E731
    plain = model(
        [node("Transpose", ["w"], ["turned"], perm=[3, 2, 0, 1]), node("Conv", ["x", "turned"], ["y"])],
        [value("x", ["b", 64, 9, 9])], [value("y", ["b", 16, 7, 7])], {"w": w.astype(np.float32)},
    )  # fmt: skip
    want = run(with_weight(plain, "w", change), inputs(plain))
    assert off(run(small.proto, inputs(plain)), want) < 2e-5


def tied(rows: int = 600, columns: int = 64) -> onnx.ModelProto:
    """A table and a head that share one tensor."""
    nodes = [
        node("Gather", ["w", "i"], ["rows"]),
        node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        node("MatMul", ["rows", "turned"], ["y"]),
    ]
    indices = value("i", ["b", 4], TensorProto.INT64)
    return model(nodes, [indices], [value("y", ["b", 4, rows])], {"w": weights(rows, columns)})


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_table_and_a_head_share_one_quantized_copy_in_onnxruntime(bits: int, scheme: str) -> None:
    proto, options = tied(), QuantizeOptions(bits=bits, scheme=scheme)
    small = Quantized(proto, options, EXACT)
    assert small.operators == ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
    assert len(small.transforms["w"].outputs) == (2 if scheme == "symmetric" else 3)
    block = 64 if bits == 8 else 32
    want = run(with_weight(proto, "w", lambda w: dense(w, options, block, 1, 0)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


@pytest.mark.parametrize(
    ("bits", "scheme", "turned_first"),
    [(8, "symmetric", False), (8, "asymmetric", True), (4, "symmetric", True), (4, "asymmetric", False)],
)
@pytest.mark.parametrize(("rows", "columns"), [(200, 64), (300, 100), (90, 20), (600, 100), (700, 204)])
def test_small_tables_and_those_of_odd_width_share_one_copy_with_their_head_too(
    rows: int, columns: int, bits: int, scheme: str, turned_first: bool
) -> None:
    """A small head is folded into floats at load, with a scale for each row; blocks may be longer than a row."""
    proto = tied(rows, columns)
    if turned_first:
        proto.graph.node[2].input[0] = "z"
        proto.graph.input.append(value("z", ["b", 4, columns]))
        nodes = [proto.graph.node[i] for i in (1, 2, 0)]
        proto.graph.output.append(value("rows", ["b", 4, columns]))
        proto.graph.ClearField("node")
        proto.graph.node.extend(nodes)
    small = Quantized(proto, QuantizeOptions(bits=bits, scheme=scheme), EXACT)
    assert len(small.transforms["w"].outputs) == (2 if scheme == "symmetric" else 3)
    got, want = run(small.proto, inputs(proto)), run(proto, inputs(proto))
    assert max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got, want, strict=True)) < 0.2 / 16 ** (
        bits == 8
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_and_a_head_have_each_their_form_where_layouts_differ(bits: int) -> None:
    proto, options = tied(), QuantizeOptions(bits=bits)
    small = Quantized(proto, options, PORTABLE)
    names = [info.name for info in small.transforms["w"].outputs]
    points = [["w_zero_point"], ["w_zero_point_2"]] if bits < 8 else [[], []]
    assert names == ["w_quantized", "w_scale", *points[0], "w_quantized_2", "w_scale_2", *points[1]]
    assert "; " in small.decisions["w"].reason
    want = run(with_weight(proto, "w", lambda w: dense(w, options, 32 if bits == 4 else 0, 1, 0)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


def _branch(name: str) -> onnx.GraphProto:
    nodes = [node("Squeeze", ["x"], [f"{name}_x"], axes=[0]), node("MatMul", [f"{name}_x", "w"], [f"{name}_y"])]
    return helper.make_graph(nodes, name, [], [value(f"{name}_y", ["b", 264])])


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("bits", [4, 2])
def test_bodies_of_if_take_the_quantized_weight_and_the_opset_is_raised_in_them_too(bits: int, target: str) -> None:
    nodes = [node("If", ["c"], ["y"], then_branch=_branch("then"), else_branch=_branch("else"))]
    condition = value("c", [], TensorProto.BOOL)
    proto = model(
        nodes, [value("x", [1, "b", 128]), condition], [value("y", ["b", 264])], {"w": weights(128, 264)}, opset=11
    )
    options = QuantizeOptions(bits=bits)
    small = Quantized(proto, options, OnnxOptions(target=target, accuracy_level=0))
    have = {opset.domain: opset.version for opset in small.proto.opset_import}
    assert have == ({"": 11, "com.microsoft": 1} if target == "onnxruntime" else {"": {4: 21, 2: 25}[bits]})
    assert small.operators.count("DequantizeLinear") == 0  # which onnxruntime does not load before a MatMul in a body
    feeds = {"x": weights(1, 3, 128, seed=3), "c": np.array(True)}
    want = run(with_weight(proto, "w", lambda w: dense(w, options, 32, 0, 1)), feeds)
    assert off(run(small.proto, feeds), want) < 2e-5
    assert len(small.transforms) == 1


def in_branches(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of a model in both bodies of an If."""
    bodies = []
    for name in ("then", "else"):
        body = onnx.GraphProto()
        body.CopyFrom(proto.graph)
        for n in body.node:
            n.output[0] = f"{name}_{n.output[0]}"
        body.output[0].name = f"{name}_{body.output[0].name}"
        del body.input[:], body.initializer[:]
        bodies.append(body)
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    del made.graph.node[:]
    made.graph.node.append(node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1]))
    made.graph.input.append(value("c", [], TensorProto.BOOL))
    return made


@each_pair
def test_every_form_runs_in_bodies_of_if(name: str, bits: int, target: str) -> None:
    case, options = CASES[name](), QuantizeOptions(bits=bits)
    small = Quantized(in_branches(case.proto), options, OnnxOptions(target=target, accuracy_level=0))
    assert small.decisions["w"].action == "quantize"
    feeds = inputs(case.proto)
    want = run(expected(case, options, case.blocks[target, bits]), feeds)
    assert off(run(small.proto, feeds | {"c": np.array(True)}), want) < 2e-5, small.decisions["w"].reason


def test_a_body_of_scan_takes_the_quantized_weight() -> None:
    body = helper.make_graph(
        [node("MatMul", ["row", "w"], ["product"]), node("Add", ["state", "product"], ["next"])],
        "body",
        [value("state", [1, 264]), value("row", [1, 128])],
        [value("next", [1, 264])],
    )
    proto = model(
        [node("Scan", ["start", "x"], ["y"], body=body, num_scan_inputs=1)],
        [value("start", [1, 264]), value("x", [5, 1, 128])],
        [value("y", [1, 264])],
        {"w": weights(128, 264)},
    )
    options = QuantizeOptions(bits=4)
    small = Quantized(proto, options, EXACT)
    assert small.operators == ["Scan", "MatMulNBits", "Add"]
    want = run(with_weight(proto, "w", lambda w: dense(w, options, 32, 0, 1)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


def test_a_body_of_loop_takes_the_quantized_weight() -> None:
    body = helper.make_graph(
        [
            node("Identity", ["go"], ["go_on"]),
            node("MatMul", ["state", "w"], ["product"]),
            node("Tanh", ["product"], ["next"]),
        ],
        "body",
        [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", ["b", 192])],
        [value("go_on", [], TensorProto.BOOL), value("next", ["b", 192])],
    )
    ins = [value("n", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("x", ["b", 192])]
    proto = model(
        [node("Loop", ["n", "c", "x"], ["y"], body=body)], ins, [value("y", ["b", 192])], {"w": weights(192, 192) / 9}
    )
    options = QuantizeOptions(bits=4)
    small = Quantized(proto, options, EXACT)
    assert "MatMulNBits" in small.operators
    feeds = {"n": np.array(3), "c": np.array(True), "x": weights(2, 192, seed=3)}
    want = run(with_weight(proto, "w", lambda w: dense(w, options, 32, 0, 1)), feeds)
    assert off(run(small.proto, feeds), want) < 2e-5


@pytest.mark.parametrize(
    ("bits", "target", "operator", "opset"),
    [
        (8, "portable", "MatMul", 13),
        (4, "portable", "MatMul", 21),
        (2, "portable", "Conv", 25),
        (4, "portable", "Gather", 18),
        (8, "portable", "Gather", 11),
        (4, "onnxruntime", "MatMul", 11),
        (4, "onnxruntime", "Conv", 21),
        (8, "onnxruntime", "Conv", 11),
    ],
)
def test_the_opset_is_raised_to_what_the_form_needs(bits: int, target: str, operator: str, opset: int) -> None:
    case = CASES[operator]()
    case.proto.opset_import[0].version = 11
    case.proto.ir_version = 4
    small = Quantized(case.proto, QuantizeOptions(bits=bits), OnnxOptions(target=target))
    assert small.decisions["w"].action == "quantize"
    assert small.proto.opset_import[0].version == opset
    assert small.proto.ir_version >= helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    run(small.proto, inputs(case.proto))


def test_an_opset_that_is_asked_for_is_given() -> None:
    small = Quantized(matmul(), QuantizeOptions(), OnnxOptions(opset=23))
    assert small.proto.opset_import[0].version == 23


def test_what_a_model_says_of_itself_outlasts_a_new_opset() -> None:
    proto = matmul()
    proto.producer_name, proto.graph.doc_string = "tests", "two words"
    for owner in (proto, proto.graph):
        owner.metadata_props.add(key="author", value="me")
    small = Quantized(proto, QuantizeOptions(bits=4), PORTABLE).proto
    assert (small.producer_name, small.graph.doc_string, small.graph.name) == ("tests", "two words", "g")
    assert [p.value for p in small.metadata_props] == [p.value for p in small.graph.metadata_props] == ["me"]


def with_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a function, which the version converter can't take along."""
    opsets = [helper.make_opsetid("", proto.opset_import[0].version)]
    double = helper.make_function("local", "Double", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets)
    proto.functions.append(double)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(node("Double", ["y"], ["z"], domain="local"))
    proto.graph.output.append(value("z", ["b", 264]))
    proto.ir_version = 8
    return proto


def test_a_weight_whose_opset_can_not_be_had_has_more_bits() -> None:
    proto = with_function(matmul())
    small = Quantized(proto, QuantizeOptions(bits=4), PORTABLE)
    assert small.decisions["w"].reason == (
        "8 bits (DequantizeLinear, blocks of 32 needs opset 21, which onnx can't convert this model to): "
        "DequantizeLinear, a scale for each output"
    )
    run(small.proto, inputs(proto))
    assert small.proto.opset_import[0].version == 17
    with pytest.raises(ValueError, match=r"a model with functions \('Double'\) can't be converted to opset 21"):
        Quantized(proto, QuantizeOptions(bits=4), OnnxOptions(opset=21))


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("bits", [8, 4])
def test_nodes_that_sum_over_different_axes_do_not_share_what_has_scales_along_one(bits: int, target: str) -> None:
    proto = model(
        [node("Conv", ["x", "w"], ["y"]), node("ConvTranspose", ["x", "w"], ["z"])],
        [value("x", ["b", 32, 9, 9])],
        [value("y", ["b", 32, 7, 7]), value("z", ["b", 32, 11, 11])],
        {"w": weights(32, 32, 3, 3)},
    )
    small = Quantized(proto, QuantizeOptions(bits=bits), OnnxOptions(target=target))
    # A product of constants is the same for any node, and smaller than two copies of 4 bits.
    shared = target == "onnxruntime"
    options, block = QuantizeOptions(bits=8 if shared else bits), 32 if bits == 4 and not shared else 0
    assert len(small.transforms["w"].outputs) == (2 if shared else 6 if bits < 8 else 4)
    for i, axes in enumerate([(1, 0), (1, 0) if shared else (0, 1)]):
        want = run(with_weight(proto, "w", lambda w, axes=axes: dense(w, options, block, *axes)), inputs(proto))
        assert off([run(small.proto, inputs(proto))[i]], [want[i]]) < 2e-5


@pytest.mark.parametrize(("bits", "opset", "words"), [
    (4, 11, "8 bits (DequantizeLinear, blocks of 32 needs opset 21, which onnx can't convert this model to): Cast and"),
    (2, 21, "4 bits (DequantizeLinear, blocks of 32 needs opset 25, which onnx can't convert this model to): Dequant"),
])  # fmt: skip
def test_more_bits_are_of_the_opset_that_the_model_has(bits: int, opset: int, words: str) -> None:
    proto = with_function(matmul())
    proto.opset_import[0].version = opset
    proto.functions[0].opset_import[0].version = opset
    proto.ir_version = 10
    small = Quantized(proto, QuantizeOptions(bits=bits), PORTABLE)
    assert small.decisions["w"].reason.startswith(words)
    assert small.proto.opset_import[0].version == opset
    run(small.proto, inputs(proto))


def test_an_opset_that_onnxruntime_has_no_kernel_of_is_not_taken() -> None:
    """What is left of 2 bits there is 4 bits, not more: RoiAlign of opset 22 doesn't run."""
    proto = model(
        [
            node("Conv", ["x", "w"], ["maps"], pads=[1, 1, 1, 1]),
            node("RoiAlign", ["maps", "boxes", "batch"], ["y"], output_height=2, output_width=2),
        ],
        [value("x", [1, 32, 9, 9])],
        [value("y", [1, 32, 2, 2])],
        {
            "w": weights(32, 32, 3, 3),
            "boxes": np.array([[0, 0, 8, 8]], np.float32),
            "batch": np.zeros(1, np.int64),
        },
        opset=16,
    )
    for bits in (4, 2):
        small = Quantized(proto, QuantizeOptions(bits=bits), OnnxOptions())
        assert small.proto.opset_import[0].version == 21
        assert len(small.transforms) == 1
        run(small.proto, inputs(proto))
    assert small.decisions["w"].reason.startswith("4 bits (")


@pytest.mark.parametrize("opset", [-1, 0, 1])
def test_a_plan_ends_whatever_opset_a_model_says(opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """H38: an opset is asked for once for each that could do, and what needs none isn't left for ever."""
    proto = matmul()
    proto.opset_import[0].version = opset
    asked: list[int] = []

    def refuse(model: Any, opset: int) -> None:
        asked.append(opset)
        assert len(asked) < 4
        raise UnsupportedError("no")

    monkeypatch.setattr(plan, "raise_opset", refuse)
    graph = ir.serde.deserialize_model(proto)
    infos = {"w": TensorInfo("w", "F32", (128, 264), 128 * 264 * 4)}
    found = plan.plan_weights(graph, infos, QuantizeOptions(bits=2), PORTABLE)
    assert asked
    assert not [name for name, each in found.decisions.items() if each.action == "quantize"]


def test_nodes_without_names_are_found_again_when_the_opset_rises() -> None:
    """In both bodies of an If, and beside it; by rows and by columns."""

    def body(operator: str, **attributes: Any) -> onnx.GraphProto:
        return helper.make_graph(
            [node(operator, ["x", "w"], ["product"], **attributes)], "body", [], [value("product", ["b", 64])]
        )

    nodes = [
        node("If", ["c"], ["y"], then_branch=body("MatMul"), else_branch=body("Gemm", transB=1)),
        node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        node("MatMul", ["x", "turned"], ["by_columns"]),
        node("MatMul", ["x", "w"], ["by_rows"]),
    ]
    outs = [value(name, ["b", 64]) for name in ("y", "by_columns", "by_rows")]
    w = weights(64, 64)
    proto = model(nodes, [value("x", ["b", 64]), value("c", [], TensorProto.BOOL)], outs, {"w": w}, opset=12)
    options = QuantizeOptions(bits=4)
    small = Quantized(proto, options, PORTABLE)
    assert small.proto.opset_import[0].version == 21
    assert small.operators.count("DequantizeLinear") == 2
    x = weights(3, 64, seed=3)
    rows, columns = x @ dense(w, options, 32, 0, 1), x @ dense(w, options, 32, 1, 0).T
    for condition in (True, False):
        got = run(small.proto, {"x": x, "c": np.array(condition)})
        assert off(got, [rows if condition else columns, columns, rows]) < 2e-5


@pytest.mark.parametrize("convertible", [True, False])
def test_forms_are_chosen_once_where_they_need_a_later_opset(
    convertible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, choose = [], plan.choose
    monkeypatch.setattr(plan, "choose", lambda use, *args: seen.append(use.node.op_type) or choose(use, *args))
    proto = matmul() if convertible else with_function(matmul())
    small = Quantized(proto, QuantizeOptions(bits=4), PORTABLE)
    assert small.proto.opset_import[0].version == (21 if convertible else 17)
    assert seen == ["MatMul"] * (1 if convertible else 2)  # of 4 bits, and of 8 where 4 can't be had


@each_pair
def test_the_bytes_are_the_same_for_every_size_of_tiles_and_number_of_passes(name: str, target: str, bits: int) -> None:
    """f9, f10: also where a turned matrix does not fit the memory at once."""
    case = CASES[name]()
    options, onnx_options = QuantizeOptions(bits=bits, scheme="asymmetric"), OnnxOptions(target=target)
    whole = Quantized(case.proto, options, onnx_options)
    least = _least_memory(case.proto, options, onnx_options)
    little = Quantized(case.proto, options, onnx_options, max_memory=least)
    assert little.written == whole.written
    assert [t.figures.dd for t in little.transforms.values()] == pytest.approx(
        [t.figures.dd for t in whole.transforms.values()]
    )


def _least_memory(proto: onnx.ModelProto, options: QuantizeOptions, onnx_options: OnnxOptions) -> int:
    """Memory that is just enough: what the refusal of less asks for."""
    memory = 1
    while True:
        try:
            Quantized(proto, options, onnx_options, max_memory=memory)
        except OptionError as error:
            memory = int(str(error).split(" bytes, max_memory")[0].rsplit(" ", 1)[1].replace(",", ""))
        else:
            return memory


@pytest.mark.parametrize("name", ["MatMul", "Gemm, transB"])
def test_the_result_of_a_turned_matrix_is_kept_in_passes(name: str) -> None:
    """One kept whole, the other (Gemm for DequantizeLinear) by codes that are turned."""
    proto, onnx_options, memory = matmul(512, 264), EXACT, 170_000
    if name == "Gemm, transB":
        proto = _one("Gemm", weights(264, 512), ["b", 512], ["b", 264], transB=1)
        onnx_options, memory = PORTABLE, 600_000
    small = Quantized(proto, QuantizeOptions(bits=4), onnx_options, max_memory=memory)
    assert small.transforms["w"].sweeps > 1
    assert small.written == Quantized(proto, QuantizeOptions(bits=4), onnx_options).written


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("name", ["MatMul", "Gemm, transB", "Conv", "GRU, both directions", "Gather"])
def test_weights_that_are_not_finite_are_refused_or_saturate(name: str, target: str) -> None:
    case = CASES[name]()
    proto = with_weight(case.proto, "w", _poison)
    for bits in (8, 4):
        onnx_options = OnnxOptions(target=target)
        with pytest.raises(ValueError, match=r"tensor 'w', rows from \d+: .*non-finite"):
            Quantized(proto, QuantizeOptions(bits=bits), onnx_options)
        small = Quantized(proto, QuantizeOptions(bits=bits, nonfinite="saturate"), onnx_options)
        assert np.isfinite(run(small.proto, inputs(proto))[0]).all()


def _poison(w: np.ndarray) -> np.ndarray:
    w = w.copy()
    w.flat[[3, 40]] = np.nan, np.inf
    return w


def test_names_that_are_taken_get_a_number() -> None:
    nodes = [node("MatMul", ["x", "w"], ["w_quantized"]), node("Add", ["w_quantized", "w_scale"], ["y"])]
    proto = model(
        nodes, [value("x", ["b", 128])], [value("y", ["b", 264])], {"w": weights(128, 264), "w_scale": weights(264)}
    )
    small = Quantized(proto, QuantizeOptions(bits=4), EXACT)
    assert [info.name for info in small.transforms["w"].outputs] == ["w_quantized_2", "w_scale_2", "w_zero_point"]
    want = run(with_weight(proto, "w", lambda w: dense(w, QuantizeOptions(bits=4), 32, 0, 1)), inputs(proto))
    assert off(run(small.proto, inputs(proto)), want) < 2e-5


def test_a_weight_that_is_also_an_input_is_none_afterwards() -> None:
    proto = matmul()
    proto.graph.input.append(value("w", [128, 264]))
    proto.ir_version = 3
    small = Quantized(proto, QuantizeOptions(bits=4), EXACT)
    assert [info.name for info in small.proto.graph.input] == ["x"]
    assert small.proto.ir_version >= 4
    run(small.proto, {"x": weights(2, 128)})


def two() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "first"], ["h"]), node("MatMul", ["h", "second"], ["y"])]
    arrays = {"first": weights(128, 264), "second": weights(264, 128)}
    return model(nodes, [value("x", ["b", 128])], [value("y", ["b", 128])], arrays)


def test_globs_choose_weights() -> None:
    small = Quantized(two(), QuantizeOptions(exclude=["sec*"], include=["fir*"]), EXACT)
    assert [(d.action, d.reason) for d in small.decisions.values()] == [
        ("quantize", "included by 'fir*'"),
        ("copy", "excluded by 'sec*'"),
    ]
    assert list(small.transforms) == ["first"]
    assert "second" in small.model.graph.initializers
    with pytest.raises(OptionError, match="exclude 'third' matches no tensor"):
        Quantized(two(), QuantizeOptions(exclude=["third"]), EXACT)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_weights_of_other_bits_are_those_that_are_made_alone(target: str) -> None:
    """One pass with `bits_of` gives the bytes of two passes, each with one number of bits."""
    mixed = OnnxOptions(target=target, accuracy_level=0, bits_of={"sec*": 8, "*": 4})
    small = Quantized(two(), QuantizeOptions(bits=2), mixed)
    alone = OnnxOptions(target=target, accuracy_level=0)
    first = Quantized(two(), QuantizeOptions(bits=4, exclude=["second"]), alone)
    second = Quantized(two(), QuantizeOptions(bits=8, exclude=["first"]), alone)
    assert small.written == first.written | second.written
    assert [d.reason.partition(":")[0] for d in small.decisions.values()] == ["4 bits", "8 bits"]
    proto = two()
    assert off(run(small.proto, inputs(proto)), run(Quantized(first.proto, None, alone).proto, inputs(proto))) < 1e-5


def test_bits_of_that_have_no_effect_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^bits_of 'third' matches no tensor"):
        Quantized(two(), None, OnnxOptions(bits_of={"third": 4}))
    with pytest.raises(OptionError, match=r"^bits_of 'sec\*': tensor 'second' is not quantized: excluded by 'second'"):
        Quantized(two(), QuantizeOptions(exclude=["second"]), OnnxOptions(bits_of={"sec*": 4}))
    with pytest.raises(OptionError, match="group_size must be 0 or one of 32, 64, 128 for an ONNX model of 2 bits"):
        Quantized(two(), QuantizeOptions(group_size=256), OnnxOptions(bits_of={"second": 2}))


LEFT: dict[str, tuple[Callable[[], onnx.ModelProto], QuantizeOptions, OnnxOptions]] = {
    "dtype F64 is not one of F32, F16, BF16": (lambda: matmul(dtype=np.float64), QuantizeOptions(), EXACT),
    "also used by Add": (
        lambda: model(
            [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "w"], ["y"])],
            [value("x", [64, 64])], [value("y", [64, 64])], {"w": weights(64, 64)},
        ),
        QuantizeOptions(),
        EXACT,
    ),
    "also used by output": (
        lambda: model(
            [node("MatMul", ["x", "w"], ["y"]), node("Identity", ["w"], ["z"])],
            [value("x", [64, 64])], [value("y", [64, 64]), value("z", [64, 64])], {"w": weights(64, 64)},
        ),
        QuantizeOptions(),
        EXACT,
    ),
    "only 192 bytes": (lambda: matmul(4, 12), QuantizeOptions(), EXACT),
    "would not be smaller: 3,580 bytes instead of 1,200": (
        lambda: matmul(1, 300), QuantizeOptions(bits=4), EXACT,
    ),
    "a table that is turned before Gather": (
        lambda: model(
            [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("Gather", ["t", "i"], ["y"])],
            [value("i", [2], TensorProto.INT64)], [value("y", [2, 80])], {"w": weights(80, 64)},
        ),
        QuantizeOptions(),
        EXACT,
    ),
    "only 0 bytes": (
        lambda: model(
            [node("MatMul", ["x", "w"], ["y"])], [value("x", [2, 0])], [value("y", [2, 5])], {"w": weights(0, 5)}
        ),
        QuantizeOptions(),
        EXACT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", LEFT)
def test_what_can_not_be_quantized_is_left_with_a_reason(reason: str) -> None:
    make, options, onnx_options = LEFT[reason]
    proto = make()
    small = Quantized(proto, options, onnx_options)
    assert (small.decisions["w"].action, small.decisions["w"].reason) == ("copy", reason)
    assert small.transforms == {}
    assert small.operators == [n.op_type for n in proto.graph.node]


MORE: dict[str, tuple[Callable[[], onnx.ModelProto], int, str]] = {
    "4 bits (not 2: 262 outputs, no multiple of 4: onnxruntime multiplies by 2-bit weights of that width wrongly): "
    "DequantizeLinear, blocks of 32": (lambda: matmul(128, 262), 2, "portable"),
    "8 bits (not 4: rows of 65 codes of 4 bits do not end on a byte): Gather of codes, a scale for each row": (
        lambda: model(
            [node("Gather", ["w", "i"], ["y"])],
            [value("i", [2], TensorProto.INT64)], [value("y", [2, 65])], {"w": weights(80, 65)},
        ),
        4,
        "onnxruntime",
    ),
    "8 bits (4 bits would take 5,404 bytes, not 3,117): Cast and Mul, a scale for each output": (
        lambda: _one("ConvTranspose", weights(3, 5, 14, 14), ["b", 3, 9, 9], ["b", 5, 22, 22]),
        4,
        "onnxruntime",
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", MORE)
def test_a_weight_gets_more_bits_where_fewer_can_not_be_had_or_save_nothing(words: str) -> None:
    """H20."""
    make, bits, target = MORE[words]
    assert Quantized(make(), QuantizeOptions(bits=bits), OnnxOptions(target=target)).decisions["w"].reason == words


def test_small_layers_have_no_fewer_bits_than_save_more_than_their_nodes_take() -> None:
    """H20: the file, not the codes, gets smaller with fewer bits."""
    sizes = {}
    for bits in (8, 4, 2):
        small = Quantized(
            _one("Conv", weights(16, 16, 3, 3), ["b", 16, 9, 9], ["b", 16, 7, 7]),
            QuantizeOptions(bits=bits),
            OnnxOptions(target="onnxruntime"),
        )
        sizes[bits] = len(small.proto.SerializeToString())
    assert sizes[2] <= sizes[4] <= sizes[8]
    tiny = _one("Conv", weights(8, 4, 3, 3), ["b", 4, 9, 9], ["b", 8, 7, 7])
    for bits, made in ((8, 8), (4, 8), (2, 8)):
        reason = Quantized(tiny, QuantizeOptions(bits=bits), OnnxOptions(target="onnxruntime")).decisions["w"].reason
        assert reason.startswith(f"{made} bits (") == (bits != made)
        assert reason.endswith("Cast and Mul, a scale for each output")


RAGGED: dict[str, Callable[[], onnx.ModelProto]] = {
    "Conv": lambda: _one("Conv", weights(16, 3, 7, 7), ["b", 3, 9, 9], ["b", 16, 3, 3]),
    "Conv of 20 inputs": lambda: _one("Conv", weights(24, 20, 3, 3), ["b", 20, 9, 9], ["b", 24, 7, 7]),
    "Conv of 129 inputs": lambda: _one("Conv", weights(8, 129, 1), ["b", 129, 9], ["b", 8, 9]),
    "ConvTranspose": lambda: _one("ConvTranspose", weights(200, 8, 3, 3), ["b", 200, 9, 9], ["b", 8, 11, 11]),
    "Gather": lambda: model(
        [node("Gather", ["w", "i"], ["y"])],
        [value("i", [2], TensorProto.INT64)], [value("y", [2, 200])], {"w": weights(80, 200)},
    ),
    "Gather and head": lambda: model(
        [
            node("Gather", ["w", "i"], ["h"]),
            node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("MatMul", ["h", "t"], ["y"]),
        ],
        [value("i", [2], TensorProto.INT64)], [value("y", [2, 80])], {"w": weights(80, 200)},
    ),
    "LSTM": lambda: model(
        [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=30)],
        [value("x", [5, "b", 129])], [value("y", [5, 1, "b", 30])],
        {"w": weights(1, 120, 129) * np.float32(0.1), "r": weights(1, 120, 30, seed=1) * np.float32(0.1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("bits", "scheme", "target"), WAYS[2:])
@pytest.mark.parametrize("name", RAGGED)
def test_the_last_block_may_be_shorter(name: str, bits: int, target: str, scheme: str) -> None:
    """H20: inputs that no block divides; the model runs, and is not larger than that of more bits."""
    proto, sizes = RAGGED[name](), {}
    for n in (8, 4, 2):
        small = Quantized(proto, QuantizeOptions(bits=n, scheme=scheme), OnnxOptions(target=target, accuracy_level=0))
        assert small.decisions["w"].action == "quantize"
        sizes[n] = sum(part.nbytes for transform in small.transforms.values() for part in transform.outputs)
        if n == bits:
            feeds = inputs(proto)
            assert off(run(small.proto, feeds), run(proto, feeds)) < {4: 0.25, 2: 1.2}[n]
    assert sizes[2] <= sizes[4] <= sizes[8]


def test_a_node_that_computes_in_bfloat16_is_left() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    proto = matmul(dtype=ml_dtypes.bfloat16)
    reason = "MatMul 'dense' computes in BFLOAT16: onnxruntime has no such kernel for quantized weights"
    assert Quantized(proto, QuantizeOptions(), EXACT).decisions["w"].reason == reason


def test_indices_of_unknown_rank_are_left_where_the_form_needs_it() -> None:
    proto = CASES["Gather"]().proto
    del proto.graph.input[0], proto.graph.output[0]
    proto.graph.input.append(value("x", ["b", 2]))
    proto.graph.output.append(value("y", None))
    proto.graph.node.insert(0, node("Cast", ["x"], ["i"], to=TensorProto.INT64))
    small = Quantized(proto, QuantizeOptions(bits=4), PORTABLE, check=False)
    assert small.decisions["w"].reason == (
        "8 bits (not 4: Gather takes indices of a rank that the graph does not tell): "
        "Gather of codes, a scale for each row"
    )
    small = Quantized(proto, QuantizeOptions(bits=4), EXACT, check=False)
    assert small.operators == ["Cast", "GatherBlockQuantized"]
    small = Quantized(proto, QuantizeOptions(bits=8), PORTABLE, check=False)
    assert small.operators == ["Cast", "Gather", "Gather", "Cast", "Mul"]


@pytest.mark.parametrize(("head_bits", "opset"), [(4, 21), (8, 13)])
def test_a_conversion_infers_the_rank_of_indices_which_a_table_may_need(head_bits: int, opset: int) -> None:
    """The table's own opset, 18, is no reason for one."""
    nodes = [node("Cast", ["x"], ["i"], to=TensorProto.INT64), node("Gather", ["w", "i"], ["h"])]
    proto = model(
        [*nodes, node("MatMul", ["h", "v"], ["y"])],
        [value("x", ["b", 2])],
        [value("y", ["b", 2, 264])],
        {"w": weights(80, 64), "v": weights(64, 264)},
        opset=12,
    )
    bits_of = {"v": head_bits}
    small = Quantized(proto, QuantizeOptions(bits=4), OnnxOptions(target="portable", bits_of=bits_of))
    assert small.proto.opset_import[0].version == opset
    assert small.decisions["w"].reason == (
        "4 bits: Gather of codes, blocks of 32"
        if opset == 21
        else "8 bits (not 4: Gather takes indices of a rank that the graph does not tell): "
        "Gather of codes, a scale for each row"
    )
    assert small.decisions["v"].action == "quantize"
    feeds = {"x": np.array([[3, 5], [7, 9]], np.float32)}
    assert off(run(small.proto, feeds), run(proto, feeds)) < 0.2


def test_a_model_that_is_quantized_already_is_left() -> None:
    once = Quantized(matmul(opset=21), QuantizeOptions(), PORTABLE)
    again = Quantized(once.proto, QuantizeOptions(bits=4), PORTABLE)
    assert {name: d.reason for name, d in again.decisions.items()} == {
        "w_quantized": "quantized already (DequantizeLinear)",
        "w_scale": "quantized already (DequantizeLinear)",
    }
    assert again.proto.SerializeToString() == once.proto.SerializeToString()


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("external", [False, True])
def test_a_file_is_quantized_tile_by_tile(tmp_path: Path, external: bool, target: str) -> None:
    """The same bytes as from memory, whether the weights stand in the model or beside it."""
    proto, options, onnx_options = two(), QuantizeOptions(bits=4), OnnxOptions(target=target, accuracy_level=0)
    path, out = tmp_path / "model.onnx", tmp_path / "small.onnx"
    onnx.save(proto, path, save_as_external_data=external, location="model.data", size_threshold=0)
    with OnnxSource(path) as source:
        transforms, decisions = quantize_weights(source.model, source.tensors, options, onnx_options)
        assert {d.action for d in decisions.values()} == {"quantize"}
        infos = [info for transform in transforms.values() for info in transform.outputs]
        sink = OnnxSink(out, source.model, infos, durable=False)
        rewrite(source, sink, transforms, Execution(2**20, None, None, 0), verify=True)
    small = onnx.load(out)
    onnx.checker.check_model(small, full_check=True)
    proto = two()
    want = Quantized(proto, options, onnx_options)
    assert {t.name: t.raw_data for t in small.graph.initializer if t.name in want.written} == want.written
    assert off(run(small, inputs(proto)), run(want.proto, inputs(proto))) == 0.0


def test_nothing_is_read_of_large_tensors_when_the_graph_is_rewritten_and_converted() -> None:
    def refuse() -> Any:
        raise AssertionError("a large tensor was read")

    made = ir.from_proto(two())
    infos = {}
    for name, initializer in made.graph.initializers.items():
        shape = tuple(initializer.const_value.shape)
        initializer.const_value = ir.LazyTensor(refuse, ir.DataType.FLOAT, ir.Shape(shape), name=name)
        infos[name] = TensorInfo(name, "F32", shape, 4 * math.prod(shape))
    options = QuantizeOptions(bits=4, exclude=["second"])
    transforms, _ = quantize_weights(made, infos, options, PORTABLE)
    assert list(transforms) == ["first"]
    assert made.graph.opset_imports[""] == 21
    with pytest.raises(AssertionError, match="a large tensor was read"):
        made.graph.initializers["second"].const_value.numpy()


OPTIONS = {
    "target must be 'onnxruntime' or 'portable', got 'tensorrt'": {"target": "tensorrt"},
    "activations must be 'none', 'dynamic' or 'static', got 'int8'": {"activations": "int8"},
    "method must be 'minmax', 'moving_average', 'percentile', 'entropy' or 'mse', got 'mean'": {"method": "mean"},
    "accuracy_level must be from 0 to 4, got 5": {"accuracy_level": 5},
    "smooth must be from 0 to 1, got 2": {"smooth": 2.0},
    "opset must be from 7 to 26, got 99": {"opset": 99},
    "bits_of '*.w' must be 8, 4 or 2, got 3": {"bits_of": {"*.w": 3}},
    "bits_of needs activations 'none', got 'dynamic'": {"bits_of": {"*": 4}, "activations": "dynamic"},
    "per_tensor needs target 'portable'": {"per_tensor": True},
    "calibrate must be given with activations 'static', got none; give data": {"activations": "static"},
    "calibrate must be left out with activations 'none', got it": {"calibrate": "x", "activations": "none"},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_wrong_options_are_refused(message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}"):
        OnnxOptions(**OPTIONS[message])


def test_options_as_a_report_has_them() -> None:
    data = OnnxOptions(activations="static", calibrate={"x": np.ones(3)}).as_dict()
    assert (data["target"], data["calibrate"], data["opset"]) == ("onnxruntime", "dict", None)
    assert OnnxOptions().as_dict()["calibrate"] is None
    assert OnnxOptions(bits_of={"*.w": 8}).as_dict()["bits_of"] == {"*.w": 8}
    assert OnnxOptions(activations="static", calibrate="data.npz").as_dict()["calibrate"] == "data.npz"


def test_a_group_size_that_is_no_block_is_refused() -> None:
    with pytest.raises(
        OptionError, match="group_size must be 0 or one of 16, 32, 64, 128, 256 for an ONNX model of 8 bits, got 48"
    ):
        Quantized(matmul(), QuantizeOptions(group_size=48), EXACT)
