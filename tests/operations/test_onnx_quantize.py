"""Quantizing, pruning and cropping ONNX models from file to file: what is written, reported and refused."""

import errno
import json
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

import modelopt_rs as mo
from checkpoints import files_of
from graph_bert import bert
from graph_nets import Net, feeds_of, net, run, with_node
from modelopt_rs.containers.onnx import sink as sink_module
from modelopt_rs.errors import OptionError

Write = Callable[..., Any]
FAST = mo.RunOptions(rounds=0)
NAMES = ["first", "second", "fc", "fc_bias", "head"]  # of 1 KiB and more


FEEDS = feeds_of(net(), {"batch": 3})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def quantize(source: Path, out: Path, **options: Any) -> Any:
    return mo.quantize_file(source, out, **{"run": FAST, "durable": False, **options})


def prune(source: Path, out: Path, **options: Any) -> Any:
    how = {} if "n" in options else {"sparsity": 0.5}
    return mo.prune_file(source, out, **{"run": FAST, "durable": False, **how, **options})


def crop(source: Path, out: Path, **options: Any) -> Any:
    return mo.crop_file(source, out, **{"run": FAST, "durable": False, "keep": 0.5, "what": "all", **options})


each = pytest.mark.parametrize("write", [quantize, prune, crop])


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def initializers(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in proto.graph.initializer}


# ---- what is written runs, and the report says what it gives


def check_report(report: Any, source: Path, out: Path) -> None:
    """The model loads, and the report has what NumPy finds of its outputs on the same inputs."""
    small = onnx.load(out)
    onnx.checker.check_model(small, full_check=True)
    before, after = run(onnx.load(source), FEEDS)[0], run(small, FEEDS)[0]
    difference = before.astype(np.float64) - after
    assert report.file_bytes == (source.stat().st_size, out.stat().st_size)
    assert (report.run.before, report.run.after) == (str(source), str(out))
    assert report.run.inputs_from == "given"
    np.testing.assert_allclose(report.run.max_error, np.abs(difference).max(), rtol=1e-2, atol=1e-5)
    power = (before.astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(report.run.sqnr_db, 10 * np.log10(power / (difference**2).sum()), atol=0.1)
    assert all(tensor.reason for tensor in report.tensors)
    assert report.totals.changed + report.totals.left == len(report.tensors)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize(("bits", "ratio", "sqnr_db"), [(8, 3.5, 30.0), (4, 4.4, 12.0), (2, 6.0, -5.0)])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_weights_of_every_number_of_bits_and_target(
    source: Path, tmp_path: Path, bits: int, ratio: float, sqnr_db: float, target: str, scheme: str
) -> None:
    out, given = tmp_path / "b.onnx", mo.RunOptions(rounds=0, inputs=FEEDS)
    onnx_options = mo.OnnxOptions(target=target)
    report = quantize(source, out, bits=bits, scheme=scheme, onnx=onnx_options, run=given, uniform=True)
    check_report(report, source, out)
    assert [tensor.name for tensor in report.tensors] == NAMES
    decided = {tensor.name: (tensor.decision, tensor.reason) for tensor in report.tensors}
    assert decided["fc_bias"] == ("copy", "no weight: used by Add")
    assert {name for name, (decision, _) in decided.items() if decision == "quantize"} == {
        *("first", "second", "fc", "head")
    }
    assert report.totals.ratio > ratio
    assert report.run.sqnr_db > sqnr_db
    assert report.options["bits"] == bits
    assert report.options["group_size"] is None
    assert report.options["target"] == target
    domains = {node.domain for node in onnx.load(out).graph.node}
    assert ("com.microsoft" in domains) == (target == "onnxruntime" and bits < 8)


@pytest.mark.parametrize("operation", ["quantize", "dynamic", "prune", "crop"])
def test_strings_of_a_graph_come_along(tmp_path: Path, operation: str) -> None:
    model = net()
    model.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [2], [b"cat", b"dog"]))
    model.graph.node.append(helper.make_node("Identity", ["labels"], ["names"]))
    model.graph.output.append(helper.make_tensor_value_info("names", TensorProto.STRING, [2]))
    onnx.save(model, tmp_path / "a.onnx")
    paths = (tmp_path / "a.onnx", tmp_path / "b.onnx")
    if operation == "crop":
        report = mo.crop_file(*paths, keep=0.5, what="channels", run=FAST, durable=False)
    elif operation == "prune":
        report = prune(*paths)
    else:
        activations = "dynamic" if operation == "dynamic" else "none"
        report = quantize(*paths, onnx=mo.OnnxOptions(activations=activations))
    assert report.totals.changed > 0
    [names] = [output for output in report.run.outputs if output.name == "names"]
    assert names.agree == 1.0


