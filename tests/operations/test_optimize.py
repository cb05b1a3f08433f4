"""optimize_file: a size that is met, with less loss than bits that are the same everywhere."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import write
from modelopt_rs.containers.safetensors import SafetensorsSource
from modelopt_rs.planning.loss_table import DOUBT, LEAST_SHARE, Coded, LossTable, TensorLosses

NAMES = [
    f"model.layers.{i}.{part}.weight" for i in range(6) for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.fc")
]


def model(folder: Path, config: dict[str, Any] | None = None) -> Path:
    rng = np.random.default_rng(0)
    tensors = {"model.embed_tokens.weight": ("F32", rng.standard_normal((64, 256)).astype(np.float32))}
    for i, name in enumerate(NAMES):
        w = rng.standard_normal((128 + 32 * (i % 3), 256)).astype(np.float32)
        # Some have outliers: they lose more.
        w[:, ::32] *= 1 + 6 * (i % 2)
        tensors[name] = ("F32", w)
    folder.mkdir()
    write(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def size(path: Path) -> int:
    return (path / "model.safetensors").stat().st_size


def codes(report: mo.QuantizeOptions) -> dict[str, Any]:
    return report.options.get("bits_of", {})


@pytest.mark.parametrize("config", [None, pytest.param({"model_type": "llama"}, marks=pytest.mark.slow)])
def test_the_size_is_met_within_half_a_percent(tmp_path: Path, config: dict[str, Any] | None) -> None:
    source, table = model(tmp_path / "a", config), tmp_path / "t.json"
    plan = mo.optimize_file(source, tmp_path / "b", target_bpw=5.0, table=table, dry_run=True)
    said = plan.options["allocation"]
    losses = []
    for part in (0.03, 0.08, 0.12):
        target = int(said["floor"] + part * (said["ceiling"] - said["floor"]))
        report = mo.optimize_file(
            source, tmp_path / "b", target_size=target, table=table, overwrite=True, durable=False
        )
        assert size(tmp_path / "b") <= target
        # Zero points are had by all weights in one code, which leaves bytes over, or by none.
        whole = config is not None and [each["symmetric"] for each in group_codes(tmp_path / "b")] == [False]
        assert 0.995 * target <= size(tmp_path / "b") or whole
        assert abs(size(tmp_path / "b") - report.options["allocation"]["size"]) < 0.005 * target
        losses.append(report.options["allocation"]["loss"])
        assert report.options["allocation"]["gap"] < 0.05
    assert losses == sorted(losses, reverse=True)
    assert report.command == "optimize"


@pytest.mark.parametrize("bits", [4, 2])
def test_no_more_loss_than_with_the_same_bits_everywhere(tmp_path: Path, bits: int) -> None:
    source = model(tmp_path / "a", {"model_type": "llama"})
    how = {"bits": bits, "scheme": "symmetric", "uniform": True, "durable": False}
    same = mo.quantize_file(source, tmp_path / "b", **how)
    report = mo.optimize_file(
        source, tmp_path / "c", target_size=int(1.005 * size(tmp_path / "b")), priors={"*": 1.0}, durable=False
    )

    def loss(tensors: Any) -> float:
        found = {t.name: t for t in tensors}
        counts = {name: np.prod(found[name].shape) ** 0.5 for name in NAMES}
        errors = {name: 0.0 if found[name].sqnr_db is None else 10 ** (-found[name].sqnr_db / 10) for name in NAMES}
        return float(sum(counts[name] * errors[name] for name in NAMES))

    assert loss(report.tensors) <= loss(same.tensors) * (1 + 1e-6)


def alike(folder: Path, model_type: str) -> Path:
    """A directory whose weights are all alike: nobody knows which count more."""
    rng, names = np.random.default_rng(0), ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    rows = dict(zip(names, (128, 128, 512, 128), strict=True))
    tensors = {
        f"model.layers.{i}.{name}.weight": ("F32", rng.standard_normal((rows[name], 256)).astype(np.float32))
        for i in range(4)
        for name in names
    }
    folder.mkdir()
    write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize("model_type", ["llama", "t5"])  # of T5 transformers reads weights only if all are coded alike
@pytest.mark.parametrize("code", [{"bits": 4}, {"bits": 4, "group_size": 64}, {"bits": 2}])
def test_no_weight_is_further_off_than_by_uniform_bits_where_nothing_says_which_count(
    tmp_path: Path, model_type: str, code: dict[str, Any]
) -> None:
    source = alike(tmp_path / "a", model_type)
    same = mo.quantize_file(source, tmp_path / "b", uniform=True, durable=False, **code)
    report = mo.optimize_file(source, tmp_path / "c", target_size=int(1.005 * size(tmp_path / "b")), durable=False)
    off = {each.name: each.sqnr_db for each in same.tensors}
    assert all(each.sqnr_db is None or each.sqnr_db >= off[each.name] for each in report.tensors)
    assert size(tmp_path / "c") <= 1.005 * size(tmp_path / "b")


def test_bytes_are_taken_from_a_weight_where_that_makes_clearly_less_loss(tmp_path: Path) -> None:
    source = model(tmp_path / "a", {"model_type": "llama"})  # every other weight has outliers, and loses more
    same = mo.quantize_file(source, tmp_path / "b", bits=2, uniform=True, durable=False)
    report = mo.optimize_file(source, tmp_path / "c", target_size=int(1.1 * size(tmp_path / "b")), durable=False)
    off = {each.name: each.sqnr_db for each in same.tensors}
    assert any(each.sqnr_db is not None and each.sqnr_db < off[each.name] for each in report.tensors)


def test_a_table_serves_another_size_and_no_other_model(tmp_path: Path) -> None:
    source, table = model(tmp_path / "a"), tmp_path / "t.json"
    first = mo.optimize_file(source, tmp_path / "b", target_bpw=4.3, table=table, durable=False)
    # What is read is not measured again.
    read = json.loads(table.read_text())
    for each in read["tensors"].values():
        each["codes"]["2"]["error"] = 0.0
    table.write_text(json.dumps(read))
    again = mo.optimize_file(source, tmp_path / "c", target_bpw=4.3, table=table, durable=False)
    assert (first.options["allocation"]["loss"], again.options["allocation"]["loss"]) != (0.0, None)
    assert again.options["allocation"]["loss"] == 0.0
    with pytest.raises(mo.OptionError, match=r"table must be of this model and these options, got another"):
        mo.optimize_file(source, tmp_path / "d", target_bpw=4.3, table=table, exclude=["*.fc.*"], durable=False)
    table.write_text("{}")
    with pytest.raises(mo.FormatError, match=r"t\.json: not a table of losses"):
        mo.optimize_file(source, tmp_path / "d", target_bpw=4.3, table=table, durable=False)
    assert not (tmp_path / "d").exists()


def test_weights_that_are_fused_share_their_code(tmp_path: Path) -> None:
    source = model(tmp_path / "a", {"model_type": "llama"})
    for bpw in (3.0, 4.2, 6.0):
        report = mo.optimize_file(
            source, tmp_path / "b", target_bpw=bpw, table=tmp_path / "t.json", overwrite=True, durable=False
        )
        bits = codes(report)
        for i in range(6):
            q, v = (bits.get(f"model.layers.{i}.self_attn.{part}_proj.weight") for part in "qv")
            assert q == v
        groups = group_codes(tmp_path / "b")
        assert len(groups) == 1 or all(each["symmetric"] for each in groups)


def test_priors_say_what_counts(tmp_path: Path) -> None:
    source, table = model(tmp_path / "a"), tmp_path / "t.json"
    bits = {}
    for prior in (0.0, 1000.0):
        priors = {"*.fc.weight": prior}
        report = mo.optimize_file(source, tmp_path / "b", target_bpw=3.6, priors=priors, table=table, dry_run=True)
        bits[prior] = [codes(report).get(name, 32) for name in NAMES if name.endswith("fc.weight")]
    assert set(bits[0.0]) == {2}
    assert min(bits[1000.0]) >= 4


@pytest.mark.parametrize("size", [{"target_bpw": 6}, {"target_size": 10**6}])
def test_a_model_without_weights_to_choose_for_is_named(tmp_path: Path, size: dict[str, Any]) -> None:
    source = tmp_path / "m.safetensors"
    write(source, {"norm.weight": ("F32", np.ones(64, np.float32))})
    with pytest.raises(
        mo.UnsupportedError, match=r"m\.safetensors: no weight of it can have fewer bits; quantize says"
    ):
        mo.optimize_file(source, tmp_path / "out.safetensors", **size)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of target_size and target_bpw must be given, got none"),
        ({"target_size": 1, "target_bpw": 4.0}, "one of target_size and target_bpw must be given, got both"),
        ({"target_size": 0}, "target_size must be above 0, got 0"),
        ({"target_size": 1000}, r"target_size must be from [\d,]+ to [\d,]+ bytes for this model, got 1,000"),
        ({"target_bpw": 1.0}, r"target_bpw must be from 2\.\d+ to below 3\d\.\d+ for this model, got 1"),
        ({"target_bpw": 4.5, "priors": {"*": -1.0}}, r"priors '\*' must be finite and not negative, got -1.0"),
        ({"target_bpw": 4.5, "max_loss": 0.01}, r"max_loss must be at least 0\.\d+ for this size, got 0.01"),
    ],
)
def test_what_can_not_be_had_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = model(tmp_path / "a")
    with pytest.raises(mo.OptionError, match=message):
        mo.optimize_file(source, tmp_path / "b", durable=False, **options)
    assert not (tmp_path / "b").exists()


def test_a_table_is_read_as_it_was_written() -> None:
    text = '{"schema": 6, "seen": [], "alike": [], "of": "x", "fixed": 8, "tensors": {"w": {"elements": 4, "role": "other", "group": "w", "codes": {"8": {"nbytes": 9, "error": 0.5, "output": null}}}}}'  # noqa: E501
    table = LossTable.from_json(text, "t")
    assert LossTable.from_json(table.to_json(), "t") == table
    assert table.range() == (17, 17)
    for other, message in (
        (text.replace("6", "2", 1), "^t: a table of losses of another version; remove it$"),
        ("{}", "^t: not a table"),
    ):
        with pytest.raises(mo.FormatError, match=message):
            LossTable.from_json(other, "t")


@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("portable", marks=pytest.mark.slow)])
def test_an_onnx_model(tmp_path: Path, target: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.standard_normal((256, 256)).astype(np.float32) / 16 for i in range(8)}
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(8)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 256]) for name in ("x0", "x8")]
    graph = helper.make_graph(
        nodes, "g", info[:1], info[1:], [numpy_helper.from_array(w, n) for n, w in arrays.items()]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, tmp_path / "a.onnx")
    target_size = 290_000
    report = mo.optimize_file(
        tmp_path / "a.onnx",
        tmp_path / "b.onnx",
        target_size=target_size,
        onnx=mo.OnnxOptions(target=target),
        run=mo.RunOptions(rounds=0),
        durable=False,
    )
    written = (tmp_path / "b.onnx").stat().st_size
    assert 0.97 * target_size <= written <= target_size
    assert written == report.options["allocation"]["size"]
    assert report.run is not None
    assert re.fullmatch(r"w\d", next(iter(codes(report))))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that are read of each tensor."""
    found: dict[str, int] = {}
    tiles = SafetensorsSource.tiles

    def counted(self: Any, name: str, *args: Any) -> Any:
        for tile in tiles(self, name, *args):
            found[name] = found.get(name, 0) + tile.array.nbytes
            yield tile

    monkeypatch.setattr(SafetensorsSource, "tiles", counted)
    return found


