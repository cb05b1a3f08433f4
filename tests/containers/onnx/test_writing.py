"""Writing ONNX models: hazards F1 to F8 and F10 to F13, as one file and with external data."""

import errno
import hashlib
import os
import re
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

import modelopt_rs as mo  # noqa: E402
from files_samples import left_over  # noqa: E402
from modelopt_rs.containers import placing  # noqa: E402
from modelopt_rs.containers.onnx import sink as sink_module  # noqa: E402
from modelopt_rs.files import TensorInfo  # noqa: E402
from modelopt_rs.files.onnx import OnnxSink, OnnxSource, placeholder  # noqa: E402
from onnx_samples import copy, mlp, numbers, resave, save  # noqa: E402
from onnx_writing import W, data_files, graph, weight, write  # noqa: E402

OLD = b"what was there"
DATA = re.compile(r"m\.onnx-[0-9a-f]{16}\.data")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.onnx"


@pytest.fixture(params=[False, True], ids=["inline", "external"])
def external(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["unnamed", "named"])
def temporary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both sorts of temporary: a file system without O_TMPFILE gets the named one."""
    if request.param == "named":
        real = os.open

        def no_tmpfile(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not supported", str(path))
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", no_tmpfile)
    return str(request.param)


def test_writes_and_reads_back(path: Path, external: bool, temporary: str) -> None:
    model, tensors = graph()
    with OnnxSink(path, model, tensors, external=external) as sink:
        assert sink.tensors == tuple(tensors)
        assert not path.exists()
        assert len(left_over(path.parent)) == (external or temporary == "named")
        sink.write("w", W)
        sink.commit()
    assert not left_over(path.parent)
    assert len(data_files(path.parent)) == external
    assert all(DATA.fullmatch(name) for name in data_files(path.parent))
    np.testing.assert_array_equal(weight(path), W)
    onnx.checker.check_model(path)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]), W)
    with pytest.raises(ValueError, match="has no values"):
        model.graph.initializers["w"].const_value.numpy()  # the model is as it was


def test_f9_outline_is_the_model_without_the_elements_of_what_is_streamed(path: Path, external: bool) -> None:
    """The checker takes it, and refuses in it what it refuses in the model."""
    model, tensors = graph((8192, 32))
    with OnnxSink(path, model, tensors, external=external) as sink:
        outline = sink.outline()
        assert len(outline) < 1000
        onnx.checker.check_model(outline)
        found = {tensor.name: tensor for tensor in onnx.ModelProto.FromString(outline).graph.initializer}
        assert found["w"].data_type == onnx.TensorProto.FLOAT
        assert list(found["w"].dims) == [0]
        assert not found["w"].external_data
        bias = model.graph.initializers["b"].const_value.numpy()
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found["b"]), bias)
    model.graph.node(0).op_type = "Matmul"
    with OnnxSink(path, model, tensors, external=external) as sink:
        outline = sink.outline()
    with pytest.raises(onnx.checker.ValidationError, match="No Op registered for Matmul"):
        onnx.checker.check_model(outline)


def test_staged_is_loaded_before_commit(path: Path, external: bool, temporary: str) -> None:
    """By the checker and onnxruntime here, and by another process; and after it what is committed is the same."""
    model, tensors = graph()
    x = numbers((2, 64), 3)
    with OnnxSink(path, model, tensors, external=external) as sink:
        sink.write("w", W[:10])
        with pytest.raises(ValueError, match=r"not all is written: tensor 'w' has 1,280 of 8,192 bytes"):
            sink.staged()
        sink.write("w", W[10:])
        staged = sink.staged()
        assert sink.staged() == staged
        onnx.checker.check_model(staged)
        session = onnxruntime.InferenceSession(str(staged), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ W + numbers((32,), 1), rtol=1e-4, atol=1e-4)
        with OnnxSource(staged) as source:
            np.testing.assert_array_equal(source.read("w"), W)
        script = "import onnx, sys; print(onnx.load(sys.argv[1]).graph.name)"
        shown = subprocess.run([sys.executable, "-c", script, staged], capture_output=True, text=True, check=True)
        assert shown.stdout == "mlp\n"
        assert not path.exists()
        sink.commit()
        with pytest.raises(ValueError, match="committed or aborted"):
            sink.staged()
    np.testing.assert_array_equal(weight(path), W)
    assert not left_over(path.parent)


def test_wrong_arrays_change_nothing(path: Path, external: bool) -> None:
    model, tensors = graph()
    with OnnxSink(path, model, tensors, external=external) as sink:
        for array, error, match in [
            (W.astype(np.float64), TypeError, "write: tensor 'w' is F32, wants float32, got float64"),
            (W.T, ValueError, r"has rows of 32, got an array of shape \(32, 64\)"),
            (np.zeros((65, 32), np.float32), ValueError, "has 8,192 bytes, got 8,320 after 0"),
        ]:
            with pytest.raises(error, match=match):
                sink.write("w", array)
        with pytest.raises(ValueError, match="no tensor 'x' was announced"):
            sink.write("x", W)
        sink.write("w", W)
        sink.commit()
        with pytest.raises(ValueError, match="committed or aborted"):
            sink.write("w", W[:0])
    np.testing.assert_array_equal(weight(path), W)


def test_models_that_cannot_be_written_are_refused(path: Path) -> None:
    model, tensors = graph()
    wrong = {
        "tensor 'v' must be an initializer of the model": [*tensors, TensorInfo("v", "F32", (1,), 4)],
        r"tensor 'w' is F32 \(64, 32\) in the model, got F16": [TensorInfo("w", "F16", (64, 32), 4096)],
        r"got F32 \(32, 64\) of 8,192 bytes": [TensorInfo("w", "F32", (32, 64), 8192)],
        r"got F32 \(64, 32\) of 8,191 bytes": [TensorInfo("w", "F32", (64, 32), 8191)],
        "two tensors have one name": tensors * 2,
        "tensor 'w' must be in tensors, or its values in memory, got LazyTensor": [],
    }
    for match, infos in wrong.items():
        with pytest.raises(ValueError, match=f"OnnxSink: .*{match}"):
            OnnxSink(path, model, infos)
    model.graph.initializers["b"].const_value = ir.StringTensor([b"a"], shape=ir.Shape([1]), name="b")
    with pytest.raises(ValueError, match="tensor 'b': strings can't be streamed"):
        OnnxSink(path, model, [TensorInfo("b", "F32", (1,), 4)])
    model.graph.initializers["b"].const_value = ir.ExternalTensor(
        "/etc/passwd", 0, 4, ir.DataType.FLOAT, shape=ir.Shape([1]), name="b"
    )
    with pytest.raises(ValueError, match="'b' must be in tensors, or its values in memory, got ExternalTensor"):
        OnnxSink(path, model, tensors)
    model, tensors = graph()
    node = next(iter(model.graph))
    node.attributes["bad"] = ir.Attr("bad", ir.AttributeType.STRING, 5)
    with pytest.raises(ValueError, match="OnnxSink: the model can't be serialized: "):
        OnnxSink(path, model, tensors)
    assert list(path.parent.iterdir()) == []


def test_what_is_there_is_kept_unless_it_may_be_replaced(path: Path, external: bool) -> None:
    path.write_bytes(OLD)
    with pytest.raises(FileExistsError, match="pass overwrite=True") as caught:
        write(path, overwrite=False, external=external)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == OLD
    write(path, overwrite=True, external=external)
    np.testing.assert_array_equal(weight(path), W)


def test_missing_rows_are_refused(path: Path, external: bool) -> None:
    path.write_bytes(OLD)
    model, tensors = graph()
    with OnnxSink(path, model, tensors, overwrite=True, external=external) as sink:
        sink.write("w", W[:1])
        with pytest.raises(ValueError, match=r"not all is written: tensor 'w' has 128 of 8,192 bytes"):
            sink.commit()
    assert path.read_bytes() == OLD
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_packed_tensors_are_written_as_bytes(path: Path, external: bool) -> None:
    model = ir.from_proto(mlp())
    codes = np.random.default_rng(0).integers(0, 256, 1024, dtype=np.uint8)
    value = ir.Value(name="q", type=ir.TensorType(ir.DataType.INT4), shape=ir.Shape((64, 32)))
    value.const_value = placeholder("q", ir.DataType.INT4, (64, 32))
    model.graph.register_initializer(value)
    with OnnxSink(path, model, [TensorInfo("q", "I4", (64, 32), 1024)], external=external) as sink:
        for array in (codes.view(np.int8), np.zeros(1025, np.uint8)):
            with pytest.raises((TypeError, ValueError)):
                sink.write("q", array)
        sink.write("q", codes[:5])
        sink.write("q", codes[5:205].reshape(-1, 1))
        sink.write("q", codes[205:])
        sink.commit()
    with OnnxSource(path) as source:
        np.testing.assert_array_equal(source.read("q"), codes)
    tensor = next(t for t in onnx.load(path).graph.initializer if t.name == "q")
    assert tensor.raw_data == codes.tobytes()


def test_tensors_of_every_size_are_streamed(path: Path, external: bool) -> None:
    """Empty ones, which have no place in a file of data; small ones, which a source has in memory; odd ones."""
    shapes = {"none": (0, 3), "one": (1,), "odd": (77, 13), "w": (64, 32), "scalar": (), "empty": (5, 0)}
    arrays = {name: numbers(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    model = ir.from_proto(mlp())
    for name, shape in shapes.items():
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        value.const_value = placeholder(name, ir.DataType.FLOAT, shape)
        model.graph.initializers[name] = model.graph.initializers.get(name, value)
        model.graph.initializers[name].const_value = value.const_value
    tensors = [TensorInfo(name, "F32", a.shape, a.nbytes) for name, a in arrays.items()]
    with OnnxSink(path, model, tensors, external=external) as sink:
        for name, array in arrays.items():
            sink.write(name, array)
        onnx.checker.check_model(sink.staged())
        sink.commit()
    found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    with OnnxSource(path) as source:
        assert set(source.tensors) == {"w", "odd"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
            np.testing.assert_array_equal(source.model.graph.initializers[name].const_value.numpy(), array)


def test_external_data_are_aligned(path: Path) -> None:
    write(path, external=True)
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            assert entry.key != "offset" or int(entry.value) % 4096 == 0


def test_external_data_where_one_file_is_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    size = path.stat().st_size
    monkeypatch.setattr(sink_module, "INLINE_MAX", size)
    write(path)
    assert data_files(path.parent) == []
    monkeypatch.setattr(sink_module, "INLINE_MAX", size - 1)
    with pytest.raises(ValueError, match=f"one file of {size:,} bytes is more than the {size - 1:,} that protobuf"):
        write(path, external=False)
    write(path)
    assert len(data_files(path.parent)) == 1
    np.testing.assert_array_equal(weight(path), W)


def test_over_2_gib(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes alone: nothing is written but the sparse beginning."""
    shape = (1 << 15, 1 << 14)
    model, tensors = graph(shape, ir.DataType.FLOAT)
    tensors = [TensorInfo("w", "F32", shape, 1 << 31)]
    with pytest.raises(ValueError, match=r"one file of 2,147,5[0-9]{2},[0-9]{3} bytes is more than the 2,147,483,647"):
        OnnxSink(path, model, tensors, external=False)
    with OnnxSink(path, model, tensors):
        assert len(left_over(path.parent)) == 1, "the data have a file of their own"
    assert list(path.parent.iterdir()) == []


