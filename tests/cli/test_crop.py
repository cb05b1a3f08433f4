"""modelopt-rs crop: what it does and prints, its errors, and what a signal leaves behind."""

import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import directory, files_of, read, write
from families import BERT, LLAMA, bert, config_of, llama

click = pytest.importorskip("click")
pytest.importorskip("rich")

Call = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return directory(tmp_path / "a", bert(), BERT)


def test_crop(run: Call, model: Path, tmp_path: Path) -> None:
    out = run("crop", model, "-o", tmp_path / "b", "--keep", "0.75", "--what", "ffn", "--json", tmp_path / "r.json")
    mo.crop_file(model, tmp_path / "c", keep=0.75, what="ffn")
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert f"{model} -> {tmp_path / 'b'}" in out
    assert "cropped  6 tensors\n" in out
    assert "no unit of it goes" in out
    assert "kept  32 of 40 ffn in each of 2 layers\n" in out
    assert "config  intermediate_size 40 -> 32\n" in out
    assert "note" not in out
    assert re.search(r"time  [\d.]+ s, peak memory \d+ MiB", out)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["schema"], report["command"]) == (1, "crop")
    assert report["groups"][0] == {"name": "bert.encoder.layer.0.ffn", "units": 40, "kept": 32}


def test_shares_and_numbers_of_some_groups(run: Call, model: Path, tmp_path: Path) -> None:
    options = ["--keep", "0.5", "--keep", "*.heads=4", "--what", "heads", "--what", "ffn"]
    out = run("crop", model, "-o", tmp_path / "b", *options, "--max-memory", "20KB", "--threads", 2, "--no-verify")
    mo.crop_file(model, tmp_path / "c", keep={"*.heads": 4, "*": 0.5}, what=["heads", "ffn"])
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert "kept  4 of 6 heads in each of 2 layers\n" in out
    assert "kept  16 of 40 ffn in each of 2 layers\n" in out


def test_heads_alone_say_how_they_are_loaded(run: Call, model: Path, tmp_path: Path) -> None:
    out = run("crop", model, "-o", tmp_path / "b", "--keep", "0.5", "--what", "heads", "--scope", "global")
    assert (
        "note  config.json lists the heads that are gone as pruned_heads, which transformers 5 does not read: " in out
    )
    assert "modelopt_rs.interop.transformers.from_pretrained\n" in out
    assert "pruned_heads" in config_of(tmp_path / "b")


def test_round_to_norm_and_nan(run: Call, tmp_path: Path) -> None:
    tensors = bert()
    tensors["bert.encoder.layer.0.output.dense.weight"][1][3, 5] = np.nan
    model = directory(tmp_path / "a", tensors, BERT)
    options = ["--round-to", "3", "--norm", "inf", "--nonfinite", "remove"]
    run("crop", model, "-o", tmp_path / "b", "--keep", "0.5", "--what", "ffn", *options)
    mo.crop_file(model, tmp_path / "c", keep=0.5, what="ffn", round_to=3, norm=np.inf, nonfinite="remove")
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert config_of(tmp_path / "b")["intermediate_size"] == 21


