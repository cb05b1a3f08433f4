"""safetensors files, read: hazards E1 to E20 of untrusted input, and a differential run against upstream."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from files_samples import SAMPLE, entry, raw, save
from modelopt_rs import files
from modelopt_rs._core import FormatError, LimitError, UnsupportedError
from modelopt_rs.files import SafetensorsSink, SafetensorsSource, TensorInfo

DATA = bytes(range(4))


def refused(path: Path, content: bytes, match: str, kind: type[Exception] = FormatError) -> None:
    path.write_bytes(content)
    with pytest.raises(kind, match=match) as caught:
        SafetensorsSource(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert type(caught.value) is kind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_reads_tensors_tiles_and_metadata(path: Path) -> None:
    arrays = {"w": np.arange(35, dtype=np.float32).reshape(5, 7), "s": np.array(2.5, np.float16)}
    arrays["three"] = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    with SafetensorsSource(path) as source:
        assert dict(source.metadata) == {"format": "pt"}
        assert source.tensors["three"] == TensorInfo("three", "I64", (2, 3, 4), 192)
        for name, array in arrays.items():
            np.testing.assert_array_equal(source.read(name), array, strict=True)
            for limit in (1, 28, 57, 10_000):
                rows = [(tile.first_row, tile.array.copy()) for tile in source.tiles(name, limit)]
                assert [first for first, _ in rows] == list(np.cumsum([0] + [len(a) for _, a in rows[:-1]]))
                whole = np.concatenate([a for _, a in rows])
                assert all(a.nbytes <= max(limit, source.tensors[name].row_nbytes) for _, a in rows)
                np.testing.assert_array_equal(whole.reshape(array.shape), array, strict=True)
        addresses = {tile.array.ctypes.data for tile in source.tiles("w", 28)}
        assert len(addresses) == 1
    with pytest.raises(ValueError, match="closed"):
        source.read("w")


def test_two_iterators_do_not_share_a_buffer(path: Path) -> None:
    save(path, SAMPLE)
    with SafetensorsSource(path) as source:
        pairs = zip(source.tiles("a.weight", 12), source.tiles("a.weight", 12), strict=True)
        for left, right in pairs:
            np.testing.assert_array_equal(left.array, right.array)
            assert left.array.ctypes.data != right.array.ctypes.data


def test_unknown_names_are_key_errors(path: Path) -> None:
    save(path, SAMPLE)
    with SafetensorsSource(path) as source:
        assert "\ud800" not in source.tensors  # half a character: JSON may name it, in an index
        with pytest.raises(KeyError, match="no tensor 'x'"):
            source.read("x")
        with pytest.raises(KeyError):
            source.tiles("x", 1)


def test_e1_malformed_files_take_no_memory(tmp_path: Path) -> None:
    """Peak resident memory while files are refused: at most 8 MiB and 4 times the largest of them."""
    huge = 2**62
    cases = {
        "length": raw("{}", length=2**64 - 1),
        "shape": raw({"a": entry("F32", (huge,), 0, 4 * huge)}),
        "offsets": raw({"a": entry("U8", (huge,), 0, huge)}, DATA),
        "names": raw("{" + ",".join(f'"{i}":[' for i in range(50_000))),
        "integers": raw('{"a":{"dtype":"U8","data_offsets":[0,0],"shape":[' + "1," * 500_000 + "1]}}"),
        "nesting": raw('{"a":' + "[" * 1_000_000),
        "text": raw('{"' + "x" * 1_000_000),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    script = """
        import resource, sys
        from modelopt_rs.files import SafetensorsSource
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = peak()
        for path in sys.argv[1:]:
            try:
                SafetensorsSource(path)
            except ValueError as e:
                assert type(e).__name__ in ("FormatError", "LimitError"), e
                assert len(str(e)) < 500
            else:
                raise AssertionError(path)
        print(peak() - before)
    """
    paths = [str(tmp_path / name) for name in cases]
    command = [sys.executable, "-c", textwrap.dedent(script), *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= (8 << 20) + 4 * max(map(len, cases.values()))


def test_e2_extents_against_the_file(path: Path) -> None:
    content = raw({"blk.0.w": entry("U8", (9_000_000,), 0, 9_000_000)}, DATA)
    refused(path, content, r"tensor 'blk.0.w' \(record 0\): offset\+size 9,000,000 exceeds data length 4$")
    refused(path, raw({"a": entry("U8", (4,), 4, 0)}, DATA), "end 0 is before begin 4")


def test_e3_sizes_do_not_overflow(path: Path) -> None:
    for shape in [(2**62,), (2**32, 2**32), (2**63 - 1, 3), (2**64 - 1,), (2**62 + 1,)]:
        refused(path, raw({"a": entry("F32", shape, 0, 4)}, DATA), r"more than 2\^63 - 1 bytes")


def test_e5_header_length(path: Path) -> None:
    refused(path, b"", "the file is empty")
    refused(path, b"1234567", "7 bytes are less than the 8")
    refused(path, bytes(8), "must begin with '{'")
    refused(path, raw("{}", length=3), "header length 3 exceeds file length 10; the file was cut short$")
    refused(path, raw("{}", length=2**64 - 1), "header length 18,446,744,073,709,551,615 exceeds")
    refused(path, b"no model at all", "exceeds file length 15; it is no safetensors file$")
    path.write_bytes(raw(b"{}" + b" " * 98))
    with pytest.raises(LimitError, match=r"header length 100 exceeds max_header=99$"):
        SafetensorsSource(path, max_header=99)
    SafetensorsSource(path, max_header=100).close()
    with path.open("wb") as file:
        file.write((65 << 20).to_bytes(8, "little"))
        file.truncate(80 << 20)
    with pytest.raises(LimitError, match="max_header=67,108,864"):
        SafetensorsSource(path)


def test_e6_max_tensors(path: Path) -> None:
    path.write_bytes(raw({str(i): entry("U8", (0,), 0, 0) for i in range(4)}))
    with pytest.raises(LimitError, match="more than 3 tensors"):
        SafetensorsSource(path, max_tensors=3)
    with SafetensorsSource(path, max_tensors=4) as source:
        assert len(source.tensors) == 4


def test_e6_a_header_takes_at_most_four_times_its_size(path: Path) -> None:
    """The smallest entries that there are, in a process of its own (the peak of this one is history)."""
    n = 100_000
    path.write_bytes(raw({f"{i}": entry("U8", (1,), i, i + 1) for i in range(n)}, bytes(n)))
    script = """
