"""The pack-quantized layout: packed weights as plain floats, against an oracle and compressed-tensors."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import rounded
from files_samples import infos, save
from modelopt_rs import files
from modelopt_rs._core import FormatError, UnsupportedError
from modelopt_rs.files import (
    Dequantized,
    PackedSpec,
    SafetensorsSink,
    SafetensorsSource,
    TensorInfo,
    packed_metadata,
    packed_tensors,
    quantization_config,
)
from modelopt_rs.layouts.pack_quantized import METADATA_KEY

SPECS = [PackedSpec(b, s, g) for b in (2, 4, 8) for s in (True, False) for g in (None, 16)]


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes [rows, n] to words: a stream of bits in each row, padded with zeros."""
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    stream = stream.reshape(len(codes), codes.shape[1] * bits)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.packbits(stream, axis=-1, bitorder="little").view(np.int32)


@dataclass
class Weight:
    """A packed weight and what it stands for."""

    tensors: dict[str, np.ndarray]
    plain: np.ndarray


def make(spec: PackedSpec, rows: int, columns: int, name: str = "fc.weight", seed: int = 0) -> Weight:
    rng = np.random.default_rng(seed)
    top = 1 << spec.bits
    codes = rng.integers(0, top, (rows, columns)).astype(np.uint8)
    groups = spec.groups(columns)
    scale = rng.uniform(0.01, 1, (rows, groups)).astype(np.float32)
    zero = rng.integers(0, top, (rows, groups)).astype(np.uint8)
    tensors = {
        f"{name}_packed": pack_rows(codes, spec.bits),
        f"{name}_scale": scale,
        f"{name}_shape": np.array([rows, columns]),
    }
    if spec.symmetric:
        zero[:] = top // 2
    else:
        tensors[f"{name}_zero_point"] = np.ascontiguousarray(pack_rows(np.ascontiguousarray(zero.T), spec.bits).T)
    size = spec.group_size or columns
    zeros, scales = (np.repeat(a, size, axis=1)[:, :columns] for a in (zero.astype(np.float32), scale))
    return Weight(tensors, (codes.astype(np.float32) - zeros) * scales)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(5, 48), (33, 64), (1, 32), (8, 1600)])
def test_packed_weights_show_as_floats(path: Path, spec: PackedSpec, shape: tuple[int, int]) -> None:
    weight = make(spec, *shape)
    arrays = {"a": np.arange(3, dtype=np.int64), **weight.tensors, "z": np.ones((2, 2), np.float32)}
    save(path, arrays, packed_metadata({"fc.weight": spec}))
    with files.open(path, dequantize=True) as view:
        assert isinstance(view, Dequantized)
        assert sorted(view.tensors) == ["a", "fc.weight", "z"]
        assert dict(view.metadata) == {}
        assert view.specs == {"fc.weight": spec}
        assert view.tensors["fc.weight"] == TensorInfo("fc.weight", "F32", shape, 4 * shape[0] * shape[1])
        assert (view.origin("fc.weight"), view.origin("z")) == ("fc.weight_packed", "z")
        np.testing.assert_array_equal(view.read("fc.weight"), weight.plain, strict=True)
        np.testing.assert_array_equal(view.read("a"), arrays["a"])
        for limit in (1, 4 * shape[1] * 3, 1 << 20):
            tiles = [(tile.first_row, tile.array.copy()) for tile in view.tiles("fc.weight", limit)]
            assert all(tile.nbytes <= max(limit, 4 * shape[1]) for _, tile in tiles)
            assert [first for first, _ in tiles] == list(np.cumsum([0] + [len(t) for _, t in tiles[:-1]]))
            np.testing.assert_array_equal(np.concatenate([t for _, t in tiles]), weight.plain)
        assert np.concatenate([t.array for t in view.tiles("z", 1)]).shape == (2, 2)


