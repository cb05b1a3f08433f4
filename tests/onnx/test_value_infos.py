"""A model says no more of its inner values than it said before."""

import onnx
import pytest

pytest.importorskip("onnxruntime")

from activation_graphs import convolutions, normal
from modelopt_rs import crop_file, quantize_file
from modelopt_rs.planning.onnx import OnnxOptions


@pytest.mark.parametrize("inferred", [False, True])
@pytest.mark.parametrize("how", ["weights", "four bits", "static", "crop"])
def test_no_value_infos_are_added(tmp_path, how, inferred):
    """H21: a cropped or static model is no larger than it need be."""
    proto = onnx.shape_inference.infer_shapes(convolutions()) if inferred else convolutions()
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(proto, before)
    if how == "crop":
        crop_file(before, after, keep=0.5, what="all")
    else:
        static = OnnxOptions(activations="static", calibrate={"x": normal(8, 3, 16, 16)})
        onnx_options = static if how == "static" else OnnxOptions()
        quantize_file(before, after, bits=4 if how == "four bits" else 8, onnx=onnx_options)
    had, has = ({info.name for info in onnx.load(path).graph.value_info} for path in (before, after))
    assert has <= had
    onnx.checker.check_model(onnx.load(after), full_check=True)
    if not inferred:
        assert after.stat().st_size < before.stat().st_size
