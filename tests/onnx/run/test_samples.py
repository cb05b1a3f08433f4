"""Calibration data in all its forms, and what is seen when a model runs on it."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from activation_graphs import attention, convolutions, model, node, normal
from modelopt_rs import FormatError
from modelopt_rs.errors import OptionError
from modelopt_rs.files.onnx import OnnxSource
from modelopt_rs.onnx.int8 import observe
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.run.inputs import InputInfo
from modelopt_rs.onnx.run.samples import Samples

ONE = {"x": InputInfo("x", "float32", ("batch", 3))}
TWO = {**ONE, "mask": InputInfo("mask", "int64", ("batch", None))}
X = np.arange(12, dtype=np.float32).reshape(4, 3)
MASK = np.arange(20).reshape(4, 5)


def taken(given: object, infos: dict[str, InputInfo]) -> list[dict[str, list]]:
    return [{name: array.tolist() for name, array in feed.items()} for feed in Samples(given, infos, "m.onnx")]


ROWS = [{"x": [row.tolist()], "mask": [mask.tolist()]} for row, mask in zip(X, MASK, strict=True)]


def test_arrays_are_cut_along_an_open_batch():
    assert taken({"x": X, "mask": MASK}, TWO) == ROWS


def test_an_axis_more_than_the_input_has_is_that_of_the_samples():
    got = taken({"x": X.reshape(2, 2, 3), "mask": MASK.reshape(2, 2, 5)}, TWO)
    assert got == [{"x": X[i : i + 2].tolist(), "mask": MASK[i : i + 2].tolist()} for i in (0, 2)]


def test_a_fixed_batch_is_cut_into_its_length(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model([node("Relu", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, {}).SerializeToString())
    infos = {"x": InputInfo("x", "float32", (2, 3))}
    found = [feed["x"].tolist() for feed in Samples({"x": X}, infos, path)]
    assert found == [X[:2].tolist(), X[2:].tolist()]


def test_lists_have_a_sample_in_each_element():
    got = taken({"x": [X[:1], X[1:4]], "mask": [MASK[:1], MASK[1:, :2]]}, TWO)
    assert got == [ROWS[0], {"x": X[1:4].tolist(), "mask": MASK[1:, :2].tolist()}]


def test_files_directories_callables_and_iterables_have_the_same_samples(tmp_path):
    np.savez(tmp_path / "all.npz", x=X, mask=MASK)
    folder = tmp_path / "samples"
    folder.mkdir()
    for i in (2, 0, 3, 1):
        np.savez(folder / f"{i}.npz", x=X[i : i + 1], mask=MASK[i : i + 1])
    feeds = [{"x": X[i : i + 1], "mask": MASK[i : i + 1]} for i in range(4)]
    for given in (tmp_path / "all.npz", str(folder), lambda: iter(feeds), feeds, iter(feeds)):
        assert taken(given, TWO) == ROWS


def test_npy_files_are_the_samples_of_a_model_with_one_input(tmp_path):
    for i in (1, 0):
        np.save(tmp_path / f"{i}.npy", X[2 * i : 2 * i + 2])
    (tmp_path / "notes.txt").write_text("not a sample")
    assert taken(tmp_path, ONE) == [{"x": X[:2].tolist()}, {"x": X[2:].tolist()}]


def test_samples_are_there_as_often_as_they_are_wanted_but_not_those_of_an_iterator():
    samples = Samples(lambda: iter([{"x": X}]), ONE, "m.onnx")
    assert len(list(samples)) == len(list(samples)) == 1
    samples = Samples(iter([{"x": X}]), ONE, "m.onnx")
    list(samples)
    message = "^calibrate must be a callable or a sequence, got an iterator; the samples are needed more than once$"
    with pytest.raises(OptionError, match=message):
        list(samples)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, OptionError, "calibrate must be a path, a mapping, an iterable or a callable, got int"),
        ([], OptionError, "calibrate must have at least one sample, got none"),
        (lambda: [], OptionError, "calibrate must have at least one sample, got none"),
        ([X], TypeError, "calibrate: sample 0 must be a mapping of arrays by input, got ndarray"),
        ({"x": X}, ValueError, "calibrate: must have the model's inputs 'x', 'mask': 'mask' is missing"),
        ([{"x": X}], ValueError, "calibrate: sample 0: must have the model's inputs 'x', 'mask': 'mask' is missing"),
        ({"x": [X], "mask": [MASK, MASK]}, ValueError,
         "calibrate: the inputs must have equally many samples, got 'x' 1, 'mask' 2"),
        ([{"x": X.astype(int), "mask": MASK}], TypeError,
         "calibrate: sample 0: 'x' must be of dtype float32, got int64"),
        ([{"x": X[:, :2], "mask": MASK}], ValueError, "calibrate: sample 0: axis 1 of 'x' must be 3 long, got shape"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_named(given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        list(Samples(given, TWO, "m.onnx"))


def test_a_sample_of_several_fixed_batches_is_refused():
    infos = {"x": InputInfo("x", "float32", (2, 3))}
    with pytest.raises(ValueError, match=r"^calibrate: sample 0: must have one batch, got 2$"):
        list(Samples([{"x": X}], infos, "m.onnx"))


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(OptionError, match=r"^calibrate: .* must have \.npy or \.npz files, has none$"):
        list(Samples(tmp_path, ONE, "m.onnx"))
    np.save(tmp_path / "0.npy", X)
    with pytest.raises(OptionError, match=r"^calibrate: .*0\.npy must be an \.npz file: the model has 2 inputs$"):
        list(Samples(tmp_path, TWO, "m.onnx"))
    (tmp_path / "0.npy").write_bytes(b"no array")
    with pytest.raises(FormatError, match=r"0\.npy: not an \.npy file of an array: "):
        list(Samples(tmp_path, ONE, "m.onnx"))


# ---- what is seen


def seen(path: Path, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[tuple[str, bytes]]:
    with OnnxSource(path) as source:
        observer = Observer(source.model, path, names, threads=1)
        return sorted((name, array.tobytes()) for name, array in observer.values(feeds, names))


def by_hand(proto: onnx.ModelProto, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[tuple[str, bytes]]:
    """The same with the values added as outputs by onnx."""
    import onnxruntime

    other = onnx.ModelProto()
    other.CopyFrom(proto)
    inputs = {value.name for value in proto.graph.input}
    inner = [name for name in names if name not in inputs]
    for name in inner:
        if name not in {value.name for value in proto.graph.output}:
            other.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(other.SerializeToString(), providers=["CPUExecutionProvider"])
    found = []
    for feed in feeds:
        found += [(name, feed[name].tobytes()) for name in names if name in inputs]
        found += [(name, array.tobytes()) for name, array in zip(inner, session.run(inner, feed), strict=True)]
    return sorted(found)


@pytest.mark.parametrize("stored", ["inline", "external", "as numbers"])
def test_inner_values_are_seen_wherever_the_weights_stand(tmp_path, stored):
    proto, path = convolutions(), tmp_path / "m.onnx"
    feeds = [{"x": normal(2, 3, 16, 16)} for _ in range(3)]
    names = ["r1", "x", "p1", "y", "c3"]
    want = by_hand(proto, names, feeds)
    if stored == "as numbers":
        for tensor in proto.graph.initializer:
            numbers = numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, numbers.ravel()))
    onnx.save(proto, path, save_as_external_data=stored == "external", location="m.data", size_threshold=0)
    assert seen(path, names, feeds) == want


@pytest.mark.parametrize("external", [False, True])
def test_a_model_in_a_cache_of_links_is_seen(tmp_path, monkeypatch, external):
    """The cache of a model hub: names that are links to blobs; here by a relative path."""
    blobs, names = tmp_path / "blobs", tmp_path / "names"
    blobs.mkdir()
    names.mkdir()
    onnx.save(convolutions(), names / "m.onnx", save_as_external_data=external, location="m.data", size_threshold=0)
    for i, file in enumerate(sorted(names.iterdir())):
        file.rename(blobs / f"{i}")
        file.symlink_to(blobs / f"{i}")
    monkeypatch.chdir(tmp_path)
    feed = {"x": normal(2, 3, 16, 16)}
    with OnnxSource("names/m.onnx", allow_symlinks_under=blobs) as source:
        observer = Observer(source.model, "names/m.onnx", ["r1"], threads=1)
        found = [(name, array.tobytes()) for name, array in observer.values([feed], ["r1"])]
    assert found == by_hand(convolutions(), ["r1"], [feed])


def test_many_or_large_values_come_in_several_runs_and_are_the_same(tmp_path, monkeypatch):
    proto, path = attention(), tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    feeds = [{"x": normal(2, 5, 32)} for _ in range(3)]
    names = ["n1", "q", "k", "s", "p", "o", "h", "n2", "act", "y"]
    want = seen(path, names, feeds)
    monkeypatch.setattr(observe, "FIRST", 3)
    monkeypatch.setattr(observe, "TOGETHER", 3000)
    assert seen(path, names, feeds) == want


def test_the_model_is_not_changed_by_being_watched(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(convolutions().SerializeToString())
    with OnnxSource(path) as source:
        Observer(source.model, path, ["r1"], threads=1)
        assert [value.name for value in source.model.graph.outputs] == ["y"]
        assert source.model.graph.initializers["w2"].const_value.numpy().shape == (16, 16, 3, 3)


def test_a_model_that_onnxruntime_refuses_is_an_error_that_names_the_node(tmp_path):
    proto = model([node("Relu", ["x"], ["y"], name="odd")], {"x": [2]}, {"y": [2]}, {})
    proto.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with OnnxSource(path) as source, pytest.raises(FormatError, match=r"m\.onnx: onnxruntime refuses it: .*NoSuchOp"):
        Observer(source.model, path, ["y"])


def test_memory_is_for_one_sample(tmp_path):
    """200 samples of 2 MiB of activations: memory stays at a few of them."""
    from modelopt_rs.onnx.int8.statistics import Statistics

    path = tmp_path / "m.onnx"
    path.write_bytes(convolutions().SerializeToString())
    x = normal(32, 3, 16, 16)
    with OnnxSource(path) as source:
        values = {value.name: value for each in source.model.graph for value in each.outputs}
        observer = Observer(source.model, path, list(values)[:8], threads=1)
        statistics = Statistics("percentile", ranges=list(values.values())[:8])

        def take(count: int) -> None:
            feeds = ({"x": x + np.float32(i)} for i in range(count))
            for name, array in observer.values(feeds, list(statistics.values)):
                statistics.take(name, array)

        take(2)
        tracemalloc.start()
        take(200)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_hidden_files_are_no_samples_and_suffixes_have_any_case(tmp_path):
    np.savez(tmp_path / "a.npz", x=X)
    (tmp_path / "a.npz").rename(tmp_path / "a.NPZ")
    np.save(tmp_path / "b.npy", X[:2])
    (tmp_path / "b.npy").rename(tmp_path / "b.Npy")
    (tmp_path / "._a.npz").write_bytes(b"what another system leaves beside it")
    assert taken(tmp_path, ONE) == [{"x": X.tolist()}, {"x": X[:2].tolist()}]


def test_numbers_of_python_have_the_dtype_of_the_input():
    assert taken([{"x": X.tolist(), "mask": MASK.tolist()}], TWO) == [{"x": X.tolist(), "mask": MASK.tolist()}]
    half = {"x": InputInfo("x", "float16", (None,))}
    assert taken([{"x": [1, 2.5]}], half) == [{"x": [1.0, 2.5]}]
    for value, dtype in (([0.5], "int64"), ([300], "uint8"), (["a"], "float32")):
        with pytest.raises(TypeError, match=f"'x' must be of dtype {dtype}, got "):
            taken([{"x": value}], {"x": InputInfo("x", dtype, (None,))})
    with pytest.raises(ValueError, match="'x' must be an array, got list: the lengths of its parts differ"):
        taken([{"x": [[1.0], [2.0, 3.0]]}], {"x": InputInfo("x", "float32", (None, None))})


@pytest.mark.slow
def test_tensors_of_torch_are_taken_or_say_what_to_pass():
    torch = pytest.importorskip("torch")
    assert taken({"x": torch.from_numpy(X)}, ONE) == [{"x": [row.tolist()]} for row in X]
    with pytest.raises(ValueError, match=r"calibrate: 'x' must not require a gradient, .*detach"):
        list(Samples({"x": torch.ones(2, 3, requires_grad=True)}, ONE, "m.onnx"))


def recurrent(before: list, axes: list, *, layout: int = 0, kind: int = 1):
    """A GRU of two hidden units behind some nodes, which take `x` and give `g`."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((1, 6, 4)).astype(np.float32),
        "r": rng.standard_normal((1, 6, 2)).astype(np.float32),
        "table": rng.standard_normal((9, 4)).astype(np.float32),
        "square": rng.standard_normal((4, 4)).astype(np.float32),
        "first": np.array([0]),
    }
    attributes = {"hidden_size": 2, **({"layout": 1} if layout else {})}
    nodes = [*before, helper.make_node("GRU", ["g", "w", "r"], ["y"], **attributes)]
    taken = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, axes)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(w, name) for name, w in weights.items() if name in taken],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def step(operator: str, inputs: str, **attributes):
    return helper.make_node(operator, inputs.split(), ["g"], **attributes)


