"""Feed-forward layers of a family that is not known by name: found by their shapes and the numbers of config.json."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

from modelopt_rs.errors import quote
from modelopt_rs.planning.given_groups import GivenGroups
from modelopt_rs.prune.coupling import Group, Member, Shaped
from modelopt_rs.prune.families import FAMILIES

__all__ = ["find_feed_forward"]

# What config.json calls the width of feed-forward layers, in the families that are known.
KEYS: Final = frozenset(family.keys[2] for family in FAMILIES if family.ffn and not family.multiple)
# The numbers of a model's width and its heads: how wide a head is where that isn't said.
WIDTHS: Final = frozenset(family.keys[:2] for family in FAMILIES)
MOST: Final = 1000  # numbers of a config.json that are looked at, two by two
INTO: Final = 2  # matrices that may lead into a layer: one, or a gate and what it opens

Place: TypeAlias = "tuple[Place | None, str]"
"""Where a number stands: in what, and its key there. Names are joined for few of them: a hostile one may be long."""
Layers = dict[str, dict[str, str]]
"""Of each layer, by its name: its matrices and biases, by the rest of their names."""


def find_feed_forward(tensors: Mapping[str, Shaped], config: Mapping[str, Any]) -> GivenGroups | str:
    """Return the feed-forward layers of a model; where they can't be told for certain, why.

    A number of config.json that is called as the width of such layers is taken for it where it stands there once, and
    where what has an axis of that length are in every layer a matrix out of it and one or two into it, and their
    biases, alike in all layers. Nothing else that has a shape may depend on it: no other length is a multiple or a part
    of it but one that config.json names, or the product of two that it names.

    Parameters
    ----------
    tensors : mapping of str to array
    config : mapping
        What config.json holds.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.planning.found_groups import find_feed_forward
    >>> shapes = {f"h.{i}.{name}.weight": shape for i in (0, 1) for name, shape in (("a", (6, 4)), ("b", (4, 6)))}
    >>> tensors = {name: np.ones(shape) for name, shape in shapes.items()}
    >>> found = find_feed_forward(tensors, {"width": 4, "ffn_dim": 6})
    >>> [group.name for group in found.groups], found.numbers
    (['h.0.ffn', 'h.1.ffn'], {'ffn_dim': '*.ffn'})
    >>> find_feed_forward(tensors, {"width": 4, "ffn_dim": 6, "length": 6})
    "config.json has the number of 'ffn_dim', 6, elsewhere as well"
    """
    numbers = list(islice(_numbers(config), MOST + 1))
    if len(numbers) > MOST:
        return f"config.json has more than {MOST:,} numbers"
    named = _named(config, numbers)
    keys = [(_dotted(place), width) for place, width in numbers if place[1] in KEYS]
    if not keys:
        return "config.json has no number that is called as the width of feed-forward layers"
    groups: list[Group] = []
    counted: dict[str, str] = {}
    for key, width in keys:
        if sum(value == width for _, value in numbers) > 1:
            return f"config.json has the number of {key!r}, {width}, elsewhere as well"
        found = _layers(tensors, width)
        if isinstance(found, str):
            return found
        if not found:
            continue  # of a part that this model hasn't
        lengths = {length: None for info in tensors.values() for length in info.shape if length not in (0, 1, width)}
        alike = (n for n in lengths if n % width == 0 or width % n == 0)
        other = next((n for n in alike if not _is_named(n, named)), None)
        if other is not None:
            return f"a tensor has an axis of {other}, which may follow from {key!r}, {width}"
        name = "ffn" if len(keys) == 1 else f"{key.replace('.', '_')}.ffn"
        groups += [_group(f"{layer}.{name}", parts, tensors, width) for layer, parts in found.items()]
        counted[key] = f"*.{name}"
    return GivenGroups(groups, counted) if groups else "no tensors are as wide as config.json says of those layers"


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[Place, int]]:
    """Yield the whole numbers of config.json, those of lists and objects in it too."""
    rest: list[tuple[Place, Any]] = [((None, ""), config)]
    while rest:
        place, value = rest.pop()
        if isinstance(value, (Mapping, list, tuple)):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            rest += [((place, str(key)), each) for key, each in items][::-1]
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield place, int(value)


def _dotted(place: "Place | None") -> str:
    """Return the keys that lead to a number, with dots between them."""
    keys = []
    while place is not None:
        place, key = place
        keys.append(key)
    return ".".join(keys[-2::-1])


def _named(config: Mapping[str, Any], numbers: Sequence[tuple[Place, int]]) -> frozenset[int]:
    """Return the lengths that numbers besides widths of feed-forward layers say."""
    single = {value for place, value in numbers if place[1] not in KEYS}
    for part in (config, *(each for each in config.values() if isinstance(each, Mapping))):
        for width, heads in ((part.get(a), part.get(b)) for a, b in WIDTHS):
            if isinstance(width, int) and isinstance(heads, int) and min(width, heads) > 0 and width % heads == 0:
                single.add(width // heads)
    return frozenset(single)


def _is_named(length: int, named: frozenset[int]) -> bool:
    """Whether numbers explain a length: one of them, or the product of two (all products might take gigabytes)."""
    return length in named or any(length % a == 0 and length // a in named for a in named)


def _layers(tensors: Mapping[str, Shaped], width: int) -> Layers | str:
    """Return the matrices with an axis of a length and their biases, by layer, all layers alike; or why they aren't."""
    wide = {name: tuple(info.shape) for name, info in tensors.items() if width in info.shape}
    for name, shape in wide.items():
        is_matrix = len(shape) == 2 and shape.count(width) == 1
        is_bias = len(shape) == 1 and len(wide.get(f"{name.removesuffix('bias')}weight", ())) == 2
        if not is_matrix and not (is_bias and name.endswith(".bias")):
            return f"{quote(name)} {list(shape)} is no matrix into or out of a feed-forward layer, nor its bias"
    reason = ""
    for cut in range(1, 4):
        layers: Layers = defaultdict(dict)
        for name in wide:
            layer, rest = _split(name, cut)
            layers[layer][rest] = name
        reasons = [_refused(layer, parts, wide, width) for layer, parts in layers.items()]
        kinds = {tuple(sorted((rest, wide[name]) for rest, name in parts.items())) for parts in layers.values()}
        if not any(reasons) and len(kinds) <= 1:
            return dict(layers)
        reason = reason or next((each for each in reasons if each), "its layers are not alike")
    return reason


