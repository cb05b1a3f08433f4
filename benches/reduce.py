"""Reductions, given scales, embeddings and look-ups against NumPy: `python benches/reduce.py [--json FILE]`.

Answers are compared first, then both sides timed in alternation; see `benches/paired.py`. Two threads, but where said.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo
from paired import Case, close, equal, measured, readings, run

RNG = np.random.default_rng(14)
READ = "reading: minmax of as many bytes"


def reduction_cases(n: int) -> Iterator[Case]:
    r, x, u = mo.reduce, RNG.random(n, np.float32), RNG.integers(0, 256, n, np.uint8)
    zeros, none = np.full(n, -0.0, np.float32), np.full(n, 0, np.uint8).view(bool)
    for name, f, peer in (("argmax", r.argmax, np.argmax), ("min", r.min, np.min)):
        yield Case(f"{name} float32", READ, 1.15, lambda f=f: f(x), lambda: r.minmax(x), at_most=True)
        yield Case(f"{name} float32", "NumPy", 1, lambda f=f: f(x), lambda peer=peer: peer(x), equal)
    yield Case("any of zeros float32", READ, 1.15, lambda: r.any(zeros), lambda: r.minmax(zeros), at_most=True)
    yield Case("any of zeros float32", "NumPy", 1, lambda: r.any(zeros), lambda: np.any(zeros), equal)
    yield Case("any of bools", READ, 1.15, lambda: r.any(none), lambda: r.minmax(u), at_most=True)
    yield Case("sum uint8", "NumPy", 8, lambda: r.sum(u), lambda: np.sum(u), equal, bound=readings(n))
    yield Case("sum uint8", READ, 1.15, lambda: r.sum(u), lambda: r.minmax(u), at_most=True)
    yield Case("topk 100 float32", "NumPy argpartition", 2, lambda: r.topk(x, 100)[0],
               lambda: np.sort(x[np.argpartition(x, -100)[-100:]])[::-1], equal)  # fmt: skip


def quantize_linear_cases(n: int) -> Iterator[Case]:
    x, out = RNG.standard_normal(n, np.float32), np.zeros(n, np.int8)
    scale, theirs = np.float32(0.03), np.zeros(n, np.int8)

    def formula() -> np.ndarray:
        return np.clip(np.rint(x / scale), -128, 127).astype(np.int8)

    def ours() -> np.ndarray:
        return mo.quant.quantize_linear(x, scale, out=out)

    def copy() -> None:
        theirs[:] = 0
        mo.reduce.minmax(x)

    yield Case("quantize_linear out=", "reading x, then filling the codes", 1.15, ours, copy, at_most=True)
    yield Case("quantize_linear out=", "the NumPy formula", 15, ours, formula, equal, bound=copy)
    peer = by_onnxruntime(x, scale)
    yield Case("quantize_linear out=", "onnxruntime QuantizeLinear", 0.95, ours, peer, equal, bound=copy)


def by_onnxruntime(x: np.ndarray, scale: np.float32) -> Callable[[], np.ndarray]:
    """A session of one operator, its input and output bound to memory, two threads."""
    import onnx
    import onnxruntime as ort

    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    tensors = [
        onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in (("scale", scale), ("zero", np.int8(0)))
    ]
    graph = onnx.helper.make_graph([node], "quantize", [value("x", 1, ["n"])], [value("y", 3, ["n"])], tensors)
    opset = [onnx.helper.make_opsetid("", 21)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    session, out = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), np.zeros(len(x), np.int8)
    bound = session.io_binding()
    bound.bind_cpu_input("x", x)
    bound.bind_output("y", "cpu", 0, np.int8, out.shape, out.ctypes.data)

    def run() -> np.ndarray:
        session.run_with_iobinding(bound)
        return out

    return run


def within_a_step(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Float64 of all of them, as `close` has it, would take 20 GB."""
    assert all(np.abs(a.astype(np.int16) - b).max() <= 1 for a, b in zip(ours, theirs, strict=True))


