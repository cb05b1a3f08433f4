"""Hugging Face directories: reading (E18) and writing (F3 to F6, F10) as a whole."""

import ctypes
import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, directory
from files_samples import infos, left_over, raw, save
from modelopt_rs import OptionError, files
from modelopt_rs._core import FormatError, LimitError
from modelopt_rs.files import CheckpointSink, CheckpointSource, TensorInfo

ARRAYS = {f"layer.{i}.weight": np.full((4, 8), i, np.float32) for i in range(4)}
SHARDS = [f"model-{i}-of-00002.safetensors" for i in ("00001", "00002")]
INDEX = "model.safetensors.index.json"
CONFIG = {"model_type": "test", "x": [1, 2]}


def make_sharded(folder: Path) -> Path:
    folder.mkdir()
    names = list(ARRAYS)
    weight_map = {name: SHARDS[i // 2] for i, name in enumerate(names)}
    for i, shard in enumerate(SHARDS):
        save(folder / shard, {name: ARRAYS[name] for name in names[2 * i : 2 * i + 2]}, {"format": "pt"})
    write_index(folder, weight_map, 512)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_bytes(b"\0tokens")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def write_index(folder: Path, weight_map: dict[str, str], total_size: Any) -> None:
    index = {"metadata": {"total_size": total_size, "note": "é"}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_sharded(tmp_path / "model")


def copy(source: CheckpointSource, path: Path, **options: Any) -> None:
    with CheckpointSink(source, path, list(source.tensors.values()), **options) as sink:
        for name in source.tensors:
            for tile in source.tiles(name, 64):
                sink.write(name, tile.array)
        sink.commit()


def test_a_directory_is_one_source(model: Path) -> None:
    for path in (model, model / INDEX):
        with files.open(path) as source:
            assert isinstance(source, CheckpointSource)
            assert (source.path, source.config, source.index_name) == (model, CONFIG, INDEX)
            assert dict(source.metadata) == {"format": "pt"}
            assert list(source.tensors) == list(ARRAYS)
            assert source.shard_of("layer.3.weight") == SHARDS[1]
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(source.read(name), array, strict=True)
                assert [len(tile.array) for tile in source.tiles(name, 64)] == [2, 2]
            with pytest.raises(KeyError):
                source.read("x")
    with pytest.raises(ValueError, match="closed"):
        source.read("layer.0.weight")


def test_a_single_file_in_a_directory(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", ARRAYS)
    with files.open(tmp_path) as source:
        assert isinstance(source, CheckpointSource)
        assert (source.config, source.index_name) == (None, None)
        assert set(source.tensors) == set(ARRAYS)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        FormatError, match=r"none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_m"
    ):
        files.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.open(tmp_path / INDEX)


def test_e18_all_problems_are_reported_together(model: Path) -> None:
    names = list(ARRAYS)
    weight_map = {
        names[0]: SHARDS[0],
        names[2]: SHARDS[0],
        names[3]: "gone.safetensors",
        "x": "../model/" + SHARDS[1],
        "y": "/etc/passwd",
        "z\x1b": "",
    }
    write_index(model, weight_map, 512)
    with pytest.raises(FormatError) as caught:
        CheckpointSource(model)
    for problem in (
        f"{model / INDEX}: ",
        "shard 'gone.safetensors' is missing",
        "shard '../model/model-00002-of-00002.safetensors' must be a file name in the directory of the index",
        "shard '/etc/passwd' must be a file name",
        "shard '' must be a file name",
        "shard 'model-00002-of-00002.safetensors' is not in the index",
        "tensor 'layer.2.weight' is not in shard 'model-00001-of-00002.safetensors'",
    ):
        assert problem in str(caught.value)


def test_e18_tensor_in_two_shards(model: Path) -> None:
    save(model / SHARDS[1], ARRAYS)
    with pytest.raises(FormatError, match=r"tensor 'layer\.0\.weight' is in shards 'model-00001.*' and 'model-00002"):
        CheckpointSource(model)


def test_a_tensor_that_the_index_forgot_is_read(model: Path) -> None:
    """H3: transformers reads all that its shards hold."""
    names = list(ARRAYS)
    write_index(model, {name: SHARDS[i // 2] for i, name in enumerate(names) if i != 1}, 512)
    with pytest.warns(UserWarning, match=f"tensor '{names[1]}' of shard .* is not in the index; it is read all the"):
        source = CheckpointSource(model)
    with source:
        assert np.array_equal(source.read(names[1]), ARRAYS[names[1]])


def test_e18_total_size(model: Path) -> None:
    weight_map = {name: SHARDS[i // 2] for i, name in enumerate(ARRAYS)}
    for wrong, shown in ((5120, "5,120"), ("512", "'512'"), (512.5, "'512.5'")):
        write_index(model, weight_map, wrong)
        with pytest.warns(UserWarning, match=f"total_size is {shown}, the tensors have 512 bytes"):
            source = CheckpointSource(model)
        source.close()
        assert len(source.notes) == 1
    for right in (512, 512.0, None):
        write_index(model, weight_map, right)
        CheckpointSource(model).close()


@pytest.mark.parametrize(
    ("key", "config", "is_lost"),
    [
        ("lm_head.weight", {}, False),
        ("lm_head.weight", {"tie_word_embeddings": True}, False),
        ("lm_head.weight", {"tie_word_embeddings": False}, True),
        ("cls.predictions.decoder.weight", {}, False),
        ("model.layers.9.mlp.weight", {}, True),
        ("model.embed_tokens.weight", {}, True),
    ],
)
def test_a_key_of_a_tied_tensor_loses_nothing(tmp_path: Path, key: str, config: dict[str, Any], is_lost: bool) -> None:
    """H3. What is in no shard is an error, unless the model has it under another name."""
    model = tmp_path / "model"
    model.mkdir()
    has = "model.layers.0.weight" if key == "model.embed_tokens.weight" else "model.embed_tokens.weight"
    save(model / SHARDS[0], {has: ARRAYS["layer.0.weight"]})
    save(model / SHARDS[1], {"x": ARRAYS["layer.0.weight"]})
    write_index(model, {has: SHARDS[0], "x": SHARDS[1], key: SHARDS[1]}, 256)
    (model / "config.json").write_text(json.dumps(config))
    if is_lost:
        with pytest.raises(FormatError, match="is not in shard"):
            CheckpointSource(model)
        return
    with pytest.warns(UserWarning, match=f"tensor '{key}' is not in shard .*; it is tied to another"):
        source = CheckpointSource(model)
    with source:
        assert set(source.tensors) == {has, "x"}
        copy(source, tmp_path / "out")
    CheckpointSource(tmp_path / "out").close()  # whose index is in step


def test_e18_damaged_shard(model: Path) -> None:
    (model / SHARDS[0]).write_bytes(raw("{"))
    (model / SHARDS[1]).unlink()
    os.mkfifo(model / SHARDS[1])
    with pytest.raises(FormatError, match=r"00001.*header is not valid JSON.*; .*00002.*: not a regular file"):
        CheckpointSource(model)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "weight_map must be an object of file names"),
        ('{"weight_map":{"a":1}}', "weight_map must be an object of file names"),
        ('{"weight_map":{},"metadata":[]}', "metadata must be an object"),
        ('{"weight_map":{"a":"x","a":"y"}}', "key 'a' stands twice"),
        ("[" * 1_000_000, "nests too deep"),
        ('{"a":' * 1_000_000, "nests too deep"),
        ('{"weight_map":' + "1" * 10_000 + "}", "not valid JSON"),
        (b"\xff", "not valid JSON"),
    ],
)
def test_e9_e18_malformed_index(model: Path, text: str | bytes, match: str) -> None:
    (model / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=match) as caught:
        CheckpointSource(model)
    assert str(caught.value).startswith(f"{model / INDEX}: ")
    assert len(str(caught.value)) < 1000


def test_e6_index_over_the_limit(model: Path) -> None:
    with pytest.raises(LimitError, match=f"{INDEX}: is larger than max_header=100 bytes"):
        CheckpointSource(model / INDEX, max_header=100)


def test_writes_the_same_directory(model: Path, tmp_path: Path) -> None:
    """F10: and the same bytes each time; every other file comes along unchanged, with its mode."""
    (model / "tokenizer.json").chmod(0o600)
    (model / ".x.modelopt-1-1.tmp").write_bytes(b"a temporary of another run")
    with CheckpointSource(model) as source:
        copy(source, tmp_path / "out")
        copy(source, tmp_path / "again", durable=False)
    out = tree(tmp_path / "out")
    assert out == tree(tmp_path / "again")
    before = tree(model)
    assert {name for name in before if "modelopt-" not in name} == set(out)
    assert json.loads(out[INDEX]) == json.loads(before[INDEX])
    assert all(out[name] == before[name] for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"))
    assert (tmp_path / "out" / "tokenizer.json").stat().st_mode & 0o777 == 0o600
    assert not left_over(tmp_path)


def test_outputs_stay_in_the_shard_of_their_origin(model: Path, tmp_path: Path) -> None:
    tensors = [TensorInfo("p", "U8", (3,), 3), TensorInfo("q", "U8", (5,), 5)]
    config = {**CONFIG, "quantization_config": {"bits": 4}}
    with CheckpointSource(model) as source:
        origins = {"p": "layer.3.weight", "q": "layer.0.weight"}
        with CheckpointSink(source, tmp_path / "out", tensors, origins, {"k": "v"}, config=config) as sink:
            for info in tensors:
                sink.write(info.name, np.zeros(info.shape, np.uint8))
            sink.commit()
        with pytest.raises(ValueError, match=r"no tensor of the source is the origin of 'p'; 'q'"):
            CheckpointSink(source, tmp_path / "no", tensors)
    with CheckpointSource(tmp_path / "out") as out:
        assert {name: out.shard_of(name) for name in out.tensors} == {"p": SHARDS[1], "q": SHARDS[0]}
        assert out.index_metadata == {"total_size": 8, "note": "é"}
        assert out.config == config
        assert all(shard.metadata == {"k": "v"} for shard in out.shards.values())
    assert not (tmp_path / "no").exists()


def interrupt(source: CheckpointSource, path: Path) -> None:
    with CheckpointSink(source, path, list(source.tensors.values())):
        assert len(left_over(path.parent)) == 1
        raise KeyboardInterrupt


def test_f4_without_commit_nothing_stays(model: Path, tmp_path: Path) -> None:
    with CheckpointSource(model) as source:
        with pytest.raises(KeyboardInterrupt):
            interrupt(source, tmp_path / "out")
        sink = CheckpointSink(source, tmp_path / "out", list(source.tensors.values()))
        with sink, pytest.raises(ValueError, match="not all is written"):
            sink.commit()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_f4_stale_directories_are_removed(model: Path, tmp_path: Path) -> None:
    stale = tmp_path / f".out.modelopt-{os.getpid()}-999999.tmp"
    shutil.copytree(model, stale)
    with CheckpointSource(model) as source:
        copy(source, tmp_path / "out")
    assert not stale.exists()


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "link", "fchmod"])
def test_f7_every_call_may_fail(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    old = make_sharded(tmp_path / "out")
    before = tree(old)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with CheckpointSource(model) as source:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError) as caught:  # noqa: PT011
                copy(source, old, overwrite=True)
        assert caught.value.errno == errno.EIO
        assert tree(old) == before
        assert not left_over(tmp_path)


def lacks_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C library without the call that exchanges two directories at once."""

    def no_library(*args: Any, **kwargs: Any) -> Any:
        raise OSError("not found")

    monkeypatch.setattr(ctypes, "CDLL", no_library)


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_overwrite(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "two renames":
        lacks_renameat2(monkeypatch)
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    with CheckpointSource(model) as source:
        copy(source, out)  # an empty directory is as good as none
        assert out.stat().st_mode & 0o777 == 0o750
        (out / "old").write_bytes(b"")
        before = tree(out)
        with pytest.raises(FileExistsError, match="overwrite=True") as caught:
            copy(source, out)
        assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, str(out))
        assert tree(out) == before
        copy(source, out, overwrite=True)
        assert "old" not in tree(out)
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(NotADirectoryError):
            copy(source, tmp_path / "file", overwrite=True)
    assert not left_over(tmp_path)


def test_two_renames_put_the_old_directory_back(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_sharded(tmp_path / "out")
    before = tree(old)
    lacks_renameat2(monkeypatch)
    real = os.rename
    calls = iter(range(100))

    def rename(a: Any, b: Any) -> None:
        # The 1st finds the destination taken, the 2nd puts that aside, the 3rd fails, the 4th puts it back.
        if Path(a).is_dir() and next(calls) == 2:
            raise OSError(errno.EIO, "no")
        real(a, b)

    with CheckpointSource(model) as source:
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match="no"):
            copy(source, old, overwrite=True)
    assert tree(old) == before
    assert not left_over(tmp_path)


def test_f6_the_source_is_never_the_destination(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    before = tree(model)
    with CheckpointSource(model) as source:
        for path in (model, tmp_path / "." / "model", tmp_path / "link", model / "sub", tmp_path):
            with pytest.raises(OptionError, match="must not be the source's directory, in it or around it; choose"):
                CheckpointSink(source, path, list(source.tensors.values()), overwrite=True)
    assert tree(model) == before


def test_what_cannot_be_copied_is_refused_first(model: Path, tmp_path: Path) -> None:
    (model / "more").symlink_to(tmp_path)
    with CheckpointSource(model) as source:
        with pytest.raises(ValueError, match="more: links to a directory"):
            copy(source, tmp_path / "out")
        (model / "more").unlink()
        os.mkfifo(model / "pipe")
        with pytest.raises(ValueError, match="pipe: not a regular file"):
            copy(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not left_over(tmp_path)


def test_hub_caches_of_links_are_copied_as_files(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for file in model.iterdir():
        if file.is_file():
            (cache / file.name).symlink_to(file)
    with CheckpointSource(cache) as source:
        copy(source, tmp_path / "out")
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    assert set(infos(ARRAYS)) == set(CheckpointSource(tmp_path / "out").tensors.values())


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".gguf"])
def test_h47_a_directory_gets_no_name_of_a_file(model: Path, suffix: str) -> None:
    before = sorted(model.parent.iterdir())
    said = rf"create: path must not end in \{suffix}, got .*; what is made of model is written as a directory$"
    with pytest.raises(mo.OptionError, match=said):
        mo.dequantize_file(model, model.parent / f"out{suffix}")
    assert sorted(model.parent.iterdir()) == before


@pytest.mark.parametrize("depth", [1, 2])
def test_a_directory_above_a_model_says_where_it_is(model: Path, tmp_path: Path, depth: int) -> None:
    """As a hub's cache: models--a--b/snapshots/<hash> has links to blobs."""
    inner = tmp_path / "cache" / "/".join(["snapshots", "0123"][-depth:])
    inner.mkdir(parents=True)
    for each in model.iterdir():
        (inner / each.name).symlink_to(each)
    said = rf"is in the directory; give what is in it: '{inner.relative_to(tmp_path / 'cache')}'$"
    with pytest.raises(FormatError, match=said):
        mo.inspect_file(tmp_path / "cache")
    assert mo.inspect_file(inner).tensors == mo.inspect_file(model).tensors


def test_a_directory_without_a_model_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    for name in ("onnx/model.onnx", "weights.hdf5", "vocab.txt"):
        (tmp_path / name).write_bytes(b"")
    said = r"is in the directory; give what is in it: 'weights.hdf5'; 'onnx/model.onnx'$"
    with pytest.raises(FormatError, match=said):
        mo.inspect_file(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(mo.UnsupportedError, match=r"it has an adapter, which is no model; merge it into"):
        mo.inspect_file(tmp_path)


@pytest.mark.parametrize("operation", ["quantize", "prune", "optimize", "dry run"])
def test_files_of_weights_that_come_along_are_told_where_they_are_large(tmp_path: Path, operation: str) -> None:
    """The same weights for another library, in another variant, or states of an optimizer: no ratio has them."""
    how: dict[str, Any] = {"quantize": {}, "prune": {"sparsity": 0.5}, "optimize": {"target_bpw": 6.0}}
    function = getattr(mo, f"{operation.replace('dry run', 'quantize')}_file")
    options = {**how.get(operation, {"dry_run": True}), "durable": False}
    source = directory(tmp_path / "model", bert())
    (source / "tokenizer.json").write_bytes(b"{}" * 1_000_000)
    (source / "sub").mkdir()
    (source / "sub" / "small.bin").write_bytes(b"1" * 100)
    assert not [text for text in function(source, tmp_path / "a", **options).warnings if "along" in text]
    nbytes = (source / "model.safetensors").stat().st_size
    (source / "model.fp16.safetensors").write_bytes(b"1" * nbytes)
    (source / "sub" / "optimizer.PT").write_bytes(b"1" * (2 * nbytes))
    told = [text for text in function(source, tmp_path / "b", **options).warnings if "along" in text]
    names = r"'sub/optimizer.PT', 'model.fp16.safetensors', 'sub/small.bin'"
    assert len(told) == 1
    assert re.fullmatch(rf"3 other files come along as they are, 3\.\d times as large .*: {names}; .*", told[0])