THROUGH = {
    "straight": ([step("Identity", "x")], ["n", "m", 4], 1),
    "unnamed": ([step("Identity", "x")], [None, None, 4], 1),
    "one at a time": ([step("Identity", "x")], ["n", 1, 4], None),
    "product": ([step("MatMul", "x square")], ["n", "m", 4], 1),
    "turned": ([step("Transpose", "x", perm=[1, 0, 2])], ["n", "m", 4], 0),
    "behind channels": ([step("Transpose", "x", perm=[2, 0, 1])], ["n", 4, "m"], 0),
    "of one only": (
        [helper.make_node("Squeeze", ["x", "first"], ["s"]), step("Unsqueeze", "s first")],
        [1, 6, 4],
        None,
    ),
    "called a batch": ([step("Identity", "x")], ["batch", "m", 4], 0),
}


@pytest.mark.parametrize("name", THROUGH)
def test_samples_are_never_cut_along_the_time_of_a_recurrent_layer(name, tmp_path):
    before, axes, batch = THROUGH[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(recurrent(before, axes).SerializeToString())
    shape = [axis if isinstance(axis, int) else (6 if i == 0 else 3) for i, axis in enumerate(axes)]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    infos = {"x": InputInfo("x", "float32", tuple(axes))}
    found = [feed["x"] for feed in Samples({"x": x}, infos, path)]
    assert len(found) == (1 if batch is None else x.shape[batch])
    assert np.array_equal(np.concatenate(found, batch or 0), x)


def test_embeddings_and_layouts_say_what_is_time(tmp_path):
    path, ids = tmp_path / "m.onnx", np.zeros((6, 3), np.int64)
    infos = {"x": InputInfo("x", "int64", ("n", "m"))}
    for layout, shape in ((0, (6, 1)), (1, (1, 3))):
        proto = recurrent([step("Gather", "table x")], ["n", "m"], layout=layout, kind=7)
        path.write_bytes(proto.SerializeToString())
        assert {feed["x"].shape for feed in Samples({"x": ids}, infos, path)} == {shape}


def test_a_time_of_fixed_length_is_not_cut_into_several(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(recurrent([step("Identity", "x")], [6, "m", 4]).SerializeToString())
    infos = {"x": InputInfo("x", "float32", (6, "m", 4))}
    with pytest.raises(ValueError, match=r"axis 0 of 'x' must be 6 long, got shape \[12, 1, 4\]"):
        Samples({"x": np.zeros((12, 1, 4), np.float32)}, infos, path)


def test_samples_are_counted_along_the_batch_of_a_recurrent_layer(tmp_path):
    """Its first axis is time: two samples of eight steps are not sixteen."""
    w, r = normal(1, 16, 3), normal(1, 16, 4)
    nodes = [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)]
    path = tmp_path / "m.onnx"
    shapes = {"x": [None, None, 3]}
    path.write_bytes(model(nodes, shapes, {"y": [None, 1, None, 4]}, {"w": w, "r": r}).SerializeToString())
    infos = {"x": InputInfo("x", "float32", (None, None, 3))}
    for given in ([{"x": np.zeros((8, 1, 3), np.float32)}] * 2, {"x": np.zeros((8, 2, 3), np.float32)}):
        assert Samples(given, infos, path).rows == 2


def scanned(axes: list, *, opset: int = 17, **attributes):
    """A Scan over `x`, which adds up what it sees of the steps."""
    shapes = [None, 4] if opset == 17 else [4]
    names = ["s", "e", "t", "o"]
    s, e, t, o = (helper.make_tensor_value_info(name, 1, shapes) for name in names)
    body = helper.make_graph([node("Add", ["s", "e"], ["t"]), node("Identity", ["t"], ["o"])], "b", [s, e], [t, o])
    scan = helper.make_node("Scan", [*([""] if opset == 8 else []), "zero", "x"], ["last", "y"], body=body,
                            num_scan_inputs=1, **attributes)  # fmt: skip
    graph = helper.make_graph(
        [scan],
        "g",
        [helper.make_tensor_value_info("x", 1, axes)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.zeros((2, 4), np.float32), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("how", "count"),
    [
        ({}, 1),
        ({"scan_input_axes": [0]}, 1),
        ({"scan_input_axes": [1]}, 6),
        ({"scan_input_axes": [-3]}, 1),
        ({"opset": 8}, 6),
    ],
)
def test_samples_are_never_cut_along_the_time_of_a_scan(how, count, tmp_path):
    path, x = tmp_path / "m.onnx", np.random.default_rng(1).standard_normal((6, 2, 4)).astype(np.float32)
    path.write_bytes(scanned(["n", "m", 4], **how).SerializeToString())
    found = Samples({"x": x}, {"x": InputInfo("x", "float32", ("n", "m", 4))}, path)
    assert len(list(found)) == found.rows == count
    assert np.array_equal(np.concatenate([feed["x"] for feed in found]), x)


def looped(take: list, axes: list):
    """A Loop that adds up what it takes of `x` in each round."""
    info = helper.make_tensor_value_info
    i, s, t = info("i", 7, []), info("s", 1, [2, 4]), info("t", 1, [2, 4])
    go, on = info("go", 9, []), info("on", 9, [])
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), *take, node("Add", ["s", "e"], ["t"])], "b", [i, go, s], [on, t]
    )
    numbers = {"zero": np.zeros((2, 4), np.float32), "first": np.array([0]), "one": np.array(1), "last": np.array(5)}
    numbers |= {"axis": np.array([0]), "six": np.array(6)}
    loop = helper.make_node("Loop", ["six", "", "zero"], ["y"], body=body)
    graph = helper.make_graph(
        [node("Relu", ["x"], ["r"]), loop],
        "g",
        [info("x", 1, axes)],
        [info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


TAKEN = {
    "the row of the round": ([node("Gather", ["r", "i"], ["e"], axis=0)], 1),
    "from the last on": ([node("Sub", ["last", "i"], ["j"]), node("Gather", ["r", "j"], ["e"], axis=0)], 1),
    "a slice": (
        [
            node("Unsqueeze", ["i", "axis"], ["b"]),
            node("Add", ["i", "one"], ["j"]),
            node("Unsqueeze", ["j", "axis"], ["c"]),
            node("Slice", ["r", "b", "c", "axis"], ["d"]),
            node("Squeeze", ["d", "axis"], ["e"]),
        ],
        1,
    ),
    "always the same": ([node("Gather", ["r", "one"], ["e"], axis=0)], 6),
}


@pytest.mark.parametrize("how", TAKEN)
def test_samples_are_never_cut_along_what_a_loop_counts(how, tmp_path):
    (take, count), path = TAKEN[how], tmp_path / "m.onnx"
    path.write_bytes(looped(take, ["n", 2, 4]).SerializeToString())
    x = np.random.default_rng(1).standard_normal((6, 2, 4)).astype(np.float32)
    onnxruntime = pytest.importorskip("onnxruntime")
    assert onnxruntime.InferenceSession(path.read_bytes()).run(None, {"x": x})[0].shape == (2, 4)
    found = Samples({"x": x}, {"x": InputInfo("x", "float32", ("n", 2, 4))}, path)
    assert len(list(found)) == found.rows == count
