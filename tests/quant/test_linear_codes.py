"""Codes with given scales: ONNX's own test data, onnxruntime, TensorFlow Lite, and the plain formula."""

import importlib
import itertools

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo
from modelopt_rs import _core

WHOLE = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2")
FLOATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn")
LIMITS = {
    name: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if name[0] == "i" else (0, 2**bits - 1)
    for name, bits in zip(WHOLE, (8, 8, 16, 16, 4, 4, 2, 2), strict=True)
}
RNG = np.random.default_rng(14)


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def formula(x, scale, zero_point, name, rounding="even"):
    """The plain formula: a quotient in float32, then in float64, where nothing is rounded."""
    low, high = LIMITS[name]
    with np.errstate(over="ignore", invalid="ignore"):
        t = (x.astype(np.float32) / scale).astype(np.float64)
    t = np.where(np.isnan(t), 0, t)
    t = np.rint(t) if rounding == "even" else np.where(np.isinf(t), t, np.copysign(np.floor(np.abs(t) + 0.5), t))
    return np.clip(t + zero_point, low, high).astype(np.int64)


def onnx_cases(op, monkeypatch):
    """Node, inputs and outputs of each of ONNX's own tests of an operator."""
    onnx = pytest.importorskip("onnx")
    module = importlib.import_module(f"onnx.backend.test.case.node.{op.lower()}")
    cases = []

    def expect(node, inputs, outputs, name, **_options):
        arrays = (
            [onnx.numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else np.asarray(a) for a in given]
            for given in (inputs, outputs)
        )
        cases.append((name, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}, *arrays))

    monkeypatch.setattr(module, "expect", expect)
    exports = getattr(module, op)
    for each in dir(exports):
        if each.startswith("export"):
            getattr(exports, each)()
    return cases


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
def test_the_operators_own_test_data_come_out_bit_for_bit(op, monkeypatch):
    from onnx import helper

    cases = onnx_cases(op, monkeypatch)
    assert len(cases) >= 12
    for name, attributes, (x, scale, *rest), (want, *_) in cases:
        zero_point = rest[0] if rest else None
        options = {}
        if np.size(scale) > 1:
            options["axis"] = attributes.get("axis", 1)
        if attributes.get("block_size"):
            options["group_size"] = attributes["block_size"]
        if op == "QuantizeLinear":
            if attributes.get("output_dtype"):
                options["dtype"] = helper.tensor_dtype_to_np_dtype(attributes["output_dtype"])
            got = mo.quant.quantize_linear(x, scale, zero_point, **options)
        else:
            got = mo.quant.dequantize_linear(x, scale, zero_point, dtype=want.dtype, **options)
        assert got.dtype == want.dtype, name
        if "float4" in name:  # their list has 0 for what rounds to -0
            got, want = got.astype(np.float32) + 0, want.astype(np.float32) + 0
        assert got.tobytes() == want.tobytes(), name


