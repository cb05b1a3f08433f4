"""The bits of a weight in a layout: those asked for, or more where these save nothing or are not enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from modelopt_rs.layouts.layout import Encoder
from modelopt_rs.planning.decide import Decision, Moved, is_match
from modelopt_rs.planning.quantize import QuantizeOptions, is_loaded, more_bits, refusal, spec_of
from modelopt_rs.planning.sensitivity import Sensitivity
from modelopt_rs.stream.model import TensorInfo

__all__ = ["ENTRY", "BitsChoice", "choose_bits", "least", "not_smaller", "not_to_be_had"]

ENTRY: Final = 80
"""Bytes that a header has for each tensor besides its name."""


@dataclass(frozen=True, slots=True)
class BitsChoice:
    """How a weight is coded, by what, and why not in the bits asked for."""

    spec: Any
    encoder: Encoder
    words: str | None = None
    moved: Moved | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of all that stands for it, entries of the header among them."""
        return sum(map(_written, self.encoder.outputs))

    def saved(self, info: TensorInfo) -> int:
        """Return how many bytes of a file it saves of a weight as it is."""
        return _written(info) - self.nbytes

    def decision(self, decision: Decision) -> Decision:
        """Return a decision with the bits, where they are others than asked for."""
        if self.words is None:
            return decision
        return Decision(decision.action, f"{self.words}: {decision.reason}", self.moved)


def choose_bits(
    info: TensorInfo,
    options: QuantizeOptions,
    threads: int | None,
    sensitivity: Sensitivity | None,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> BitsChoice:
    """Return how a weight is coded.

    Parameters
    ----------
    info : TensorInfo
    options : QuantizeOptions
    threads : int or None
    sensitivity : Sensitivity or None
        Measures weights whose bits no glob says.
    config : mapping, optional
        The model's config.json: a weight gets no more bits than its loaders read.

    Examples
    --------
    >>> from modelopt_rs.planning.bits import choose_bits
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> from modelopt_rs.stream.model import TensorInfo
    >>> info = TensorInfo("fc.weight", "F32", (64, 64), 16384)
    >>> choose_bits(info, QuantizeOptions(bits=4, bits_of={"fc.*": 8}), None, None).words
    '8 bits'
    """
    at = options.at(info.name)
    given = any(is_match(info.name, glob) for glob in options.bits_of)
    chosen = _coded(info, at, threads)
    given_words = f"{at.bits} bits" if at.bits != options.bits else None
    refused = refusal(info, at)
    able = [
        each
        for bits in more_bits(at)
        if (each := _coded(info, at.with_bits(bits), threads)) is not None and is_loaded(info, each.spec, at, config)
    ]
    moved: Moved | None = None
    while able:
        why = None
        if chosen is None:
            why = not_to_be_had(at.bits, str(refused))
        elif sensitivity is not None and not given:
            # What measures has counted all once: another one writes. Most weights are near enough without a search.
            plain = replace(options, search=None, norm=None)
            ways = [plain, options] if options.sought == "mse" else [options]
            measured = [options.layout.encode(info, chosen.spec, each, threads) for each in ways]
            why = sensitivity.too_far(info.name, chosen.spec.bits, measured)
        i: int | None = 0
        if chosen is not None and why is None:
            i = least(chosen.nbytes - options.uniform, [each.nbytes for each in able])
        if i is None:
            break
        if why is None and chosen is not None:
            why = not_smaller(chosen.spec.bits, chosen.nbytes, able[i].nbytes)
        assert why is not None
        chosen, able, moved = able[i], able[i + 1 :], Moved(able[i].spec.bits, *why)
    assert chosen is not None  # or it would not have been planned
    return replace(chosen, moved=moved, words=given_words if moved is None else moved.words)


def least(nbytes: int, of_more: Sequence[int]) -> int | None:
    """Return which of those with more bits takes the least bytes, if none takes fewer with fewer bits; else None.

    Examples
    --------
    >>> from modelopt_rs.planning.bits import least
    >>> least(100, [120, 90]), least(100, [120, 130])
    (1, None)
    """
    best = min(reversed(range(len(of_more))), key=of_more.__getitem__, default=None)
    return best if best is not None and of_more[best] <= nbytes else None


def not_to_be_had(bits: int, reason: str) -> tuple[str, str]:
    """Say why a weight can't have so few bits, in general and this one."""
    return f"{bits} bits don't fit their shapes", f"not {bits}: {reason}"


def not_smaller(bits: int, nbytes: int, more: int) -> tuple[str, str]:
    """Say that so few bits save nothing, in general and of this weight."""
    return f"{bits} bits would be no smaller", f"{bits} bits would take {nbytes:,} bytes, not {more:,}"


def _written(info: TensorInfo) -> int:
    return info.nbytes + len(info.name) + ENTRY


def _coded(info: TensorInfo, options: QuantizeOptions, threads: int | None) -> BitsChoice | None:
    """Return how a weight is coded with these bits; None if it can't be."""
    if refusal(info, options) is not None:
        return None
    spec = spec_of(info, options)
    return BitsChoice(spec, options.layout.encode(info, spec, options, threads))
