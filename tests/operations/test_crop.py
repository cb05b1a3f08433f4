"""`crop_file`: the bits of `prune.crop` in whole arrays, for every tile, thread and layout of files; nothing lost."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import Tensors, directory, files_of, metadata, read, sharded, to_bf16, weights, write
from families import BERT, LLAMA, bert, config_of, llama
from modelopt_rs.errors import OptionError
from modelopt_rs.report.reports import CroppedGroup

DTYPES = ["F32", "F16", "BF16", "F64"]


def arrays(model: Tensors) -> dict[str, np.ndarray]:
    """The tensors as the array functions take them."""
    out = {}
    for name, (dtype, array) in model.items():
        out[name] = array.view(pytest.importorskip("ml_dtypes").bfloat16) if dtype == "BF16" else array
    return out


def expected(model: Tensors, config: dict[str, Any], what: Any, **options: Any) -> tuple[Tensors, dict[str, Any], Any]:
    """What the array functions make of a model: its tensors, its config, and the report."""
    tensors = arrays(model)
    small, report = mo.prune.crop(tensors, mo.prune.transformer_groups(tensors, config, what), **options)
    out = {name: (model[name][0], x.view(np.uint16) if model[name][0] == "BF16" else x) for name, x in small.items()}
    return out, mo.prune.cropped_config(config, report), report


def assert_same(got: Tensors, want: Tensors) -> None:
    assert got.keys() == want.keys()
    for name, (dtype, x) in want.items():
        assert (got[name][0], got[name][1].shape) == (dtype, x.shape), name
        assert got[name][1].tobytes() == np.ascontiguousarray(x).tobytes(), name


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are summed in blocks of a few rows, so that these small models have many."""
    monkeypatch.setattr(importlib.import_module("modelopt_rs.prune.importance"), "BLOCK", 256)


CASES = [
    (bert, BERT, "ffn", {"keep": 0.75}),
    (bert, BERT, ("heads", "ffn"), {"keep": {"*.heads": 0.5, "*.ffn": 16}}),
    (bert, BERT, "all", {"keep": 0.5}),
    (bert, BERT, "heads", {"keep": 4, "norm": 1}),
    (llama, LLAMA, "all", {"keep": 0.5, "norm": math.inf}),
    (llama, LLAMA, "ffn", {"keep": 0.3, "round_to": 4}),
    (llama, LLAMA, ("query_heads", "ffn"), {"keep": {"*.query_heads": 4, "*.ffn": 7}}),
]


