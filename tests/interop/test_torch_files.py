"""Files that torch.save and Keras write, against what they themselves read back (H37)."""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelopt_rs import UnsupportedError, dequantize_file, files, inspect_file, quantize_file  # noqa: E402


def bits(tensor: Any) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def same(path: Path, expected: dict[str, Any]) -> None:
    with files.open(path) as source:
        assert list(source.tensors) == list(expected)
        for name, tensor in expected.items():
            assert source.tensors[name].shape == tuple(tensor.shape)
            assert source.read(name).tobytes() == bits(tensor)
            assert b"".join(tile.array.tobytes() for tile in source.tiles(name, 64)) == bits(tensor)


def tensors(legacy: bool) -> dict[str, Any]:
    base = torch.randn(12, 10)
    found = {
        "base": base,
        "transposed": base.t(),
        "offset": base[3:, 2:7],
        "stepped": base[::2, ::3],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "permuted": torch.randn(3, 4, 5, 6).permute(3, 1, 0, 2),
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }
    old = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    new = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu]
    for dtype in [*old, torch.bool, torch.complex64, *([] if legacy else new)]:
        found[str(dtype)] = torch.arange(6).reshape(2, 3).to(dtype)
    return found


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_all_that_torch_saves(tmp_path: Path, legacy: bool, protocol: int) -> None:
    path, expected = tmp_path / "x.pt", tensors(legacy)
    torch.save(expected, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    same(path, expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_training(tmp_path: Path, legacy: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LSTM(4, 5))
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    saved = {
        "epoch": 3,
        "model": torch.nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "best": np.float64(0.5),
        "rng": (1, [2, None], {"a": {1, 2}}, torch.device("cpu"), torch.float32, torch.Size([1, 2])),
    }
    torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.warns(UserWarning, match="under 'optimizer'"):
        same(tmp_path / "x.pth", model.state_dict())


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    """The archive is read; its pickle has too many instructions."""
    expected = {f"t{i}": torch.full((2,), float(i)) for i in range(70_000)}
    torch.save(expected, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="instructions"):
        files.open(tmp_path / "x.pt")


def test_a_directory_of_transformers(tmp_path: Path) -> None:
    """pytorch_model.bin in, a directory out that transformers loads."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=96,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokens = torch.arange(10)[None]
    before = model(tokens).logits
    dequantize_file(folder, tmp_path / "same")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "same").eval()
    torch.testing.assert_close(again(tokens).logits, before)
    pytest.importorskip("compressed_tensors")
    quantize_file(folder, tmp_path / "small", bits=8)
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert torch.nn.functional.cosine_similarity(small(tokens).logits.flatten(), before.flatten(), dim=0) > 0.99


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras' own
def test_files_of_keras(tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = [keras.Input((8,)), keras.layers.Dense(16, name="first"), keras.layers.Dense(4, dtype="bfloat16")]
    model = keras.Sequential(layers)
    expected = sorted(np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in model.weights)
    model.save(tmp_path / "x.keras")
    model.save_weights(tmp_path / "x.weights.h5")
    for name in ("x.keras", "x.weights.h5"):
        with files.open(tmp_path / name) as source:
            assert sorted(source.read(each).tobytes() for each in source.tensors) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"a": torch.eye(4).to_sparse()}, r"has a sparse tensor; save it after .to_dense\(\)"),
        (lambda: {"a": torch.eye(4).to_sparse_csr()}, r"has a sparse tensor; save it after .to_dense\(\)"),
        (lambda: {"a": torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8)}, r"save it after .dequantize\(\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_numbers_say_what_to_save(tmp_path, make, message):
    torch.save(make(), tmp_path / "a.pt")
    with pytest.raises(UnsupportedError, match=message):
        inspect_file(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_torchscript_is_named(tmp_path):
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 2

    torch.jit.save(torch.jit.script(Two()), tmp_path / "a.pt")
    with pytest.raises(UnsupportedError, match=r"is a TorchScript archive, whose code is not read; save the state"):
        inspect_file(tmp_path / "a.pt")
