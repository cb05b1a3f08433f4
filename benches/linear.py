"""Products with quantized weights against onnxruntime and NumPy, in one run: `python benches/linear.py [--json FILE]`.

Answers are compared first, then both sides timed in alternation; see `benches/paired.py`. Two threads. One read of as
many bytes as the packed weights have is timed with them, in the same rounds and after the same neighbours, in two ways
of which the faster counts: no product can take less, and where the peer takes so little that no product can be faster
by the target, the row says FORBIDDEN.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo
from modelopt_rs.quant import linear
from paired import THREADS, Case, close, equal, measured, readings, run

SIDE, GROUP = 4096, 32
TABLE = (30_522, 384)
RNG = np.random.default_rng(14)

# In a row, as a service makes them: threads of onnxruntime and of NumPy go on spinning on their cores after a call, and
# would be in the way of whoever is timed next.
CALLS = 50


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def near(unit: float) -> Callable[[Any, Any], None]:
    """Both round x: the answers differ by no more than a few units in the last place of their sums."""

    def check(ours: Any, theirs: Any) -> None:
        close(0.0, unit * float(np.abs(theirs).max()))(ours, theirs)

    return check


def session(
    node: Any, tensors: dict[str, np.ndarray], more: tuple[Any, ...] = ()
) -> Callable[[np.ndarray], np.ndarray]:
    """A session of one product, x [m, in] to y [m, out]."""
    import onnx
    import onnxruntime as ort

    value, opset = onnx.helper.make_tensor_value_info, onnx.helper.make_opsetid
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = onnx.helper.make_graph([*more, node] if node else list(more), "product", [value("x", 1, ["m", SIDE])],
                                   [value("y", 1, ["m", SIDE])], weights)  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[opset("", 21), opset("com.microsoft", 1)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: made.run(None, {"x": x})[0]


def four_bits(q: mo.QuantizedArray) -> Callable[[np.ndarray], np.ndarray]:
    """onnxruntime's MatMulNBits of accuracy level 4."""
    import onnx

    codes = (q.codes ^ 0x88).reshape(SIDE, SIDE // GROUP, GROUP // 2)
    node = onnx.helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
                                 K=SIDE, N=SIDE, bits=4, block_size=GROUP, accuracy_level=4)  # fmt: skip
    return session(node, {"w": codes, "s": q.scale.reshape(-1)})


def eight_bits(q: mo.QuantizedArray) -> Callable[[np.ndarray], np.ndarray]:
    """What onnxruntime's dynamic quantization makes: DynamicQuantizeLinear, MatMulInteger, Cast and Mul (fused)."""
    import onnx

    node = onnx.helper.make_node
    nodes = (
        node("DynamicQuantizeLinear", ["x"], ["a", "a_scale", "a_zero"]),
        node("MatMulInteger", ["a", "w", "a_zero"], ["sums"]),
        node("Cast", ["sums"], ["sums_float"], to=1),
        node("Mul", ["a_scale", "w_scale"], ["scale"]),
        node("Mul", ["sums_float", "scale"], ["y"]),
    )
    return session(None, {"w": np.ascontiguousarray(q.codes.T), "w_scale": q.scale}, nodes)


def product_cases(
    q: mo.QuantizedArray, peer: str, theirs: Any, targets: dict[int, float], plain: float
) -> Iterator[Case]:
    packed, w = q.prepack(), q.dequantize()
    bound = readings(packed.nbytes)
    work = f"linear, {q.bits} bits, {SIDE} x {SIDE}"
    for m, target in targets.items():
        x, out = floats(m, SIDE), np.zeros((m, SIDE), np.float32)
        ours = lambda x=x, out=out: linear(x, packed, out=out, threads=THREADS)  # noqa: E731
        yield Case(f"{work}, m = {m}", peer, target, ours, lambda x=x: theirs(x), near(0.02),
                   bound=bound)  # fmt: skip
        yield Case(f"{work}, m = {m}", "NumPy float32", plain if m == 1 else 1.0, ours, lambda x=x: x @ w.T, near(0.02),
                   bound=bound)  # fmt: skip
    x = floats(1, SIDE)
    yield Case(f"{work}, m = 1, float32", "NumPy float32", 1.0,
               lambda: linear(x, q, compute="float32", threads=THREADS), lambda: x @ w.T, near(1e-5))  # fmt: skip
    yield Case(f"{work}, m = 1, not packed", "packed", 0.3,
               lambda: linear(x, q, threads=THREADS), lambda: linear(x, packed, threads=THREADS), equal)  # fmt: skip


def table_cases() -> Iterator[Case]:
    table = floats(*TABLE)
    q = mo.quantize(table, axis=0)
    w, v, many = q.dequantize(), floats(TABLE[1]), floats(TABLE[1], 8)
    left = floats(TABLE[0])
    shape = f"8 bits, {TABLE[0]:,} x {TABLE[1]}"
    yield Case(f"q @ v, {shape}", "NumPy float32", 3.0, lambda: q @ v, lambda: w @ v, near(1e-5),
               bound=readings(q.nbytes))  # fmt: skip
    yield Case(f"q @ m, 8 columns, {shape}", "NumPy float32", 1.0, lambda: q @ many, lambda: w @ many, near(1e-5))
    yield Case(f"v @ q, {shape}", "NumPy float32", 1.0, lambda: left @ q, lambda: left @ w, near(1e-5))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    w = floats(SIDE, SIDE)
    four, eight = mo.quantize(w, bits=4, group_size=GROUP), mo.quantize(w, axis=0)
    level_4, integer = "onnxruntime MatMulNBits level 4", "onnxruntime MatMulInteger"
    groups = {
        "4 bits": product_cases(four, level_4, four_bits(four), {1: 1.0, 4: 2.0, 8: 1.5, 64: 1.0}, 7.0),
        "8 bits": product_cases(eight, integer, eight_bits(eight), {1: 1.2, 4: 1.2, 8: 1.2}, 3.0),
        "tables": table_cases(),
    }
    in_a_row = ((title, (replace(case, calls=CALLS) for case in cases)) for title, cases in groups.items())
    return run(((title, measured(cases, arguments.rounds)) for title, cases in in_a_row), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
