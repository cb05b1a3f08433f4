"""With fewer bits a weight takes no more bytes, whatever has said that it needs more than were asked for."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from activation_graphs import model, node, normal
from modelopt_rs.files.onnx import OnnxSource
from modelopt_rs.onnx.weight_only.plan import plan_weights
from modelopt_rs.planning.decide import Moved
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions

WEIGHT = "encoder.stages.1.layers.0.shortcut.convolution.weight"


class OutputsAreOff:
    """Has all weights at 4 bits for the outputs' sake."""

    def too_far(self, weight: object, bits: int, coder: object) -> None:
        return None

    def for_outputs(self, weights: Mapping[str, object], bits: Mapping[str, int]) -> dict[str, Moved]:
        return {name: Moved(4, "outputs are off", "outputs are 1 off") for name in weights}


def small_convolution(outputs: int) -> onnx.ModelProto:
    return model(
        [node("Conv", ["x", WEIGHT], ["y"], name="/encoder/stages.1/shortcut/convolution/Conv")],
        {"x": ["batch", 32, 4, 4]},
        {"y": ["batch", outputs, 4, 4]},
        {WEIGHT: normal(outputs, 32, 1, 1).astype(np.float32)},
    )


@pytest.mark.parametrize(("outputs", "bits"), [(64, 8), (1024, 4)])
def test_a_weight_that_outputs_give_more_bits_gets_those_that_take_the_least_bytes(tmp_path, outputs, bits):
    path = tmp_path / "m.onnx"
    path.write_bytes(small_convolution(outputs).SerializeToString())
    with OnnxSource(path) as source:
        plan = plan_weights(source.model, source.tensors, QuantizeOptions(bits=2), OnnxOptions(), OutputsAreOff())
    assert plan.bits[WEIGHT] == bits
    moved = plan.decisions[WEIGHT].moved
    assert moved is not None
    assert moved.bits == bits