def test_dynamic_activations(source: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "b.onnx", mo.RunOptions(rounds=0, inputs=FEEDS)
    report = quantize(source, out, onnx=mo.OnnxOptions(activations="dynamic"), run=given)
    check_report(report, source, out)
    assert report.run.sqnr_db > 25
    assert operators(out) & {"DynamicQuantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    assert report.options["activations"] == "dynamic"


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_static_activations_of_a_file_and_of_a_directory_are_the_same(
    source: Path, tmp_path: Path, method: str
) -> None:
    x = np.random.default_rng(5).standard_normal((12, 8, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    (tmp_path / "data").mkdir()
    for i, row in enumerate(x):
        np.save(tmp_path / "data" / f"{i:02}.npy", row[None])
    outs = []
    for data in (tmp_path / "data.npz", tmp_path / "data"):
        out = tmp_path / f"{data.name}.onnx"
        calibrated = mo.OnnxOptions(activations="static", calibrate=data, method=method)
        report = quantize(source, out, onnx=calibrated, run=mo.RunOptions(rounds=0, inputs=FEEDS))
        check_report(report, source, out)
        assert report.options["calibrate"] == str(data)
        assert report.run.sqnr_db > 15
        assert operators(out) & {"QuantizeLinear", "QLinearConv"}
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_pruned_models_have_the_zeros_of_the_report(source: Path, tmp_path: Path, scope: str) -> None:
    out = tmp_path / "b.onnx"
    report = prune(source, out, scope=scope, run=mo.RunOptions(rounds=0, inputs=FEEDS))
    check_report(report, source, out)
    zeros = {name: int((array == 0).sum()) for name, array in initializers(onnx.load(out)).items()}
    pruned = [tensor for tensor in report.tensors if tensor.decision == "prune"]
    # The head's result is the output of the model.
    assert {tensor.name for tensor in pruned} == {"first", "second", "fc"}
    assert all(tensor.zeros_after == zeros[tensor.name] for tensor in pruned)
    assert report.totals.sparsity_after == pytest.approx(0.5, abs=0.01)


def test_n_of_m_inputs_stay(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.onnx"
    report = prune(source, out, n=2, m=4, run=mo.RunOptions(rounds=0, inputs=FEEDS))
    check_report(report, source, out)
    weights = initializers(onnx.load(out))
    assert ((weights["fc"].reshape(16, 4, 256) != 0).sum(1) == 2).all()
    assert ((weights["second"].reshape(16, 8, 4, 4, 4) != 0).sum(2) == 2).all()


@pytest.mark.parametrize("what", ["ffn", "channels"])
def test_cropped_models_are_smaller(source: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "b.onnx"
    report = crop(source, out, what=what, run=mo.RunOptions(rounds=0, inputs=FEEDS))
    check_report(report, source, out)
    kept = {group.name: (group.units, group.kept) for group in report.groups}
    channels = {"first.channels": (32, 16), "second.channels": (16, 8)}
    assert kept == ({"fc.ffn": (256, 128)} if what == "ffn" else channels)
    assert report.file_bytes[1] < report.file_bytes[0]


def test_a_transformer_without_half_of_its_heads_runs(tmp_path: Path) -> None:
    proto = bert("lengths")
    onnx.save(proto, tmp_path / "a.onnx")
    given = mo.RunOptions(rounds=0, dims={"batch": 2, "words": 5})
    report = crop(tmp_path / "a.onnx", tmp_path / "b.onnx", what="heads", run=given)
    assert {(group.units, group.kept) for group in report.groups} == {(4, 2)}
    assert report.run.inputs[0].shape == (2, 5)
    feeds = feeds_of(proto, {"batch": 2, "words": 5})
    assert run(onnx.load(tmp_path / "b.onnx"), feeds)[0].shape == run(proto, feeds)[0].shape


# ---- reports


@each
def test_a_report_is_json_with_null_for_what_is_no_number(write: Write, source: Path, tmp_path: Path) -> None:
    run = mo.RunOptions(rounds=2, memory=write is quantize)  # two processes, the same for each operation
    report = json.loads(write(source, tmp_path / "b.onnx", run=run).to_json())
    assert report["schema"] == 1
    assert report["run"]["outputs"][0]["name"] == "y"
    assert report["run"]["rounds"] == 2
    assert report["run"]["latency_before_ms"] > 0
    assert write is not quantize or report["run"]["peak_memory_after"] > 1_000_000
    assert report["file_bytes"] == [source.stat().st_size, (tmp_path / "b.onnx").stat().st_size]
    untimed = json.loads(quantize(source, tmp_path / "c.onnx", exclude=["*"]).to_json())
    assert untimed["run"]["sqnr_db"] is None  # infinite: nothing changed
    assert untimed["run"]["max_error"] == 0.0
    assert untimed["run"]["speedup"] is None


@each
def test_f10_threads_and_memory_never_change_a_byte(write: Write, source: Path, tmp_path: Path) -> None:
    outs = set()
    for threads, memory in ((1, 2**28), (2, 2**28), (2, 120_000)):
        write(source, tmp_path / "b.onnx", threads=threads, max_memory=memory, overwrite=True)
        outs.add((tmp_path / "b.onnx").read_bytes())
    assert len(outs) == 1


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_f10_threads_and_memory_never_change_packed_codes(source: Path, tmp_path: Path, bits: int, target: str) -> None:
    outs = set()
    for threads, memory in ((1, 2**28), (2, 120_000)):
        options = {"threads": threads, "max_memory": memory, "overwrite": True, "bits": bits}
        quantize(source, tmp_path / "b.onnx", onnx=mo.OnnxOptions(target=target), **options)
        outs.add((tmp_path / "b.onnx").read_bytes())
    assert len(outs) == 1


@each
def test_a_dry_run_writes_nothing_and_runs_nothing(
    write: Write, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = write(source, tmp_path / "b.onnx")

    def never(*args: object, **options: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("modelopt_rs.onnx.check.run_pair", never)
    dry = write(source, tmp_path / "c.onnx", dry_run=True)
    assert not (tmp_path / "c.onnx").exists()
    assert (dry.run, dry.file_bytes) == (None, None)
    assert [(t.name, t.decision, t.reason) for t in dry.tensors] == [
        (t.name, t.decision, t.reason) for t in done.tensors
    ]
    assert dry.totals.bytes_after == done.totals.bytes_after


# ---- what is refused leaves everything as it was


def refused(write: Write, source: Path, error: type[BaseException], match: str | None, **options: Any) -> BaseException:
    """The operation fails, whether there is something at the output or not, and no file has changed."""
    out = source.parent / "out.onnx"
    for old, overwrite in ((None, False), (None, True), (b"old", True)):
        if old is not None:
            out.write_bytes(old)
        before = files_of(source.parent)
        with pytest.raises(error, match=match) as caught:
            write(source, out, **{"overwrite": overwrite, **options})
        assert files_of(source.parent) == before
    return caught.value


@each
def test_f1_nothing_is_written_where_outputs_are_too_far_off(write: Write, source: Path) -> None:
    limited = mo.RunOptions(rounds=0, max_error=1e-9)
    match = r"max_error: output 'y' is off by .*, more than 1e-09"
    error = refused(write, source, mo.MaxErrorExceeded, match, run=limited)
    assert error.report.max_error > 1e-9
    assert error.report.after == str(source.parent / "out.onnx")


def test_outputs_without_elements_are_near_nothing(source: Path) -> None:
    empty = mo.RunOptions(rounds=0, max_error=1.0, dims={"batch": 0})
    match = "max_error: the outputs have no elements that could be compared"
    refused(quantize, source, mo.MaxErrorExceeded, match, run=empty)


def test_outputs_that_are_near_enough_are_written(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "b.onnx", run=mo.RunOptions(rounds=0, max_error=100.0))
    assert 0.0 < report.run.max_error < 100.0
    assert (tmp_path / "b.onnx").exists()


@each
def test_an_operator_that_onnxruntime_lacks_is_named(write: Write, source: Path, tmp_path: Path) -> None:
    with_node(source, helper.make_node("Mystery", ["last"], ["y"], name="who", domain="custom"), domain="custom")
    named = (
        r"a\.onnx: onnxruntime refuses it: node 'who' \(Mystery\): .*; if another runtime takes it, leave the run out"
    )
    refused(write, source, mo.UnsupportedError, named)
    # Who has the operator elsewhere goes without the run.
    report = write(source, tmp_path / "b.onnx", run=None)
    assert report.run is None
    assert report.file_bytes == (source.stat().st_size, (tmp_path / "b.onnx").stat().st_size)
    assert "Mystery" in operators(tmp_path / "b.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("write", [quantize, prune, crop])
def test_a_node_that_cannot_run_is_named(write: Write, source: Path) -> None:
    """The shapes of a Reshape don't fit, which shows in a run alone."""
    proto = onnx.load(source)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([7, 11], np.int64), "shape"))
    onnx.save(proto, source)
    with_node(source, helper.make_node("Reshape", ["last", "shape"], ["y"], name="cut"))
    named = r"a\.onnx: onnxruntime .*node 'cut' \(Reshape\)"
    refused(write, source, mo.FormatError, named, run=mo.RunOptions(max_error=1.0))
    why = write(source, source.parent / "b.onnx").run.not_run
    assert re.search(named, why)
    assert "give inputs (--inputs DATA), or leave it out (--no-run)" in why


@each
def test_a_node_without_an_attribute_that_it_needs_is_named(write: Write, source: Path) -> None:
    with_node(source, helper.make_node("Concat", ["last", "last"], ["y"], name="join"))  # it must have an axis
    error = refused(write, source, mo.FormatError, r"a\.onnx: node 'join' \(Concat\): must have .* 'axis'", run=None)
    assert "out.onnx" not in str(error)


@each
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"dims": {"bach": 2}}, OptionError, "dims: no input has an axis 'bach'; open axes: 'batch'"),
        ({"inputs": {"z": np.zeros(3)}}, ValueError, "inputs: must have the model's inputs 'x': 'x' is missing"),
        ({"inputs": {"x": np.zeros((1, 8, 8, 8))}}, TypeError, "inputs: 'x' must be of dtype float32, got float64"),
        ({"inputs": "none.npz"}, FileNotFoundError, "none.npz"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_is_written(
    write: Write, source: Path, monkeypatch: pytest.MonkeyPatch, options: Any, error: type[Exception], match: str
) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(sink_module, "OnnxSink", never)
    monkeypatch.setattr("modelopt_rs.containers.onnx.OnnxSink", never)
    refused(write, source, error, match, run=mo.RunOptions(rounds=0, **options))


@each
def test_what_is_there_stays_without_overwrite(write: Write, source: Path, tmp_path: Path) -> None:
    (tmp_path / "b.onnx").write_bytes(b"old")
    with pytest.raises(FileExistsError, match="the file exists"):
        write(source, tmp_path / "b.onnx")
    assert files_of(tmp_path)["b.onnx"] == b"old"


def test_what_is_there_is_seen_before_calibration(source: Path, tmp_path: Path) -> None:
    def never() -> None:
        raise AssertionError("it calibrated")

    (tmp_path / "b.onnx").write_bytes(b"old")
    calibrated = mo.OnnxOptions(activations="static", calibrate=never)
    with pytest.raises(FileExistsError, match="the file exists"):
        quantize(source, tmp_path / "b.onnx", onnx=calibrated)
    with pytest.raises(OptionError, match="dims: no input has an axis 'bach'"):
        quantize(source, tmp_path / "c.onnx", onnx=calibrated, run=mo.RunOptions(dims={"bach": 1}))


@each
def test_f4_an_interrupted_run_leaves_nothing(write: Write, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelopt_rs.onnx.check.run_pair", interrupted)
    refused(write, source, KeyboardInterrupt, None)


@each
def test_f1_a_limit_to_the_size_of_files(write: Write, source: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, limits[1]))
    try:
        error = refused(write, source, OSError, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (error.errno, error.filename) == (errno.EFBIG, str(source.parent / "out.onnx"))


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system with less room than the model needs."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@each
def test_f1_a_full_disk(write: Write, source: Path, tiny: Path) -> None:
    with pytest.raises(OSError, match=r"needs .* free") as caught:
        write(source, tiny / "b.onnx")
    assert caught.value.errno == errno.ENOSPC
    assert list(tiny.iterdir()) == []


# ---- places


@each
@pytest.mark.parametrize("way", ["same", "symlink", "hard link", "dot"])
def test_f6_a_model_may_be_replaced_by_what_is_made_of_it(write: Write, source: Path, tmp_path: Path, way: str) -> None:
    write(source, tmp_path / "b.onnx")
    wanted = (tmp_path / "b.onnx").read_bytes()
    before = source.read_bytes()
    out = source
    if way == "symlink":
        out = tmp_path / "link.onnx"
        out.symlink_to(source.name)
    elif way == "hard link":
        out = tmp_path / "link.onnx"
        out.hardlink_to(source)
    elif way == "dot":
        (tmp_path / "d").mkdir()
        out = tmp_path / "d" / ".." / "a.onnx"
    report = write(source, out, overwrite=True)
    assert out.read_bytes() == wanted
    assert source.read_bytes() == (before if way == "hard link" else wanted)
    assert report.run.max_error > 0  # it ran beside the old one
    assert report.file_bytes == (len(before), len(wanted))


@each
def test_external_data_in_and_out(write: Write, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(source, tmp_path / "b.onnx")
    (tmp_path / "c").mkdir()
    onnx.save(
        onnx.load(source),
        tmp_path / "c" / "a.onnx",
        save_as_external_data=True,
        location="a.data",
        size_threshold=0,
    )
    report = write(tmp_path / "c" / "a.onnx", tmp_path / "inside.onnx")
    assert (tmp_path / "inside.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert report.file_bytes[0] == sum(len(data) for data in files_of(tmp_path / "c").values())
    monkeypatch.setattr(sink_module, "INLINE_MAX", 1000)
    (tmp_path / "d").mkdir()
    report = write(tmp_path / "c" / "a.onnx", tmp_path / "d" / "small.onnx")
    written = files_of(tmp_path / "d")
    assert len(written) == 2
    assert report.file_bytes[1] == sum(map(len, written.values()))
    theirs, ours = (run(onnx.load(tmp_path / name), FEEDS)[0] for name in ("b.onnx", "d/small.onnx"))
    np.testing.assert_array_equal(theirs, ours)
    assert report.run.max_error > 0


# ---- models with nothing to do


def test_a_model_without_weights_is_copied(tmp_path: Path) -> None:
    proto = Net({"x": ["n", 4]})
    proto.add("Relu", "x", out="y")
    onnx.save(proto.proto(), tmp_path / "a.onnx")
    report = quantize(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (report.totals.changed, report.tensors) == (0, ())
    assert report.run.max_error == 0.0
    report = prune(tmp_path / "a.onnx", tmp_path / "c.onnx")
    assert report.totals.changed == 0
    with pytest.raises(OptionError, match=r"what must name something in this model, .*: it has no weights"):
        crop(tmp_path / "a.onnx", tmp_path / "d.onnx")


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_what_is_quantized_already_stays(source: Path, tmp_path: Path, target: str) -> None:
    options = mo.OnnxOptions(target=target)
    quantize(source, tmp_path / "b.onnx", onnx=options, bits=4)
    report = quantize(tmp_path / "b.onnx", tmp_path / "c.onnx", onnx=options, bits=4)
    assert report.totals.changed == 0
    assert report.run.max_error == 0.0
    said = {tensor.name: tensor.reason for tensor in report.tensors}
    forms = ("Cast", "MatMulNBits") if target == "onnxruntime" else ("DequantizeLinear",) * 2
    assert said["second_quantized"] == f"quantized already ({forms[0]})"
    assert said["fc_quantized"] == f"quantized already ({forms[1]})"


def test_quantized_models_are_not_dequantized(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "b.onnx")
    match = r"b\.onnx: an ONNX model can't be dequantized: where it is quantized, its graph computes with"
    with pytest.raises(mo.UnsupportedError, match=match):
        mo.dequantize_file(tmp_path / "b.onnx", tmp_path / "c.onnx")
    with pytest.raises(mo.UnsupportedError, match=match):
        mo.files.open(tmp_path / "b.onnx", dequantize=True)
    assert not (tmp_path / "c.onnx").exists()
    assert any(tensor.dtype in ("U8", "I8") for tensor in mo.inspect_file(tmp_path / "b.onnx").tensors)


@pytest.mark.parametrize("which", ["include", "exclude"])
@pytest.mark.parametrize("write", [quantize, prune])
def test_globs_that_match_nothing_are_refused(write: Write, source: Path, which: str) -> None:
    refused(write, source, OptionError, f"{which} 'nope\\*' matches no tensor", **{which: ["nope*"]})


def test_options_that_other_formats_have_are_refused(source: Path) -> None:
    then = mo.QuantizeOptions(bits=4)
    refused(prune, source, OptionError, "then must be left out for an ONNX model", then=then)
    refused(crop, source, OptionError, "config and then must be left out for an ONNX model", then=then)
    refused(prune, source, OptionError, "format must be 'dense' for an ONNX model", format="bitmask")


def test_a_bool_input_and_a_string_input_are_run(tmp_path: Path) -> None:
    """What can't be generated must be given, and is then compared."""
    net = Net({"text": ["n"], "x": ["n", 64]})
    net.input_types["text"] = TensorProto.STRING
    net.add("Identity", "text", out="same")
    net.add("MatMul", "x", net.w("w", 64, 32), out="y")
    net.outputs = ["y", "same"]
    onnx.save(net.proto(), tmp_path / "a.onnx")
    report = quantize(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert "input 'text' has strings, which can't be generated; give inputs" in report.run.not_run
    (tmp_path / "b.onnx").unlink()
    given = {"text": np.array(["a", "b"]), "x": np.ones((2, 64), np.float32)}
    report = quantize(tmp_path / "a.onnx", tmp_path / "b.onnx", run=mo.RunOptions(inputs=given, rounds=0))
    assert {output.name: output.agree for output in report.run.outputs} == {"y": None, "same": 1.0}