def test_announced_tensors_are_those_of_the_layout(path: Path) -> None:
    for spec in SPECS:
        weight = make(spec, 33, 48)
        announced = packed_tensors("fc.weight", (33, 48), spec)
        assert {t.name: (t.shape, t.nbytes) for t in announced} == {
            name: (array.shape, array.nbytes) for name, array in weight.tensors.items()
        }
        with SafetensorsSink(path, announced) as sink:
            for name, array in weight.tensors.items():
                sink.write(name, array)
            sink.commit()
        with Dequantized(SafetensorsSource(path)) as view:  # no metadata: the shapes tell
            np.testing.assert_array_equal(view.read("fc.weight"), weight.plain)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("fc", (4, 8), PackedSpec(4)), "must end in '.weight'"),
        (("fc.weight", (4,), PackedSpec(4)), r"must have 2 axes or more, got shape \(4,\)"),
        (("fc.weight", (4, 48), PackedSpec(4, True, 32)), "group_size 32 does not divide its rows of 48"),
        (("fc.weight", (4, 48), PackedSpec(4), "F64"), "scale_dtype must be F32, F16 or BF16"),
    ],
)
def test_what_the_layout_cannot_hold(args: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        packed_tensors(*args)


def test_specs_are_checked() -> None:
    with pytest.raises(ValueError, match="bits must be 2, 4 or 8, got 3"):
        PackedSpec(3)
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        PackedSpec(4, True, 0)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_other_dtypes(path: Path, dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = make(PackedSpec(4, True, 16), 7, 64)
    save(path, weight.tensors)
    plain = weight.plain
    with Dequantized(SafetensorsSource(path), dtype=dtype) as view:
        array = view.read("fc.weight")
        expected = {
            "F16": lambda: plain.astype(np.float16),
            "BF16": lambda: plain.astype(ml_dtypes.bfloat16).view(np.uint16),
            "F64": lambda: plain.astype(np.float64),
        }[dtype]()
        if dtype == "F64":
            np.testing.assert_allclose(array, expected, rtol=1e-6)
        else:
            np.testing.assert_array_equal(array, expected, strict=True)
        assert view.tensors["fc.weight"].dtype == dtype
    with pytest.raises(ValueError, match="dtype must be"):
        Dequantized(SafetensorsSource(path), dtype="I8")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_wide_scales(path: Path, dtype: str) -> None:
    """What loads it multiplies in the dtype of the scales: so do we."""
    weight = make(PackedSpec(8), 7, 64)
    wide = weight.tensors["fc.weight_scale"]
    half = wide.astype(np.float16) if dtype == "F16" else (wide.view(np.uint32) >> 16).astype(np.uint16)
    back = half.astype(np.float32) if dtype == "F16" else (half.astype(np.uint32) << 16).view(np.float32)
    arrays = {**weight.tensors, "fc.weight_scale": half}
    save(path, arrays)
    with Dequantized(SafetensorsSource(path)) as view:
        codes = np.rint(weight.plain / wide)
        np.testing.assert_array_equal(view.read("fc.weight"), rounded(codes * back, dtype))


def test_config_decides_what_the_shapes_leave_open(tmp_path: Path) -> None:
    """Rows of 8 codes take one word at 2 and at 4 bits."""
    weight = make(PackedSpec(4), 3, 8)
    save(tmp_path / "model.safetensors", weight.tensors)
    with pytest.raises(FormatError, match=r"\(3, 8\) as \(3, 1\) with scale \(3, 1\) may have 4 or 2 bits"):
        files.open(tmp_path, dequantize=True)
    for spec in (PackedSpec(4), PackedSpec(8)):
        config = {"quantization_config": quantization_config({spec: ["Linear"]})}
        (tmp_path / "config.json").write_text(json.dumps(config))
        if spec.bits == 4:
            with files.open(tmp_path, dequantize=True) as view:
                np.testing.assert_array_equal(view.read("fc.weight"), weight.plain)
        else:
            with pytest.raises(FormatError, match=r"fits none of: PackedSpec\(bits=8"):
                files.open(tmp_path, dequantize=True)


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    def apply(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"fc.weight_{name}"] = change(tensors[f"fc.weight_{name}"])

    return apply


def drop(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.__delitem__(f"fc.weight_{name}")


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (drop("shape"), FormatError, "tensor 'fc.weight_shape' is missing"),
        (drop("scale"), FormatError, "'fc.weight_scale' must be there and be F32, F16 or BF16"),
        (edit("scale", lambda a: a[:, :2]), FormatError, "fits none of"),
        (edit("scale", lambda a: a[:-1]), FormatError, "fits none of"),
        (edit("scale", lambda a: a.ravel()), UnsupportedError, r"a scale of shape \(6,\)"),
        (edit("packed", lambda a: a[:, :-1]), FormatError, "fits none of"),
        (edit("packed", lambda a: a[:, :, None]), UnsupportedError, "experts in one tensor are not supported"),
        (edit("packed", lambda a: a.view(np.float32)), FormatError, "must be I32 and in place of"),
        (edit("shape", lambda a: a[::-1].copy()), FormatError, "fits none of"),
        (edit("shape", lambda a: -a), FormatError, r"is \(-2, -48\)"),
        (edit("shape", lambda a: a * 2**40), FormatError, "fits none of"),
        (
            edit("shape", lambda a: a[:1]),
            FormatError,
            r"must be I64 \(2,\), or of a convolution \(axes,\), got I64 \(1,\)",
        ),
        (edit("shape", lambda a: np.append(a, [1] * 7)), FormatError, r"or of a convolution \(axes,\), got I64 \(9,\)"),
        (edit("zero_point", lambda a: a[:, :1]), FormatError, "fits none of"),
        (
            lambda t: t.update({"fc.weight": np.zeros((2, 48), np.float32)}),
            FormatError,
            "in place of 'fc.weight'",
        ),
        (
            lambda t: t.update({"fc.weight_g_idx": np.zeros(48, np.int32)}),
            UnsupportedError,
            "reordered columns",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    path: Path, change: Callable[[dict[str, np.ndarray]], None], kind: type[Exception], match: str
) -> None:
    weight = make(PackedSpec(4, False, 16), 2, 48)
    change(weight.tensors)
    save(path, weight.tensors)
    with pytest.raises(kind, match=match) as caught:
        files.open(path, dequantize=True)
    assert str(caught.value).startswith(f"{path}: tensor 'fc.weight")


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a11_scales_must_be_finite(path: Path, value: float, shown: str) -> None:
    weight = make(PackedSpec(4, True, 16), 50, 32)
    weight.tensors["fc.weight_scale"][48, 1] = value
    save(path, weight.tensors)
    with Dequantized(SafetensorsSource(path)) as view:
        message = f"tensor 'fc.weight_scale' row 48: scale is {shown}$"
        with pytest.raises(FormatError, match=message):
            view.read("fc.weight")
        with pytest.raises(FormatError, match=message):
            list(view.tiles("fc.weight", 256))


@pytest.mark.parametrize("name", ["packed", "zero_point"])
@pytest.mark.parametrize("columns", [5, 8, 20])
def test_a8_padding_must_be_zero(path: Path, name: str, columns: int) -> None:
    weight = make(PackedSpec(4, False), columns, columns)
    words = weight.tensors[f"fc.weight_{name}"]
    if columns == 8:
        save(path, weight.tensors, packed_metadata({"fc.weight": PackedSpec(4, False)}))
        with Dequantized(SafetensorsSource(path)) as view:
            view.read("fc.weight")
        return
    at = (3, -1) if name == "packed" else (-1, 0)
    where = "packed' row 3" if name == "packed" else "zero_point' row 0"
    for bit in (columns * 4 % 32, 31):
        flip = np.uint32(1 << bit).view(np.int32)
        words[at] ^= flip
        save(path, weight.tensors, packed_metadata({"fc.weight": PackedSpec(4, False)}))
        words[at] ^= flip
        refused = pytest.raises(FormatError, match=f"fc.weight_{where}: padding bits are not zero")
        with Dequantized(SafetensorsSource(path)) as view, refused:
            view.read("fc.weight")


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("{", FormatError, "not valid JSON"),
        ("{}", FormatError, "groups must be a list"),
        ('{"groups":[1]}', FormatError, "weights must be an object"),
        ('{"groups":[{"num_bits":"4"}]}', FormatError, "num_bits, symmetric or group_size is wrong"),
        ('{"groups":[{"num_bits":3,"targets":[]}]}', UnsupportedError, "3 bits are not supported"),
        ('{"groups":[{"num_bits":4,"targets":[1]}]}', FormatError, "targets must be a list of names"),
        ('{"groups":[{"num_bits":4,"strategy":"tensor"}]}', UnsupportedError, "strategy 'tensor'"),
        ('{"groups":[{"num_bits":4,"strategy":"group"}]}', FormatError, "group_size 0 must be at least 1"),
    ],
)
def test_malformed_metadata(path: Path, text: str, kind: type[Exception], match: str) -> None:
    save(path, make(PackedSpec(4), 2, 64).tensors, {METADATA_KEY: text})
    with pytest.raises(kind, match=match) as caught:
        files.open(path, dequantize=True)
    assert str(caught.value).startswith(f"{path}: metadata 'modelopt_rs.quantization'")


def test_configs_of_other_methods_are_ignored(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", make(PackedSpec(4), 2, 64).tensors)
    for config in ({"quant_method": "gptq"}, {"quant_method": "compressed-tensors", "format": "dense"}, {}):
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
        files.open(tmp_path, dequantize=True).close()
    for wrong in ([], {"config_groups": 1}, {"config_groups": {"a": 1}}):
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": wrong}))
        with pytest.raises(FormatError, match="config_groups must be an object of objects"):
            files.open(tmp_path, dequantize=True)


def test_empty_weights(path: Path) -> None:
    weight = make(PackedSpec(4), 0, 64)
    save(path, weight.tensors)
    with files.open(path, dequantize=True) as view:
        assert view.read("fc.weight").shape == (0, 64)
        assert list(view.tiles("fc.weight", 10)) == []


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_compressed_tensors_unpacks_the_same(path: Path, spec: PackedSpec) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    weight = make(spec, 33, 48)
    save(path, weight.tensors)
    config = QuantizationConfig(**quantization_config({spec: ["Linear"]}))
    state = {n.removeprefix("fc."): torch.from_numpy(a) for n, a in weight.tensors.items()}
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    plain = compressor.decompress(state, config.config_groups["group_0"])["weight"]
    with Dequantized(SafetensorsSource(path)) as view:
        np.testing.assert_array_equal(plain.numpy(), view.read("fc.weight"), strict=True)


def test_infos_are_hashable() -> None:
    assert len({*infos({"a": np.zeros(1, np.float32)}), *infos({"a": np.zeros(1, np.float32)})}) == 1
