"""The commands of modelopt-rs: what they do and print, option by option."""

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import LINEAR, bert, directory, files_of, read, weights, write
from modelopt_rs import __version__, _core, get_num_threads, num_threads
from modelopt_rs.cli import main
from modelopt_rs.cli.show import show_totals

pytest.importorskip("click")
pytest.importorskip("rich")

Run = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", bert())


def test_version(run: Run) -> None:
    isa, threads = _core.isa(), get_num_threads()
    with num_threads(1):
        assert run("--version") == f"modelopt-rs {__version__} ({isa}, 1 thread)\n"
    with num_threads(3):
        assert run("--version") == f"modelopt-rs {__version__} ({isa}, 3 threads)\n"
    assert get_num_threads() == threads


def test_info_says_which_extras_are_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("info")
    assert text.startswith(run("--version"))
    assert f"NumPy {np.__version__}" in text
    assert re.search(r"^cli +click [\d.]+\w*, rich [\d.]+\w*$", text, re.M)

    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    info = importlib.import_module("modelopt_rs.cli.info")
    monkeypatch.setattr(info, "version", lambda package: "2" if package == "numpy" else missing(package))
    assert 'onnx        not installed: pip install "modelopt_rs[onnx]"' in run("info")


@pytest.mark.parametrize("command", ["inspect", "quantize", "prune", "dequantize", "compare", "demo", "info"])
def test_help(run: Run, command: str) -> None:
    assert command in run("--help")
    text = run(command, "--help")
    assert "Usage: modelopt-rs " + command in text
    assert max(map(len, text.splitlines())) <= 80


def test_quantize_says_what_would_shrink_most(run: Run, tmp_path: Path) -> None:
    """H7: embeddings are named where they are most of what is left, with an option that works."""
    tables = {**bert(), "embeddings.word_embeddings.weight": ("F32", weights((2000, 64), 1))}
    source = write(tmp_path / "a.safetensors", tables)
    said = re.search(r"embeddings are 9\d % of what is left: --include '(.*)'", run("quantize", source, "--dry-run"))
    assert said is not None
    assert said[1] == "*word_embeddings.weight"
    again = run("quantize", source, "--include", said[1], "-o", tmp_path / "b.safetensors")
    assert "of what is left" not in again
    assert "embeddings.word_embeddings.weight_packed" in read(tmp_path / "b.safetensors")


def test_what_only_dequantize_reads(run: Run, fail: Run, tmp_path: Path) -> None:
    """H23: what no loader reads is written only where that is asked for."""
    source = directory(tmp_path / "a", bert())
    glob = "*word_embeddings.weight"
    text = fail(2, "quantize", source, "--format", "nf4", "--include", glob, "-o", tmp_path / "b")
    assert "bitsandbytes has no layer for" in text
    options = ("--format", "nf4", "--include", glob, "--only-dequantize")
    run("quantize", source, *options, "-o", tmp_path / "b")
    run("dequantize", tmp_path / "b", "-o", tmp_path / "c")
    assert read(tmp_path / "c" / "model.safetensors").keys() == bert().keys()


def test_quantize(run: Run, model: Path, tmp_path: Path) -> None:
    out = run("quantize", model, "-o", tmp_path / "b.safetensors", "--bits", "4")
    assert read(tmp_path / "b.safetensors")[f"{LINEAR[0]}_packed"][1].shape == (64, 8)
    assert f"{model} -> {tmp_path / 'b.safetensors'}" in out
    assert "quantized  2 tensors" in out
    assert "left  1 tensor: the last head" in out
    assert re.search(r"bytes  [\d,]+ -> [\d,]+ \(ratio [\d.]+\)", out)
    assert re.search(r"SQNR  [\d.]+ dB, largest error [\d.]+", out)
    assert re.search(rf"worst  ({LINEAR[0]}|{LINEAR[1]}): [\d.]+ dB", out)
    assert re.search(r"time  [\d.]+ s, peak memory \d+ MiB", out)


def test_quantize_defaults_to_8_bits_and_one_scale_a_row(run: Run, model: Path, tmp_path: Path) -> None:
    run("quantize", model, "-o", tmp_path / "b.safetensors")
    assert read(tmp_path / "b.safetensors")[f"{LINEAR[0]}_scale"][1].shape == (64, 1)


