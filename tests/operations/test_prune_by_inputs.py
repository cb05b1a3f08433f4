"""Wanda and SparseGPT for ONNX models: exactly what the array functions choose, given what goes into the layers."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

import modelopt_rs as mo
from graph_nets import Net
from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream, layer_inputs
from modelopt_rs.onnx.measure.patches import Patches
from modelopt_rs.onnx.weights import find_weights

RNG = np.random.default_rng(0)
SAMPLES = {"x": RNG.normal(size=(12, 8, 9, 9)).astype(np.float32) * np.linspace(0.1, 3, 9, dtype=np.float32)}
METHODS = ["wanda", "sparsegpt"]
SHARES = [{"sparsity": 0.5}, {"n": 2, "m": 4}]


def net(dtype="F32"):
    """Return a model with convolutions (plain, grouped, strided), two MatMuls on one input, and Gemms."""
    net = Net({"x": ["n", 8, 9, 9]})
    h = net.add("Relu", net.add("Conv", "x", net.w("conv", 16, 8, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    h = net.add("Relu", net.add("Conv", h, net.w("grouped", 12, 4, 3, 2), group=4, auto_pad="SAME_UPPER"))
    h = net.add("Flatten", net.add("Conv", h, net.w("wide", 8, 12, 2, 2), dilations=[2, 3]))
    both = [net.add("MatMul", h, net.w(name, 48, 24)) for name in ("left", "right")]
    h = net.add("Relu", net.add("Add", *both))
    h = net.add("Relu", net.add("Gemm", h, net.w("gemm", 32, 24), net.w("bias", 32), transB=1))
    net.add("MatMul", h, net.w("head", 32, 5), out="y")
    return net


def patches(x, kernel, stride=(1, 1), pad=((0, 0), (0, 0)), dilation=(1, 1)):
    """Cut the plain way: a row for each position of the output, kernel positions first."""
    x = np.pad(x, [(0, 0), (0, 0), *pad])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    rows = []
    for image in x:
        for i in range(0, x.shape[2] - spans[0] + 1, stride[0]):
            for j in range(0, x.shape[3] - spans[1] + 1, stride[1]):
                window = image[:, i : i + spans[0] : dilation[0], j : j + spans[1] : dilation[1]]
                rows.append(np.moveaxis(window, 0, -1).ravel())
    return np.array(rows, np.float32)


# Of each weight: its axes as (out, ..., in), the value that goes in, how it is cut into rows for each group.
PLACES = {
    "conv": ((0, 2, 3, 1), "x", lambda x: [patches(x, (3, 3), (2, 2), ((1, 1), (1, 1)))]),
    "grouped": (
        (0, 2, 3, 1),
        "conv.in",
        lambda x: [patches(x[:, 4 * g : 4 * g + 4], (3, 2), pad=((1, 1), (0, 1))) for g in range(4)],
    ),
    "wide": ((0, 2, 3, 1), "grouped.in", lambda x: [patches(x, (2, 2), dilation=(2, 3))]),
    "left": ((1, 0), "flat", lambda x: [x]),
    "right": ((1, 0), "flat", lambda x: [x]),
    "gemm": ((0, 1), "sum", lambda x: [x]),
}


def inner_values(proto):
    """Run each sample as the operation does, and return the inputs of the layers."""
    nodes = {node.input[1]: node.input[0] for node in proto.graph.node if len(node.input) > 1}
    names = {name: nodes[name] for name in PLACES}
    inner = sorted(set(names.values()) - {"x"})
    seen = onnx.ModelProto()
    seen.CopyFrom(proto)
    seen.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner)
    session = ort.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = []
    for sample in SAMPLES["x"]:
        found = dict(zip(inner, session.run(inner, {"x": sample[None]}), strict=True), x=sample[None])
        runs.append({weight: found[value] for weight, value in names.items()})
    return runs


def expected(method, weight, array, runs, share):
    """Prune by the array functions."""
    axes, _, cut = PLACES[weight]
    turned = array.transpose(axes)
    matrix = np.ascontiguousarray(turned).reshape(len(turned), -1)
    rows = [cut(run[weight]) for run in runs]
    groups, out = len(rows[0]), []
    for g in range(groups):
        part = np.split(matrix, groups)[g]
        statistics = mo.prune.ColumnNorms() if method == "wanda" else mo.prune.Hessian()
        # Rows are added up some at a time, of a Hessian at least as many as there are columns.
        waiting = []
        for sample in rows:
            waiting.append(sample[g])
            if method == "wanda" or sum(map(len, waiting)) >= part.shape[1]:
                statistics.update(np.concatenate(waiting))
                waiting = []
        if waiting:
            statistics.update(np.concatenate(waiting))
        if method == "wanda":
            out.append(mo.prune.wanda(part, statistics.norms, **share))
        else:
            out.append(mo.prune.sparsegpt(part, statistics, **share))
    return np.concatenate(out).reshape(turned.shape).transpose(np.argsort(axes))


def pruned(tmp_path, proto, **options):
    onnx.save(proto, tmp_path / "a.onnx")
    options = {"calibrate": SAMPLES, "overwrite": True, "durable": False, **options}
    report = mo.prune_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **options)
    small = onnx.load(tmp_path / "b.onnx")
    onnx.checker.check_model(small, full_check=True)
    return report, {weight.name: numpy_helper.to_array(weight) for weight in small.graph.initializer}


@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_onnx_models_are_pruned_as_the_arrays_are(method, share, tmp_path):
    """H35: bit for bit, for convolutions, grouped ones, MatMul and Gemm."""
    model = net()
    proto = model.proto()
    report, after = pruned(tmp_path, proto, method=method, **share)
    runs = inner_values(proto)
    for name in PLACES:
        np.testing.assert_array_equal(after[name], expected(method, name, model.weights[name], runs, share), name)
    np.testing.assert_array_equal(after["head"], model.weights["head"])
    assert report.options["method"] == method
    assert report.options["calibrate"] == "dict"


@pytest.mark.parametrize("method", METHODS)
def test_memory_and_how_samples_come_change_nothing(method, tmp_path):
    """H35: sums that don't fit together take several passes over the samples."""
    proto = net().proto()
    _, whole = pruned(tmp_path, proto, method=method, sparsity=0.5)
    np.savez(tmp_path / "samples.npz", **SAMPLES)
    (tmp_path / "files").mkdir()
    for i, sample in enumerate(SAMPLES["x"]):
        np.save(tmp_path / "files" / f"{i:03}.npy", sample[None])
    for given in (tmp_path / "samples.npz", tmp_path / "files", lambda: ({"x": s[None]} for s in SAMPLES["x"])):
        _, again = pruned(tmp_path, proto, method=method, sparsity=0.5, calibrate=given, max_memory=200_000)
        for name in whole:
            np.testing.assert_array_equal(again[name], whole[name], name)


