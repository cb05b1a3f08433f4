"""What becomes of every tensor of a graph: first what each weight can become, then what is done, decided from that."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import onnx_ir as ir

from modelopt_rs.dtypes import BY_ONNX_NUMBER
from modelopt_rs.errors import UnsupportedError
from modelopt_rs.onnx.opset import raise_opset
from modelopt_rs.onnx.weight_only.forms.choice import choose
from modelopt_rs.onnx.weight_only.forms.form import Form, StorageOptions
from modelopt_rs.onnx.weights import Role, Weight, find_weights, why_no_weight
from modelopt_rs.planning.decide import Decision, decide
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.model import TensorInfo

__all__ = ["Forms", "WeightPlan", "plan_weights"]

Forms: TypeAlias = Mapping[Role, Form]
"""The form of a weight for each way in which its nodes take it."""


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """What is done with every tensor, and the weights that are quantized.

    Attributes
    ----------
    decisions : dict
        By name of the tensor.
    weights : mapping
        All weights by name, as they stand in the graph now.
    forms : mapping
        By name of a weight that is quantized.
    """

    decisions: dict[str, Decision]
    weights: Mapping[str, Weight]
    forms: Mapping[str, Forms]

    @property
    def opset(self) -> int:
        """The least opset that has all the forms."""
        return max((form.opset for forms in self.forms.values() for form in forms.values()), default=0)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a tensor can become: its forms, up to the first that there is not, and why it is left alone (None: not)."""

    info: TensorInfo
    bits: int
    forms: Forms
    reason: str | None = None

    def why_not(self, opset: int | None) -> str | None:
        """Say why it is left alone where no later opset can be had (None: any can)."""
        later = next((form for form in self.forms.values() if opset is not None and form.opset > opset), None)
        if later is not None:
            return f"{later.words} needs opset {later.opset}, which onnx can't convert this model to"
        return self.reason

    def decision(self, with_bits: bool) -> Decision:
        """Say that it is quantized, and how."""
        words = "; ".join(dict.fromkeys(form.words for form in self.forms.values()))
        return Decision("quantize", f"{self.bits} bits: {words}" if with_bits else words)


def plan_weights(
    model: ir.Model, tensors: Mapping[str, TensorInfo], options: QuantizeOptions, onnx: OnnxOptions
) -> WeightPlan:
    """Decide for every tensor what is done with it, and raise the opset to what that needs.

    Where it can't be raised and was not asked for, the weights that need it are left.

    Parameters
    ----------
    model : Model
        Nothing but its opset is changed.
    tensors : mapping
        The initializers of the main graph that a source has tiles of.
    options : QuantizeOptions
    onnx : OnnxOptions

    Raises
    ------
    OptionError
        If a glob matches nothing that it can have an effect on.
    UnsupportedError
        If the opset that is asked for can't be had.
    """
    weights = _by_name(model)
    candidates = _candidates(model, weights, tensors, options, onnx)
    plan = _decided(candidates, weights, options, onnx)
    have = model.graph.opset_imports.get("", 0)
    need = max(plan.opset, onnx.opset or 0)
    if need <= have:
        return plan
    try:
        raise_opset(model, need)
    except UnsupportedError:
        if onnx.opset is not None:
            raise
        return _decided(candidates, weights, options, onnx, have)
    # The conversion has made a new graph: nodes and values have to be found in it. What becomes of them stays, for it
    # keeps names, and how nodes take weights.
    weights = _by_name(model)
    left = {name: info for name, info in tensors.items() if candidates[name].reason is not None and name in weights}
    ranked = _ranked_tables(weights, left, options, onnx, need)
    return _decided({**candidates, **ranked}, weights, options, onnx) if ranked else replace(plan, weights=weights)


def _ranked_tables(
    weights: Mapping[str, Weight],
    left: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    opset: int,
) -> dict[str, _Candidate]:
    """Return the tables that have forms now: a conversion infers shapes, and so ranks of indices that were not told."""
    found = {}
    for name, info in left.items():
        if any(use.kind == "gather" for use in weights[name].uses):
            table = _candidate(weights[name], info, onnx.at(name, options), onnx)
            if table.why_not(opset) is None:
                found[name] = table
    return found


def _by_name(model: ir.Model) -> dict[str, Weight]:
    return {weight.name: weight for weight in find_weights(model)}


def _decided(
    candidates: Mapping[str, _Candidate],
    weights: Mapping[str, Weight],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    opset: int | None = None,
) -> WeightPlan:
    """Decide with the forms of opsets up to `opset`."""
    infos = {name: each.info for name, each in candidates.items()}
    cannot = {name: each.why_not(opset) for name, each in candidates.items()}
    default = {name: each.decision(bool(onnx.bits_of)) for name, each in candidates.items()}
    decisions = decide("quantize", infos, {}, cannot, options.include, options.exclude, default)
    chosen = [name for name, decision in decisions.items() if decision.action == "quantize"]
    return WeightPlan(decisions, weights, {name: candidates[name].forms for name in chosen})


def _candidates(
    model: ir.Model,
    weights: Mapping[str, Weight],
    tensors: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    onnx: OnnxOptions,
) -> dict[str, _Candidate]:
    """Find out what each tensor, and each weight that is in memory, can become."""
    found = {}
    for name, info in tensors.items():
        at = onnx.at(name, options)
        if name in weights:
            found[name] = _candidate(weights[name], info, at, onnx)
        else:
            found[name] = _Candidate(info, at.bits, {}, why_no_weight(model, name))
    for name, weight in weights.items():
        if name not in tensors:
            info = _info_of(weight)
            found[name] = _Candidate(info, options.bits, {}, f"only {info.nbytes:,} bytes")
    return found


def _info_of(weight: Weight) -> TensorInfo:
    tensor = weight.value.const_value
    assert tensor is not None
    return TensorInfo(weight.name, BY_ONNX_NUMBER[tensor.dtype.value], weight.shape, tensor.nbytes)


def _candidate(weight: Weight, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions) -> _Candidate:
    """Find the form for each use of a weight, or why it is left alone."""
    forms: dict[Role, Form] = {}
    if weight.others:
        return _Candidate(info, options.bits, forms, f"also used by {', '.join(dict.fromkeys(weight.others))}")
    for use in weight.uses:
        form = choose(use, weight, info, options, onnx)
        if isinstance(form, str):
            return _Candidate(info, options.bits, forms, form)
        forms[use.role] = form
    after = _stored_bytes(weight, info, options, forms)
    reason = None if after < info.nbytes else f"would not be smaller: {after:,} bytes instead of {info.nbytes:,}"
    return _Candidate(info, options.bits, forms, reason)


def _stored_bytes(weight: Weight, info: TensorInfo, options: QuantizeOptions, forms: Forms) -> int:
    """Return the bytes of all the tensors that stand for a weight."""
    storing = StorageOptions(options=options, threads=None, keep=1, unused=lambda name: name)
    uses = {forms[use.role].stored_as(forms.values()): use for use in weight.uses}
    parts = [part for form, use in uses.items() for part in form.outputs(use, info, storing).infos()]
    return sum(part.nbytes for part in parts)