def test_replacing_removes_data_that_no_model_names(path: Path) -> None:
    write(path, external=True)
    (first,) = data_files(path.parent)
    write(path, W + 1, external=True)
    (second,) = data_files(path.parent)
    assert first != second
    # Copies of the model, whatever they are called, keep what they need.
    (path.parent / "m.onnx.bak").write_bytes(path.read_bytes())
    write(path, W + 2, external=True)
    assert second in data_files(path.parent)
    np.testing.assert_array_equal(weight(path.parent / "m.onnx.bak"), W + 1)
    (path.parent / "m.onnx.bak").unlink()
    (path.parent / "damaged.onnx").write_bytes(b"\xff" * 99)  # there is no telling what it names
    write(path, external=False)
    assert len(data_files(path.parent)) == 2
    (path.parent / "damaged.onnx").unlink()
    others = ["m.onnx-0123456789abcdeg.data", "n.onnx-0123456789abcdef.data", "m.onnx.data"]
    for name in others:
        (path.parent / name).write_bytes(b"")
    write(path, external=False)
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, *others])
    np.testing.assert_array_equal(weight(path), W)


def test_the_same_bytes_again_and_a_foreign_file_of_that_name(path: Path) -> None:
    write(path, external=True)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    write(path, external=True)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    (name,) = data_files(path.parent)
    path.unlink()
    for damage in (b"another", bytes(8192)):
        (path.parent / name).write_bytes(damage)
        with pytest.raises(FileExistsError, match="another file has the name of the external data") as caught:
            write(path, external=True)
        assert caught.value.filename == str(path.parent / name)
        assert (path.parent / name).read_bytes() == damage
        assert not path.exists()
        assert not left_over(path.parent)