import sys
from modelopt_rs.files import SafetensorsSource

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

before = status("VmRSS:")
with SafetensorsSource(sys.argv[1]) as source:
    assert len(source.tensors) == 100_000
print(status("VmHWM:") - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4 * path.stat().st_size + (8 << 20)  # the slack of E1


def test_e7_duplicates(path: Path) -> None:
    one = json.dumps(entry("U8", (4,), 0, 4))
    two = json.dumps(entry("U8", (4,), 4, 8))
    where = r"tensor 'x' stands twice: record 0 at data offset 0 and record 1 at data offset 4"
    refused(path, raw(f'{{"x":{one},"x":{two}}}', DATA * 2), where)
    refused(path, raw(f'{{"x":{one},"\\u0078":{two}}}', DATA * 2), where)
    refused(path, raw('{"x":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', DATA), "twice")
    refused(path, raw('{"__metadata__":{"k":"1","k":"1"}}'), "key 'k' stands twice")


def test_e8_exact_cover(path: Path) -> None:
    def two(a: tuple[int, int], b: tuple[int, int]) -> dict[str, object]:
        return {"a": entry("U8", (a[1] - a[0],), *a), "b": entry("U8", (b[1] - b[0],), *b)}

    refused(path, raw(two((0, 4), (2, 8)), DATA * 2), "overlaps")
    refused(path, raw(two((0, 4), (0, 4)), DATA), "overlaps")
    refused(path, raw(two((0, 4), (5, 8)), DATA * 2), "leaves a hole")
    refused(path, raw(two((0, 4), (4, 8)), DATA * 3), "tensors end at data offset 8, data length is 12")
    path.write_bytes(raw(two((4, 8), (0, 4)), DATA + b"abcd"))
    with SafetensorsSource(path) as source:
        assert list(source.tensors) == ["b", "a"]
        assert source.read("a").tobytes() == b"abcd"


def test_e9_deep_nesting(path: Path) -> None:
    for start in ('{"a":', '{"a":{"dtype":', '{"a":{"shape":[', '{"__metadata__":', '{"a":{"b":'):
        refused(path, raw(start + "[" * 1_000_000), "not valid JSON|unknown key 'b'")


def test_e13_every_prefix_is_refused(path: Path) -> None:
    arrays = {"w": np.arange(400, dtype=np.float32).reshape(20, 20), "é": np.arange(30, dtype=np.uint8)}
    save(path, arrays, {"format": "pt"}, durable=False)
    content = path.read_bytes()
    assert 1_700 < len(content) < 2_048
    for n in range(len(content)):
        path.write_bytes(content[:n])
        with pytest.raises(FormatError):
            SafetensorsSource(path)


def test_e14_every_bit_flip_of_the_header(path: Path) -> None:
    """What is accepted is in bounds, reads whole, and is accepted by upstream as well."""
    save(path, SAMPLE, {"format": "pt"}, durable=False)
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    accepted = 0
    for bit in range(8 * header_end):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            source = SafetensorsSource(path)
        except FormatError:
            continue
        with source:
            arrays = {name: source.read(name) for name in source.tensors}
            assert sum(a.nbytes for a in arrays.values()) == len(content) - header_end
        assert {name for name, _ in safetensors.deserialize(bytes(flipped))} == set(arrays)
        accepted += 1
    assert accepted > 20  # letters of names


def test_e15_file_that_shrinks(path: Path) -> None:
    save(path, {"w": np.zeros((64, 1024), np.float32)})
    with SafetensorsSource(path) as source:
        tiles = source.tiles("w", 4096)
        next(tiles)
        os.truncate(path, 100_000)
        with pytest.raises(FormatError, match=r"model.safetensors: file shrank while reading$"):
            for _ in tiles:
                pass
        with pytest.raises(FormatError, match="shrank"):
            source.read("w")


def test_e16_names_are_escaped_and_bounded(path: Path) -> None:
    evil = "\x1b[2J\n../../etc/passwd\0\u202e"
    save(path, {evil: np.zeros(4, np.uint8)})
    with SafetensorsSource(path) as source:
        assert list(source.tensors) == [evil]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    content = raw(json.dumps({evil: {"x": 1}}))
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        SafetensorsSource(path)
    assert str(caught.value).isprintable()
    refused(path, raw({"n" * 65_537: entry()}, DATA), "65,537 bytes, limit 65,536", LimitError)
    refused(path, raw(b'{"\xff":' + json.dumps(entry()).encode() + b"}", DATA), "not valid JSON")


def test_e17_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null"), tmp_path):
        with pytest.raises(ValueError, match=f"{path}: not a regular file"):
            SafetensorsSource(path)
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        files.open(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError) as caught:
        files.open(tmp_path / "absent")
    assert caught.value.filename == str(tmp_path / "absent") or caught.value.filename == tmp_path / "absent"


def test_symbolic_links_are_followed(path: Path) -> None:
    save(path, SAMPLE)
    link = path.with_name("link")
    link.symlink_to(path)
    with files.open(link) as source:
        assert set(source.tensors) == set(SAMPLE)


def test_open_says_what_is_supported(tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(b"data" + bytes(100))
    with pytest.raises(FormatError, match=r"x.dat: no model that is known: those are safetensors files, "):
        files.open(tmp_path / "x.dat")
    (tmp_path / "short.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="the file is empty"):
        files.open(tmp_path / "short.safetensors")


def test_e19_unknown_dtypes(path: Path) -> None:
    for dtype in ("F4", "F6_E2M3", "Q4_0", "f32", ""):
        content = raw({"a": entry(dtype, (0,), 0, 0)})
        refused(path, content, f"tensor 'a' .*dtype '{dtype}' is not supported", UnsupportedError)


ONE = json.dumps(entry())
# What the two readers make of a file: None where they agree, else who accepts it and why we don't.
CORPUS: dict[str, tuple[bytes, str | None]] = {
    "plain": (raw({"a": entry()}, DATA), None),
    "empty": (raw("{}"), None),
    "metadata only": (raw('{"__metadata__":{}}'), None),
    "padded": (raw('{"a":' + ONE + "}   ", DATA), None),
    "zero size": (raw({"a": entry("F32", (0, 5), 0, 0)}), None),
    "scalar": (raw({"a": entry("F32", (), 0, 4)}, DATA), None),
    "any order": (raw({"a": entry("U8", (1,), 3, 4), "b": entry("U8", (3,), 0, 3)}, DATA), None),
    "not aligned": (raw({"a": entry("U8", (1,), 0, 1), "b": entry("F16", (1,), 1, 3)}, DATA[:3]), None),
    "hole": (raw({"a": entry("U8", (3,), 1, 4)}, DATA), None),
    "trailing": (raw({"a": entry()}, DATA + b"x"), None),
    "overlap": (raw({"a": entry(), "b": entry()}, DATA), None),
    "too long": (raw({"a": entry("U8", (5,), 0, 5)}, DATA), None),
    "wrong size": (raw({"a": entry("U8", (3,), 0, 4)}, DATA), None),
    "overflow": (raw({"a": entry("F32", (2**62, 4), 0, 0)}), None),
    "negative": (raw({"a": entry("U8", (-4,), 0, 4)}, DATA), None),
    "float": (raw('{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}', DATA), None),
    "unknown dtype": (raw({"a": entry("F128", (0,), 0, 0)}), None),
    "no dtype": (raw('{"a":{"shape":[4],"data_offsets":[0,4]}}', DATA), None),
    "number in metadata": (raw('{"__metadata__":{"a":1}}'), None),
    "not an object": (raw("[]"), None),
    "garbage": (raw('{"a":' + ONE + "}x", DATA), None),
    "no header": (raw(""), None),
    "dtype twice": (raw('{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', DATA), None),
    "name twice": (raw('{"a":' + ONE + ',"a":' + ONE + "}", DATA), "E7: the last one wins there"),
    "key twice": (raw('{"__metadata__":{"k":"1","k":"2"}}'), "E7: the last one wins there"),
    "unknown key": (raw({"a": {**entry(), "x": 1}}, DATA), "one way to read a file: skipped there"),
    "list for object": (raw({"a": ["U8", [4], [0, 4]]}, DATA), "not in the format: an accident of serde"),
    "null metadata": (raw('{"__metadata__":null}'), "not in the format: an accident of serde"),
    "space in front": (raw(' {"a":' + ONE + "}", DATA), "the format says: begins with a brace"),
    "4-bit": (raw({"a": entry("F4", (8,), 0, 4)}, DATA), "E19: dtypes below a byte are not implemented"),
    "33 axes": (raw({"a": entry("U8", (1,) * 32 + (4,), 0, 4)}, DATA), "NumPy 1 has 32 axes"),
    "long name": (raw({"n" * 65_537: entry()}, DATA), "E16: names are bounded"),
    "numpy can't": (raw({"a": entry("F32", (0, 2**62), 0, 0)}), "A12: NumPy can't hold the shape"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_e20_differential_against_upstream(name: str, path: Path) -> None:
    content, reason = CORPUS[name]
    path.write_bytes(content)

    def accepts(read: Callable[[], object]) -> bool:
        try:
            read()
        except (ValueError, safetensors.SafetensorError):
            return False
        return True

    ours = accepts(lambda: SafetensorsSource(path).close())
    theirs = accepts(lambda: safetensors.safe_open(path, "np").keys())
    assert (ours, theirs) in ((True, True), (False, False)) if reason is None else (ours, theirs) == (False, True)


OURS = {
    np.dtype(numpy): dtype
    for numpy, dtype in {
        "?": "BOOL",
        "u1": "U8",
        "i1": "I8",
        "u2": "U16",
        "i2": "I16",
        "f2": "F16",
        "u4": "U32",
        "i4": "I32",
        "f4": "F32",
        "u8": "U64",
        "i8": "I64",
        "f8": "F64",
        "c8": "C64",
    }.items()
}


@st.composite
def models(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = {}
    for name in names:
        dtype = draw(st.sampled_from(list(OURS)))
        shape = draw(st.lists(st.integers(0, 5), max_size=4))
        data = rng.bytes(int(np.prod(shape, dtype=int)) * dtype.itemsize)
        array = np.frombuffer(bytearray(data), np.uint8 if dtype.kind == "b" else dtype).reshape(shape)
        arrays[name] = np.asarray(array % 2 == 1) if dtype.kind == "b" else array
    return arrays


@given(models(), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("é\n"), max_size=3))
def test_round_trip_with_upstream(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    arrays.pop("__metadata__", None)
    folder = tmp_path_factory.getbasetemp()
    theirs, ours = folder / "theirs.safetensors", folder / "ours.safetensors"
    safetensors.numpy.save_file(arrays, theirs, metadata or None)
    with SafetensorsSource(theirs) as source:
        with SafetensorsSink(ours, list(source.tensors.values()), source.metadata, durable=False) as sink:
            for name in source.tensors:
                assert source.tensors[name].dtype == OURS[arrays[name].dtype]
                assert source.read(name).tobytes() == arrays[name].tobytes()
                for tile in source.tiles(name, 16):
                    sink.write(name, tile.array)
            sink.commit()
        assert dict(source.metadata) == metadata
    with safetensors.safe_open(ours, "np") as file:
        assert (file.metadata() or {}) == metadata
    back = safetensors.numpy.load_file(ours)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
