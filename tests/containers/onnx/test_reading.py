"""ONNX models: what is read is what onnx reads; weights are lazy initializers; a round trip changes nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

import modelopt_rs as mo  # noqa: E402
from modelopt_rs import files  # noqa: E402
from modelopt_rs.files import TensorInfo  # noqa: E402
from modelopt_rs.files.onnx import OnnxSource, placeholder  # noqa: E402
from onnx_samples import (  # noqa: E402
    CORPUS,
    NUMBERS,
    branches,
    constants,
    copy,
    dtype_model,
    functions,
    key,
    mlp,
    numbers,
    old_version,
    ours,
    resave,
    save,
    upstream,
)

LAZY = (ir.LazyTensor,)


def run(path: Path, seed: int = 0) -> list[np.ndarray]:
    """What onnxruntime makes of a model with given inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed: dict[str, Any] = {}
    for wanted in session.get_inputs():
        shape = [n if isinstance(n, int) else 3 for n in wanted.shape]
        feed[wanted.name] = np.array(seed % 2 == 0) if wanted.type == "tensor(bool)" else numbers(tuple(shape), seed)
    return list(session.run(None, feed))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", CORPUS)
def test_e20_tensors_are_those_that_onnx_reads(tmp_path: Path, name: str, external: bool) -> None:
    path = save(tmp_path / "m.onnx", CORPUS[name](), external=external)
    with OnnxSource(path) as source:
        assert ours(source) == upstream(onnx.load(path))
        for tensor, info in source.tensors.items():
            initializer = source.model.graph.initializers[tensor]
            assert isinstance(initializer.const_value, LAZY)
            assert (info.shape, info.nbytes) == (tuple(initializer.shape), initializer.const_value.nbytes)
            np.testing.assert_array_equal(source.read(tensor), initializer.const_value.numpy())
            tiles = [(t.first_row, t.array.copy()) for t in source.tiles(tensor, 300)]
            assert np.concatenate([a for _, a in tiles]).tobytes() == source.read(tensor).tobytes()
            assert [first for first, _ in tiles] == list(np.cumsum([0] + [len(a) for _, a in tiles])[:-1])
        lazy = [n for n, v in source.model.graph.initializers.items() if isinstance(v.const_value, LAZY)]
        assert list(source.tensors) == lazy


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", CORPUS)
def test_round_trip_runs_the_same(tmp_path: Path, name: str, external: bool) -> None:
    path = save(tmp_path / "m.onnx", CORPUS[name]())
    new = resave(path, tmp_path / "new.onnx", external=external)
    onnx.checker.check_model(new)
    for seed in (0, 1):
        for before, after in zip(run(path, seed), run(new, seed), strict=True):
            np.testing.assert_array_equal(before, after)
    assert upstream(onnx.load(new)) == upstream(onnx.load(path))
    once = resave(new, tmp_path / "once.onnx")
    assert resave(once, tmp_path / "twice.onnx").read_bytes() == once.read_bytes()


def shipped() -> list[Path]:
    """The models that the packages onnx and onnxruntime carry, of many operators and versions."""
    return sorted(p for package in (onnx, onnxruntime) for p in Path(package.__file__).parent.rglob("*.onnx"))


@pytest.mark.slow
def test_e20_models_of_the_packages(tmp_path: Path) -> None:
    """Read as onnx reads them, written so that the checker and onnxruntime take them, and giving the same."""
    for path in shipped():
        expected = upstream(onnx.load(path))
        with OnnxSource(path) as source:
            assert ours(source) == expected, path
            new = copy(source, tmp_path / "new.onnx", overwrite=True)
        assert upstream(onnx.load(new)) == expected, path
        onnx.checker.check_model(new)
        feed = [
            onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))
            for file in sorted(path.parent.glob("test_data_set_0/input_*.pb"))
        ]
        before = outcome(path, feed)
        assert before is None or outcome(new, feed) == before, path


