"""Files of Keras as sources (H37): HDF5 by itself and in an archive. The files are made by h5py."""

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

import modelopt_rs as mo  # noqa: E402
from checkpoints import read, weights  # noqa: E402
from modelopt_rs import compare_files, dequantize_file, files, inspect_file, prune_file  # noqa: E402
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError  # noqa: E402

ARRAYS = {
    "layers/dense/vars/0": weights((24, 16)),
    "layers/dense/vars/1": weights((16,)),
    "layers/embedding/vars/0": weights((5, 3)).astype("<f2"),
    "vars/0": np.array(7, "<i8"),
    "vars/1": np.array([True, False]),
    "vars/2": np.array([[0x3F80], [0x4000]], "<u2").view("V2"),
}


def save(path: Path, arrays: dict[str, Any], **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **(options if np.ndim(array) else {}))
    return path


def archive(path: Path, inner: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("config.json", "{}")
        file.write(inner, "model.weights.h5")
    return path


def check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with files.open(path) as source:
        assert source.container == "keras"
        assert source.nbytes == path.stat().st_size
        assert set(source.tensors) == set(arrays)
        for name, array in arrays.items():
            assert source.tensors[name].shape == array.shape
            assert source.read(name).tobytes() == array.tobytes()
            for size in (8, 100, 1 << 20):
                assert b"".join(tile.array.tobytes() for tile in source.tiles(name, size)) == array.tobytes()
        with pytest.raises(KeyError, match="no tensor"):
            source.read("x")
        again = pickle.loads(pickle.dumps(source))
        assert list(again.tensors) == list(source.tensors)
        again.close()
    with pytest.raises(ValueError, match="closed"):
        source.read("vars/0")


def refuse(path: Path, match: str, kind: type[Exception] = FormatError, **options: Any) -> None:
    with pytest.raises(kind, match=match) as error:
        files.open(path, **options)
    assert str(path) in str(error.value)


def test_a_file_of_weights_is_a_source(tmp_path: Path) -> None:
    """H37: by itself, and in an archive."""
    path = save(tmp_path / "x.weights.h5", ARRAYS)
    check(path, ARRAYS)
    check(archive(tmp_path / "x.keras", path), ARRAYS)
    with files.open(path) as source:
        assert {name: info.dtype for name, info in source.tensors.items()} == dict(
            zip(ARRAYS, ("F32", "F32", "F16", "I64", "BOOL", "BF16"), strict=True)
        )
        assert not any(source.buffers(name) for name in source.tensors)


@pytest.mark.parametrize("options", [{"chunks": True}, {"compression": "gzip", "shuffle": True}, {"fletcher32": True}])
def test_chunks_are_decoded(tmp_path: Path, options: dict[str, Any]) -> None:
    check(save(tmp_path / "x.h5", ARRAYS, **options), ARRAYS)


def test_big_endian_numbers_are_turned(tmp_path: Path) -> None:
    path = save(tmp_path / "x.h5", {"w": weights((3, 4)).astype(">f4")})
    with files.open(path) as source:
        np.testing.assert_array_equal(source.read("w"), weights((3, 4)), strict=True)


def test_what_is_beside_the_model_is_left_out_with_a_warning(tmp_path: Path) -> None:
    """H37: the states of the optimizer; files of Keras 2 have their weights in a group."""
    path = save(tmp_path / "x.h5", {"model_weights/fc/kernel:0": weights((2, 2)), "optimizer_weights/m": weights((2,))})
    with pytest.warns(UserWarning, match="left out: 1 under 'optimizer_weights'"), files.open(path) as source:
        assert list(source.tensors) == ["fc/kernel:0"]


def test_commands_take_it_and_write_safetensors(tmp_path: Path) -> None:
    """H37: inspect, prune, compare, dequantize."""
    path = archive(tmp_path / "x.keras", save(tmp_path / "x.h5", ARRAYS))
    assert len(inspect_file(path).tensors) == len(ARRAYS)
    out = tmp_path / "out.safetensors"
    dequantize_file(path, out)
    assert {name: each[1].tobytes() for name, each in read(out).items()} == {
        name: array.tobytes() for name, array in ARRAYS.items()
    }
    assert compare_files(path, out).changed == 0
    with pytest.raises(ValueError, match=r"path must not end in \.keras"):
        dequantize_file(path, tmp_path / "out.keras")
    assert prune_file(path, tmp_path / "p.safetensors", sparsity=0.5, include=["*/dense/vars/0"]).totals.changed == 1


def test_files_that_reach_out_are_refused(tmp_path: Path) -> None:
    """H37: links, external and virtual datasets are ways to read other files."""
    other = save(tmp_path / "other.h5", {"w": weights((4,))})
    (tmp_path / "raw").write_bytes(bytes(16))
    path = tmp_path / "x.h5"
    for link in (h5py.ExternalLink(str(other), "/w"), h5py.SoftLink("/w")):
        with h5py.File(path, "w") as file:
            file["a"] = link
        refuse(path, "'a' is a link, which is not followed", UnsupportedError)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (4,), "<f4", external=[(str(tmp_path / "raw"), 0, 16)])
    refuse(path, "'a' lies in another file", UnsupportedError)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((4,), "<f4")
        layout[:] = h5py.VirtualSource(str(other), "w", (4,))
        file.create_virtual_dataset("a", layout)
    refuse(path, "'a' lies in another file", UnsupportedError)
    with h5py.File(path, "w") as file:
        file["g/inner"] = file.create_group("g2")
        file["g2/outer"] = file["g"]
    refuse(path, "groups nest too deep")