def embedding_cases(rows: int) -> Iterator[Case]:
    x = RNG.standard_normal((rows, 384), np.float32)
    quantize = mo.preprocess.quantize_embeddings
    ranges = np.stack([x.min(0), x.max(0)])

    def by_steps() -> np.ndarray:  # sentence-transformers
        starts, steps = ranges[0], (ranges[1] - ranges[0]) / 255
        return ((x - starts) / steps - 128).astype(np.int8)

    def read() -> None:
        mo.reduce.minmax(x)

    yield Case("embeddings to int8", "sentence-transformers' formula", 10,
               lambda: quantize(x, "int8", ranges=ranges), by_steps, within_a_step,
               bound=read)  # fmt: skip
    yield Case("embeddings to bits", "NumPy packbits", 2.5, lambda: quantize(x, "ubinary"),
               lambda: np.packbits(x > 0, axis=-1), equal, bound=read)  # fmt: skip
    yield Case("embeddings to bits", READ, 1.15, lambda: quantize(x, "ubinary"), read, at_most=True)


def look_up_cases() -> Iterator[Case]:
    """What users call. Other rows each time: a table does not fit the caches. In a row, as a service makes calls."""
    x = RNG.standard_normal((30_522, 384), np.float32)
    q = mo.quantize(x, axis=0)
    step = float(q.scale.max())
    indices = [RNG.integers(0, len(x), 64) for _ in range(500)]
    ours, theirs, out = cycle(indices), cycle(indices), [np.zeros((64, 384), np.float32) for _ in range(2)]
    near, row = close(0, step), np.zeros(384, np.float32)
    into = {"check": lambda *_: None}
    codes, third, floats = np.asarray(q.codes).reshape(x.shape), cycle(indices), np.zeros((64, 384), np.float32)
    rows = np.zeros((64, 384), codes.dtype)

    def least() -> None:
        """Move the bytes alone: rows of codes are read, floats are written."""
        np.take(codes, next(third), 0, out=rows, mode="clip")
        floats.fill(0)

    of_all: dict[str, Any] = {"check": near, "calls": 100, "bound": least}
    yield Case("64 rows: q.take(ids)", "NumPy on float32: x[ids]", 1.5,
               lambda: q.take(next(ours)), lambda: x[next(theirs)], **of_all)  # fmt: skip
    yield Case("64 rows: q.take(ids, out=)", "NumPy on float32: np.take(x, ids, out=)", 1.5,
               lambda: q.take(next(ours), out=out[0]),
               lambda: np.take(x, next(theirs), 0, out=out[1], mode="clip"), **of_all)  # fmt: skip
    yield Case("64 rows as codes: q[ids]", "NumPy on float32: x[ids]", 1.5,
               lambda: q[next(ours)], lambda: x[next(theirs)], **of_all)  # fmt: skip
    of_one: dict[str, Any] = {"check": near, "calls": 1000, "most_us": 1.5}
    yield Case("1 row: q.take(77)", "NumPy on float32: x[77].copy()", 1,
               lambda: q.take(77), lambda: x[77].copy(), **of_one)  # fmt: skip
    yield Case("1 row: q.take(77, out=)", "NumPy on float32: out[:] = x[77]", 1,
               lambda: q.take(77, out=row), lambda: np.copyto(row, x[77]), **of_one | into)  # fmt: skip
    yield Case("1 row as codes: q[77]", "NumPy on float32: x[77]", 1, lambda: q[77], lambda: x[77], **of_one)


def small_cases() -> Iterator[Case]:
    x = RNG.standard_normal(1000, np.float32)

    def formula() -> np.ndarray:
        return np.clip(np.rint(x / np.float32(0.03)), -128, 127).astype(np.int8)

    yield Case("quantize_linear of 1,000", "the NumPy formula", 2,
               lambda: mo.quant.quantize_linear(x, 0.03), formula, equal, calls=1000)  # fmt: skip
    yield Case("argmax of 1,000", "NumPy", 0.5,
               lambda: mo.reduce.argmax(x), lambda: np.argmax(x), equal, calls=1000)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--elements", type=int, default=1 << 26)
    arguments = parser.parse_args()
    n = arguments.elements
    cases = {
        "reductions": reduction_cases(n),
        "given scales": quantize_linear_cases(n),
        "embeddings": embedding_cases(n // 64),
        "look-ups": look_up_cases(),
        "small calls": small_cases(),
    }
    return run(((title, measured(some, arguments.rounds)) for title, some in cases.items()), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
