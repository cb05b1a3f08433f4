"""What a LayerNorm says of the inputs behind it makes codes nearer to what their layers compute, for no byte more."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from modelopt_rs.planning.norms import norm_moments, norm_of

RNG = np.random.default_rng(0)
GAIN, BIAS = np.exp(RNG.normal(size=128)).astype(np.float32), RNG.normal(size=128).astype(np.float32)
W = RNG.normal(size=(64, 128)).astype(np.float32)
NORM, WEIGHT = "encoder.layer.1.attention.output.LayerNorm", "encoder.layer.1.intermediate.dense.weight"


def written(path: Path, norm: str = NORM, **arrays: Any) -> Path:
    tensors = {WEIGHT: W, f"{norm}.weight": GAIN, f"{norm}.bias": BIAS} | arrays
    infos = [mo.files.TensorInfo(name, "F32", x.shape, x.nbytes) for name, x in tensors.items()]
    with mo.files.SafetensorsSink(path / "a.safetensors", infos, overwrite=True) as sink:
        for name, x in tensors.items():
            sink.write(name, x)
        sink.commit()
    return path / "a.safetensors"


def quantized(source: Path, **options: Any) -> tuple[Any, np.ndarray, bytes]:
    """Return the report, the weight as it comes back, and the file."""
    out, back = source.with_name("b.safetensors"), source.with_name("c.safetensors")
    how: Any = {"bits": 4, "overwrite": True, "durable": False, **options}
    report = mo.quantize_file(source, out, **how)
    mo.dequantize_file(out, back, overwrite=True, durable=False)
    with mo.files.SafetensorsSource(back) as opened:
        return report, opened.read(WEIGHT), out.read_bytes()


def off(w: np.ndarray) -> float:
    """How far a layer is off on what leaves a LayerNorm."""
    n = RNG.normal(size=(4096, 128))
    x = GAIN * (n - n.mean(1, keepdims=True)) / n.std(1, keepdims=True) + BIAS
    return float(np.linalg.norm(x @ (w - W).T) / np.linalg.norm(x @ W.T))


@pytest.mark.parametrize("options", [{"scheme": "symmetric"}, {"scheme": "asymmetric"}, {"bits": 2, "uniform": True}])
def test_a_layer_behind_a_norm_is_nearer_for_as_many_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    report, near, data = quantized(written(tmp_path), **options)
    [reason] = [each.reason for each in report.tensors if each.name == WEIGHT]
    assert reason.endswith("; searched by what goes in, as its norm says")
    other, far, same_size = quantized(written(tmp_path, "elsewhere.norm"), **options)
    assert "norm" not in next(each.reason for each in other.tensors if each.name == WEIGHT)
    assert off(near) < 0.95 * off(far)
    assert report.totals.bytes_after == other.totals.bytes_after
    assert abs(len(data) - len(same_size)) < 256  # names differ


def test_memory_and_threads_change_no_byte(tmp_path: Path) -> None:
    source = written(tmp_path)
    files = {quantized(source, **options)[2] for options in ({}, {"threads": 1}, {"max_memory": "96KiB"})}
    assert len(files) == 1


@pytest.mark.parametrize("options", [{"search": None}, {"bits": 8}])
def test_where_nothing_is_searched_or_little_lost_norms_say_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    with_norm, without = (quantized(written(tmp_path, norm), **options)[1] for norm in (NORM, "elsewhere.norm"))
    np.testing.assert_array_equal(with_norm, without)


@pytest.mark.parametrize("wrong", [np.full(128, np.nan, np.float32), np.zeros(128, np.float32), GAIN[:64]])
def test_a_norm_of_other_numbers_says_nothing(tmp_path: Path, wrong: np.ndarray) -> None:
    source = written(tmp_path, **{f"{NORM}.weight": wrong, f"{NORM}.bias": wrong})
    with mo.files.SafetensorsSource(source) as opened:
        assert norm_moments(opened.tensors, [WEIGHT], opened.read) == {}


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("bert.encoder.layer.3.attention.self.key.weight", "bert.encoder.layer.2.output.LayerNorm"),
        ("encoder.layer.0.attention.self.value.weight", "embeddings.LayerNorm"),
        ("encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.attention.output.LayerNorm"),
        ("mpnet.encoder.layer.1.attention.attn.q.weight", "mpnet.encoder.layer.0.output.LayerNorm"),
        ("mpnet.encoder.layer.1.intermediate.dense.weight", "mpnet.encoder.layer.1.attention.LayerNorm"),
        ("distilbert.transformer.layer.1.attention.q_lin.weight", "distilbert.transformer.layer.0.output_layer_norm"),
        ("distilbert.transformer.layer.1.ffn.lin1.weight", "distilbert.transformer.layer.1.sa_layer_norm"),
        ("encoder.layer.1.output.dense.weight", None),
        ("encoder.layer.1.attention.output.dense.weight", None),
        ("encoder.layer.1.attention.attention.query.weight", None),
        ("model.layers.1.self_attn.q_proj.weight", None),
    ],
)
def test_the_norm_before_a_layer_is_found_by_names_if_the_model_has_it(name: str, norm: str | None) -> None:
    info = mo.files.TensorInfo("x", "F32", (4,), 16)
    every = {f"{norm}.{part}": info for part in ("weight", "bias")}
    assert norm_of(name, every) == norm
    assert norm_of(name, {f"{norm}.weight": info}) is None
