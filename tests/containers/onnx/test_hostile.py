"""ONNX files that are damaged or hostile: cases E1 to E3, E9, E10, E13 to E17, E19, E20."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from modelopt_rs import FormatError, LimitError, UnsupportedError  # noqa: E402
from modelopt_rs.containers.onnx import layout  # noqa: E402
from modelopt_rs.containers.onnx.wire import LAZY_BYTES, MAX_DEPTH, field, varint  # noqa: E402
from modelopt_rs.files.onnx import OnnxSource  # noqa: E402
from onnx_samples import CORPUS, branches, mlp, numbers, resave, save, value  # noqa: E402
from onnx_samples import model as make_model  # noqa: E402

helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
RAW = numbers((64, 32)).tobytes()


def tensor(*parts: bytes, name: bytes = b"w", dims: tuple[int, ...] = (64, 32), dtype: int = 1) -> bytes:
    """The bytes of a TensorProto."""
    shape = b"".join(b"\x08" + varint(n % 2**64) for n in dims)
    return shape + b"\x10" + varint(dtype) + field(8, name) + b"".join(parts)


def wire(*initializers: bytes, more: bytes = b"", version: int = 10) -> bytes:
    """The bytes of a ModelProto with initializers, and more fields of its graph."""
    graph = field(2, b"g") + b"".join(field(5, t) for t in initializers) + more
    return b"\x08" + varint(version) + field(8, b"\x10\x11") + field(7, graph)


def refused(path: Path, data: bytes, match: str, kind: type[FormatError] = FormatError, **limits: int) -> None:
    path.write_bytes(data)
    with pytest.raises(FormatError, match=match) as caught:
        OnnxSource(path, **limits)
    assert type(caught.value) is kind
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600 + 2 * len(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.onnx"


def test_the_bytes_made_here_are_a_model(path: Path) -> None:
    path.write_bytes(wire(tensor(field(9, RAW))))
    with OnnxSource(path) as source:
        np.testing.assert_array_equal(source.read("w"), numbers((64, 32)))
    assert onnx.load(path).graph.initializer[0].raw_data == RAW


BIG = field(9, RAW)
WIRE = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello world, this is no model", "byte 2: field 13: groups are not supported"),
    "zeros": (bytes(4096), "byte 0: 0 can't be the number of a field"),
    "field number over 29 bits": (b"\xff" * 5 + b"\x01", r"byte 0: [\d,]+ can't be the number of a field|4,294"),
    "varint of 11 bytes": (b"\x08" + b"\x80" * 10 + b"\x01", "byte 1: a number is longer than 64 bits"),
    "varint of 65 bits": (b"\x08" + b"\xff" * 9 + b"\x02", "byte 1: a number is longer than 64 bits"),
    "varint cut": (b"\x08\x80", "byte 1: the message ends in a number"),
    "length past the end": (field(7, b"abc")[:-1], "field 7 has 3 bytes, 2 are left; was the file cut short[?]"),
    "length of 2^64 - 1": (b"\x3a" + varint(2**64 - 1), "field 7 has 18,446,744,073,709,551,615 bytes, 0 are left"),
    "length of 2^63": (b"\x3a" + varint(2**63) + bytes(9), "field 7 has 9,223,372,036,854,775,808 bytes, 9 are left"),
    "fixed cut": (b"\x09\x00", "byte 0: field 1 has 8 bytes, 1 are left"),
    "group": (b"\x0b\x0c", "byte 0: field 1: groups are not supported"),
    "end of group": (b"\x0c", "field 1: groups are not supported"),
    "wire type 6": (b"\x0e", "byte 0: field 1: unknown wire type 6"),
    "wire type 7": (b"\x0f", "unknown wire type 7"),
    "graph as a number": (b"\x38\x01", "byte 0: field 7 has wire type 0, not 2"),
    "inner length": (wire(tensor(BIG))[:-1], "field 7 has 8,"),
    "payload past its tensor": (
        wire(tensor(b"\x4a" + varint(9000) + RAW)),
        r"field 9 has 9,000 bytes, 8,192 are left",
    ),
    "two payloads": (wire(tensor(BIG, BIG)), "a tensor's data stand in two pieces"),
    "payload and external": (
        wire(tensor(BIG, field(13, field(1, b"location") + field(2, b"x")))),
        "a tensor has data of its own and external data",
    ),
    "payload said to be external": (wire(tensor(BIG, b"\x70\x01")), "data of its own and external data"),
    "no graph": (b"\x08\x0a" + field(8, b"\x10\x11"), "no graph; not a whole ONNX model"),
    "no opset": (b"\x08\x0a" + field(7, field(2, b"g")), "no opset import; not a whole ONNX model"),
}


@pytest.mark.parametrize("name", WIRE)
def test_e10_wire_format(path: Path, name: str) -> None:
    """E1, E2, E3, E10."""
    data, match = WIRE[name]
    kind = UnsupportedError if name == "two payloads" else FormatError
    refused(path, data, match, kind)


TENSORS = {
    "negative axis": (tensor(BIG, dims=(-1, 32)), r"initializer 'w': shape \(-1, 32\) has a negative axis"),
    "axis of 2^63": (tensor(BIG, dims=(2**63, 2)), "has a negative axis"),
    "too many elements": (tensor(BIG, dims=(2**62, 2**62)), "more elements than fit any memory"),
    "product wraps to 2,048": (tensor(BIG, dims=(2**53, 2**22)), "more elements than fit any memory"),
    "no elements, but a huge axis": (tensor(dims=(0, 2**62)), "more elements than fit any memory"),
    "too short": (tensor(BIG, dims=(64, 33)), "raw_data of 8,192 bytes, its shape and type need 8,448"),
    "too long": (tensor(BIG, dims=(64, 31)), "raw_data of 8,192 bytes, its shape and type need 7,936"),
    "small too short": (tensor(field(9, b"abc"), dims=(1,)), "raw_data of 3 bytes, its shape and type need 4"),
    "of another type": (tensor(BIG, dtype=11), "raw_data of 8,192 bytes, its shape and type need 16,384"),
    "no data": (tensor(), "no data of 0 bytes, its shape and type need 8,192"),
    "raw and typed": (tensor(BIG, field(4, bytes(8))), "float_data and external data|raw_data and float_data"),
    "small raw and typed": (tensor(field(9, b"abcd"), field(4, bytes(4)), dims=(1,)), "raw_data and float_data"),
    "two typed fields": (tensor(field(4, bytes(4)), field(7, b"\1"), dims=(1,)), "F32 can't stand in float_data and"),
    "large field of another type": (tensor(field(10, RAW)), "F32 can't stand in double_data"),
    "large floats of another type": (tensor(field(4, RAW), dtype=7, dims=(1024,)), "I64 can't stand in float_data"),
    "small field of another type": (tensor(field(7, b"\1"), dims=(1,)), "F32 can't stand in int64_data"),
    "entries missing": (tensor(field(7, bytes(5)), dims=(6,), dtype=7), "5 entries of int64_data, its shape needs 6"),
    "packed entries": (tensor(field(5, bytes(5)), dims=(3, 3), dtype=13), "can't stand in int32_data"),
    "half-packed entries": (tensor(field(5, bytes(9)), dims=(3, 3), dtype=22), "9 entries of int32_data, its shape n"),
    "strings in raw_data": (tensor(BIG, dtype=8), "strings must stand in the tensor itself"),
    "small strings in raw_data": (tensor(field(9, b"ab"), dims=(1,), dtype=8), "strings must stand in the tensor"),
    "strings missing": (tensor(field(6, b"ab"), dims=(2,), dtype=8), "1 strings, its shape needs 2"),
    "external data left over": (
        tensor(field(9, b"abcd"), field(13, field(1, b"location")), dims=(1,)),
        "external data without its data_location",
    ),
    "no name": (tensor(BIG, name=b""), "an initializer has no name"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_e10_tensors(path: Path, name: str) -> None:
    """E2, E3, E10: what a tensor says of itself must be true."""
    data, match = TENSORS[name]
    refused(path, wire(data), match)


@pytest.mark.parametrize("dtype", [0, 29, 1000, -1])
def test_e19_unknown_dtypes_are_named(path: Path, dtype: int) -> None:
    refused(path, wire(tensor(BIG, dtype=dtype % 2**64)), f"data type {dtype} is not known", UnsupportedError)


@pytest.mark.parametrize("version", [1, 2, 10_000])
def test_e19_unknown_versions_are_named(path: Path, version: int) -> None:
    refused(path, wire(version=version), f"ir_version {version}, supported are 3 to ", UnsupportedError)


def test_e19_what_is_not_supported_is_named(path: Path) -> None:
    sparse = field(15, field(1, tensor(BIG)))
    refused(path, wire(more=sparse), "sparse tensors are not supported", UnsupportedError)
    refused(path, wire(more=field(15, b"")), "sparse tensors are not supported", UnsupportedError)
    refused(path, wire(tensor(field(3, b"\x08\x00"), BIG)), "tensors in segments", UnsupportedError)
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    node = helper.make_node("Constant", [], ["y"], sparse_value=helper.make_sparse_tensor(values, indices, [4]))
    proto = make_model(helper.make_graph([node], "g", [], [value("y", [4])]))
    refused(
        path,
        proto.SerializeToString(),
        "attribute 'sparse_value' of node .*: sparse tensors are not supported; store",
        UnsupportedError,
    )
    proto = mlp()
    proto.graph.node[0].attribute.add(name="alpha", f=1.0)
    refused(path, proto.SerializeToString(), "attribute 'alpha' of node 'first': has no type", UnsupportedError)


def twice(names: Callable[[Any], Any]) -> bytes:
    proto = mlp()
    entries = names(proto)
    entries.add().CopyFrom(entries[0])
    return bytes(proto.SerializeToString())


TWICE = {
    "initializer 'w'": lambda p: p.graph.initializer,
    "input 'x'": lambda p: p.graph.input,
    "metadata key 'author'": lambda p: p.metadata_props,
}


@pytest.mark.parametrize("what", TWICE)
def test_e7_names_stand_once(path: Path, what: str) -> None:
    refused(path, twice(TWICE[what]), f"{what} stands twice")


def test_e7_names_of_values_stand_once(path: Path) -> None:
    refused(path, twice(lambda p: p.graph.node), "value 'h' is made twice")
    proto = mlp()
    proto.graph.node[0].attribute.extend([helper.make_attribute("a", 1)] * 2)
    refused(path, proto.SerializeToString(), "attribute of node 'first' 'a' stands twice")
    proto = CORPUS["functions"]()
    proto.functions.add().CopyFrom(proto.functions[0])
    refused(path, proto.SerializeToString(), "function 'custom::dense:' stands twice")
    proto = branches()
    then = body(proto, "then_branch")
    then.initializer.add().CopyFrom(then.initializer[0])
    refused(path, proto.SerializeToString(), "initializer of node 'If' 'w' stands twice")


def body(proto: Any, name: str) -> Any:
    return next(a.g for a in proto.graph.node[0].attribute if a.name == name)


def test_names_must_be_defined(path: Path) -> None:
    proto = mlp()
    proto.graph.node[1].input[0] = "nothing"
    refused(path, proto.SerializeToString(), "input 'nothing' of node 'second' is not defined")
    proto = mlp()
    proto.graph.output[0].name = "nothing"
    refused(path, proto.SerializeToString(), "output 'nothing' is not defined in its graph")
    proto = CORPUS["functions"]()
    proto.functions[0].output[0] = "nothing"
    refused(path, proto.SerializeToString(), "output 'nothing' of function 'dense' is not defined in its graph")
    proto = branches()
    body(proto, "then_branch").node[0].input[0] = "k2"
    refused(path, proto.SerializeToString(), "input 'k2' of node 'Add' of node 'If' is not defined")


def nested(depth: int, filler: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    graph = field(10, b"x" * filler)
    for _ in range(depth):
        graph = field(1, field(4, b"Own") + field(5, field(1, b"b") + field(6, graph) + b"\xa0\x01\x05"))
    return graph


@pytest.mark.parametrize("filler", [0, 2 * LAZY_BYTES])
def test_e9_nesting(path: Path, filler: int) -> None:
    """In large messages the scanner stops, in small ones protobuf; both before the stack does, in a small thread."""
    path.write_bytes(wire(more=nested(10, filler)))
    OnnxSource(path).close()
    match = f"messages nest deeper than {MAX_DEPTH}" if filler else "Error parsing message"
    refused(path, wire(more=nested(40 if filler else 60, filler)), match)
    caught: list[BaseException] = []

    def deep() -> None:
        try:
            OnnxSource(path)
        except BaseException as e:
            caught.append(e)

    # A million messages in one another, each with a length that holds all that follows.
    lengths = [b"\x0a\x80\x80\x80\x02", b"\x2a\x80\x80\x80\x02", b"\x32\x80\x80\x80\x02"] * 340_000
    path.write_bytes(b"\x3a" + varint(2**22 + 2**24) + b"".join(lengths) + bytes(2**24))
    size = threading.stack_size(2 << 20)
    try:
        thread = threading.Thread(target=deep)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
    assert isinstance(caught[0], FormatError)


def test_e13_truncated_at_every_byte(tmp_path: Path, path: Path) -> None:
    """A file as onnx writes it, and as we write it: of 2 KiB."""
    proto = mlp(24, 16)
    del proto.metadata_props[:]
    samples = [save(tmp_path / "upstream.onnx", proto), resave(save(tmp_path / "a.onnx", mlp(24, 16)), tmp_path / "b")]
    for sample in samples:
        data = sample.read_bytes()
        assert 1600 < len(data) < 2100
        OnnxSource(sample).close()
        path.write_bytes(data)
        for n in reversed(range(len(data))):
            os.truncate(path, n)
            with pytest.raises(FormatError, match=r"m\.onnx: "):
                OnnxSource(path)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("name", ["mlp", "branches", "functions"])
def test_e14_every_bit_flipped(path: Path, name: str, every: int) -> None:
    """Accepted (and then it can be written again), or a FormatError. Every fifth is some bit of each byte."""
    sample = {"mlp": lambda: mlp(20, 16), "branches": small_branches, "functions": small_function}[name]()
    data = sample.SerializeToString()
    payload = data.find(numbers((20, 16)).tobytes())
    accepted = refusals = 0
    path.write_bytes(data)
    file = os.open(path, os.O_WRONLY)
    for i in range(len(data)):
        if payload >= 0 and payload + 8 <= i < payload + 20 * 16 * 4 - 8:
            continue
        for bit in range(-i * 8 % every, 8, every):
            os.pwrite(file, bytes([data[i] ^ 1 << bit]), i)
            try:
                source = OnnxSource(path)
            except FormatError:
                refusals += 1
                continue
            with source:
                infos = list(source.tensors.values())
                for info in infos:
                    assert source.read(info.name).nbytes == info.nbytes
                layout.inline(layout.to_proto(source.model, infos), infos)
            accepted += 1
        os.pwrite(file, data[i : i + 1], i)
    os.close(file)
    assert min(accepted, refusals) > 500 // every


def small_branches() -> Any:
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=helper.make_tensor("", 1, [2, 2], range(4)))],
        "b",
        [],
        [value("o", [2, 2])],
    )
    other = helper.make_graph([], "d", [], [value("o", [2, 2])], [helper.make_tensor("o", 7, [2], [1, -2])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)
    return make_model(helper.make_graph([node], "g", [value("c", [], 9)], [value("y", [2, 2])]))


def small_function() -> Any:
    proto = CORPUS["functions"]()
    proto.functions[0].node[0].attribute[0].t.CopyFrom(helper.make_tensor("", 10, [2, 2], [1, 2, 3, 4]))
    return proto


# What onnx.load reads and we refuse, each on purpose: a graph of it could not be written again, or says two things.
REFUSED_BY_US_ONLY = {
    "no opset import: what the operators mean is not said": WIRE["no opset"][0],
    "no graph": WIRE["no graph"][0],
    "a name twice: one of the tensors would be lost": wire(tensor(BIG), tensor(BIG)),
    "no name: the tensor would be lost": wire(tensor(BIG, name=b"")),
    "raw_data that are not what the shape needs": wire(tensor(BIG, dims=(64, 33))),
    "two forms of the same data": wire(tensor(field(9, b"abcd"), field(4, bytes(4)), dims=(1,))),
    "a negative axis": wire(tensor(BIG, dims=(-1, 32))),
    "a dtype that is not known": wire(tensor(BIG, dtype=1000)),
    "sparse tensors: onnx_ir has none": wire(more=field(15, field(1, tensor(BIG)))),
    "a version that is not known": wire(version=10_000),
    "an output that nothing makes": wire(more=field(12, field(1, b"y"))),
    "an input that nothing makes": wire(more=field(1, field(1, b"x") + field(4, b"Neg"))),
    "a group, which the format has not used": wire() + b"\x9b\x06\x9c\x06",
    "text that is not UTF-8": wire(more=field(10, b"\xff")),
}


@pytest.mark.parametrize("why", REFUSED_BY_US_ONLY)
def test_e20_what_onnx_reads_and_we_refuse(path: Path, why: str) -> None:
    path.write_bytes(REFUSED_BY_US_ONLY[why])
    onnx.load(path)
    with pytest.raises(FormatError):
        OnnxSource(path)


def test_information_for_training_is_left_out(path: Path) -> None:
    """E20: a difference that is no refusal."""
    proto = mlp()
    proto.training_info.add().algorithm.CopyFrom(proto.graph)
    with OnnxSource(save(path, proto)) as source:
        assert list(source.tensors) == ["w"]
    assert not onnx.load(resave(path, path.with_name("new.onnx"))).training_info


def test_e15_a_file_that_shrinks(path: Path) -> None:
    save(path, mlp())
    source = OnnxSource(path)
    os.truncate(path, 5000)
    for use in (
        lambda: source.read("w"),
        lambda: list(source.tiles("w", 1000)),
        source.model.graph.initializers["w"].const_value.numpy,
    ):
        with pytest.raises(FormatError, match=r"m\.onnx: file shrank while reading"):
            use()


def test_a_replaced_file_stays_readable(path: Path) -> None:
    save(path, mlp())
    with OnnxSource(path) as source:
        path.unlink()
        np.testing.assert_array_equal(source.read("w"), numbers((64, 32)))


def test_e16_names_are_shown_escaped(path: Path) -> None:
    for name in ("a\x1b[31mb\n", "../../etc/passwd", "x" * 70_000, "\0"):
        proto = mlp()
        proto.graph.initializer[0].name = name
        proto.graph.node[0].input[1] = name
        if len(name) > 65_536:
            refused(path, proto.SerializeToString(), "has a name of over 64 KiB", LimitError)
            continue
        with OnnxSource(save(path, proto)) as source:
            assert list(source.tensors) == [name]
        proto.graph.initializer[0].dims[0] = 7
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(FormatError) as caught:
            OnnxSource(path)
        assert str(caught.value).isprintable()


def test_e16_text_that_is_not_utf8(path: Path) -> None:
    data = mlp().SerializeToString()
    for text in (b"tests", b"a graph", b"first", b"MatMul", b"author", b"what it does"):
        assert data.count(text) == 1
        refused(path, data.replace(text, b"\xff" * len(text)), r"text b'\\xff\\xff.* is not UTF-8")


@pytest.mark.parametrize("what", ["fifo", "directory", "/dev/zero", "/dev/null"])
def test_e17_not_a_regular_file(tmp_path: Path, what: str) -> None:
    where = Path(what) if what[0] == "/" else tmp_path / "m.onnx"
    if what == "fifo":
        os.mkfifo(where)
    elif what == "directory":
        where.mkdir()
    with pytest.raises(ValueError, match="not a regular file"):
        OnnxSource(where)
    with pytest.raises(FileNotFoundError):
        OnnxSource(tmp_path / "absent.onnx")


def test_limits(path: Path) -> None:
    save(path, mlp())
    with OnnxSource(path, max_header=1000, max_tensors=2) as source:
        assert len(source.tensors) == 1
    refused(
        path,
        path.read_bytes(),
        "the graph without its large tensors exceeds max_header=300",
        LimitError,
        max_header=300,
    )
    refused(path, path.read_bytes(), "more than max_tensors=1 (nodes|tensors)", LimitError, max_tensors=1)
    proto = CORPUS["functions"]()
    refused(path, proto.SerializeToString(), "exceeds max_header=2,000", LimitError, max_header=2000)
    t = tensor(field(9, b""), name=b"w", dims=(0,))
    refused(
        path, wire(*(t[:-3] for _ in range(5000))), "more than max_tensors=4,000 tensors", LimitError, max_tensors=4000
    )


def test_a_long_file_of_short_fields_is_left_early(path: Path) -> None:
    """E1: not walked to its end when it is over the limit already."""
    with path.open("wb") as file:
        file.write(b"\x08\x0a" * 3000)
        file.truncate(1 << 40)
    with pytest.raises(LimitError):
        OnnxSource(path, max_header=5000)


def test_tensors_that_stay_inside_are_limited(path: Path) -> None:
    """A large tensor in an attribute that is no Constant's: in memory, but not without a limit."""
    node = helper.make_node("Custom", ["x"], ["y"], domain="custom", t=numpy_helper.from_array(numbers((99, 99))))
    graph = helper.make_graph([node], "g", [value("x", [1])], [value("y", [1])])
    save(path, make_model(graph, opsets=[helper.make_opsetid("custom", 1)]))
    with OnnxSource(path) as source:
        assert not source.tensors
        kept = next(iter(source.model.graph)).attributes["t"].as_tensor()
    np.testing.assert_array_equal(kept.numpy(), numbers((99, 99)))
    refused(path, path.read_bytes(), "tensors that can't be initializers of the graph", LimitError, max_header=9000)


