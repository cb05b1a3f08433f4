"""`quantize_weights`: the graph that takes quantized weights, and the transforms that make them tile by tile."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import onnx_ir as ir

from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.names import Names
from modelopt_rs.onnx.opset import raise_ir_version
from modelopt_rs.onnx.weight_only.added import stored
from modelopt_rs.onnx.weight_only.coders import Coder, SeveralForms
from modelopt_rs.onnx.weight_only.forms.choice import BLOCKS
from modelopt_rs.onnx.weight_only.forms.form import Form, StorageOptions
from modelopt_rs.onnx.weight_only.nodes import InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weight_only.plan import Forms, Measure, plan_weights
from modelopt_rs.onnx.weights import Weight
from modelopt_rs.planning.decide import Decision, check_bits_of
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["quantize_weights"]


def quantize_weights(
    model: ir.Model,
    tensors: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    *,
    threads: int | None = None,
    max_memory: int | str = DEFAULT_MEMORY,
    measure: Measure | None = None,
    moments: Mapping[str, Moments] = MappingProxyType({}),
) -> tuple[dict[str, Transform], dict[str, Decision]]:
    """Rewrite a graph to quantized weights; the weights themselves follow in tiles, through the transforms.

    Parameters
    ----------
    model : Model
        Edited in place: new nodes, new initializers without values, the old ones removed, the opset raised if needed.
    tensors : mapping
        The initializers of the main graph that a source has tiles of.
    options : QuantizeOptions
        By default blocks of 128 at 8 bits and of 32 below for MatMul and Gemm; a scale for each channel or row at 8
        bits for the others.
    onnx : OnnxOptions
        `bits_of` are globs over the weights' names.
    threads : int, optional
        Threads to compute with; never changes a byte.
    max_memory : int or str
        What a run may hold, as a number or a text such as "64MiB"; a quarter of it is for a weight whose axes change
        places.
    measure : Measure, optional
        Says which weights need more bits.
    moments : mapping, optional
        By name of a weight of MatMul, Gemm and Conv what gives the moments of their inputs.

    Returns
    -------
    transforms : dict
        For every tensor that is quantized what makes the new ones of it. All other tensors are copied.
    decisions : dict
        For every tensor and every weight what is done with it, and why.

    Raises
    ------
    OptionError
        If the options ask for what no form has, or a glob matches nothing.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.onnx import quantize_weights
    >>> from modelopt_rs.planning.onnx import OnnxOptions
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> w = ir.val("w", const_value=ir.tensor(np.ones((64, 64), np.float32), name="w"))
    >>> x = ir.val("x", ir.DataType.FLOAT, [1, 64])
    >>> node = ir.node("MatMul", [x, w])
    >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17}, name="g")
    >>> model = ir.Model(graph, ir_version=8)
    >>> tensors = {"w": TensorInfo("w", "F32", (64, 64), 16384)}
    >>> transforms, decisions = quantize_weights(model, tensors, QuantizeOptions(bits=4), OnnxOptions())
    >>> decisions["w"].reason, [info.name for info in transforms["w"].outputs]
    ('MatMulNBits, blocks of 32', ['w_quantized', 'w_scale', 'w_zero_point'])
    >>> [node.op_type for node in model.graph]
    ['Cast', 'MatMulNBits']
    """
    max_memory = bytes_of("max_memory", max_memory)
    for bits in {options.bits, *onnx.bits_of.values()}:
        _check_group(options.group_size, bits)
    plan = plan_weights(model, tensors, options, onnx, measure)
    check_bits_of(onnx.bits_of, plan.decisions)
    names = Names(model)
    common = StorageOptions(options=options, threads=threads, keep=max_memory // 4, unused=names.unused)
    transforms: dict[str, Transform] = {}
    for name, forms in plan.forms.items():
        storing = replace(common, options=options.with_bits(plan.bits[name]), moments=moments.get(name))
        transforms[name] = _rewrite(plan.weights[name], tensors[name], forms, storing, names)
        _remove(model, plan.weights[name])
    for domain in sorted({form.domain for forms in plan.forms.values() for form in forms.values()} - {""}):
        model.graph.opset_imports.setdefault(domain, 1)
    raise_ir_version(model)
    return transforms, plan.decisions


def _check_group(group_size: int | None, bits: int) -> None:
    sizes = BLOCKS[bits]
    if group_size and group_size not in sizes:
        shown = ", ".join(str(size) for size in sizes)
        raise OptionError(
            f"group_size must be 0 or one of {shown} for an ONNX model of {bits} bits, "
            f"got {group_size}: onnxruntime has no fast kernel for others"
        )


def _rewrite(weight: Weight, info: TensorInfo, forms: Forms, storing: StorageOptions, names: Names) -> Transform:
    """Give every node of a weight its new form; return what makes the tensors."""
    made: dict[Form, QuantizedWeight] = {}
    coders: list[Coder] = []
    # What rows are taken of has its scales by rows, whatever else takes it.
    tables = {forms[use.role].stored_as(forms.values()): use for use in weight.uses if use.kind == "gather"}
    for use in weight.uses:
        form = forms[use.role]
        kind = form.stored_as(forms.values())
        if kind not in made:
            made[kind], coder = stored(kind, tables.get(kind, use), info, storing, names)
            coders.append(coder)
        form.rewrite(use, made[kind], InsertedNodes(use, names))
    return coders[0] if len(coders) == 1 else SeveralForms(coders)


def _remove(model: ir.Model, weight: Weight) -> None:
    """Remove a weight that no node takes any more, and what it passed through."""
    unused = [node for use in weight.uses for node in use.chain]
    # What stands behind goes first; chains that part later share their beginning.
    for node in sorted(dict.fromkeys(unused), key=unused.index, reverse=True):
        if node.graph is not None and not any(output.uses() for output in node.outputs):
            node.graph.remove(node, safe=True)
    if weight.value in model.graph.inputs:
        model.graph.inputs.remove(weight.value)
    del model.graph.initializers[weight.name]
