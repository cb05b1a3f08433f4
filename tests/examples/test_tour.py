"""The notebook runs from its first cell to its last, and gives the outputs that stand in it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for needed in ("nbclient", "ipykernel", "safetensors", "matplotlib", "jinja2"):
    pytest.importorskip(needed, reason=f"{needed}, which the notebook needs, is not installed")

TOUR = Path(__file__).parents[2] / "examples" / "tour.ipynb"
# In a process of its own: what waits for the kernel is cleaned up at its end only.
RUN = "import sys; from nbclient.cli import main; main(['--inplace', *sys.argv[1:]])"


def code(path: Path) -> list[dict[str, Any]]:
    """The cells of code of a notebook."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def texts(path: Path) -> list[list[str]]:
    """What each cell has printed or given."""
    return [
        ["".join(output["text"] if "text" in output else output["data"]["text/plain"]) for output in cell["outputs"]]
        for cell in code(path)
    ]


def test_the_tour_runs_and_gives_what_stands_in_it(tmp_path: Path) -> None:
    again = tmp_path / "tour.ipynb"
    shutil.copy(TOUR, again)
    done = subprocess.run([sys.executable, "-c", RUN, again], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(cell["execution_count"] for cell in code(again))
    assert texts(again) == texts(TOUR)
    assert sum(map(bool, texts(TOUR))) >= 5


def test_the_tour_keeps_nothing_that_changes_from_run_to_run() -> None:
    for cell in code(TOUR):
        assert (cell["metadata"], cell["execution_count"]) == ({}, None)
    assert "/tmp" not in TOUR.read_text()
