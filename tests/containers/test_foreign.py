"""Model files that are not read: what each is, and the way out."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import torch_samples
from modelopt_rs import FormatError, UnsupportedError, files

FILES = {
    "a.gguf": (b"GGUF\3\0\0\0", "a GGUF file, which is not read; quantize it with llama.cpp's"),
    "b.bin": (b"lmgg" + bytes(9), "a GGML file"),
    "c.tflite": (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model, which is not read; export it to ONNX with"),
    "d.ort": (b"\x1c\0\0\0ORTM", "onnxruntime's own format"),
    "e.engine": (b"ftrt\0", "an engine of TensorRT"),
    "f.mlmodel": (b"\x08\x05\x12\x1a", "a Core ML model"),
    "g.pb": (b"\n\x15\n\x05input", "a graph of TensorFlow, which is not read; export it to ONNX with tf2onnx"),
    "h.msgpack": (b"\x81\xa6params", "weights of Flax"),
    "i.npy": (b"\x93NUMPY\1\0", "an array of numpy.save"),
    "j.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "k.onnx": (b"<!DOCTYPE html><html>", "a web page"),
    "l.onnx": (b"\x1f\x8b\x08\0", "compressed by gzip"),
    "m.ckpt": (b"\0\0\0\0", "no checkpoint of torch"),
    "n.joblib": (b"\x80\x04\x95", "a file of joblib"),
    "o.pth": (b"storages".ljust(257, b"\0") + b"ustar\0", "a tar archive, which is not read; unpack it; one of torch"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_others_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    begin, said = FILES[name]
    (tmp_path / name).write_bytes(begin + bytes(64))
    with pytest.raises(UnsupportedError, match=f"{name}: is .*{said}"):
        files.open(tmp_path / name)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
MEMBERS = ["model.safetensors", "pytorch_model.bin", "model-00001-of-00001.safetensors"]


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    ("begin", "said"), [(POINTER, "is a pointer of Git LFS.*`git lfs pull`"), (b"", "the file is empty")]
)
def test_a_member_of_a_directory_is_named_as_a_file_alone_is(
    tmp_path: Path, member: str, begin: bytes, said: str
) -> None:
    (tmp_path / member).write_bytes(begin)
    if member == MEMBERS[2]:
        index = {"metadata": {"total_size": 4}, "weight_map": {"w": member}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / member):
        with pytest.raises(FormatError, match=f"{member}: {said}"):
            files.open(path)


def test_a_file_without_a_byte_is_said_to_be_empty_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.onnx", "c.pt", "d.h5", "e"):
        (tmp_path / name).touch()
        with pytest.raises(FormatError, match=f"{name}: the file is empty"):
            files.open(tmp_path / name)


def test_archives_of_others_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    with zipfile.ZipFile(tmp_path / "b.pt2", "w") as archive:
        archive.writestr("archive_format", "pt2")
    for name, said in {"a.npz": "arrays of numpy.savez", "b.pt2": "a program of torch.export"}.items():
        with pytest.raises(UnsupportedError, match=said):
            files.open(tmp_path / name)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("saved_model.pb", "a SavedModel of TensorFlow"),
        ("flax_model.msgpack", "weights of Flax"),
        ("model_index.json", "a pipeline of diffusers, which is not read; give one of its folders"),
        ("x.Q4_K_M.gguf", "GGUF files"),
        ("__0_0.distcp", "a checkpoint of torch.distributed, which is not read; make a file of it with"),
        ("mp_rank_00_model_states.pt", "a checkpoint of DeepSpeed"),
    ],
)
def test_a_directory_of_others_is_named(tmp_path: Path, member: str, said: str) -> None:
    (tmp_path / member).write_bytes(b"")
    with pytest.raises(UnsupportedError, match=f"is in the directory: it has {said}"):
        files.open(tmp_path)


def test_a_safetensors_file_whose_length_looks_like_others_is_read(tmp_path: Path) -> None:
    """The first bytes of gzip are the header length 35,615."""
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x8B1F)
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with files.open(tmp_path / "w.safetensors") as source:
        assert list(source.tensors) == ["w"]


@pytest.mark.parametrize("name", ["model.pb", "model.safetensors", "model.pt", "model"])
def test_an_onnx_model_is_one_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed")
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")])
    (tmp_path / name).write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with files.open(tmp_path / name) as source:
        assert source.container == "onnx"


@pytest.mark.parametrize("name", ["w.safetensors", "w.onnx", "w"])
def test_a_file_of_torch_is_one_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    torch_samples.save(tmp_path / name, {"w": np.ones((2, 3), np.float32)})
    with files.open(tmp_path / name) as source:
        assert (source.container, list(source.tensors)) == ("torch", ["w"])
