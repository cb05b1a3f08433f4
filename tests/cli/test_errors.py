"""Errors of modelopt-rs: one line on stderr, an exit code, nothing written."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import LINEAR, bert, directory, weights, write
from modelopt_rs import InternalError, OptionError
from modelopt_rs.cli import main

pytest.importorskip("click")
pytest.importorskip("rich")

Fail = Callable[..., str]
SIZES = "256MiB, 1.5GiB, 300MB or 1048576"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", bert())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command; see modelopt-rs --help"),
        (["bogus"], "No such command 'bogus'; see modelopt-rs --help"),
        (["quantize"], "Missing argument 'FILE|DIR'; see modelopt-rs quantize --help"),
        (["inspect"], "Missing argument 'FILE|DIR'; see modelopt-rs inspect --help"),
        (["compare", "a"], "Missing argument 'B'; see modelopt-rs compare --help"),
        (["dequantize", "a"], "Missing option '-o' / '--output'; see modelopt-rs dequantize --help"),
        (
            ["optimize", "MODEL", "-o", "OUT"],
            "Missing option '--target-size' or '--target-bpw'; see modelopt-rs optimize --help",
        ),
        (["quantize", "MODEL"], "Missing option '-o' / '--output' (or --dry-run); see modelopt-rs quantize --help"),
        (
            ["quantize", "MODEL", "-o", "OUT", "--bits", "3"],
            "Invalid value for '--bits': '3' is not one of '8', '4', '2'.",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--scheme", "minmax"],
            "scheme 'minmax' can't be stored: the file layout has no offset; use 'asymmetric'",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--scheme", "odd"],
            "scheme must be 'symmetric' or 'asymmetric', got 'odd'",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--group-size", "-1"],
            "Invalid value for '--group-size': -1 is not in the range x>=0.",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--threads", "0"],
            "Invalid value for '--threads': 0 is not in the range 1<=x<=1024.",
        ),
        (["quantize", "MODEL", "-o", "OUT", "--include", "typo*"], "include 'typo*' matches no tensor"),
        (["quantize", "MODEL", "-o", "OUT", "--exclude", "typo*"], "exclude 'typo*' matches no tensor"),
        (
            ["quantize", "MODEL", "-o", "OUT", "--include", "*LayerNorm*"],
            "include '*LayerNorm*': tensor 'embeddings.LayerNorm.weight' can't be quantized: "
            "not 2-dimensional, but 1-dimensional",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--max-memory", "12furlongs"],
            "Invalid value for '--max-memory': must be a size such as " + SIZES + ", got '12furlongs'",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--max-memory", "-1"],
            "Invalid value for '--max-memory': must be a size such as " + SIZES + ", got '-1'",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--max-memory", "0.1"],
            "Invalid value for '--max-memory': must be at least one byte, got '0.1'",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--json", "--overwrite"],
            "Invalid value for '--json': '--overwrite' is an option; a file of that name is ./--overwrite",
        ),
        (
            ["quantize", "MODEL", "-o", "--bits"],
            "Invalid value for '-o' / '--output': '--bits' is an option; a file of that name is ./--bits",
        ),
        (
            ["inspect", "MODEL", "--report", "--json", "x"],
            "Invalid value for '--report': '--json' is an option; a file of that name is ./--json",
        ),
        (
            ["quantize", "MODEL", "-o", "OUT", "--threads", "x"],
            "Invalid value for '--threads': 'x' is not a valid whole number.",
        ),
        (
            ["calibrate", "MODEL", "-o", "OUT", "--calibrate", "x.npz"],
            "calibrate: MODEL must be an ONNX model or a Hugging Face directory: nothing runs it",
        ),
        (
            ["dequantize", "MODEL", "-o", "OUT", "--dtype", "int8"],
            "Invalid value for '--dtype': 'int8' is not one of 'float32', 'float16', 'bfloat16'.",
        ),
    ],
)
def test_usage(fail: Fail, model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out.safetensors")}
    assert fail(2, *(places.get(a, a) for a in arguments)) == message.replace("MODEL", places["MODEL"])


def test_memory_for_no_row(fail: Fail, model: Path, tmp_path: Path) -> None:
    message = fail(2, "quantize", model, "-o", tmp_path / "b", "--max-memory", "100B")
    assert message == "tensor 'embeddings.word_embeddings.weight': one row needs 256 bytes, max_memory is 100"


def test_missing(fail: Fail, model: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    line = f"{gone}: No such file or directory"
    assert fail(1, "inspect", gone) == line
    assert fail(1, "quantize", gone, "-o", tmp_path / "b") == line
    assert fail(1, "dequantize", gone, "-o", tmp_path / "b") == line
    assert fail(1, "compare", model, gone) == line
    assert fail(1, "compare", gone, model) == line


def test_output_exists(fail: Fail, model: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("precious")
    assert fail(1, "quantize", model, "-o", tmp_path / "b").startswith(f"{tmp_path / 'b'}: the file exists")
    source = directory(tmp_path / "d", bert())
    directory(tmp_path / "e", bert())
    assert fail(1, "quantize", source, "-o", tmp_path / "e").startswith(f"{tmp_path / 'e'}: the directory is not empty")


def test_output_in_no_directory(fail: Fail, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "no" / "b.safetensors"
    assert (
        fail(1, "quantize", model, "-o", out) == f"{out}: No such file or directory: there is no directory {out.parent}"
    )
    report = tmp_path / "no" / "r.json"
    assert (
        fail(1, "inspect", model, "--json", report)
        == f"{report}: No such file or directory: there is no directory {out.parent}"
    )


@pytest.mark.parametrize("command", [[], ["quantize"]])
def test_h_is_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "-h"]) == 0
    assert "Usage: modelopt-rs" in capsys.readouterr().out


def test_e17_not_a_regular_file(fail: Fail) -> None:
    assert "not a regular file" in fail(1, "inspect", "/dev/zero")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0{", b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}tail"],
)
def test_malformed(fail: Fail, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    for command in (["inspect"], ["quantize", "-o", tmp_path / "b"], ["dequantize", "-o", tmp_path / "b"]):
        assert fail(3, *command, tmp_path / "a.safetensors").startswith(f"{tmp_path / 'a.safetensors'}: ")


def test_not_a_model(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "x.txt").write_text("hello")
    fail(3, "inspect", tmp_path / "d")
    fail(3, "inspect", tmp_path / "x.txt")


def test_e16_names_in_errors_are_escaped(fail: Fail, tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", {"\x1b[31m\n.weight": ("F32", np.full((64, 64), np.nan, np.float32))})
    assert "'\\x1b[31m\\n.weight'" in fail(1, "quantize", a, "-o", tmp_path / "b")
    assert "\\x1b[31m: " in fail(1, "inspect", tmp_path / "\x1b[31m")


def test_nonfinite(fail: Fail, tmp_path: Path) -> None:
    model = bert()
    model[LINEAR[0]][1][3, 4] = np.nan
    a = write(tmp_path / "a.safetensors", model)
    message = fail(1, "quantize", a, "-o", tmp_path / "b")
    assert message.startswith(f"{a}: tensor '{LINEAR[0]}', rows from 0: ")


def test_quantized_already(fail: Fail, tmp_path: Path, model: Path) -> None:
    mo.quantize_file(model, tmp_path / "b.safetensors", durable=False)
    message = fail(3, "quantize", tmp_path / "b.safetensors", "-o", tmp_path / "c")
    assert message.endswith("and no other weight was chosen: dequantize it first, or include others")


def test_unsupported_quantization(fail: Fail, tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert(), {"quantization_config": {"quant_method": "gptq"}})
    assert "is quantized already by 'gptq'" in fail(3, "dequantize", source, "-o", tmp_path / "b")
    assert "quantized already" in fail(3, "quantize", source, "-o", tmp_path / "b")


def test_sharded_with_a_missing_shard(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "missing" in fail(3, "quantize", tmp_path / "a", "-o", tmp_path / "b")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("x"), 70, "internal error, please report it: KeyError: 'x'"),
        (TypeError("t"), 70, "internal error, please report it: TypeError: t"),
        (InternalError("kernel; please report"), 70, "kernel; please report"),
        (ModuleNotFoundError("no x", name="x"), 70, "internal error, please report it: ModuleNotFoundError: no x"),
        (ModuleNotFoundError("the extra `x` is missing"), 1, "the extra `x` is missing"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "/x/y"), 1, "/x/y: No space left on device"),
        (OSError("no number"), 1, "no number"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_codes(
    fail: Fail, model: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("modelopt_rs.cli.inspect.inspect_file", broken)
    assert fail(code, "inspect", model) == message


def test_a_broken_installation_ends_in_70(fail: Fail, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt_rs.cli.app", None)
    assert fail(70, "inspect", model).startswith(
        "the installation is broken, install modelopt_rs again: ModuleNotFound"
    )


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    arguments = ["inspect", str(tmp_path / "gone")]
    arguments.insert(0 if where == "before" else 2, "--debug")
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith(f"modelopt-rs: {tmp_path / 'gone'}: No such file or directory\n")


def test_weights_are_untouched_by_a_failed_overwrite(fail: Fail, tmp_path: Path) -> None:
    x = weights((4, 64))
    x[0, 0] = np.inf
    a = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", x)})
    fail(1, "quantize", a, "-o", a, "--overwrite")


def test_h31_an_option_of_the_first_step_stands_before_then(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prune", "a", "-o", "b", "--sparsity", "0.5", "--then", "quantize", "--bits", "4"]
    assert main([*arguments, "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("modelopt-rs: after --then quantize: No such option")
    assert err.endswith("; --overwrite must stand before --then\n")
    assert main([*arguments, "--nonsense"]) == 2
    assert "before --then" not in capsys.readouterr().err


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_h40_a_report_replaces_nothing_that_the_command_reads_or_writes(
    tmp_path: Path, model: Path, fail: Fail, link: str | None
) -> None:
    out, page = tmp_path / "b.safetensors", tmp_path / "page.html"
    path = model
    if link is not None:
        path = tmp_path / "other"
        getattr(path, link)(model)
    message = fail(2, "prune", model, "-o", out, "--sparsity", "0.5", "--json", path)
    assert message.startswith(f"Invalid value for '--json': '{path}' would replace a file of FILE|DIR")
    assert "a file of --output" in fail(2, "quantize", model, "-o", out, "--json", out, "--dry-run")
    assert "a file of --json" in fail(2, "quantize", model, "-o", out, "--json", page, "--report", page)
    assert "a file of B" in fail(2, "compare", out, model, "--json", path)
    assert "a file of MODEL" in fail(2, "calibrate", "--merge", out, model, "-o", page, "--json", path)


def test_h40_a_report_is_no_file_of_a_directory(tmp_path: Path, fail: Fail) -> None:
    model, out = directory(tmp_path / "model", bert()), tmp_path / "out"
    config = model / "config.json"
    assert "a file of FILE|DIR" in fail(2, "quantize", model, "-o", out, "--json", config)
    out.mkdir()
    assert "a file of --output" in fail(2, "quantize", model, "-o", out, "--json", out / "config.json")
    (out / "report.json").write_text("{}")
    assert main(["quantize", str(model), "-o", str(out), "--overwrite", "--json", str(out / "report.json")]) == 0
    assert json.loads((out / "report.json").read_text())["tensors"]
    beside = tmp_path / "report.json"
    for _ in range(2):  # the second replaces its own
        assert main(["quantize", str(model), "-o", str(out), "--overwrite", "--json", str(beside)]) == 0


def test_a_directory_is_not_said_to_be_a_file_that_overwrite_replaces(fail: Fail, model: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for more in ((), ("--overwrite",)):
        err = fail(1, "quantize", model, "-o", tmp_path / "there", *more)
        assert "there: is a directory, and a file is to be written: name one in it" in err
        assert "pass overwrite" not in err


def test_what_is_no_file_of_statistics_is_said_to_be_none(fail: Fail, model: Path, tmp_path: Path) -> None:
    err = fail(3, "quantize", model, "-o", tmp_path / "out", "--statistics", model)
    assert "is no file of statistics, such as calibrate_file (modelopt-rs calibrate) writes" in err


def test_a_size_that_embeddings_alone_exceed_names_what_takes_them(fail: Fail, tmp_path: Path) -> None:
    tensors = {"embeddings.weight": ("F32", weights((2048, 64))), "fc.weight": ("F32", weights((64, 64)))}
    model = write(tmp_path / "e.safetensors", tensors)
    err = fail(2, "optimize", model, "-o", tmp_path / "out", "--target-size", "100kB")
    assert "target_size must be from " in err
    assert "are of tensors that stay as they are, such as embeddings: include (--include) some" in err
    err = fail(2, "optimize", model, "-o", tmp_path / "out", "--target-size", "1GB")
    assert "stay as they are" not in err


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "--bits", "4", "--method", "gptq"],
        ["prune", "--sparsity", "0.5", "--method", "wanda"],
        ["crop", "--keep", "0.5", "--what", "ffn"],
        ["calibrate"],
    ],
)
def test_samples_that_are_not_there_are_missed_before_a_framework_is_imported(
    fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it is an ImportError
    config = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 64}
    up = {"encoder.layer.0.intermediate.dense.weight": ("F32", weights((128, 64)))}
    up["encoder.layer.0.intermediate.dense.bias"] = ("F32", weights((128,)))
    model = directory(tmp_path / "m", bert() | up, {**config, "intermediate_size": 128})
    err = fail(1, *command, model, "-o", tmp_path / "out", "--calibrate", tmp_path / "texts.txt")
    assert err == f"{tmp_path / 'texts.txt'}: No such file or directory"


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_report_needs_a_name(fail: Fail, model: Path, option: str) -> None:
    assert fail(2, "inspect", model, option, "") == f"Invalid value for '{option}': '' names no file"


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_number_of_threads_is_refused_before_anything_is_read(model: Path, tmp_path: Path, threads: int) -> None:
    out, want = tmp_path / "out", f"^threads must be from 1 to 1,024, got {threads}$"
    for call in (
        lambda: mo.quantize_file(model, out, threads=threads),
        lambda: mo.prune_file(model, out, sparsity=0.5, threads=threads),
        lambda: mo.optimize_file(model, out, target_bpw=8.0, threads=threads),
        lambda: mo.dequantize_file(model, out, threads=threads),
        lambda: mo.compare_files(model, model, threads=threads),
        lambda: mo.inspect_file(model, threads=threads),
    ):
        with pytest.raises(OptionError, match=want):
            call()
    assert not out.exists()


def test_a_command_without_standard_output_or_errors_does_its_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["quantize", str(model), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").exists()
    assert main(["compare", str(model), str(tmp_path / "out")]) == 0
    assert main(["inspect", str(tmp_path / "nothing")]) == 1
    assert main(["--version"]) == 0


@pytest.mark.parametrize("command", [["quantize"], ["prune", "--sparsity", "0.5"], ["optimize", "--target-bpw", "6"]])
@pytest.mark.parametrize("out", ["", "in", ".."])
def test_a_directory_around_or_in_the_source_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], out: str
) -> None:
    source = directory(tmp_path / "model", bert())
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    assert main([command[0], str(source), "-o", str(source / out), *command[1:]]) == 2
    assert "must not be the source's directory, in it or around it; choose another" in capsys.readouterr().err
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
