"""prune_file: the zeros of whole arrays however the file is cut, sizes, bounds, and that nothing is lost."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo
from checkpoints import (
    LINEAR,
    NUMPY,
    Tensors,
    bert,
    dense,
    directory,
    files_of,
    from_bf16,
    metadata,
    read,
    sharded,
    to_bf16,
    weights,
    write,
)
from modelopt_rs import _core
from modelopt_rs.errors import OptionError

DTYPES = ["F32", "F64", "F16", "BF16"]


def as_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    return to_bf16(x.astype(np.float32)) if dtype == "BF16" else x.astype(NUMPY[dtype])


def bf16(dtype: str) -> Any:
    return "bf16" if dtype == "BF16" else None


def values(shape: tuple[int, ...], seed: int, ties: bool) -> np.ndarray:
    """Weights; with `ties` a handful of magnitudes, zeros of both signs among them."""
    x = weights(shape, seed)
    return np.trunc(x * 3) / 2 if ties else x


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def prune(tmp_path: Path, tensors: Tensors, **options: Any) -> tuple[Tensors, Any]:
    source = write(tmp_path / "a.safetensors", tensors)
    report = mo.prune_file(source, tmp_path / "b.safetensors", durable=False, overwrite=True, **options)
    return read(tmp_path / "b.safetensors"), report


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_b12_the_scopes_are_those_of_whole_arrays(tmp_path: Path, dtype: str, ties: bool, sparsity: float) -> None:
    arrays = {
        f"layer.{i}.weight": as_dtype(values(shape, i, ties), dtype) for i, shape in enumerate([(37, 64), (5, 70)])
    }
    arrays["conv.weight"] = as_dtype(values((6, 4, 3, 3), 7, ties), dtype)
    model: Tensors = {name: (dtype, x) for name, x in arrays.items()}
    kind = {"dtype": bf16(dtype)}
    expected = {
        "tensor": {name: mo.prune.magnitude(x, sparsity, **kind) for name, x in arrays.items()},
        "row": {
            name: mo.prune.magnitude(x, sparsity, axis=tuple(range(1, x.ndim)), **kind) for name, x in arrays.items()
        },
        "global": dict(
            zip(arrays, mo.prune.global_magnitude(list(arrays.values()), sparsity, **kind), strict=True),
        ),
    }
    for scope, want in expected.items():
        for memory, threads in [(1 << 28, 2), (3_000, 1)]:
            out, report = prune(tmp_path, model, sparsity=sparsity, scope=scope, max_memory=memory, threads=threads)
            for name, x in want.items():
                assert same(out[name][1], x), (scope, memory, name)
        by_name = {t.name: t for t in report.tensors}
        for name, x in want.items():
            zeros = x.size - int(mo.reduce.count_nonzero(x, **kind))
            assert (by_name[name].zeros_after, by_name[name].sparsity_after) == (zeros, zeros / x.size)
            assert by_name[name].zeros_before == x.size - int(mo.reduce.count_nonzero(arrays[name], **kind))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 2), (3, 8)])
def test_n_of_m_is_that_of_whole_arrays_along_the_inputs(tmp_path: Path, dtype: str, keep: int, group: int) -> None:
    shapes = {"fc.weight": (9, 48), "conv.weight": (5, 16, 3, 3), "conv1.weight": (4, 8, 5)}
    for ties in (False, True):
        model: Tensors = {n: (dtype, as_dtype(values(s, 3, ties), dtype)) for n, s in shapes.items()}
        for memory in (1 << 28, 1_500):
            out, report = prune(tmp_path, model, n=keep, m=group, max_memory=memory)
            for name, (_, x) in model.items():
                assert same(out[name][1], mo.prune.n_of_m(x, keep, group, axis=1, dtype=bf16(dtype)))
        assert report.totals.changed == 3


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtypes", [("F32", "F16", "BF16"), ("F16", "BF16"), ("BF16", "F64", "F32"), ("F16", "F64")])
@pytest.mark.parametrize("sparsity", [0.25, 0.6])
def test_dtypes_are_compared_as_numbers(tmp_path: Path, dtypes: tuple[str, ...], sparsity: float, ties: bool) -> None:
    # In descending size, which is the order of the file.
    dtypes = tuple(sorted(dtypes, key=lambda d: -np.dtype(NUMPY[d]).itemsize))
    model: Tensors = {
        f"l{i}.weight": (dtype, as_dtype(values((11 + i, 40), i, ties), dtype)) for i, dtype in enumerate(dtypes)
    }
    exact = [from_bf16(x) if d == "BF16" else x for d, x in model.values()]
    stays = mo.prune.global_magnitude([x.astype(np.float64) for x in exact], sparsity, mask="bool")
    for memory in (1 << 28, 2_000):
        out, _ = prune(tmp_path, model, sparsity=sparsity, scope="global", max_memory=memory)
        for (name, (_, x)), mask in zip(model.items(), stays, strict=True):
            assert same(out[name][1], np.where(mask, x, x.dtype.type(0)))


@given(
    n=st.integers(1, 40),
    sparsity=st.floats(0, 1),
    levels=st.integers(1, 6),
    memory=st.integers(16, 400),
    scope=st.sampled_from(["tensor", "row", "global"]),
)
def test_exactly_round_of_the_share_goes(
    tmp_path_factory: pytest.TempPathFactory, n: int, sparsity: float, levels: int, memory: int, scope: str
) -> None:
    folder = tmp_path_factory.mktemp("prune")
    x = (np.arange(3 * n) % levels + 1).astype(np.float32).reshape(3, n)
    y = np.full((2, n), levels, np.float32)
    out, report = prune(
        folder,
        {"a.weight": ("F32", x), "b.weight": ("F32", y)},
        sparsity=sparsity,
        scope=scope,
        max_memory=max(memory, 4 * n),
    )
    counts = {"tensor": round(sparsity * 3 * n) + round(sparsity * 2 * n), "row": 5 * round(sparsity * n)}
    assert report.totals.zeros_after == counts.get(scope, round(sparsity * 5 * n))
    assert sum(int((a == 0).sum()) for _, a in out.values()) == report.totals.zeros_after


def test_what_is_left_alone_and_why(tmp_path: Path) -> None:
    model = {**bert(), "conv.weight": ("F32", weights((3, 6, 3, 3)))}
    _, report = prune(tmp_path, model, n=2, m=4)
    reasons = {t.name: (t.decision, t.reason) for t in report.tensors}
    assert reasons == {
        "embeddings.word_embeddings.weight": ("copy", "an embedding"),
        "embeddings.LayerNorm.weight": ("copy", "1-dimensional: not a matrix or more"),
        "embeddings.position_ids": ("copy", "dtype I64 is not one of F64, F32, F16, BF16"),
        LINEAR[0]: ("prune", "weight of a linear layer"),
        "encoder.layer.0.attention.self.query.bias": ("copy", "1-dimensional: not a matrix or more"),
        LINEAR[1]: ("prune", "weight of a linear layer"),
        "classifier.weight": ("copy", "the last head"),
        "conv.weight": ("copy", "6 inputs are no multiple of 4"),
    }
    out, report = prune(tmp_path, model, sparsity=0.5, include=["*word_embeddings*", "conv.*"], exclude=[LINEAR[0]])
    changed = {t.name for t in report.tensors if t.decision == "prune"}
    assert changed == {"embeddings.word_embeddings.weight", LINEAR[1], "conv.weight"}
    for name in set(model) - changed:
        assert same(out[name][1], model[name][1])
    assert metadata(tmp_path / "b.safetensors") == {}


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_an_error_or_the_largest(tmp_path: Path, dtype: str, scope: str) -> None:
    x = as_dtype(values((8, 16), 1, False), dtype)
    x[3, 5] = to_bf16(np.array([np.nan], np.float32))[0] if dtype == "BF16" else np.nan
    source = write(tmp_path / "a.safetensors", {"fc.weight": (dtype, x)})
    for share in (0.0, 0.5, 1.0):
        with pytest.raises(ValueError, match=r"a.safetensors: tensor 'fc.weight', rows from \d: .*w has 1 NaN, first"):
            mo.prune_file(source, tmp_path / "b.safetensors", sparsity=share, scope=scope, max_memory=200)
    with pytest.raises(
        ValueError, match=r"tensor 'fc.weight', rows from 0: n_of_m: w has 1 NaN, first at index \(3, 5"
    ):
        mo.prune_file(source, tmp_path / "b.safetensors", n=2, m=4)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    out, _ = prune(tmp_path, {"fc.weight": (dtype, x)}, sparsity=0.5, scope=scope, nonfinite="largest")
    axis = 1 if scope == "row" else None
    assert same(out["fc.weight"][1], mo.prune.magnitude(x, 0.5, axis=axis, nonfinite="largest", dtype=bf16(dtype)))


def test_a_directory_comes_along(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert())
    mo.prune_file(source, tmp_path / "b", sparsity=0.5, durable=False)
    before, after = files_of(source), files_of(tmp_path / "b")
    assert set(before) == set(after)
    assert json.loads(before["config.json"]) == json.loads(after["config.json"])
    for name in set(before) - {"model.safetensors", "config.json"}:
        assert before[name] == after[name]
    out = read(tmp_path / "b" / "model.safetensors")
    assert same(out[LINEAR[0]][1], mo.prune.magnitude(bert()[LINEAR[0]][1], 0.5))


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"sparsity": 0.5, "scope": "row"}, {"n": 2, "m": 4}])
def test_conv1d_is_pruned_as_the_layer_that_it_is(tmp_path: Path, options: dict[str, Any]) -> None:
    """GPT-2 stores [in, out]: inputs are counted down the rows, in tiles of whole groups."""
    x, name = weights((24, 10), 3).astype(np.float32), "h.0.mlp.c_fc.weight"
    source = directory(tmp_path / "a", {name: ("F32", x)}, {"model_type": "gpt2"})
    room = 2_000 if "scope" in options else 400  # a row of the layer has a part in each of the file
    report = mo.prune_file(source, tmp_path / "b", max_memory=room, durable=False, **options)
    assert report.totals.changed == 1
    how = {"axis": 1} if "scope" in options else {}
    whole = mo.prune.n_of_m if "n" in options else mo.prune.magnitude
    numbers = {key: value for key, value in options.items() if key != "scope"} | how
    want = whole(np.ascontiguousarray(x.T), **numbers).T
    assert np.array_equal(read(tmp_path / "b" / "model.safetensors")[name][1], want)


@pytest.mark.parametrize("format", ["dense", "bitmask"])
def test_a_sharded_checkpoint_is_ranked_as_one(tmp_path: Path, format: str) -> None:
    model = bert()
    source = sharded(tmp_path / "a", model)
    mo.prune_file(source, tmp_path / "b", sparsity=0.7, scope="global", format=format, max_memory=2_000, durable=False)
    want = mo.prune.global_magnitude([model[name][1] for name in LINEAR], 0.7)
    with mo.files.open(tmp_path / "b", dequantize=True) as back:
        for name, x in zip(LINEAR, want, strict=True):
            assert same(back.read(name), x)
        assert set(back.tensors) == set(model)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 16), (2, 32)])
def test_then_quantize_is_one_after_the_other(tmp_path: Path, scheme: str, bits: int, group: int) -> None:
    model = bert()
    then = mo.QuantizeOptions(bits=bits, scheme=scheme, group_size=group, include=["classifier.*"])
    source = write(tmp_path / "a.safetensors", model)
    report = mo.prune_file(
        source, tmp_path / "b.safetensors", sparsity=0.5, then=then, max_memory=30_000, durable=False
    )
    mo.prune_file(source, tmp_path / "p.safetensors", sparsity=0.5, durable=False)
    after = mo.quantize_file(
        tmp_path / "p.safetensors",
        tmp_path / "q.safetensors",
        bits=bits,
        scheme=scheme,
        group_size=group,
        include=["classifier.*"],
        durable=False,
    )
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()
    assert report.totals.sqnr_db == pytest.approx(after.totals.sqnr_db)
    out, pruned = read(tmp_path / "b.safetensors"), read(tmp_path / "p.safetensors")
    for name in LINEAR:
        assert (dense(out, name, bits)[pruned[name][1] == 0] == 0).all()
    assert {t.name: t.decision for t in report.tensors if t.decision != "copy"} == {
        LINEAR[0]: "prune+quantize",
        LINEAR[1]: "prune+quantize",
        "classifier.weight": "quantize",
    }
    assert report.options["then"]["bits"] == bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"sparsity": 0.9, "scope": "row"}, {"n": 2, "m": 4}])
def test_bitmask_there_and_back(tmp_path: Path, dtype: str, how: dict[str, Any]) -> None:
    model: Tensors = {
        "fc.weight": (dtype, as_dtype(weights((37, 100), 1), dtype)),
        "conv.weight": (dtype, as_dtype(weights((6, 20, 3, 3), 2), dtype)),
        "fc.bias": (dtype, as_dtype(weights((37,), 3), dtype)),
    }
    pruned, _ = prune(tmp_path, model, **how)
    small, report = prune(tmp_path, model, format="bitmask", max_memory=7_000, **how)
    assert {"fc.compressed", "fc.bitmask", "fc.row_offsets", "fc.shape", "conv.bitmask"} <= set(small)
    again, _ = prune(tmp_path, model, format="bitmask", **how)
    assert all(same(small[name][1], again[name][1]) for name in again)
    parts = mo.prune.compress(pruned["fc.weight"][1], dtype=bf16(dtype))
    assert same(small["fc.compressed"][1], parts.values)
    assert same(small["fc.bitmask"][1], parts.bitmask)
    assert small["fc.row_offsets"][1].tolist() == parts.row_offsets[:-1].tolist()
    assert small["conv.shape"][1].tolist() == [6, 20, 3, 3]
    by_name = {t.name: t for t in report.tensors}
    stored = sum(a.nbytes for name, (_, a) in small.items() if name.startswith("fc.") and name != "fc.bias")
    assert by_name["fc.weight"].bytes_after == stored < by_name["fc.weight"].bytes_before
    # The largest budget, and one in which a row is a tile.
    for memory in (1 << 28, 8_000):
        mo.dequantize_file(
            tmp_path / "b.safetensors", tmp_path / "c.safetensors", max_memory=memory, durable=False, overwrite=True
        )
        back = read(tmp_path / "c.safetensors")
        assert {name: (d, a.tobytes(), a.shape) for name, (d, a) in back.items()} == {
            name: (d, a.tobytes(), a.shape) for name, (d, a) in pruned.items()
        }
        compared = mo.compare_files(tmp_path / "c.safetensors", tmp_path / "b.safetensors", max_memory=memory)
        assert compared.max_error == 0
        assert not compared.only_in_a


def test_bitmask_only_where_it_is_smaller(tmp_path: Path) -> None:
    model: Tensors = {"narrow.weight": ("F16", weights((50, 4)).astype(np.float16)), **bert()}
    out, report = prune(tmp_path, dict(reversed(model.items())), sparsity=0.5, format="bitmask")
    narrow = next(t for t in report.tensors if t.name == "narrow.weight")
    assert narrow.reason == "weight of a linear layer; stored dense: a bitmask would be no smaller"
    assert same(out["narrow.weight"][1], mo.prune.magnitude(model["narrow.weight"][1], 0.5))
    out, report = prune(tmp_path, {"w": ("F32", weights((8, 64)))}, sparsity=0.5, include=["w"], format="bitmask")
    assert report.tensors[0].reason == "included by 'w'; stored dense: its name does not end in .weight"
    assert list(out) == ["w"]


def test_bitmask_directory_says_what_it_is(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert())
    mo.prune_file(source, tmp_path / "b", n=2, m=4, format="bitmask", durable=False)
    config = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["sparsity_config"]["format"] == "sparse-bitmask"
    assert config["sparsity_config"]["sparsity_structure"] == "2:4"
    assert config["sparsity_config"]["global_sparsity"] == 0.5
    assert "classifier" in config["sparsity_config"]["ignore"]
    assert not {name.removesuffix(".weight") for name in LINEAR} & set(config["sparsity_config"]["ignore"])
    report = mo.dequantize_file(tmp_path / "b", tmp_path / "c", durable=False)
    assert {t.name: t.reason for t in report.tensors if t.decision == "dequantize"} == dict.fromkeys(
        LINEAR, "stored as a bitmask"
    )
    assert json.loads((tmp_path / "c" / "config.json").read_text()) == {"model_type": "bert"}
    for name in LINEAR:
        assert same(read(tmp_path / "c" / "model.safetensors")[name][1], mo.prune.n_of_m(bert()[name][1]))
    for call in (mo.prune_file, mo.quantize_file):
        options: dict[str, Any] = {"sparsity": 0.5} if call is mo.prune_file else {}
        with pytest.raises(mo.UnsupportedError, match=r"stored as bitmasks already .*: dequantize it first"):
            call(tmp_path / "b", tmp_path / "d", **options)


@pytest.mark.slow
def test_compressed_tensors_unpacks_the_bitmask(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("compressed_tensors.utils")
    pruned, _ = prune(tmp_path, {"fc.weight": ("F32", weights((37, 100), 1))}, sparsity=0.6)
    small, _ = prune(tmp_path, {"fc.weight": ("F32", weights((37, 100), 1))}, sparsity=0.6, format="bitmask")
    stays = library.unpack_bitmasks(torch.from_numpy(small["fc.bitmask"][1].copy()), [37, 100]).numpy()
    out = np.zeros((37, 100), np.float32)
    out[stays] = small["fc.compressed"][1]
    assert same(out, pruned["fc.weight"][1])


@pytest.mark.parametrize(
    ("dtype", "digit", "message"),
    [
        ("F32", (32, 0, 16, 17), "count_magnitudes: digit must lie within a key, got 32 0 16 17"),
        ("F32", (32, 2, 15, 15), "digit must lie within a key"),
        ("F32", (16, 0, 0, 15), "bits must be 32 or 64 for this dtype, got 16"),
        ("F64", (32, 0, 16, 15), "bits must be 64 for this dtype, got 32"),
        ("BF16", (48, 0, 32, 15), "bits must be 16, 32 or 64 for this dtype, got 48"),
    ],
)
def test_a_digit_that_no_key_has(dtype: str, digit: tuple[int, int, int, int], message: str) -> None:
    x = as_dtype(weights((4,)), dtype)
    counts = np.zeros(1 << digit[3], np.int64)
    with pytest.raises(ValueError, match=message):
        _core.count_magnitudes(x, digit, counts, ("raise", bf16(dtype), None))
    assert not counts.any()


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ((32, 2**31, 0), "apply_cut: key must be a magnitude of 32 bits, got 2147483648"),
        ((8, 1, 0), "apply_cut: key must be a magnitude of 8 bits, got 1"),
        ((16, 1, 0), "apply_cut: bits must be 32 or 64 for this dtype, got 16"),
    ],
)
def test_a_cut_that_no_weight_has(cut: tuple[int, int, int], message: str) -> None:
    x = weights((4,))
    with pytest.raises(ValueError, match=message):
        _core.apply_cut(x, cut, None, None)
    assert same(x, weights((4,)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_b11_the_same_counts_and_cuts_for_every_instruction_set(isas: list[str], dtype: str) -> None:
    x = as_dtype(values((70_001,), 5, False), dtype)
    seen = set()
    for isa in isas:
        _core.set_isa(isa)
        for threads in (1, 3):
            counts, w = np.zeros(1 << 15, np.int64), x.copy()
            _core.count_magnitudes(w, (64, 0, 48, 15), counts, ("raise", bf16(dtype), threads))
            used = _core.apply_cut(w, (64, int(np.float64(0.5).view(np.int64)), 3), bf16(dtype), threads)
            seen.add((counts.tobytes(), w.tobytes(), used))
    assert len(seen) == 1
    assert counts.sum() == x.size


def damaged(small: Tensors, name: str, change: Any) -> Tensors:
    return {**small, name: (small[name][0], change(small[name][1].copy()))}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fc.row_offsets", lambda a: a * 0 - 1, "must ascend from 0 to the 200 values"),
        ("fc.row_offsets", lambda a: a[::-1].copy(), "must ascend from 0"),
        ("fc.row_offsets", lambda a: a * 3, "must ascend from 0"),
        ("fc.row_offsets", lambda a: a[:-1], "has no bitmask"),
        ("fc.bitmask", lambda a: a ^ 1, "bitmask must have a bit for each value of row"),
        ("fc.bitmask", lambda a: a | 128, "zero padding bits"),
        ("fc.bitmask", lambda a: a[:, :-1], "has no bitmask"),
        ("fc.compressed", lambda a: a[:-1], "must ascend from 0|bit for each value"),
        ("fc.compressed", lambda a: np.append(a, a), "must ascend from 0"),
        ("fc.shape", lambda a: a * -1, "has no bitmask"),
        ("fc.shape", lambda a: a * 2**40, "has no bitmask"),
        ("fc.shape", lambda a: a[:1], r"shape must be I64 \(axes,\)"),
    ],
)
def test_e_a_damaged_bitmask_is_a_format_error(tmp_path: Path, name: str, change: Any, message: str) -> None:
    small, _ = prune(tmp_path, {"fc.weight": ("F32", weights((10, 42)))}, sparsity=220 / 420, format="bitmask")
    bad = write(tmp_path / "bad.safetensors", damaged(small, name, change))
    with pytest.raises(mo.FormatError, match=message):
        mo.dequantize_file(bad, tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_e_parts_that_are_missing_or_too_many(tmp_path: Path) -> None:
    small, _ = prune(tmp_path, {"fc.weight": ("F32", weights((10, 42)))}, sparsity=0.5, format="bitmask")
    for missing in ("fc.row_offsets", "fc.shape"):
        bad = write(tmp_path / "bad.safetensors", {n: t for n, t in small.items() if n != missing})
        with pytest.raises(
            mo.FormatError, match=r"'fc.bitmask' must come with compressed, bitmask, row_offsets, shape"
        ):
            mo.dequantize_file(bad, tmp_path / "c.safetensors")
    write(tmp_path / "bad.safetensors", {**small, "fc.weight": ("F32", weights((10, 42)))})
    with pytest.raises(mo.FormatError, match=r"in place of 'fc.weight'"):
        mo.dequantize_file(tmp_path / "bad.safetensors", tmp_path / "c.safetensors")
    write(tmp_path / "bad.safetensors", {**small, "fc.compressed": ("U8", np.zeros(210, np.uint8))})
    with pytest.raises(mo.UnsupportedError, match="values of dtype U8"):
        mo.dequantize_file(tmp_path / "bad.safetensors", tmp_path / "c.safetensors")
    # A tensor that only has such a name.
    alone = write(tmp_path / "alone.safetensors", {"x.bitmask": ("U8", np.zeros((2, 2), np.uint8))})
    assert list(mo.files.open(alone, dequantize=True).tensors) == ["x.bitmask"]


@pytest.mark.parametrize("format", ["dense", "bitmask"])
def test_dry_run_writes_nothing_and_says_the_same(tmp_path: Path, format: str) -> None:
    source = directory(tmp_path / "a", bert())
    dry = mo.prune_file(source, tmp_path / "b", sparsity=0.8, format=format, dry_run=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    wet = mo.prune_file(source, tmp_path / "b", sparsity=0.8, format=format, durable=False)
    assert [(t.name, t.decision, t.reason, t.bytes_after) for t in dry.tensors] == [
        (t.name, t.decision, t.reason, t.bytes_after) for t in wet.tensors
    ]
    stored = read(tmp_path / "b" / "model.safetensors")
    assert wet.totals.bytes_after == sum(array.nbytes for _, array in stored.values())
    assert dry.totals.zeros_after == (wet.totals.zeros_after if format == "bitmask" else None)


def test_report(tmp_path: Path) -> None:
    model = bert()
    model[LINEAR[0]][1][:8] = 0
    _, report = prune(tmp_path, model, sparsity=0.25)
    totals = report.totals
    assert (totals.changed, totals.left, totals.ratio, totals.sqnr_db) == (2, 5, 1.0, None)
    assert (totals.zeros_before, totals.zeros_after) == (512, 1024 + 2048)
    assert (totals.sparsity_before, totals.sparsity_after) == (512 / 12288, 0.25)
    assert json.loads(report.to_json())["options"] == {
        "sparsity": 0.25,
        "n": None,
        "m": None,
        "method": "magnitude",
        "calibrate": None,
        "scope": "tensor",
        "format": "dense",
        "include": [],
        "exclude": [],
        "nonfinite": "raise",
        "then": None,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5},
        {"sparsity": 0.5, "scope": "global", "format": "bitmask"},
        {"n": 2, "m": 4, "then": mo.QuantizeOptions(bits=4)},
    ],
)
def test_progress_adds_up(tmp_path: Path, options: dict[str, Any]) -> None:
    model = {**bert(), "half.weight": ("BF16", to_bf16(weights((40, 64), 9)))}
    seen: list[tuple[int, int, str]] = []
    prune(tmp_path, model, progress=lambda *step: seen.append(step), **options)
    assert seen[-1][0] == seen[-1][1]
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)
    assert {step[2] for step in seen} == set(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sparsity, or n and m, must be given, got neither"),
        ({"sparsity": 0.5, "n": 2, "m": 4}, "sparsity, or n and m, must be given, got both"),
        ({"n": 2}, "n and m must come together, got n=2, m=None"),
        ({"sparsity": 1.5}, "sparsity must be from 0 to 1, got 1.5"),
        ({"sparsity": math.nan}, "sparsity must be from 0 to 1, got nan"),
        ({"n": 2, "m": 64}, "m must be from 2 to 32, got 64"),
        ({"n": 4, "m": 4}, "n must be from 1 to below m (4), got 4"),
        ({"n": 2, "m": 4, "scope": "row"}, "scope must be left out with n and m, got 'row'"),
        ({"sparsity": 0.5, "scope": "layer"}, "scope must be 'tensor', 'row' or 'global', got 'layer'"),
        ({"sparsity": 0.5, "format": "csr"}, "format must be 'dense' or 'bitmask', got 'csr'"),
        ({"sparsity": 0.5, "nonfinite": "ignore"}, "nonfinite must be 'raise' or 'largest', got 'ignore'"),
        (
            {"sparsity": 0.5, "format": "bitmask", "then": mo.QuantizeOptions()},
            "format must be 'dense' with then, got 'bitmask': what is quantized has its own layout",
        ),
        ({"sparsity": 0.5, "include": ["typo*"]}, "include 'typo*' matches no tensor"),
        (
            {"sparsity": 0.5, "include": ["*LayerNorm*"]},
            "include '*LayerNorm*': tensor 'embeddings.LayerNorm.weight' can't be pruned: "
            "1-dimensional: not a matrix or more",
        ),
        ({"sparsity": 0.5, "max_memory": 100}, f"tensor '{LINEAR[0]}': one row needs 256 bytes, max_memory is 100"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "a.safetensors", dict(list(bert().items())[3:4] + list(bert().items())))
    with pytest.raises(OptionError) as error:
        mo.prune_file(source, tmp_path / "b.safetensors", **options)
    assert str(error.value) == message
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_one_glob_is_no_sequence(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    with pytest.raises(TypeError, match="include must be a sequence of str, got "):
        mo.prune_file(source, tmp_path / "b.safetensors", sparsity=0.5, include="x")


def test_quantized_already(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    mo.quantize_file(source, tmp_path / "b.safetensors", durable=False)
    with pytest.raises(mo.UnsupportedError, match=r"quantized already .*: dequantize it first"):
        mo.prune_file(tmp_path / "b.safetensors", tmp_path / "c.safetensors", sparsity=0.5)


@pytest.mark.parametrize("form", ["file", "directory"])
@pytest.mark.parametrize("when", [0.1, 0.9])
def test_f4_interrupted_leaves_nothing(tmp_path: Path, form: str, when: float) -> None:
    source = directory(tmp_path / "a", bert()) if form == "directory" else write(tmp_path / "a", bert())

    def progress(done: int, total: int, name: str) -> None:
        if done > when * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mo.prune_file(source, tmp_path / "b", sparsity=0.5, scope="global", progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_f1_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    real, calls = os.pwrite, 0

    def full(fd: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as error:
        mo.prune_file(source, tmp_path / "b.safetensors", sparsity=0.5)
    assert calls > 3
    assert error.value.errno == 28
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("format", ["dense", "bitmask"])
def test_f6_a_file_may_replace_itself(tmp_path: Path, format: str) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    mo.prune_file(source, tmp_path / "b.safetensors", sparsity=0.5, format=format, durable=False)
    mo.prune_file(source, source, sparsity=0.5, format=format, overwrite=True, durable=False)
    assert source.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_f6_what_is_there_stays(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert())
    (tmp_path / "b").write_text("precious")
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match="must not be the source's directory"):
        mo.prune_file(source, source, sparsity=0.5, overwrite=True)
    single = source / "model.safetensors"
    with pytest.raises(FileExistsError):
        mo.prune_file(single, tmp_path / "b", sparsity=0.5)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5, "scope": "global", "format": "dense"},
        pytest.param({"sparsity": 0.5, "format": "bitmask"}, marks=pytest.mark.slow),
        pytest.param({"n": 2, "m": 4, "format": "bitmask"}, marks=pytest.mark.slow),
        pytest.param({"sparsity": 0.5, "bits": 4}, marks=pytest.mark.slow),
    ],
)
def test_f9_memory_is_bounded(tmp_path: Path, options: dict[str, Any]) -> None:
    block = weights((1024, 4096))  # 16 MiB
    model = tmp_path / "a.safetensors"
    info = mo.files.TensorInfo("fc.weight", "F32", (8 * 1024, 4096), 8 * block.nbytes)
    with mo.files.SafetensorsSink(model, [info], durable=False) as sink:
        for i in range(8):
            sink.write("fc.weight", np.roll(block, i))
        sink.commit(verify=False)
    program = (
        "import json, sys, modelopt_rs as mo\n"
        "options = json.loads(sys.argv[3])\n"
        "bits = options.pop('bits', None)\n"
        "then = mo.QuantizeOptions(bits=bits) if bits else None\n"
        "memory = 16 * 2**20\n"
        "mo.prune_file(sys.argv[1], sys.argv[2], max_memory=memory, durable=False, then=then, **options)\n"
        "mo.dequantize_file(sys.argv[2], sys.argv[1], max_memory=memory, durable=False, overwrite=True)\n"
        "print(mo.compare_files(sys.argv[1], sys.argv[2], max_memory=memory).peak_memory)\n"
    )
    arguments = [str(model), str(tmp_path / "b.safetensors"), json.dumps(options)]
    out = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert int(out.stdout) < (16 + 64) * 2**20  # of 128 MiB
