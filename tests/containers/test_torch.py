"""Files of torch.save as sources (H37): what is read, and that nothing in a file is executed."""

import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torch_samples as ts
from checkpoints import read, weights
from modelopt_rs import compare_files, dequantize_file, files, inspect_file, prune_file, quantize_file
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError

W = weights((6, 8))
ARRAYS = {
    "a.weight": W,
    "a.bias": np.arange(6, dtype="<f8"),
    "n": np.array(7, "<i8"),
    "mask": np.array([True, False, True]),
    "bf": np.array([0x3F80, 0x4000], "<u2"),
    "half": np.ones((2, 3, 4), "<f2"),
    "empty": np.empty((0, 3), "<f4"),
}


def show(path: Path, **options: Any) -> dict[str, np.ndarray]:
    with files.open(path, **options) as source:
        return {name: source.read(name) for name in source.tensors}


def refuse(path: Path, match: str, kind: type[Exception] = FormatError, **options: Any) -> None:
    with pytest.raises(kind, match=match) as error:
        show(path, **options)
    assert str(path) in str(error.value)


def one(path: Path, body: bytes, data: bytes = bytes(16)) -> Path:
    return ts.archive(path, body, {"0": data})


FOUR = ts.storage("FloatStorage", "0", 4)


def test_an_archive_is_a_source(tmp_path: Path) -> None:
    """H37: shapes, dtypes, order and bytes; tiles give the same."""
    path = ts.save(tmp_path / "x.pt", ARRAYS)
    with files.open(path) as source:
        assert (source.container, source.nbytes, dict(source.metadata)) == (
            "torch",
            path.stat().st_size,
            {"format": "pt"},
        )
        assert list(source.tensors) == list(ARRAYS)
        assert source.tensors["bf"] == files.TensorInfo("bf", "BF16", (2,), 4)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(source.read(name), array, strict=True)
            tiles = [tile.array.tobytes() for tile in source.tiles(name, 16)]
            assert b"".join(tiles) == array.tobytes()
        with pytest.raises(KeyError, match="no tensor 'x'"):
            source.read("x")
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again.read("a.weight"), W)
        again.close()
    with pytest.raises(ValueError, match="closed"):
        source.read("a.weight")