def test_scheme_and_group_size(run: Run, model: Path, tmp_path: Path) -> None:
    b = tmp_path / "b.safetensors"
    run("quantize", model, "-o", b, "--bits", "2", "--scheme", "asymmetric", "--group-size", "16", "--uniform")
    out = read(b)
    assert out[f"{LINEAR[0]}_scale"][1].shape == (64, 4)
    assert out[f"{LINEAR[0]}_zero_point"][1].shape == (4, 4)


def test_a2_nonfinite(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.ones((8, 64), np.float32)
    values[3, 5] = np.nan
    source = write(tmp_path / "nan.safetensors", {"fc.weight": ("F32", values)})
    assert main(["quantize", str(source), "-o", str(tmp_path / "out.safetensors")]) == 1
    assert 'x has 1 non-finite value, first at index (3, 5); pass nonfinite="saturate"' in capsys.readouterr().err
    run("quantize", source, "-o", tmp_path / "out.safetensors", "--nonfinite", "saturate")
    assert read(tmp_path / "out.safetensors")["fc.weight_packed"][1].shape == (8, 16)


def test_include_and_exclude(run: Run, model: Path, tmp_path: Path) -> None:
    b = tmp_path / "b.safetensors"
    run(
        "quantize",
        model,
        "-o",
        b,
        "--include",
        "*word_embeddings*",
        "--include",
        "classifier.*",
        "--exclude",
        "*query*",
    )
    packed = {name.removesuffix("_packed") for name in read(b) if name.endswith("_packed")}
    assert packed == {"embeddings.word_embeddings.weight", "classifier.weight", LINEAR[1]}


@pytest.mark.parametrize("size", ["64KiB", "64kib", "65536", "0.5 MiB", "300KB", "1GiB"])
def test_max_memory_and_threads_change_no_byte(run: Run, model: Path, tmp_path: Path, size: str) -> None:
    run("quantize", model, "-o", tmp_path / "b.safetensors")
    run(
        "quantize",
        model,
        "-o",
        tmp_path / "c.safetensors",
        "--max-memory",
        size,
        "--threads",
        "3",
        "--no-verify",
    )
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


def test_dry_run(run: Run, model: Path, tmp_path: Path) -> None:
    for more in ((), ("-o", tmp_path / "b.safetensors")):
        out = run("quantize", model, "--dry-run", *more)
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
        assert "the last head" in out
        assert "dry run: nothing written" in out
        assert max(map(len, out.split("\n\n")[0].splitlines())) <= 80


def test_json(run: Run, model: Path, tmp_path: Path) -> None:
    run("quantize", model, "-o", tmp_path / "b.safetensors", "--json", tmp_path / "q.json")
    run(
        "dequantize",
        tmp_path / "b.safetensors",
        "-o",
        tmp_path / "c.safetensors",
        "--json",
        tmp_path / "d.json",
    )
    run("compare", model, tmp_path / "b.safetensors", "--json", tmp_path / "c.json")
    run("inspect", model, "--json", tmp_path / "i.json")
    loaded = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in "qdci"}
    assert all(report["schema"] == 1 for report in loaded.values())
    assert loaded["q"]["totals"]["changed"] == loaded["d"]["totals"]["changed"] == 2
    assert loaded["c"]["worst_tensor"] == loaded["q"]["totals"]["worst_tensor"]
    assert [t["name"] for t in loaded["i"]["tensors"]] == [t["name"] for t in loaded["q"]["tensors"]]


def test_overwrite(run: Run, model: Path, tmp_path: Path) -> None:
    run("quantize", model, "-o", tmp_path / "b.safetensors")
    run("quantize", model, "-o", tmp_path / "b.safetensors", "--bits", "2", "--overwrite", "--uniform")
    assert read(tmp_path / "b.safetensors")[f"{LINEAR[0]}_packed"][1].shape == (64, 4)


def test_directory_there_and_back(run: Run, tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert())
    run("quantize", source, "-o", tmp_path / "b", "--bits", "4")
    out = run("dequantize", tmp_path / "b", "-o", tmp_path / "c", "--dtype", "float16", "--max-memory", "1MiB")
    assert "dequantized  2 tensors" in out
    assert set(files_of(source)) == set(files_of(tmp_path / "c"))
    assert read(tmp_path / "c" / "model.safetensors")[LINEAR[0]][0] == "F16"


