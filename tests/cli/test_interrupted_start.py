"""H48: an interrupt while the command is still being imported ends it like any other."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

# Python imports this by itself, at first: it sends the signal when a module is looked for.
SITE = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "module",
    [
        "numpy",
        "numpy.linalg",
        "modelopt_rs._core",
        "click",
        "rich",
        "modelopt_rs.cli.app",
        "modelopt_rs.operations.quantize",
        "modelopt_rs.planning",
    ],
)
@pytest.mark.parametrize("how", ["module", "script"])
def test_h48_an_interrupt_during_imports_ends_with_130_and_no_traceback(tmp_path: Path, module: str, how: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(SITE))
    script = tmp_path / "modelopt-rs"
    script.write_text("import sys\nfrom modelopt_rs.cli import main\nsys.exit(main())\n")
    command = [sys.executable, "-m", "modelopt_rs"] if how == "module" else [sys.executable, str(script)]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "INTERRUPTED_IMPORT": module}
    done = subprocess.run([*command, "quantize", "--help"], capture_output=True, text=True, env=variables)
    assert (done.returncode, done.stderr) == (130, "modelopt-rs: interrupted\n")