def test_e1_declared_sizes_allocate_nothing(path: Path) -> None:
    """Peak extra memory of malformed files: at most 8 MiB and 4 times the file; in time."""
    script = """
import resource, sys, time
from modelopt_rs import FormatError
from modelopt_rs.files.onnx import OnnxSource
OnnxSource(sys.argv[1]).close()
for path in sys.argv[2:]:
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        OnnxSource(path, max_tensors=1 << 17)
    except FormatError:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(after - before)
    else:
        print("accepted", path)
"""
    save(path, mlp())
    n = 1 << 19
    samples = {
        "dims": wire(tensor(b"\x0a" + varint(n) + b"\x7f" * n)),
        "raw": wire(tensor(BIG, dims=(2**40,))),
        "length": wire(tensor(b"\x4a" + varint(2**40) + RAW)),
        "entries": wire(tensor(field(5, bytes(n)), dims=(3, 3), dtype=3)),
        "nodes": wire(more=field(1, b"") * (n // 2)),
        "inputs": wire(more=field(11, b"") * (n // 2)),
    }
    paths = []
    for name, data in samples.items():
        paths.append(path.with_name(name))
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", script, str(path), *map(str, paths)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    for grown, (name, data) in zip(shown, samples.items(), strict=False):
        assert grown.isdigit(), (grown, name)
        assert int(grown) << 10 <= (8 << 20) + 4 * len(data), name