def test_inspect(run: Run, model: Path) -> None:
    out = run("inspect", model, "--threads", "1", "--max-memory", "1MiB")
    lines = out.splitlines()
    assert lines[0] == "tensor"
    assert lines[1].split() == ["dtype", "shape", "bytes", "min", "max", "absmax", "zeros", "nonfin"]
    at = lines.index("embeddings.position_ids")
    assert lines[at + 1].split() == ["I64", "1x16", "128", "0", "15", "15", "6.2%", "0"]
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("7 tensors, ")


def test_compare(run: Run, model: Path, tmp_path: Path) -> None:
    run("quantize", model, "-o", tmp_path / "b.safetensors", "--bits", "4")
    out = run("compare", model, tmp_path / "b.safetensors")
    lines = out.splitlines()
    assert lines[0].split() == ["tensor", "SQNR", "dB", "max", "error", "cosine"]
    row = next(line for line in lines if line.startswith("classifier.weight"))
    assert row.split() == ["classifier.weight", "exact", "0", "1.000000"]
    assert max(map(len, lines[:-2])) <= 80
    said = "7 of 7 tensors of A were compared, 5 equal; the 2 that differ: "
    assert re.match(said + r"SQNR [\d.]+ dB, largest error [\d.]+, cosine 0.99\d+", lines[-2])
    assert re.fullmatch(r"file  [\d,]+ -> [\d,]+ bytes \(ratio [\d.]+\)", lines[-1])


def test_compare_lists_what_differs(run: Run, tmp_path: Path) -> None:
    x = weights((2, 4))
    a = write(tmp_path / "a.safetensors", {"one": ("F32", x), "shape": ("F32", x)})
    b = write(tmp_path / "b.safetensors", {"shape": ("F32", x.reshape(4, 2)), "two": ("F32", x)})
    out = run("compare", a, b)
    assert "shapes differ: shape: [2, 4] in A, [4, 2] in B\nonly in A: one\nonly in B: two\n" in out


NAMES = [
    "[bold]x[/bold].weight",
    "a\x1b[31mred.weight",
    "tab\tnew\nline.weight",
    "\u202ereversed.weight",
    "[/]:smile:.weight",
]


@pytest.mark.parametrize("name", NAMES)
def test_e16_names_are_shown_as_they_are_and_steer_nothing(run: Run, tmp_path: Path, name: str) -> None:
    x = weights((64, 64))
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write(a, {name: ("F32", x)})
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    for out in (
        run("inspect", a),
        run("quantize", a, "--dry-run"),
        run("quantize", a, "-o", b),
        run("compare", a, b),
    ):
        assert shown in out
        assert not set(out) & {"\x1b", "\t", "\u202e"}


def test_a_long_name_is_folded_not_cut(run: Run, tmp_path: Path) -> None:
    name = "layer." * 30 + "weight"
    a = write(tmp_path / "a.safetensors", {name: ("F32", np.ones((2, 2), np.float32))})
    table = run("compare", a, a).split("\n\n")[0].splitlines()[1:]
    assert max(map(len, table)) <= 80
    assert "".join(line.split()[0] for line in table) == name


def test_progress_without_a_terminal_is_no_part_of_what_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("modelopt_rs.cli.show.PLAIN_SECONDS", 0.0)
    assert main(["quantize", str(model), "-o", str(tmp_path / "b.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"(quantize: \d+ % of [\d,]+ bytes\n)+", err)
    assert "quantize: 100 % of " in err
    assert "% of 4" not in out


def test_the_speed_of_a_small_file_is_not_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be that of opening it, 0.00 GB/s."""
    report = mo.quantize_file(write(tmp_path / "a.safetensors", bert()), tmp_path / "b.safetensors", durable=False)
    large = replace(report, totals=replace(report.totals, bytes_before=2**30, gb_per_s=1.25))
    for each, said in ((report, False), (large, True)):
        show_totals(each)
        assert ("1.25 GB/s of input" in (out := capsys.readouterr().out)) == said
        assert "0.00 GB/s" not in out
