"""modelopt-rs prune: what it does and prints, its errors, and what a signal leaves behind."""

import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import LINEAR, bert, directory, read, weights, write

click = pytest.importorskip("click")
pytest.importorskip("rich")

Call = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", bert())


def test_prune(run: Call, model: Path, tmp_path: Path) -> None:
    out = run("prune", model, "-o", tmp_path / "b.safetensors", "--sparsity", "0.5", "--json", tmp_path / "r.json")
    pruned = read(tmp_path / "b.safetensors")
    for name in LINEAR:
        assert (pruned[name][1] == mo.prune.magnitude(bert()[name][1], 0.5)).all()
    assert f"{model} -> {tmp_path / 'b.safetensors'}" in out
    assert "pruned  2 tensors\n" in out
    assert "left  1 tensor: the last head" in out
    assert re.search(r"zeros  \d -> 6,144 of the pruned tensors \(0\.0 % -> 50\.0 %\)", out)
    assert re.search(r"time  [\d.]+ s, peak memory \d+ MiB", out)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["schema"], report["command"], report["totals"]["zeros_after"]) == (1, "prune", 6144)
    assert report["tensors"][3]["sparsity_after"] == 0.5


def test_scope_selection_and_memory(run: Call, model: Path, tmp_path: Path) -> None:
    options = ("--sparsity", "0.6", "--scope", "global", "--include", "*word*", "--exclude", "*query*")
    run("prune", model, "-o", tmp_path / "b.safetensors", *options)
    run("prune", model, "-o", tmp_path / "c.safetensors", *options, "--max-memory", "2KB", "--threads", 3)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    names = ["embeddings.word_embeddings.weight", LINEAR[1]]
    want = mo.prune.global_magnitude([bert()[name][1] for name in names], 0.6)
    for name, x in zip(names, want, strict=True):
        assert (read(tmp_path / "b.safetensors")[name][1] == x).all()


def test_keep_and_bitmask_there_and_back(run: Call, tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert())
    run("prune", source, "-o", tmp_path / "b", "--n-of-m", "2:4", "--format", "bitmask", "--no-verify")
    out = run("dequantize", tmp_path / "b", "-o", tmp_path / "c")
    assert "dequantized  2 tensors" in out
    run("prune", source, "-o", tmp_path / "d", "--n-of-m", "2:4")
    assert read(tmp_path / "c" / "model.safetensors").keys() == read(tmp_path / "d" / "model.safetensors").keys()
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (tmp_path / "d" / "model.safetensors").read_bytes()
    assert "exact" in run("compare", tmp_path / "d", tmp_path / "b")


@pytest.mark.parametrize("spelling", [["--then", "quantize"], ["--then=quantize"]])
def test_then_quantize(run: Call, model: Path, tmp_path: Path, spelling: list[str]) -> None:
    b = tmp_path / "b.safetensors"
    behind = ["--bits", "4", "--scheme", "asymmetric", "--group-size", "16", "--include", "classifier.*"]
    out = run("prune", model, "-o", b, "--sparsity", "0.5", "--exclude", LINEAR[1], *spelling, *behind)
    then = mo.QuantizeOptions(bits=4, scheme="asymmetric", group_size=16, include=["classifier.*"])
    mo.prune_file(model, tmp_path / "c.safetensors", sparsity=0.5, exclude=[LINEAR[1]], then=then)
    assert b.read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert "pruned and quantized  1 tensor\n" in out
    assert "quantized  2 tensors\n" in out
    assert re.search(r"SQNR  [\d.]+ dB", out)


def test_then_quantize_has_a_help_of_its_own(run: Call) -> None:
    text = run("prune", "--then", "quantize", "--help")
    assert "--then quantize [OPTIONS]" in text
    assert "--group-size N" in text
    assert "--sparsity" not in text


def test_dry_run(run: Call, model: Path, tmp_path: Path) -> None:
    for more in ((), ("-o", tmp_path / "b.safetensors"), ("--format", "bitmask")):
        out = run("prune", model, "--sparsity", "0.5", "--dry-run", *more)
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
        assert "the last head" in out
        assert "pruned  2 tensors (dry run: nothing written)" in out
        assert max(map(len, out.split("\n\n")[0].splitlines())) <= 80
    empty = write(tmp_path / "e.safetensors", {"x": ("F32", weights((4,)))})
    assert "pruned  0 tensors (dry run" in run("prune", empty, "--sparsity", "0.5", "--dry-run")


