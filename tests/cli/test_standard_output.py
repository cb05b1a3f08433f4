"""Where what a command says goes: results to standard output or to a file with a name, what is no result to neither."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, directory, write
from modelopt_rs.cli import main

pytest.importorskip("click")
pytest.importorskip("rich")

Run, Fail = Callable[..., str], Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", bert())


def test_a_report_on_standard_output_stands_there_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "b.safetensors"
    for command in (
        ["quantize", str(model), "-o", str(out)],
        ["quantize", str(model), "--dry-run"],
        ["inspect", str(model)],
        ["compare", str(model), str(out)],
        ["dequantize", str(out), "-o", "c.safetensors"],
        ["prune", str(model), "-o", "d.safetensors", "--sparsity", "0.5"],
    ):
        assert main([*command, "--json", "-"]) == 0
        said, aside = capsys.readouterr()
        assert json.loads(said)["schema"] == 1
        assert "tensor" in aside  # what people read is still said
    assert not Path("-").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "-"),
        ("-o", "OUT", "--statistics", "-"),
        ("-o", "OUT", "--report", "-"),
        ("-o", "OUT", "--allow-symlinks-under", "-"),
    ],
)
def test_no_other_file_is_called_by_a_dash(
    fail: Fail, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    err = fail(2, "quantize", model, *options)
    assert "'-' is no file: only --json FILE may be standard output; a file of that name is ./-" in err
    assert main(["quantize", str(model), "-o", "./-"]) == 0
    assert Path("-").is_file()


@pytest.mark.parametrize("command", [["calibrate", "-o", "s", "--calibrate", "d"], ["compare"], ["inspect"]])
@pytest.mark.parametrize("name", ["", "-"])
def test_a_model_has_a_name(fail: Fail, command: list[str], name: str) -> None:
    command = [*command, "a.onnx"] if command[0] == "compare" else command
    assert fail(2, *command, name).startswith("Invalid value for '")


@pytest.mark.parametrize("option", ["--json", "-o", "--calibrate"])
def test_statistics_are_written_to_a_file_that_has_a_name(fail: Fail, option: str) -> None:
    given = {"-o": "s.safetensors", "--calibrate": "d.npz", "--json": "r.json", option: ""}
    err = fail(2, "calibrate", "a.onnx", *(part for pair in given.items() for part in pair))
    assert err.endswith("'' names no file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("more", [(), ("--json", "-")])
def test_standard_output_that_is_full_says_what_is_written_all_the_same(
    model: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "modelopt_rs", "quantize", str(model), "-o", str(tmp_path / "b"), *more]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    said = f"modelopt-rs: standard output: No space left on device; {tmp_path / 'b'} is written all the same\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert mo.compare_files(model, tmp_path / "b").tensors
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command[:5], "--dry-run"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "modelopt-rs: standard output: No space left on device\n")


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_report_without_a_place_is_missed_before_any_work(
    fail: Fail, model: Path, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "nowhere" / "r.html"
    err = fail(1, "quantize", model, "-o", tmp_path / "b", option, path)
    assert err == f"{path}: No such file or directory: there is no directory {path.parent}"
    (tmp_path / "r.html").mkdir()
    err = fail(1, "quantize", model, "-o", tmp_path / "b", option, tmp_path / "r.html")
    assert err.startswith(f"{tmp_path / 'r.html'}: is a directory")


def test_a_share_may_be_said_in_per_cent(run: Run, fail: Fail, tmp_path: Path) -> None:
    model = directory(tmp_path / "m", bert(), {"model_type": "bert"})
    one, other = tmp_path / "one", tmp_path / "other"
    for out, share in ((one, "0.625"), (other, "62.5%")):
        run("prune", model, "-o", out, "--sparsity", share)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    for share in ("half", "%", "50%%", "1e1%", ""):
        err = fail(2, "prune", model, "-o", tmp_path / "no", "--sparsity", share)
        assert err == f"Invalid value for '--sparsity': {share!r} is not a share such as 0.5 or 50%"
    assert "from 0 to 1" in fail(2, "prune", model, "-o", tmp_path / "no", "--sparsity", "150%")


@pytest.mark.parametrize("options", [("--inputs", "x.npz"), ("--dim", "n=2"), ("--run-memory",), ("--max-error", "1")])
def test_what_only_a_run_needs_is_not_ignored_without_one(fail: Fail, model: Path, options: tuple[str, ...]) -> None:
    err = fail(2, "compare", model, model, "--no-run", *options)
    assert err == f"{options[0]} must not be given with --no-run: there is nothing to compare"


def test_links_lead_beneath_a_directory_that_is_there(fail: Fail, model: Path, tmp_path: Path) -> None:
    for nowhere in (tmp_path / "nowhere", model):
        err = fail(2, "inspect", model, "--allow-symlinks-under", nowhere)
        assert err == f"allow_symlinks_under must be a directory, got '{nowhere}'"
        with pytest.raises(mo.OptionError, match=r"^allow_symlinks_under must be a directory"):
            mo.inspect_file(model, allow_symlinks_under=nowhere)
    assert np.isfinite(mo.inspect_file(model, allow_symlinks_under=tmp_path).seconds)