def session(op, inputs, attributes):
    """onnxruntime's result."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper = onnx.helper
    names = ["x", "scale", "zero_point"][: len(inputs)]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in zip(names, inputs, strict=True)
    ]
    out_type = inputs[2].dtype if op == "QuantizeLinear" else inputs[1].dtype
    output = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(out_type), None)
    node = helper.make_node(op, names, ["y"], **attributes)
    model = helper.make_model(
        helper.make_graph([node], "g", infos, [output]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    run = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return run.run(None, dict(zip(names, inputs, strict=True)))[0]


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("layout", ["whole", "axis", "blocks"])
def test_onnxruntime_has_the_same_bits_for_random_shapes(name, layout):
    for shape in [(7,), (3, 50), (2, 3, 17), (4, 64, 9), (5, 1, 33)]:
        axis = int(RNG.integers(len(shape)))
        x = (RNG.standard_normal(shape) * 40).astype(np.float32)
        form, attributes = (), {}
        if layout != "whole":
            attributes["axis"] = axis
            form = (shape[axis],)
        if layout == "blocks":
            size = attributes["block_size"] = 4
            form = tuple(-(-n // size) if i == axis else n for i, n in enumerate(shape))
        scale = RNG.uniform(0.01, 0.6, form).astype(np.float32)
        zero_point = RNG.integers(*LIMITS[name], form).astype(name)
        options = {"group_size" if name == "block_size" else name: value for name, value in attributes.items()}
        got = mo.quant.quantize_linear(x, scale, zero_point, **options)
        want = session("QuantizeLinear", [x, scale, zero_point], attributes)
        assert got.dtype == want.dtype
        assert (got == want).all()
        back = mo.quant.dequantize_linear(got, scale, zero_point, **options)
        assert back.tobytes() == session("DequantizeLinear", [got, scale, zero_point], attributes).tobytes()


def isas():
    before = _core.isa()
    for isa in ("portable", "avx2", "avx512"):
        try:
            _core.set_isa(isa)
        except ValueError:
            continue
        yield isa
    _core.set_isa(before)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("rounding", ["even", "away"])
def test_all_16_bit_floats_get_the_codes_of_the_formula_by_every_instruction_set(name, rounding):
    bits = np.arange(2**16, dtype=np.uint16)
    low, high = LIMITS[name]
    for x in (bits.view(np.float16), bits.view(ml_dtypes.bfloat16)):
        for scale, zero_point in ((0.5, 0), (np.float32(0.1), high), (np.float32(1e-39), 1), (np.float32(-3.0), low)):
            zero_point = max(low, min(high, zero_point))
            want = formula(x, np.float32(scale), zero_point, name, rounding)
            for _ in isas():
                for threads in (1, 2):
                    options = {"rounding": rounding, "threads": threads}
                    own = mo.quant.quantize_linear(x, scale, zero_point, dtype=dtype_of(name), **options)
                    plain = mo.quant.quantize_linear(x, scale, zero_point, dtype=name, **options)
                    assert own.dtype == dtype_of(name)
                    assert (own.astype(np.int64) == want).all()
                    assert (plain.astype(np.int64) == want).all()
            back = mo.quant.dequantize_linear(own, scale, zero_point)
            assert back.tobytes() == ((want - zero_point).astype(np.float32) * np.float32(scale)).tobytes()


@pytest.mark.parametrize("name", FLOATS)
def test_codes_that_are_floats_are_those_of_ml_dtypes_within_the_largest(name):
    kind = dtype_of(name)
    largest = np.float32(ml_dtypes.finfo(kind).max)
    x = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    scale = np.float32(0.37)
    with np.errstate(over="ignore", invalid="ignore"):
        want = np.clip(x / scale, -largest, largest)
    want = np.where(np.isnan(want), 0, want) if name == "float4_e2m1fn" else want
    want = want.astype(kind)
    for _ in isas():
        got = mo.quant.quantize_linear(x, scale, dtype=kind)
        nan = np.isnan(want.astype(np.float32))
        assert (np.isnan(got.astype(np.float32)) == nan).all()
        assert (got.view(np.uint8)[~nan] == want.view(np.uint8)[~nan]).all()
    plain = mo.quant.quantize_linear(x, scale, dtype=name)
    assert plain.dtype == np.uint8
    assert (plain == got.view(np.uint8)).all()
    numbers = got.astype(np.float32) * scale
    assert np.array_equal(mo.quant.dequantize_linear(got, scale), numbers, equal_nan=True)
    assert np.array_equal(mo.quant.dequantize_linear(plain, scale, q_dtype=name), numbers, equal_nan=True)


def of_tensorflow_lite(operator, source, target, x, kernels):
    """Run one operator of TensorFlow Lite; source and target: a type, and (scale, zero point) or None."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    flatbuffers = pytest.importorskip("flatbuffers")
    code, node, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, operator)
    code.version, node.opcodeIndex, node.inputs, node.outputs = 1, 0, [0], [1]
    tensors = []
    for name, (dtype, params) in (("x", source), ("y", target)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), list(x.shape), 0
        tensor.type = getattr(schema.TensorType, dtype.upper())
        if params:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [params[0]], [params[1]]
        tensors.append(tensor)
    graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [1], [node]
    model.version, model.operatorCodes, model.buffers, model.subgraphs = 3, [code], [schema.BufferT()], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    kinds = interpreter.OpResolverType
    kind = {"reference": kinds.BUILTIN_REF, "optimized": kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES}[kernels]
    run = interpreter.Interpreter(model_content=bytes(builder.Output()), experimental_op_resolver_type=kind)
    run.allocate_tensors()
    run.set_tensor(0, x)
    run.invoke()
    return run.get_tensor(1)


