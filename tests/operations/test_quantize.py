"""quantize_file: layout, bytes, bounds, and that nothing is lost."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import (
    LINEAR,
    NUMPY,
    bert,
    codes,
    dense,
    directory,
    files_of,
    from_bf16,
    metadata,
    read,
    rounded,
    sharded,
    to_bf16,
    weights,
    write,
)
from modelopt_rs.errors import OptionError

PLAIN = {"search": None, "scale_dtype": "float32"}
"""What the closed formula says."""


def as_float(tensor: tuple[str, np.ndarray]) -> np.ndarray:
    dtype, array = tensor
    return (from_bf16(array) if dtype == "BF16" else array).astype(np.float64)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 32), (4, 0), (4, 16), (2, 32)])
def test_layout(tmp_path: Path, dtype: str, scheme: str, bits: int, group: int) -> None:
    model = bert(dtype)
    source = write(tmp_path / "a.safetensors", model, {"format": "pt"})
    how = {"bits": bits, "scheme": scheme, "group_size": group, "uniform": True, **PLAIN}
    report = mo.quantize_file(source, tmp_path / "b.safetensors", **how, durable=False)
    out = read(tmp_path / "b.safetensors")
    for name in LINEAR:
        x = as_float(model[name])
        rows, columns = x.shape
        size = group or columns
        assert out[f"{name}_packed"][0] == "I32"
        assert out[f"{name}_scale"][0] == "F32"
        assert out[f"{name}_shape"][1].tolist() == [rows, columns]
        scale = out[f"{name}_scale"][1]
        assert scale.shape == (rows, columns // size)
        grouped = x.reshape(rows, -1, size)
        if scheme == "symmetric":
            assert f"{name}_zero_point" not in out
            expected = np.abs(grouped).max(-1) / (2 ** (bits - 1) - 1)
        else:
            low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
            expected = (high - low) / (2**bits - 1)
        np.testing.assert_array_equal(scale, expected.astype(np.float32))
        error = np.abs(x - dense(out, name, bits)).reshape(grouped.shape).max(-1)
        # Half a step; a zero point that was rounded moves the ends by up to half a step more.
        assert (error <= scale * ((0.5 if scheme == "symmetric" else 1.0) + 1e-5)).all()
        mine = next(t for t in report.tensors if t.name == name)
        assert mine.decision == "quantize"
        assert mine.max_error == pytest.approx(error.max(), rel=1e-5)
        noise = float(((x - dense(out, name, bits)) ** 2).sum())
        assert mine.sqnr_db == pytest.approx(10 * math.log10(float((x**2).sum()) / noise), abs=1e-3)
        assert f"{name}" not in out
    for name in set(model) - set(LINEAR):
        assert out[name][0] == model[name][0]
        np.testing.assert_array_equal(out[name][1], model[name][1])
    assert metadata(tmp_path / "b.safetensors")["format"] == "pt"


@pytest.mark.parametrize(("bits", "columns"), [(8, 5), (4, 9), (2, 33), (4, 3)])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_rows_that_do_not_fill_their_last_word(tmp_path: Path, bits: int, columns: int, scheme: str) -> None:
    x = weights((7, columns))
    write(tmp_path / "a.safetensors", {"fc.weight": ("F32", x)})
    mo.quantize_file(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        bits=bits,
        scheme=scheme,
        group_size=0,
        uniform=True,
        durable=False,
        **PLAIN,
    )
    out = read(tmp_path / "b.safetensors")
    assert out["fc.weight_packed"][1].shape == (7, -(-columns * bits // 32))
    y = dense(out, "fc.weight", bits)
    assert (np.abs(x - y) <= out["fc.weight_scale"][1] * 1.0001).all()


def test_a_hugging_face_directory_comes_along(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert(), {"model_type": "bert", "hidden_size": 64})
    mo.quantize_file(source, tmp_path / "b", bits=4, durable=False)
    before, after = files_of(source), files_of(tmp_path / "b")
    assert set(before) == set(after)
    for name in set(before) - {"config.json", "model.safetensors"}:
        assert before[name] == after[name]
    config = json.loads(after["config.json"])
    quantization = config.pop("quantization_config")
    assert config == {"model_type": "bert", "hidden_size": 64}
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "pack-quantized"
    (group,) = quantization["config_groups"].values()
    # With a base model's prefix and without, and nothing else.
    assert group["targets"] == [
        r"re:(?:.*\.)?encoder\.layer\.\d+\.attention\.self\.query$",
        r"re:(?:.*\.)?encoder\.layer\.\d+\.output\.dense$",
    ]
    assert {key: group["weights"][key] for key in ("num_bits", "type", "symmetric", "strategy", "group_size")} == {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": 32,
    }
    # What is left alone must be named; and a head that is tied to the embedding is not in the file.
    assert {"classifier", "lm_head"} <= set(quantization["ignore"])
    assert not {name.removesuffix(".weight") for name in LINEAR} & set(quantization["ignore"])


def test_a_sharded_checkpoint(tmp_path: Path) -> None:
    model = bert()
    source = sharded(tmp_path / "a", model)
    mo.quantize_file(source, tmp_path / "b", bits=4, durable=False)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    out = {}
    for shard in sorted(set(index["weight_map"].values())):
        inside = read(tmp_path / "b" / shard)
        assert all(index["weight_map"][name] == shard for name in inside)
        out |= inside
    assert set(out) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(array.nbytes for _, array in out.values())
    single = write(tmp_path / "one.safetensors", model)
    mo.quantize_file(single, tmp_path / "two.safetensors", bits=4, durable=False)
    expected = read(tmp_path / "two.safetensors")
    assert set(out) == set(expected)
    for name, (dtype, array) in out.items():
        assert dtype == expected[name][0]
        np.testing.assert_array_equal(array, expected[name][1])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 32), (4, 0), (4, 16), (2, 32)])
@pytest.mark.parametrize("how", [{}, {"scale_dtype": "float16"}, {"search": None}])
def test_what_a_file_holds_is_what_the_array_function_makes(
    tmp_path: Path, dtype: str, scheme: str, bits: int, group: int, how: dict[str, str]
) -> None:
    """Searched scales, rounded as they are stored: the same codes, scales and zero points."""
    model = bert(dtype)
    source = write(tmp_path / "a.safetensors", model)
    options = {"bits": bits, "scheme": scheme, **how}
    mo.quantize_file(source, tmp_path / "b.safetensors", group_size=group, uniform=True, durable=False, **options)
    out = read(tmp_path / "b.safetensors")
    kinds = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    default = "F32" if bits == 8 else "BF16" if dtype == "BF16" else "F16"
    for name in LINEAR:
        x = model[name][1]
        stored, scale = out[f"{name}_scale"]
        assert stored == ("F16" if "scale_dtype" in how else default)
        words = {"search": "mse", **options, "scale_dtype": kinds[stored], "group_size": group or x.shape[1]}
        q = mo.quantize(x, **words, dtype="bf16" if dtype == "BF16" else None)
        np.testing.assert_array_equal(from_bf16(scale) if stored == "BF16" else scale.astype(np.float32), q.scale)
        np.testing.assert_array_equal(dense(out, name, bits), rounded(q.dequantize(), stored))


# Of names, dtypes, shapes and bytes: a change of any kernel's rounding shows here, on every machine.
GOLDEN = {
    (8, "symmetric", None): "de8590b2201a19625911983a5fabc9f54a81c118d732f97ddfd6fbb49b712355",
    (4, "symmetric", None): "bec1c5abac4e37013f5524ed8f4efcf2c8cc65c94368ff503a1be9953cd22d90",
    (2, "symmetric", None): "8efab0e8836a7456a733d3488eca5f4923b2bb9415c28e6e5249be01e180ba07",
    (4, "asymmetric", 16): "cb84484ec104388703720970d30741f9d16048e8834944c5437681a2ca6de238",
}
SEARCHED = {
    (8, "symmetric", None): "9d525221e135049915c70077247ba12736e4df8bf953ba272e9f99d5ecac1281",
    (4, "symmetric", None): "4eab841d181c7b1af9d3c010024106e8072165097af0df83f12ec90184c6248b",
    (2, "symmetric", None): "23ebf55fe6c106e5b762f397fee1ed8411bee568329490ba7f5df54ad811a427",
    (4, "asymmetric", 16): "15adc420f3e23e81f05328cbf3a68d50d2656105b1234bb62bd67889299a7589",
}


@pytest.mark.parametrize(
    ("way", "how", "golden"),
    [(way, PLAIN, golden) for way, golden in GOLDEN.items()] + [(way, {}, golden) for way, golden in SEARCHED.items()],
)
def test_f10_same_bytes_for_any_threads_and_tiles(
    tmp_path: Path, way: tuple[int, str, int | None], how: dict[str, str], golden: str
) -> None:
    bits, scheme, group = way
    model = {
        **bert(),
        "big.weight": ("F32", weights((700, 2048), 9)),
        "half.weight": ("F16", weights((64, 320), 8).astype(np.float16)),
    }
    source = write(tmp_path / "a.safetensors", model)
    seen = set()
    for threads, memory in [(1, 1 << 28), (2, 1 << 28), (3, 190_000), (4, 300_000)]:
        mo.quantize_file(
            source,
            tmp_path / "b.safetensors",
            bits=bits,
            scheme=scheme,
            group_size=group,
            threads=threads,
            max_memory=memory,
            uniform=True,
            overwrite=True,
            durable=False,
            **how,
        )
        seen.add((tmp_path / "b.safetensors").read_bytes())
    assert len(seen) == 1
    digest = hashlib.sha256()
    for name, (dtype, array) in sorted(read(tmp_path / "b.safetensors").items()):
        digest.update(f"{name} {dtype} {array.shape}".encode() + array.tobytes())
    assert digest.hexdigest() == golden


def test_dry_run_writes_nothing_and_says_the_same(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert())
    dry = mo.quantize_file(source, tmp_path / "b", bits=4, dry_run=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    wet = mo.quantize_file(source, tmp_path / "b", bits=4, durable=False)
    assert dry.dry_run
    assert [(t.name, t.decision, t.reason, t.bytes_before, t.bytes_after) for t in dry.tensors] == [
        (t.name, t.decision, t.reason, t.bytes_before, t.bytes_after) for t in wet.tensors
    ]
    assert dry.totals.bytes_after == wet.totals.bytes_after
    stored = read(tmp_path / "b" / "model.safetensors")
    assert wet.totals.bytes_after == sum(array.nbytes for _, array in stored.values())
    assert dry.totals.sqnr_db is None


def test_report(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    report = mo.quantize_file(source, tmp_path / "b.safetensors", bits=4, durable=False)
    totals = report.totals
    assert (totals.changed, totals.left) == (2, 5)
    assert totals.ratio == totals.bytes_before / totals.bytes_after
    worst = min((t for t in report.tensors if t.sqnr_db is not None), key=lambda t: t.sqnr_db)
    assert (totals.worst_tensor, totals.worst_sqnr_db) == (worst.name, worst.sqnr_db)
    assert totals.seconds > 0
    assert totals.peak_memory > 1 << 20
    loaded = json.loads(report.to_json())
    assert list(loaded) == [
        "schema",
        "command",
        "source",
        "output",
        "dry_run",
        "options",
        "totals",
        "tensors",
        "file_bytes",
        "run",
        "warnings",
    ]
    assert loaded["schema"] == 1
    assert loaded["options"] == {
        "bits": 4,
        "scheme": "asymmetric",
        "group_size": 32,
        "include": [],
        "exclude": [],
        "nonfinite": "raise",
        "search": "mse",
        "max_layer_error": 0.15,
    }
    assert set(loaded["tensors"][0]) == {
        "name", "dtype", "shape", "decision", "reason", "bytes_before", "bytes_after", "sqnr_db", "max_error",
        "zeros_before", "zeros_after", "sparsity_before", "sparsity_after",
    }  # fmt: skip


def test_an_exact_weight_has_an_infinite_sqnr_that_json_says_as_null(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"fc.weight": ("F32", np.zeros((40, 32), np.float32))})
    report = mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", durable=False)
    assert report.totals.sqnr_db == math.inf
    assert json.loads(report.to_json())["totals"]["sqnr_db"] is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a2_a_value_that_is_not_finite_names_the_tensor(tmp_path: Path, value: float, dtype: str) -> None:
    model = bert(dtype)
    x = model[LINEAR[1]][1].copy()
    x[5, 7] = to_bf16(np.array([value], np.float32))[0] if dtype == "BF16" else value
    model[LINEAR[1]] = (dtype, x)
    source = write(tmp_path / "a.safetensors", model)
    with pytest.raises(ValueError, match=rf"a.safetensors: tensor '{LINEAR[1]}', rows from 0: .*\(5, 7\)"):
        mo.quantize_file(source, tmp_path / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    report = mo.quantize_file(source, tmp_path / "b.safetensors", nonfinite="saturate", durable=False)
    assert np.isfinite(dense(read(tmp_path / "b.safetensors"), LINEAR[1], 8)).all()
    assert report.options["nonfinite"] == "saturate"


@pytest.mark.parametrize("form", ["file", "directory"])
def test_f4_interrupted_leaves_nothing(tmp_path: Path, form: str) -> None:
    source = directory(tmp_path / "a", bert()) if form == "directory" else write(tmp_path / "a", bert())

    def progress(done: int, total: int, name: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mo.quantize_file(source, tmp_path / "b", progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("form", ["file", "directory"])
def test_overwrite(tmp_path: Path, form: str) -> None:
    source = directory(tmp_path / "a", bert()) if form == "directory" else write(tmp_path / "a", bert())
    mo.quantize_file(source, tmp_path / "b", bits=8, durable=False)
    before = files_of(tmp_path)
    with pytest.raises(FileExistsError) as error:
        mo.quantize_file(source, tmp_path / "b", bits=4, durable=False)
    assert str(error.value.filename) == str(tmp_path / "b")
    assert files_of(tmp_path) == before
    mo.quantize_file(source, tmp_path / "b", bits=4, overwrite=True, durable=False)
    assert files_of(tmp_path) != before


def test_f6_a_file_may_replace_itself(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    mo.quantize_file(source, tmp_path / "b.safetensors", durable=False)
    mo.quantize_file(source, source, overwrite=True, durable=False)
    assert source.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_f6_a_directory_may_not_replace_itself(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", bert())
    before = files_of(source)
    with pytest.raises(ValueError, match="must not be the source's directory"):
        mo.quantize_file(source, source, overwrite=True)
    assert files_of(source) == before


def test_progress_adds_up(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    seen: list[tuple[int, int, str]] = []
    mo.quantize_file(source, tmp_path / "b.safetensors", progress=lambda *step: seen.append(step), durable=False)
    assert seen[-1][0] == seen[-1][1] == sum(array.nbytes for _, array in bert().values())
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)
    assert {step[2] for step in seen} == set(bert())


def test_odd_tensors_are_copied(tmp_path: Path) -> None:
    model = {
        "scalar": ("F32", np.float32(3).reshape(())),
        "empty": ("F32", np.zeros((0, 8), np.float32)),
        "flags": ("BOOL", np.array([True, False, True])),
        "deep": ("F16", weights((2, 3, 4)).astype(np.float16)),
        "none.weight": ("F32", np.zeros((4, 0), np.float32)),
    }
    model = dict(sorted(model.items(), key=lambda kv: -np.dtype(NUMPY[kv[1][0]]).itemsize))
    report = mo.quantize_file(write(tmp_path / "a.safetensors", model), tmp_path / "b.safetensors", durable=False)
    out = read(tmp_path / "b.safetensors")
    assert {name: (d, a.tolist()) for name, (d, a) in out.items()} == {
        name: (d, a.tolist()) for name, (d, a) in model.items()
    }
    assert report.totals.changed == 0
    assert report.totals.sqnr_db is None


def test_a_row_that_exceeds_the_memory(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weights((4, 4096)))})
    with pytest.raises(OptionError, match=r"tensor 'fc.weight': one row needs [\d,]+ bytes, max_memory is 20,000"):
        mo.quantize_file(source, tmp_path / "b.safetensors", max_memory=20_000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_f9_a_flat_tensor_larger_than_the_memory_is_cut_as_well(tmp_path: Path) -> None:
    flat = weights((100_003,))
    source = write(tmp_path / "a.safetensors", {"flat": ("F32", flat), "fc.weight": ("F32", weights((8, 64)))})
    mo.quantize_file(source, tmp_path / "b.safetensors", max_memory=20_000, durable=False)
    np.testing.assert_array_equal(read(tmp_path / "b.safetensors")["flat"][1], flat)
    inspected = {t.name: t for t in mo.inspect_file(source, max_memory=20_000).tensors}
    assert (inspected["flat"].min, inspected["flat"].max) == (flat.min(), flat.max())
    assert mo.compare_files(source, source, max_memory=20_000).max_error == 0.0


def sparse(path: Path, rows: int, columns: int) -> Path:
    """A file with one float32 weight of zeros that takes no room on the disk."""
    nbytes = 4 * rows * columns
    text = json.dumps({"fc.weight": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, nbytes]}}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + nbytes)
    return path


@pytest.mark.parametrize(("bits", "scheme"), [(4, "symmetric"), pytest.param(8, "asymmetric", marks=pytest.mark.slow)])
def test_f9_memory_is_bounded(tmp_path: Path, bits: int, scheme: str) -> None:
    source = sparse(tmp_path / "a.safetensors", 8 * 1024, 4096)  # 128 MiB
    program = (
        "import sys, modelopt_rs as mo\n"
        "report = mo.quantize_file(sys.argv[1], sys.argv[2], bits=int(sys.argv[3]), scheme=sys.argv[4],\n"
        "                          max_memory=16 * 2**20, durable=False, verify=True)\n"
        "mo.dequantize_file(sys.argv[2], sys.argv[1] + '.back', max_memory=16 * 2**20, durable=False)\n"
        "print(mo.compare_files(sys.argv[1], sys.argv[2], max_memory=16 * 2**20).peak_memory)\n"
    )
    arguments = [str(source), str(tmp_path / "b.safetensors"), str(bits), scheme]
    out = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert int(out.stdout) < (16 + 64) * 2**20


def test_f9_memory_does_not_grow_with_the_number_of_tensors(tmp_path: Path) -> None:
    infos = [mo.files.TensorInfo(f"{i}.weight", "F32", (512, 4096), 8 << 20) for i in range(20)]
    with mo.files.SafetensorsSink(tmp_path / "a.safetensors", infos, durable=False) as sink:
        for info in infos:
            sink.write(info.name, np.zeros(info.shape, np.float32))
        sink.commit(verify=False)
    program = (
        "import sys, modelopt_rs as mo\n"
        "then = mo.QuantizeOptions(bits=8)\n"
        "print(mo.quantize_file(sys.argv[1], sys.argv[2], durable=False, verify=False).totals.peak_memory)\n"
        "report = mo.prune_file(sys.argv[1], sys.argv[3], sparsity=0.5, then=then, durable=False, verify=False)\n"
        "print(report.totals.peak_memory)\n"
    )
    arguments = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    out = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert max(map(int, out.stdout.split())) < 80 * 2**20  # of 160 MiB


def test_codes_are_unsigned_and_use_the_whole_range(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
    write(tmp_path / "a.safetensors", {"fc.weight": ("F32", x)})
    for bits in (8, 4, 2):
        mo.quantize_file(
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            bits=bits,
            group_size=0,
            uniform=True,
            overwrite=True,
            durable=False,
            scheme="symmetric",
            **PLAIN,
        )
        q = codes(read(tmp_path / "b.safetensors")["fc.weight_packed"][1], bits, 256)
        assert (q.min(), q.max()) == (1, 2**bits - 1)
        assert (np.diff(q) >= 0).all()


CONVOLUTIONS = {
    "stem.weight": ("F32", weights((32, 3, 7, 7), 1)),
    "conv.weight": ("F32", weights((24, 8, 4), 2)),
    "lstm.weight_ih_l0": ("F32", weights((64, 32), 3)),
    "lstm.weight_hh_l0_reverse": ("F16", weights((64, 16), 4).astype(np.float16)),
    "cell.weight_hh": ("F32", weights((64, 32), 5)),
    "lstm.bias_ih_l0": ("F32", weights((64,), 6)),
}


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_h25_weights_of_convolutions_and_recurrent_layers_are_read_back(tmp_path: Path, bits: int, scheme: str) -> None:
    source = write(tmp_path / "a.safetensors", CONVOLUTIONS)
    options: dict[str, Any] = {"bits": bits, "scheme": scheme, "only_dequantize": True, "durable": False}
    report = mo.quantize_file(source, tmp_path / "q.safetensors", **options)
    assert [each.name for each in report.tensors if each.decision == "copy"] == ["lstm.bias_ih_l0"]
    # Tiles of one output at a time give the same bytes.
    mo.quantize_file(source, tmp_path / "small.safetensors", max_memory=16384, **options)
    assert (tmp_path / "small.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()
    mo.dequantize_file(tmp_path / "q.safetensors", tmp_path / "b.safetensors", durable=False)
    found = read(tmp_path / "b.safetensors")
    for each in report.tensors:
        known = CONVOLUTIONS[each.name][1].astype(np.float32)
        if each.decision != "copy":
            assert found[each.name][1].shape == known.shape
            noise = ((found[each.name][1] - known) ** 2).sum()
            assert each.sqnr_db == pytest.approx(10 * np.log10((known**2).sum() / noise), rel=1e-3)
    compared = mo.compare_files(source, tmp_path / "q.safetensors")
    assert compared.sqnr_db == pytest.approx(report.totals.sqnr_db, rel=1e-3)


def test_h25_what_stays_because_no_loader_reads_it_is_said(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", CONVOLUTIONS)
    report = mo.quantize_file(source, tmp_path / "q.safetensors", durable=False)
    assert report.totals.changed == 0
    (said,) = (each for each in report.warnings if "only_dequantize" in each)
    assert said.startswith("5 weights, 99 % of the result, stay as they are: no loader reads their codes")


def test_a_named_format_holds_matrices_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", CONVOLUTIONS)
    report = mo.quantize_file(source, tmp_path / "q.safetensors", format="nf4", only_dequantize=True, durable=False)
    assert report.totals.changed == 0
    assert {each.reason for each in report.tensors if each.name.endswith(("weight", "ih_l0", "hh"))} >= {
        "nf4 has no way to hold it: leave out format"
    }


MERGED = {
    "mlp.experts.gate_up_proj": ("F32", weights((4, 64, 96), 1) * np.float32([1, 9, 81, 729])[:, None, None]),
    "mlp.experts.gate_up_proj_bias": ("F32", weights((4, 96), 2)),
    "mlp.experts.down_proj": ("F16", weights((4, 48, 64), 3).astype(np.float16)),
}


def test_a_matrix_for_each_of_the_first_axis_has_a_scale_for_each_row_whatever_it_is_called(tmp_path: Path) -> None:
    experts = weights((4, 64, 96)) * np.float32(10) ** (np.arange(64, dtype=np.float32) % 9)[:, None]
    source = write(tmp_path / "a.safetensors", {"moe.input_linear.weight": ("F32", experts)})
    mo.quantize_file(source, tmp_path / "q.safetensors", only_dequantize=True, durable=False)
    with mo.files.open(tmp_path / "q.safetensors", dequantize=True) as back:
        found = back.read("moe.input_linear.weight")
    assert (np.linalg.norm(found - experts, axis=-1) < 0.01 * np.linalg.norm(experts, axis=-1)).all()


@pytest.mark.parametrize(("bits", "lost"), [(8, 0.01), (4, 0.12), (2, 0.5)])
def test_experts_in_one_tensor_are_quantized_where_it_is_asked_for(tmp_path: Path, bits: int, lost: float) -> None:
    """As gpt-oss has them: no loader reads their codes, and a scale for all rows of an expert would lose too much."""
    source = write(tmp_path / "a.safetensors", MERGED)
    report = mo.quantize_file(source, tmp_path / "q.safetensors", bits=bits, durable=False)
    assert report.totals.changed == 0
    (said,) = (each for each in report.warnings if "only_dequantize" in each)
    assert said.startswith("2 weights, 99 % of the result, stay as they are: no loader reads their codes")
    options: dict[str, Any] = {"bits": bits, "only_dequantize": True, "uniform": True, "overwrite": True}
    report = mo.quantize_file(source, tmp_path / "q.safetensors", durable=False, **options)
    assert [each.name for each in report.tensors if each.decision == "quantize"] == [*MERGED][::2]
    mo.dequantize_file(tmp_path / "q.safetensors", tmp_path / "b.safetensors", durable=False)
    with mo.files.open(source) as before, mo.files.open(tmp_path / "b.safetensors") as after:
        for name in MERGED:
            known, found = before.read(name).astype(np.float64), after.read(name).astype(np.float64)
            # Each expert alone: the largest is 729 times the smallest.
            off = [np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(known, found, strict=True)]
            assert max(off) <= (0 if name.endswith("bias") else lost)


def test_experts_in_one_tensor_are_pruned_only_where_no_axis_counts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", MERGED)
    report = mo.prune_file(source, tmp_path / "b.safetensors", sparsity=0.5, durable=False)
    assert [each.decision for each in report.tensors] == ["prune", "copy", "prune"]
    report = mo.prune_file(source, tmp_path / "b.safetensors", n=2, m=4, overwrite=True, durable=False)
    assert "isn't clear: experts in one tensor" in report.tensors[0].reason


@pytest.mark.parametrize(
    ("kind", "version", "said"),
    [("t5", "5.20.0", True), ("t5", "4.57.1", True), ("t5", "5.23.0", False), ("bert", "5.20.0", False),
     ("t5", None, False), ("t5", "dev", False)],
)  # fmt: skip
def test_a_version_of_transformers_that_would_make_up_weights_is_named(
    tmp_path: Path, kind: str, version: str | None, said: bool
) -> None:
    """Of T5 and GPT-2, as tried with 5.20 and 5.22."""
    config = {"model_type": kind, **({} if version is None else {"transformers_version": version})}
    source = directory(tmp_path / "a", bert(), config)
    report = mo.quantize_file(source, tmp_path / "b", durable=False)
    assert report.totals.changed > 0
    assert any("versions before 5.23 make up weights" in each for each in report.warnings) == said


@pytest.mark.parametrize("size", [1e-10, 1e-7])
def test_a_weight_whose_scales_float16_can_not_hold_gets_more_bits(tmp_path: Path, size: float) -> None:
    """A5: the search measured float32 scales, and what was written was all zeros, or 0.17 off, without a word."""
    weight = (np.random.default_rng(0).standard_normal((64, 64)) * size).astype(np.float32)
    write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weight)})
    (row,) = mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", bits=4, durable=False).tensors
    assert row.reason.startswith("8 bits (its error at 4 bits is")
    assert row.sqnr_db is not None
    assert row.sqnr_db > 40