def test_nan(run: Call, fail: Call, tmp_path: Path) -> None:
    x = weights((8, 64))
    x[3, 5] = np.nan
    source = write(tmp_path / "nan.safetensors", {"fc.weight": ("F32", x)})
    message = fail(1, "prune", source, "-o", tmp_path / "b", "--sparsity", "0.5")
    assert message.startswith(f"{source}: tensor 'fc.weight', rows from 0: ")
    assert "w has 1 NaN, first at index (3, 5)" in message
    run("prune", source, "-o", tmp_path / "b", "--sparsity", "0.5", "--nonfinite", "largest")
    assert np.isnan(read(tmp_path / "b")["fc.weight"][1][3, 5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["MODEL", "--sparsity", "0.5"],
            "Missing option '-o' / '--output' (or --dry-run); see modelopt-rs prune --help",
        ),
        (["MODEL", "-o", "OUT"], "Missing option '--sparsity' or '--n-of-m'; see modelopt-rs prune --help"),
        (["--sparsity", "0.5"], "Missing argument 'FILE|DIR'; see modelopt-rs prune --help"),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "0.5", "--n-of-m", "2:4"],
            "sparsity, or n and m, must be given, got both",
        ),
        (["MODEL", "-o", "OUT", "--sparsity", "2"], "sparsity must be from 0 to 1, got 2.0"),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "half"],
            "Invalid value for '--sparsity': 'half' is not a share such as 0.5 or 50%",
        ),
        (["MODEL", "-o", "OUT", "--n-of-m", "2of4"], "Invalid value for '--n-of-m': '2of4' is not N:M such as 2:4"),
        (["MODEL", "-o", "OUT", "--n-of-m", "4:4"], "n must be from 1 to below m (4), got 4"),
        (["MODEL", "-o", "OUT", "--n-of-m", "2:40"], "m must be from 2 to 32, got 40"),
        (
            ["MODEL", "-o", "OUT", "--n-of-m", "2:4", "--scope", "global"],
            "scope must be left out with n and m, got 'global'",
        ),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "0.5", "--scope", "all"],
            "Invalid value for '--scope': 'all' is not one of 'tensor', 'row', 'global'.",
        ),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "0.5", "--then"],
            "--then must be followed by quantize and its options, got nothing",
        ),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "0.5", "--then", "crop"],
            "--then must be followed by quantize and its options, got 'crop'",
        ),
        (
            ["MODEL", "--sparsity", "0.5", "--then", "quantize", "-o", "OUT"],
            "after --then quantize: No such option '-o'; -o must stand before --then",
        ),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "0.5", "--then", "quantize", "--bits", "3"],
            "after --then quantize: Invalid value for '--bits': '3' is not one of '8', '4', '2'.",
        ),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "0.5", "--then", "quantize", "--scheme", "odd"],
            "scheme must be 'symmetric' or 'asymmetric', got 'odd'",
        ),
        (
            ["MODEL", "-o", "OUT", "--sparsity", "0.5", "--format", "bitmask", "--then", "quantize"],
            "format must be 'dense' with then, got 'bitmask': what is quantized has its own layout",
        ),
        (["MODEL", "-o", "OUT", "--sparsity", "0.5", "--include", "typo*"], "include 'typo*' matches no tensor"),
    ],
)
def test_usage(fail: Call, model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out.safetensors")}
    assert fail(2, "prune", *(places.get(a, a) for a in arguments)) == message


@pytest.mark.parametrize("data", [b"", b"\x10\0\0\0\0\0\0\0{", b"\x02\0\0\0\0\0\0\0{}tail"])
def test_malformed_and_missing(fail: Call, tmp_path: Path, data: bytes) -> None:
    bad = tmp_path / "a.safetensors"
    bad.write_bytes(data)
    assert fail(3, "prune", bad, "-o", tmp_path / "b", "--sparsity", "0.5").startswith(f"{bad}: ")
    gone = tmp_path / "gone"
    assert fail(1, "prune", gone, "-o", tmp_path / "b", "--sparsity", "0.5") == f"{gone}: No such file or directory"


def test_what_is_there_stays(fail: Call, run: Call, model: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("precious")
    message = fail(1, "prune", model, "-o", tmp_path / "b", "--sparsity", "0.5")
    assert message.startswith(f"{tmp_path / 'b'}: the file exists")
    run("prune", model, "-o", tmp_path / "b", "--sparsity", "0.5", "--overwrite")
    run("prune", model, "-o", model, "--sparsity", "0.5", "--overwrite")
    assert model.read_bytes() == (tmp_path / "b").read_bytes()


def test_f4_a_signal_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write(tmp_path / "a", bert())
    # A progress that says where it is and then waits, so that the signal meets a file half written.
    program = textwrap.dedent(
        """
        import sys, time
        from modelopt_rs.cli import main, show

        def line(text):
            if int(text.split()[1]) >= 50:
                print("half", flush=True)
                for _ in range(300):  # short: a signal just before a sleep is seen after it
                    time.sleep(0.1)

        show.PLAIN_SECONDS, show.aside = 0, line
        sys.exit(main(sys.argv[1:]))
        """
    )
    arguments = [sys.executable, "-c", program, "prune", str(source), "-o", str(tmp_path / "b"), "--sparsity", "0.5"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "modelopt-rs: interrupted\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_f2_a_kill_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    source = write(tmp_path / "a", {**bert(), "big.weight": ("F32", weights((1000, 1024)))})
    command = [sys.executable, "-m", "modelopt_rs", "prune", str(source), "-o", str(tmp_path / "b"), "--overwrite"]
    started = time.monotonic()
    subprocess.run([*command, "--sparsity", "0.25"], check=True, capture_output=True)
    taken = time.monotonic() - started
    old = (tmp_path / "b").read_bytes()
    mo.prune_file(source, tmp_path / "new", sparsity=0.75)
    new = (tmp_path / "new").read_bytes()
    for i in (2, 6):
        with subprocess.Popen([*command, "--sparsity", "0.75"], stdout=subprocess.DEVNULL) as process:
            time.sleep(taken * (0.5 + 0.05 * i))
            process.kill()
        assert (tmp_path / "b").read_bytes() in (old, new)
    subprocess.run([*command, "--sparsity", "0.75"], check=True, capture_output=True)
    assert (tmp_path / "b").read_bytes() == new
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "new"]