def test_calibration_makes_the_model_err_less(tmp_path):
    """H35: by outputs, on the samples, whose features are correlated: magnitude, then Wanda, then SparseGPT."""
    rng = np.random.default_rng(1)  # its own: what ran before is none of its business (by chance Wanda is the worse)
    model = Net({"x": ["n", 64]})
    h = "x"
    for name in ("first", "second", "third"):
        h = model.add("Relu", model.add("MatMul", h, model.w(name, 64, 64)))
    model.add("MatMul", h, model.w("head", 64, 8), out="y")
    mixed = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 64)) * np.linspace(0.1, 3, 64)
    samples = {"x": (mixed + 0.1 * rng.normal(size=(500, 64))).astype(np.float32)}
    onnx.save(model.proto(), tmp_path / "a.onnx")
    for share in SHARES:
        errors = []
        for method in ("magnitude", *METHODS):
            data = {} if method == "magnitude" else {"calibrate": samples}
            run = mo.RunOptions(inputs=samples)
            report = mo.prune_file(
                tmp_path / "a.onnx", tmp_path / f"{method}{len(share)}.onnx", method=method, run=run, **share, **data
            )
            errors.append(report.run.outputs[0].sqnr_db)
        assert errors[2] > errors[1] > errors[0]


def test_what_goes_into_a_layer_and_is_not_seen_leaves_it_alone(tmp_path):
    """H35: with the reason in the report."""
    model = Net({"x": ["n", 8, 9, 9]})
    h = model.add("Relu", model.add("ConvTranspose", "x", model.w("up", 8, 24, 2, 2)))
    h = model.add("Flatten", model.add("GlobalAveragePool", h))
    h = model.add("Relu", model.add("MatMul", h, model.w("fc", 24, 32)))
    model.add("MatMul", h, model.w("head", 32, 5), out="y")
    report, after = pruned(tmp_path, model.proto(), method="wanda", sparsity=0.5)
    said = {tensor.name: (tensor.decision, tensor.reason) for tensor in report.tensors}
    assert said["fc"] == ("prune", "weight of MatMul")
    assert said["up"][0] == "copy"
    assert "isn't collected: only of MatMul, Gemm and Conv" in said["up"][1]
    np.testing.assert_array_equal(after["up"], model.weights["up"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda", "calibrate": None}, "method must be 'wanda' or 'sparsegpt' with calibrate"),
        ({"method": "magnitude"}, "got calibrate with 'magnitude'"),
        ({"method": "obs"}, "method must be 'magnitude', 'wanda' or 'sparsegpt', got 'obs'"),
        ({"method": "wanda", "scope": "row"}, "scope must be left out with method 'wanda' (each row loses the share)"),
        ({"method": "wanda", "max_memory": 5000}, "max_memory is 5,000"),
        ({"method": "wanda", "calibrate": {"z": np.ones(3)}}, "calibrate"),
    ],
)
def test_options(options, message, tmp_path):
    with pytest.raises((OptionError, ValueError)) as error:
        pruned(tmp_path, net().proto(), sparsity=0.5, **options)
    assert message in str(error.value)
    assert not (tmp_path / "b.onnx").exists()


