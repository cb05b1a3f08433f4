"""What a node must have for its operator: inputs, outputs, and attributes of the right kind.

Of the standard operators the library onnx has the table; of onnxruntime's own stand here those that are looked into.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import onnx
from onnx import defs

from modelopt_rs.dtypes import BY_ONNX_NUMBER
from modelopt_rs.errors import quote

__all__ = ["RELEASED", "problem", "rank_behind"]

_FLOAT, _INT, _STRING = onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING
_FLOATS, _INTS = onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS
_KINDS: Final = {number: name for name, number in onnx.AttributeProto.AttributeType.items()}
_SINGLE: Final = defs.OpSchema.FormalParameterOption.Single
RELEASED: Final = onnx.defs.onnx_opset_version()
"""The newest version of the standard operators that the library knows."""
_MANY: Final = 1 << 31

# Operators of com.microsoft whose outputs may all be left out but one.
_OPTIONAL: Final = ("DynamicQuantizeLSTM",)
# Of com.microsoft: the least and the most inputs, and the kinds of attributes that are read.
_MICROSOFT: Final[Mapping[str, tuple[int, int, Mapping[str, int]]]] = {
    "BiasGelu": (2, 2, {}),
    "FastGelu": (1, 2, {}),
    "Gelu": (1, 1, {}),
    "QuickGelu": (1, 1, {"alpha": _FLOAT}),
    "MatMulNBits": (3, 6, dict.fromkeys(("K", "N", "bits", "block_size", "accuracy_level"), _INT)),
    "GatherBlockQuantized": (
        3,
        4,
        dict.fromkeys(("gather_axis", "quantize_axis", "bits", "block_size"), _INT),
    ),
    "FusedMatMul": (2, 2, {"transA": _INT, "transB": _INT, "transBatchA": _INT, "transBatchB": _INT, "alpha": _FLOAT}),
    "Attention": (2, 7, {"num_heads": _INT, "unidirectional": _INT, "qkv_hidden_sizes": _INTS, "scale": _FLOAT}),
    "FusedGemm": (
        2,
        3,
        {"transA": _INT, "transB": _INT, "alpha": _FLOAT, "beta": _FLOAT, "activation": _STRING},
    ),
    "FusedConv": (
        2,
        4,
        {"group": _INT, "auto_pad": _STRING, "activation": _STRING, "activation_params": _FLOATS}
        | dict.fromkeys(("kernel_shape", "dilations", "strides", "pads"), _INTS),
    ),
    "PackedAttention": (5, 6, {"num_heads": _INT, "qkv_hidden_sizes": _INTS, "scale": _FLOAT}),
    "MoE": (5, _MANY, {"k": _INT, "normalize_routing_weights": _INT, "activation_type": _STRING}),
    "EmbedLayerNormalization": (7, 9, {"epsilon": _FLOAT, "mask_index_type": _INT}),
    "SkipLayerNormalization": (3, 5, {"epsilon": _FLOAT}),
    "DynamicQuantizeLSTM": (9, 12, {"hidden_size": _INT}),
    "QLinearAdd": (7, 8, {}),
}


# The axes of the inputs of operators that have one number of them.
_RANKS: Final[Mapping[str, Sequence[int]]] = dict.fromkeys(("LSTM", "GRU", "RNN"), (3, 3, 3))


def problem(node: Any, imports: Mapping[str, int]) -> str | None:
    """Say what is wrong with a node by itself; None where nothing is, or its operator isn't known.

    Parameters
    ----------
    node : NodeProto
        Its domain is spelled as `mend` leaves it.
    imports : mapping
        The versions of the domains.
    """
    if node.domain == "com.microsoft" and node.op_type in _MICROSOFT:
        least, most, kinds = _MICROSOFT[node.op_type]
        return _count("inputs", _given(node.input), least, most) or _outputs(node, 1, _MANY) or _kinds(node, kinds)
    if node.domain != "" or "" not in imports:
        return None
    schema = _schema(node.op_type, imports[""])
    if schema is None:
        return None
    required = [i for i, each in enumerate(schema.inputs[: schema.min_input]) if each.option == _SINGLE]
    return (
        _count("inputs", _given(node.input), schema.min_input, schema.max_input)
        or next((f"its input {i} must have a name" for i in required if not node.input[i]), None)
        or _outputs(node, schema.min_output, schema.max_output)
        or _kinds(node, _attribute_kinds(node.op_type, imports[""]))
        or _missing(node, schema)
        or _values(node)
    )


def _given(names: Sequence[str]) -> int:
    """Return how many inputs there are up to the last that has a name."""
    n = len(names)
    while n and not names[n - 1]:
        n -= 1
    return n


def _count(what: str, got: int, least: int, most: int) -> str | None:
    if least <= got <= most:
        return None
    wanted = f"{least}" if least == most else f"at least {least}" if most >= _MANY - 1 else f"{least} to {most}"
    return f"must have {wanted} {what}, got {got}"


def _outputs(node: Any, least: int, most: int) -> str | None:
    found = _count("outputs", len(node.output), least, most)
    unnamed = next((i for i, name in enumerate(node.output[:least]) if not name), None)
    if node.op_type in _OPTIONAL and any(node.output):
        unnamed = None
    return found or (None if unnamed is None else f"its output {unnamed} must have a name")


def _kinds(node: Any, kinds: Mapping[str, int]) -> str | None:
    for attribute in node.attribute:
        want = kinds.get(attribute.name)
        if want is not None and attribute.type != want:
            got = _KINDS.get(attribute.type, str(attribute.type))
            return f"its attribute {quote(attribute.name)} must be of kind {_KINDS[want]}, got {got}"
    return None


def _missing(node: Any, schema: Any) -> str | None:
    has = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in has:
            return f"must have the attribute {quote(name)}"
    if node.op_type == "Constant" and len(has) != 1:
        return f"must have one attribute, its value, got {len(has)}"
    if node.op_type == "Constant" and not has <= set(schema.attributes):
        return f"must have a value, got the attribute {quote(*has)}"
    return None


def _values(node: Any) -> str | None:
    """Say which attribute can't be, whatever the inputs are."""
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            continue
        if node.op_type == "Transpose" and attribute.name == "perm":
            perm = attribute.ints
            if len(perm) > 64 or sorted(perm) != list(range(len(perm))):
                return f"its attribute 'perm' must name each axis once, got {list(perm[:16])}"
        if node.op_type == "Cast" and attribute.name == "to" and attribute.type == _INT:
            known = attribute.i in BY_ONNX_NUMBER or attribute.i == onnx.TensorProto.STRING
            if not known:
                return f"its attribute 'to' must be a data type, got {attribute.i}"
    return None


