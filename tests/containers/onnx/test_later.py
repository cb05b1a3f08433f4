"""Imports of the extra `onnx` that wait."""

import subprocess
import sys
import textwrap

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
    assert shown(f"import sys, modelopt_rs.{module}; print('sympy' in sys.modules)") == ["False"]


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


def test_a_module_that_is_missing_is_an_import_error_when_it_is_used() -> None:
    script = """
        from modelopt_rs.containers.onnx.later import later
        with later("no_such_module"):
            import no_such_module
        try:
            no_such_module.anything
        except ImportError as error:
            print(error.name)
    """
    assert shown(script) == ["no_such_module"]
