"""External data of ONNX models: cases E8, E11, E12, E15; a name out of a model leads nowhere but beneath it."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from modelopt_rs import FormatError, files  # noqa: E402
from modelopt_rs.containers.onnx import external  # noqa: E402
from modelopt_rs.files.onnx import OnnxSource  # noqa: E402
from onnx_samples import mlp, model, numbers, save, value  # noqa: E402

helper, TensorProto = onnx.helper, onnx.TensorProto
W = numbers((64, 32))


def point(path: Path, *entries: tuple[str, str], data: bytes | None = W.tobytes(), name: str = "data.bin") -> Path:
    """A model whose weight has external data with the entries, and a file of data."""
    proto = mlp()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in entries:
        weight.external_data.add(key=key, value=text)
    path.write_bytes(proto.SerializeToString())
    if data is not None:
        (path.parent / name).write_bytes(data)
    return path


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        OnnxSource(path, **options)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "m.onnx"


# A backslash is a character of a name, as onnxruntime has it on Linux.
@pytest.mark.parametrize(
    "location", ["data.bin", "./data.bin", "sub/data.bin", "sub/../data.bin", "sub\\data.bin", "..\\data.bin"]
)
def test_e11_beneath_the_directory(path: Path, location: str) -> None:
    (path.parent / "sub").mkdir()
    point(path, ("location", location), name=location)
    if "/.." in location:
        refused(path, "location 'sub/../data.bin' of external data must not leave the model's directory")
        return
    with OnnxSource(path) as source:
        np.testing.assert_array_equal(source.read("w"), W)


def test_a_file_that_is_spelled_in_two_ways_is_counted_once(path: Path) -> None:
    proto = mlp()
    for i, weight in enumerate(proto.graph.initializer):
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=("data.bin", "./data.bin")[i % 2])
        weight.external_data.add(key="length", value=str(4 * int(np.prod(weight.dims))))
        weight.external_data.add(key="offset", value=str(i * W.nbytes))
    assert len(proto.graph.initializer) > 1
    path.write_bytes(proto.SerializeToString())
    (path.parent / "data.bin").write_bytes(W.tobytes() * len(proto.graph.initializer))
    with OnnxSource(path) as source:
        assert source.nbytes == sum(file.stat().st_size for file in path.parent.iterdir())


LOCATIONS = {
    "": "must be the path of a file",
    ".": "must be the path of a file",
    "/etc/passwd": "must be the path of a file, relative to the model's directory",
    "../secret.bin": "must not leave the model's directory",
    "a/../../secret.bin": "must not leave the model's directory",
    "a//b": "must be the path of a file",
    "data.bin/": "must be the path of a file",
    "data.bin\0.txt": "can't be a file name",
    "/proc/self/fd/0": "must be the path of a file",
    "x" * 5000: "is longer than 4,096 characters",
    "x" * 300: "can't be a file name",
    "absent.bin": "external data file 'absent.bin' is missing",
    "data.bin/data.bin": "is, or lies behind, a symbolic link",
    "sub": "is not a regular file",
    "\x1b[31m": r"external data file '\\x1b\[31m' is missing",
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_e11_locations_that_are_refused(path: Path, location: str) -> None:
    (path.parent.parent / "secret.bin").write_bytes(W.tobytes())
    (path.parent / "sub").mkdir()
    refused(point(path, ("location", location)), LOCATIONS[location])


@pytest.mark.parametrize("what", ["link", "directory", "dangling", "proc"])
def test_e11_symbolic_links_are_refused(path: Path, what: str) -> None:
    outside = path.parent.parent / "outside"
    outside.mkdir()
    (outside / "data.bin").write_bytes(W.tobytes())
    location = {"directory": "sub/data.bin"}.get(what, "link.bin")
    point(path, ("location", location), data=None)
    if what == "directory":
        (path.parent / "sub").symlink_to(outside)
    else:
        target = {"link": outside / "data.bin", "dangling": outside / "absent", "proc": "/proc/self/fd/0"}[what]
        (path.parent / "link.bin").symlink_to(target)
    refused(path, "is, or lies behind, a symbolic link; allow_symlinks_under=DIR accepts")
    refused(path, "symbolic link", allow_symlinks_under=path.parent)
    if what in ("link", "directory"):
        with OnnxSource(path, allow_symlinks_under=outside) as source:
            np.testing.assert_array_equal(source.read("w"), W)
        # A link beneath the allowed directory that leaves it again.
        (outside / "data.bin").unlink()
        (outside / "data.bin").symlink_to("/etc/passwd")
        refused(path, "symbolic link", allow_symlinks_under=outside)


def test_e11_a_hub_cache(tmp_path: Path) -> None:
    """The model and its data are links from a snapshot to blobs, as in the cache of Hugging Face."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    point(blobs / "aaaa", ("location", "m.onnx_data"), name="bbbb")
    (snapshot / "m.onnx").symlink_to("../../blobs/aaaa")
    (snapshot / "m.onnx_data").symlink_to("../../blobs/bbbb")
    refused(snapshot / "m.onnx", "symbolic link")
    with files.open(snapshot / "m.onnx", allow_symlinks_under=tmp_path) as opened:
        assert list(opened.tensors) == ["w"]
    with OnnxSource(snapshot / "m.onnx", allow_symlinks_under=tmp_path) as source:
        np.testing.assert_array_equal(source.read("w"), W)