@pytest.mark.parametrize(("make", "config", "what", "options"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_blocks")
def test_what_stays_is_what_stays_of_whole_arrays(
    tmp_path: Path, dtype: str, make: Any, config: dict[str, Any], what: Any, options: dict[str, Any]
) -> None:
    model = make(dtype)
    source = directory(tmp_path / "a", model, config)
    want, new, report = expected(model, config, what, **options)
    for memory, threads in [(1 << 28, 2), (8_000, 1), (5_000, 3)]:
        got = mo.crop_file(
            source,
            tmp_path / "b",
            what=what,
            max_memory=memory,
            threads=threads,
            overwrite=True,
            durable=False,
            **options,
        )
        assert_same(read(tmp_path / "b" / "model.safetensors"), want)
        assert config_of(tmp_path / "b") == new
        assert [(g.name, g.units, g.kept) for g in got.groups] == [
            (g.name, g.units, len(g.kept)) for g in report.groups
        ]
        assert (got.totals.bytes_before, got.totals.bytes_after) == (report.bytes_before, report.bytes_after)


def test_scores_have_the_bits_of_whole_arrays_over_many_blocks(tmp_path: Path) -> None:
    """Without a smaller block: a matrix of several."""
    from modelopt_rs import files
    from modelopt_rs.stream.execution import Execution
    from modelopt_rs.transforms.crop import Scorer

    model = llama(layers=1)
    for part, shape in {"gate": (2600, 900), "up": (2600, 900), "down": (900, 2600)}.items():
        model[f"model.layers.0.mlp.{part}_proj.weight"] = (
            "F32",
            np.random.default_rng(1).normal(size=shape).astype("f"),
        )
    tensors = arrays(model)
    groups = mo.prune.transformer_groups(tensors, LLAMA, ("heads", "ffn"))
    want = mo.prune.plan_crop(tensors, groups)
    path = write(tmp_path / "a.safetensors", model)
    for memory, threads in [(1 << 28, 2), (9_000_000, 1)]:
        with files.open(path) as source:
            got = Scorer(source, groups, 2, "raise", Execution(memory, threads, None, 0)).scores()
        for group in want.groups:
            assert got[group.name].tobytes() == group.scores.tobytes()


@pytest.mark.parametrize("keep", [1.0, {"*.0.ffn": 40, "*.ffn": 1.0}])
def test_what_stays_whole_is_copied(tmp_path: Path, keep: Any) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    report = mo.crop_file(source, tmp_path / "b", keep=keep, what="ffn", durable=False)
    assert_same(read(tmp_path / "b" / "model.safetensors"), bert())
    assert (report.totals.changed, report.config, report.notes) == (0, {}, ())


def test_an_empty_tensor_is_cropped_too(tmp_path: Path) -> None:
    model = bert() | {"classifier.weight": ("F32", weights((0, 48)))}
    source = directory(tmp_path / "a", model, BERT)
    mo.crop_file(source, tmp_path / "b", keep=0.5, what="all", durable=False)
    want, _, _ = expected(model, BERT, "all", keep=0.5)
    assert want["classifier.weight"][1].shape == (0, 24)
    assert_same(read(tmp_path / "b" / "model.safetensors"), want)


def test_a_directory_comes_along(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn", durable=False)
    before, after = files_of(source), files_of(tmp_path / "b")
    assert set(before) == set(after)
    for name in set(before) - {"model.safetensors", "config.json"}:
        assert before[name] == after[name]
    assert config_of(tmp_path / "b") == BERT | {"intermediate_size": 16}
    assert metadata(tmp_path / "b" / "model.safetensors") == {"format": "pt"}


def test_shards_stay_shards(tmp_path: Path) -> None:
    source = sharded(tmp_path / "a", bert())
    (source / "config.json").write_text(json.dumps(BERT))
    mo.crop_file(source, tmp_path / "b", keep=0.5, what="all", max_memory=20_000, durable=False)
    want, new, _ = expected(bert(), BERT, "all", keep=0.5)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(x.nbytes for _, x in want.values())
    got: Tensors = {}
    for shard in sorted(set(index["weight_map"].values())):
        part = read(tmp_path / "b" / shard)
        assert set(part) == {name for name, where in index["weight_map"].items() if where == shard}
        got |= part
    assert_same({name: got[name] for name in want}, want)
    assert config_of(tmp_path / "b") == new


def test_one_file_and_the_config_of_its_model(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", llama())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    report = mo.crop_file(source, tmp_path / "b.safetensors", keep=0.5, what="ffn", config=config, durable=False)
    want, _, _ = expected(llama(), LLAMA, "ffn", keep=0.5)
    assert_same(read(tmp_path / "b.safetensors"), want)
    assert json.loads(config.read_text()) == LLAMA
    assert report.config == {"intermediate_size": (40, 16), "head_dim": (None, 8)}
    assert report.notes == ("the output is one file: change its model's config.json as the report's config says",)


def test_a_directory_without_config_gets_the_one_that_is_given(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    (source / "config.json").rename(tmp_path / "c.json")
    mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn", config=tmp_path / "c.json", durable=False)
    assert config_of(tmp_path / "b") == BERT | {"intermediate_size": 16}


def test_heads_that_go_are_listed_and_the_report_says_how_to_load_them(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    for scope in ("group", "global"):
        report = mo.crop_file(source, tmp_path / scope, keep=0.5, what="heads", scope=scope, durable=False)
        want, new, _ = expected(bert(), BERT, "heads", keep=0.5, scope=scope)
        assert_same(read(tmp_path / scope / "model.safetensors"), want)
        assert config_of(tmp_path / scope) == new
        assert set(new["pruned_heads"]) == {"0", "1"}
        [note] = report.notes
        assert "modelopt_rs.interop.transformers.from_pretrained" in note


def test_global_is_possible_where_no_config_is_written(tmp_path: Path) -> None:
    source, config = write(tmp_path / "a.safetensors", llama()), tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    options: dict[str, Any] = {"keep": 0.4, "scope": "global", "round_to": 1}
    report = mo.crop_file(source, tmp_path / "b.safetensors", what="ffn", config=config, durable=False, **options)
    tensors = arrays(llama())
    want, _ = mo.prune.crop(tensors, mo.prune.transformer_groups(tensors, LLAMA, "ffn"), **options)
    assert_same(read(tmp_path / "b.safetensors"), {name: ("F32", x) for name, x in want.items()})
    assert len({group.kept for group in report.groups}) == 2
    assert report.config is None
    assert report.notes == ("layers keep different numbers, which no config.json can say",)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_an_error_or_goes_first(tmp_path: Path, dtype: str) -> None:
    model = bert(dtype)
    name = "bert.encoder.layer.1.output.dense.weight"
    model[name][1][5, 17] = to_bf16(np.array([np.nan], np.float32))[0] if dtype == "BF16" else np.nan
    source = directory(tmp_path / "a", model, BERT)
    before = files_of(tmp_path)
    with pytest.raises(
        ValueError, match=r"a: tensor '(.*)': unit 17 of group '(.*)' has a NaN; nonfinite='remove'"
    ) as error:
        mo.crop_file(source, tmp_path / "b", keep=0.75, what="ffn")
    assert not isinstance(error.value, OptionError)
    assert f"tensor {name!r}: unit 17 of group 'bert.encoder.layer.1.ffn'" in str(error.value)
    assert files_of(tmp_path) == before
    mo.crop_file(source, tmp_path / "b", keep=0.75, what="ffn", nonfinite="remove", durable=False)
    want, _, report = expected(model, BERT, "ffn", keep=0.75, nonfinite="remove")
    assert 17 in report["bert.encoder.layer.1.ffn"].removed
    assert_same(read(tmp_path / "b" / "model.safetensors"), want)
    # Of what nothing goes, nothing is ranked.
    mo.crop_file(source, tmp_path / "c", keep={"*.0.ffn": 40}, what="ffn", durable=False)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 8), (2, 8)])
@pytest.mark.parametrize("what", ["ffn", "all"])
@pytest.mark.usefixtures("small_blocks")
def test_then_quantize_is_one_after_the_other(tmp_path: Path, scheme: str, bits: int, group: int, what: str) -> None:
    # Through a sink first, so that the tensors stand in its order.
    source = tmp_path / "a"
    mo.crop_file(directory(tmp_path / "o", bert(), BERT), source, keep=1.0, what="ffn", durable=False)
    how: dict[str, Any] = {"bits": bits, "scheme": scheme, "group_size": group, "include": ["*pooler*"]}
    then = mo.QuantizeOptions(**how)
    mo.crop_file(source, tmp_path / "c", keep=0.5, what=what, durable=False)
    after = mo.quantize_file(tmp_path / "c", tmp_path / "q", durable=False, **how)
    for memory in (1 << 28, 9_000):  # few rows a tile, of which some go
        report = mo.crop_file(
            source, tmp_path / "b", keep=0.5, what=what, then=then, max_memory=memory, overwrite=True, durable=False
        )
        assert files_of(tmp_path / "b") == files_of(tmp_path / "q")
    assert report.totals.sqnr_db == pytest.approx(after.totals.sqnr_db)
    decisions = {t.name: t.decision for t in report.tensors}
    assert decisions["bert.encoder.layer.0.output.dense.weight"] == "crop+quantize"
    assert report.options["then"]["bits"] == bits


@pytest.mark.parametrize(("what", "scope"), [("ffn", "group"), ("heads", "global")])
def test_dry_run_writes_nothing_and_says_the_same(tmp_path: Path, what: str, scope: str) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    options: dict[str, Any] = {"keep": 0.5, "what": what, "scope": scope, "then": mo.QuantizeOptions(group_size=8)}
    dry = mo.crop_file(source, tmp_path / "b", dry_run=True, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    wet = mo.crop_file(source, tmp_path / "b", durable=False, **options)
    assert (dry.groups, dry.config, dry.notes) == (wet.groups, wet.config, wet.notes)
    for one, other in zip(dry.tensors, wet.tensors, strict=True):
        assert (one.name, one.decision, one.reason, one.bytes_after) == (
            other.name,
            other.decision,
            other.reason,
            other.bytes_after,
        )
    stored = read(tmp_path / "b" / "model.safetensors")
    assert wet.totals.bytes_after == sum(array.nbytes for _, array in stored.values())


def test_report(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert(layers=1), BERT)
    report = mo.crop_file(source, tmp_path / "b", keep=np.float64(0.5), what="ffn", norm=math.inf, durable=False)
    assert report.groups == (CroppedGroup("bert.encoder.layer.0.ffn", 40, 16),)
    cropped = {t.name: t.reason for t in report.tensors if t.decision == "crop"}
    assert cropped == {
        "bert.encoder.layer.0.intermediate.dense.bias": "[40] -> [16]",
        "bert.encoder.layer.0.intermediate.dense.weight": "[40, 48] -> [16, 48]",
        "bert.encoder.layer.0.output.dense.weight": "[48, 40] -> [48, 16]",
    }
    assert {t.reason for t in report.tensors if t.decision == "copy"} == {"no unit of it goes"}
    assert (report.totals.changed, report.totals.left) == (3, len(bert(layers=1)) - 3)
    text = json.loads(report.to_json())
    assert (text["schema"], text["command"]) == (1, "crop")
    assert text["options"] == {
        "keep": 0.5,
        "what": ["ffn"],
        "round_to": None,
        "scope": "group",
        "norm": "inf",
        "nonfinite": "raise",
        "calibrate": None,
        "config": None,
        "then": None,
    }
    assert text["groups"] == [{"name": "bert.encoder.layer.0.ffn", "units": 40, "kept": 16}]
    assert text["config"] == {"intermediate_size": [40, 16]}


@pytest.mark.parametrize("options", [{}, {"then": mo.QuantizeOptions(bits=4, group_size=8)}, {"dry_run": True}])
def test_progress_adds_up(tmp_path: Path, options: dict[str, Any]) -> None:
    seen: list[tuple[int, int, str]] = []
    source = directory(tmp_path / "a", bert(), BERT)
    mo.crop_file(
        source, tmp_path / "b", keep=0.5, what="ffn", progress=lambda *step: seen.append(step), durable=False, **options
    )
    assert seen[-1][0] == seen[-1][1]
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "mlp"}, "what must be of 'heads', 'query_heads', 'ffn', 'channels', 'hidden', 'all', got 'mlp'"),
        ({"what": ()}, "what must be of 'heads', 'query_heads', 'ffn', 'channels', 'hidden', 'all', got none"),
        ({"scope": "row"}, "scope must be 'group' or 'global', got 'row'"),
        ({"nonfinite": "largest"}, "nonfinite must be 'raise' or 'remove', got 'largest'"),
        ({"norm": 3}, "norm must be 1, 2 or inf, got 3"),
        ({"round_to": 0}, "round_to must be at least 1, got 0"),
        (
            {"round_to": 64},
            "round_to must be reached by the 40 units of group 'bert.encoder.layer.0.ffn', got 64, for which 64 are "
            "needed; give it a smaller one or leave the group out of keep",
        ),
        ({"keep": 0.0}, "keep must be above 0 and at most 1, got 0.0; an int is a number of units"),
        ({"keep": 41}, "keep must be from 1 to the 40 of 'bert.encoder.layer.0.ffn', got 41"),
        ({"keep": {"*.mlp": 0.5}}, "keep must name groups, got '*.mlp', which none matches"),
        ({"what": "query_heads"}, "what must not be 'query_heads' for the BERT family, got it; use 'heads'"),
        (
            {"scope": "global"},
            "scope must be 'group', got 'global': layers would keep different numbers, which config.json can't say",
        ),
        ({"keep": {"*.0.ffn": 8}}, "report must keep as many 'ffn' in every layer, got [8, 40]"),
        (
            {"what": "hidden"},
            "hidden_size must be heads times their width in the BERT family, got hidden_size 24 with heads of 8; keep "
            "the same fraction of heads and hidden, one that leaves whole heads, or crop 'ffn' alone",
        ),
        (
            {"config": "x.json"},
            "config must be left out for a model with a config.json of its own, got 'x.json'",
        ),
        (
            {"then": mo.QuantizeOptions(include=["typo*"])},
            "include 'typo*' matches no tensor",
        ),
        (
            {"max_memory": 1000},
            "tensor 'bert.encoder.layer.0.output.dense.weight': 48 rows need 8,064 bytes, max_memory is 1,000",
        ),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    before = files_of(tmp_path)
    with pytest.raises(OptionError) as error:
        mo.crop_file(source, tmp_path / "b", **{"keep": 0.5, "what": "ffn", **options})
    assert str(error.value) == message
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("keep", "message"),
    [("half", "crop_file: keep must be .* got .half."), ({"*": None}, r"crop_file: keep\['\*'\] must be a float")],
)
def test_keep_is_a_number(tmp_path: Path, keep: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        mo.crop_file(directory(tmp_path / "a", bert(), BERT), tmp_path / "b", keep=keep, what="ffn")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BERT | {"model_type": "rwkv", "intermediate_size": 7},
            "config['model_type'] must be one of bert, roberta, xlm-roberta, camembert",
        ),
        (BERT | {"hidden_size": "48"}, "config['hidden_size'] must be an integer of at least 1, got '48'"),
        (BERT | {"num_attention_heads": 5}, "config['hidden_size'] must be a multiple of its 5 heads, got 48"),
        (LLAMA, "tensors must hold the layers of the model, got no name that ends as layers.0.self_attn.q_proj.weight"),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    source = directory(tmp_path / "a", bert(), config)
    with pytest.raises(OptionError) as error:
        mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn")
    assert message in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_without_a_config_there_are_no_groups(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    with pytest.raises(OptionError, match=r"config \(--config\) must be given, got none: a file has none, and it says"):
        mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn")
    with pytest.raises(FileNotFoundError) as missing:
        mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn", config=tmp_path / "gone.json")
    assert missing.value.filename == str(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(mo.FormatError, match=r"bad\.json"):
        mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn", config=tmp_path / "bad.json")
    folder = directory(tmp_path / "d", bert(), BERT)
    (folder / "config.json").unlink()
    with pytest.raises(OptionError, match=r"config \(--config\) must be given, got none: the directory has no config"):
        mo.crop_file(folder, tmp_path / "b", keep=0.5, what="ffn")


def test_tensors_of_another_kind(tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    whole = directory(tmp_path / "a", bert() | {name: ("I32", np.ones((48, 40), np.int32))}, BERT)
    with pytest.raises(mo.UnsupportedError, match=f"tensor '{name}' must be of F64, F32, F16, BF16 for its .* got I32"):
        mo.crop_file(whole, tmp_path / "b", keep=0.5, what="ffn")
    deep = directory(tmp_path / "c", bert() | {name: ("F32", weights((48, 40, 2)))}, BERT)
    with pytest.raises(mo.UnsupportedError, match=rf"tensor '{name}' must be a vector or a matrix .* got \(48, 40, 2"):
        mo.crop_file(deep, tmp_path / "b", keep=0.5, what="ffn")
    mo.quantize_file(directory(tmp_path / "d", bert(), BERT), tmp_path / "q", durable=False)
    with pytest.raises(mo.UnsupportedError, match=r"quantized already .*: dequantize it first"):
        mo.crop_file(tmp_path / "q", tmp_path / "b", keep=0.5, what="ffn")
    assert not (tmp_path / "b").exists()


# ------------------------------------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize("form", ["file", "directory"])
@pytest.mark.parametrize("when", [0.1, 0.9])
def test_f4_interrupted_leaves_nothing(tmp_path: Path, form: str, when: float) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    options: dict[str, Any] = {}
    if form == "file":
        source, options = source / "model.safetensors", {"config": source / "config.json"}
    before = files_of(tmp_path)

    def progress(done: int, total: int, name: str) -> None:
        if done > when * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn", progress=progress, **options)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("exists", [False, True])
def test_f1_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    if exists:
        mo.crop_file(source, tmp_path / "b", keep=0.2, what="ffn", durable=False)
    before = files_of(tmp_path)
    real, calls = os.pwrite, 0

    def full(fd: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn", overwrite=True)
    assert calls > 3
    assert files_of(tmp_path) == before


def test_f6_a_file_may_replace_itself(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    file, config = source / "model.safetensors", source / "config.json"
    mo.crop_file(file, tmp_path / "b", keep=0.5, what="ffn", config=config, durable=False)
    with pytest.raises(FileExistsError):
        mo.crop_file(source / "model.safetensors", file, keep=0.5, what="ffn", config=config)
    with pytest.raises(ValueError, match="must not be the source's directory"):
        mo.crop_file(source, source, keep=0.5, what="ffn", overwrite=True)
    mo.crop_file(file, file, keep=0.5, what="ffn", config=config, overwrite=True, durable=False)
    assert file.read_bytes() == (tmp_path / "b").read_bytes()


def test_f13_what_was_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = directory(tmp_path / "a", bert(), BERT)
    real = os.pwrite

    def flip(fd: int, data: Any, offset: int) -> int:
        changed = bytearray(data)
        changed[-1] ^= 1
        return real(fd, changed, offset)

    monkeypatch.setattr(os, "pwrite", flip)
    with pytest.raises((OSError, mo.FormatError)):
        mo.crop_file(source, tmp_path / "b", keep=0.5, what="ffn")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("then", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_f9_memory_is_bounded(tmp_path: Path, then: int | None) -> None:
    config = {**LLAMA, "hidden_size": 1024, "num_attention_heads": 8, "intermediate_size": 16384}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    shapes = {"self_attn.q_proj": (1024, 1024), "mlp.gate_proj": (16384, 1024), "mlp.up_proj": (16384, 1024)}
    shapes |= {"mlp.down_proj": (1024, 16384)}  # 64 MiB each
    infos = [
        mo.files.TensorInfo(f"layers.0.{name}.weight", "F32", shape, 4 * math.prod(shape))
        for name, shape in shapes.items()
    ]
    row = weights((1 << 18,))
    with mo.files.SafetensorsSink(tmp_path / "a" / "model.safetensors", infos, durable=False) as sink:
        for info in infos:
            for _ in range(math.prod(info.shape) // row.size):
                sink.write(info.name, row.reshape(-1, info.shape[1]))
        sink.commit(verify=False)
    program = (
        "import json, sys, modelopt_rs as mo\n"
        "then = mo.QuantizeOptions(bits=int(sys.argv[3])) if sys.argv[3:] else None\n"
        "report = mo.crop_file(\n"
        "    sys.argv[1], sys.argv[2], keep=0.5, what='ffn', max_memory=16 * 2**20, durable=False, then=then)\n"
        "print(report.totals.peak_memory)\n"
    )
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), *([str(then)] if then else [])]
    out = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert int(out.stdout) < (16 + 64) * 2**20


# ------------------------------------------------------------------------------------------------ a real model


def test_a_real_model_cropped_is_that_of_whole_arrays(tmp_path: Path) -> None:
    pytest.importorskip("click", reason="the extra `cli` is not installed")
    from modelopt_rs.cli.demo import find_model

    try:
        source = find_model()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    report = mo.crop_file(source, tmp_path / "b", keep=0.75, what="ffn", max_memory=8 << 20, durable=False)
    model, config = read(source / "model.safetensors"), config_of(source)
    want, new, _ = expected(model, config, "ffn", keep=0.75)
    assert_same(read(tmp_path / "b" / "model.safetensors"), want)
    assert config_of(tmp_path / "b") == new
    assert {group.kept for group in report.groups} == {1152}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            1,
            "keep must be a share, or a number of at least 5% of the units, got the int 1: 1 of the 40 of "
            "'bert.encoder.layer.0.ffn'; 1.0 is all of them; if so few are meant, say 0.025 and round_to=1",
        ),
        (
            {"*.ffn": 1},
            "keep['*.ffn'] must be a share, or a number of at least 5% of the units, got the int 1: 1 of",
        ),
    ],
)
def test_a_number_so_small_that_a_share_was_meant_is_refused(tmp_path: Path, keep: Any, message: str) -> None:
    """H62: keep=1 kept 1 unit of all."""
    source = directory(tmp_path / "a", bert(), BERT)
    with pytest.raises(OptionError) as error:
        mo.crop_file(source, tmp_path / "b", keep=keep, what="ffn")
    assert str(error.value).startswith(message)
    assert not (tmp_path / "b").exists()
    # Heads are few: 1 of 6 may be meant; and a share says how few units there shall be.
    assert mo.crop_file(source, tmp_path / "c", keep=1, what="heads").groups[0].kept == 1
    assert mo.crop_file(source, tmp_path / "d", keep=0.025, what="ffn", round_to=1).groups[0].kept == 1