def rank_behind(node: Any, ranks: Sequence[int | None]) -> tuple[int | None, str | None]:
    """Return how many axes a node's output has (None: not known), and what is wrong with axes that it names.

    Parameters
    ----------
    node : NodeProto
        Nothing else is wrong with it.
    ranks : sequence
        The number of axes of each input, where it is known.
    """
    if node.domain != "":
        return None, None
    for i, (got, want) in enumerate(zip(ranks, _RANKS.get(node.op_type, ()), strict=False)):
        if got not in (None, want):
            return None, f"its input {i} must have {want} axes, got {got}"
    if not ranks or ranks[0] is None:
        return None, None
    rank, attributes = ranks[0], {each.name: each for each in node.attribute if not each.ref_attr_name}
    if node.op_type == "Transpose":
        perm = attributes.get("perm")
        if perm is not None and len(perm.ints) != rank:
            return None, f"its attribute 'perm' names {len(perm.ints)} axes, its input has {rank}"
    elif node.op_type == "Gather":
        axis = attributes["axis"].i if "axis" in attributes else 0
        if not -rank <= axis < rank:
            return None, f"its attribute 'axis' is {axis}, its input has {rank} axes"
        return None, None
    elif node.op_type not in ("Cast", "Identity"):
        return None, None
    return rank, None


@lru_cache(maxsize=1024)
def _schema(op_type: str, version: int) -> Any | None:
    try:
        return defs.get_schema(op_type, max(min(version, RELEASED), 1), "")
    except defs.SchemaError:
        return None


@lru_cache(maxsize=1024)
def _attribute_kinds(op_type: str, version: int) -> dict[str, int]:
    """Return the kinds of an operator's attributes, those of other versions too: they are read by name."""
    kinds: dict[str, int] = {}
    at = RELEASED
    while at > 0 and (schema := _schema(op_type, at)) is not None:
        kinds.update({name: int(each.type.value) for name, each in schema.attributes.items()})
        at = schema.since_version - 1
    schema = _schema(op_type, version)
    if schema is not None:
        kinds.update({name: int(each.type.value) for name, each in schema.attributes.items()})
    return kinds
