"""Several writers of one path that may not replace anything: one wins, and what is there is whole (H40)."""

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import sharded
from files_samples import infos, left_over
from modelopt_rs.containers.atomic import AtomicFile
from modelopt_rs.containers.atomic_directory import AtomicDirectory
from modelopt_rs.containers.atomic_pair import AtomicPair, locked
from modelopt_rs.files import CheckpointSink, CheckpointSource, SafetensorsSink, SafetensorsSource

# Of the threads of another test's library (JAX), which a child never uses.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

WRITERS = 3


def write_file(path: Path, mark: bytes, ready: Callable[[], Any]) -> None:
    with AtomicFile(path, durable=False, overwrite=False) as file:
        file.write_at(mark, 0)
        ready()
        file.commit()


def write_pair(path: Path, mark: bytes, ready: Callable[[], Any]) -> None:
    pair = AtomicPair(path, durable=False, overwrite=False)
    os.pwrite(pair.model_fd, mark, 0)
    os.pwrite(pair.data_fd, mark, 0)
    pair.name_data(f"{path.name}-{mark.decode()}.data")
    ready()
    with locked(path.parent):
        pair.commit()


def write_directory(path: Path, mark: bytes, ready: Callable[[], Any]) -> None:
    with AtomicDirectory(path, durable=False) as directory:
        (directory.temporary / "mark").write_bytes(mark)
        ready()
        directory.commit()


def content(path: Path) -> bytes:
    return (path / "mark" if path.is_dir() else path).read_bytes()


def disarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither unnamed files nor renames that don't replace."""
    real = os.open

    def no_tmpfile(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError("not supported")
        return real(path, flags, *args, **kwargs)

    def no_library(*args: Any, **kwargs: Any) -> Any:
        raise OSError("not found")

    monkeypatch.setattr(os, "open", no_tmpfile)
    monkeypatch.setattr(ctypes, "CDLL", no_library)


@pytest.mark.parametrize("races", [30, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("system", ["new", "old"])
@pytest.mark.parametrize("write", [write_file, write_pair, write_directory])
def test_one_of_several_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None], system: str, races: int
) -> None:
    """H40. All have written and wait for each other before they put it in place."""
    if system == "old":
        disarm(monkeypatch)
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(WRITERS), fork.SimpleQueue()

    def race(mark: bytes) -> None:
        won = []
        for i in range(races):
            try:
                write(tmp_path / str(i), mark, lambda: barrier.wait(60))
                won.append(i)
            except FileExistsError:
                pass
            except BaseException:
                barrier.abort()  # or the others would wait for ever
                raise
            barrier.wait(60)
        results.put((mark, won))

    processes = [fork.Process(target=race, args=(b"%d" % i,)) for i in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)  # how long a disk takes is not what is tested
        assert process.exitcode == 0
    winners = dict(results.get() for _ in processes)
    assert sorted(i for won in winners.values() for i in won) == list(range(races))
    for mark, won in winners.items():
        assert {content(tmp_path / str(i)) for i in won} <= {mark}
    assert not left_over(tmp_path)
    if write is write_pair:  # and no loser's data
        assert len(list(tmp_path.iterdir())) == 2 * races


@pytest.mark.parametrize("system", ["new", "old"])
@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "link"])
def test_what_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, system: str) -> None:
    """H40."""
    if system == "old":
        disarm(monkeypatch)

    def appear(path: Path) -> None:
        if kind == "file":
            path.write_bytes(b"mine")
        elif kind == "link":
            path.symlink_to("nowhere")
        else:
            path.mkdir()
            if kind == "directory":
                (path / "mark").write_bytes(b"mine")

    for write in (write_file, write_pair, write_directory):
        path = tmp_path / write.__name__
        if write is write_directory and (system, kind) == ("old", "empty directory"):
            continue  # an old rename takes one for nothing
        with pytest.raises(OSError) as caught:  # noqa: PT011
            write(path, b"new", lambda path=path: appear(path))
        # Where there is no rename that says so, the kernel speaks of what it found.
        assert isinstance(caught.value, FileExistsError | NotADirectoryError)
        assert caught.value.filename == str(path)
        if kind in ("file", "directory"):
            assert content(path) == b"mine"
    assert not left_over(tmp_path)


def test_sinks_ask_again_in_the_end(tmp_path: Path) -> None:
    """H40. At commit, after the check when the sink was opened."""
    arrays = {"w": np.ones((2, 2), np.float32)}
    path = tmp_path / "a.safetensors"
    with SafetensorsSink(path, infos(arrays), overwrite=False) as sink:
        sink.write("w", arrays["w"])
        path.write_bytes(b"mine")
        with pytest.raises(FileExistsError, match="pass overwrite=True"):
            sink.commit()
    assert path.read_bytes() == b"mine"
    with pytest.raises(FileExistsError):
        SafetensorsSink(path, infos(arrays), overwrite=False)
    tensors = {"a": ("F32", arrays["w"]), "b": ("F32", arrays["w"])}
    with (
        CheckpointSource(sharded(tmp_path / "model", tensors)) as source,
        CheckpointSink(source, tmp_path / "out", list(source.tensors.values())) as sink,
    ):
        for name in source.tensors:
            sink.write(name, source.read(name))
        (tmp_path / "out").mkdir()
        with pytest.raises(FileExistsError):
            sink.commit()
    assert list((tmp_path / "out").iterdir()) == []
    assert not left_over(tmp_path)
    save_again = SafetensorsSink(path, infos(arrays))
    with save_again as sink:
        sink.write("w", arrays["w"])
        sink.commit()
    with SafetensorsSource(path) as source:
        assert source.read("w").sum() == 4
