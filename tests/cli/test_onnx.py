"""`modelopt-rs quantize`, `prune` and `crop` of ONNX models: what is said, exit codes, what failures leave."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click", reason="the extra `cli` is not installed")
pytest.importorskip("rich", reason="the extra `cli` is not installed")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")

import onnx
from onnx import TensorProto, helper

from checkpoints import bert, files_of, write
from graph_nets import Net, net, with_node
from modelopt_rs.cli import main
from modelopt_rs.cli.show import show_reasons

Run = Callable[..., tuple[int, str, str]]
Fail = Callable[..., str]
COMMANDS = {
    "quantize": ["quantize", "--bits", "4"],
    "prune": ["prune", "--sparsity", "0.5"],
    "crop": ["crop", "--what", "all", "--keep", "0.5"],
}
INSTALL = 'running an ONNX model needs the extra onnx: pip install "modelopt_rs[onnx]"'
commands = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command; what onnxruntime writes by itself is caught, too."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def fail(run: Run, tmp_path: Path) -> Fail:
    """Run a command that must fail with a code, with an output that is new and one that is there; return its line."""

    def call(code: int, *arguments: object) -> str:
        lines = set()
        for old in (False, True):
            if old:
                (tmp_path / "out.onnx").write_bytes(b"old")
            before = files_of(tmp_path)
            got, _, err = run(*arguments, "-o", tmp_path / "out.onnx", "--overwrite", "--json", tmp_path / "r.json")
            assert (got, err.count("\n")) == (code, 1), err
            assert err.startswith("modelopt-rs: ")
            assert files_of(tmp_path) == before
            lines.add(err.removeprefix("modelopt-rs: ").rstrip("\n"))
        (line,) = lines
        return line

    return call


# ---- what is said


@commands
def test_a_model_is_written_and_what_it_costs_is_said(
    command: list[str], run: Run, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.onnx"
    code, said, err = run(*command, source, "-o", out, "--dim", "batch=4", "--rounds", 3, "--json", tmp_path / "r.json")
    assert (code, err) == (0, "")
    lines = said.splitlines()
    share = rf"{100 * out.stat().st_size / source.stat().st_size:.3g} % of it"
    assert re.fullmatch(rf"[\d.]+ kB -> [\d.]+ kB, {share}(; weights [\d.]+ % off)?", lines[0])
    assert lines[1] == f"{source} -> {out}"
    file = f"file  {source.stat().st_size:,} -> {out.stat().st_size:,} bytes (ratio "
    assert any(line.startswith(file) for line in lines)
    assert re.search(
        r"\nsmoke test  SQNR -?[\d.]+ dB, largest error \S+, cosine \S+ \(1 run on made-up inputs\)\n", said
    )
    latency = r"\nlatency  (\S+) -> (\S+) ms \(medians: ([\d.]+) x; in pairs [\d.]+ x as fast, the median of 3 pairs; "
    before, after, ratio = map(float, re.search(latency, said).groups())
    assert ratio == pytest.approx(before / after, rel=0.01, abs=0.006)  # two decimals are printed
    # H22: inputs that are made up measure nothing, and what would is named.
    assert "\nsmoke test  both run; how good the outputs are is measured on real inputs: --inputs DATA\n" in said
    assert re.search(r"\ntime  [\d.]+ s, peak memory \d+ MiB\n", said)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["command"] == command[0]
    assert report["run"]["inputs"] == [{"name": "x", "dtype": "float32", "shape": [4, 8, 8, 8]}]
    assert report["run"]["after"] == report["output"] == str(out)
    assert report["file_bytes"] == [source.stat().st_size, out.stat().st_size]


def test_quantize_says_which_forms_weights_got_and_why_others_are_left(run: Run, source: Path, tmp_path: Path) -> None:
    _, said, _ = run("quantize", source, "-o", tmp_path / "b.onnx", "--bits", 4, "--rounds", 0)
    assert "quantized  4 tensors\n" in said
    assert "form  2 tensors: MatMulNBits, blocks of 32\n" in said
    assert "form  1 tensor: Cast and Mul, blocks of 32\n" in said
    assert "form  1 tensor: 8 bits (4 bits would take 2,739 bytes, not 2,627): Cast and Mul, a scale for each" in said
    assert "left  1 tensor: no weight: used by Add\n" in said
    assert "latency" not in said


def test_reasons_of_single_nodes_are_not_listed_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    show_reasons("left", ["used by Add", "used by Add", *(f"node {i}" for i in range(14))])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "left  2 tensors: used by Add"
    assert said[1] == "left  1 tensor: node 0"
    assert said[10:] == ["left  5 tensors: other reasons, which --json lists"]


def test_reasons_that_differ_in_names_of_nodes_alone_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model in float16 each of a hundred layers has its own."""
    show_reasons("form", [f"MatMul 'l.{i}.q\\'s' computes in FLOAT16: kernels take float32" for i in range(14)])
    show_reasons("form", ["Gather 'g' has no kernel", *["MatMul 'm' has none"] * 2])
    assert capsys.readouterr().out.splitlines() == [
        "form  14 tensors: MatMul computes in FLOAT16: kernels take float32",
        "form  2 tensors: MatMul 'm' has none",
        "form  1 tensor: Gather 'g' has no kernel",
    ]


