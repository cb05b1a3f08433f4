"""What becomes of every tensor of a graph: first what each weight can become, then what is done, decided from that."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

import onnx_ir as ir

from modelopt_rs.dtypes import BY_ONNX_NUMBER
from modelopt_rs.errors import UnsupportedError
from modelopt_rs.onnx.opset import raise_opset
from modelopt_rs.onnx.weight_only.added import added_nbytes
from modelopt_rs.onnx.weight_only.coders import Coder, SeveralForms
from modelopt_rs.onnx.weight_only.forms.choice import BLOCKED, choose, folded
from modelopt_rs.onnx.weight_only.forms.form import Form, StorageOptions, coding_of
from modelopt_rs.onnx.weights import Role, Use, Weight, find_weights, why_no_weight
from modelopt_rs.planning.bits import least, not_smaller, not_to_be_had
from modelopt_rs.planning.decide import Decision, Moved, decide, is_match
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions, more_bits
from modelopt_rs.stream.model import TensorInfo

__all__ = ["Forms", "Measure", "WeightPlan", "plan_weights"]

Forms: TypeAlias = Mapping[Role, Form]
"""The form of a weight for each way in which its nodes take it."""

Choose: TypeAlias = Callable[[Use, Weight, TensorInfo, QuantizeOptions, OnnxOptions], Form | str]

# The most bytes of a result that is turned to keep at a time where it is only measured.
KEEP: Final = 32 * 2**20
# The most bytes of names and nodes that a file has no more with a weight in codes.
NAMES: Final = 4096


class Measure(Protocol):
    """Says which weights need more bits."""

    def too_far(self, weight: Weight, bits: int, coder: Coder) -> tuple[str, str] | None:
        """Say that a layer is too far off with some bits, in general and how far; None if it isn't."""

    def for_outputs(self, weights: Mapping[str, Weight], bits: Mapping[str, int]) -> Mapping[str, Moved]:
        """Return which of all weights need more bits than they would have, as together they are too far off."""


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
    bits : mapping
        The same.
    """

    decisions: dict[str, Decision]
    weights: Mapping[str, Weight]
    forms: Mapping[str, Forms]
    bits: Mapping[str, int]

    @property
    def opset(self) -> int:
        """The least opset that has all the forms."""
        return max((form.opset for forms in self.forms.values() for form in forms.values()), default=0)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a tensor can become: its forms, up to the first that there is not, and why it is left alone (None: not).

    `moved` says why it has more bits than were asked for, `added` is the bytes of its nodes.
    """

    info: TensorInfo
    bits: int
    forms: Forms
    reason: str | None = None
    coder: Coder | None = None
    moved: Moved | None = None
    added: int = 0

    def why_not(self, opset: int | None) -> str | None:
        """Say why it is left alone where no later opset can be had (None: any can)."""
        later = next((form for form in self.forms.values() if opset is not None and form.opset > opset), None)
        if later is not None:
            return f"{later.words} needs opset {later.opset}, which onnx can't convert this model to"
        return self.reason

    def decision(self, with_bits: bool) -> Decision:
        """Say that it is quantized, and how."""
        words = "; ".join(dict.fromkeys(form.words for form in self.forms.values()))
        if self.moved is not None:
            return Decision("quantize", f"{self.moved.words}: {words}", self.moved)
        return Decision("quantize", f"{self.bits} bits: {words}" if with_bits else words)

    @property
    def is_second_best(self) -> bool:
        """Whether it is left alone, or has more bits than asked for."""
        return self.reason is not None or self.moved is not None

    @property
    def nbytes(self) -> int:
        """The bytes of all the tensors that stand for it, and of what is done with them in the graph."""
        assert self.coder is not None
        return self.added + sum(part.nbytes for part in self.coder.outputs)


