"""One way of coding for weights that are read only where all are coded alike."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from modelopt_rs.planning.bits import BitsChoice
from modelopt_rs.planning.decide import Moved, is_match
from modelopt_rs.planning.loaders import is_expert
from modelopt_rs.planning.quantize import QuantizeOptions, is_loaded, more_bits
from modelopt_rs.stream.model import TensorInfo

__all__ = ["choose_alike"]


def choose_alike(
    choices: Mapping[str, BitsChoice],
    infos: Mapping[str, TensorInfo],
    options: QuantizeOptions,
    threads: int | None,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, BitsChoice | None]:
    """Return how each weight is coded where all whose bits no glob says must be alike; None: it can't be, and is left.

    They get the bits that most of their bytes would have got, or more where that takes fewer bytes: what can't be coded
    so stays as it is, and counts; experts stay only together. Where no size of groups is given, all have that of the
    default or all half of it.

    Parameters
    ----------
    choices : mapping
        How each would be coded alone.
    infos : mapping
        Of the same weights.
    options : QuantizeOptions
    threads : int or None
    config : mapping, optional
        The model's config.json.

    Examples
    --------
    >>> from modelopt_rs.planning.alike import choose_alike
    >>> from modelopt_rs.planning.bits import choose_bits
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> from modelopt_rs.stream.model import TensorInfo
    >>> options = QuantizeOptions(bits=4)
    >>> infos = {name: TensorInfo(name, "F32", (64, n), 256 * n) for name, n in (("a.weight", 64), ("b.weight", 48))}
    >>> choices = {name: choose_bits(info, options, None, None) for name, info in infos.items()}
    >>> [choices[name].spec.group_size for name in infos]
    [32, 16]
    >>> [choice.spec.group_size for choice in choose_alike(choices, infos, options, None).values()]
    [16, 16]
    """
    free = [name for name in choices if not any(is_match(name, glob) for glob in options.bits_of)]
    if len({choices[name].spec for name in free}) < 2:
        return dict(choices)
    share: Counter[int] = Counter()
    for name in free:
        share[choices[name].spec.bits] += infos[name].nbytes
    most = max(share, key=lambda bits: (share[bits], bits))
    ways = [spec for bits in sorted({most, *more_bits(options.with_bits(most))}) for spec in _specs(options, bits)]
    fits = {
        spec: [
            name
            for name in free
            if options.layout.why_not(infos[name], spec) is None and is_loaded(infos[name], spec, options, config)
        ]
        for spec in ways
    }

    def nbytes(spec: Any) -> int:
        outputs = {name: options.layout.encode(infos[name], spec, options, threads) for name in fits[spec]}
        left = sum(infos[name].nbytes for name in free if name not in outputs)
        return left + sum(info.nbytes for encoder in outputs.values() for info in encoder.outputs)

    # Of experts none may be left, or what merges them reads none.
    whole = any(is_expert(name) for name in free)
    best = min(ways, key=lambda spec: (whole and len(fits[spec]) < len(free), nbytes(spec)))
    alike = {name: _choice(choices[name], infos[name], best, options, threads) for name in fits[best]}
    return {name: alike.get(name) if name in free else choice for name, choice in choices.items()}


def _specs(options: QuantizeOptions, bits: int) -> list[Any]:
    spec = options.layout.spec(options.with_bits(bits))
    if options.group_size is None and spec.group_size:
        return [spec, replace(spec, group_size=spec.group_size // 2)]
    return [spec]


def _choice(
    alone: BitsChoice, info: TensorInfo, spec: Any, options: QuantizeOptions, threads: int | None
) -> BitsChoice:
    if alone.spec == spec:
        return alone
    encoder = options.layout.encode(info, spec, options, threads)
    if spec.bits == options.bits:
        return BitsChoice(spec, encoder)
    moved = Moved(spec.bits, "they must be coded like the others", "it must be coded like the others")
    return BitsChoice(spec, encoder, moved.words, moved)
