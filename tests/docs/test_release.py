"""What a release stands on: actions taken by hash, constraints that are those promised, tests that need no guest."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUESTS = {"PIL", "bitsandbytes", "cv2", "gguf", "jax", "keras", "onnxscript", "optax", "torch", "transformers"}


def test_actions_are_taken_by_the_hash_of_a_commit_and_name_its_version() -> None:
    taken = re.findall(r"uses: *(.*)$", (ROOT / ".github" / "workflows" / "wheels.yml").read_text(), re.MULTILINE)
    assert taken
    for each in taken:
        assert re.fullmatch(r"[\w/.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each


def test_the_oldest_versions_that_are_tried_are_those_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = dict(
        each.split(">=")
        for each in [*project["dependencies"], *(e for n in ("cli", "onnx", "bf16") for e in extras[n])]
    )
    tried = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "ci" / "lowest.txt").read_text(), re.MULTILINE))
    assert set(tried) == set(promised)
    for name, version in tried.items():
        assert f"{version}.".startswith(f"{promised[name]}."), name


def top_level_guests(source: str) -> set[str]:
    """The guests that a module imports before it has asked whether they are there."""
    asked: set[str] = set()
    found: set[str] = set()
    for node in ast.parse(source).body:
        for call in ast.walk(node) if isinstance(node, ast.Expr | ast.Assign | ast.For) else ():
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.importorskip":
                asked |= GUESTS if isinstance(call.args[0], ast.Name) else {ast.literal_eval(call.args[0])}
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.partition(".")[0] for name in names} & GUESTS - asked
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*/test_*.py")), ids=lambda path: path.stem)
def test_a_test_module_is_collected_without_guests(path: Path) -> None:
    assert top_level_guests(path.read_text()) == set()


def test_the_law_sees_an_import_that_nothing_guards() -> None:
    assert top_level_guests("import torch") == {"torch"}
    assert top_level_guests("import pytest\npytest.importorskip('keras')\nfrom torch import nn") == {"torch"}
    assert top_level_guests("import pytest\npytest.importorskip('torch')\nimport torch") == set()