def fails(path: Path, code: int, external: bool) -> None:
    """A save to `path` fails with the errno, and leaves what is there."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write(path, W + 1, external=external)
    assert caught.value.errno == code
    assert caught.value.filename == str(path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("old", [True, False])
def test_f1_size_limit(path: Path, external: bool, temporary: str, old: bool) -> None:
    """F1, F7: EFBIG by RLIMIT_FSIZE after a part is written."""
    if old:
        write(path, external=external)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        fails(path, errno.EFBIG, external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_f1_disk_full(tiny: Path, external: bool, temporary: str) -> None:
    """The disk fills up after the check of the free space, at several places of the file."""
    path = tiny / "m.onnx"
    path.write_bytes(OLD)
    array = numbers((256, 512))
    for taken in (530_000, 700_000, 900_000):
        model, tensors = graph(array.shape)  # type: ignore[arg-type]
        with OnnxSink(path, model, tensors, overwrite=True, external=external) as sink:
            (tiny / "other").write_bytes(bytes(taken))
            with pytest.raises(OSError, match="No space left") as caught:
                sink.write("w", array)
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        (tiny / "other").unlink()
        assert path.read_bytes() == OLD
        assert os.listdir(tiny) == ["m.onnx"]  # noqa: PTH208
    write(path, array, external=external)
    np.testing.assert_array_equal(weight(path), array)


def test_f11_free_space_is_checked_first(tiny: Path, external: bool) -> None:
    model, tensors = graph((1024, 1024))
    with pytest.raises(OSError, match=r"needs 4\.0 MiB, 1\.0 MiB free") as caught:
        OnnxSink(tiny / "m", model, tensors, external=external)
    assert caught.value.errno == errno.ENOSPC
    assert list(tiny.iterdir()) == []


@pytest.mark.parametrize("nth", range(6))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_f1_f7_nth_write_fails(
    path: Path, external: bool, monkeypatch: pytest.MonkeyPatch, nth: int, code: int
) -> None:
    write(path, external=external)
    real, calls = os.pwrite, iter(range(1000))

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if next(calls) == nth:
            raise OSError(code, os.strerror(code))
        return real(fd, data[:2000], offset)  # F7: short writes

    monkeypatch.setattr(os, "pwrite", pwrite)
    fails(path, code, external)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("fsync", errno.EIO),
        ("rename", errno.EXDEV),
        ("rename", errno.EACCES),
        ("fchmod", errno.EPERM),
        ("statvfs", errno.EACCES),
    ],
)
def test_f7_every_call_may_fail(
    path: Path, external: bool, temporary: str, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    write(path, external=external)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    fails(path, code, external)


@pytest.mark.parametrize("nth", range(2))
def test_f7_nth_rename_fails(path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Of external data: when the model can't be put in place, its data don't stay either."""
    write(path, external=True)
    real, calls = os.rename, iter(range(10))

    def rename(*args: Any, **kwargs: Any) -> None:
        if next(calls) == nth:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*args, **kwargs)

    monkeypatch.setattr(os, "rename", rename)
    fails(path, errno.EIO, external=True)


