"""Graphs of thousands of nodes in a row: no walk is a call in a call, and none goes twice through what it has seen."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

DEEP = 1500  # Python gives up at a thousand calls


def a_chain(path: Path, operator: str, length: int, bias: bool) -> Path:
    """Write a Gemm behind a chain, of its input and (as wished) of its bias."""
    from onnx import TensorProto, helper, numpy_helper

    taken = 2 if operator == "Mul" else 1

    def chain(first: str, last: str, operator: str) -> list[Any]:
        names = [first, *(f"{last}/{i}" for i in range(length))]
        return [helper.make_node(operator, [a] * taken, [b]) for a, b in pairwise(names)]

    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8
    nodes = chain("x", "in", operator)
    if bias:
        taken = 1
        nodes += chain("b", "bias", "Identity")
    last = f"bias/{length - 1}" if bias else "b"
    nodes.append(helper.make_node("Gemm", [f"in/{length - 1}", "w", last], ["y"]))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(w[0], "b")]
    graph = helper.make_graph(nodes, "chain", infos[:1], infos[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(1).uniform(-0.9, 0.9, (8, 64)).astype(np.float32))
    return path


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"method": "gptq"}], ids=["plain", "gptq"]
)
@pytest.mark.parametrize(
    ("operator", "bias"), [pytest.param("Identity", True, marks=pytest.mark.slow), ("Relu", False)]
)
def test_a_deep_graph_needs_no_recursion(
    tmp_path: Path, samples: Path, operator: str, bias: bool, options: dict[str, Any]
) -> None:
    source = a_chain(tmp_path / "deep.onnx", operator, DEEP, bias)
    calibrate = {"calibrate": samples} if options else {}
    mo.quantize_file(source, tmp_path / "out.onnx", bits=4, **options, **calibrate)
    compared = mo.compare_files(source, tmp_path / "out.onnx")
    assert compared.tensors


@pytest.mark.parametrize(("operator", "length"), [("Relu", DEEP), ("Mul", 60)])
def test_what_makes_an_input_is_looked_for_once_in_each_node(
    tmp_path: Path, samples: Path, operator: str, length: int
) -> None:
    # Mul(a, a) sixty times in a row has 2 ** 60 ways back to the input.
    source = a_chain(tmp_path / "deep.onnx", operator, length, False)
    with pytest.raises(mo.OptionError, match="can't be divided"):
        mo.quantize_file(source, tmp_path / "out.onnx", bits=4, method="awq", calibrate=samples)