def _split(name: str, cut: int) -> tuple[str, str]:
    """Return the name of a layer, up to its last number but `cut` - 1, and the rest."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    at = numbers[-cut] + 1 if len(numbers) >= cut else 0
    return ".".join(parts[:at]), ".".join(parts[at:])


def _refused(layer: str, parts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], width: int) -> str | None:
    """Say why the tensors of a layer are no feed-forward layer; None if they are one."""
    sides: dict[int, list[str]] = {0: [], 1: []}
    for name in parts.values():
        if len(shapes[name]) == 2:
            sides[shapes[name].index(width)].append(name)
    counts = sorted(map(len, sides.values()))
    into = min(sides, key=lambda axis: (-len(sides[axis]), axis))
    weights = [f"{name.removesuffix('bias')}weight" for name in parts.values() if name.endswith(".bias")]
    biased = {shapes[name].index(width) for name in weights}
    if counts[0] == counts[1] == 1 and biased:
        into = min(biased)
    others = {math.prod(shapes[name]) // width for side in sides.values() for name in side}
    if not layer or counts[0] != 1 or counts[1] > INTO or len(others) != 1 or biased - {into}:
        return f"{quote(layer or next(iter(parts)))} has {counts[1]} and {counts[0]} matrices of that width"
    return None


def _group(name: str, parts: Mapping[str, str], tensors: Mapping[str, Shaped], width: int) -> Group:
    shapes = {each: tuple(tensors[each].shape) for each in parts.values()}
    members = [Member(each, shape.index(width), scored=len(shape) > 1) for each, shape in shapes.items()]
    return Group(name, width, tuple(members))
