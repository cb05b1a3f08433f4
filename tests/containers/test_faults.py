"""System calls that fail, each in its turn: what is there afterwards, and what the error says (H46, H47, H49)."""

import errno
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import files_of, sharded
from files_samples import SAMPLE, left_over, raw, save
from modelopt_rs import FormatError, InPlaceError, LimitError, files
from modelopt_rs.cli import main
from modelopt_rs.containers.atomic import write_all
from modelopt_rs.containers.atomic_pair import AtomicPair, locked
from modelopt_rs.files import CheckpointSink, CheckpointSource, SafetensorsSource

CALLS = ("open", "pwrite", "preadv", "pread", "fsync", "link", "rename", "mkdir", "unlink", "rmdir", "fstat", "close")


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, nth: int) -> Iterator[list[bool]]:
    """Let the nth call of a function of `os` fail; yield whether it came to that."""
    real, calls, failed = getattr(os, name), iter(range(1_000_000)), []

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            failed.append(True)
            if name == "close":  # which lets go of the descriptor whatever it returns
                real(*args, **kwargs)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, call)
        yield failed


def write_file(path: Path, model: Path) -> None:
    save(path, {"w": np.ones((4, 4), np.float32)})


def write_pair(path: Path, model: Path) -> None:
    pair = AtomicPair(path)
    try:
        write_all(path, pair.model_fd, b"new", 0)
        write_all(path, pair.data_fd, b"data", 0)
        pair.name_data(f"{path.name}-1.data")
        with locked(path.parent):
            pair.commit()
    finally:
        pair.abort()


def write_directory(path: Path, model: Path) -> None:
    with (
        CheckpointSource(model) as source,
        CheckpointSink(source, path, list(source.tensors.values()), overwrite=True) as sink,
    ):
        for name in source.tensors:
            sink.write(name, source.read(name))
        sink.commit()


@pytest.mark.parametrize("write", [write_file, write_pair, write_directory])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_fails_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, Path], None], call: str
) -> None:
    """H47. The old content and an error, or the new one: with an error only if that says that it is in place."""
    model = sharded(tmp_path / "model", {n: ("F32", np.ones((2, 2), np.float32)) for n in "ab"})
    (tmp_path / "1").mkdir()
    for nth in range(200):
        folder = tmp_path / "1" / str(nth)
        folder.mkdir()
        out = folder / "out"
        if write is write_directory:
            out.mkdir()
            (out / "old").write_bytes(b"old")
        else:
            out.write_bytes(b"old")
        before = files_of(folder)
        error = None
        with failing(monkeypatch, call, nth) as failed:
            try:
                write(out, model)
            except OSError as e:
                error = e
        assert not left_over(folder), (nth, error)
        after = files_of(folder)
        is_new = after != before
        if isinstance(error, InPlaceError):
            assert is_new
            assert "is in place" in str(error)
        elif error is not None:
            assert not is_new, (nth, error)
            assert error.errno == errno.EIO
        if error is not None:
            assert isinstance(error.filename, str), (nth, error)
            assert ".modelopt-" not in str(error)
            assert error.filename.startswith((str(folder), str(model)))
        if not failed:
            assert is_new
            assert error is None
            break
    else:
        pytest.fail("it never came to an end")


def test_what_was_replaced_can_not_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H47. Then it says where that is, and the next writer removes it."""
    model = sharded(tmp_path / "model", {n: ("F32", np.ones((2, 2), np.float32)) for n in "ab"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"old")
    real = os.unlink

    def unlink(path: Any, *args: Any, **kwargs: Any) -> None:
        if os.fspath(path).endswith("old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(InPlaceError, match=r"is in place, but what it replaced could not be removed") as caught:
            write_directory(out, model)
    assert caught.value.filename == str(out)
    [left] = left_over(tmp_path)
    assert left in str(caught.value)
    assert (out / "config.json").exists()
    write_directory(out, model)
    assert not left_over(tmp_path)


def test_the_command_has_a_code_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """H47. Exit code 4: the output is there."""
    pytest.importorskip("click")
    save(tmp_path / "a.safetensors", {"fc.weight": np.ones((64, 64), np.float32)})
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "b.safetensors"
    assert main(["quantize", str(tmp_path / "a.safetensors"), "-o", str(out)]) == 4
    assert capsys.readouterr().err == f"modelopt-rs: {out}: is in place, but may not be durable: Input/output error\n"
    mo.inspect_file(out)


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H46. Of headers, configurations, indices and data."""
    model = sharded(tmp_path / "model", {n: ("F32", np.ones((2, 2), np.float32)) for n in "ab"})
    path = tmp_path / "a.safetensors"
    save(path, SAMPLE)
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 3), at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:3]], at))
    with files.open(path) as source:
        for name, array in SAMPLE.items():
            np.testing.assert_array_equal(source.read(name), array)
    with files.open(model) as source:
        assert source.config == {"model_type": "bert"}
        assert source.read("a").sum() == 4


def test_a_file_that_shrinks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H46. And no endless loop."""
    path = tmp_path / "a.safetensors"
    save(path, SAMPLE)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, n, at)[: max(0, 20 - at)])
    with pytest.raises(FormatError, match="file shrank while reading"):
        SafetensorsSource(path)


def test_nothing_is_allocated_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H49. Neither by a limit nor by a declared length."""
    model = sharded(tmp_path / "model", {n: ("F32", np.ones((2, 2), np.float32)) for n in "ab"})
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw(b"{}", length=60 << 20))
    with path.open("r+b") as file:
        file.truncate(70 << 20)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: b"" if at > 100 else pread(fd, n, at))
    tracemalloc.start()
    try:
        CheckpointSource(model).close()
        with pytest.raises(FormatError):
            SafetensorsSource(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_what_is_longer_than_its_limit_is_not_read(tmp_path: Path) -> None:
    """H49. 64 MiB of a configuration were read, and held twice, before it was refused."""
    save(tmp_path / "model.safetensors", {"fc.weight": np.ones((2, 2), np.float32)})
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match=r"config\.json: is larger than max_header=67,108,864 bytes"):
            files.open(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("call", [files.open, mo.inspect_file])
def test_an_empty_path_is_no_directory(call: Callable[[str], Any]) -> None:
    """H44."""
    with pytest.raises(ValueError, match=r"open: path must name a file or a directory, got ''"):
        call("")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "must be a path, got None"),
        (5, "must be a path, got 5"),
        (b"a.safetensors", "must be a path, got bytes"),
        ("a\0b", "must have no null character, got 'a\\x00b'"),
        ("\ud800.onnx", "must be text that files can be named by, got '\\ud800.onnx'"),
    ],
)
def test_h44_what_is_no_path_is_refused_by_name(tmp_path: Path, path: Any, message: str) -> None:
    save(tmp_path / "a.safetensors", {"fc.weight": np.ones((64, 64), np.float32)})
    with pytest.raises((TypeError, ValueError)) as caught:
        files.open(path)
    assert str(caught.value) == f"open: path {message}"
    if isinstance(path, str):
        with pytest.raises(ValueError, match="create: path must") as caught:
            mo.quantize_file(tmp_path / "a.safetensors", path)
        assert type(caught.value) is ValueError


def test_an_empty_destination_is_none(tmp_path: Path) -> None:
    """H44."""
    save(tmp_path / "a.safetensors", {"fc.weight": np.ones((64, 64), np.float32)})
    with pytest.raises(ValueError, match=r"create: path must name a file or a directory, got ''"):
        mo.quantize_file(tmp_path / "a.safetensors", "")
