"""Imports of the extra `onnx` that wait."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")


def shown(script: str) -> list[str]:
    """Run a script in a process of its own and return what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("module", ["files.onnx", "onnx", "onnx.run.latency"])
def test_opening_an_onnx_model_imports_no_sympy(module: str) -> None:
    """It takes longer than all else, for arithmetic that few models need."""
    assert shown(f"import sys, modelopt_rs.{module}; print('sympy.core' in sys.modules)") == ["False"]


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


def test_a_module_that_is_imported_already_stays() -> None:
    script = """
        import sys, wave
        from modelopt_rs.containers.onnx.later import later
        with later("wave"):
            import wave as second
        print(second is wave, sys.modules["wave"] is wave)
    """
    assert shown(script) == ["True True"]


def test_a_module_that_is_missing_is_an_import_error() -> None:
    script = """
        from modelopt_rs.containers.onnx.later import later
        try:
            with later("no_such_module"):
                import no_such_module
        except ImportError as error:
            print(error.name)
    """
    assert shown(script) == ["no_such_module"]


def test_a_part_of_a_waiting_package_finds_its_own_code_run() -> None:
    script = """
        import sys
        from modelopt_rs.containers.onnx.later import later
        with later("xml"):
            import xml
        print(type(xml).__name__)
        import xml.dom.minidom
        print(type(xml).__name__, sys.modules["xml"] is xml, sum("later" in repr(each) for each in sys.meta_path))
    """
    assert shown(script) == ["_Later", "module True 0"]


def test_code_that_fails_fails_for_everyone_who_wants_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("half = 1\nraise RuntimeError('broken')\n")
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from modelopt_rs.containers.onnx.later import later
        with later("broken"):
            import broken
        for _ in range(2):
            try:
                broken.half
            except RuntimeError as error:
                print(error)
    """
    assert shown(script) == ["broken", "broken"]