def outcome(path: Path, feed: list[np.ndarray]) -> list[Any] | None:
    """What onnxruntime makes of a model, None if it doesn't run it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [wanted.name for wanted in session.get_inputs()]
        return [key(np.asarray(a)) for a in session.run(None, dict(zip(names, feed, strict=False)))]
    except Exception:  # of a type that the package doesn't give
        return None


@pytest.mark.parametrize(
    ("size", "raw"), [(1, True), (5, False), (500, True), (500, False), (1500, True), (1500, False)]
)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_dtype_in_every_form(tmp_path: Path, dtype: int, size: int, raw: bool) -> None:
    """E10: raw_data and the typed fields, below and above the size from which tensors are lazy."""
    path = save(tmp_path / "m.onnx", dtype_model(dtype, size, raw=raw))
    expected = onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    with OnnxSource(path) as source:
        assert key(source.model.graph.initializers["w"].const_value.numpy()) == key(expected)
        # Integers that stand in fewer bytes than 8 each stay as they are, as small tensors do.
        is_large = source.model.graph.initializers["w"].const_value.nbytes >= 1024
        assert ("w" in source.tensors) == (is_large and (raw or dtype != onnx.TensorProto.INT64))
        new = copy(source, tmp_path / "new.onnx")
    after = onnx.load(new).graph.initializer[0]
    assert after.data_type == dtype
    assert key(onnx.numpy_helper.to_array(after)) == key(expected)


@pytest.mark.parametrize(
    ("dtype", "spelled", "nbytes"), [("INT4", "I4", 1126), ("UINT2", "U2", 563), ("FLOAT4E2M1", "F4E2M1", 1126)]
)
def test_rows_of_packed_tensors_are_bytes(tmp_path: Path, dtype: str, spelled: str, nbytes: int) -> None:
    proto = dtype_model(onnx.TensorProto.DataType.Value(dtype), 750 if nbytes > 1000 else 1500, raw=True)
    with OnnxSource(save(tmp_path / "m.onnx", proto)) as source:
        info = source.tensors["w"]
        assert (info.dtype, info.rows, info.columns, info.row_nbytes) == (spelled, info.nbytes, 1, 1)
        assert source.read("w").dtype == np.uint8
        assert source.read("w").tobytes() == proto.graph.initializer[0].raw_data
        tiles = [t.array.copy() for t in source.tiles("w", 100)]
        assert {t.shape for t in tiles[:-1]} == {(100, 1)}
        assert np.concatenate(tiles).tobytes() == proto.graph.initializer[0].raw_data


def test_weights_are_initializers_of_the_graph(tmp_path: Path) -> None:
    for build in (constants, branches):
        with OnnxSource(save(tmp_path / "m.onnx", build())) as source:
            for graph in source.model.graphs():
                if graph is not source.model.graph:
                    assert not graph.initializers
                for node in graph:
                    assert node.op_type != "Constant" or node.attributes["value"].as_tensor().size == 1
    with OnnxSource(tmp_path / "m.onnx") as source:
        assert sorted(source.tensors) == ["i_1", "w", "w2_1", "w2_2"]


def test_a_name_that_two_bodies_use_is_given_once(tmp_path: Path) -> None:
    with OnnxSource(save(tmp_path / "m.onnx", branches())) as source:
        names = [n for graph in source.model.graphs() for node in graph for o in node.outputs for n in [o.name]]
        assert not set(names) & set(source.model.graph.initializers)
        np.testing.assert_array_equal(source.read("w"), numbers((32, 32), 0))


def test_old_versions_lose_inputs_that_nobody_could_set(tmp_path: Path) -> None:
    """What is read differs from onnx.load in the version and the inputs; onnxruntime hides those as well."""
    path = save(tmp_path / "m.onnx", old_version())
    with OnnxSource(path) as source:
        assert source.model.ir_version == 4
        assert [value.name for value in source.model.graph.inputs] == ["x"]


def test_what_is_not_a_tensor_survives(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", mlp())
    old, new = onnx.load(path), onnx.load(resave(path, tmp_path / "new.onnx"))
    with OnnxSource(path) as source:
        assert source.metadata == {"author": "nobody", "license": "é"}
    assert sorted(t.name for t in new.graph.initializer) == ["b", "w"]
    for proto in (old, new):
        del proto.graph.initializer[:]
    assert old == new
    # Of a function whose operators are others in the version of the model nobody knows that it means the same there.
    proto = functions()
    proto.functions[0].opset_import[0].version = 12
    path = save(tmp_path / "f.onnx", proto)
    old, new = onnx.load(path), onnx.load(resave(path, tmp_path / "f_new.onnx"))
    assert old.functions[0].name == new.functions[0].name
    assert [node.op_type for node in old.functions[0].node] == [node.op_type for node in new.functions[0].node]
    assert {o.domain: o.version for o in new.opset_import} == {"": 17, "custom": 1}


def test_small_tensors_are_in_memory_and_large_ones_are_read_on_demand(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", mlp())
    source = OnnxSource(path)
    assert list(source.tensors) == ["w"]
    assert source.tensors["w"] == TensorInfo("w", "F32", (64, 32), 8192)
    bias = source.model.graph.initializers["b"].const_value
    weight = source.model.graph.initializers["w"].const_value
    with path.open("r+b") as file:
        at = path.read_bytes().index(numbers((64, 32)).tobytes())
        file.seek(at)
        file.write(np.float32(42).tobytes())
    assert weight.numpy()[0, 0] == 42
    assert source.read("w")[0, 0] == 42
    source.close()
    source.close()
    np.testing.assert_array_equal(bias.numpy(), numbers((32,), 1))
    for use in (weight.numpy, lambda: source.read("w"), lambda: list(source.tiles("w", 10))):
        with pytest.raises(ValueError, match=r"m\.onnx: the file is closed"):
            use()


def test_errors_of_names(tmp_path: Path) -> None:
    with OnnxSource(save(tmp_path / "m.onnx", mlp())) as source:
        for use in (source.read, lambda name: source.tiles(name, 10)):
            with pytest.raises(KeyError, match="no tensor 'x"):
                use("x\n")


def test_open_knows_models_by_suffix_and_by_their_first_bytes(tmp_path: Path) -> None:
    for name in ("m.onnx", "0a1b2c"):
        with files.open(save(tmp_path / name, mlp())) as source:
            assert isinstance(source, OnnxSource)
            assert list(source.tensors) == ["w"]


def test_inspect_reads_every_dtype(tmp_path: Path) -> None:
    for dtype in NUMBERS:
        report = mo.inspect_file(save(tmp_path / "m.onnx", dtype_model(dtype, 3000, raw=True)))
        (tensor,) = report.tensors
        assert tensor.shape == (3000, 3)
        assert (tensor.min, tensor.max) in ((0, 1), (None, None))
        assert (tensor.min is None) == tensor.dtype.startswith(("F8", "F6E", "F4E", "I4", "U4", "I2", "U2", "C"))
    command = [sys.executable, "-m", "modelopt_rs", "inspect", str(save(tmp_path / "m.onnx", mlp()))]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "64x32" in shown.stdout
    assert shown.stderr == ""


def test_placeholders_have_no_values() -> None:
    tensor = placeholder("w\n", ir.DataType.UINT4, (3, 5))
    assert (tensor.nbytes, tuple(tensor.shape), tensor.dtype) == (8, (3, 5), ir.DataType.UINT4)
    for read in (tensor.numpy, tensor.tobytes):
        with pytest.raises(ValueError, match=r"placeholder: tensor 'w\\n' has no values before it is written"):
            read()


@pytest.mark.parametrize("missing", ["onnx", "onnx_ir"])
def test_without_the_extra_the_error_names_it(tmp_path: Path, missing: str) -> None:
    """In Python, and in one line of the command line."""
    script = f"""