def test_f7_directories(tmp_path: Path, external: bool) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "absent" / "m", external=external)
    with pytest.raises(IsADirectoryError):
        write(tmp_path, external=external)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        write(tmp_path / "pipe", external=external)


def test_f2_killed_at_every_call(tmp_path: Path) -> None:
    """SIGKILL before each system call of a save: the destination is the old model or the whole new one."""
    script = """
        import os, signal, sys
        from pathlib import Path
        from files_samples import left_over
        from modelopt_rs.files.onnx import OnnxSource
        from onnx_writing import W, data_files, weight, write

        path, real_open = Path(sys.argv[1]), os.open

        def no_tmpfile(path, flags, *args, **kwargs):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError("not supported")
            return real_open(path, flags, *args, **kwargs)

        for way in sys.argv[2:]:
            before, after, temporary = way.split(",")
            old, new = before == "external", after == "external"
            os.open = no_tmpfile if temporary == "named" else real_open
            states = []
            for nth in range(200):
                write(path, external=old)
                assert len(left_over(path.parent)) == 0, "the next writer removes what is stale"
                assert len(data_files(path.parent)) == old, "and data of a model that never came"
                pid = os.fork()
                if pid == 0:
                    count = 0
                    for name in "pwrite fsync rename link close fchmod open mkdir rmdir unlink".split():
                        def hook(*args, real=getattr(os, name), **kwargs):
                            global count
                            if count == nth:
                                os.kill(os.getpid(), signal.SIGKILL)
                            count += 1
                            return real(*args, **kwargs)
                        setattr(os, name, hook)
                    write(path, W + 1, external=new)
                    os._exit(0)
                _, status = os.waitpid(pid, 0)
                is_new = weight(path)[0, 0] == (W + 1)[0, 0]
                assert weight(path).tobytes() == (W + is_new).tobytes()
                states.append(is_new)
                if os.WIFEXITED(status):
                    assert os.WEXITSTATUS(status) == 0
                    assert len(data_files(path.parent)) == new and not left_over(path.parent)
                    break
            assert len(states) > 8 and not states[0] and states[-1] and sorted(states) == states
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ways = ["inline,inline,named", "external,external,unnamed", "external,inline,unnamed", "inline,external,named"]
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "m.onnx"), *ways]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("durable", [True, False])
def test_f3_order_of_the_calls(path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, external: bool) -> None:
    write(path, external=external)
    calls: list[str] = []

    def place_data(temporary: Path, data: Path, real: Callable[..., None] = placing.rename_new) -> None:
        calls.append(f"rename {data.suffix}")
        real(temporary, data)

    monkeypatch.setattr("modelopt_rs.containers.atomic_pair.rename_new", place_data)

    def record(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            what = name
            if name == "fsync":
                what = "fsync directory" if os.path.isdir(f"/proc/self/fd/{args[0]}") else "fsync file"  # noqa: PTH112
            if name == "rename":
                what = f"rename {Path(args[1]).suffix}" if Path(args[1]).parent == path.parent else "name"
            result = real(*args, **kwargs)
            if not calls or calls[-1] != what:
                calls.append(what)
            return result

        return call

    for name in ("pwrite", "fsync", "rename", "link"):
        monkeypatch.setattr(os, name, record(name))
    write(path, W + 1, external=external, durable=durable)
    if external:
        expected = [
            "pwrite",
            "name",
            "fsync file",
            "rename .data",
            "fsync directory",
            "rename .onnx",
            "fsync directory",
        ]
    else:
        expected = ["pwrite", "fsync file", "link", "rename .onnx", "fsync directory"]
    assert calls == [call for call in expected if durable or not call.startswith("fsync")]


def test_f4_stale_temporaries_are_removed(path: Path, external: bool) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, 1):
        folder = path.with_name(f".{path.name}.modelopt-{pid}-0.tmp")
        folder.mkdir()
        (folder / "m.onnx").write_bytes(OLD)
    write(path, external=external)
    assert left_over(path.parent) == [f".{path.name}.modelopt-1-0.tmp"]


def test_f4_live_temporaries_stay(path: Path, external: bool) -> None:
    model, tensors = graph()
    with OnnxSink(path, model, tensors, external=external, overwrite=True) as first:
        write(path, W + 1, external=external)
        first.write("w", W)
        first.commit()
    np.testing.assert_array_equal(weight(path), W)
    assert len(data_files(path.parent)) == external


def test_f4_keyboard_interrupt_removes_the_temporary(path: Path, external: bool) -> None:
    path.write_bytes(OLD)
    model, tensors = graph()
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    sink = OnnxSink(path, model, tensors, external=external, overwrite=True)

    def interrupt() -> None:
        with sink:
            sink.write("w", W[:3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert path.read_bytes() == OLD
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_f5_mode_and_owner(path: Path, external: bool) -> None:
    """New: 0666 & ~umask. Replaced: as it was, and the data as the model, which may be nobody else's business."""
    umask = os.umask(0o027)
    try:
        write(path, external=external)
        assert {file.stat().st_mode & 0o7777 for file in path.parent.iterdir()} == {0o640}
        path.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(path, 1234, 5678)
        owner = path.stat().st_uid
        write(path, W + 1, external=external)
        assert {file.stat().st_mode & 0o7777 for file in path.parent.iterdir()} == {0o600}
        assert {file.stat().st_uid for file in path.parent.iterdir()} == {owner}
    finally:
        os.umask(umask)