def test_e11_hard_links_need_leave(path: Path) -> None:
    point(path, ("location", "data.bin"))
    os.link(path.parent / "data.bin", path.parent.parent / "other.bin")
    refused(path, "external data file 'data.bin' has 2 names; a copy has one, and .* takes this")
    (path.parent / "data.bin").rename(path.parent / "old")
    shutil.copy(path.parent / "old", path.parent / "data.bin")
    with OnnxSource(path) as source:
        np.testing.assert_array_equal(source.read("w"), W)
    (path.parent / "old").replace(path.parent / "data.bin")
    with OnnxSource(path, allow_hard_links=True) as source:
        np.testing.assert_array_equal(source.read("w"), W)


def test_e11_pipes_and_sockets_do_not_block(path: Path) -> None:
    point(path, ("location", "pipe"), data=None)
    os.mkfifo(path.parent / "pipe")
    refused(path, "external data file 'pipe' is not a regular file")
    (path.parent / "pipe").unlink()
    os.mknod(path.parent / "pipe", 0o140600)  # a socket
    refused(path, "external data file 'pipe' is not a regular file")


def test_e11_other_errors_keep_their_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point(path, ("location", "data.bin"))
    real = os.open

    def denied(name: Any, *args: Any, **kwargs: Any) -> int:
        if name == "data.bin":
            raise PermissionError(13, "Permission denied", name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError) as caught:
        OnnxSource(path)
    assert caught.value.filename == str(path.parent / "data.bin")


ENTRIES: dict[str, tuple[list[tuple[str, str]], str]] = {
    "no location": ([("offset", "0")], "initializer 'w': external data without a location"),
    "unknown key": ([("location", "data.bin"), ("basepath", "/etc")], "unknown key 'basepath' of external data"),
    "attribute": ([("location", "data.bin"), ("__class__", "x")], "unknown key '__class__' of external data"),
    "location twice": ([("location", "data.bin"), ("location", "/etc/passwd")], "key 'location' of external data s"),
    "offset -1": ([("location", "data.bin"), ("offset", "-1")], "offset '-1' of external data must be a decimal num"),
    "offset 0x0": ([("location", "data.bin"), ("offset", "0x0")], "must be a decimal number"),
    "offset +1": ([("location", "data.bin"), ("offset", "+1")], "must be a decimal number"),
    "offset 1_0": ([("location", "data.bin"), ("offset", "1_0")], "must be a decimal number"),
    "offset digits": ([("location", "data.bin"), ("offset", "٣")], "must be a decimal number"),
    "offset empty": ([("location", "data.bin"), ("offset", "")], "must be a decimal number"),
    "offset 2^63": ([("location", "data.bin"), ("offset", str(2**63))], "must be a decimal number"),
    "offset huge": ([("location", "data.bin"), ("offset", "9" * 5000)], "must be a decimal number"),
    "length 1.0": ([("location", "data.bin"), ("length", "1.0")], "length '1.0' of external data must be a decimal"),
    "length other": ([("location", "data.bin"), ("length", "8")], "external data of 8 bytes, its shape and type need"),
    "past the end": ([("location", "data.bin"), ("offset", "1")], "offset 1 [+] length 8,192 exceeds file length 8,1"),
    "far past": ([("location", "data.bin"), ("offset", str(2**63 - 1))], "exceeds file length 8,192"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_e12_entries(path: Path, name: str) -> None:
    entries, match = ENTRIES[name]
    refused(point(path, *entries), match)


def test_e12_all_keys(path: Path) -> None:
    """The length may be left out, and the data be longer than it: what onnx.load does not accept."""
    data = b"xyz" + W.tobytes() + b"more"
    point(path, ("location", "data.bin"), ("offset", "3"), ("length", "8192"), ("checksum", "0"), data=data)
    with OnnxSource(path) as source:
        np.testing.assert_array_equal(source.read("w"), W)
    point(path, ("location", "data.bin"), ("offset", "3"), data=data)
    with OnnxSource(path) as source:
        np.testing.assert_array_equal(source.read("w"), W)
    with pytest.raises(ValueError, match=r"reshape|size"):
        onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0])


def test_no_descriptor_is_left_open(path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for entries, match in ENTRIES.values():
        refused(point(path, *entries), match)
    for location, match in LOCATIONS.items():
        if location != "sub":
            refused(point(path, ("location", location)), match)
    point(path, ("location", "data.bin"))
    OnnxSource(path).close()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_strings_are_never_external(path: Path) -> None:
    point(path, ("location", "data.bin"))
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].data_type = TensorProto.STRING
    path.write_bytes(proto.SerializeToString())
    refused(path, "strings must stand in the tensor itself")


