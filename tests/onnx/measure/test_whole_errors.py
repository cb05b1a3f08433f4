"""Models that were made of one are held against it by what says which of them is nearer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
from modelopt_rs.containers.onnx import OnnxSource  # noqa: E402
from modelopt_rs.errors import UnsupportedError  # noqa: E402
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream  # noqa: E402
from modelopt_rs.onnx.measure.whole_errors import WholeErrors  # noqa: E402
from modelopt_rs.onnx.run.pair import compare_models  # noqa: E402
from modelopt_rs.planning.run import RunOptions  # noqa: E402
from modelopt_rs.report.run import relative_error  # noqa: E402
from modelopt_rs.stream.execution import Execution  # noqa: E402
from onnx_graphs import model, node, value  # noqa: E402

RNG = np.random.default_rng(3)
FEED = {"x": RNG.standard_normal((8, 24)).astype(np.float32)}
W = (4 * RNG.standard_normal((24, 10))).astype(np.float32)
OFF = (W + 0.1 * RNG.standard_normal(W.shape)).astype(np.float32)
EXECUTION = Execution(2**28, 1, None, 0)


def saved(path: Path, w: Any, *, softmax: bool, scores: str = "scores") -> Path:
    nodes = [node("MatMul", ["x", "w"], [scores if softmax else "y"])]
    nodes += [node("Softmax", [scores], ["y"])] if softmax else []
    onnx.save(model(nodes, [value("x", ["n", 24])], [value("y", ["n", 10])], {"w": w}, opset=21), path)
    return path


def error(a: Path, b: Path, run: RunOptions) -> float | None:
    with OnnxSource(a) as source:
        return WholeErrors(source, Data(None, run), EXECUTION).of(b)


@pytest.mark.parametrize("scores", ["scores", "others"])
def test_of_probabilities_the_scores_are_compared_where_both_models_have_them(tmp_path: Path, scores: str) -> None:
    a, b = saved(tmp_path / "a.onnx", W, softmax=True), saved(tmp_path / "b.onnx", OFF, softmax=True, scores=scores)
    run = RunOptions(inputs=FEED, rounds=0)
    there, found = FEED["x"] @ W, FEED["x"] @ OFF
    by_scores = float(np.linalg.norm(found - there) / np.linalg.norm(there))
    by_outputs = relative_error(compare_models(a, b, run))
    assert by_outputs is not None
    assert abs(by_outputs / by_scores - 1) > 0.1
    assert error(a, b, run) == pytest.approx(by_scores if scores == "scores" else by_outputs, rel=1e-4)


def test_of_other_outputs_it_is_what_a_report_says(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a.onnx", W, softmax=False), saved(tmp_path / "b.onnx", OFF, softmax=False)
    run = RunOptions(inputs=FEED, rounds=0)
    assert error(a, b, run) == pytest.approx(relative_error(compare_models(a, b, run)), rel=1e-6)
    assert error(a, a, run) == 0.0


def test_the_first_model_is_run_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = saved(tmp_path / "a.onnx", W, softmax=True), saved(tmp_path / "b.onnx", OFF, softmax=True)
    runs: list[int] = []
    outputs = InputStream.outputs

    def counted(self: InputStream, names: Any, *args: Any) -> Any:
        for each in outputs(self, names, *args):
            runs.append(1)
            yield each

    monkeypatch.setattr(InputStream, "outputs", counted)
    with OnnxSource(a) as source:
        whole = WholeErrors(source, Data(None, RunOptions(inputs=FEED)), EXECUTION)
        assert whole.of(b) == whole.of(b) != whole.of(a) == 0.0
        assert len(runs) == 1
        # What is much is not kept, and gives the same.
        whole = WholeErrors(source, Data(None, RunOptions(inputs=FEED)), Execution(600, 1, None, 0))
        assert whole.of(b) == whole.of(b) != 0.0
        assert len(runs) == 3


@pytest.mark.parametrize(("columns", "count"), [(10, 256), (2**19, 16)])
def test_inputs_that_are_made_up_are_of_both_signs_and_of_one(tmp_path: Path, columns: int, count: int) -> None:
    """Of a small model there are many; what is chance of ten numbers is none of thousands."""
    w = np.ones((24, columns), np.float32)
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("ReduceMean", ["h"], ["y"])]
    proto = model(nodes, [value("x", ["batch", 24])], [value("y", [None, None])], {"w": w}, opset=17)
    onnx.save(proto, tmp_path / "a.onnx")
    with OnnxSource(tmp_path / "a.onnx") as source:
        feeds = [feed["x"] for feed in WholeErrors(source, Data(None, RunOptions()), EXECUTION)._stream.feeds()]
    signed = [(feed < 0).any() for feed in feeds]
    assert len(feeds) == count
    assert signed == [True, False] * (count // 2)
    assert len({feed.tobytes() for feed in feeds}) == count


def test_a_model_whose_inputs_can_not_be_made_up_is_refused(tmp_path: Path) -> None:
    nodes = [node("StringConcat", ["s", "s"], ["t"])]
    text = onnx.helper.make_tensor_value_info("s", onnx.TensorProto.STRING, ["n"])
    out = onnx.helper.make_tensor_value_info("t", onnx.TensorProto.STRING, ["n"])
    onnx.save(model(nodes, [text], [out], {}, opset=21), tmp_path / "a.onnx")
    with OnnxSource(tmp_path / "a.onnx") as source, pytest.raises(UnsupportedError, match="has strings"):
        WholeErrors(source, Data(None, RunOptions()), EXECUTION)
