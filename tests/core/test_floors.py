"""The check of the house's floors refuses what it is there to refuse."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def floors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("floors", ROOT / ".ci" / "floors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(floors: ModuleType, where: str, text: str) -> list[str]:
    path = ROOT / "python" / "modelopt_rs" / where
    tree = ast.parse(text)
    defined = {"optim": {"_step"}, path.relative_to(ROOT / "python" / "modelopt_rs").with_suffix("").parts[0]: set()}
    return [*floors.breaches(path, tree), *floors.by_name(path, tree), *floors.borrowed(path, tree, defined)]


@pytest.mark.parametrize(
    ("where", "text", "what"),
    [
        ("stream/x.py", "from modelopt_rs.operations.quantize import quantize_file", "stream.x is below operations"),
        ("quant/x.py", "import modelopt_rs.files", "quant.x is below files"),
        ("layouts/x.py", "from modelopt_rs import files", "layouts.x is below files"),
        ("errors.py", "def f():\n    from modelopt_rs.stream.model import Source", "errors is below stream"),
        ("cli/x.py", "def f():\n    import json", "imports json inside a function, which is no optional extra"),
        ("report/x.py", "def f():\n    from modelopt_rs.stream.model import Source", "needs no optional extra"),
        ("cli/x.py", "from modelopt_rs.stream.job import _Local", "takes the private name _Local from stream.job"),
        ("report/x.py", "import modelopt_rs.somewhere", "somewhere is on no floor"),
        ("quant/x.py", "from ..operations import quantize_file", "imports ..operations relatively"),
        ("quant/x.py", "from . import affine", "imports . relatively"),
        ("quant/x.py", "from .. import cli", "imports .. relatively"),
        ("quant/x.py", "if TYPE_CHECKING:\n    from modelopt_rs.cli.app import main", "quant.x is below cli"),
        ("quant/x.py", "try:\n    import modelopt_rs.cli\nexcept ImportError:\n    pass", "quant.x is below cli"),
        ("quant/x.py", "class X:\n    from modelopt_rs import cli", "quant.x is below cli"),
        ("quant/x.py", "import importlib\nimportlib.import_module('modelopt_rs.cli')", "imports by import_module"),
        ("quant/x.py", "from importlib import import_module as f\nf('modelopt_rs.cli')", "takes import_module from"),
        ("quant/x.py", "__import__('modelopt_rs.cli')", "imports by __import__"),
        ("quant/x.py", "exec('import modelopt_rs.cli')", "imports by exec"),
        ("quant/x.py", "import sys\nsys.modules['modelopt_rs.cli']", "looks into sys.modules"),
        ("quant/x.py", "from sys import modules", "takes modules from sys"),
        ("prune/x.py", "def f(optimizer):\n    optimizer._step([])", "takes the private attribute _step of optim"),
    ],
)
def test_what_goes_up_or_hides_is_refused(floors: ModuleType, where: str, text: str, what: str) -> None:
    found = said(floors, where, text)
    assert any(what in line for line in found), found


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("operations/x.py", "from modelopt_rs.stream.model import Source\nfrom modelopt_rs import _core"),
        ("operations/x.py", "def f():\n    from modelopt_rs.onnx.check import OnnxCheck\n    import onnxruntime"),
        ("stream/x.py", "from modelopt_rs.stream.y import _private"),
        ("prune/x.py", "class X(Optimizer):\n    def f(self, model):\n        self._step([])\n        model.eval()"),
    ],
)
def test_what_goes_down_is_taken(floors: ModuleType, where: str, text: str) -> None:
    assert said(floors, where, text) == []


def test_a_long_file_and_a_long_function_are_refused(floors: ModuleType) -> None:
    path = ROOT / "python" / "modelopt_rs" / "stream" / "x.py"
    text = '"""One."""\n' + "x = 1\n" * 301
    assert any("301 lines without docstrings" in line for line in floors.sizes(path, ast.parse(text), text))
    text = "def f():\n" + "    x = 1\n" * 51
    assert any("f has 52 lines" in line for line in floors.sizes(path, ast.parse(text), text))
    text = 'def f():\n    """' + "word\n" * 80 + '    """\n'
    assert list(floors.sizes(path, ast.parse(text), text)) == []
