"""What should be known of a quantized model besides its figures."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from modelopt_rs.errors import quote
from modelopt_rs.planning.decide import Decision, moved_in_words
from modelopt_rs.planning.families import CONV1D_MODELS, model_types
from modelopt_rs.planning.sensitivity import LAYER_ERRORS, LayerError

__all__ = ["old_loader_in_words", "quantize_warnings", "unread_in_words"]

SHOWN = 3  # layers that are named
TRIED: Final = (5, 23)
"""The version of transformers that reads all that is written. As tried 5.20 and 5.22 make up weights of these."""
LOST_BEFORE: Final = frozenset({"t5", "mt5", "umt5", "longt5", *CONV1D_MODELS})


def quantize_warnings(
    decisions: Mapping[str, Decision],
    schemes: Iterable[tuple[int, bool]],
    sizes: tuple[int, int],
    errors: Mapping[str, LayerError] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Return the sentences.

    Parameters
    ----------
    decisions : mapping
        For each tensor.
    schemes : iterable of (int, bool)
        Of each weight whose scales are of the plain formula its bits, and whether it has no zero points.
    sizes : (int, int)
        The bytes of the model before and after.
    errors : mapping
        What was measured of weights, those that were left alone too.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import quantize_warnings
    >>> quantize_warnings({}, [(8, True)], (1000, 1200))
    ('the result is larger than its source: 1,200 bytes instead of 1,000',)
    """
    found = moved_in_words(decisions.values())
    symmetric = sum(bits == 2 and alike for bits, alike in schemes)
    if symmetric:
        weights = f"{symmetric:,} weight{'' if symmetric == 1 else 's'}"
        found.append(f"{weights} of 2 bits without zero points, which leave little of a model: asymmetric loses less")
    found += _far_off({name: error for name, error in errors.items() if _has(decisions[name], error.bits)})
    before, after = sizes
    if after > before:
        found.append(f"the result is larger than its source: {after:,} bytes instead of {before:,}")
    return tuple(found)


def old_loader_in_words(config: Mapping[str, Any]) -> list[str]:
    """Say that the version of transformers that wrote a model would make up weights of it.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import old_loader_in_words
    >>> old_loader_in_words({"model_type": "gpt2", "transformers_version": "5.20.1"})
    ['config.json is of transformers 5.20: of a quantized gpt2 versions before 5.23 make up weights']
    >>> old_loader_in_words({"model_type": "gpt2", "transformers_version": "5.23.0"})
    []
    """
    version = config.get("transformers_version")
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    kinds = sorted(LOST_BEFORE & model_types(config))
    if found is None or not kinds or (int(found[1]), int(found[2])) >= TRIED:
        return []
    before = f"versions before {TRIED[0]}.{TRIED[1]} make up weights"
    return [f"config.json is of transformers {found[0]}: of a quantized {kinds[0]} {before}"]


def unread_in_words(sizes: Iterable[int], total: int) -> list[str]:
    """Say that weights stay as they are because no loader reads their codes, if they are a third of the result.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import unread_in_words
    >>> unread_in_words([900], 1000)
    ['1 weight, 90 % of the result, stays as it is: no loader reads its codes; only_dequantize has dequantize do it']
    >>> unread_in_words([200], 1000)
    []
    """
    found = list(sizes)
    if 3 * sum(found) <= total:
        return []
    weights = "1 weight" if len(found) == 1 else f"{len(found):,} weights"
    stay = "stays as it is: no loader reads its" if len(found) == 1 else "stay as they are: no loader reads their"
    return [
        f"{weights}, {100 * sum(found) / total:.0f} % of the result, {stay} codes; only_dequantize has dequantize do it"
    ]


def _far_off(errors: Mapping[str, LayerError]) -> list[str]:
    """Say which layers are the furthest off, where some are further than 4 bits are expected to be."""
    far = {name: found for name, found in errors.items() if found.error > LAYER_ERRORS[4]}
    if not far:
        return []
    worst = sorted(far, key=lambda name: -far[name].error)[:SHOWN]
    shown = ", ".join(f"{quote(name)} {far[name].error:.2g}" for name in worst)
    subject = "1 layer keeps its bits and is" if len(far) == 1 else f"{len(far):,} layers keep their bits and are"
    return [f"{subject} more than {LAYER_ERRORS[4]:g} off (the most: {shown}): more bits lose less"]


def _has(decision: Decision, bits: int) -> bool:
    """Whether a weight is written with the bits that it was measured with."""
    return decision.action == "quantize" and (decision.moved is None or decision.moved.bits == bits)
