"""Pictures of the examples: few lines, names that can be read, the same file again, one for dark pages."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the extra `demo` is not installed")
import charts
import fashion_mnist

EXAMPLES = Path(charts.__file__).parent
SHARED = {"charts", "onnx_table", "service"}  # `service` waits for requests: `load_test` runs it
DRAWINGS = {
    "lines": charts.lines([charts.Line("one", [1, 2], [3, 4]), charts.Line("two", [1, 3], [3, 4])], "t", "x", "y"),
    "multiples": charts.multiples({"a": [1, 2], "b": [2, 3]}, {"a": "1", "b": "2"}, "a", "t"),
    "bars": charts.bars(["a", "b"], [charts.Panel("one", [1, 2]), charts.Panel("two", [3, 4])], "t", ["b"]),
}


@pytest.mark.parametrize("kind", DRAWINGS)
def test_a_picture_is_drawn_for_light_and_for_dark_pages_with_the_same_bytes_again(kind: str, tmp_path: Path) -> None:
    drawn = []
    for name in ("first", "again"):
        charts.save(DRAWINGS[kind], tmp_path / name / "a.svg")
        drawn.append([(tmp_path / name / file).read_text() for file in ("a.svg", "a-dark.svg")])
    assert drawn[0] == drawn[1]
    light, dark = drawn[0]
    assert (charts.LIGHT["ink"] in light, charts.DARK["ink"] in light) == (True, False)
    assert (charts.LIGHT["ink"] in dark, charts.DARK["ink"] in dark) == (False, True)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["a-dark.svg", "a.svg"]


def test_a_chart_has_at_most_six_lines() -> None:
    given = [charts.Line(str(i), [1, 2], [i, i]) for i in range(7)]
    with pytest.raises(ValueError, match="at most 6 lines, got 7; use multiples"):
        charts.lines(given, "t", "x", "y")
    charts.lines(given[:6], "t", "x", "y")


def test_names_of_lines_that_end_at_one_place_lie_apart(tmp_path: Path) -> None:
    given = [charts.Line(name, [1, 2], [3, 4]) for name in ("one", "two", "three")]
    with charts.mpl_style(charts.LIGHT):
        figure = charts.lines(given, "t", "x", "y")(charts.LIGHT)
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 3
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


def test_make_examples_runs_every_example() -> None:
    makefile = (EXAMPLES.parent / "Makefile").read_text()
    named = re.search(r"^EXAMPLES := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert named is not None
    assert set(named[1].replace("\\", " ").split()) == {path.stem for path in EXAMPLES.glob("*.py")} - SHARED


def test_make_examples_goes_on_only_without_data_and_not_after_a_wrong_option() -> None:
    recipe = re.search(r"^examples: .*\n((?:\t.*\n)+)", (EXAMPLES.parent / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert re.findall(r"\[ \$\$\? -eq (\d+) \]", recipe[1]) == [str(fashion_mnist.ABSENT)]
    command = [sys.executable, EXAMPLES / "fashion_mnist.py", "--no-such-option"]
    assert subprocess.run(command, capture_output=True).returncode not in (0, fashion_mnist.ABSENT)


def test_documents_show_the_picture_of_every_example_for_light_and_for_dark_pages() -> None:
    docs = EXAMPLES.parent / "docs"
    shown = (docs / "examples.md").read_text()
    for name in sorted({path.stem for path in EXAMPLES.glob("*.py")} - SHARED):
        for file in (f"images/{name}.svg", f"images/{name}-dark.svg"):
            assert file in shown
            assert (docs / file).read_text().startswith("<?xml")
