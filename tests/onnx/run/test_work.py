"""Work of runs is counted from the graph: products with weights, about, of what a run takes."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")

import onnx

from graph_nets import Net
from modelopt_rs.containers.onnx import OnnxSource
from modelopt_rs.onnx.run.inputs import InputInfo
from modelopt_rs.onnx.run.sizes import RUN, Search
from modelopt_rs.onnx.run.vocabulary import Known
from modelopt_rs.onnx.run.work import Work
from modelopt_rs.planning.run import RunOptions


def work(tmp_path: Path, it: Net) -> Work:
    onnx.save(it.proto(), tmp_path / "a.onnx")
    with OnnxSource(tmp_path / "a.onnx") as source:
        return Work.of(source.model)


def test_a_stride_divides_the_positions_and_what_makes_the_image_larger_multiplies_them(tmp_path: Path) -> None:
    it = Net({"x": ["n", 3, "h", "w"]})
    h = it.add("Conv", "x", it.w("a", 8, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    h = it.add("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = it.add("Conv", h, it.w("b", 4, 8, 1, 1))
    h = it.add("ConvTranspose", h, it.w("c", 4, 4, 2, 2), strides=[2, 2])
    it.weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    h = it.add("Resize", h, "", "scales")
    it.add("Conv", h, it.w("d", 2, 4, 1, 1), out="y")
    counted = work(tmp_path, it)({"x": np.zeros((1, 3, 32, 64), np.float32)}, {"x": ("n", 3, "h", "w")})
    pixels = 32 * 64
    assert counted == 216 * pixels / 4 + 32 * pixels / 16 + 64 * pixels / 16 + 8 * pixels


def test_a_table_is_not_multiplied_and_what_is_behind_a_pool_is_once(tmp_path: Path) -> None:
    it = Net({"ids": ["batch", "sequence"]})
    it.input_types = {"ids": onnx.TensorProto.INT64}
    rows = it.add("Gather", it.w("words", 500, 16), "ids")
    h = it.add("MatMul", rows, it.w("layer", 16, 8))
    h = it.add("GlobalAveragePool", it.add("Transpose", h, perm=[0, 2, 1]))
    it.add("MatMul", it.add("Flatten", h), it.w("head", 8, 4), out="y")
    counted = work(tmp_path, it)({"ids": np.zeros((2, 5), np.int64)}, {"ids": ("batch", "sequence")})
    assert counted == 128 * 10 + 32


def test_larger_sizes_are_tried_by_their_work_alone() -> None:
    """A weight of 2^20 elements is run on 16, 64 and 224 tokens, one of 2^29 on no more than 64."""
    found = []
    for elements in (2**20, 2**29):
        infos = {"ids": InputInfo("ids", "int64", ("batch", "sequence"))}
        known, seen = Known(work=Work(((elements, 1.0),))), list[int]()
        run = lambda feed, seen=seen: seen.append(feed["ids"].size) or []  # noqa: E731
        Search(run, infos, known, RunOptions(), 2**28)()
        found.append(seen)
    assert found == [[16, 64, 224], [16, 64]]
    assert 2**29 * 64 <= RUN < 2**29 * 224
