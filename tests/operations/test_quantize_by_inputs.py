"""GPTQ of ONNX models: what the array function gives, of the inputs that layers have, in every form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime as ort

import modelopt_rs as mo
from graph_nets import Net
from modelopt_rs.errors import OptionError
from modelopt_rs.planning.onnx import OnnxOptions

RNG = np.random.default_rng(0)
INPUTS, OUTPUTS = 80, 224  # two blocks of 32, and a half
X = (RNG.normal(size=(300, INPUTS)) @ RNG.normal(size=(INPUTS, INPUTS))).astype(np.float32)
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MatMulNBits": ({"op": "MatMul"}, {}),
    "MatMulNBits of a Gemm": ({"op": "Gemm", "transB": 1}, {}),
    "DequantizeLinear": ({"op": "MatMul"}, {"onnx": OnnxOptions(target="portable")}),
    "DequantizeLinear, turned": ({"op": "Gemm", "transB": 1}, {"onnx": OnnxOptions(target="portable")}),
    "Cast and Mul": ({"op": "MatMul", "opset": 17}, {"bits": 8, "onnx": OnnxOptions(target="portable", opset=17)}),
    "small": ({"op": "MatMul", "outputs": 36}, {}),
}


def net(op: str, outputs: int = OUTPUTS, opset: int = 21, **attributes: Any) -> Net:
    """Return a model of one product."""
    net = Net({"x": ["n", INPUTS]}, opset=opset)
    shape = (outputs, INPUTS) if "transB" in attributes else (INPUTS, outputs)
    net.add(op, "x", net.w("w", *shape), out="y", **attributes)
    return net


def hessian(x: np.ndarray) -> mo.prune.Hessian:
    """Rows are added up as many at a time as there are columns."""
    found = mo.prune.Hessian()
    for first in range(0, len(x), x.shape[1]):
        found.update(x[first : first + x.shape[1]])
    return found


def quantized(tmp_path: Path, model: onnx.ModelProto, **options: Any) -> tuple[Any, np.ndarray]:
    """Return the report, and what the model gives for the unit vectors: its weight."""
    onnx.save(model, tmp_path / "a.onnx")
    how: dict[str, Any] = {"bits": 4, "uniform": True, "durable": False, "overwrite": True, "run": None, **options}
    if "onnx" not in how:
        how["onnx"] = OnnxOptions(accuracy_level=0)
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **how)
    session = ort.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    return report, session.run(None, {"x": np.eye(INPUTS, dtype=np.float32)})[0]


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("form", FORMS)
def test_what_an_onnx_model_holds_is_what_gptq_gives(form: str, scheme: str, tmp_path: Path) -> None:
    how, options = FORMS[form]
    model = net(**how)
    w = model.weights["w"] if "transB" in how else model.weights["w"].T
    report, got = quantized(
        tmp_path, model.proto(), method="gptq", calibrate={"x": X}, scheme=scheme, scale_dtype="float16", **options
    )
    [tensor] = [each for each in report.tensors if each.name == "w"]
    assert tensor.reason.endswith("; GPTQ")
    group = 32 if "blocks of 32" in tensor.reason else 16 if "blocks of 16" in tensor.reason else INPUTS
    want = mo.quant.gptq(
        w,
        hessian(X),
        bits=options.get("bits", 4),
        scheme=scheme,
        group_size=group,
        act_order="groups",
        search="mse",
        scale_dtype="float16",
    )
    np.testing.assert_allclose(got.T, want.dequantize(), atol=1e-5)
    loss = [float(np.square(X @ (w - each.dequantize()).T).sum()) for each in (want, _searched(w, want))]
    assert loss[0] < 0.8 * loss[1]
    off = w - want.dequantize()
    assert tensor.sqnr_db == pytest.approx(10 * np.log10(np.square(w).sum() / np.square(off).sum()), abs=1e-3)


def _searched(w: np.ndarray, like: Any) -> Any:
    return mo.quantize(
        w, bits=like.bits, scheme=like.scheme, group_size=like.group_size, search="mse", scale_dtype="float16"
    )


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "channels": ((48, 64, 3, 3), 1, {}),
    "channels, DequantizeLinear": ((48, 64, 3, 3), 1, {"onnx": OnnxOptions(target="portable")}),
    "channels, groups": ((48, 32, 2, 3), 2, {}),
    "many positions": ((16, 16, 9, 9), 1, {}),
    "in a row": ((48, 5, 3, 3), 1, {}),
    "in a row, groups": ((48, 5, 3, 3), 4, {}),
    "outputs": ((40, 8, 3, 3), 1, {"bits": 8}),
    "points": ((48, 64, 1, 1), 2, {}),
    "a line": ((48, 64, 3), 1, {}),
}


def patches(x: np.ndarray, kernel: tuple[int, ...], step: int) -> np.ndarray:
    """Return what a convolution multiplies with: a row for each position, of each channel its kernel."""
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axes)
    windows = windows[(slice(None), slice(None), *(slice(None, None, step) for _ in axes))]
    return np.moveaxis(windows, 1, 1 + len(axes)).reshape(-1, x.shape[1] * int(np.prod(kernel)))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_holds_what_gptq_gives_of_its_patches(name: str, scheme: str, tmp_path: Path) -> None:
    shape, groups, options = CONVOLUTIONS[name]
    kernel, channels = shape[2:], shape[1] * groups
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, channels, *(12 for _ in kernel))).astype(np.float32)
    x = np.moveaxis(np.tensordot(rng.normal(size=(channels, channels)), x, (1, 1)), 0, 1).astype(np.float32)
    net = Net({"x": ["n", channels, *(f"d{i}" for i in range(len(kernel)))]}, opset=21)
    ones = [2] * len(kernel)
    net.add("Conv", "x", net.w("w", *shape), out="y", group=groups, strides=ones)
    onnx.save(net.proto(), tmp_path / "a.onnx")
    how: dict[str, Any] = {"bits": 4, "uniform": True, "durable": False, "run": None, "scheme": scheme, **options}
    data = {"method": "gptq", "calibrate": {"x": x}, "scale_dtype": "float16"}
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **how, **data)
    [tensor] = [each for each in report.tensors if each.name == "w"]
    assert tensor.reason.endswith("; GPTQ")
    got = weight_of(tmp_path / "b.onnx", shape, groups)
    w, positions = net.weights["w"], int(np.prod(kernel))
    by_channels = tensor.reason.split("; ")[0].endswith(("of 32", "of 16")) and name not in (
        "in a row",
        "in a row, groups",
    )
    block = 16 if "of 16" in tensor.reason else 32 if "of 32" in tensor.reason else shape[1] * positions
    for group, rows in enumerate(np.split(np.arange(shape[0]), groups)):
        part = patches(x[:, group * shape[1] : (group + 1) * shape[1]], kernel, 2).reshape(-1, shape[1], positions)
        part, own = part.transpose(0, 2, 1).reshape(len(part), -1), w[rows].reshape(len(rows), shape[1], -1)
        order = np.arange(part.shape[1]) if by_channels else np.arange(part.shape[1]).reshape(positions, -1).T.ravel()
        own = own.transpose(0, 2, 1).reshape(len(rows), -1)[:, order]
        found = hessian(part)
        want = mo.quant.gptq(
            own,
            np.ascontiguousarray(found.second_derivative[np.ix_(order, order)]),
            bits=how["bits"],
            scheme=scheme,
            group_size=block,
            act_order="groups",
            search="mse",
            scale_dtype="float16",
        )
        made = got[rows].reshape(len(rows), shape[1], -1).transpose(0, 2, 1).reshape(len(rows), -1)[:, order]
        np.testing.assert_allclose(made, want.dequantize(), atol=1e-5)
        part = part[:, order]
        loss = [float(np.square(part @ (own - q.dequantize()).T).sum()) for q in (want, _searched(own, want))]
        assert loss[0] < 0.9 * loss[1]


def weight_of(path: Path, shape: tuple[int, ...], groups: int) -> np.ndarray:
    """Return what a model of one convolution gives for ones in its kernel: its weight."""
    each = int(np.prod(shape[1:]))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ones = np.eye(groups * each, dtype=np.float32).reshape(-1, groups * shape[1], *shape[2:])
    [found] = session.run(None, {"x": ones})
    rows = found.reshape(groups, each, groups, shape[0] // groups)
    return np.concatenate([rows[g, :, g].T for g in range(groups)]).reshape(shape)


def test_a_convolution_whose_inputs_take_more_than_the_memory_says_so(tmp_path: Path) -> None:
    net = Net({"x": ["n", 64, 4, 4]})
    h = net.add("Flatten", net.add("Conv", "x", net.w("conv", 8, 64, 3, 3)))
    net.add("MatMul", h, net.w("head", 32, 48), out="y")
    onnx.save(net.proto(), tmp_path / "a.onnx")
    data = {"x": RNG.normal(size=(64, 64, 4, 4)).astype(np.float32)}
    how: dict[str, Any] = {"bits": 8, "method": "gptq", "calibrate": data, "durable": False, "run": None}
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **how, max_memory=1 << 22)
    reasons = {each.name: each.reason for each in report.tensors}
    assert reasons["conv"].endswith("; not GPTQ: the squares of its 576 inputs take more than the memory")
    assert reasons["head"].endswith("; GPTQ")


def test_threads_memory_and_the_way_samples_come_change_no_byte(tmp_path: Path) -> None:
    model = net("MatMul").proto()
    ways: list[dict[str, Any]] = [
        {"calibrate": {"x": X}},
        {"calibrate": {"x": X}, "threads": 1},
        {"calibrate": {"x": X}, "max_memory": 1 << 19},
        {"calibrate": lambda: iter([{"x": row[None]} for row in X])},
        {"calibrate": iter([{"x": row[None]} for row in X])},
    ]
    made = []
    for way in ways:
        quantized(tmp_path, model, method="gptq", **way)
        made.append((tmp_path / "b.onnx").read_bytes())
    assert len(set(made)) == 1


def deep() -> Net:
    """Return a model with a convolution, one that is turned, two products on one input, and a product in a row."""
    net = Net({"x": ["n", 8, 4, 4]})
    h = net.add("Relu", net.add("Conv", "x", net.w("conv", 16, 8, 3, 3)))
    h = net.add("Flatten", net.add("ConvTranspose", h, net.w("up", 16, 16, 1, 1)))
    both = [net.add("MatMul", h, net.w(name, 64, 96)) for name in ("left", "right")]
    h = net.add("Relu", net.add("Add", *both))
    net.add("Gemm", h, net.w("head", 48, 96), net.w("bias", 48), transB=1, out="y")
    return net


def test_weights_whose_inputs_are_not_used_say_why(tmp_path: Path) -> None:
    onnx.save(deep().proto(), tmp_path / "a.onnx")
    data = {"x": RNG.normal(size=(64, 8, 4, 4)).astype(np.float32)}
    report = mo.quantize_file(
        tmp_path / "a.onnx", tmp_path / "b.onnx", bits=4, method="gptq", calibrate=data, uniform=True, durable=False
    )
    reasons = {each.name: each.reason for each in report.tensors if each.decision == "quantize"}
    assert all(reasons[name].endswith("; GPTQ") for name in ("left", "right", "head", "conv"))
    why = "what goes into ConvTranspose 'ConvTranspose_2' isn't collected: only of MatMul, Gemm and Conv"
    assert reasons["up"].endswith(f"; not GPTQ: {why}")
    assert f"1 weight is rounded without GPTQ: {why}" in report.warnings
    assert (report.options["method"], report.options["calibrate"]) == ("gptq", "dict")


def test_nothing_is_looked_at_in_a_dry_run(tmp_path: Path) -> None:
    onnx.save(deep().proto(), tmp_path / "a.onnx")

    def samples() -> Iterator[Any]:
        raise AssertionError

    report = mo.quantize_file(tmp_path / "a.onnx", "", bits=8, method="gptq", calibrate=samples, dry_run=True, run=None)
    assert sum(each.reason.endswith("; GPTQ") for each in report.tensors) == 4


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"method": "gptq"},
        r"^method must be 'gptq' or 'awq' with calibrate \(calibration data\), got 'gptq' without it$",
    ),
    ({"calibrate": {"x": X}}, r"^method must be .* with calibrate \(calibration data\), got calibrate without it$"),
    ({"method": "best", "calibrate": {"x": X}}, r"^method must be 'gptq', 'awq' or None, got 'best'$"),
    ({"method": "gptq", "calibrate": {"z": X}}, r"^calibrate"),
    ({"method": "gptq", "calibrate": {"x": X[:, :7]}}, r"^calibrate"),
    ({"method": "gptq", "calibrate": []}, r"calibrate must have at least one sample, got none$"),
    (
        {"method": "gptq", "calibrate": {"x": X}, "nonfinite": "saturate"},
        r"^nonfinite must be 'raise' with method 'gptq', got 'saturate'$",
    ),
    (
        {"method": "gptq", "calibrate": {"x": X}, "format": "nf4", "bits": 8},
        r"^method must be left out with format 'nf4', got 'gptq'$",
    ),
    (
        {"method": "gptq", "calibrate": {"x": X}, "onnx": OnnxOptions(activations="dynamic")},
        r"^method must be left out with activations 'dynamic', got 'gptq'$",
    ),
    (
        {"method": "gptq", "calibrate": {"x": X}, "onnx": OnnxOptions(calibrate={"x": X})},
        r"^calibrate must be given once with method, got it in onnx too$",
    ),
    (
        {"method": "gptq", "calibrate": {"x": X}, "onnx": OnnxOptions(target="portable", per_tensor=True)},
        r"^method must be left out with per_tensor, got 'gptq'$",
    ),
    ({"method": "gptq", "calibrate": {"x": X * np.float32("nan")}}, r"calibrate: value 'x': .*finite"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=text):
        quantized(tmp_path, net("MatMul").proto(), **options)
    assert not (tmp_path / "b.onnx").exists()


def test_a_model_without_products_is_refused(tmp_path: Path) -> None:
    model = Net({"x": ["n", 8, 4, 4]})
    model.add("ConvTranspose", "x", model.w("up", 8, 64, 3, 3), out="y")
    onnx.save(model.proto(), tmp_path / "a.onnx")
    data = {"x": np.ones((2, 8, 4, 4), np.float32)}
    text = "^method must be left out where it can round no weight, got 'gptq': 'up': what goes into ConvTranspose "
    with pytest.raises(OptionError, match=text):
        mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=4, method="gptq", calibrate=data, uniform=True)


@pytest.mark.parametrize("method", ["gptq", "wanda"])
@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_a_layer_whose_input_is_empty_in_every_sample_falls_back_and_says_so(
    method: str, kind: str, tmp_path: Path
) -> None:
    net = Net({"x": ["n", INPUTS]}, outputs=["y", "none"])
    none = net.add("Slice", "x", net.ints("zero", 0), net.ints("end", 0))
    if kind == "Conv":
        image = net.add("Unsqueeze", none, net.ints("axes", 2, 3))
        net.add("Conv", image, net.w("never", 64, INPUTS, 1, 1), out="none")
    else:
        net.add("MatMul", none, net.w("never", INPUTS, 64), out="none")
    net.add("MatMul", "x", net.w("seen", INPUTS, 64), out="y")
    onnx.save(net.proto(), tmp_path / "a.onnx")
    how: dict[str, Any] = {"durable": False, "calibrate": [{"x": X}], "run": None}
    if method == "wanda":
        wanda: Any = {"sparsity": 0.5, "method": "wanda", "include": ["never", "seen"]}
        report = mo.prune_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **wanda, **how)
        rows = {each.name: each for each in report.tensors}
        assert (rows["never"].decision, rows["never"].zeros_after, rows["seen"].sparsity_after) == ("copy", 0, 0.5)
        assert "1 weight is not pruned: no sample reaches its layer" in report.warnings
        return
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=4, uniform=True, method=method, **how)
    reasons = {each.name: each.reason for each in report.tensors}
    assert reasons["never"].endswith("; not GPTQ: no sample reaches its layer")
    assert reasons["seen"].endswith("; GPTQ")
    assert "1 weight is rounded without GPTQ: no sample reaches its layer" in report.warnings
    mo.quantize_file(tmp_path / "a.onnx", tmp_path / "c.onnx", bits=4, uniform=True, run=None, durable=False)
    ours, plain = (
        {each.name: each.raw_data for each in onnx.load(tmp_path / name).graph.initializer if "never" in each.name}
        for name in ("b.onnx", "c.onnx")
    )
    assert ours == plain


def test_samples_that_are_empty_where_they_meet_weights_are_refused(tmp_path: Path) -> None:
    onnx.save(net("MatMul").proto(), tmp_path / "a.onnx")
    for call, how in (
        (mo.quantize_file, {"bits": 4, "method": "gptq"}),
        (mo.prune_file, {"n": 2, "m": 4, "method": "wanda", "include": ["w"]}),
    ):
        with pytest.raises(
            ValueError, match=r"value 'x' is empty in every sample, like all others; give other samples$"
        ):
            call(tmp_path / "a.onnx", tmp_path / "b.onnx", calibrate=[{"x": X[:0]}], **how)
    assert not (tmp_path / "b.onnx").exists()