def test_f5_symbolic_links(tmp_path: Path) -> None:
    """What the link points to is replaced; not with external data, which readers would look for beside the link."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.onnx"
    link.symlink_to("there/model")
    for _ in range(2):
        write(link, external=False)
        assert link.is_symlink()
        assert (tmp_path / "there" / "model").is_file()
    with pytest.raises(ValueError, match=r"link\.onnx: a model with external data can't be written to a symbolic link"):
        write(link, W + 1, external=True)
    np.testing.assert_array_equal(weight(link), W)
    (tmp_path / "folder").symlink_to("there")
    write(tmp_path / "folder" / "m.onnx", external=True)
    np.testing.assert_array_equal(weight(tmp_path / "folder" / "m.onnx"), W)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("way", ["same", "dotted", "symlink", "hardlink"])
def test_f6_input_is_output(tmp_path: Path, external: bool, before: bool, way: str) -> None:
    path = write(tmp_path / "m.onnx", external=before)
    destination = {"same": path, "dotted": tmp_path / "." / ".." / tmp_path.name / "m.onnx"}.get(way, tmp_path / "b")
    if way == "symlink":
        if external:
            pytest.skip("external data don't go beside a link")
        destination.symlink_to(path)
    elif way == "hardlink":
        os.link(path, destination)
    with OnnxSource(path) as source:
        sink = OnnxSink(destination, source.model, list(source.tensors.values()), overwrite=True, external=external)
        with sink:
            for tile in source.tiles("w", 1):
                sink.write("w", np.negative(tile.array))
            sink.commit()
        np.testing.assert_array_equal(source.read("w"), W)
    np.testing.assert_array_equal(weight(destination), -W)
    if way == "hardlink":
        np.testing.assert_array_equal(weight(path), W)


def test_f8_many_writers(path: Path) -> None:
    """160 saves of four threads to one path, inline and external: all succeed, the model is always whole."""
    errors: list[BaseException] = []

    def saves(number: int) -> None:
        try:
            for i in range(40):
                write(path, np.full((16, 32), number, np.float32), durable=False, external=(number + i) % 3 > 0)
                with suppress(FileNotFoundError):
                    check(path)
        except BaseException as e:
            errors.append(e)

    def check(path: Path) -> None:
        for _ in range(50):
            try:
                assert len(np.unique(weight(path))) == 1
            except ValueError as e:
                # Between opening the model and its data another writer may have replaced both.
                assert "is missing" in str(e)  # noqa: PT017
            else:
                return
        pytest.fail("the model's data are missing")

    threads = [threading.Thread(target=saves, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not left_over(path.parent)
    assert len(data_files(path.parent)) <= 1


def test_f10_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Whatever the order of hashes is."""
    script = """
import sys
from pathlib import Path
from onnx_samples import CORPUS, resave, save
folder = Path(sys.argv[1])
for name, build in CORPUS.items():
    for external in (False, True):
        resave(save(folder / "in.onnx", build()), folder / f"{name}-{external}.onnx", external=external)
"""
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, str(folder)]
        subprocess.run(command, check=True, env=environment)
        contents.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) >= 16