def many(path: Path, offsets: list[int], rows: int = 16) -> Path:
    """A model whose weights are parts of one file."""
    nodes, tensors = [], []
    for i, offset in enumerate(offsets):
        nodes.append(helper.make_node("Add", ["x" if i == 0 else f"h{i - 1}", f"w{i}"], [f"h{i}"]))
        tensor = TensorProto(name=f"w{i}", dims=[rows, 16], data_type=1, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="data.bin")
        tensor.external_data.add(key="offset", value=str(offset))
        tensors.append(tensor)
    last = f"h{len(offsets) - 1}"
    graph = helper.make_graph(nodes, "g", [value("x", [rows, 16])], [value(last, [rows, 16])], tensors)
    path.write_bytes(model(graph).SerializeToString())
    (path.parent / "data.bin").write_bytes(bytes(max(offsets) + rows * 64))
    return path


def test_e8_overlaps_only_if_the_same(path: Path) -> None:
    OnnxSource(many(path, [0, 1024, 0, 5000])).close()
    for offsets in ([0, 1000], [1000, 0], [0, 1], [0, 0, 512], [2048, 0, 1024, 3071]):
        refused(many(path, offsets), "its external data overlap another tensor's")
    OnnxSource(many(path, [0, 1, 2], rows=0)).close()


def test_small_external_tensors_are_in_memory(path: Path) -> None:
    with OnnxSource(save(path, mlp(), external=True)) as source:
        assert list(source.tensors) == ["w"]
    np.testing.assert_array_equal(source.model.graph.initializers["b"].const_value.numpy(), numbers((32,), 1))


def each_in_its_own(path: Path, count: int) -> Path:
    many(path, [0] * count)
    proto = onnx.load(path, load_external_data=False)
    for i, tensor in enumerate(proto.graph.initializer):
        tensor.external_data[0].value = f"w{i}"
        (path.parent / f"w{i}").write_bytes(numbers((16, 16), i).tobytes())
    path.write_bytes(proto.SerializeToString())
    return path


def test_more_files_than_are_kept_open(path: Path) -> None:
    """Some exporters give each weight its own file: not all are open at once, threads may read them together."""
    count = 3 * external.MAX_OPEN
    each_in_its_own(path, count)
    with OnnxSource(path) as source:
        assert len(os.listdir("/proc/self/fd")) < 2 * external.MAX_OPEN  # noqa: PTH208
        errors: list[BaseException] = []

        def read(step: int) -> None:
            try:
                for i in range(count):
                    i = i * step % count
                    assert source.read(f"w{i}").tobytes() == numbers((16, 16), i).tobytes()
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=read, args=(step,)) for step in (1, 5, 7, 11)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


@pytest.mark.parametrize("change", ["shrinks", "is replaced", "becomes a link"])
def test_e15_data_that_change_while_open(path: Path, change: str) -> None:
    each_in_its_own(path, external.MAX_OPEN + 1)
    first, last = path.parent / "w0", path.parent / f"w{external.MAX_OPEN}"
    changes: dict[str, Callable[[Path], Any]] = {
        "shrinks": lambda file: os.truncate(file, 1000),
        "is replaced": lambda file: (file.unlink(), file.write_bytes(bytes(1024))),
        "becomes a link": lambda file: (file.rename(file.with_suffix(".x")), file.symlink_to(file.with_suffix(".x"))),
    }
    with OnnxSource(path) as source:
        changes[change](first)  # is not open any more
        with pytest.raises(FormatError, match=r"file was replaced while reading|symbolic link"):
            source.read("w0")
        changes[change](last)
        if change == "shrinks":
            with pytest.raises(FormatError, match=r"w64: file shrank while reading"):
                source.read("w64")
        else:
            assert source.read("w64").tobytes() == numbers((16, 16), 64).tobytes()
    with pytest.raises(ValueError, match="the file is closed"):
        source.model.graph.initializers["w64"].const_value.numpy()


def hard_link(path: Path) -> Path:
    point(path, ("location", "data.bin"))
    os.link(path.parent / "data.bin", path.parent / "other.bin")
    return path


# What onnx.load reads and we refuse, each on purpose.
REFUSED_BY_US_ONLY: dict[str, Callable[[Path], Path]] = {
    "parts that overlap partly: no writer makes them, and they hide what is read": lambda path: many(path, [0, 512]),
    "a part beyond the file, if nobody asks for it": lambda path: point(path, ("location", "data.bin"), data=b""),
}


@pytest.mark.parametrize("why", REFUSED_BY_US_ONLY)
def test_e20_what_onnx_reads_and_we_refuse(path: Path, why: str) -> None:
    REFUSED_BY_US_ONLY[why](path)
    onnx.load(path)
    refused(path, "overlap|exceeds file length")


@pytest.mark.parametrize("build", [hard_link, lambda path: point(path, ("location", "../models/data.bin"))])
def test_e20_what_both_refuse(path: Path, build: Callable[[Path], Path]) -> None:
    build(path)
    if build is not hard_link or tuple(map(int, onnx.__version__.split(".")[:2])) > (1, 20):
        with pytest.raises((onnx.checker.ValidationError, ValueError)):
            onnx.load(path)
    refused(path, "names; a copy|must not leave")
