"""Files of statistics: what one run writes another adds to, and quantize takes instead of samples."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx

import modelopt_rs as mo
from graph_nets import Net
from modelopt_rs.errors import OptionError
from modelopt_rs.planning.statistics import StatisticsFile

RNG = np.random.default_rng(0)
# Small integers: their products add up exactly.
X = RNG.integers(-8, 9, (96, 64)).astype(np.float32)
X[:, 5] *= 16
W = RNG.normal(size=(96, 64)).astype(np.float32)
OPTIONS: dict[str, Any] = {"bits": 4, "scheme": "symmetric", "uniform": True, "durable": False, "overwrite": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = Net({"x": ["n", 64]})
    h = net.add("Relu", net.add("Gemm", "x", net.w("fc.weight", 96, 64), net.w("b", 96), transB=1))
    net.weights["fc.weight"] = W
    net.add("MatMul", net.add("Round", h), net.w("head", 96, 64), out="y")
    onnx.save(net.proto(), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def matrix(path: Path) -> Path:
    """Write a safetensors file of the same weight twice."""
    names = ("fc.weight", "other.weight")
    infos = [mo.files.TensorInfo(name, "F32", W.shape, W.nbytes) for name in names]
    with mo.files.SafetensorsSink(path, infos, durable=False) as sink:
        for name in names:
            sink.write(name, W)
        sink.commit()
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    with mo.files.open(path) as source:
        return {name: source.read(name) for name in source.tensors}


@pytest.mark.parametrize("kind", ["hessian", "norms"])
def test_two_runs_add_up_to_one_bit_for_bit_where_sums_are_exact(kind: str, model: Path, tmp_path: Path) -> None:
    paths = []
    for name, rows in {"one": X, "left": X[:30], "right": X[30:]}.items():
        paths.append(tmp_path / f"{name}.safetensors")
        report = mo.calibrate_file(
            model, paths[-1], calibrate={"x": rows}, kind=kind, include=["fc.weight"], durable=False
        )
        assert [(each.name, each.columns, each.rows) for each in report.weights] == [("fc.weight", 64, len(rows))]
    merged = mo.merge_statistics(paths[1:], tmp_path / "sum.safetensors", durable=False)
    assert merged.weights[0].rows == len(X)
    assert (tmp_path / "sum.safetensors").read_bytes() == paths[0].read_bytes()
    found = read(paths[0])
    wide = X.astype(np.float64)
    part, want = ("products", wide.T @ wide) if kind == "hessian" else ("squares", np.square(wide).sum(0))
    np.testing.assert_allclose(
        found[f"fc.weight.{part}"].reshape(want.shape), want, rtol=0 if kind == "hessian" else 1e-12
    )
    with mo.files.open(paths[0]) as source:
        assert source.metadata["modelopt_rs.statistics"] == "1"
        assert source.metadata["kind"] == kind


def test_merged_files_are_one_run_up_to_rounding(model: Path, tmp_path: Path) -> None:
    x = RNG.normal(size=(96, 64)).astype(np.float32)
    for name, rows in {"one": x, "left": x[:30], "right": x[30:]}.items():
        mo.calibrate_file(model, tmp_path / name, calibrate={"x": rows}, durable=False)
    mo.merge_statistics([tmp_path / "left", tmp_path / "right"], tmp_path / "sum", durable=False)
    one, both = read(tmp_path / "one"), read(tmp_path / "sum")
    assert one.keys() == both.keys()
    assert all(np.allclose(one[name], both[name], rtol=1e-12, atol=1e-9) for name in one)


def test_a_file_gives_the_bytes_that_samples_give(model: Path, tmp_path: Path) -> None:
    mo.calibrate_file(model, tmp_path / "stats", calibrate={"x": X}, durable=False)
    how: dict[str, Any] = {**OPTIONS, "run": None, "method": "gptq"}
    mo.quantize_file(model, tmp_path / "b.onnx", **how, calibrate={"x": X})
    report = mo.quantize_file(model, tmp_path / "c.onnx", **how, statistics=tmp_path / "stats")
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert sum(each.reason.endswith("; GPTQ") for each in report.tensors) == 2


@pytest.mark.parametrize("method", ["gptq", None])
def test_a_safetensors_file_is_rounded_without_running_it(method: str | None, model: Path, tmp_path: Path) -> None:
    mo.calibrate_file(model, tmp_path / "stats", calibrate={"x": X}, include=["fc.weight"], durable=False)
    source, out = matrix(tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    report = mo.quantize_file(source, out, **OPTIONS, method=method, statistics=tmp_path / "stats")
    reasons = {each.name: each.reason for each in report.tensors}
    words = "GPTQ" if method else "searched by what goes in"
    assert reasons["fc.weight"].endswith(f"; {words}")
    assert reasons["other.weight"].endswith(f"; not {words}: the statistics have nothing of it")
    assert len(report.warnings) == 1
    hessian = mo.prune.Hessian()
    hessian.update(X)
    more: dict[str, Any] = {"bits": 4, "group_size": 32, "search": "mse", "scale_dtype": "float16"}
    if method:
        want = mo.quant.gptq(W, hessian, act_order="groups", **more)
    else:
        squares = np.square(X).mean(0)
        want = mo.quantize(W, weights=squares / squares.max(), **more)
    with mo.files.open(out) as file, mo.files.plain(file) as plain:
        for name, each in {"fc.weight": want, "other.weight": mo.quantize(W, **more)}.items():
            np.testing.assert_allclose(plain.read(name), each.dequantize(), rtol=2**-7, atol=1e-6)


def imatrix(path: Path, squares: dict[str, np.ndarray], calls: int = 4) -> Path:
    data = struct.pack("<i", len(squares))
    for name, values in squares.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += (calls * values).astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", 4, 1) + b"x")
    return path


def gguf_imatrix(path: Path, squares: dict[str, np.ndarray]) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, arch="", use_temp_file=False)
    writer.add_type("imatrix")
    for name, values in squares.items():
        writer.add_tensor(f"{name}.in_sum2", (8 * values).astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[8]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("write", [imatrix, gguf_imatrix])
def test_an_importance_matrix_weighs_columns_as_the_array_function_does(write: Any, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    info = mo.files.TensorInfo(name, "F32", W.shape, W.nbytes)
    with mo.files.SafetensorsSink(tmp_path / "model.safetensors", [info], durable=False) as sink:
        sink.write(name, W)
        sink.commit()
    squares = np.square(X.astype(np.float64)).mean(0)
    path = write(tmp_path / "imatrix", {"blk.0.ffn_down.weight": squares, "blk.0.unknown.weight": squares})
    report = mo.quantize_file(tmp_path / "model.safetensors", tmp_path / "out.safetensors", **OPTIONS, statistics=path)
    assert report.tensors[0].reason.endswith("; searched by what goes in")
    weights = (squares / squares.max()).astype(np.float32)
    want = mo.quantize(W, bits=4, group_size=32, search="mse", weights=weights, scale_dtype="float16")
    with mo.files.open(tmp_path / "out.safetensors") as source, mo.files.plain(source) as plain:
        got = plain.read(name)
    np.testing.assert_allclose(got, want.dequantize(), rtol=2**-7, atol=1e-6)
    off = [float((squares * np.square(W - each)).sum()) for each in (got, _searched())]
    assert off[0] < off[1]


def _searched() -> np.ndarray:
    return mo.fake_quantize(W, bits=4, group_size=32, search="mse", scale_dtype="float16")


def test_what_does_not_fit_is_refused_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    mo.calibrate_file(model, tmp_path / "norms", calibrate={"x": X}, kind="norms", durable=False)
    mo.calibrate_file(model, tmp_path / "stats", calibrate={"x": X}, durable=False)
    (tmp_path / "junk").write_bytes(b"no statistics at all")
    other = Net({"x": ["n", 32]})
    other.add("Gemm", "x", other.w("fc.weight", 96, 32), out="y", transB=1)
    onnx.save(other.proto(), tmp_path / "other.onnx")
    mo.calibrate_file(tmp_path / "other.onnx", tmp_path / "wide", calibrate={"x": X[:, :32]}, durable=False)
    out, how = tmp_path / "out.onnx", {**OPTIONS, "run": None}
    cases: list[tuple[Any, str]] = [
        (
            lambda: mo.quantize_file(model, out, **how, method="gptq", statistics=tmp_path / "norms"),
            r"^statistics must have Hessians for method 'gptq', got norms alone$",
        ),
        (
            lambda: mo.quantize_file(model, out, **how, method="gptq", statistics=tmp_path / "wide"),
            r"^statistics of 'fc.weight' must have 64 inputs, got 32$",
        ),
        (
            lambda: mo.quantize_file(model, out, **how, statistics=tmp_path / "junk"),
            r"junk: no file of statistics, and no importance matrix of llama.cpp$",
        ),
        (
            lambda: mo.quantize_file(
                model, out, **how, method="gptq", statistics=tmp_path / "stats", calibrate={"x": X}
            ),
            r"^calibrate must be left out with statistics, got both$",
        ),
        (
            lambda: mo.quantize_file(model, out, **how, search=None, statistics=tmp_path / "stats"),
            r"^statistics must be left out without method where no scales are searched$",
        ),
        (
            lambda: mo.quantize_file(
                matrix(tmp_path / "m.safetensors"), tmp_path / "n", **how, method="awq", statistics=tmp_path / "stats"
            ),
            r"^method must be 'gptq' for this model, got 'awq': only of llama, mistral",
        ),
        (
            lambda: mo.quantize_file(model, out, **how, method="gptq", statistics=matrix(tmp_path / "n.safetensors")),
            r"is no file of statistics, such as calibrate_file",
        ),
        (
            lambda: mo.merge_statistics([tmp_path / "stats"], out),
            r"^paths must be two or more files of statistics, got 1$",
        ),
        (
            lambda: mo.merge_statistics([tmp_path / "stats", tmp_path / "norms"], out),
            r"^paths must be of one kind, got 'hessian' and 'norms'$",
        ),
        (
            lambda: mo.merge_statistics([tmp_path / "stats", tmp_path / "wide"], out),
            r"^paths: 'fc.weight' must have 64 inputs in all, got 32$",
        ),
        (
            lambda: mo.calibrate_file(model, out, calibrate={"x": X}, kind="best"),
            r"^kind must be 'hessian' or 'norms', got 'best'$",
        ),
        (
            lambda: mo.calibrate_file(model, out, calibrate={"x": X}, include=["nothing*"]),
            r"^include 'nothing\*' matches no tensor$",
        ),
        (
            lambda: mo.calibrate_file(model, out, calibrate={"x": X}, exclude=["*"]),
            r"^calibrate: no weight's inputs can be seen, or all are excluded$",
        ),
        (
            lambda: mo.calibrate_file(matrix(tmp_path / "o.safetensors"), out, calibrate={"x": X}),
            r"^calibrate: .*o\.safetensors must be an ONNX model or a Hugging Face directory: nothing runs it$",
        ),
    ]
    for call, text in cases:
        with pytest.raises(ValueError, match=text):
            call()
    assert not out.exists()


def test_a_truncated_importance_matrix_is_malformed(tmp_path: Path) -> None:
    data = imatrix(tmp_path / "whole", {"blk.0.ffn_up.weight": np.ones(16)}).read_bytes()
    for end in range(10, 4 + 4 + 19 + 8 + 64, 7):
        (tmp_path / "cut").write_bytes(data[:end])
        with pytest.raises(mo.FormatError, match="importance matrix"):
            StatisticsFile(tmp_path / "cut")


def test_one_file_is_no_list_and_options_are_checked(model: Path, tmp_path: Path) -> None:
    with pytest.raises((OptionError, TypeError), match="paths"):
        mo.merge_statistics("stats", tmp_path / "out")  # type: ignore[arg-type]


def gguf_of(tensors: int, values: bytes = b"", count: int = 0, infos: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + values + infos


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


ARRAY = text(b"a") + struct.pack("<II", 9, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no file of statistics"),
        (struct.pack("<i", 0) + b"x" * 40, "no file of statistics"),
        (struct.pack("<i", -5) + b"x" * 40, "no file of statistics"),
        (gguf_of(1 << 60), "bytes are wanted"),
        (gguf_of(0, count=1 << 62), "bytes are wanted"),
        (gguf_of(0, ARRAY + struct.pack("<Q", 1 << 62), 1), "bytes are wanted"),  # gguf 0.19 never ends
        (gguf_of(0, text(b"a") + struct.pack("<IIQ", 9, 9, 1), 1), "arrays in arrays"),
        (gguf_of(0, text(b"a") + struct.pack("<I", 77), 1), "a value of kind 77"),
        (gguf_of(0, text(b"general.alignment") + struct.pack("<II", 4, 13), 1), "alignment 13 is no power of two"),
        (gguf_of(0, text(b"\xff") + struct.pack("<IB", 0, 1), 1), "a name is not UTF-8"),
        (gguf_of(1, infos=text(b"t") + struct.pack("<IQIQ", 1, 1 << 63, 0, 0)), "'t' reaches beyond the file"),
        (gguf_of(1, infos=text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 7)), "'t' reaches beyond the file, or is not al"),
        (gguf_of(0, version=1 << 24), "version 16,777,216 is not supported"),
        (gguf_of(0), "it has no sums of squares"),
    ],
)
def test_broken_importance_matrices_are_refused_at_once(tmp_path: Path, data: bytes, message: str) -> None:
    """E1 to E4, E9: no number that a file declares is believed before as many bytes are there."""
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(mo.FormatError, match=message):
        StatisticsFile(tmp_path / "a")


def test_statistics_that_are_no_regular_file_are_not_waited_for(tmp_path: Path) -> None:
    """E17."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises((ValueError, OSError), match=r"regular file|directory"):
            StatisticsFile(path)
