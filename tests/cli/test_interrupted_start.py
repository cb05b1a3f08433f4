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


MODULES = [
    "typing",
    "numpy",
    "datetime",  # imported by C code of NumPy, which makes an ImportError of whatever happens
    "numpy.linalg",
    "modelopt_rs._core",
    "click",
    "rich",
    "modelopt_rs.cli.app",
    "modelopt_rs.operations.quantize",
    "modelopt_rs.planning",
]


@pytest.mark.parametrize(
    ("module", "how"), [*((name, "module") for name in MODULES), *((name, "script") for name in MODULES[::3])]
)
def test_h48_an_interrupt_during_imports_ends_with_130_and_no_traceback(tmp_path: Path, module: str, how: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(SITE))
    script = tmp_path / "modelopt-rs"
    script.write_text("import sys\nfrom modelopt_rs.cli import main\nsys.exit(main())\n")
    command = [sys.executable, "-m", "modelopt_rs"] if how == "module" else [sys.executable, str(script)]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "INTERRUPTED_IMPORT": module}
    done = subprocess.run([*command, "quantize", "--help"], capture_output=True, text=True, env=variables)
    assert (done.returncode, done.stderr) == (130, "modelopt-rs: interrupted\n")


PROGRAM = """
import os, signal
import modelopt_rs
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("cleaned up")
"""


@pytest.mark.parametrize("name", ["train.py", "modelopt-rs.py"])
def test_a_program_that_imports_the_package_is_interrupted_as_python_does(tmp_path: Path, name: str) -> None:
    script = tmp_path / "modelopt-rs" / name
    script.parent.mkdir()
    script.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cleaned up\n", "")


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    """As `nohup` and shells' background jobs start a command."""
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.argv = ["/usr/bin/modelopt-rs", "--version"]
from modelopt_rs.cli import main
signal.raise_signal(signal.SIGINT)
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