import sys
sys.modules[{missing!r}] = None
import modelopt_rs
try:
    modelopt_rs.files.open({str(save(tmp_path / "m.onnx", mlp()))!r})
except ImportError as error:
    print(error)
from modelopt_rs.cli import main
sys.argv = ["modelopt-rs", "inspect", {str(tmp_path / "m.onnx")!r}]
sys.exit(main())
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    message = 'open: an ONNX model needs the extra onnx: pip install "modelopt_rs[onnx]"\n'
    assert (shown.stdout, shown.stderr, shown.returncode) == (message, "modelopt-rs: " + message, 1)


def test_the_package_imports_without_onnx() -> None:
    script = "import sys, modelopt_rs; print([m for m in sys.modules if m.split('.')[0].startswith('onnx')])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_labels_in_a_byte_each_stay_in_a_byte_each(tmp_path: Path) -> None:
    helper, int64 = onnx.helper, onnx.TensorProto.INT64
    labels = helper.make_tensor("labels", int64, [600], np.arange(600) % 10)  # not raw: as varints
    nodes = [helper.make_node("Gather", ["labels", "x"], ["y"])]
    given, made = (helper.make_tensor_value_info(name, int64, ["n"]) for name in "xy")
    path = save(tmp_path / "m.onnx", helper.make_model(helper.make_graph(nodes, "g", [given], [made], [labels])))
    new = resave(path, tmp_path / "new.onnx")
    assert new.stat().st_size <= path.stat().st_size
    assert (onnx.numpy_helper.to_array(onnx.load(new).graph.initializer[0]) == np.arange(600) % 10).all()
