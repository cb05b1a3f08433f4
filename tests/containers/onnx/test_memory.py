"""F9: opening and streaming an ONNX model takes memory for its graph and one tile, wherever the weights stand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from modelopt_rs.containers.onnx.wire import field, varint  # noqa: E402
from modelopt_rs.files.onnx import OnnxSource  # noqa: E402
from onnx_samples import model, value  # noqa: E402

MIB = 1 << 20
ROWS, COLUMNS, LAYERS = 4096, 1024, 20  # 16 MiB each, 320 MiB in all

SCRIPT = """
import json, re, sys, time
from pathlib import Path
from modelopt_rs.files.onnx import OnnxSink, OnnxSource

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

def forget():  # the peak so far
    Path("/proc/self/clear_refs").write_text("5")

small, large, out, external = *map(Path, sys.argv[1:4]), bool(sys.argv[4])
OnnxSource(small).close()
forget()
before = peak()
read = 0
with OnnxSource(large) as source:
    opened = peak() - before
    lazy = len(source.tensors)
    if out.name != "nothing":
        with OnnxSink(out, source.model, list(source.tensors.values()), external=external, durable=False) as sink:
            for name in source.tensors:
                for tile in source.tiles(name, 2 << 20):
                    sink.write(name, tile.array)
                    read += tile.array.nbytes
            sink.commit()
print(json.dumps({"opened": opened, "all": peak() - before, "tensors": lazy, "read": read}))
"""


QUANTIZE = """
import re, sys
from pathlib import Path
import modelopt_rs as mo

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

small, large, out = sys.argv[1:4]
how = {"run": None, "overwrite": True, "durable": False}
mo.quantize_file(small, out, **how)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = peak()
report = mo.quantize_file(large, out, **how)
assert report.file_bytes[1] > 300 << 20, report
print(peak() - before)
"""


def large(path: Path, *, external: bool, layers: int = LAYERS) -> Path:
    """A model of large weights, written piece by piece: inline in the middle of the graph, or sparse beside it."""
    nodes, names = [], []
    for i in range(layers):
        names.append(f"w{i}")
        nodes.append(onnx.helper.make_node("Add", [f"h{i - 1}" if i else "x", f"w{i}"], [f"h{i}"]))
    shape = [ROWS, COLUMNS]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", shape)], [value(f"h{layers - 1}", shape)])
    nbytes = 4 * ROWS * COLUMNS
    rest = graph.SerializeToString()
    tensors = []
    for i, name in enumerate(names):
        tensor = onnx.TensorProto(name=name, dims=shape, data_type=1)
        if external:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, text in {"location": "data", "offset": str(i * nbytes), "length": str(nbytes)}.items():
                tensor.external_data.add(key=key, value=text)
            tensors.append(field(5, tensor.SerializeToString()))
        else:
            head = tensor.SerializeToString() + b"\x4a" + varint(nbytes)
            tensors.append(b"\x2a" + varint(len(head) + nbytes) + head)
    size = len(rest) + sum(map(len, tensors)) + (0 if external else layers * nbytes)
    outer = model(onnx.GraphProto())
    outer.ClearField("graph")
    with path.open("wb") as file:
        file.write(outer.SerializeToString() + b"\x3a" + varint(size) + rest)
        for i, tensor in enumerate(tensors):
            file.write(tensor)
            if not external:
                file.write(np.full(COLUMNS, i, np.float32).tobytes() * ROWS)
    if external:
        with path.with_name("data").open("wb") as file:
            file.truncate(layers * nbytes)
    return path


def measured(tmp_path: Path, path: Path, out: str, *, external: bool) -> dict[str, Any]:
    folder = tmp_path / "small"
    folder.mkdir()
    small = large(folder / "small.onnx", external=True, layers=1)
    command = [sys.executable, "-c", SCRIPT, str(small), str(path), str(tmp_path / out), "1" * external]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    figures: dict[str, Any] = json.loads(run.stdout)
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_f9_320_mib_are_streamed_in_64(tmp_path: Path, external: bool) -> None:
    path = large(tmp_path / "m.onnx", external=external)
    figures = measured(tmp_path, path, "out.onnx", external=external)
    assert (figures["tensors"], figures["read"]) == (LAYERS, LAYERS * 16 * MIB)
    assert figures["opened"] < 8 * MIB
    assert figures["all"] < 64 * MIB


@pytest.mark.slow
def test_f9_quantizing_checks_without_holding_weights(tmp_path: Path) -> None:
    """The checker of onnx would hold the model twice."""
    (tmp_path / "small").mkdir()
    small = large(tmp_path / "small" / "m.onnx", external=False, layers=1)
    path = large(tmp_path / "m.onnx", external=False)
    command = [sys.executable, "-c", QUANTIZE, str(small), str(path), str(tmp_path / "out.onnx")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 64 * MIB


def test_over_2_gib_are_opened_without_being_read(tmp_path: Path) -> None:
    """3 GiB of external data, all holes; and the last of it is found."""
    path = large(tmp_path / "m.onnx", external=True, layers=192)
    with path.with_name("data").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    figures = measured(tmp_path, path, "nothing", external=True)
    assert figures["tensors"] == 192
    assert figures["all"] < 8 * MIB
    with OnnxSource(path) as source:
        corners = [tile.array[-1, -1] for tile in source.tiles("w191", MIB)]
        assert corners == [0] * (len(corners) - 1) + [7]


def test_an_inline_file_over_2_gib_is_read(tmp_path: Path) -> None:
    """No reader of protocol buffers takes it; its weights are found all the same (sparse)."""
    path = tmp_path / "m.onnx"
    nbytes = 4 * (1 << 15) * (1 << 15)
    tensor = onnx.TensorProto(name="w", dims=[1 << 15, 1 << 15], data_type=1).SerializeToString()
    head = tensor + b"\x4a" + varint(nbytes)
    graph = onnx.GraphProto(name="g").SerializeToString() + b"\x2a" + varint(len(head) + nbytes) + head
    begin = b"\x08\x0a" + field(8, b"\x10\x11") + b"\x3a" + varint(len(graph) + nbytes) + graph
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(len(begin) + nbytes)
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    figures = measured(tmp_path, path, "nothing", external=False)
    assert figures["tensors"] == 1
    assert figures["all"] < 8 * MIB
