"""Imports of the extra `onnx` that wait."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")


def shown(script: str) -> list[str]:
    """Run a script in a process of its own and return what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_opening_an_onnx_model_imports_no_sympy() -> None:
    """It takes longer than all else, for arithmetic that few models need."""
    modules = ("files.onnx", "onnx", "onnx.run.latency")
    script = "; ".join(f"import modelopt_rs.{module}; print('sympy.core' in sys.modules)" for module in modules)
    assert shown(f"import sys; {script}") == ["False"] * len(modules)


def test_symbolic_lengths_are_computed_and_sympy_is_itself() -> None:
    script = """
        import modelopt_rs.files.onnx
        import onnx_ir as ir
        print(ir.SymbolicDim("2*N") + 1)
        import sympy
        import sympy.core
        print(sympy.Symbol("x") * 2, type(sympy).__name__, sympy.core.Mul.__name__)
    """
    assert shown(script) == ["2*N + 1", "2*x module Mul"]


SCRIPTS = {
    "a module that is imported already stays": (
        """
        import wave
        with later("wave"):
            import wave as second
        print(second is wave, sys.modules["wave"] is wave)
        """,
        ["True True"],
    ),
    "a module that is missing is an ImportError": (
        """
        try:
            with later("no_such_module"):
                import no_such_module
        except ImportError as error:
            print(error.name)
        """,
        ["no_such_module"],
    ),
    "a part of a waiting package finds its own code run": (
        """
        with later("xml"):
            import xml
        print(type(xml).__name__)
        import xml.dom.minidom
        print(type(xml).__name__, sys.modules["xml"] is xml, sum("later" in repr(each) for each in sys.meta_path))
        """,
        ["_Later", "module True 0"],
    ),
    "code that fails fails for everyone who wants it": (
        """
        with later("broken"):
            import broken
        for _ in range(2):
            try:
                broken.half
            except RuntimeError as error:
                print(error)
        """,
        ["broken", "broken"],
    ),
}


def test_imports_that_wait(tmp_path: Path) -> None:
    """Each script in a fork of one process: what they share takes longer than they do."""
    (tmp_path / "broken.py").write_text("half = 1\nraise RuntimeError('broken')\n")
    program = f"""
        import os, sys
        from modelopt_rs.containers.onnx.later import later
        assert not {{"wave", "xml"}} & set(sys.modules)
        sys.path.insert(0, {str(tmp_path)!r})
        for script in {[textwrap.dedent(script) for script, _ in SCRIPTS.values()]!r}:
            if os.fork() == 0:
                exec(script)
                sys.stdout.flush()
                os._exit(0)
            os.wait()
            print("", flush=True)
    """
    wanted = [line for _, lines in SCRIPTS.values() for line in [*lines, ""]]
    assert shown(program) == wanted


@pytest.mark.parametrize(
    ("imported", "before", "by"),
    [
        ({"onnx", "google.protobuf", "onnx_ir"}, "", "import modelopt_rs.containers.onnx"),
        ({"onnxruntime"}, "from modelopt_rs.onnx.run import sessions", "sessions.session_options(1)"),
    ],
)
def test_an_interrupt_waits_until_the_extra_is_imported(imported: set[str], before: str, by: str) -> None:
    """Within protobuf's C code it ended in a segmentation fault, within onnxruntime's in an ImportError."""
    program = f"""
        import signal, sys

        class Interrupts:
            def find_spec(self, name, *_):
                if name in {imported!r}:
                    signal.raise_signal(signal.SIGINT)

        {before}
        sys.meta_path.insert(0, Interrupts())
        try:
            {by}
        except KeyboardInterrupt:
            print({imported!r} <= set(sys.modules))
    """
    assert shown(program) == ["True"]