def test_f10_order_of_writing_changes_nothing(tmp_path: Path, external: bool) -> None:
    model = ir.from_proto(mlp())
    arrays = {"w": W, "b": numbers((32,), 1)}
    tensors = [TensorInfo(n, "F32", a.shape, a.nbytes) for n, a in arrays.items()]
    files = []
    for i, order in enumerate((["w", "b"], ["b", "w"])):
        folder = tmp_path / str(i)
        folder.mkdir()
        with OnnxSink(folder / "m.onnx", model, tensors[:: 1 - 2 * i], external=external) as sink:
            for name in order:
                sink.write(name, arrays[name])
            sink.commit()
        files.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert files[0].keys() == files[1].keys()
    assert all(files[0][name] == files[1][name] for name in files[0])


def test_f12_names_of_files(tmp_path: Path, external: bool) -> None:
    """Not UTF-8, not printable, with what readers take for a path, very long; the name of the temporary data."""
    names = [os.fsdecode(b"\xff\xfe" * 100), "a\nb", "a\\b", "é.onnx", "x" * 255, "é" * 127, ".data", "a b%.onnx"]
    for name in names:
        for array in (W, W + 1):
            write(tmp_path / name, array, external=external)
        np.testing.assert_array_equal(weight(tmp_path / name), W + 1)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write(tmp_path / ("x" * 256), external=external)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert not left_over(tmp_path)