def test_a_model_that_is_quantized_is_neither_pruned_nor_cropped_in_silence(
    run: Run, source: Path, tmp_path: Path
) -> None:
    coded, out = tmp_path / "q.onnx", tmp_path / "p.onnx"
    assert run("quantize", source, "-o", coded, "--bits", 4, "--no-run")[0] == 0
    code, said, _ = run("prune", coded, "-o", out, "--sparsity", "0.5", "--no-run")
    assert code == 0
    assert re.search(r"\nnote  no tensor is pruned; the commonest reason: .*\n", said)
    code, _, err = run("crop", coded, "-o", out, "--what", "ffn", "--keep", "0.5", "--no-run", "--overwrite")
    assert code == 2
    assert re.search(r"weights of it are quantized already \(.*\): crop the model that it was made of", err)


def test_several_outputs_are_shown_one_by_one(run: Run, source: Path, tmp_path: Path) -> None:
    proto = onnx.load(source)
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    onnx.save(proto, source)
    code, said, _ = run("quantize", source, "-o", tmp_path / "b.onnx", "--samples", 3, "--rounds", 0)
    assert code == 0
    assert re.search(r"\ny +\d+\.\d+ .*-\n", said)
    assert re.search(r"\nlabel +- .*\d+\.\d+%\n", said)
    assert "(3 runs on made-up inputs)" in said


def test_given_inputs_and_peak_memory(run: Run, source: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((6, 8, 8, 8), np.float32))
    options = ["--inputs", tmp_path / "data.npz", "--dim", "batch=2", "--run-memory", "--rounds", 1]
    code, said, _ = run("prune", source, "-o", tmp_path / "b.onnx", "--n-of-m", "2:4", *options)
    assert code == 0
    assert "(3 runs on given inputs)" in said
    assert "the median of 1 pair; " in said
    assert re.search(r"\npeak memory of a run  \d+ -> \d+ MiB\n", said)


@pytest.mark.parametrize("form", ["file", "directory"])
def test_calibration_data_make_activations_static(run: Run, source: Path, tmp_path: Path, form: str) -> None:
    x = np.random.default_rng(5).standard_normal((4, 8, 8, 8)).astype(np.float32)
    data = tmp_path / ("data.npz" if form == "file" else "data")
    if form == "file":
        np.savez(data, x=x)
    else:
        data.mkdir()
        np.save(data / "0.npy", x)
    code, said, err = run("quantize", source, "-o", tmp_path / "b.onnx", "--calibrate", data, "--rounds", 0)
    assert (code, err) == (0, "")
    assert "activations by ranges of calibration data" in said or "int8" in said
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / "b.onnx").graph.node)


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "--n-of-m", "2:4", "--method", "wanda"],
        ["prune", "--sparsity", "0.5", "--method", "sparsegpt"],
        ["crop", "--keep", "0.5", "--what", "ffn"],
    ],
)
def test_calibration_data_say_what_goes(run: Run, tmp_path: Path, command: list[str]) -> None:
    """H35, H60."""
    model = Net({"x": ["n", 32]})
    h = model.add("Relu", model.add("MatMul", "x", model.w("up", 32, 64)))
    h = model.add("Relu", model.add("MatMul", h, model.w("down", 64, 32)))
    model.add("MatMul", h, model.w("head", 32, 8), out="y")
    onnx.save(model.proto(), tmp_path / "a.onnx")
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32))
    out = tmp_path / "b.onnx"
    code, _, err = run(
        *command, tmp_path / "a.onnx", "-o", out, "--calibrate", data, "--json", tmp_path / "report.json"
    )
    assert (code, out.exists()) == (0, True), err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["options"]["calibrate"] == str(data)


