"""Inputs that are made up of a model that takes images: in the numbers that its graph is made for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
from modelopt_rs.onnx.run.inputs import InputInfo, generated, known_of  # noqa: E402
from onnx_graphs import model, node, value  # noqa: E402

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 3, 3, 3)).astype(np.float32)
LARGE, SMALL = np.full(8, 100, np.float32), np.ones(8, np.float32)


def made_up(path: Path, nodes: Any, shape: Any = (1, 3, 32, 48), **weights: Any) -> np.ndarray:
    at = path / "a.onnx"
    onnx.save(model(nodes, [value("x", shape)], [value("y", [None] * 4)], weights, opset=17), at)
    infos = {"x": InputInfo("x", "float32", shape)}
    return generated(infos, {}, known_of(infos, at), "usual", np.random.default_rng(0))["x"]


def are_files(x: np.ndarray) -> bool:
    return bool(x.min() >= 0 and x.max() > 128)


def test_biases_that_small_numbers_would_not_be_seen_beside_are_of_images_as_files_have_them(tmp_path: Path) -> None:
    conv = [node("Conv", ["x", "w", "b"], ["y"])]
    assert are_files(made_up(tmp_path, conv, w=W, b=LARGE))
    assert not are_files(made_up(tmp_path, conv, w=W, b=SMALL))
    assert not are_files(made_up(tmp_path, [node("Conv", ["x", "w"], ["y"])], w=W))
    turned = [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), node("Conv", ["t", "w", "b"], ["y"])]
    assert are_files(made_up(tmp_path, turned, (1, 32, 48, 3), w=W, b=LARGE))


@pytest.mark.parametrize(
    ("op", "number", "expected"),
    [("Div", 255, True), ("Div", 0.2, False), ("Mul", 1 / 255, True), ("Mul", 2, False), ("Sub", 127.5, True)],
)
def test_what_a_graph_normalizes_is_of_the_numbers_that_it_normalizes(
    tmp_path: Path, op: str, number: float, expected: bool
) -> None:
    nodes = [node(op, ["x", "k"], ["h"]), node("Conv", ["h", "w", "b"], ["y"])]
    assert are_files(made_up(tmp_path, nodes, k=np.float32(number), w=W, b=SMALL)) == expected


def test_what_is_no_image_stays_normal(tmp_path: Path) -> None:
    few, narrow = (1, 8, 32, 32), (1, 3, 32, 4)
    for shape, w in ((few, RNG.standard_normal((8, 8, 3, 3)).astype(np.float32)), (narrow, W)):
        assert not are_files(made_up(tmp_path, [node("Conv", ["x", "w", "b"], ["y"])], shape, w=w, b=1000 * LARGE))


def test_images_are_smooth(tmp_path: Path) -> None:
    """Neighbors differ far less than pixels do: filters see what is in pictures, not noise that they average away."""
    shape = (1, 3, 128, 96)
    x = made_up(tmp_path, [node("Conv", ["x", "w", "b"], ["y"])], shape, w=W, b=LARGE)
    assert x.shape == shape
    assert np.abs(np.diff(x, axis=-1)).mean() < 0.7 * np.abs(x - x.mean()).mean()
