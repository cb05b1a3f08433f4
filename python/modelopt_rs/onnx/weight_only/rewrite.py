"""`quantize_weights`: the graph that takes quantized weights, and the transforms that make them tile by tile."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import onnx_ir as ir

from modelopt_rs._core import UnsupportedError
from modelopt_rs.containers.onnx import placeholder
from modelopt_rs.dtypes import BY_ONNX_NUMBER, DTYPES
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.onnx.names import Names
from modelopt_rs.onnx.opset import raise_ir_version, raise_opset
from modelopt_rs.onnx.weight_only.coders import Coder, SeveralForms
from modelopt_rs.onnx.weight_only.coding import Coding
from modelopt_rs.onnx.weight_only.forms import BLOCKS, Form, choose
from modelopt_rs.onnx.weight_only.nodes import MICROSOFT, QuantizedWeight, rewrite_use
from modelopt_rs.onnx.weight_only.storage import StorageOptions, coder_of, outputs_of
from modelopt_rs.onnx.weights import Use, Weight, find_weights, other_use
from modelopt_rs.planning.decide import Decision, decide
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.memory import DEFAULT_MEMORY
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["quantize_weights"]


@dataclass(slots=True)
class _Plan:
    """What is done with every tensor, and the forms of the weights that are quantized."""

    decisions: dict[str, Decision]
    weights: dict[str, Weight]
    forms: dict[str, list[Form]] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """The least opset that has all the forms."""
        return max((form.opset for forms in self.forms.values() for form in forms), default=0)


def quantize_weights(
    model: ir.Model,
    tensors: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    *,
    threads: int | None = None,
    max_memory: int = DEFAULT_MEMORY,
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
    max_memory : int
        What a run may hold; a quarter of it is for a weight whose axes change places.

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
    ('MatMulNBits, blocks of 32', ['w_quantized', 'w_scale'])
    >>> [node.op_type for node in model.graph]
    ['MatMulNBits']
    """
    for bits in {options.bits, *onnx.bits_of.values()}:
        _check_group(options.group_size, bits)
    plan = _planned(model, tensors, options, onnx)
    have = model.graph.opset_imports.get("", 0)
    need = max(plan.opset, onnx.opset or 0)
    if need > have:
        plan = _with_opset(model, tensors, options, onnx, need)
    _check_bits_of(plan, onnx)
    names = Names(model)
    common = StorageOptions(options=options, threads=threads, keep=max_memory // 4, unused=names.unused)
    transforms: dict[str, Transform] = {}
    for name, forms in plan.forms.items():
        storing = replace(common, options=onnx.at(name, options))
        transforms[name] = _rewrite(plan.weights[name], tensors[name], forms, storing, onnx, names)
        _remove(model, plan.weights[name])
    if any(form.operation in ("nbits", "gather_block") for forms in plan.forms.values() for form in forms):
        model.graph.opset_imports.setdefault(MICROSOFT, 1)
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


def _check_bits_of(plan: _Plan, onnx: OnnxOptions) -> None:
    """Refuse a glob that has no effect."""
    for glob in onnx.bits_of:
        matched = [name for name in plan.decisions if fnmatchcase(name, glob)]
        if not matched:
            raise OptionError(f"bits_of {glob!r} matches no tensor")
        if not any(name in plan.forms for name in matched):
            reason = plan.decisions[matched[0]].reason
            raise OptionError(f"bits_of {glob!r}: tensor {quote(matched[0])} is not quantized: {reason}")


def _planned(
    model: ir.Model, tensors: Mapping[str, TensorInfo], options: QuantizeOptions, onnx: OnnxOptions, most: int = 1000
) -> _Plan:
    """Plan with the forms of opsets up to `most`."""
    weights = {weight.name: weight for weight in find_weights(model)}
    plan = _Plan({}, weights)
    small = {name: _info_of(weight) for name, weight in weights.items() if name not in tensors}

    def why_not(info: TensorInfo) -> str | None:
        weight = weights.get(info.name)
        if weight is None:
            value = model.graph.initializers.get(info.name)
            return "not in the graph" if value is None else other_use(value)
        if info.name in small:
            return f"only {info.nbytes:,} bytes"
        forms = _forms(weight, info, onnx.at(info.name, options), onnx, most)
        if isinstance(forms, str):
            return forms
        plan.forms[info.name] = forms
        return None

    def default(info: TensorInfo) -> Decision:
        words = "; ".join(dict.fromkeys(form.words for form in plan.forms[info.name]))
        return Decision("quantize", f"{onnx.at(info.name, options).bits} bits: {words}" if onnx.bits_of else words)

    infos = {**tensors, **small}
    plan.decisions = decide("quantize", infos, {}, why_not, options.include, options.exclude, default)
    chosen = [name for name, decision in plan.decisions.items() if decision.action == "quantize"]
    plan.forms = {name: plan.forms[name] for name in chosen}
    return plan


def _with_opset(
    model: ir.Model, tensors: Mapping[str, TensorInfo], options: QuantizeOptions, onnx: OnnxOptions, need: int
) -> _Plan:
    """Raise the opset and plan again; where that can't be done, leave the weights that need it."""
    have = model.graph.opset_imports.get("", 0)
    try:
        raise_opset(model, need)
    except UnsupportedError:
        if onnx.opset is not None:
            raise
        return _planned(model, tensors, options, onnx, most=have)
    return _planned(model, tensors, options, onnx)


def _info_of(weight: Weight) -> TensorInfo:
    tensor = weight.value.const_value
    assert tensor is not None
    return TensorInfo(weight.name, BY_ONNX_NUMBER[tensor.dtype.value], weight.shape, tensor.nbytes)


def _forms(
    weight: Weight, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions, most: int
) -> list[Form] | str:
    """Return the form for each use of a weight, or why it is left alone."""
    if weight.others:
        return f"also used by {', '.join(dict.fromkeys(weight.others))}"
    forms = []
    for use in weight.uses:
        form = choose(use, weight, info, options, onnx)
        if isinstance(form, str):
            return form
        if form.opset > most:
            return f"{form.words} needs opset {form.opset}, which onnx can't convert this model to"
        forms.append(form)
    storing = StorageOptions(options=options, threads=None, keep=1, unused=lambda name: name)
    kinds = {_stored_as(form, forms): use for use, form in zip(weight.uses, forms, strict=True)}
    after = sum(part.nbytes for form, use in kinds.items() for part in outputs_of(form, use, info, storing).infos())
    if after >= info.nbytes:
        return f"would not be smaller: {after:,} bytes instead of {info.nbytes:,}"
    return forms


def _stored_as(form: Form, forms: list[Form]) -> Form:
    """Return the form whose tensors a form takes: a table and a head share those of MatMulNBits."""
    shared = replace(form, operation="nbits")
    return replace(shared if form.operation == "gather_block" and shared in forms else form, opset=0)


def _rewrite(
    weight: Weight, info: TensorInfo, forms: list[Form], storing: StorageOptions, onnx: OnnxOptions, names: Names
) -> Transform:
    """Give every node of a weight its new form; return what makes the tensors."""
    made: dict[Form, QuantizedWeight] = {}
    coders: list[Coder] = []
    for use, form in zip(weight.uses, forms, strict=True):
        kind = _stored_as(form, forms)
        if kind not in made:
            stored, coder = _stored(kind, use, info, storing, names)
            made[kind] = stored
            coders.append(coder)
        rewrite_use(use, replace(made[kind], form=form), storing.options, onnx, names)
    return coders[0] if len(coders) == 1 else SeveralForms(coders)


def _stored(
    form: Form, use: Use, info: TensorInfo, storing: StorageOptions, names: Names
) -> tuple[QuantizedWeight, Coder]:
    outputs = outputs_of(form, use, info, storing)
    coding = Coding(info=info, options=storing.options, block=form.block, outputs=outputs, threads=storing.threads)
    codes, scale, *points = (
        names.initializer(part.name, placeholder(part.name, ir.DataType(DTYPES[part.dtype].onnx), part.shape))
        for part in outputs.infos()
    )
    point = points[0] if points else None
    stored = QuantizedWeight(form=form, shape=info.shape, codes=codes, scale=scale, zero_point=point)
    return stored, coder_of(form, use, coding, storing)


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