def plan_weights(
    model: ir.Model,
    tensors: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    measure: Measure | None = None,
) -> WeightPlan:
    """Decide for every tensor what is done with it, and raise the opset to what that needs.

    Where it can't be raised and was not asked for, the weights that need it get more bits, or are left.

    Parameters
    ----------
    model : Model
        Nothing but its opset is changed.
    tensors : mapping
        The initializers of the main graph that a source has tiles of.
    options : QuantizeOptions
    onnx : OnnxOptions
    measure : Measure, optional
        Says which weights need more bits.

    Raises
    ------
    OptionError
        If a glob matches nothing that it can have an effect on.
    UnsupportedError
        If the opset that is asked for can't be had.
    """
    weights = _by_name(model)
    request = _Request(options, onnx, measure)
    candidates = _candidates(model, weights, tensors, request)
    candidates |= _for_outputs(candidates, weights, request)
    # Whatever a broken model says: what needs no opset needs none of it.
    have, most = max(model.graph.opset_imports.get("", 0), 0), None
    while True:
        plan = _decided(candidates, weights, options, onnx, most)
        need = max(plan.opset, onnx.opset or 0)
        if need <= have:
            return plan
        try:
            raise_opset(model, need)
            break
        except UnsupportedError:
            if onnx.opset is not None:
                raise
            most = BLOCKED if have < BLOCKED < need else have  # codes of 4 bits need less than those of 2
            candidates = _within(candidates, weights, request, most)
    # The conversion has made a new graph: nodes and values have to be found in it. What becomes of them stays, for it
    # keeps names, and how nodes take weights.
    weights = _by_name(model)
    left = {name: info for name, info in tensors.items() if candidates[name].is_second_best and name in weights}
    ranked = _ranked_tables(weights, left, request, need)
    return _decided({**candidates, **ranked}, weights, options, onnx) if ranked else replace(plan, weights=weights)


def _within(
    candidates: Mapping[str, _Candidate], weights: Mapping[str, Weight], request: "_Request", opset: int
) -> dict[str, _Candidate]:
    """Give weights whose form needs an opset that can't be had more bits, where these have a form in what there is."""
    found, onnx = dict(candidates), request.onnx
    for name, each in candidates.items():
        words = each.why_not(opset)
        if each.reason is not None or words is None:
            continue
        options = onnx.at(name, request.options).with_bits(each.bits)
        more = (
            _coded(weights[name], each.info, options.with_bits(bits), onnx, way)
            for bits in more_bits(options)
            for way in (None, folded)
        )
        other = next((one for one in more if one.why_not(opset) is None), None)
        if other is not None:
            why = f"what {each.bits} bits need is of an opset that the model can't have"
            found[name] = replace(other, moved=Moved(other.bits, why, words))
    return found


def _ranked_tables(
    weights: Mapping[str, Weight],
    left: Mapping[str, TensorInfo],
    request: "_Request",
    opset: int,
) -> dict[str, _Candidate]:
    """Return the tables that have forms now: a conversion infers shapes, and so ranks of indices that were not told."""
    found = {}
    for name, info in left.items():
        if any(use.kind == "gather" for use in weights[name].uses):
            table = _candidate(weights[name], info, request)
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
    decisions = decide("quantize", infos, cannot, options.include, options.exclude, default)
    chosen = [name for name, decision in decisions.items() if decision.action == "quantize"]
    return WeightPlan(
        decisions,
        weights,
        {name: candidates[name].forms for name in chosen},
        {name: candidates[name].bits for name in chosen},
    )


def _candidates(
    model: ir.Model,
    weights: Mapping[str, Weight],
    tensors: Mapping[str, TensorInfo],
    request: "_Request",
) -> dict[str, _Candidate]:
    """Find out what each tensor, and each weight that is in memory, can become."""
    found, bits = {}, request.options.bits
    for name, info in tensors.items():
        if name in weights:
            found[name] = _candidate(weights[name], info, request)
        else:
            found[name] = _Candidate(info, bits, {}, why_no_weight(model, name))
    for name, weight in weights.items():
        if name not in tensors:
            info = _info_of(weight)
            found[name] = _Candidate(info, bits, {}, f"only {info.nbytes:,} bytes")
    return found


def _for_outputs(
    candidates: Mapping[str, _Candidate], weights: Mapping[str, Weight], request: "_Request"
) -> dict[str, _Candidate]:
    """Give weights more bits where all of them together would be too far off."""
    if request.measure is None:
        return {}
    bits = {
        name: each.bits
        for name, each in candidates.items()
        if each.reason is None and each.bits < 8 and not request.says(name)
    }
    found = {}
    for name, moved in request.measure.for_outputs({name: weights[name] for name in bits}, bits).items():
        options = request.onnx.at(name, request.options).with_bits(moved.bits)
        more = _coded(weights[name], candidates[name].info, options, request.onnx)
        if more.reason is None:
            found[name] = replace(_no_larger(more, weights[name], options, request), moved=moved)
    # Why it has more bits stays as it was; only how many they are is another.
    return {
        name: replace(each, moved=replace(each.moved, bits=each.bits)) for name, each in found.items() if each.moved
    }


