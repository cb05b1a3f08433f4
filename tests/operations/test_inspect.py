"""inspect_file and compare_files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, directory, from_bf16, sharded, to_bf16, weights, write
from modelopt_rs import FormatError


def test_inspect_finds_what_numpy_finds(tmp_path: Path) -> None:
    x = weights((37, 50))
    x[3, :] = 0
    x[5, 1], x[6, 2], x[7, 3] = np.nan, np.inf, -7
    half = np.where(np.isfinite(x), x, 1).astype(np.float32)
    model = {
        "f64": ("F64", x.astype(np.float64)),
        "f32": ("F32", x),
        "f16": ("F16", half.astype(np.float16)),
        "bf16": ("BF16", to_bf16(half)),
        "ints": ("I32", np.array([[-3, 0], [5, 0]], np.int32)),
        "bytes": ("U8", np.arange(6, dtype=np.uint8)),
        "scalar": ("F32", np.float32(2).reshape(())),
        "empty": ("F32", np.zeros((0, 3), np.float32)),
        "nans": ("F32", np.full((3,), np.nan, np.float32)),
    }
    source = write(tmp_path / "a.safetensors", model)
    for memory in (1 << 28, 1 << 10):
        report = mo.inspect_file(source, max_memory=memory)
        by_name = {t.name: t for t in report.tensors}
        assert set(by_name) == set(model)
        for name in ("f64", "f32", "f16", "bf16", "ints", "bytes", "scalar"):
            dtype, array = model[name]
            values = (from_bf16(array) if dtype == "BF16" else array).astype(np.float64)
            t = by_name[name]
            assert (t.dtype, t.shape, t.bytes) == (dtype, array.shape, array.nbytes)
            assert (t.min, t.max) == (np.nanmin(values), np.nanmax(values))
            assert t.absmax == np.nanmax(np.abs(values))
            assert t.sparsity == pytest.approx((values == 0).mean())
            assert t.nonfinite == (~np.isfinite(values)).sum()
        assert (by_name["empty"].min, by_name["empty"].sparsity, by_name["empty"].nonfinite) == (
            None,
            None,
            None,
        )
        assert (by_name["nans"].min, by_name["nans"].absmax, by_name["nans"].nonfinite) == (None, None, 3)
        assert report.bytes == sum(array.nbytes for _, array in model.values())
        assert report.elements == sum(array.size for _, array in model.values())
        assert report.nonfinite == 7
    loaded = json.loads(report.to_json())
    assert loaded["schema"] == 1
    assert next(t for t in loaded["tensors"] if t["name"] == "f32")["max"] is None  # JSON has no infinity


def test_compare_quantized_with_plain(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model = bert()
    write(a, model)
    quantized = mo.quantize_file(a, b, bits=4, scheme="asymmetric", durable=False)
    report = mo.compare_files(a, b)
    by_name = {t.name: t for t in quantized.tensors}
    for t in report.tensors:
        want = by_name[t.name]
        if want.decision == "quantize":
            assert t.sqnr_db == pytest.approx(want.sqnr_db)
            assert t.max_error == want.max_error
            assert 0.9 < t.cosine < 1
        else:
            assert (t.sqnr_db, t.max_error, t.cosine) == (math.inf, 0.0, 1.0)
    assert report.worst_tensor == quantized.totals.worst_tensor
    assert {t.name for t in report.tensors} == set(model)
    small = mo.compare_files(a, b, max_memory=1 << 13)
    assert small.max_error == report.max_error
    assert small.sqnr_db == pytest.approx(report.sqnr_db)


def test_compare_lists_what_differs(tmp_path: Path) -> None:
    x = weights((4, 8))
    a = write(
        tmp_path / "a.safetensors",
        {
            "one": ("F32", x),
            "both": ("F32", x),
            "shape": ("F32", x),
            "neg": ("F32", x),
            "ids": ("I64", np.arange(4)),
        },
    )
    b = write(
        tmp_path / "b.safetensors",
        {
            "both": ("F32", x),
            "shape": ("F32", x.reshape(8, 4)),
            "neg": ("F32", -x),
            "two": ("F32", x),
            "ids": ("I64", np.arange(4) * 1000),
        },
    )
    report = mo.compare_files(a, b)
    assert (report.only_in_a, report.only_in_b) == (("one",), ("two",))
    assert report.shape_mismatches == (("shape", (4, 8), (8, 4)),)
    by_name = {t.name: t for t in report.tensors}
    assert set(by_name) == {"both", "neg", "ids"}
    assert by_name["neg"].cosine == pytest.approx(-1)
    assert by_name["neg"].sqnr_db == pytest.approx(10 * math.log10(1 / 4))
    assert by_name["ids"].max_error == 3 * 999
    # Integers count in their own line only.
    assert report.max_error == by_name["neg"].max_error
    assert report.worst_tensor == "ids"


@pytest.mark.parametrize(("one", "other"), [("F32", "BF16"), ("BF16", "BF16"), ("F16", "BF16"), ("F64", "F16")])
def test_compare_across_dtypes(tmp_path: Path, one: str, other: str) -> None:
    x = np.array([[1.0, -0.5, 2.0, 0.25]], np.float32)

    def tensor(dtype: str, values: np.ndarray) -> tuple[str, np.ndarray]:
        kinds = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
        return dtype, to_bf16(values) if dtype == "BF16" else values.astype(kinds[dtype])

    a = write(tmp_path / "a.safetensors", {"x": tensor(one, x)})
    b = write(tmp_path / "b.safetensors", {"x": tensor(other, x * 2)})
    (t,) = mo.compare_files(a, b).tensors
    assert (t.max_error, t.cosine) == (2.0, pytest.approx(1.0))
    assert t.sqnr_db == pytest.approx(0.0)


def test_forms_may_differ(tmp_path: Path) -> None:
    a, b = directory(tmp_path / "a", bert()), sharded(tmp_path / "b", bert())
    assert mo.compare_files(a, b).sqnr_db == math.inf
    assert mo.compare_files(a, a / "model.safetensors").sqnr_db == math.inf


def test_zero_reference(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", {"x": ("F32", np.zeros((2, 2), np.float32))})
    b = write(tmp_path / "b.safetensors", {"x": ("F32", np.ones((2, 2), np.float32))})
    (t,) = mo.compare_files(a, b).tensors
    assert (t.sqnr_db, t.cosine) == (-math.inf, 0.0)


def test_e13_malformed(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for call in (mo.inspect_file, lambda path: mo.compare_files(path, path)):
        with pytest.raises(FormatError, match=r"a.safetensors: "):
            call(tmp_path / "a.safetensors")