@commands
def test_a_dry_run_writes_nothing(command: list[str], run: Run, source: Path, tmp_path: Path) -> None:
    before = files_of(tmp_path)
    code, said, err = run(*command, source, "--dry-run")
    assert (code, err) == (0, "")
    assert "(dry run: nothing written)" in said
    assert "smoke test" not in said
    assert files_of(tmp_path) == before


@commands
def test_without_a_run_nothing_is_said_of_outputs(command: list[str], run: Run, source: Path, tmp_path: Path) -> None:
    code, said, err = run(*command, source, "-o", tmp_path / "b.onnx", "--no-run")
    assert (code, err) == (0, "")
    assert "file  " in said
    assert "smoke test" not in said


def test_inspect_shows_an_onnx_model(run: Run, source: Path) -> None:
    code, said, err = run("inspect", source)
    assert (code, err) == (0, "")
    assert "  F32   32x8x3x3               9,216" in said
    assert "5 tensors, " in said


# ---- exit codes


@commands
def test_f1_outputs_that_are_too_far_off(command: list[str], run: Run, fail: Fail, source: Path) -> None:
    line = fail(1, *command, source, "--max-error", "1e-9", "--rounds", 0)
    assert re.fullmatch(r"max_error: output 'y' is off by \S+, more than 1e-09", line)
    _, said, _ = run(*command, source, "-o", source.parent / "c.onnx", "--max-error", "1e-9", "--rounds", 0)
    assert said.startswith("smoke test  SQNR ")  # what it found is said all the same


@commands
def test_models_that_onnxruntime_refuses(command: list[str], fail: Fail, source: Path) -> None:
    name = "\x1b[31mwho"
    with_node(source, helper.make_node("Mystery", ["last"], ["y"], name=name, domain="custom"), domain="custom")
    line = fail(3, *command, source)
    assert line.startswith(f"{source}: onnxruntime refuses it: node '\\x1b[31mwho' (Mystery): ")


@commands
def test_models_with_a_node_that_lacks_an_attribute(command: list[str], fail: Fail, source: Path) -> None:
    with_node(source, helper.make_node("Concat", ["last", "last"], ["y"], name="join"))
    line = fail(3, *command, source)
    assert line == f"{source}: node 'join' (Concat): must have the attribute 'axis'"


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "link.bin", "a\0b", ""])
@commands
def test_e11_external_data_that_lead_elsewhere(
    command: list[str], fail: Fail, source: Path, tmp_path: Path, location: str
) -> None:
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    proto = onnx.load(source)
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    source.write_bytes(proto.SerializeToString())
    assert fail(3, *command, source).startswith(f"{source}: ")


