"""Model files of others that are not read: what each is, and what makes one of it that is."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["FOREIGN", "LOOKED_AT", "foreign_directory", "foreign_file"]

_TF: Final = "export it to ONNX with tf2onnx"
_ORIGIN: Final = "take the model that it was made of"
# What a file begins with, at a place: no name is needed.
BEGINNINGS: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch that with `git lfs pull`"),
    (0, b"<!DOCTYPE", "a web page", "download the file itself"),
    (0, b"<html", "a web page", "download the file itself"),
    (0, b"GGUF", "a GGUF file", "quantize it with llama.cpp's llama-quantize, or take the safetensors it was made of"),
    *(
        (0, begin, "a GGML file, the format before GGUF", "take the safetensors that it was made of")
        for begin in (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggjt")
    ),
    (4, b"TFL3", "a TensorFlow Lite model", "export it to ONNX with `python -m tf2onnx.convert --tflite`"),
    (4, b"ORTM", "a model in onnxruntime's own format", "take the .onnx file that it was made of"),
    (0, b"ftrt", "an engine of TensorRT, made for one GPU", "take the ONNX model that it was built of"),
    (0, b"ptrt", "an engine of TensorRT, made for one GPU", "take the ONNX model that it was built of"),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it"),
    (0, b"\xfd7zXZ", "compressed by xz", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it"),
    (0, b"BZh", "compressed by bzip2", "unpack it"),
    (257, b"ustar", "a tar archive", "unpack it; one of torch before 0.2: load it there and save its state_dict()"),
    (0, b"\x93NUMPY", "an array of numpy.save", "write it with safetensors.numpy.save_file"),
)
# Where it says nothing by which it could be told, its name does.
SUFFIXES: Final[dict[str, tuple[str, str]]] = {
    ".npz": ("arrays of numpy.savez", "write them with safetensors.numpy.save_file"),
    ".mlmodel": ("a Core ML model", _ORIGIN),
    ".distcp": ("a part of a checkpoint of torch.distributed", "make one file of all with dcp_to_torch_save"),
    ".pt2": ("a program of torch.export", "export it to ONNX with torch.onnx.export"),
    ".joblib": ("a file of joblib", "export its model to ONNX, with skl2onnx for scikit-learn's"),
    ".msgpack": ("weights of Flax", "load them and write them with safetensors.flax.save_file"),
    ".pb": ("a graph of TensorFlow", _TF),
    ".engine": ("an engine of TensorRT, made for one GPU", "take the ONNX model that it was built of"),
    ".plan": ("an engine of TensorRT, made for one GPU", "take the ONNX model that it was built of"),
    ".pte": ("a program of ExecuTorch", _ORIGIN),
    ".xml": ("the graph of an OpenVINO model", "take the ONNX model that it was converted of"),
    ".param": ("the graph of an ncnn model", _ORIGIN),
    ".mnn": ("an MNN model", _ORIGIN),
    ".caffemodel": ("weights of Caffe", "export the model to ONNX"),
    ".pdmodel": ("a Paddle model", "export it to ONNX with paddle2onnx"),
    ".pdiparams": ("weights of Paddle", "export their model to ONNX with paddle2onnx"),
    ".ckpt": ("no checkpoint of torch", "where it is TensorFlow's, export its model to ONNX with tf2onnx"),
}
LOOKED_AT: Final = max(at + len(magic) for at, magic, *_ in BEGINNINGS)
"""Bytes of a file that tell what it is."""

FOREIGN: Final = frozenset(SUFFIXES) | {".gguf", ".tflite"}
"""What names of such files end in."""

# Of these also where it looks like a file that is read.
_ALWAYS: Final = frozenset((".npz", ".mlmodel", ".distcp", ".pt2", ".joblib"))
# What a directory has in it.
MEMBERS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "saved_model.pb",
        "a SavedModel of TensorFlow",
        "export it to ONNX with `python -m tf2onnx.convert --saved-model`",
    ),
    ("flax_model.msgpack", "weights of Flax", "load it in transformers below 5 with from_flax=True and save it again"),
    ("model_index.json", "a pipeline of diffusers", "give one of its folders, as unet or text_encoder"),
    ("Manifest.json", "a Core ML package", _ORIGIN),
    (
        "*.distcp",
        "a checkpoint of torch.distributed",
        "make a file of it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
    ),
    ("*_model_states.pt", "a checkpoint of DeepSpeed", "make a file of it with its zero_to_fp32.py"),
    ("*.gguf", "GGUF files", "take the safetensors that they were made of"),
)


def foreign_file(path: Path, begin: bytes, known: bool) -> str | None:
    """Say what a file is that is not read, and the way out; None of one that isn't known.

    Parameters
    ----------
    path : Path
    begin : bytes
        At least its first `LOOKED_AT`, if it has so many.
    known : bool
        Whether it looks like a file that is read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from modelopt_rs.containers.foreign import foreign_file
    >>> foreign_file(Path("model.onnx"), b"version https://git-lfs.github.com/spec/v1", True)
    'a pointer of Git LFS, not the file itself, which is not read; fetch that with `git lfs pull`'
    """
    if begin[8:9] == b"{":  # a safetensors file, whose first bytes are a length
        return None
    found = next(((what, fix) for at, magic, what, fix in BEGINNINGS if begin[at:].startswith(magic)), None)
    suffix = path.suffix.lower()
    return _said(found or (SUFFIXES.get(suffix) if not known or suffix in _ALWAYS else None))


def foreign_directory(path: Path) -> str | None:
    """Say what a directory has in it that is not read, and the way out; None where nothing is known."""
    return _said(next(((what, fix) for name, what, fix in MEMBERS if _any(path.glob(name))), None))


def _any(paths: Iterable[Path]) -> bool:
    return next(iter(paths), None) is not None


def _said(found: tuple[str, str] | None) -> str | None:
    return None if found is None else f"{found[0]}, which is not read; {found[1]}"
