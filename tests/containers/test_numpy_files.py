"""Files of NumPy that somebody gives: .npz and .npy, sound and hostile."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelopt_rs import FormatError
from modelopt_rs.containers.numpy_files import read_npy, read_npz


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY\x01\x00", b"text"])
def test_a_file_that_is_no_npz_is_malformed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"data\.npz: not an \.npz file of arrays"):
        read_npz(path)


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(FormatError, match=r"not an \.npz file of arrays"):
        read_npz(tmp_path / "x.npy")


def test_what_is_pickled_in_a_file_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return os.mkdir, (str(tmp_path / "evil"),)

    np.savez(tmp_path / "data.npz", x=np.array([Evil()], object))
    with pytest.raises(FormatError, match="never unpickled"):
        read_npz(tmp_path / "data.npz")
    assert not (tmp_path / "evil").exists()


def declared(shape: str, data: bytes = bytes(64), version: tuple[int, int] = (1, 0)) -> bytes:
    """An array's file whose header says what it likes."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header + data


def packed(path: Path, content: bytes, how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("x.npy", content)
    return path


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("shape", ["(64000000000000,)", "(1000000, 1000000, 100000000000000)", "(17,)"])
def test_e1_an_array_that_declares_more_than_the_file_has_is_refused_by_name(
    tmp_path: Path, shape: str, version: tuple[int, int], how: int
) -> None:
    """What a file declares is never allocated: 233 TiB would be a MemoryError."""
    content = declared(shape, version=version)
    with pytest.raises(FormatError, match=r"a\.npz: not an \.npz file of arrays: .*x declares [\d,]+ bytes and has"):
        read_npz(packed(tmp_path / "a.npz", content, how))
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.npy: not an \.npy file of an array: .*declares [\d,]+ bytes and has"):
        read_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("header", ["(1,", "(-3,)", "('a',)", "(1.5,)", "[" * 200, "(True, 10)", "{}"])
def test_a_header_that_says_no_shape_is_malformed(tmp_path: Path, header: str) -> None:
    with pytest.raises(FormatError, match=r"a\.npz: not an \.npz file"):
        read_npz(packed(tmp_path / "a.npz", declared(header)))


def test_archives_are_read_as_they_were_saved(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"a": np.ones((2, 3)), "b": np.zeros(0), "c": np.array("x"), "d": np.float16(1)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read = read_npz(tmp_path / "a.npz")
        assert {name: array.tobytes() for name, array in read.items()} == {
            name: np.asarray(array).tobytes() for name, array in arrays.items()
        }


@pytest.mark.parametrize("cut", [100, 150, 500])
def test_a_compressed_array_that_is_damaged_is_malformed(tmp_path: Path, cut: int) -> None:
    made = io.BytesIO()
    np.savez_compressed(made, x=np.random.default_rng(0).standard_normal(100))
    data = bytearray(made.getvalue())
    data[cut] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(FormatError, match=r"a\.npz: not an \.npz file of arrays"):
        read_npz(tmp_path / "a.npz")


def test_arrays_of_objects_are_refused_with_how_strings_are_saved(tmp_path: Path) -> None:
    """Strings of pandas are objects; text of NumPy is read."""
    words = np.array(["a", "bc"], dtype=object)
    np.savez(tmp_path / "a.npz", s=words)
    np.save(tmp_path / "a.npy", words)
    why = r"has Python objects, which are never unpickled; save strings as array\.astype\(str\)"
    with pytest.raises(FormatError, match=rf"a\.npz: not an \.npz file of arrays: 's {why}"):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(FormatError, match=rf"a\.npy: not an \.npy file of an array: '{why}"):
        read_npy(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", s=words.astype(str))
    assert read_npz(tmp_path / "b.npz")["s"].tolist() == ["a", "bc"]
