"""What should be known of a quantized model besides its figures."""

from collections.abc import Iterable, Mapping

from modelopt_rs.planning.decide import Decision, moved_in_words

__all__ = ["quantize_warnings"]


def quantize_warnings(
    decisions: Mapping[str, Decision], schemes: Iterable[tuple[int, bool]], sizes: tuple[int, int]
) -> tuple[str, ...]:
    """Return the sentences.

    Parameters
    ----------
    decisions : mapping
        For each tensor.
    schemes : iterable of (int, bool)
        Of each quantized weight its bits, and whether it has no zero points.
    sizes : (int, int)
        The bytes of the model before and after.

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
    before, after = sizes
    if after > before:
        found.append(f"the result is larger than its source: {after:,} bytes instead of {before:,}")
    return tuple(found)
