"""Cropping ONNX models from file to file: what `prune.plan_crop` chooses, what the cropped graph computes."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
from onnx import numpy_helper

import modelopt_rs as mo
from graph_bert import bert
from graph_nets import Net, crop_graph, feeds_of, groups_of, run
from modelopt_rs.errors import OptionError


def mixed():
    """Return a model whose groups have members in memory (under 1 KiB), and of all ranks."""
    net = Net({"x": ["n", 3, 8, 8]})
    h = net.add("Conv", "x", net.w("a", 24, 3, 3, 3), net.w("bias", 24), pads=[1, 1, 1, 1])
    h = net.add("BatchNormalization", h, *(net.positive(f"bn{i}", 24) for i in range(4)))
    h = net.add("Conv", net.add("Relu", h), net.w("b", 32, 24, 3, 3), strides=[4, 4])
    h = net.add("Flatten", net.add("Relu", h))
    h = net.add("Relu", net.add("MatMul", h, net.w("c", 32 * 4, 40)))
    net.add("Gemm", h, net.w("d", 40, 5), net.w("last", 5), out="y")
    return net.proto()


def cropped(tmp_path, proto, **options):
    onnx.save(proto, tmp_path / "a.onnx")
    report = mo.crop_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **options)
    small = onnx.load(tmp_path / "b.onnx")
    onnx.checker.check_model(small, full_check=True)
    return report, small


@pytest.mark.parametrize("what", ["channels", "ffn", "all"])
@pytest.mark.parametrize(("max_memory", "norm"), [(2**28, 1), (24_000, 2), (24_000, np.inf)])
def test_a_file_is_cropped_as_the_arrays_are(tmp_path, what, max_memory, norm):
    proto = mixed()
    report, small = cropped(tmp_path, proto, what=what, keep=0.5, max_memory=max_memory, norm=norm)
    model, groups, _ = groups_of(proto)
    chosen = [group for group in groups.values() if what in ("all", group.kind)]
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    plan = mo.prune.plan_crop(arrays, chosen, keep=0.5, norm=norm)
    crop_graph(model, chosen, plan.kept)
    wanted = ir.serde.serialize_model(model)
    assert {(g.name, g.kept) for g in report.groups} == {(g.name, len(g.kept)) for g in plan.groups}
    weights = [{w.name: numpy_helper.to_array(w) for w in m.graph.initializer} for m in (small, wanted)]
    for name, array in weights[1].items():
        np.testing.assert_array_equal(weights[0][name], array, err_msg=name)
    feeds = feeds_of(proto)
    np.testing.assert_array_equal(run(small, feeds)[0], run(wanted, feeds)[0])


def test_a_transformer_loses_heads_and_inner_units(tmp_path):
    report, small = cropped(tmp_path, bert("lengths"), what=["heads", "ffn"], keep={"*.heads": 2, "*.ffn": 0.5})
    kept = {group.name: (group.units, group.kept) for group in report.groups}
    assert kept["0.q.weight.heads"] == (4, 2)
    assert "words.hidden" not in kept
    run(small, feeds_of(small, {"batch": 2, "words": 5}))


def test_what_is_left_alone_is_named_in_the_report(tmp_path):
    report, _ = cropped(tmp_path, mixed(), what="all", keep=0.5)
    assert report.notes == ("'d': all 5 outputs stay: 'y' is an output of the graph",)
    assert report.config is None
    said = {tensor.name: (tensor.decision, tensor.reason) for tensor in report.tensors}
    assert said["a"] == ("crop", "[24, 3, 3, 3] -> [16, 3, 3, 3]")
    assert report.totals.bytes_after < report.totals.bytes_before


def test_a_dry_run_writes_nothing_and_says_the_same(tmp_path):
    proto = mixed()
    report, _ = cropped(tmp_path, proto, what="all", keep=0.5)
    dry = mo.crop_file(tmp_path / "a.onnx", tmp_path / "c.onnx", what="all", keep=0.5, dry_run=True)
    assert dry.groups == report.groups
    assert dry.tensors == report.tensors
    assert not (tmp_path / "c.onnx").exists()


def test_threads_and_memory_never_change_a_byte(tmp_path):
    onnx.save(mixed(), tmp_path / "a.onnx")
    files = []
    for threads, memory in ((1, 2**28), (2, 2**28), (2, 24_000)):
        out = tmp_path / f"{threads}.{memory}.onnx"
        mo.crop_file(tmp_path / "a.onnx", out, what="all", keep=0.5, threads=threads, max_memory=memory)
        files.append(out.read_bytes())
    assert len(set(files)) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"what": "query_heads"}, "what must be of 'heads', 'ffn', 'channels', 'hidden', 'all' for an ONNX model"),
        ({"what": "heads"}, "what must name something in this model, got heads: d: 'y' is an output of the graph"),
        ({"what": "ffn", "keep": {"z": 2}}, "keep must name groups, got 'z', which none matches"),
        ({"what": "ffn", "config": "config.json"}, "config and then must be left out for an ONNX model"),
        ({"what": "ffn", "then": mo.QuantizeOptions(bits=8)}, "config and then must be left out for an ONNX model"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(tmp_path, options, text):
    with pytest.raises(OptionError, match=text):
        cropped(tmp_path, mixed(), **{"keep": 0.5, **options})
    assert not (tmp_path / "b.onnx").exists()


def test_units_with_a_nan_are_an_error_or_go_first(tmp_path):
    proto = mixed()
    for weight in proto.graph.initializer:
        if weight.name == "c":
            array = numpy_helper.to_array(weight).copy()
            array[0, 7] = np.nan
            weight.CopyFrom(numpy_helper.from_array(array, "c"))
    with pytest.raises(ValueError, match=r"tensor 'c': unit 7 of group 'c.ffn' has a NaN"):
        cropped(tmp_path, proto, what="ffn", keep=0.5)
    _, small = cropped(tmp_path, proto, what="ffn", keep=39, nonfinite="remove")
    [weight] = [numpy_helper.to_array(weight) for weight in small.graph.initializer if weight.name == "c"]
    assert not np.isnan(weight).any()


def test_external_data_are_read(tmp_path):
    proto = mixed()
    cropped(tmp_path, proto, what="all", keep=0.5)
    onnx.save(proto, tmp_path / "c.onnx", save_as_external_data=True, location="c.data", size_threshold=0)
    mo.crop_file(tmp_path / "c.onnx", tmp_path / "d.onnx", what="all", keep=0.5)
    assert (tmp_path / "d.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("dtype", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16])
@pytest.mark.parametrize("inner", [8, 48])
def test_16_bit_floats_are_cropped_in_files_and_in_memory(tmp_path, dtype, inner):
    net = Net({"x": ["n", 16]})
    h = "x"
    for name, shape in (("a", (16, inner)), ("b", (inner, 16))):
        h = net.add("Tanh", net.add("MatMul", h, net.add("Cast", net.w(name, *shape), to=1)))
    net.add("Identity", h, out="y")
    proto = net.proto()
    for weight in proto.graph.initializer:
        array = numpy_helper.to_array(weight).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    report, small = cropped(tmp_path, proto, what="ffn", keep=inner // 2)
    [group] = report.groups
    assert group.kept == inner // 2
    before, after = ({w.name: numpy_helper.to_array(w) for w in m.graph.initializer} for m in (proto, small))
    scores = (before["a"].astype(float) ** 2).sum(0) + (before["b"].astype(float) ** 2).sum(1)
    kept = np.sort(np.argsort(scores)[inner // 2 :])
    np.testing.assert_array_equal(after["a"].astype(float), before["a"][:, kept].astype(float))
    np.testing.assert_array_equal(after["b"].astype(float), before["b"][kept].astype(float))
    run(small, feeds_of(small))


def test_the_command_line_crops_and_prunes_models(tmp_path, capsys):
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from modelopt_rs.cli import main

    onnx.save(mixed(), tmp_path / "a.onnx")
    crop = ["crop", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx", "--what", "channels", "--keep", "0.5"]
    assert main([str(word) for word in crop]) == 0
    said = capsys.readouterr().out
    assert "kept  16 of 24 channels" in said
    assert "note  'd': all 5 outputs stay: 'y' is an output of the graph" in said
    prune = ["prune", tmp_path / "b.onnx", "-o", tmp_path / "c.onnx", "--n-of-m", "2:4"]
    assert main([str(word) for word in prune]) == 0
    small = onnx.load(tmp_path / "c.onnx")
    [c] = [numpy_helper.to_array(weight) for weight in small.graph.initializer if weight.name == "c"]
    assert ((c.reshape(-1, 4, c.shape[1]) != 0).sum(1) == 2).all()
