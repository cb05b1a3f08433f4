"""Mutants, each through the commands: a result or a promised error, in time, within memory.

`make test` runs a fortieth of some thousand, `make slow-test` all of them, `make fuzz` 100,000.
Seeds are counted from 0: what fell once falls again.
"""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("ml_dtypes")

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import fuzz

COUNTS = {"onnx": 1600, "graphs": 400, "safetensors": 2000, "quantized": 2000, "torch": 2000, "imatrix": 2000}
COUNTS |= {"arrays": 2000}
PARTS = 20  # so that several workers of pytest share them
CALLS = 50  # a seed of the arrays' makes so many calls


def test_a_model_that_doubles_its_data_in_each_node_is_ended() -> None:
    """Seed 2251: 200 nodes that would take all memory; the run is ended at its bounds, not the command."""
    assert fuzz("onnx", range(2251, 2252)).problems() == []


@pytest.mark.parametrize("part", ["half of 0", *(pytest.param(i, marks=pytest.mark.slow) for i in range(PARTS))])
@pytest.mark.parametrize("kind", COUNTS)
def test_every_mutant_ends_in_a_result_or_a_promised_error(kind: str, part: int | str) -> None:
    """H38, H39, E1 to E19: no hang, no death, no other error, no memory over the budget and 64 MiB."""
    asked = int(os.environ.get("MODELOPT_RS_MUTANTS", COUNTS[kind]))
    count = asked // PARTS // (CALLS if kind == "arrays" else 1)
    first, count = (part * count, count) if isinstance(part, int) else (0, max(count // 2, 1))
    outcome = fuzz(kind, range(first, first + count))
    assert outcome.mutants == count
    assert outcome.problems() == []