def _no_larger(chosen: _Candidate, weight: Weight, options: QuantizeOptions, request: "_Request") -> _Candidate:
    """Return what a weight becomes with more bits, if these take no more bytes: its nodes' are counted, too."""
    more = [_coded(weight, chosen.info, options.with_bits(bits), request.onnx) for bits in more_bits(options)]
    able = [each for each in more if each.reason is None]
    at = least(chosen.nbytes - options.uniform, [each.nbytes for each in able])
    return chosen if at is None else able[at]


def _info_of(weight: Weight) -> TensorInfo:
    tensor = weight.value.const_value
    assert tensor is not None
    return TensorInfo(weight.name, BY_ONNX_NUMBER[tensor.dtype.value], weight.shape, tensor.nbytes)


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked for."""

    options: QuantizeOptions
    onnx: OnnxOptions
    measure: Measure | None

    def says(self, name: str) -> bool:
        """Whether a glob says what a weight gets."""
        return any(is_match(name, glob) for glob in (*self.onnx.bits_of, *self.options.exclude))

    def is_measured(self, weight: Weight) -> bool:
        """Whether a weight may turn out to need more bits."""
        return self.measure is not None and not self.says(weight.name)

    def too_far(self, weight: Weight, candidate: _Candidate) -> tuple[str, str] | None:
        """Say that a weight needs more bits; None if it doesn't, or a glob says what it gets."""
        if self.measure is None or candidate.coder is None or not self.is_measured(weight):
            return None
        return self.measure.too_far(weight, candidate.bits, candidate.coder)


def _candidate(weight: Weight, info: TensorInfo, request: _Request) -> _Candidate:
    """Return what a weight can become: with more bits than asked for where these can't be had or are not enough."""
    onnx, options = request.onnx, request.onnx.at(weight.name, request.options)
    asked = chosen = _coded(weight, info, options, onnx)
    if weight.others:
        return asked
    # Of a large weight more bits can't take less, whatever nodes take: these are counted only where it is looked at.
    most = math.inf if chosen.reason or request.is_measured(weight) else 8 * (chosen.nbytes + NAMES)
    bits_of = [bits for bits in more_bits(options) if math.prod(info.shape) * bits < most]
    more = [_coded(weight, info, options.with_bits(bits), onnx) for bits in bits_of]
    able = [each for each in more if each.reason is None]
    while able:
        if chosen.reason is not None:
            why: tuple[str, str] | None = not_to_be_had(chosen.bits, chosen.reason)
        else:
            why = request.too_far(weight, chosen)
        at = 0 if why is not None else least(chosen.nbytes - options.uniform, [each.nbytes for each in able])
        if at is None:
            break
        why = why or not_smaller(chosen.bits, chosen.nbytes, able[at].nbytes)
        chosen, able = replace(able[at], moved=Moved(able[at].bits, *why)), able[at + 1 :]
    return chosen


def _coded(
    weight: Weight, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions, way: Choose | None = None
) -> _Candidate:
    """Find the form for each use of a weight, or why it is left alone."""
    forms: dict[Role, Form] = {}
    if weight.others:
        return _Candidate(info, options.bits, forms, f"also used by {', '.join(dict.fromkeys(weight.others))}")
    for use in weight.uses:
        form = (way or choose)(use, weight, info, options, onnx)
        if isinstance(form, str):
            return _Candidate(info, options.bits, forms, form)
        forms[use.role] = form
    storing = StorageOptions(options=options, threads=None, keep=KEEP, unused=lambda name: name)
    added = added_nbytes(weight, info, forms, storing)
    found = _Candidate(info, options.bits, forms, coder=_coder(weight, info, forms, storing), added=added)
    if found.nbytes < info.nbytes:
        return found
    return replace(found, reason=f"would not be smaller: {found.nbytes:,} bytes instead of {info.nbytes:,}")


def _coder(weight: Weight, info: TensorInfo, forms: Forms, storing: StorageOptions) -> Coder:
    """Return what makes all the tensors that stand for a weight."""
    uses = {forms[use.role].stored_as(forms.values()): use for use in weight.uses}
    coders = [form.coder(use, coding_of(form, use, info, storing), KEEP) for form, use in uses.items()]
    return coders[0] if len(coders) == 1 else SeveralForms(coders)
