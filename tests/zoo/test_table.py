"""The table is made of the lines of a run alone."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.__main__ import told
from zoo.table import read, write

LINES = """\
{"versions": {"torch": "1.0"}}
{"name": "a", "library": "timm", "form": "weights", "begun": "8"}
{"name": "a", "library": "timm", "form": "weights", "command": "8", "code": 0, "before": 100, "after": 26, \
 "sqnr_db": 40.2, "problems": [], "figure": null}
{"name": "b", "library": "timm", "form": "dynamo", "unmade": "no such operator"}
{"versions": {"torch": "2.0", "onnx": "1.2"}}
{"name": "a", "library": "timm", "form": "weights", "command": "4", "code": 1, "before": 100, "after": 20, \
 "sqnr_db": 1.0, "problems": ["ended with 1"], "figure": null}
"""


def test_the_table_of_a_run_has_its_versions_results_failures_and_what_was_not_made(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(LINES)
    write(tmp_path / "zoo.md", read(lines))
    text = (tmp_path / "zoo.md").read_text()
    assert "Made with torch 2.0, onnx 1.2." in text
    assert "1 models, 1 files, 2 commands." in text
    assert "| timm a | weights | 26 % 40 dB | **exit 1** |" in text
    assert "- b, dynamo: no such operator" in text
    assert "- timm a, weights, 4: ended with 1" in text


def test_lines_of_no_run_make_a_table_that_says_so(tmp_path: Path) -> None:
    write(tmp_path / "zoo.md", read(tmp_path / "none.jsonl"))
    text = (tmp_path / "zoo.md").read_text()
    assert "Made with" not in text
    assert "0 models, 0 files, 0 commands." in text
    assert text.endswith("## Failures\n\nNone.\n")


def test_what_is_printed_of_a_model_are_the_problems_of_its_own_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(LINES)
    told(lines, SimpleNamespace(name="a", form="weights"), "")
    assert capsys.readouterr().out == "  4: ended with 1\n"
