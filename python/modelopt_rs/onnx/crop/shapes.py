"""The shapes of a graph's values, as far as they can be told."""

import onnx_ir as ir
from onnx_ir.passes import common

from modelopt_rs.errors import FormatError, quote
from modelopt_rs.onnx.crop.elements import Element, shape_of
from modelopt_rs.onnx.crop.integers import Integers
from modelopt_rs.onnx.crop.regroup import tokens

__all__ = ["infer_shapes"]

# Each pass sees one Reshape further along a path whose shapes depend on each other.
PASSES = 16


def infer_shapes(model: ir.Model) -> None:
    """Infer shapes as `onnx.shape_inference` does, and besides lengths that the graph computes.

    Parameters
    ----------
    model : ir.Model
        The shapes of its values are completed.
    """
    for _ in range(PASSES):
        _infer(model)
        integers, found = Integers(), False
        for node in model.graph.all_nodes():
            if node.op_type in ("Reshape", "Expand") and node.domain in ("", "ai.onnx"):
                found |= _complete(node, integers)
            elif node.op_type == "Slice":
                found |= _sliced(node, integers)
            elif node.op_type == "MatMul":
                found |= _read(node)
        if not found:
            return


def _infer(model: ir.Model) -> None:
    try:
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the libraries' errors have no common class but this
        raise FormatError(f"crop: the shapes of the model can't be inferred: {quote(str(error))}") from error


def _complete(node: ir.Node, integers: Integers) -> bool:
    """Fill in lengths of a node's output; return whether any is new."""
    x, shape, y = node.inputs[0], node.inputs[1], node.outputs[0]
    lengths = None if x is None else shape_of(x)
    target = None if shape is None else integers.elements(shape)
    if lengths is None or target is None or node.attributes.get_int("allowzero", 0) != 0:
        return False
    after = _expanded(lengths, target) if node.op_type == "Expand" else tokens(node, lengths, target, {})[1]
    old = shape_of(y) or [None] * len(after)
    if len(old) != len(after):
        return False  # the file says something else
    new = [a if isinstance(a, (int, str)) else b for a, b in zip(after, old, strict=True)]
    found = any(isinstance(a, int) and not isinstance(b, int) for a, b in zip(new, old, strict=True))
    if found or y.shape is None:
        y.shape = ir.Shape(new)
    return found


def _sliced(node: ir.Node, integers: Integers) -> bool:
    """Fill in the lengths of a part whose bounds are computed of known lengths; return whether any is new."""
    x, y, numbers = node.inputs[0], node.outputs[0], [integers.numbers(value) for value in node.inputs[1:]]
    lengths = None if x is None else shape_of(x)
    if lengths is None or len(numbers) < 2 or numbers[0] is None or numbers[1] is None:
        return False
    axes = numbers[2] if len(numbers) > 2 else list(range(len(numbers[0])))
    steps = numbers[3] if len(numbers) > 3 else [1] * len(numbers[0])
    if axes is None or steps is None or set(steps) != {1}:
        return False
    new = list(lengths)
    for start, end, axis in zip(numbers[0], numbers[1], axes, strict=True):
        length = lengths[axis]
        new[axis] = len(range(length)[start:end]) if isinstance(length, int) else None
    old = shape_of(y) or [None] * len(new)
    new = [b if a is None else a for a, b in zip(new, old, strict=True)]
    if not any(isinstance(a, int) and not isinstance(b, int) for a, b in zip(new, old, strict=True)):
        return False
    y.shape = ir.Shape(new)
    return True


def _read(node: ir.Node) -> bool:
    """Fill in the length of the axis that a matrix reads; return whether it is new."""
    x, w = node.inputs[0], node.inputs[1]
    lengths, matrix = (None if value is None else shape_of(value) for value in (x, w))
    if x is None or not lengths or matrix is None or len(matrix) < 2:
        return False
    if isinstance(lengths[-1], int) or not isinstance(matrix[-2], int):
        return False
    x.shape = ir.Shape([*lengths[:-1], matrix[-2]])
    return True


def _expanded(lengths: list[int | str | None], target: list[Element]) -> list[object]:
    """Return the lengths of an Expand's output that are known."""
    rank = max(len(lengths), len(target))
    pairs = zip([1] * (rank - len(lengths)) + lengths, [1] * (rank - len(target)) + target, strict=True)
    return [a if b == 1 else next((n for n in (a, b) if isinstance(n, int) and n > 1), None) for a, b in pairs]
