"""Writing: hazards F1 to F13. Whatever goes wrong, what was at the destination stays."""

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from files_samples import SAMPLE, infos, left_over, raw, save
from modelopt_rs.containers import atomic
from modelopt_rs.containers.atomic import AtomicFile
from modelopt_rs.files import SafetensorsSink, SafetensorsSource, TensorInfo

OLD = b"what was there"
BIG = {"w": np.arange(1 << 18, dtype=np.float32).reshape(512, 512)}  # 1 MiB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


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


def test_writes_and_reads_back(path: Path, temporary: str) -> None:
    with SafetensorsSink(path, infos(SAMPLE), {"format": "pt"}) as sink:
        assert not path.exists()
        assert len(left_over(path.parent)) == (temporary == "named")
        sink.write("b", SAMPLE["b"])
        for row in SAMPLE["a.weight"]:
            sink.write("a.weight", row[None])
        sink.commit()
    assert not left_over(path.parent)
    with SafetensorsSource(path) as source:
        for name, array in SAMPLE.items():
            np.testing.assert_array_equal(source.read(name), array, strict=True)
        assert list(source.tensors) == ["b", "a.weight"]  # the larger items first


def test_data_are_aligned(path: Path) -> None:
    arrays = {str(i): np.zeros(i, t) for i, t in enumerate(["u1", "f4", "f2", "i8", "i4"])}
    spelled = {"u1": "U8", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32"}
    tensors = [TensorInfo(n, spelled[a.dtype.str[1:]], a.shape, a.nbytes) for n, a in arrays.items()]
    with SafetensorsSink(path, tensors) as sink:
        for name, array in arrays.items():
            sink.write(name, array)
        sink.commit()
    n = int.from_bytes(path.read_bytes()[:8], "little")
    with SafetensorsSource(path) as source:
        assert n % 8 == 0
        for name, info in source.tensors.items():
            begin = json.loads(path.read_bytes()[8 : 8 + n])[name]["data_offsets"][0]
            assert (8 + n + begin) % arrays[name].itemsize == 0, info


@pytest.mark.parametrize(
    ("array", "error", "match"),
    [
        (np.zeros((2, 3), np.float64), TypeError, r"write: tensor 'w' is F32, wants float32, got float64"),
        (np.zeros((2, 3), ">f4"), TypeError, "got >f4"),
        (np.zeros((2, 4), np.float32), ValueError, r"has rows of 3, got an array of shape \(2, 4\)"),
        (np.zeros((3, 3), np.float32), ValueError, "has 24 bytes, got 36 after 0"),
        (np.float32(1).reshape(()), ValueError, "has rows of 3"),
    ],
)
def test_wrong_arrays_change_nothing(path: Path, array: np.ndarray, error: type[Exception], match: str) -> None:
    with SafetensorsSink(path, [TensorInfo("w", "F32", (2, 3), 24)]) as sink:
        with pytest.raises(error, match=match):
            sink.write("w", array)
        with pytest.raises(ValueError, match="no tensor 'x' was announced"):
            sink.write("x", array)
        sink.write("w", np.ones((3, 2), np.float32).T)  # not contiguous
        sink.commit()
    with SafetensorsSource(path) as source:
        assert source.read("w").sum() == 6


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (TensorInfo("w", "F99", (1,), 4), "'F99' is not supported"),
        (TensorInfo("__metadata__", "F32", (1,), 4), "can't be a tensor's name"),
        (TensorInfo("x" * 65_537, "F32", (1,), 4), "can't be a tensor's name"),
        (TensorInfo("\ud800", "F32", (1,), 4), "surrogates not allowed"),
        (TensorInfo("w", "F32", (2,), 4), r"has 8 bytes, not 4"),
        (TensorInfo("w", "F32", (1,) * 33, 4), "at most 32 axes"),
    ],
)
def test_impossible_tensors_are_refused(path: Path, tensor: TensorInfo, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SafetensorsSink(path, [tensor])
    with pytest.raises(ValueError, match="two tensors have one name"):
        SafetensorsSink(path, [TensorInfo("w", "F32", (1,), 4)] * 2)
    with pytest.raises(TypeError, match="metadata must be strings"):
        SafetensorsSink(path, [], {"a": 1})  # type: ignore[dict-item]
    assert list(path.parent.iterdir()) == []


def test_missing_rows_are_refused(path: Path) -> None:
    path.write_bytes(OLD)
    with SafetensorsSink(path, infos(SAMPLE)) as sink:
        sink.write("a.weight", SAMPLE["a.weight"][:1])
        with pytest.raises(ValueError, match=r"not all is written: tensor 'b' has 0 of 16 bytes; 'a.weight' has 12"):
            sink.commit()
        with pytest.raises(ValueError, match="committed or aborted"):
            sink.write("b", SAMPLE["b"])
    assert path.read_bytes() == OLD


def test_ml_dtypes_are_taken_by_their_bits(path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = {"w": np.ones(3, ml_dtypes.bfloat16), "v": np.ones(3, ml_dtypes.float8_e4m3fn)}
    with SafetensorsSink(path, [TensorInfo("w", "BF16", (3,), 6), TensorInfo("v", "F8_E4M3", (3,), 3)]) as sink:
        for name, array in arrays.items():
            sink.write(name, array)
        sink.commit()
    with SafetensorsSource(path) as source:
        for name, dtype in (("w", np.uint16), ("v", np.uint8)):
            np.testing.assert_array_equal(source.read(name), arrays[name].view(dtype), strict=True)


def fails(path: Path, code: int) -> None:
    """A save to `path` fails with the errno, and leaves what is there."""
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(OSError) as caught:  # noqa: PT011
        save(path, BIG)
    assert caught.value.errno == code
    assert caught.value.filename == str(path)
    assert (path.read_bytes() if path.exists() else None) == before
    assert not left_over(path.parent)


@pytest.mark.parametrize("old", [True, False])
def test_f1_size_limit(path: Path, temporary: str, old: bool) -> None:
    """F1, F7: EFBIG by RLIMIT_FSIZE after a part is written."""
    if old:
        path.write_bytes(OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        fails(path, errno.EFBIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_f1_disk_full(tiny: Path, temporary: str) -> None:
    """The disk fills up after the check of the free space, at several places of the file."""
    path = tiny / "model.safetensors"
    path.write_bytes(OLD)
    half = {"w": BIG["w"][:256]}
    for taken in (530_000, 700_000, 900_000):
        with SafetensorsSink(path, infos(half)) as sink:
            (tiny / "other").write_bytes(bytes(taken))
            with pytest.raises(OSError, match="No space left") as caught:
                sink.write("w", half["w"])
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        (tiny / "other").unlink()
        assert path.read_bytes() == OLD
        assert not left_over(tiny)
    save(path, half)
    assert path.stat().st_size > 512 * 1024


def test_f11_free_space_is_checked_first(tiny: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"needs 4\.0 MiB, 1\.0 MiB free") as caught:
        SafetensorsSink(tiny / "m", [TensorInfo("w", "F32", (1 << 20,), 4 << 20)])
    assert caught.value.errno == errno.ENOSPC
    assert list(tiny.iterdir()) == []


def test_f11_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 1 << 18, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(OSError, match=r"needs 4\.1 GiB, 1\.0 GiB free") as caught:
        AtomicFile(path, nbytes=int(4.1 * 2**30))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


@pytest.mark.parametrize("nth", range(6))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_f1_f7_nth_write_fails(path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, code: int) -> None:
    path.write_bytes(OLD)
    real, calls = os.pwrite, iter(range(1000))

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if next(calls) == nth:
            raise OSError(code, os.strerror(code))
        return real(fd, data[:200_000], offset)  # F7: short writes

    monkeypatch.setattr(os, "pwrite", pwrite)
    fails(path, code)


def test_f7_short_writes_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    save(path, SAMPLE)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        save(path, SAMPLE)


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
    path: Path, temporary: str, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path.write_bytes(OLD)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    fails(path, code)


def test_f7_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "absent" / "m", SAMPLE)
    with pytest.raises(IsADirectoryError):
        save(tmp_path, SAMPLE)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        save(tmp_path / "pipe", SAMPLE)
    for code in (errno.EROFS, errno.EACCES):

        def fail(*args: Any, code: int = code, **kwargs: Any) -> int:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            with pytest.raises(OSError) as caught:  # noqa: PT011
                save(tmp_path / "m", SAMPLE)
        assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path / "m"))


def test_f2_killed_at_every_call(tmp_path: Path) -> None:
    """SIGKILL before each system call of a save: the destination is the old file or the whole new one."""
    script = """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from modelopt_rs.files import SafetensorsSource
        from files_samples import left_over, save

        path = Path(sys.argv[1])
        named = sys.argv[2] == "named"
        if named:
            def no_tmpfile(path, flags, *args, real=os.open, **kwargs):
                if flags & os.O_TMPFILE == os.O_TMPFILE:
                    raise OSError("not supported")
                return real(path, flags, *args, **kwargs)
            os.open = no_tmpfile
        arrays = {"w": np.arange(50_000, dtype=np.float32).reshape(100, 500)}
        new = {"w": arrays["w"] + 1}
        states = []
        for nth in range(100):
            save(path, arrays)
            assert len(left_over(path.parent)) == 0, "the next writer removes what is stale"
            pid = os.fork()
            if pid == 0:
                count = 0
                for name in ("pwrite", "fsync", "rename", "link", "close", "fchmod", "open"):
                    def hook(*args, real=getattr(os, name), **kwargs):
                        global count
                        if count == nth:
                            os.kill(os.getpid(), signal.SIGKILL)
                        count += 1
                        return real(*args, **kwargs)
                    setattr(os, name, hook)
                save(path, new)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            with SafetensorsSource(path) as source:
                is_new = source.read("w")[0, 0] == 1
                assert source.read("w").tobytes() == (new if is_new else arrays)["w"].tobytes()
            states.append(is_new)
            if not named:
                # Only between link and rename the temporary has a name.
                assert len(left_over(path.parent)) <= 1
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
        assert len(states) > 8 and not states[0] and states[-1] and sorted(states) == states
        print(len(states))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for sort in ("unnamed", "named"):
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "m"), sort]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_f3_order_of_the_calls(
    path: Path, temporary: str, monkeypatch: pytest.MonkeyPatch, durable: bool, old: bool
) -> None:
    if old:
        path.write_bytes(OLD)
    calls: list[str] = []

    def record(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            what = name
            if name == "fsync":
                what = "fsync directory" if os.path.isdir(f"/proc/self/fd/{args[0]}") else "fsync file"  # noqa: PTH112
            result = real(*args, **kwargs)
            if not calls or calls[-1] != what:
                calls.append(what)
            return result

        return call

    for name in ("pwrite", "fsync", "rename", "link"):
        monkeypatch.setattr(os, name, record(name))
    save(path, SAMPLE, durable=durable)
    place = ["rename"] if temporary == "named" else ["link", "rename"] if old else ["link"]
    if durable:
        assert calls == ["pwrite", "fsync file", *place, "fsync directory"]
    else:
        assert calls == ["pwrite", *place]


def test_f4_stale_temporaries_are_removed(path: Path, temporary: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = path.with_name(f".{path.name}.modelopt-{dead.pid}-0.tmp")
    own = path.with_name(f".{path.name}.modelopt-{os.getpid()}-999999.tmp")  # of a process with our number
    alive = path.with_name(f".{path.name}.modelopt-1-0.tmp")
    other = path.with_name(f".other.modelopt-{dead.pid}-0.tmp")
    for file in (stale, own, alive, other):
        file.write_bytes(b"")
    save(path, SAMPLE)
    assert {file.name for file in path.parent.iterdir()} == {path.name, alive.name, other.name}


def test_f4_live_temporaries_stay(path: Path, temporary: str) -> None:
    with SafetensorsSink(path, infos(SAMPLE)) as first:
        save(path, BIG)
        for name, array in SAMPLE.items():
            first.write(name, array)
        first.commit()
    with SafetensorsSource(path) as source:
        assert set(source.tensors) == set(SAMPLE)


def test_f4_keyboard_interrupt_removes_the_temporary(path: Path, temporary: str) -> None:
    """C12."""
    path.write_bytes(OLD)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    sink = SafetensorsSink(path, infos(SAMPLE))

    def interrupt() -> None:
        with sink:
            sink.write("b", SAMPLE["b"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert path.read_bytes() == OLD
    assert not left_over(path.parent)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_f5_mode(path: Path, temporary: str) -> None:
    umask = os.umask(0o027)
    try:
        save(path, SAMPLE)
        assert path.stat().st_mode & 0o7777 == 0o640
        path.chmod(0o604)
        save(path, SAMPLE)
        assert path.stat().st_mode & 0o7777 == 0o604
    finally:
        os.umask(umask)


def test_f5_owner(path: Path, temporary: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    path.write_bytes(OLD)
    os.chown(path, 1234, 5678)
    save(path, SAMPLE)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_f5_symbolic_links(tmp_path: Path, temporary: str) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/model")
    for _ in range(2):  # to what isn't there, then to what is
        save(link, SAMPLE)
        assert link.is_symlink()
        assert (tmp_path / "there" / "model").is_file()
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        save(loop, SAMPLE)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("way", ["same", "dotted", "symlink", "hardlink"])
def test_f6_input_is_output(tmp_path: Path, temporary: str, way: str) -> None:
    path = tmp_path / "a"
    save(path, SAMPLE)
    destination = {"same": path, "dotted": tmp_path / "." / ".." / tmp_path.name / "a"}.get(way, tmp_path / "b")
    if way == "symlink":
        destination.symlink_to(path)
    elif way == "hardlink":
        os.link(path, destination)
    with (
        SafetensorsSource(path) as source,
        SafetensorsSink(destination, list(source.tensors.values())) as sink,
    ):
        for name in source.tensors:
            for tile in source.tiles(name, 1):
                sink.write(name, np.negative(tile.array))
        sink.commit()
        np.testing.assert_array_equal(source.read("b"), SAMPLE["b"])
    with SafetensorsSource(destination) as source:
        np.testing.assert_array_equal(source.read("b"), -SAMPLE["b"])


def test_f8_many_writers(path: Path, temporary: str) -> None:
    """200 saves of four threads to one path: all succeed, the file is always whole."""
    contents = [{"w": np.full((16, 16), i, np.float32)} for i in range(4)]
    errors: list[BaseException] = []

    def saves(arrays: dict[str, np.ndarray]) -> None:
        try:
            for i in range(50):
                if i % 5 == 0:
                    path.unlink(missing_ok=True)  # so that several make a new file
                save(path, arrays, durable=False)
                with suppress(FileNotFoundError), SafetensorsSource(path) as source:
                    assert len(np.unique(source.read("w"))) == 1
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=saves, args=(arrays,)) for arrays in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not left_over(path.parent)


def test_f9_tiles_bound_the_memory(path: Path) -> None:
    size = 1 << 30
    header = raw({"w": {"dtype": "F32", "shape": [1 << 16, 1 << 12], "data_offsets": [0, size]}})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    with SafetensorsSource(path) as source:
        tracemalloc.start()
        try:
            for i, _ in enumerate(source.tiles("w", 4 << 20)):
                if i == 8:
                    break
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < (4 << 20) + (1 << 16)


def test_f10_golden(path: Path) -> None:
    arrays = {"b": np.arange(5, dtype=np.uint8), "a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save(path, arrays, {"format": "pt", "é": "1"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == "198f280b9cda8628881774bbefcd9926e92f4c26a115abf4c76d3683304bb10b"


def test_f12_path_that_is_not_utf8(tmp_path: Path, temporary: str) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe" * 100)
    for _ in range(2):
        save(path, SAMPLE)
    with SafetensorsSource(path) as source:
        assert set(source.tensors) == set(SAMPLE)


def test_f12_long_paths(tmp_path: Path, temporary: str) -> None:
    save(tmp_path / ("x" * 255), SAMPLE)
    save(tmp_path / ("x" * 255), SAMPLE)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        save(tmp_path / ("x" * 256), SAMPLE)
    assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as caught:  # noqa: PT011
        SafetensorsSource("x/" * 4000)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_f12_file_over_4_gib(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse: the last tensor begins behind 5 GiB, read and written."""
    big = 5 << 30
    tensors = [TensorInfo("a", "I64", (5, 1 << 27), big), TensorInfo("b", "F32", (2, 2), 16)]
    header = raw(
        {
            "a": {"dtype": "I64", "shape": [5, 1 << 27], "data_offsets": [0, big]},
            "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [big, big + 16]},
        }
    )
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + big)
        file.write(np.arange(4, dtype=np.float32).tobytes())
    with SafetensorsSource(path) as source:
        np.testing.assert_array_equal(source.read("b"), [[0, 1], [2, 3]])
    ends: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        ends.append(offset + len(data))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with SafetensorsSink(path, tensors) as sink:
        sink.write("b", np.ones((2, 2), np.float32))
        assert ends[-1] == ends[0] + big + 16, "behind the header and the tensor that is still to come"