def test_what_is_not_stored_is_refused(tmp_path: Path) -> None:
    """H37: a dataset may declare any size without having it."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (1 << 40, 1 << 20), "<f4", chunks=(1, 1 << 10))
    refuse(path, "dataset 'a' of 4,611,686,018,427,387,904 bytes has 0 in the file", LimitError)
    save(path, {"a": np.array(["x"], "S4")})
    refuse(path, "dataset 'a' has the dtype", UnsupportedError)
    save(path, {"a": weights((64,))}, compression="lzf")
    refuse(path, "a filter that is not read", UnsupportedError)
    save(path, {str(i): weights((2,)) for i in range(5)})
    refuse(path, "than max_tensors=4", LimitError, max_tensors=4)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.h5", ARRAYS)
    data = path.read_bytes()
    for n in (8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n])
        refuse(path, "HDF5 can't read it")
    path.write_bytes(data)
    refuse(archive(tmp_path / "a.keras", path, zipfile.ZIP_DEFLATED), "is compressed", UnsupportedError)
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as file:
        file.writestr("x", "y")
    refuse(tmp_path / "b.keras", "none of Keras: it has no model.weights.h5")


def test_an_archive_of_keras_is_known_by_its_suffix_in_any_case_or_named(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(UnsupportedError, match=r"x\.zip: is an archive of Keras; name it \.keras"):
        files.open(tmp_path / "x.zip")
    (tmp_path / "x.zip").rename(tmp_path / "x.KERAS")
    with pytest.raises(FormatError, match=r"x\.KERAS: HDF5 can't read it"):
        files.open(tmp_path / "x.KERAS")


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.h5", ARRAYS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'keras-files: pip install "modelopt_rs\[keras-files\]"'):
        files.open(path)


def test_a_crop_of_a_file_of_keras_names_the_ways_that_there_are(tmp_path: Path) -> None:
    source = save(tmp_path / "a.weights.h5", {"layers/dense/vars/0": np.ones((8, 8), np.float32)})
    with pytest.raises(mo.OptionError, match=r"what must be left out for a file of Keras: .* --groups\), or export"):
        mo.crop_file(source, tmp_path / "b.safetensors", what="ffn", keep=0.5)


@pytest.mark.parametrize(
    "names",
    [
        ("layers/dense/vars/0", "layers/conv2d/vars/0", "layers/embedding/vars/0", "layers/dense/vars/1"),
        ("dense/dense/kernel:0", "conv/conv/kernel:0", "embedding/embedding/embeddings:0", "dense/dense/bias:0"),
    ],
)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_of_keras_are_quantized_by_their_plain_names(tmp_path: Path, names: tuple[str, ...], bits: int) -> None:
    """H37: where it is asked for, as no loader reads them; `dequantize` and `compare` do, by the same names."""
    rng = np.random.default_rng(0)
    shapes = ((64, 96), (3, 3, 8, 64), (50, 32), (96,))
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}
    source, out = save(tmp_path / "a.weights.h5", arrays), tmp_path / "q.safetensors"
    report = mo.quantize_file(source, out, bits=bits, durable=False)
    assert report.totals.changed == 0
    assert any("only_dequantize (--only-dequantize) has dequantize do it" in each for each in report.warnings)
    options: dict[str, Any] = {"bits": bits, "only_dequantize": True, "uniform": True, "overwrite": True}
    report = mo.quantize_file(source, out, include=[names[2]], durable=False, **options)
    assert [tensor.decision for tensor in report.tensors].count("quantize") == 3
    mo.dequantize_file(out, tmp_path / "b.safetensors", durable=False)
    with mo.files.open(tmp_path / "b.safetensors") as back:
        assert {name: info.shape for name, info in back.tensors.items()} == dict(zip(names, shapes, strict=True))
        for name in names[:3]:
            lost = np.linalg.norm(back.read(name) - arrays[name]) / np.linalg.norm(arrays[name])
            assert lost < {8: 0.02, 4: 0.15, 2: 0.5}[bits]
    assert mo.compare_files(source, out).only_in_a == mo.compare_files(source, out).only_in_b == ()


def test_weights_of_keras_are_pruned_only_where_no_axis_counts(tmp_path: Path) -> None:
    """Theirs are [in, out]: rows are no outputs."""
    arrays = {"layers/dense/vars/0": np.arange(64, dtype=np.float32).reshape(8, 8), "layers/dense/vars/1": np.ones(8)}
    source = save(tmp_path / "a.weights.h5", arrays)
    report = mo.prune_file(source, tmp_path / "b.safetensors", sparsity=0.5, durable=False)
    assert report.totals.sparsity_after == 0.5
    for options in ({"n": 2, "m": 4}, {"sparsity": 0.5, "scope": "row"}):
        report = mo.prune_file(source, tmp_path / "c.safetensors", overwrite=True, durable=False, **options)
        assert "isn't clear: a weight of Keras" in report.tensors[0].reason