def test_inputs_that_are_not_finite_are_named(tmp_path):
    bad = SAMPLES["x"].copy()
    bad[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"calibrate: value 'x': ColumnNorms: x must be finite"):
        pruned(tmp_path, net().proto(), method="wanda", sparsity=0.5, calibrate={"x": bad})
    assert not (tmp_path / "b.onnx").exists()


def test_a_model_of_tensors_alone_says_what_to_do(tmp_path):
    w = np.ones((4, 4), np.float32)
    info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    with mo.files.SafetensorsSink(tmp_path / "a.safetensors", [info]) as sink:
        sink.write("fc.weight", w)
        sink.commit()
    with pytest.raises(OptionError, match="must be 'magnitude' for a model that is tensors alone, got 'wanda'"):
        mo.prune_file(tmp_path / "a.safetensors", tmp_path / "b", sparsity=0.5, method="wanda", calibrate=SAMPLES)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
def test_patches_times_kernels_are_the_convolution(auto_pad):
    """The rows are what onnxruntime multiplies, for images, sequences and volumes."""
    for rank in (1, 2, 3):
        kernel, strides = (3, 2, 2)[:rank], (2, 1, 3)[:rank]
        dilations = (1, 2, 1)[:rank] if auto_pad in ("NOTSET", "VALID") else (1,) * rank
        pads = [1, 0, 2][:rank] + [0, 1, 1][:rank] if auto_pad == "NOTSET" else None
        x = RNG.normal(size=(2, 6, *(7, 8, 6)[:rank])).astype(np.float32)
        w = RNG.normal(size=(4, 3, *kernel)).astype(np.float32)
        attributes = {"strides": strides, "dilations": dilations, "group": 2, "auto_pad": auto_pad}
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes, **({"pads": pads} if pads else {}))
        infos = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "w", "y")]
        graph = helper.make_graph([node], "g", infos[:2], infos[2:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        [want] = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "w": w})
        cut = Patches(kernel, strides, dilations, tuple(pads or (0,) * (2 * rank)), auto_pad, 2)
        got = [
            np.concatenate(list(cut.rows(x, g))) @ np.moveaxis(w[2 * g : 2 * g + 2], 1, -1).reshape(2, -1).T
            for g in range(2)
        ]
        flat = np.moveaxis(want, 1, -1).reshape(-1, 4)
        np.testing.assert_allclose(np.concatenate(got, axis=1), flat, rtol=1e-4, atol=1e-4)


def test_rows_of_layers_come_in_batches_with_the_names_of_their_weights(tmp_path):
    """H35: one stream for all that reads the inputs of layers; every row is there, in the order of the samples."""
    model = net()
    proto = model.proto()
    onnx.save(proto, tmp_path / "a.onnx")
    found = {}
    with mo.files.open(tmp_path / "a.onnx") as source:
        weights = {each.name: layer_inputs(each) for each in find_weights(source.graph) if each.name in PLACES}
        takers = [each for inputs in weights.values() for each in inputs]
        values = list(dict.fromkeys(each.value for each in takers))
        stream = InputStream(source.graph, source.path, values, Data(SAMPLES, None), threads=None, max_memory=0)
        for each, group, rows in stream.rows(dict.fromkeys(takers)):
            assert rows.dtype == np.float32
            for name in (name for name, inputs in weights.items() if each in inputs):
                found.setdefault((name, group), []).append(rows.copy())
    runs = inner_values(proto)
    for name, (_, _, cut) in PLACES.items():
        for group, _ in enumerate(cut(runs[0][name])):
            want = np.concatenate([cut(run[name])[group] for run in runs])
            np.testing.assert_array_equal(np.concatenate(found.pop((name, group))), want, name)
    assert not found
