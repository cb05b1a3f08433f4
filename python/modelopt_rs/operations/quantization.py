"""What is quantized of a model's tensors, whatever else is done to them in the same pass."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from modelopt_rs._types import Array
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.layouts.layout import Encoder, StoredWeight
from modelopt_rs.layouts.modules import Modules
from modelopt_rs.layouts.packed_encoder import Quantize
from modelopt_rs.layouts.packed_spec import PackedSpec
from modelopt_rs.planning.alike import choose_alike
from modelopt_rs.planning.bits import BitsChoice, choose_bits
from modelopt_rs.planning.by_inputs import KnownInputs
from modelopt_rs.planning.decide import Decision, check_bits_of, is_match
from modelopt_rs.planning.loaders import NO_ZERO_POINTS, check_loaded, groups_alike
from modelopt_rs.planning.norms import SEARCHED, norm_moments
from modelopt_rs.planning.quantize import QuantizeOptions, plan_quantize
from modelopt_rs.planning.sensitivity import LayerError, Sensitivity
from modelopt_rs.planning.warnings import (
    far_off_at_8_bits,
    not_run_in_words,
    old_loader_in_words,
    quantize_warnings,
)
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Copy, Transform

__all__ = ["Quantization"]

NO_SMALLER = "the file would be no smaller"
ALIKE = "transformers reads this model only where all are"


class Quantization:
    """Which tensors of a model are quantized, by what, and what the file says of it.

    Parameters
    ----------
    tensors : mapping
        The tensors as they are quantized (cropped, where they are cropped before).
    config : mapping
        The model's config.json; empty where there is none.
    options : QuantizeOptions or None
        None: nothing is quantized.
    threads : int or None
    sensitivity : Sensitivity, optional
        Says which weights need more bits.
    stored : mapping, optional
        Those of the tensors that are quantized already, and stay as they are.

    Attributes
    ----------
    decisions : dict
        For each tensor.
    specs : dict
        How each of the tensors that are chosen is coded.
    encoders : dict
        What quantizes the tensors that are chosen.
    metadata : mapping of str to str
        How the weights are stored, for a reader that has the file alone.
    config : mapping or None
        The same for config.json.
    warnings : list of str
        What should be known of the choice.
    searched : bool
        Whether scales are those of least error.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        config: Mapping[str, Any],
        options: QuantizeOptions | None,
        threads: int | None,
        sensitivity: Sensitivity | None = None,
        stored: Mapping[str, StoredWeight] = MappingProxyType({}),
    ) -> None:
        self.decisions: dict[str, Decision] = {}
        self.encoders: dict[str, Encoder] = {}
        self.metadata: Mapping[str, str] = {}
        self.config: Mapping[str, Any] | None = None
        self.specs: dict[str, Any] = {}
        self.threads, self._tensors = threads, tensors
        self.warnings: list[str] = []
        self.searched = options is not None and options.search is not None
        self._known: KnownInputs | None = None
        if options is None:
            return
        model = _Model(tensors, config, threads, sensitivity, stored)
        found = _choice(model, options)
        self.warnings += found.warnings
        for name, decision in found.decisions.items():
            self.decisions[name] = decision
            choice = found.choices.get(name)
            if choice is not None:
                self.specs[name], self.encoders[name] = choice.spec, choice.encoder
                self.decisions[name] = choice.decision(decision)
            elif name in found.choices:
                self.decisions[name] = Decision("copy", f"it can't be coded like the others, and {ALIKE}")
        check_bits_of(options.bits_of, self.decisions)
        specs = {**model.specs, **self.specs}
        if not options.only_dequantize:
            left = {name: each.reason for name, each in self.decisions.items() if name not in specs}
            check_loaded(specs, left, options.layout.name, config, stored)
        if specs:
            self.metadata, self.config = options.layout.describe(specs, Modules(tensors, config))
        if not stored and self._saves_nothing(options, config, found.choices):
            self.decisions |= dict.fromkeys(self.specs, Decision("copy", NO_SMALLER))
            self.specs, self.encoders, self.metadata, self.config = {}, {}, {}, None
        elif specs:
            self.warnings += [] if options.only_dequantize else old_loader_in_words(config)
            if options.layout.name == "bitsandbytes" and config and not options.only_dequantize:
                self.warnings += not_run_in_words(tensors[name].shape for name in specs)

    def _saves_nothing(
        self, options: QuantizeOptions, config: Mapping[str, Any], choices: "Mapping[str, BitsChoice | None]"
    ) -> bool:
        """Whether what says how weights are stored takes more than they save, and nobody asked for any."""
        if any(_is_asked_for(name, options) for name in self.specs):
            return False
        said = len(json.dumps(self.metadata)) + (len(json.dumps(self.config, indent=2)) if config else 0)
        saved = [choice.saved(self._tensors[name]) for name, choice in choices.items() if choice is not None]
        return bool(self.specs) and sum(saved) <= said

    def round_by(self, known: KnownInputs) -> None:
        """Round weights by what is known of their inputs."""
        for name, encoder in self.encoders.items():
            if name in known.moments and isinstance(encoder, Quantize):
                encoder.round_by(known.moments[name])
        self.decisions = known.decided(self.decisions, self.encoders)
        self._known = known

    def settle(self) -> None:
        """Say what turned out while weights were rounded: which of their layers no sample reached."""
        if self._known is not None:
            self.decisions, words = self._known.reached(self.decisions)
            self.warnings += words

    def weigh_by_norms(self, read: Callable[[str], Array]) -> None:
        """Search scales of less than 8 bits by what norms, which are read, say of their inputs."""
        few = [name for name, spec in self.specs.items() if (_bits(spec) or 8) < 8] if self.searched else []
        for name, moments in norm_moments(self._tensors, few, read).items():
            encoder, decision = self.encoders[name], self.decisions[name]
            if isinstance(encoder, Quantize):
                encoder.weigh_by(moments)
                self.decisions[name] = replace(decision, reason=f"{decision.reason}; {SEARCHED}")

    def transform(self, info: TensorInfo) -> Transform:
        """Return what becomes of a tensor."""
        return self.encoders.get(info.name) or Copy(info)

    def said(self, sizes: tuple[int, int], errors: Mapping[str, LayerError] = MappingProxyType({})) -> tuple[str, ...]:
        """Return what should be known of what was decided; `sizes` are the bytes before and after."""
        # What loses much by the plain formula need not with searched scales.
        plain = [spec for spec in self.specs.values() if isinstance(spec, PackedSpec) and not self.searched]
        schemes = [(spec.bits, spec.symmetric) for spec in plain]
        far_off = far_off_at_8_bits({k: f for k, f in self.figures().items() if _bits(self.specs[k]) == 8})
        return (*self.warnings, *quantize_warnings(self.decisions, schemes, sizes, errors), *far_off)

    def figures(self) -> dict[str, ErrorFigures]:
        """Return how far the codes that were made are from the weights, by tensor."""
        return {name: encoder.figures for name, encoder in self.encoders.items()}