def test_a_stream_of_before_is_a_source(tmp_path: Path) -> None:
    """H37: files without an archive, with views of storages."""
    big = np.arange(20, dtype="<f4")
    kinds = {"a": big, "b": np.arange(3, dtype="<i8")}
    view = ts.row(ts.atom("v"), ts.atom(5), ts.atom(10))
    body = ts.state(
        {
            "x": ts.tensor(ts.storage("FloatStorage", "a", 20), (4, 5), (5, 1)),
            "y": ts.tensor(ts.storage("FloatStorage", "a", 20, view), (3,), (2,), 1),
            "z": ts.plain(kinds["b"], "b", b"N"),
        }
    )
    found = show(ts.stream(tmp_path / "x.pth", body, kinds))
    np.testing.assert_array_equal(found["x"], big.reshape(4, 5))
    np.testing.assert_array_equal(found["y"], [6, 8, 10])
    np.testing.assert_array_equal(found["z"], kinds["b"])


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 4, 5), (11,), (1, 9), (9, 1)])
def test_views_are_read_in_the_order_of_their_rows(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """H37: transposed, stepped and offset views of one storage, with every way of cutting them."""
    base = np.arange(600, dtype="<f4")
    whole = base[20 : 20 + int(np.prod(shape))].reshape(shape)
    steps = tuple(slice(0, None, 2) for _ in shape)
    views = {"t": whole.T, "s": whole[steps], "c": np.moveaxis(whole, -1, 0), "o": whole[..., 1:]}
    body = {}
    for name, view in views.items():
        offset = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 4
        strides = tuple(n // 4 for n in view.strides)
        body[name] = ts.tensor(ts.storage("FloatStorage", "0", 600), view.shape, strides, offset)
    path = one(tmp_path / "x.pt", ts.state(body), base.tobytes())
    with files.open(path) as source:
        for name, view in views.items():
            np.testing.assert_array_equal(source.read(name), view, strict=True)
            for size in (4, 24, 100, 10_000):
                tiles = [tile.array.copy() for tile in source.tiles(name, size)]
                found = np.concatenate(tiles).reshape(view.shape) if tiles else np.empty(view.shape)
                np.testing.assert_array_equal(found, view)
            rows = source.tensors[name].rows
            part = [tile.array.copy() for tile in source.tiles(name, 24, range(rows // 3, rows))]
            if view.ndim > 1 and view.size:
                np.testing.assert_array_equal(np.concatenate(part), view.reshape(rows, -1)[rows // 3 :])


def test_a_large_transposed_tensor_is_read_in_pieces(tmp_path: Path) -> None:
    """H37: neither the whole storage is held, nor is it read again for each row."""
    base = np.arange(3000 * 2000, dtype="<f4").reshape(3000, 2000)
    view = ts.tensor(ts.storage("FloatStorage", "0", base.size), (2000, 3000), (1, 2000))
    path = one(tmp_path / "x.pt", ts.state({"w": view}), base.tobytes())
    with files.open(path) as source:
        tracemalloc.start()
        for tile in source.tiles("w", 4 << 20):
            assert (tile.array == base.T[tile.first_row : tile.first_row + len(tile.array)]).all()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(each.nbytes(1) for each in source.buffers("w")) == 1 << 20
    assert peak < 16 << 20


def test_two_names_of_one_storage_are_two_tensors(tmp_path: Path) -> None:
    """H37: tied weights."""
    tied = ts.tensor(ts.storage("FloatStorage", "0", 48), (6, 8), (8, 1))
    again = ts.called("torch._utils", "_rebuild_parameter", tied, b"\x88", b"}")
    path = one(tmp_path / "x.pt", ts.state({"a.weight": tied, "b.weight": again}), W.tobytes())
    assert {name: array.tobytes() for name, array in show(path).items()} == dict.fromkeys(
        ("a.weight", "b.weight"), W.tobytes()
    )
    report = quantize_file(path, tmp_path / "x.safetensors", include=["*"])
    assert report.totals.changed == 2


def test_dtypes_that_torch_has_no_storage_for(tmp_path: Path) -> None:
    """H37: float8 and unsigned integers lie in untyped storages."""
    of = ts.storage("UntypedStorage", "0", 16, module="torch.storage")
    hooks = b"}"
    body = {}
    for name, shape in (("float8_e4m3fn", (4, 2)), ("uint32", (2,)), ("bfloat16", (2, 3))):
        strides = (*shape[1:], 1)
        parts = (of, ts.atom(1), ts.atom(shape), ts.atom(strides), b"\x89", hooks, ts.named("torch", name))
        body[name] = ts.called("torch._utils", "_rebuild_tensor_v3", *parts)
    data = bytes(range(16))
    with files.open(one(tmp_path / "x.pt", ts.state(body), data)) as source:
        assert [info.dtype for info in source.tensors.values()] == ["F8_E4M3", "U32", "BF16"]
        assert [source.read(name).tobytes() for name in body] == [data[1:9], data[4:12], data[2:14]]


WRAPPED = {
    "checkpoint": lambda sd: ts.mapping(epoch=ts.atom(3), model_state_dict=sd, lr=ts.atom(0.1), args=b"N"),
    "lightning": lambda sd: ts.mapping(state_dict=sd, callbacks=ts.atom({"a": [1]}), loops=ts.atom(())),
    "callbacks": lambda sd: ts.mapping(
        state_dict=sd,
        callbacks=b"}"
        + ts.named("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        + ts.mapping(best=ts.called("omegaconf.dictconfig", "DictConfig") + ts.atom({"a": 1}) + b"b")
        + b"s",
    ),
    "twice": lambda sd: ts.mapping(model=ts.mapping(state_dict=sd)),
    "means": lambda sd: ts.mapping(ema=ts.mapping(module=sd, updates=ts.atom(3)), epoch=ts.atom(1)),
    "means of torchvision": lambda sd: ts.mapping(model_ema=sd, epoch=ts.atom(1)),
    "means of timm": lambda sd: ts.mapping(state_dict_ema=sd, arch=ts.atom("x")),
    "namespace": lambda sd: ts.mapping(
        model=sd,
        args=ts.named("argparse", "Namespace") + b")\x81" + ts.atom({"lr": 1}) + b"b",
        best=ts.called("numpy.core.multiarray", "scalar", ts.called("numpy", "dtype", ts.atom("f8")), ts.atom("x")),
    ),
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_forward_module."])
def test_a_state_dict_is_found_where_scripts_save_it(tmp_path: Path, how: str, prefix: str) -> None:
    """H37: under "state_dict", "model" and the like, with "module." before all names."""
    sd = ts.state({f"{prefix}fc.weight": ts.tensor(FOUR, (2, 2), (2, 1)), f"{prefix}n": ts.tensor(FOUR, (), ())})
    assert list(show(one(tmp_path / "x.pt", WRAPPED[how](sd)))) == ["fc.weight", "n"]


@pytest.mark.parametrize(
    "given",
    [
        "_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.fc.w",
        "layers.0._orig_mod.fc.w",
        "module.layers.0._checkpoint_wrapped_module._orig_mod.fc.w",
    ],
)
def test_what_wrappers_put_within_names_is_dropped(tmp_path: Path, given: str) -> None:
    t = ts.tensor(FOUR, (4,), (1,))
    other = "module.b" if given.startswith("module.") else "b"
    assert list(show(one(tmp_path / "x.pt", ts.state({given: t, other: t})))) == ["layers.0.fc.w", "b"]


def test_names_that_would_become_one_stay(tmp_path: Path) -> None:
    t = ts.tensor(FOUR, (4,), (1,))
    names = ["fc.w", "_orig_mod.fc.w", "_orig_mod.b"]
    assert list(show(one(tmp_path / "x.pt", ts.state(dict.fromkeys(names, t))))) == names


@pytest.mark.parametrize(("model", "means"), [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "ema")])
def test_of_a_model_and_its_means_the_model_is_taken_and_the_choice_is_said(
    tmp_path: Path, model: str, means: str
) -> None:
    t = ts.tensor(FOUR, (4,), (1,))
    body = ts.mapping(**{means: ts.state({"w": t, "b": t}), model: ts.state({"w": t})})
    with pytest.warns(UserWarning, match=f"left out: 2 under '{means}'; to take the means .* under '{means}' alone"):
        assert list(show(one(tmp_path / "x.pt", body))) == ["w"]


def test_a_part_of_a_model_that_is_called_as_means_are_stays_one(tmp_path: Path) -> None:
    t = ts.tensor(FOUR, (4,), (1,))
    body = ts.mapping(student=ts.state({"w": t}), ema=ts.state({"w": t}))
    assert list(show(one(tmp_path / "x.pt", body))) == ["student.w", "ema.w"]


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    t = ts.tensor(FOUR, (4,), (1,))
    assert list(show(one(tmp_path / "x.pt", ts.state({"module.a": t, "b": t})))) == ["module.a", "b"]
    nested = ts.mapping(g=ts.state({"w": t}), d=ts.mapping(blocks=b"](" + t + t + b"e"))
    assert list(show(one(tmp_path / "y.pt", nested))) == ["g.w", "d.blocks.0", "d.blocks.1"]
    assert list(show(one(tmp_path / "z.pt", t))) == ["tensor"]


def test_tensors_beside_the_model_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """H37: an optimizer's states are no weights; nobody is left to guess that they are gone."""
    t = ts.tensor(FOUR, (4,), (1,))
    body = ts.mapping(model=ts.state({"w": t}), optimizer=ts.mapping(state=ts.mapping(a=t, b=t)), best=t)
    with pytest.warns(UserWarning, match="left out: 2 under 'optimizer'; 1 under 'best'"):
        assert list(show(one(tmp_path / "x.pt", body))) == ["w"]
    array = ts.called("numpy.core.multiarray", "_reconstruct", ts.named("numpy", "ndarray"), ts.atom((0,)))
    with pytest.warns(UserWarning, match="left out: 1 under 'mean'"):
        assert list(show(one(tmp_path / "y.pt", ts.state({"w": t, "mean": array + b"Nb"})))) == ["w"]


def test_all_commands_take_it_and_write_safetensors(tmp_path: Path) -> None:
    """H37: quantize, prune, inspect, compare, dequantize."""
    path = ts.save(tmp_path / "x.bin", {"fc.weight": weights((64, 64)), "fc.bias": weights((64,))})
    assert [each.shape for each in inspect_file(path).tensors] == [(64, 64), (64,)]
    report = quantize_file(path, tmp_path / "q.safetensors", bits=8)
    assert report.totals.changed == 1
    assert compare_files(path, tmp_path / "q.safetensors").sqnr_db > 40
    dequantize_file(tmp_path / "q.safetensors", tmp_path / "d.safetensors")
    prune_file(path, tmp_path / "p.safetensors", sparsity=0.5)
    assert (read(tmp_path / "p.safetensors")["fc.weight"][1] == 0).mean() == 0.5
    dequantize_file(path, tmp_path / "same.safetensors")
    assert read(tmp_path / "same.safetensors")["fc.weight"][1].tobytes() == weights((64, 64)).tobytes()
    for suffix in (".pt", ".BIN", ".h5"):
        with pytest.raises(
            ValueError, match=rf"create: path must not end in \{suffix}, got .*is written as safetensors"
        ):
            quantize_file(path, tmp_path / f"q{suffix}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}" for name in ("d.safetensors", "p.safetensors", "q.safetensors", "same.safetensors", "x.bin")
    ]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_directory_with_bin_files_becomes_one_with_safetensors(tmp_path: Path, sharded: bool) -> None:
    """H37: config and tokenizer come along, the old shards don't."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "x"}')
    (model / "tokenizer.json").write_bytes(b"{}")
    arrays = {f"layers.{i}.fc.weight": weights((32, 32), i) for i in range(2)}
    if sharded:
        names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for name, (key, array) in zip(names, arrays.items(), strict=True):
            ts.save(model / name, {key: array})
        index = {"metadata": {"total_size": 8192}, "weight_map": dict(zip(arrays, names, strict=True))}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        expected = [name.replace("pytorch_", "").replace(".bin", ".safetensors") for name in names]
        expected += ["model.safetensors.index.json"]
    else:
        ts.save(model / "pytorch_model.bin", arrays)
        expected = ["model.safetensors"]
    out = tmp_path / "out"
    quantize_file(model, out, bits=8)
    assert sorted(p.name for p in out.iterdir()) == sorted([*expected, "config.json", "tokenizer.json"])
    assert compare_files(model, out).sqnr_db > 40
    if sharded:
        assert set(json.loads((out / expected[-1]).read_text())["weight_map"].values()) == set(expected[:2])
        (model / "pytorch_model-00003-of-00002.bin").write_bytes(b"")
        refuse(model, "shard 'pytorch_model-00003-of-00002.bin' is not in the index")


# What a hostile file may hold. `run` would make a file if it were called.

HOSTILE = {
    "os.system": lambda run: ts.called("os", "system", ts.atom(run)),
    "posix.system": lambda run: ts.called("posix", "system", ts.atom(run)),
    "eval": lambda run: ts.called("builtins", "eval", ts.atom(f"__import__('os').system({run!r})")),
    "exec": lambda run: ts.called("__builtin__", "exec", ts.atom("1")),
    "getattr": lambda run: ts.called("builtins", "getattr", named_os := ts.named("os", "path"), named_os),
    "newobj": lambda run: ts.named("subprocess", "Popen") + ts.row(ts.atom(run)) + b"\x81",
    "build": lambda run: (
        ts.named("collections", "OrderedDict")
        + b")R"
        + ts.mapping(__setstate__=ts.called("os", "system", ts.atom(run)))
        + b"b"
    ),
    "nested": lambda run: ts.called(
        "torch._tensor", "_rebuild_from_type_v2", ts.named("os", "system"), b"N", ts.row(ts.atom(run)), b"N"
    ),
    "inst": lambda run: b"(" + ts.atom(run) + b"ios\nsystem\n",
    "obj": lambda run: b"(" + ts.named("os", "system") + ts.atom(run) + b"o",
    "stack_global": lambda run: ts.atom("os") + ts.atom("system") + b"\x93" + ts.row(ts.atom(run)) + b"R",
    "dotted": lambda run: ts.atom("torch") + ts.atom("serialization.os.system") + b"\x93" + ts.row(ts.atom(run)) + b"R",
    "ext": lambda run: b"\x82\x01",
    "torch.load": lambda run: ts.called("torch", "load", ts.atom(run)),
    "numpy": lambda run: ts.called("numpy.f2py.diagnose", "run_command", ts.atom(run)),
}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("where", ["alone", "beside", "stream"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, how: str, where: str) -> None:
    """H37: a pickle that names what is no tensor is refused, whatever it does with it and wherever it stands."""
    mark = tmp_path / "executed"
    evil = HOSTILE[how](f"touch {mark}")
    tensor = ts.tensor(FOUR, (4,), (1,))
    path = tmp_path / "x.pt"
    if where == "stream":
        ts.stream(path, ts.state({"a": tensor, "b": evil}), {"0": np.zeros(4, "<f4")})
    else:
        one(path, evil if where == "alone" else ts.state({"a": tensor, "b": evil}))
    refuse(path, "asks for|has the instruction|calls a|is made of none", FormatError)
    assert not mark.exists()


def test_the_error_says_what_a_pickle_asks_for(tmp_path: Path) -> None:
    path = one(tmp_path / "x.pt", ts.called("__main__", "Net"))
    refuse(path, r"data.pkl: the pickle asks for '__main__.Net', .*nothing in a file is executed.*save its state_dict")


def deep(n: int) -> bytes:
    return b"N" + b"\x85" * n


BROKEN: dict[str, tuple[bytes, str]] = {
    "no stop": (b"", "damaged"),
    "empty stack": (b"R", "damaged"),
    "no mark": (b"t", "damaged"),
    "no memo": (b"h\x07", "damaged"),
    "persistent id": (ts.atom("0") + b"Q", "persistent id that is none of a storage"),
    "storage without size": (ts.storage("FloatStorage", "0", -1), "without type, key or size"),
    "storage of 2^63": (ts.storage("FloatStorage", "0", 1 << 63), "without type, key or size"),
    "storage of a bool": (
        ts.row(ts.atom("storage"), ts.named("torch", "FloatStorage"), ts.atom("0"), ts.atom("cpu"), b"\x88") + b"Q",
        "without type, key or size",
    ),
    "no storage": (ts.tensor(b"N", (4,), (1,)), "without a storage"),
    "beyond": (ts.tensor(FOUR, (5,), (1,)), r"shape \(5,\) that reaches beyond the 4 elements"),
    "strides": (ts.tensor(FOUR, (2, 2), (3, 1)), "reaches beyond"),
    "offset": (ts.tensor(FOUR, (4,), (1,), 1), "reaches beyond"),
    "negative stride": (ts.tensor(FOUR, (4,), (-1,)), "without shape, strides or offset"),
    "negative offset": (ts.tensor(FOUR, (1,), (1,), -1), "without shape, strides or offset"),
    "huge": (ts.tensor(FOUR, (1 << 62, 1 << 62), (1 << 62, 1)), "reaches beyond"),
    "2^63": (ts.tensor(FOUR, (1 << 63,), (0,)), "without shape, strides or offset"),
    "expanded": (ts.tensor(FOUR, (1 << 40,), (0,)), "expanded tensor"),
    "float shape": (ts.tensor(FOUR, (4.0,), (1,)), "without shape, strides or offset"),
    "ranks": (ts.tensor(FOUR, (4,), (1, 1)), "without shape, strides or offset"),
    "axes": (ts.tensor(FOUR, (1,) * 33, (1,) * 33), "33 axes"),
    "deep": (deep(20_000), "nests too deep"),
    "deep list": (b"]" * 90 + b"a" * 89, "nests too deep"),
    "deep key": (b"}" + deep(20_000) + b"Ns", "a tuple as a key"),
    "odd items": (b"}(NNNu", "damaged"),
    "cycle": (b"]q\x01h\x01a", "nests too deep"),
    "no tensor": (ts.atom({"a": 1}), "no tensor is in"),
    "bytearray": (b"\x96" + struct.pack("<Q", 1 << 40), "damaged"),
    "long text": (b"X\xff\xff\xff\x7fabc", "damaged"),
    "bytes of 2^60": (b"\x8e" + struct.pack("<Q", 1 << 60), "damaged"),
    "memo of 2^31": (b"Nr\xff\xff\xff\x7f0" + ts.state({}), "no tensor is in"),
    "twins": (
        ts.mapping(**{"a.b": ts.tensor(FOUR, (4,), (1,)), "a": ts.mapping(b=ts.tensor(FOUR, (4,), (1,)))}),
        "two tensors are named 'a.b'",
    ),
    "no name": (b"}(" + b"N" + ts.tensor(FOUR, (4,), (1,)) + b"u", "key must be text"),
    "surrogate": (b"}(X\x03\0\0\0\xed\xa0\x80" + ts.tensor(FOUR, (4,), (1,)) + b"u", "has no UTF-8"),
    "missing": (ts.tensor(ts.storage("FloatStorage", "7", 4), (4,), (1,)), "storage that is not in the file"),
    "short": (
        ts.tensor(ts.storage("FloatStorage", "0", 5), (4,), (1,)),
        "storage of 20 bytes, of which the file has 16",
    ),
    "append to a dict": (b"}Na", "appends to a dict"),
    "items of a list": (b"]NNs", "sets items of a list"),
    "key of 61 bits": (b"}" + ts.atom(2**61 - 1) + b"Ns", "more than 60 bits as a key"),
    "key of -2^70": (b"}" + ts.atom(-(2**70)) + b"Ns", "more than 60 bits as a key"),
    "note of 61 bits": (b"Np2305843009213693951\n", "notes a value under"),
    "note of -1": (b"Np-1\n", "notes a value under"),
    "no pairs": (ts.called("collections", "OrderedDict", b"](NNe"), "no pairs"),
    "parameter of nothing": (ts.called("torch._utils", "_rebuild_parameter", b"N", b"\x88", b"}"), "without a tensor"),
    "too few arguments": (ts.called("torch._utils", "_rebuild_tensor_v2", b"N"), "damaged"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_pickles_are_refused(tmp_path: Path, how: str) -> None:
    """H37: without a crash, and without memory for what they declare."""
    body, match = BROKEN[how]
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + body + (b"" if how == "no stop" else b"."))
        file.writestr("m/data/0", bytes(16))
    tracemalloc.start()
    refuse(path, match)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


GROWN = """
import resource, sys
from modelopt_rs import files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    files.open(sys.argv[1])
except ValueError as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def test_time_and_memory_are_bounded(tmp_path: Path) -> None:
    """H37: instructions, nested references, names and shared storages."""
    bomb = b"]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(50))
    refuse(one(tmp_path / "a.pt", bomb), "more than 2,000,000 parts", LimitError)
    refuse(one(tmp_path / "b.pt", b"N0" * 1_000_001), "more than 2,000,000 instructions", LimitError)
    copies = b"](" + b"N" * 3_000 + b"eq\x00](" + (ts.named("__builtin__", "set") + b"h\x00\x85R") * 3_000 + b"e"
    # In a process of its own: tracing two million allocations takes ten times as long as they do.
    done = subprocess.run([sys.executable, "-c", GROWN, one(tmp_path / "f.pt", copies)], capture_output=True, text=True)
    assert done.stdout.startswith("LimitError "), done.stderr
    assert "more than 2,000,000 parts" in done.stdout
    assert int(done.stdout.split()[1]) < 32 << 10
    t = ts.tensor(FOUR, (4,), (1,))
    path = one(tmp_path / "c.pt", ts.state({"a": t, "b": t}))
    refuse(path, "4 members of the archive exceed max_tensors=3", LimitError, max_tensors=3)
    refuse(path, "exceeds max_header=64", LimitError, max_header=64)
    five = one(tmp_path / "e.pt", ts.state({str(i): t for i in range(5)}))
    refuse(five, "more tensors than max_tensors=4", LimitError, max_tensors=4)
    names = b"(" + b"".join(ts.atom(f"{i:04}") + b"h\xfa" for i in range(2000)) + b"u"
    many = ts.tensor(ts.storage("FloatStorage", "0", 10_000), (10_000,), (1,))
    body = many + b"q\xfa0}" + names
    refuse(one(tmp_path / "d.pt", body, bytes(40_000)), "of the file as 80,000,000", LimitError)


def edited(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    """H37: members that are compressed, lie over each other, or are larger than the file."""
    body = ts.state({"a": ts.tensor(FOUR, (4,), (1,))})
    packed = ts.archive(tmp_path / "a.pt", body, {"0": bytes(16)}, compression=zipfile.ZIP_DEFLATED)
    refuse(packed, "is compressed", UnsupportedError)
    path = one(tmp_path / "b.pt", body)
    data = path.read_bytes()
    for n in (4, 30, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n])
        refuse(path, "no end|damaged|has no header")
    begin = data.index(b"PK\x01\x02")
    entry = data.index(b"PK\x01\x02", begin + 4)
    third = data.index(b"PK\x01\x02", entry + 4)

    def written(at: int, value: int, size: int = 4) -> Path:
        path.write_bytes(data[:at] + value.to_bytes(size, "little") + data[at + size :])
        return path

    for at in (third + 20, third + 24):
        refuse(written(at, 1 << 30), "is compressed")
    path.write_bytes(data[: third + 20] + struct.pack("<2I", 1 << 30, 1 << 30) + data[third + 28 :])
    refuse(path, "of 1,073,741,824 bytes reaches beyond")
    refuse(written(third + 42, 0), "lie over each other")
    refuse(written(third + 42, 5), "has no header")
    refuse(written(third + 8, 1, 2), "is encrypted", UnsupportedError)
    end = data.rindex(b"PK\x05\x06")
    refuse(written(end + 12, 1 << 31), "directory of the archive of 2,147,483,648 bytes", LimitError)
    refuse(written(end + 16, len(data)), "ends at")
    refuse(written(end + 10, 60, 2), "damaged after")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", ts.whole(body))
        file.writestr("m/data.pkm", ts.whole(body))
    edited(path, b"data.pkm", b"data.pkl")
    refuse(path, "two members of the archive are named 'm/data.pkl'")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.txt", "a")
    refuse(path, "none of torch.save: it has no data.pkl")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", ts.whole(body))
        file.writestr("m/constants.pkl", ts.whole(b"N"))
    refuse(path, "TorchScript archive", UnsupportedError)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", ts.whole(body))
        file.writestr("m/byteorder", "big")
    refuse(path, "not little-endian", UnsupportedError)


def test_broken_streams_are_refused(tmp_path: Path) -> None:
    """H37: files of before the archives, cut anywhere or with other storages than the tensors name."""
    array = np.arange(4, dtype="<f4")
    body = ts.state({"a": ts.plain(array, "0", b"N")})
    path = ts.stream(tmp_path / "x.pt", body, {"0": array})
    data = path.read_bytes()
    np.testing.assert_array_equal(show(path)["a"], array)
    for n in range(5, len(data)):
        path.write_bytes(data[:n])
        refuse(path, "damaged|beyond the file|cut short|none of torch|not in the file")
    refuse(ts.stream(path, body, {"0": array, "1": array}), "stands twice in the list of storages, or in no tensor")
    refuse(ts.stream(path, body, {}), "not in the file")
    refuse(ts.stream(path, body, {"0": array}, little=False), "not little-endian")
    refuse(ts.stream(path, body, {"0": array[:2]}), "of which the file has 8")
    two = ts.state({"a": ts.plain(array, "0", b"N"), "b": ts.plain(array.astype("<f8"), "0", b"N")})
    refuse(ts.stream(path, two, {"0": array}), "with two dtypes")
    view = ts.row(ts.atom("v"), ts.atom(2), ts.atom(3))
    refuse(ts.stream(path, ts.state({"a": ts.plain(array, "0", view)}), {"0": array}), "reaches beyond it")
    refuse(ts.stream(path, body, {"0": array}), "exceed max_header=100 bytes", LimitError, max_header=100)
    path.write_bytes(pickle.dumps({"a": np.float64}, 2).replace(b"numpy", b"posix"))
    refuse(path, "asks for 'posix.float64'")
    path.write_bytes(pickle.dumps([1, 2], 4))
    refuse(path, "is a pickle, but none of torch.save")


def test_what_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = ts.save(tmp_path / "x.pt", {"a": W})
    with files.open(path) as source:
        os.truncate(path, 60)
        with pytest.raises(FormatError, match="file shrank while reading"):
            source.read("a")


def test_dicts_of_python_2_are_made_of_pairs(tmp_path: Path) -> None:
    t = ts.tensor(FOUR, (4,), (1,))
    listed = b"](" + b"".join(b"](" + ts.atom(name) + t + b"e" for name in ("b", "a", "c")) + b"e"
    assert list(show(one(tmp_path / "x.pt", ts.called("collections", "OrderedDict", listed)))) == ["b", "a", "c"]


@pytest.mark.parametrize("function", ["_rebuild_tensor_v2", "_rebuild_tensor_v3"])
@pytest.mark.parametrize("name", ["neg", "conj"])
def test_a_tensor_that_torch_would_negate_on_reading_is_refused(tmp_path: Path, function: str, name: str) -> None:
    """Its numbers are not those of the storage: read as they lie they would have the wrong sign."""
    of, v3 = ts.storage("FloatStorage", "0", 4), function.endswith("v3")
    if v3:
        of = ts.storage("UntypedStorage", "0", 16, module="torch.storage")
    dtype = (ts.named("torch", "float32"),) if v3 else ()
    for lazily, said in (
        ({name: True}, f"with is_{name}\\(\\); save it after .resolve_{name}\\(\\)"),
        ({}, None),
        (None, None),
    ):
        parts = (of, ts.atom(0), ts.atom((4,)), ts.atom((1,)), b"\x89", b"}", *dtype, ts.atom(lazily))
        path = one(tmp_path / "x.pt", ts.state({"w": ts.called("torch._utils", function, *parts)}))
        if said is None:
            assert show(path)["w"].shape == (4,)
        else:
            refuse(path, said, UnsupportedError)


@pytest.mark.parametrize("key", ["opt_g", "discriminator_optimizer", "adam"])
def test_what_optimizers_have_saved_is_known_by_its_form(tmp_path: Path, key: str) -> None:
    states = ts.mapping(state=ts.mapping(a=ts.plain(W, "0")), param_groups=ts.atom([]))
    body = ts.mapping(generator=ts.state({"fc.weight": ts.plain(W, "0")}), **{key: states})
    path = ts.archive(tmp_path / "x.pt", body, {"0": W.tobytes()})
    with pytest.warns(UserWarning, match=f"tensors beside the model are left out: 1 under '{key}'$"):
        assert list(show(path)) == ["generator.fc.weight"]


@pytest.mark.parametrize("name", ["ComplexDoubleStorage", "complex32", "float4_e2m1fn_x2", "bits8", "uint4"])
def test_dtypes_that_safetensors_lacks_are_named(tmp_path: Path, name: str) -> None:
    refuse(
        one(tmp_path / "x.pt", ts.named("torch", name)),
        f"a tensor of torch.{name}, which safetensors",
        UnsupportedError,
    )


def test_a_tensor_without_numbers_is_refused(tmp_path: Path) -> None:
    body = ts.called("torch._utils", "_rebuild_meta_tensor_no_storage")
    refuse(one(tmp_path / "x.pt", ts.state({"w": body})), "on the device meta, which has no numbers", UnsupportedError)