@pytest.mark.parametrize(("kernels", "rounding"), [("reference", "away"), ("optimized", "even")])
@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [("int8", 1.0, 3), ("int8", 0.37, -5), ("uint8", 1.0, 128), ("int16", 0.01, 0), ("int8", 0.1, -128)],
)
def test_codes_are_those_of_tensorflow_lite(kernels, rounding, dtype, scale, zero_point):
    if kernels == "optimized" and dtype == "int16":
        pytest.skip("its optimized kernel of 16 bits has another formula")
    halves = np.arange(-600, 601) * np.float32(0.5)
    x = np.concatenate([halves, RNG.normal(0, 60, 4000), [0.49999997, -0.49999997]]).astype(np.float32)
    want = of_tensorflow_lite("QUANTIZE", ("float32", None), (dtype, (scale, zero_point)), x, kernels)
    got = mo.quant.quantize_linear(x, np.float32(scale), zero_point, dtype=dtype, rounding=rounding)
    np.testing.assert_array_equal(got, want)
    if scale == 1.0:  # the inputs tell one rounding from the other
        other = {"away": "even", "even": "away"}[rounding]
        assert (mo.quant.quantize_linear(x, 1.0, zero_point, dtype=dtype, rounding=other) != want).any()


def test_codes_back_and_to_other_codes_are_those_of_tensorflow_lites_reference():
    q = np.arange(-128, 128).astype(np.int8)
    one, other = (0.37, -5), (0.52, 7)
    want = of_tensorflow_lite("DEQUANTIZE", ("int8", one), ("float32", None), q, "reference")
    np.testing.assert_array_equal(mo.quant.dequantize_linear(q, np.float32(one[0]), one[1]), want)
    want = of_tensorflow_lite("QUANTIZE", ("int8", one), ("int8", other), q, "reference")
    scales = [np.float32(one[0]), one[1], np.float32(other[0]), other[1]]
    np.testing.assert_array_equal(mo.quant.requantize_linear(q, *scales, rounding="away"), want)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("block_size", [None, 1, 3, 64])
def test_every_axis_and_block_gets_its_own_scale(axis, block_size):
    for shape in [(3, 4, 5), (2, 70, 3), (1, 3, 1000), (130, 2, 2)]:
        n = shape[axis]
        form = (n,)
        spread = [1] * 3
        spread[axis] = n
        if block_size is not None:
            form = tuple(-(-k // block_size) if i == axis % 3 else k for i, k in enumerate(shape))
        scale = RNG.uniform(0.1, 0.4, form).astype(np.float32)
        zero_point = RNG.integers(-9, 9, form)
        x = (RNG.standard_normal(shape) * 9).astype(np.float32)

        def spread_out(a, shape=shape, spread=spread, n=n):
            if block_size is None:
                return a.reshape(spread)
            return np.repeat(a, block_size, axis).take(np.arange(n), axis)

        want = formula(x, spread_out(scale), spread_out(zero_point), "int8")
        options = {"axis": axis, "group_size": block_size}
        for threads in (1, 2):
            got = mo.quant.quantize_linear(x, scale, zero_point, threads=threads, **options)
            assert (got == want).all()
        back = mo.quant.dequantize_linear(got, scale, zero_point, **options)
        want = (want - spread_out(zero_point)).astype(np.float32) * spread_out(scale)
        assert back.tobytes() == want.astype(np.float32).tobytes()


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 959, 960, 961, 32768, 32769, 70001])
def test_tails_chunks_and_strides_change_nothing(n):
    x = (RNG.standard_normal(2 * n) * 30).astype(np.float32)
    want = formula(x[::2], np.float32(0.3), 5, "int8")
    out = np.empty(n, np.int8)
    assert mo.quant.quantize_linear(x[::2], np.float32(0.3), 5, out=out) is out
    assert (out == want).all()
    assert (mo.quant.quantize_linear(x[::-1], np.float32(0.3), 5)[1::2] == want[::-1]).all()


