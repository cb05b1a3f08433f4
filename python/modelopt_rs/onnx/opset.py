"""Raising the opset of a model whose weights are not in memory."""

from typing import Final

import onnx
import onnx_ir as ir

from modelopt_rs._core import UnsupportedError
from modelopt_rs.containers.onnx.mend import made_by_library
from modelopt_rs.errors import listing, quote
from modelopt_rs.onnx.child_process import Failed, call_apart, without_large
from modelopt_rs.onnx.former_operators import drop_ignored, former_attributes, say

__all__ = ["raise_alike", "raise_ir_version", "raise_opset"]

MAX_SECONDS: Final = 300
"""How long a conversion may take."""
_RANDOM: Final = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial")
NO_KERNEL: Final = dict.fromkeys(("RoiAlign", "MaxRoiPool", "GlobalLpPool", *_RANDOM), 22)
"""The operators of which onnxruntime has kernels up to some version, and the first version that it has none of."""

ONLY_TYPES: Final = ("Constant", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""The operators of which versions 14 to 21 differ in nothing but the types that they take (onnx, Changelog.md)."""


def raise_opset(model: ir.Model, opset: int) -> None:
    """Convert a model to a later version of the standard operators, in place; nothing is read of its large tensors.

    Parameters
    ----------
    model : Model
    opset : int
        More than it has.

    Raises
    ------
    UnsupportedError
        If the library can't convert it; the model stays as it was.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.opset import raise_opset
    >>> x = ir.val("x", ir.DataType.FLOAT, [1])
    >>> y = ir.val("y", ir.DataType.FLOAT, [1])
    >>> node = ir.Node("", "Relu", [x], outputs=[y])
    >>> model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 13}, name="g"), ir_version=7)
    >>> raise_opset(model, 21)
    >>> model.graph.opset_imports[""], model.ir_version
    (21, 10)
    """
    if model.functions:
        names = listing([quote(f.name) for f in model.functions.values()])
        raise UnsupportedError(f"raise_opset: a model with functions ({names}) can't be converted to opset {opset}")
    have = model.graph.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and have < NO_KERNEL.get(node.op_type, opset + 1) <= opset:
            raise _cannot(opset, f"onnxruntime has no kernel for {node.op_type} of it")
    former = former_attributes(model.graph, have, opset)
    if isinstance(former, str):
        raise _cannot(opset, former)
    with without_large(model.graph) as large:
        graph = _converted(model, opset)
    say(graph, former)
    for name, tensor in large.items():
        if name not in graph.initializers:
            raise _cannot(opset, f"the initializer {quote(name)} is gone")
        graph.initializers[name].const_value = tensor
    props = {value.name: value.metadata_props for value in (*model.graph.inputs, *model.graph.outputs)}
    for value in (*graph.inputs, *graph.outputs):
        value.metadata_props.update(props.get(value.name, {}))
    graph.metadata_props.update(model.graph.metadata_props)  # which the converter does not know
    model.graph = graph
    raise_ir_version(model)


def raise_alike(model: ir.Model, opset: int) -> bool:
    """Let a model say a later version of the operators where none that it has differs in it; return whether it does.

    No converter is asked, which takes a process of its own. For models that are measured and thrown away: the converter
    says the shapes that it infers as well, and a model that is written keeps them, so that has `raise_opset`.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.opset import raise_alike
    >>> x = ir.val("x", ir.DataType.FLOAT, [1])
    >>> model = ir.Model(ir.Graph([x], [x], nodes=[ir.node("Relu", [x])], opset_imports={"": 14}), ir_version=8)
    >>> raise_alike(model, 21), model.graph.opset_imports[""]
    (True, 21)
    """
    have = model.graph.opset_imports.get("", 0)
    names = {node.op_type for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")}
    if model.functions or not have < opset or not all(_is_alike(name, have, opset) for name in names):
        return False
    model.graph.opset_imports[""] = opset
    raise_ir_version(model)
    return True


def _is_alike(name: str, before: int, after: int) -> bool:
    """Whether an operator does the same in two versions, and there is such an operator."""
    if name in ONLY_TYPES and 14 <= before <= after <= 21:
        return True
    try:
        one, other = (onnx.defs.get_schema(name, max_inclusive_version=each, domain="") for each in (before, after))
    except onnx.defs.SchemaError:
        return False
    return bool(one.since_version == other.since_version)


def _cannot(opset: int, why: str) -> UnsupportedError:
    return UnsupportedError(f"raise_opset: onnx can't convert the model to opset {opset}: {why}")


def _converted(model: ir.Model, opset: int) -> ir.Graph:
    try:
        proto = ir.to_proto(model)
        drop_ignored(proto.graph)
        proto.ir_version = max(proto.ir_version, 4)  # before, the converter wants initializers to be inputs
        data = proto.SerializeToString()
        made = call_apart("version_converter.convert_version", data, opset, seconds=MAX_SECONDS)
        return made_by_library(made).graph
    except Failed as error:
        raise _cannot(opset, f"{error}; convert it where it was exported") from None
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the libraries' errors have no common class but this
        raise _cannot(opset, quote(str(error))) from error


def raise_ir_version(model: ir.Model) -> None:
    """Let a model say an IR version that has its opsets, and initializers that are no inputs."""
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items() if d in ("", "ai.onnx.ml")]
    least = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, least, 4)