@commands
def test_e11_a_hub_cache_needs_leave(command: list[str], run: Run, source: Path, tmp_path: Path) -> None:
    """The model and its data are links from a snapshot to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    onnx.save(onnx.load(source), blobs / "a", save_as_external_data=True, location="m.onnx_data", size_threshold=0)
    (blobs / "m.onnx_data").rename(blobs / "b")
    (snapshot / "m.onnx").symlink_to("../blobs/a")
    (snapshot / "m.onnx_data").symlink_to("../blobs/b")
    model, out = snapshot / "m.onnx", tmp_path / "b.onnx"
    code, _, err = run(*command, model, "-o", out)
    assert code == 3
    assert "is, or lies behind, a symbolic link" in err
    leave = ["--allow-symlinks-under", blobs]
    assert run(*command, model, "-o", out, *leave, "--rounds", 0)[::2] == (0, "")
    run(*command, source, "-o", tmp_path / "c.onnx", "--no-run")
    assert out.read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert run("compare", model, out, *leave, "--rounds", 0)[::2] == (0, "")
    assert run("inspect", model, *leave)[::2] == (0, "")
    assert run("inspect", model)[0] == 3


def test_e11_ids_are_looked_up_in_tables_of_a_hub_cache(run: Run, tmp_path: Path) -> None:
    net = Net({"ids": ["n", 4]})
    net.input_types["ids"] = TensorProto.INT64
    h = net.add("Gather", net.w("table", 300, 64), "ids")
    net.add("Tanh", net.add("MatMul", h, net.w("w", 64, 64)), out="y")
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    model = tmp_path / "snapshot" / "m.onnx"
    onnx.save(net.proto(), model, save_as_external_data=True, location="m.onnx_data", size_threshold=0)
    for name in ("m.onnx", "m.onnx_data"):
        (tmp_path / "snapshot" / name).rename(tmp_path / "blobs" / name)
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")
    np.savez(tmp_path / "data.npz", ids=np.arange(8).reshape(2, 4))
    leave = ["--allow-symlinks-under", tmp_path / "blobs", "--rounds", 0, "--overwrite"]
    for options in ([], ["--calibrate", tmp_path / "data.npz"]):
        code, said, err = run("quantize", model, "-o", tmp_path / "b.onnx", *leave, *options)
        assert (code, err) == (0, "")
        assert "quantized  2 tensors" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["quantize", "--max-error", "1", "--no-run"],
            2,
            "--max-error must not be given with --no-run: there is nothing",
        ),
        (["quantize", "--max-error", "nan"], 2, "max_error must be a finite number of 0 or more, got nan"),
        (["quantize", "--dim", "batch"], 2, "'batch' is not an axis and its length, such as batch=1"),
        (["quantize", "--dim", "bach=1"], 2, "dims: no input has an axis 'bach'; open axes: 'batch'"),
        (["quantize", "--inputs", "none.npz"], 1, "none.npz: No such file or directory"),
        (["quantize", "--calibrate", "none.npz"], 1, "none.npz: No such file or directory"),
        (
            ["quantize", "--activations", "static"],
            2,
            "calibrate must be given with activations 'static', got none; give ",
        ),
        (
            ["quantize", "--activations", "none", "--calibrate", "d"],
            2,
            "calibrate must be left out with activations 'none'",
        ),
        (["quantize", "--target", "tensorrt"], 2, "'tensorrt' is not one of 'onnxruntime', 'portable'"),
        (["quantize", "--smooth", "0"], 2, "smooth needs activations 'static', got 'none': it needs calibration data"),
        (["quantize", "--method", "mse"], 2, "method needs activations 'static', got 'none'"),
        (
            ["quantize", "--bias-correction", "--activations", "dynamic"],
            2,
            "bias_correction needs activations 'static', got 'dynamic'",
        ),
        (["quantize", "--equalize"], 2, "equalize needs activations 'dynamic' or 'static', got 'none'"),
        (["quantize", "--activations", "dynamic", "--bits", "4"], 2, "activations 'dynamic' needs bits 8, got 4"),
        (["quantize", "--opset", "99"], 2, "opset must be from 7 to 26, got 99"),
        (["quantize", "--smooth", "2"], 2, "smooth must be from 0 to 1, got 2.0"),
        (["quantize", "--group-size", "17", "--bits", "4"], 2, "group_size must be 0 or one of "),
        (["quantize", "--include", "nope"], 2, "include 'nope' matches no tensor"),
        (["quantize", "--exclude", "nope"], 2, "exclude 'nope' matches no tensor"),
        (["prune", "--sparsity", "0.5", "--include", "nope"], 2, "include 'nope' matches no tensor"),
        (
            ["prune", "--sparsity", "0.5", "--format", "bitmask"],
            2,
            "format must be 'dense' for an ONNX model, got 'bitmask'",
        ),
        (["crop", "--what", "heads", "--keep", "0.5"], 2, "what must name something in this model, got heads: "),
        (["crop", "--what", "ffn", "--keep", "nope=0.5"], 2, "keep must name groups, got 'nope', which none matches"),
        (
            ["crop", "--what", "ffn", "--keep", "0.5", "--config", "c"],
            2,
            "config and then must be left out for an ONNX",
        ),
        (["dequantize"], 3, "an ONNX model can't be dequantized: where it is quantized, its graph computes with"),
    ],
)
def test_wrong_options_have_a_message(
    run: Run, source: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    before = files_of(tmp_path)
    found, said, err = run(arguments[0], source, "-o", tmp_path / "b.onnx", *arguments[1:])
    assert (found, said, err.count("\n")) == (code, "", 1), err
    assert message in err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("option", ["--inputs", "--calibrate"])
def test_files_of_arrays_that_do_not_fit(run: Run, source: Path, tmp_path: Path, option: str) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((1, 8, 8, 8)))
    (tmp_path / "junk.npz").write_bytes(b"hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    before = files_of(tmp_path)
    for data, code, message in (
        (
            "data.npz",
            1,
            f"{option[2:]}: 'x' must be of dtype float32, got float64; convert it with .astype(np.float32)",
        ),
        ("junk.npz", 3, f"{tmp_path / 'junk.npz'}: not an .npz file of arrays, such as np.savez writes"),
        (
            "one.npy",
            1,
            f"{option[2:]}: 'x' must be of dtype float32, got float64; convert it with .astype(np.float32)",
        ),
    ):
        found, _, err = run("quantize", source, "-o", tmp_path / "b.onnx", option, tmp_path / data)
        assert (found, err) == (code, f"modelopt-rs: {message}\n")
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("command", ["prune", "crop"])
def test_a_second_step_is_refused(run: Run, source: Path, tmp_path: Path, command: str) -> None:
    found, _, err = run(*COMMANDS[command], source, "-o", tmp_path / "b.onnx", "--then", "quantize", "--bits", "4")
    assert found == 2
    assert "then must be left out for an ONNX model" in err
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--target", "portable"], "onnx (--target, --activations and others)"),
        (["--inputs", "data.npz"], "run (--inputs, --dim, --max-error and others)"),
    ],
)
def test_options_of_onnx_models_are_refused_for_others(run: Run, tmp_path: Path, options: list[str], what: str) -> None:
    model = write(tmp_path / "a.safetensors", bert())
    code, _, err = run("quantize", model, "-o", tmp_path / "b.safetensors", *options)
    message = f"{what} must be left out for a model that is no ONNX model, got it for {model}"
    assert (code, err) == (2, f"modelopt-rs: {message}\n")


# ---- as a process


def environment(folder: Path) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}


@pytest.mark.parametrize(
    ("command", "missing"), list(zip(COMMANDS.values(), ["onnx", "onnx_ir", "onnx"], strict=True)), ids=COMMANDS
)
def test_without_the_extra(command: list[str], source: Path, tmp_path: Path, missing: str) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / f"{missing}.py").write_text("raise ImportError('not installed')\n")
    done = subprocess.run(
        [sys.executable, "-m", "modelopt_rs", *command, source, "-o", tmp_path / "b.onnx"],
        capture_output=True,
        text=True,
        env=environment(tmp_path / "packages"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'modelopt-rs: open: an ONNX model needs the extra onnx: pip install "modelopt_rs[onnx]"\n'
    assert not (tmp_path / "b.onnx").exists()


def test_without_onnxruntime_a_model_is_written_that_is_not_run(source: Path, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "onnxruntime.py").write_text("raise ImportError('not installed')\n")
    for options, code, said in (
        ([], 1, f"modelopt-rs: open_session: {INSTALL}\n"),
        (["--no-run"], 0, ""),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "modelopt_rs", "quantize", source, "-o", tmp_path / "b.onnx", *options],
            capture_output=True,
            text=True,
            env=environment(tmp_path / "packages"),
        )
        assert (done.returncode, done.stderr) == (code, said)
        assert (tmp_path / "b.onnx").exists() == (code == 0)


@pytest.mark.parametrize(
    ("number", "code", "word", "old"),
    [(signal.SIGINT, 130, "interrupted", False), (signal.SIGTERM, 143, "terminated", True)],
)
def test_f4_a_signal_while_models_run_leaves_nothing_behind(
    source: Path, tmp_path: Path, number: int, code: int, word: str, old: bool
) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from modelopt_rs.cli import main
        from modelopt_rs.onnx.run import pair

        def slow(before, after, options, **_):
            print(after, flush=True)
            for _ in range(300):  # short: a signal just before a sleep is seen after it
                time.sleep(0.1)

        pair.run_pair = slow
        sys.exit(main(sys.argv[1:]))
        """
    )
    if old:
        (tmp_path / "b.onnx").write_bytes(b"old")
    before = files_of(tmp_path)
    arguments = [sys.executable, "-c", program, "quantize", source, "-o", tmp_path / "b.onnx", "--overwrite"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, f"modelopt-rs: {word}\n")
    assert files_of(tmp_path) == before