def _bits(spec: Any) -> int | None:
    """Return the bits of uniform codes."""
    return spec.bits if isinstance(spec, PackedSpec) else None


@dataclass(frozen=True, slots=True)
class _Model:
    """What is quantized, and by what."""

    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    threads: int | None
    sensitivity: Sensitivity | None
    stored: Mapping[str, StoredWeight]

    @property
    def specs(self) -> dict[str, Any]:
        """How the weights are coded that are quantized already."""
        return {name: weight.spec for name, weight in self.stored.items()}


@dataclass(frozen=True, slots=True)
class _Choice:
    """How each weight is coded (None: it can't be like the others), and what should be known of it."""

    decisions: dict[str, Decision]
    choices: dict[str, BitsChoice | None]
    warnings: list[str]
    is_read: bool


def _choice(model: _Model, options: QuantizeOptions) -> _Choice:
    """Choose how weights are coded: where nothing is said with zero points, if each can then have what it needs.

    Zero points are read only where all weights are coded alike: where bits are mixed there are none.
    """
    if options.scheme is not None or options.format is not None or not model.config or options.only_dequantize:
        return _chosen(model, options)
    without = replace(options, scheme="symmetric")
    try:
        found = _chosen(model, options)
    except OptionError:  # what is included can't have zero points
        return _chosen(model, without)
    left = any(
        decision.action == "copy" and any(is_match(name, glob) for glob in options.include)
        for name, decision in found.decisions.items()
    )
    refused = [name for name, each in found.decisions.items() if NO_ZERO_POINTS in each.reason]
    if found.is_read and not found.warnings and not left and not refused:
        return found
    errors = {} if model.sensitivity is None else dict(model.sensitivity.errors)
    other = _chosen(model, without)
    few = 2 * _elements(model, found) < _elements(model, other)
    if other.is_read and (not found.is_read or len(other.warnings) < len(found.warnings) or left or few):
        return other
    if model.sensitivity is not None:
        model.sensitivity.errors.update(errors)
    return found


def _elements(model: _Model, found: _Choice) -> int:
    """Return the elements of all weights that are quantized."""
    return sum(math.prod(model.tensors[name].shape) for name, each in found.choices.items() if each is not None)


def _chosen(model: _Model, options: QuantizeOptions) -> _Choice:
    """Choose how each weight is coded: alone, and alike where loaders want that."""
    decisions = plan_quantize(model.tensors, model.config, options, model.stored)
    chosen: dict[str, BitsChoice | None] = {
        name: choose_bits(model.tensors[name], options, model.threads, model.sensitivity, model.config)
        for name, decision in decisions.items()
        if decision.action == "quantize"
    }
    for name, choice in list(chosen.items()):
        if choice is not None and choice.saved(model.tensors[name]) <= 0 and not _is_asked_for(name, options):
            decisions[name] = Decision("copy", NO_SMALLER)
            del chosen[name]
    alone, warnings, is_read = dict(chosen), [], True
    if not options.only_dequantize:
        fixed = model.specs
        specs = {**fixed, **{name: choice.spec for name, choice in chosen.items() if choice is not None}}
        for reader, names in groups_alike(specs, options.layout.name, model.config):
            group = {name: choice for name in names if (choice := chosen.get(name)) is not None}
            chosen |= choose_alike(group, model.tensors, options.with_scheme(reader), model.threads, model.config)
            others = [name for name in group if _way(chosen[name]) != _way(alone[name])]
            ways = {choice.spec for name in names if (choice := chosen.get(name)) is not None}
            is_read &= len(ways | {fixed[name] for name in names if name in fixed}) < 2
            if others:
                warnings.append(_alike_in_words(reader, len(others)))
    return _Choice(decisions, chosen, warnings, is_read)


def _is_asked_for(name: str, options: QuantizeOptions) -> bool:
    """Whether a weight is quantized also where that saves nothing."""
    return options.uniform or any(is_match(name, glob) for glob in (*options.include, *options.bits_of))


def _way(choice: BitsChoice | None) -> Any:
    return None if choice is None else choice.spec


def _alike_in_words(reader: str, others: int) -> str:
    """Say that weights are coded otherwise than each alone would be."""
    weights = "1 weight is" if others == 1 else f"{others:,} weights are"
    return (
        f"{weights} coded like the others, not as would be best: transformers reads tensor {quote(reader)} only where "
        "all are coded alike"
    )