@pytest.mark.parametrize("where", ["header", "middle", "lost"])
def test_f13_what_was_written_is_read_back(
    path: Path, temporary: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path.write_bytes(OLD)
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if where == "header" and offset == 0:
            return real(fd, bytes(len(data)), offset)
        if where == "lost" and offset:
            return len(data)
        if where == "middle" and offset:
            data = memoryview(bytes(data[:-1]) + b"\1")
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with SafetensorsSink(path, infos(SAMPLE)) as sink:
            for name, array in SAMPLE.items():
                sink.write(name, array)
            with pytest.raises(OSError, match="reads back differently") as caught:
                sink.commit()
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert path.read_bytes() == OLD
    assert not left_over(path.parent)


def test_f13_opt_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk has changed is not noticed."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(len(data)) if at else data, at))
    with SafetensorsSink(path, infos(SAMPLE)) as sink:
        for name, array in SAMPLE.items():
            sink.write(name, array)
        sink.commit(verify=False)
    with SafetensorsSource(path) as source:
        assert not any(source.read(name).any() for name in SAMPLE)


def test_temporary_names_are_told_from_others() -> None:
    assert atomic.is_temporary(".model.modelopt-12-3.tmp")
    assert not atomic.is_temporary("model.modelopt-12-3.tmp")
    assert not atomic.is_temporary(".model.modelopt-x-3.tmp")
