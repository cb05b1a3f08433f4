"""Graphs with operators that nobody knows, cropped by groups and numbers that their user gives."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
from onnx import numpy_helper

import modelopt_rs as mo
from graph_nets import Net, feeds_of, run
from modelopt_rs.errors import OptionError


def unknown():
    """Units that go through an operator without a rule (DepthToSpace by words), and through shapes."""
    net = Net({"x": [2, 5]})
    h = net.add("MatMul", "x", net.w("up", 5, 16))
    h = net.add("Reshape", h, net.ints("shape", 2, 16, 1, 1))
    h = net.add("LRN", h, size=1, alpha=1e-4, beta=0.75, bias=1.0)
    h = net.add("Reshape", h, net.ints("back", 2, 16))
    net.add("MatMul", h, net.w("down", 16, 3), out="y")
    return net.proto()


GROUP = mo.prune.Group("units", 16, (mo.prune.Member("up", 1), mo.prune.Member("down", 0)))
NUMBERS = {"shape[1]": "units", "back[1]": "units"}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(unknown(), path)
    with pytest.raises(OptionError, match="LRN"):
        mo.crop_file(path, tmp_path / "small.onnx", keep=0.5, what="all")
    return path


def test_given_groups_and_numbers_make_the_graph_without_the_units(model, tmp_path):
    report = mo.crop_file(model, tmp_path / "small.onnx", keep=0.5, groups=[GROUP], numbers=NUMBERS)
    small, whole = onnx.load(tmp_path / "small.onnx"), unknown()
    shapes = {each.name: list(each.dims) for each in small.graph.initializer}
    assert (shapes["up"], shapes["down"]) == ([5, 8], [8, 3])
    arrays = {each.name: numpy_helper.to_array(each).copy() for each in whole.graph.initializer}
    scores = np.square(arrays["up"]).sum(0) + np.square(arrays["down"]).sum(1)
    gone = np.argsort(scores)[:8]
    arrays["up"][:, gone], arrays["down"][gone] = 0, 0
    for each in whole.graph.initializer:
        each.CopyFrom(numpy_helper.from_array(arrays[each.name], each.name))
    feeds = feeds_of(whole)
    np.testing.assert_allclose(run(small, feeds)[0], run(whole, feeds)[0], rtol=1e-5, atol=1e-5)
    assert report.groups[0].kept == 8


def test_attributes_of_nodes_count_units_too(tmp_path):
    net = Net({"x": [2, 8, 6, 6]})
    net.add("Conv", "x", net.w("up", 16, 8, 1, 1), out="h")
    net.add("LRN", "h", size=1, out="n")
    net.add("Conv", "n", net.w("deep", 16, 1, 3, 3), group=16, out="d")
    net.add("Conv", "d", net.w("down", 3, 16, 1, 1), out="y")
    proto = net.proto()
    proto.graph.node[2].name = "deep.node"
    onnx.save(proto, tmp_path / "model.onnx")
    members = [mo.prune.Member("up", 0), mo.prune.Member("deep", 0), mo.prune.Member("down", 1)]
    group = mo.prune.Group("units", 16, tuple(members))
    mo.crop_file(
        tmp_path / "model.onnx", tmp_path / "small.onnx", keep=0.5, groups=[group], numbers={"deep.node.group": "units"}
    )
    small = onnx.load(tmp_path / "small.onnx")
    assert small.graph.node[2].attribute[0].i == 8
    assert run(small, feeds_of(small))[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"gone[0]": "units"}, r"numbers must name integers of the graph \(name\[i\] .* got 'gone\[0\]', which it has not"),  # noqa: E501
        ({"shape[4]": "units"}, r"numbers must name integers of the graph, got 'shape\[4\]', where there are 4"),
        ({"up[0]": "units"}, r"numbers must name integers of the graph, got 'up\[0\]', which holds others"),
        ({"shape[0]": "units"}, r"'shape\[0\]' must be a multiple of the 16 units .* got 2"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(model, tmp_path, numbers, message):
    with pytest.raises(OptionError, match=message):
        mo.crop_file(model, tmp_path / "small.onnx", keep=0.5, groups=[GROUP], numbers=numbers)
    assert not (tmp_path / "small.onnx").exists()


def test_a_graph_whose_numbers_were_forgotten_does_not_take_its_place(model, tmp_path):
    with pytest.raises(mo.FormatError, match="onnxruntime"):
        mo.crop_file(model, tmp_path / "small.onnx", keep=0.5, groups=[GROUP])
    assert not (tmp_path / "small.onnx").exists()