def test_every_weight_is_read_once_for_all_codes(tmp_path: Path, read: dict[str, int]) -> None:
    source = model(tmp_path / "a", {"model_type": "llama"})
    whole = mo.optimize_file(source, tmp_path / "b", target_bpw=4.25, dry_run=True)
    assert set(read) == set(NAMES)
    with mo.files.open(source) as opened:
        assert read == {name: opened.tensors[name].nbytes for name in NAMES}
    # Where memory is not enough for all codes together, each has it alone, and finds the same.
    small = mo.optimize_file(source, tmp_path / "b", target_bpw=4.25, dry_run=True, max_memory=48_000)
    assert small.options["allocation"] == pytest.approx(whole.options["allocation"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"out": "there"}, FileExistsError, "there"),
        ({"out": "a", "overwrite": True}, ValueError, "must not be the source's directory"),
        ({"out": "no/where"}, FileNotFoundError, "where"),
        ({"table": "nowhere/t.json"}, FileNotFoundError, "No such directory for the table"),
        ({"target_size": "1kB"}, mo.OptionError, "target_size must be from"),
    ],
)
def test_what_is_wrong_is_said_before_a_weight_is_read(
    tmp_path: Path, read: dict[str, int], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = model(tmp_path / "a", {"model_type": "llama"})
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    options = {"target_bpw": None if "target_size" in options else 4.25, **options}
    if "table" in options:
        options["table"] = tmp_path / options["table"]
    with pytest.raises(error, match=message):
        mo.optimize_file(source, tmp_path / options.pop("out", "b"), durable=False, **options)
    assert read == {}
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("only_dequantize", [False, True])
def test_weights_that_are_read_only_alike_have_one_code(tmp_path: Path, only_dequantize: bool) -> None:
    """transformers reads an embedding in codes only where all weights have the same; others may stay floats."""
    source = model(tmp_path / "a", {"model_type": "llama"})
    how: dict[str, Any] = {"include": ["*embed_tokens*"], "only_dequantize": only_dequantize, "durable": False}
    for bpw in (4.5, 6.0):
        report = mo.optimize_file(
            source, tmp_path / f"{bpw}", target_bpw=bpw, table=tmp_path / f"{only_dequantize}.json", **how
        )
        has = {json.dumps(codes_of) for codes_of in group_codes(tmp_path / f"{bpw}")}
        assert len(has) > 1 if only_dequantize else len(has) == 1
        assert report.options["allocation"]["size"] <= bpw * 8 * sum(np.prod(t.shape) for t in report.tensors)


def group_codes(folder: Path) -> list[Any]:
    """How the groups of a config are coded."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return [each["weights"] for each in config["config_groups"].values()]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    source, calls = model(tmp_path / "a"), []
    mo.optimize_file(source, tmp_path / "b", target_bpw=4.25, durable=False, progress=lambda *call: calls.append(call))
    shutil.rmtree(tmp_path / "b")
    for stop in (1, len(calls) // 2, len(calls) - 1):  # while weights are measured, and while they are written
        left = iter(range(stop))

        def progress(done: int, total: int, name: str, left: Any = left) -> None:
            assert done <= total
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            mo.optimize_file(source, tmp_path / "b", target_bpw=4.25, durable=False, progress=progress)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def losses(**tensors: tuple[int, str, float | None]) -> LossTable:
    """Weights with their elements, roles and errors of outputs, off by 0.1 in the one code besides floats."""
    return LossTable(
        "",
        0,
        {
            name: TensorLosses(elements, role, name, {"float": Coded(9, 0.0, seen and 0.0), "4": Coded(1, 0.1, seen)})
            for name, (elements, role, seen) in tensors.items()
        },
    )


def test_a_table_counts_as_the_largest_layer() -> None:
    table = losses(words=(10**6, "embedding", None), up=(400, "other", None), v=(100, "value", None))
    assert [table.counts(name, {}) for name in table.tensors] == [20.0, 20.0, 20.0]
    assert losses(words=(10**6, "embedding", None)).counts("words", {}) == 1000.0


def test_what_outputs_show_counts_and_not_elements() -> None:
    table = losses(a=(400, "other", 0.3), b=(400, "other", 0.1), c=(400, "other", 0.0), d=(100, "other", None))
    found = {name: each["4"] for name, each in table.losses({}).items()}
    assert found["a"] == pytest.approx(9 * found["b"])
    assert found["a"] + found["b"] == pytest.approx(3 * 20 * 0.01)  # what all three count by their elements
    assert found["c"] == pytest.approx(LEAST_SHARE * 20 * 0.01)
    assert found["d"] == pytest.approx(10 * 0.01)
    # A prior that is given counts in the place of what was seen.
    assert table.losses({"a": 2.0})["a"]["4"] == pytest.approx(2 * 20 * 0.01)


def test_codes_with_zero_points_are_had_by_all_weights_or_none() -> None:
    codes = {"float": Coded(900, 0.0), "8": Coded(200, 0.01), "4": Coded(100, 0.1), "4z": Coded(103, 0.09)}
    tensors = {name: TensorLosses(400, "other", name, codes) for name in "abc"}
    table = LossTable("", 0, tensors)
    found = {size: set(table.allocate(size, {})[0].values()) for size in (300, 308, 309, 410, 1300)}
    assert found == {300: {"4"}, 308: {"4"}, 309: {"4z"}, 410: {"4", "8"}, 1300: {"8", "float"}}
    assert table.range() == (300, 2700)


def test_an_answer_by_which_weights_are_off_alike_has_the_same_loss_whatever_counts() -> None:
    codes = {"8": Coded(200, 0.01), "4": Coded(100, 0.1), "2": Coded(50, 0.3)}
    layers = {name: TensorLosses(400, "other", name, codes) for name in "ab"}
    table = LossTable("", 0, layers)
    even, mixed = dict.fromkeys("ab", "4"), {"a": "8", "b": "2"}
    assert table.at_worst(even) == pytest.approx(table.loss_of(even, {}))
    mean, deviation = (0.01**2 + 0.3**2) / 2, (0.3**2 - 0.01**2) / 2
    assert table.at_worst(mixed) == pytest.approx(40 * (mean + DOUBT * deviation))
    # A token reads a row of a table: what that counts is in no doubt. Nor is what was measured at outputs.
    words = LossTable("", 0, {**layers, "b": TensorLosses(400, "embedding", "b", codes)})
    assert words.at_worst(mixed) == pytest.approx(words.loss_of(mixed, {}))
    seen = {code: Coded(each.nbytes, each.error, each.error) for code, each in codes.items()}
    measured = LossTable("", 0, {name: TensorLosses(400, "other", name, seen) for name in "ab"})
    assert measured.at_worst(mixed) == pytest.approx(measured.loss_of(mixed, {}))


def test_other_answers_have_another_code_for_one_group_and_fit() -> None:
    codes = {"float": Coded(900, 0.0), "8": Coded(200, 0.01), "4": Coded(100, 0.1), "2": Coded(50, 0.4)}
    groups = {"a": "a", "b": "bc", "c": "bc", "d": "d"}
    tensors = {name: TensorLosses(400, "other", group, codes) for name, group in groups.items()}
    tensors["e"] = TensorLosses(400, "other", "e", {"4": Coded(100, 0.1)})  # has no other
    table = LossTable("x", 0, tensors)
    answer, _ = table.allocate(600, {})
    others = [codes for _, codes in table.others(600, answer)]
    assert len(others) == 3
    for other in others:
        assert sum(tensors[name].codes[code].nbytes for name, code in other.items()) <= 600
        assert other["b"] == other["c"]
    assert [any(each[name] != answer[name] for each in others) for name in "abde"] == [True, True, True, False]
    losses = [table.loss_of(each, {}) for each in others]
    assert table.loss_of(answer, {}) <= losses[0]
    assert losses == sorted(losses)


@pytest.mark.slow
def test_a_graph_of_small_convolutions_is_no_larger_than_asked_for(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12 for i in range(12)}
    nodes = [helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1] * 4) for i in range(12)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 16, 8, 8]) for name in ("x0", "x12")]
    weights = [numpy_helper.from_array(w, n) for n, w in arrays.items()]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "a.onnx")
    how: dict[str, Any] = {"table": tmp_path / "t.json", "durable": False, "run": mo.RunOptions(rounds=0)}
    last = 0.0
    for size in (27_000, 31_000, 36_000, 60_000):
        out = tmp_path / f"{size}.onnx"
        report = mo.optimize_file(tmp_path / "a.onnx", out, target_size=size, **how)
        assert out.stat().st_size == report.options["allocation"]["size"] <= size
        assert 0.0 < report.options["allocation"]["loss"] <= (last or 1.0)
        last = report.options["allocation"]["loss"]


def test_all_weights_of_a_graph_in_one_code_are_had_at_their_size(tmp_path: Path) -> None:
    """A size by a guess at what nodes take left a small perceptron of 8 bits with one weight of 4."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng, sizes = np.random.default_rng(0), (64, 96, 32, 10)
    nodes, weights, x = [], [], "x"
    for i, (columns, rows) in enumerate(itertools.pairwise(sizes)):
        weights.append(numpy_helper.from_array(rng.standard_normal((rows, columns)).astype(np.float32), f"layer{i}.w"))
        nodes.append(helper.make_node("Gemm", [x, f"layer{i}.w"], [f"layer{i}"], name=f"layer{i}", transB=1))
        x = f"layer{i}"
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", c]) for n, c in (("x", 64), (x, 10))]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    how: dict[str, Any] = {"durable": False, "run": mo.RunOptions(rounds=0)}
    mo.quantize_file(tmp_path / "a.onnx", tmp_path / "8.onnx", bits=8, uniform=True, **how)
    size = (tmp_path / "8.onnx").stat().st_size
    report = mo.optimize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", target_size=size, **how)
    assert (tmp_path / "b.onnx").stat().st_size == size
    assert report.options["allocation"]["loss"] < 0.01


def perceptron(path: Path, sizes: tuple[int, ...]) -> Path:
    """Layers with relus between them."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(7)
    nodes, weights, x = [], [], "x"
    for i, (columns, rows) in enumerate(itertools.pairwise(sizes)):
        w = rng.standard_normal((rows, columns)) * (1 + 6 * (rng.random(columns) < 0.05))
        weights.append(numpy_helper.from_array(w.astype(np.float32), f"w{i}"))
        nodes += [
            helper.make_node("Gemm", [x, f"w{i}"], [f"y{i}"], transB=1),
            helper.make_node("Relu", [f"y{i}"], [f"z{i}"]),
        ]
        x = f"z{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", c]) for n, c in (("x", sizes[0]), (x, sizes[-1]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def off(report: Any) -> float:
    """How far the outputs are off, by the report."""
    squares = [10 ** (-each.sqnr_db / 10) for each in report.run.outputs]
    return float(np.sqrt(np.mean(squares)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(64, 96, 96, 10), (32, 64, 64, 64, 5)])
def test_no_answer_is_worse_than_uniform_bits_or_than_that_to_a_smaller_size(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    """Sums of losses say the opposite of what outputs do where layers make up for each other."""
    source = perceptron(tmp_path / "a.onnx", sizes)
    given = np.random.default_rng(1).random((16, sizes[0]), dtype=np.float32)
    run = mo.RunOptions(inputs={"x": given}, rounds=0)
    how: dict[str, Any] = {"run": run, "durable": False, "overwrite": True}
    asked: list[tuple[int, float]] = []
    for i, code in enumerate(({"bits": 8}, {"bits": 4}, {"bits": 2}, {"bits": 4, "group_size": 64})):
        uniform = mo.quantize_file(source, tmp_path / "u.onnx", uniform=True, **code, **how)
        size = int((tmp_path / "u.onnx").stat().st_size * 1.005)
        if i % 2:  # what is measured anew says the same as the table that serves all sizes below
            ours = mo.optimize_file(source, tmp_path / "o.onnx", target_size=size, **how)
            assert off(ours) <= off(uniform)
        asked += [(size, off(uniform)), (size * 21 // 20, 9.0)]
    last = 9.0
    for size, least in sorted(asked):
        ours = mo.optimize_file(source, tmp_path / "o.onnx", target_size=size, table=tmp_path / "t.json", **how)
        assert off(ours) <= min(last, least)
        left = {each.reason for each in ours.tensors if each.decision == "copy" and each.name.startswith("w")}
        assert left <= {"least loss at this size"}
        assert (tmp_path / "o.onnx").stat().st_size == ours.options["allocation"]["size"] <= size
        last = off(ours)


def moe(folder: Path, width: int) -> Path:
    rng = np.random.default_rng(0)
    tensors = {"model.layers.0.self_attn.q_proj.weight": ("F32", rng.standard_normal((64, 64)).astype(np.float32))}
    for i, (part, shape) in itertools.product(range(2), {"up": (width, 64), "down": (64, width)}.items()):
        name = f"model.layers.0.mlp.experts.{i}.{part}_proj.weight"
        tensors[name] = ("F32", rng.standard_normal(shape).astype(np.float32))
    folder.mkdir()
    write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    return folder


@pytest.mark.parametrize("width", [96, 160, 128])
def test_experts_get_one_of_the_codes_that_all_of_them_can_have(tmp_path: Path, width: int) -> None:
    """transformers merges them: a size of groups that does not divide one is none for them, and no error."""
    report = mo.optimize_file(moe(tmp_path / "a", width), tmp_path / "b", target_bpw=5.0, durable=False)
    experts = {each.name for each in report.tensors if "experts" in each.name and each.decision == "quantize"}
    assert len(experts) == 4
    assert all(width % (each["group_size"] or width) == 0 for each in group_codes(tmp_path / "b"))
    assert mo.dequantize_file(tmp_path / "b", tmp_path / "c", durable=False).totals.changed == 5


@pytest.mark.parametrize("bpw", [3.0, *(pytest.param(bpw, marks=pytest.mark.slow) for bpw in (5.0, 8.0))])
def test_a_model_in_float8_is_taken_as_the_floats_that_it_stands_for(tmp_path: Path, bpw: float) -> None:
    """By itself it stays as it is at 8 bits, and every code of 8 bits was an error of the whole command."""
    mo.quantize_file(model(tmp_path / "a", {"model_type": "llama"}), tmp_path / "f8", format="fp8_e4m3", durable=False)
    mo.dequantize_file(tmp_path / "f8", tmp_path / "plain", durable=False)
    report = mo.optimize_file(tmp_path / "f8", tmp_path / "b", target_bpw=bpw, durable=False)
    other = mo.optimize_file(tmp_path / "plain", tmp_path / "c", target_bpw=bpw, durable=False)
    assert report.totals.changed == len(NAMES)
    assert report.options["allocation"]["loss"] == other.options["allocation"]["loss"]
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (tmp_path / "c" / "model.safetensors").read_bytes()
    assert group_codes(tmp_path / "b") == group_codes(tmp_path / "c")


def test_globs_say_bits_of_weights_in_float8(tmp_path: Path) -> None:
    mo.quantize_file(model(tmp_path / "a", {"model_type": "llama"}), tmp_path / "f8", format="fp8_e4m3", durable=False)
    report = mo.quantize_file(tmp_path / "f8", tmp_path / "b", bits=8, bits_of={"*.fc.*": 4}, durable=False)
    assert report.totals.changed == len(NAMES)
    assert sorted(each["num_bits"] for each in group_codes(tmp_path / "b")) == [4, 8]


def test_codes_that_numbers_are_too_large_for_are_not_given(tmp_path: Path) -> None:
    source = model(tmp_path / "a")
    with SafetensorsSource(source / "model.safetensors") as opened:
        tensors = {name: ("F32", np.array(opened.read(name))) for name in opened.tensors}
    tensors[NAMES[0]][1][3, 5] = 1e6
    write(source / "model.safetensors", tensors)
    report = mo.optimize_file(source, tmp_path / "b", target_bpw=4.6, durable=False)
    had = {each.name: str(each.reason) for each in report.tensors}
    assert had[NAMES[0]] == "weight of a linear layer"  # 8 bits, as is usual
    assert any(had[name].startswith("4 bits") for name in NAMES[1:])
    with pytest.raises(mo.OptionError, match=r"target_bpw must be from 2\.\d+ to below 32"):
        mo.optimize_file(source, tmp_path / "c", target_bpw=2.2, durable=False)


def test_the_command_says_what_can_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("click")
    from modelopt_rs.cli import main

    source = model(tmp_path / "a")
    words = ["optimize", str(source), "-o", str(tmp_path / "b"), "--target-bpw", "4.25", "--prior", "*.fc.*=2"]
    assert main(words) == 0
    assert re.search(
        r"sizes  [\d,]+ to [\d,]+ bytes can be had; this one has [\d,]+\nloss  0\.", capsys.readouterr().out
    )
    assert main([*words[:4], "--target-size", "1kB"]) == 2
    assert main([*words[:6], "--prior", "nonsense"]) == 2
    assert "'nonsense' is not a glob and a number" in capsys.readouterr().err