def test_one_file_needs_a_config(run: Call, fail: Call, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", llama())
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    options = ["-o", tmp_path / "b.safetensors", "--keep", "0.5", "--what", "ffn"]
    assert fail(2, "crop", file, *options).startswith("config (--config) must be given, got none: a file has none")
    out = run("crop", file, *options, "--config", tmp_path / "config.json")
    assert "config  intermediate_size 40 -> 16\n" in out
    assert "config  head_dim - -> 8\n" in out
    assert "note  the output is one file: change its model's config.json" in out
    assert read(tmp_path / "b.safetensors")["model.layers.0.mlp.up_proj.weight"][1].shape == (16, 48)


@pytest.mark.parametrize("spelling", [["--then", "quantize"], ["--then=quantize"]])
def test_then_quantize(run: Call, model: Path, tmp_path: Path, spelling: list[str]) -> None:
    behind = ["--bits", "4", "--scheme", "asymmetric", "--group-size", "8"]
    out = run("crop", model, "-o", tmp_path / "b", "--keep", "0.5", "--what", "all", *spelling, *behind)
    then = mo.QuantizeOptions(bits=4, scheme="asymmetric", group_size=8)
    mo.crop_file(model, tmp_path / "c", keep=0.5, what="all", then=then)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert "cropped and quantized  13 tensors\n" in out
    assert re.search(r"SQNR  [\d.]+ dB", out)
    assert "config  quantization_config" not in out


def test_dry_run(run: Call, model: Path, tmp_path: Path) -> None:
    for more in ((), ("-o", tmp_path / "b")):
        out = run("crop", model, "--keep", "0.5", "--what", "ffn", "--dry-run", *more)
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
        assert "cropped  6 tensors (dry run: nothing written)" in out
        assert "crop: [40, 48] -> [16," in out
        assert max(map(len, out.split("\n\n")[0].splitlines())) <= 80


def test_nan(fail: Call, tmp_path: Path) -> None:
    tensors = bert()
    tensors["bert.encoder.layer.0.output.dense.weight"][1][3, 5] = np.nan
    model = directory(tmp_path / "a", tensors, BERT)
    message = fail(1, "crop", model, "-o", tmp_path / "b", "--keep", "0.5", "--what", "ffn")
    where = f"{model}: tensor 'bert.encoder.layer.0.output.dense.weight': unit 5 of group 'bert.encoder.layer.0.ffn'"
    assert message == f"{where} has a NaN; nonfinite='remove' (--nonfinite remove) removes such units first"


NO_KEEP = "is not a share such as 0.75, a number such as 8, or GROUPS= and one of them"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["MODEL", "--keep", "0.5", "--what", "ffn"],
            "Missing option '-o' / '--output' (or --dry-run); see modelopt-rs crop --help",
        ),
        (["MODEL", "-o", "OUT", "--what", "ffn"], "Missing option '--keep'; see modelopt-rs crop --help"),
        (
            ["MODEL", "-o", "OUT", "--keep", "0.5"],
            "Missing option '--what' (or '--groups'); see modelopt-rs crop --help",
        ),
        (["--keep", "0.5", "--what", "ffn"], "Missing argument 'FILE|DIR'; see modelopt-rs crop --help"),
        (
            ["MODEL", "-o", "OUT", "--keep", "half", "--what", "ffn"],
            f"Invalid value for '--keep': 'half' {NO_KEEP}",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "*.ffn=-1", "--what", "ffn"],
            f"Invalid value for '--keep': '*.ffn=-1' {NO_KEEP}",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "0.5", "--keep", "8", "--what", "ffn"],
            "--keep must name groups once, got some twice",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "1.5", "--what", "ffn"],
            "keep must be above 0 and at most 1, got 1.5; an int is a number of units",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "99", "--what", "ffn"],
            "keep must be from 1 to the 40 of 'bert.encoder.layer.0.ffn', got 99",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "1", "--what", "ffn"],
            "keep must be a share, or a number of at least 5% of the units, got the int 1: 1 of the 40 of "
            "'bert.encoder.layer.0.ffn'; 1.0 is all of them; if so few are meant, say 0.025 and round_to=1",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "0.5", "--what", "mlp"],
            "Invalid value for '--what': 'mlp' is not one of 'heads', 'query_heads', 'ffn', 'channels', 'hidden', "
            "'all'.",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "0.5", "--what", "query_heads"],
            "what must not be 'query_heads' for the BERT family, got it; use 'heads'",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "0.5", "--what", "ffn", "--scope", "global"],
            "scope must be 'group', got 'global': layers would keep different numbers, which config.json can't say",
        ),
        (
            ["MODEL", "-o", "OUT", "--keep", "0.5", "--what", "ffn", "--then", "prune"],
            "--then must be followed by quantize and its options, got 'prune'",
        ),
        (
            ["MODEL", "--keep", "0.5", "--what", "ffn", "--then", "quantize", "-o", "OUT"],
            "after --then quantize: No such option '-o'; -o must stand before --then",
        ),
    ],
)
def test_usage(fail: Call, model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out")}
    assert fail(2, "crop", *(places.get(a, a) for a in arguments)) == message


def test_malformed_and_missing(fail: Call, model: Path, tmp_path: Path) -> None:
    options = ["-o", tmp_path / "b", "--keep", "0.5", "--what", "ffn"]
    gone = tmp_path / "gone"
    assert fail(1, "crop", gone, *options) == f"{gone}: No such file or directory"
    assert fail(1, "crop", model / "model.safetensors", *options, "--config", gone) == (
        f"{gone}: No such file or directory"
    )
    (model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert fail(3, "crop", model, *options).startswith(f"{model / 'model.safetensors'}: ")


def test_what_is_there_stays(fail: Call, run: Call, model: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").write_text("x")
    options = ["crop", model, "-o", tmp_path / "b", "--keep", "0.5", "--what", "ffn"]
    fail(1, *options)
    run(*options, "--overwrite")
    assert not (tmp_path / "b" / "precious").exists()


def test_f4_a_signal_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    # A progress that says where it is and then waits, so that the signal meets a directory half written.
    program = textwrap.dedent(
        """
        import sys, time
        from modelopt_rs.cli import main, show

        def line(text):
            if int(text.split()[1]) > 80:
                print("far", flush=True)
                for _ in range(300):  # short: a signal just before a sleep is seen after it
                    time.sleep(0.1)

        show.PLAIN_SECONDS, show.aside = 0, line
        sys.exit(main(sys.argv[1:]))
        """
    )
    options = ["crop", str(model), "-o", str(tmp_path / "b"), "--keep", "0.5", "--what", "ffn"]
    arguments = [sys.executable, "-c", program, *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "far\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (143, "modelopt-rs: terminated\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
