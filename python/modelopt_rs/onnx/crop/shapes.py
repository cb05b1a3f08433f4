"""The shapes of a graph's values, as far as they can be told."""

from collections.abc import Callable
from typing import Final

import onnx
import onnx_ir as ir

from modelopt_rs.containers.onnx.mend import made_by_library
from modelopt_rs.errors import UnsupportedError
from modelopt_rs.onnx.child_process import Ended, call_apart, without_large
from modelopt_rs.onnx.crop.elements import CONTRADICTIONS, shape_of
from modelopt_rs.onnx.crop.fused_shapes import fused_shapes
from modelopt_rs.onnx.crop.integers import Integers
from modelopt_rs.onnx.crop.lengths import merge_names, named, stretched_shape
from modelopt_rs.onnx.crop.regroup import tokens

__all__ = ["infer_shapes"]

# Each pass sees one Reshape further along a path whose shapes depend on each other.
PASSES: Final = 16
MAX_SECONDS: Final = 1000
"""How long the library may take for one pass, of which a large model takes one or two."""
GROWTH: Final = (1 << 20, 8)
"""The bytes that a model with its shapes may have, besides for each byte of the model."""


def infer_shapes(model: ir.Model) -> None:
    """Infer shapes as `onnx.shape_inference` does, and besides lengths that the graph computes.

    Where the library fails, the shapes that the file says are what there is.

    Parameters
    ----------
    model : ir.Model
        The shapes of its values are completed.

    Raises
    ------
    UnsupportedError
        If the library takes too long: on a faster machine it would have said more.
    """
    for _ in range(PASSES):
        helped = _infer(model)
        integers, found = Integers(), False
        for node in model.graph.all_nodes():
            rules = ML_RULES if node.domain == ML else RULES if node.domain in ("", "ai.onnx") else {}
            rule = rules.get(node.op_type)
            try:
                found |= fused_shapes(node) if rule is None else rule(node, integers)
            except CONTRADICTIONS:
                continue  # shapes that don't fit each other: the walk will say so
        found |= merge_names(model.graph, integers)
        if not found or not helped:
            return


def _infer(model: ir.Model) -> bool:
    """Take over what the library infers; return whether it could."""
    try:
        with without_large(model.graph):
            proto: onnx.ModelProto = ir.to_proto(model)
        _as_inputs(proto.graph)
        data = proto.SerializeToString()
        made = call_apart("shape_inference.infer_shapes", data, False, False, True, seconds=MAX_SECONDS)
        if len(made) > GROWTH[0] + GROWTH[1] * len(data):
            return False
        inferred = made_by_library(made)
        for graph, other in zip(model.graphs(), inferred.graphs(), strict=True):
            _take_over(graph, other)
    except Ended as error:
        raise UnsupportedError(
            f"infer_shapes: model must be one whose shapes onnx can infer, got one that can't: {error}"
        ) from None
    except (MemoryError, OSError):
        raise
    except Exception:  # the libraries' errors have no common class but this
        return False
    return True


def _as_inputs(graph: onnx.GraphProto) -> None:
    """Let large initializers be inputs: the library would look for their bytes."""
    inputs = {value.name for value in graph.input}
    large = [each for each in graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    for each in large:
        if each.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims))
        graph.initializer.remove(each)


def _take_over(graph: ir.Graph | ir.Function, other: ir.Graph | ir.Function) -> None:
    inferred = ir.convenience.create_value_mapping(other)
    for name, value in ir.convenience.create_value_mapping(graph).items():
        found = inferred.get(name)
        if found is not None and found.shape is not None and value.shape != found.shape:
            value.shape = found.shape
        if found is not None and found.dtype is not None and value.dtype != found.dtype:
            value.dtype = found.dtype


def _complete(node: ir.Node, integers: Integers) -> bool:
    """Fill in lengths of a node's output; return whether any is new."""
    x, shape, y = node.inputs[0], node.inputs[1], node.outputs[0]
    lengths = None if x is None else shape_of(x)
    target = None if shape is None else integers.present(shape)
    if lengths is None or target is None or node.attributes.get_int("allowzero", 0) != 0:
        return False
    after = (
        stretched_shape([lengths, [named(each) for each in target]])
        if node.op_type == "Expand"
        else tokens(node, lengths, target, {})[1]
    )
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


def _read(node: ir.Node, integers: Integers) -> bool:
    """Fill in the length of the axis that a matrix reads; return whether it is new."""
    x, w = node.inputs[0], node.inputs[1]
    lengths, matrix = (None if value is None else shape_of(value) for value in (x, w))
    if x is None or not lengths or matrix is None or len(matrix) < 2:
        return False
    if isinstance(lengths[-1], int) or not isinstance(matrix[-2], int):
        return False
    x.shape = ir.Shape([*lengths[:-1], matrix[-2]])
    return True


def _normed(node: ir.Node, integers: Integers) -> bool:
    """Let what a GroupNormalization makes be as what it takes: the library doesn't; return whether that is new."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or x.dtype is None or y.shape is not None:
        return False
    y.shape, y.dtype = ir.Shape(list(x.shape)), x.dtype
    return True


def _elementwise(node: ir.Node, integers: Integers) -> bool:
    """Let what an operator of ai.onnx.ml makes of each element be as what it takes: the library knows none of these."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or x.dtype is None or y.shape is not None:
        return False
    made = next((dtype for name, dtype in LABELS.items() if name in node.attributes), x.dtype)
    y.shape, y.dtype = ir.Shape(list(x.shape)), ir.DataType.FLOAT if node.op_type in ("Scaler", "Normalizer") else made
    return True


ML: Final = "ai.onnx.ml"
# What a LabelEncoder says that it makes.
LABELS: Final = {
    "values_int64s": ir.DataType.INT64,
    "values_floats": ir.DataType.FLOAT,
    "values_strings": ir.DataType.STRING,
}
ML_RULES: Final[dict[str, Callable[[ir.Node, Integers], bool]]] = dict.fromkeys(
    ("Scaler", "Normalizer", "Imputer", "Binarizer", "LabelEncoder"), _elementwise
)
RULES: Final[dict[str, Callable[[ir.Node, Integers], bool]]] = {
    "Reshape": _complete,
    "Expand": _complete,
    "Slice": _sliced,
    "MatMul": _read,
    "GroupNormalization": _normed,
}