def test_float64_is_computed_in_float64():
    x = np.array([0.05 * (1 + 2**-40), 0.05 * (1 - 2**-40)])
    assert mo.quant.quantize_linear(x, 0.1).tolist() == [1, 0]
    q = np.array([3, -7], np.int8)
    assert mo.quant.dequantize_linear(q, 0.1, dtype=np.float64).tolist() == [3 * 0.1, -7 * 0.1]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.float32])
def test_numbers_are_rounded_once_to_any_dtype(dtype):
    q = np.arange(-128, 128, dtype=np.int16).astype(np.int8)
    got = mo.quant.dequantize_linear(q, np.float32(0.1), 3, dtype=dtype)
    assert got.dtype == dtype
    exact = (q.astype(np.float32) - 3) * np.float32(0.1)
    if dtype is np.float64:
        exact = (q.astype(np.float64) - 3) * np.float64(np.float32(0.1))
    assert (got == exact.astype(dtype)).all()
    if dtype is ml_dtypes.bfloat16:
        bits = mo.quant.dequantize_linear(q, np.float32(0.1), 3, dtype="bf16")
        assert bits.dtype == np.uint16
        assert (bits == got.view(np.uint16)).all()


@pytest.mark.parametrize("source", ["int8", "uint8", "int16", "uint16", "int32", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize("rounding", ["even", "away"])
def test_requantized_codes_are_those_of_the_numbers_between(source, rounding):
    if source == "int32":
        q = RNG.integers(-(2**31), 2**31, 5000).astype(np.int32)
        scale = 1e-8
    else:
        x = RNG.standard_normal(5000).astype(np.float32) * 9
        q = mo.quant.quantize_linear(x, 0.11, dtype=dtype_of(source))
        scale = 0.11
    between = mo.quant.dequantize_linear(q, scale)
    for target in ("int8", "uint8", "uint16", "int2"):
        options = {"dtype": target, "rounding": rounding}
        want = mo.quant.quantize_linear(between, 0.23, 1, **options)
        assert (mo.quant.requantize_linear(q, scale, None, 0.23, 1, **options) == want).all()
    per_column = np.linspace(0.1, 0.5, 50).astype(np.float32)
    between = mo.quant.dequantize_linear(q.reshape(100, 50), per_column, axis=1)
    want = mo.quant.quantize_linear(between, 0.5)
    assert (mo.quant.requantize_linear(q.reshape(100, 50), per_column, None, 0.5, axis=1) == want).all()


def test_the_dtype_is_what_is_named_or_that_of_out_or_of_the_zero_point_or_int8():
    x = np.array([1.0, -1.0], np.float32)
    assert mo.quant.quantize_linear(x, 1.0).dtype == np.int8
    assert mo.quant.quantize_linear(x, 1.0, 3).dtype == np.int8
    assert mo.quant.quantize_linear(x, 1.0, np.uint8(3)).dtype == np.uint8
    assert mo.quant.quantize_linear(x, 1.0, np.array(3, np.int16)).dtype == np.int16
    assert mo.quant.quantize_linear(x, 1.0, out=np.empty(2, np.uint16)).dtype == np.uint16
    assert mo.quant.quantize_linear(x, 1.0, np.uint8(3), dtype=np.int8).dtype == np.int8


X = np.ones((2, 3), np.float32)
BAD = [
    ({"x": [1.0]}, TypeError, "quantize_linear: x must be a NumPy array, got list"),
    ({"x": X.astype(np.int32)}, TypeError, "quantize_linear: x must have dtype float32"),
    ({"scale": 0.0}, ValueError, "quantize_linear: scale must be finite and not 0"),
    ({"scale": np.inf}, ValueError, "quantize_linear: scale must be finite and not 0"),
    ({"scale": "a"}, TypeError, "quantize_linear: scale must be a number, got 'a'"),
    (
        {"scale": np.ones(3, np.float32)},
        ValueError,
        "scale must be one number where axis is None, got shape (3,); pass",
    ),
    ({"scale": np.ones(2, np.float32), "axis": 1}, ValueError, "scale must be one number or have shape (3,), got (2,)"),
    (
        {"scale": np.ones(2, np.float32), "axis": 1, "group_size": 2},
        ValueError,
        "scale must have shape (2, 2) for these",
    ),
    ({"axis": 2}, ValueError, "quantize_linear: axis must be within the 2 axes of x, got 2"),
    ({"axis": 0, "group_size": 0}, ValueError, "quantize_linear: group_size must be at least 1, got 0"),
    ({"group_size": 2}, ValueError, "quantize_linear: axis must be given with group_size, got None"),
    ({"zero_point": 200}, ValueError, "quantize_linear: zero_point must be within -128 to 127 for int8, got 200"),
    ({"zero_point": 1.5}, TypeError, "quantize_linear: zero_point must be an integer, got 1.5"),
    ({"zero_point": np.array(1.5)}, TypeError, "zero_point must be an int or an array of integers, got float64"),
    ({"zero_point": np.void(b"abc"), "dtype": np.int8}, TypeError, "zero_point must be an int or an array of integers"),
    ({"zero_point": np.array([1, 2])}, ValueError, "quantize_linear: zero_point must have shape ()"),
    ({"dtype": "float8_e5m2", "zero_point": 1}, ValueError, "zero_point must be 0 for float8_e5m2, got 1"),
    ({"dtype": "float8_e5m2", "rounding": "away"}, ValueError, "rounding must be 'even' for float8_e5m2, got 'away'"),
    ({"dtype": "int3"}, TypeError, "quantize_linear: dtype must be one of int8, uint8"),
    ({"dtype": np.float32}, TypeError, "quantize_linear: dtype must be one of int8, uint8"),
    ({"rounding": "up"}, ValueError, "quantize_linear: rounding must be 'even' or 'away', got \"up\""),
    ({"nonfinite": "skip"}, ValueError, "quantize_linear: nonfinite must be 'raise' or 'saturate', got \"skip\""),
    ({"out": np.empty((3, 2), np.int8)}, ValueError, "quantize_linear: out must have shape (2, 3), got (3, 2)"),
    ({"out": np.empty((2, 3), np.uint8), "dtype": np.int8}, TypeError, "out must have dtype int8, got uint8"),
    ({"out": np.empty((2, 6), np.int8)[:, ::2]}, ValueError, "quantize_linear: out must be C-contiguous"),
    ({"threads": 0}, ValueError, "quantize_linear: threads must be from 1"),
]


@pytest.mark.parametrize(("bad", "error", "text"), BAD)
def test_what_is_wrong_is_named(bad, error, text):
    arguments = {"x": X, "scale": 0.5} | bad
    with pytest.raises(error) as caught:
        mo.quant.quantize_linear(**arguments)
    assert text in str(caught.value)


def test_a_refused_call_has_written_nothing():
    x = np.array([1.0, np.nan, np.inf], np.float32)
    out = np.full(3, 77, np.int8)
    with pytest.raises(ValueError, match="2 non-finite values, first at index"):
        mo.quant.quantize_linear(x, 1.0, out=out, nonfinite="raise")
    assert (out == 77).all()
    assert mo.quant.quantize_linear(x, 1.0, 5, out=out).tolist() == [6, 5, 127]
    memory = np.zeros(16, np.uint8)
    with pytest.raises(ValueError, match="overlap in memory"):
        mo.quant.quantize_linear(memory.view(np.float32), 1.0, out=memory[4:8].view(np.int8))
    with pytest.raises(TypeError, match="dequantize_linear: q must have a dtype of int8"):
        mo.quant.dequantize_linear(np.zeros(3, np.int64), 1.0)
    with pytest.raises(TypeError, match="dequantize_linear: dtype must be float32"):
        mo.quant.dequantize_linear(np.zeros(3, np.int8), 1.0, dtype=np.int32)
    with pytest.raises(ValueError, match="requantize_linear: to_scale must be finite and not 0"):
        mo.quant.requantize_linear(np.zeros(3, np.int8), 1.0, None, 0.0)


@pytest.mark.parametrize(
    ("bits", "signed", "rounding"), list(itertools.product((8, 4, 2), (True, False), ("even", "away")))
)
def test_quantized_arrays_of_given_scales_have_the_same_codes(bits, signed, rounding):
    x = (RNG.standard_normal((5, 37)) * 6).astype(np.float32)
    name = f"{'' if signed else 'u'}int{bits}"
    zero_point = 1 if signed else 2
    for cut, place in (
        ({}, {}),
        ({"axis": 0}, {"axis": 0}),
        ({"group_size": 16}, {"axis": 1, "group_size": 16}),
    ):
        form = {(): ()}.get(tuple(cut), (5,) if "axis" in cut else (5, 3))
        scale = RNG.uniform(0.3, 0.9, form).astype(np.float32)
        zero_points = np.full(form, zero_point, np.int8 if signed else np.uint8)
        options = {"scheme": "asymmetric", "signed": signed, "rounding": rounding} | cut
        q = mo.quantize(x, bits=bits, scale=scale, zero_point=zero_points, **options)
        codes = mo.quant.quantize_linear(x, scale, zero_points, dtype=name, rounding=rounding, **place)
        assert (q.codes == (codes if bits == 8 else mo.quant.pack(codes, bits))).all()
        numbers = mo.quant.dequantize_linear(codes, scale, zero_points, **place)
        assert q.dequantize().tobytes() == numbers.tobytes()
        fake = mo.fake_quantize(x, bits=bits, scale=scale, zero_point=zero_points, **options)
        assert fake.tobytes() == numbers.tobytes()
        assert (q[1:3].dequantize() == numbers[1:3]).all()


def test_a_sign_of_its_own_needs_a_scale_and_has_zero_points():
    x = np.array([-3.0, 0.0, 3.0], np.float32)
    q = mo.quantize(x, scale=0.5, signed=False)
    assert q.scheme == "asymmetric"
    assert q.zero_point == 0
    assert q.codes.tolist() == [0, 0, 6]
    q = mo.quantize(x, scale=0.5, rounding="away")
    assert q.scheme == "symmetric"
    assert q.zero_point is None
    assert q.codes.dtype == np.int8
    for bad, text in (
        ({"signed": True}, "signed and rounding must come with scale"),
        ({"scale": 0.5, "rounding": "up"}, "rounding must be 'even' or 'away'"),
        ({"scale": 0.5, "signed": 1}, "signed must be a bool or None"),
        ({"scale": 0.5, "signed": True, "search": "mse"}, "must be None where scale is given"),
        ({"scale": 0.5, "signed": True, "scheme": "minmax"}, "scale must be None for format 'int8_minmax'"),
    ):
        with pytest.raises((TypeError, ValueError), match="quantize: ") as caught:
            mo.quantize(x, **bad)
        assert text in str(caught.value)


@pytest.mark.parametrize("name", [*WHOLE, *FLOATS])
@pytest.mark.parametrize("symmetric", [True, False])
def test_calibrators_hand_over_what_any_codes_need(name, symmetric):
    x = (RNG.standard_normal(1000) + 0.5).astype(np.float32)
    calibrator = mo.quant.Calibrator(symmetric=symmetric)
    calibrator.update(x)
    scale, zero_point = calibrator.params(dtype_of(name))
    back = mo.quant.dequantize_linear(
        mo.quant.quantize_linear(x, scale, zero_point, dtype=dtype_of(name)), scale, zero_point
    )
    if name in FLOATS:
        assert zero_point is None
        assert scale == np.float32(np.abs(x).max() / float(ml_dtypes.finfo(dtype_of(name)).max))
        return
    assert zero_point.dtype == dtype_of(name)
    assert np.abs(back - x).max() <= scale * 0.503  # float32 has 24 bits
    if symmetric:
        assert int(zero_point) == (0 if name[0] == "i" else (LIMITS[name][1] + 1) // 2)


def test_calibrators_agree_with_quantize_and_have_axes():
    x = RNG.standard_normal((100, 5)).astype(np.float32)
    for bits, symmetric in itertools.product((8, 4, 2), (True, False)):
        calibrator = mo.quant.Calibrator(bits=bits, symmetric=symmetric)
        calibrator.update(x)
        made = mo.quantize(x, bits=bits, scheme="symmetric" if symmetric else "asymmetric")
        scale, zero_point = calibrator.params()
        assert scale == made.scale
        assert zero_point is None if symmetric else zero_point == made.zero_point
        columns, parts = mo.quant.Calibrator(bits=bits, symmetric=symmetric, axis=-1), []
        for batch in np.split(x, 4):
            columns.update(batch)
            parts.append(mo.quant.Calibrator(bits=bits, symmetric=symmetric, axis=-1))
            parts[-1].update(batch)
        made = mo.quantize(x, bits=bits, scheme="symmetric" if symmetric else "asymmetric", axis=1)
        scale, zero_point = columns.params()
        assert (scale == made.scale).all()
        assert symmetric or (zero_point == made.zero_point).all()
        for part in parts[1:]:
            parts[0].merge(part)
        assert (parts[0].params()[0] == scale).all()
    with pytest.raises(ValueError, match="Calibrator: axis must come with method='minmax'"):
        mo.quant.Calibrator("mse", axis=0)
    with pytest.raises(ValueError, match="Calibrator: axis must be within the 2 axes of x, got 2"):
        mo.quant.Calibrator(axis=2).update(x)
    with pytest.raises(ValueError, match="Calibrator: x must have 5 indices of the axis, got 4"):
        columns.update(x[:, :4])


def test_scales_zero_points_and_outputs_that_are_none_are_named():
    x = np.ones(4, np.float32)
    for call, error, text in (
        (lambda: mo.quant.quantize_linear(x, True), TypeError, "quantize_linear: scale must be a number, got True"),
        (lambda: mo.quant.quantize_linear(x, 10**400), ValueError, "scale must be within the numbers of float64"),
        (
            lambda: mo.quant.requantize_linear(np.ones(4, np.int8), 1.0, None, False),
            TypeError,
            "to_scale must be a number",
        ),
        (lambda: mo.quant.quantize_linear(x, 0.1, np.uint64(2**63)), ValueError, "for int8, got 9223372036854775807"),
        (lambda: mo.quant.quantize_linear(x, 0.1, out=np.empty(4)), TypeError, "the dtype of out must be one of int8"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert text in str(caught.value)


@pytest.mark.slow
def test_codes_have_the_dtype_of_a_guests_out():
    torch = pytest.importorskip("torch")
    x = np.array([1.0, -300.0, 0.3], np.float32)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.float8_e4m3fn):
        out = torch.zeros(3).to(dtype)
        assert mo.quant.quantize_linear(x, 0.5, out=out) is out
        want = mo.quant.quantize_linear(x, 0.5, dtype=mo.as_array(out).dtype)
        assert mo.as_array(out).tobytes() == want.tobytes()