@pytest.mark.parametrize("where", ["graph", "middle", "lost"])
def test_f13_what_was_written_is_read_back(
    path: Path, external: bool, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path.write_bytes(OLD)
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        is_weight = len(data) == W.nbytes
        if where == "graph" and not is_weight:
            data = memoryview(bytes(data).replace(b"MatMul", b"MatMuk"))
        if where == "lost" and is_weight:
            return len(data) if real(fd, bytes(len(data)), offset) else 0
        if where == "middle" and is_weight:
            data = memoryview(bytes(data[:-1]) + b"\1")
        return real(fd, data, offset)

    model, tensors = graph()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with OnnxSink(path, model, tensors, overwrite=True, external=external) as sink:
            sink.write("w", W)
            with pytest.raises(OSError, match="reads back differently") as caught:
                sink.commit()
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert path.read_bytes() == OLD
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_f13_what_the_parser_refuses_is_not_put_in_place(path: Path, external: bool) -> None:
    """A model with two names for one value: no checksum tells, the strict parser does."""
    model, tensors = graph()
    list(model.graph)[1].outputs[0].name = "h"
    with OnnxSink(path, model, tensors, external=external) as sink:
        sink.write("w", W)
        with pytest.raises(OSError, match=r"reads back differently: .*made twice"):
            sink.commit()
    assert list(path.parent.iterdir()) == []


def test_f13_opt_out(path: Path, external: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk has changed is not noticed."""
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        return real(fd, bytes(W.nbytes) if len(data) == W.nbytes else data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    model, tensors = graph()
    with OnnxSink(path, model, tensors, external=external) as sink:
        sink.write("w", W)
        sink.commit(verify=False)
    assert not weight(path).any()


def test_a_source_with_external_data_is_copied_to_either(tmp_path: Path, external: bool) -> None:
    path = save(tmp_path / "in.onnx", mlp(), external=True)
    np.testing.assert_array_equal(weight(resave(path, tmp_path / "out.onnx", external=external)), W)
    with OnnxSource(path) as source:
        copy(source, path, external=external, overwrite=True)
    np.testing.assert_array_equal(weight(path), W)
    assert (tmp_path / "in.onnx.bin").exists()  # not ours to remove


@pytest.mark.parametrize("is_named", [True, False])
def test_a_model_names_the_default_domain_as_its_source_does(tmp_path: Path, is_named: bool) -> None:
    """Written out the name of nothing takes two bytes: a pruned model of most exporters was larger than its source."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 32]) for name in "xy")
    w = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32), "w")
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], "g", [x], [y], [w]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    if not is_named:
        proto.opset_import[0].ClearField("domain")
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    mo.prune_file(tmp_path / "a.onnx", tmp_path / "b.onnx", sparsity=0.5, run=None)
    assert (tmp_path / "b.onnx").stat().st_size == (tmp_path / "a.onnx").stat().st_size
    (entry,) = onnx.load(tmp_path / "b.onnx").opset_import
    assert (entry.HasField("domain"), entry.domain, entry.version) == (is_named, "", 17)
