"""The structure of a model as its user says it: groups of tensors that shrink together, numbers that count units."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from modelopt_rs.arguments import shown
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.prune.coupling import Group, Member, Shaped
from modelopt_rs.prune.crop import CropReport

__all__ = ["GivenGroups", "parse_groups", "rescaled", "sizes_of"]

KEYS: Final = ("groups", "numbers")
GROUP: Final[dict[str, type]] = {"name": str, "members": list, "units": int, "blocks": int}
MEMBER: Final[dict[str, type]] = {"name": str, "axis": int, "offset": int, "size": int, "scored": bool}
WORDS: Final = {str: "a text", list: "a list", int: "an integer", bool: "true or false", dict: "an object"}
NEAR = 4  # names of tensors that an error shows


@dataclass(frozen=True, slots=True)
class _Template:
    """A group of which the number of units, or which tensors count for their importance, is still to be found."""

    name: str
    members: Sequence[Mapping[str, Any]]
    units: int | None = None
    blocks: int = 1

    @property
    def stars(self) -> int:
        return self.name.count("*")


@dataclass(frozen=True, slots=True)
class GivenGroups:
    """Groups that are given, and which numbers count their units.

    A ``*`` in the names of a group and its members stands for what may differ between two dots or slashes, the same in
    all of them: one group for each that there is, such as the number of a layer.

    Parameters
    ----------
    groups : sequence of Group
    numbers : mapping of str to str
        By the name of a number the group, or a glob over groups, whose units it counts, or counts in multiples.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.planning.given_groups import parse_groups
    >>> members = [{"name": "layers.*.up", "axis": 0}, {"name": "layers.*.down", "axis": 1}]
    >>> given = parse_groups({"groups": [{"name": "*.ffn", "members": members}]}, "groups.json")
    >>> shapes = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in (("up", (6, 4)), ("down", (4, 6)))}
    >>> [(group.name, group.units) for group in given.of({n: np.ones(shape) for n, shape in shapes.items()})]
    [('0.ffn', 6), ('1.ffn', 6)]
    """

    groups: Sequence[Group] = ()
    numbers: Mapping[str, str] = field(default_factory=dict)
    templates: Sequence[_Template] = ()

    def of(self, tensors: Mapping[str, Shaped]) -> tuple[Group, ...]:
        """Return the groups of a model, each ``*`` filled in."""
        plain = [_Template(g.name, [_as_dict(m) for m in g.members], g.units, g.blocks) for g in self.groups]
        return tuple(group for each in (*plain, *self.templates) for group in _expanded(each, tensors))

    def counted(self, groups: Sequence[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
        """Yield each number's name, and how many units it counts, and then will: a multiple changes in proportion.

        Parameters
        ----------
        groups : sequence of (str, int, int)
            The name of each group, its units, and how many of them stay.

        Raises
        ------
        OptionError
            If it names no group, or groups that don't have or keep the same number.
        """
        for name, pattern in self.numbers.items():
            found = [group for group in groups if group[0] == pattern or fnmatchcase(group[0], pattern)]
            if not found:
                raise OptionError(f"numbers[{name!r}] must name groups, got {pattern!r}, which none matches")
            for place, verb in ((1, "have"), (2, "keep")):
                counts = sorted({group[place] for group in found})
                if len(counts) > 1:
                    text = f"groups that {verb} the same number of units"
                    raise OptionError(f"numbers[{name!r}] must name {text}, got {counts} of {len(found)}")
            yield name, found[0][1], found[0][2]

    def changed(self, config: Mapping[str, Any], report: CropReport) -> dict[str, Any]:
        """Return config.json with the numbers of the units that stay."""
        new = dict(config)
        for name, units, kept in self.counted(sizes_of(report)):
            where, key = _place(new, name)
            where[key] = rescaled(f"config.json's {name!r}", where[key], units, kept)
        return new

    def unnamed(self, report: CropReport) -> list[str]:
        """Return the groups that lost units which no number counts."""
        patterns = self.numbers.values()
        return [
            group.name
            for group in report.groups
            if len(group.kept) < group.units
            and not any(group.name == each or fnmatchcase(group.name, each) for each in patterns)
        ]


def sizes_of(report: CropReport) -> list[tuple[str, int, int]]:
    """Return the name of each group, its units, and how many of them stay."""
    return [(group.name, group.units, len(group.kept)) for group in report.groups]


def rescaled(what: str, value: Any, units: int, kept: int) -> int:
    """Return what a number that counts units, or so many of each, becomes."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % units:
        raise OptionError(f"{what} must be a multiple of the {units} units that numbers says it counts, got {value!r}")
    return value // units * kept


def parse_groups(given: Mapping[str, Any], where: str) -> GivenGroups:
    """Return the groups that a JSON file holds.

    Parameters
    ----------
    given : mapping
        ``{"groups": [{"name", "members": [{"name", "axis", ...}], ...}], "numbers": {...}}``: the fields of `Group` and
        `Member`. `units` may be left out: what the axis of the first member holds. `scored` is true of matrices.
    where : str
        The file, for the errors.

    Raises
    ------
    OptionError
        If it holds something else.
    """
    _check_keys(given, dict.fromkeys(KEYS), where)
    numbers = given.get("numbers", {})
    if not isinstance(numbers, dict) or not all(isinstance(each, str) for each in numbers.values()):
        raise OptionError(f"{where}: numbers must be an object of groups by numbers, got {shown(numbers)}")
    groups = given.get("groups")
    if not isinstance(groups, list) or not groups:
        raise OptionError(f"{where}: groups must be a list of one or more objects, got {shown(groups)}")
    return GivenGroups(numbers=numbers, templates=[_template(g, f"{where}: groups[{i}]") for i, g in enumerate(groups)])


def _template(given: Any, where: str) -> _Template:
    _check_fields(given, GROUP, ("name", "members"), where)
    for i, member in enumerate(given["members"]):
        _check_fields(member, MEMBER, ("name", "axis"), f"{where}.members[{i}]")
    if not given["members"]:
        raise OptionError(f"{where}.members must not be empty, got []")
    return _Template(**given)


def _check_keys(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key in given:
        if key not in known:
            raise OptionError(f"{where} must have keys of {', '.join(known)}, got {quote(key)}")


def _check_fields(given: Any, fields: Mapping[str, type], needed: Sequence[str], where: str) -> None:
    if not isinstance(given, dict):
        raise OptionError(f"{where} must be an object with {' and '.join(needed)}, got {shown(given)}")
    _check_keys(given, fields, where)
    for key in needed:
        if key not in given:
            raise OptionError(f"{where} must have {key!r}, got none")
    for key, value in given.items():
        if not isinstance(value, fields[key]) or (fields[key] is int and isinstance(value, bool)):
            raise OptionError(f"{where}.{key} must be {WORDS[fields[key]]}, got {shown(value)}")


def _as_dict(member: Member) -> dict[str, Any]:
    return {name: getattr(member, name) for name in MEMBER}


def _expanded(template: _Template, tensors: Mapping[str, Shaped]) -> Iterator[Group]:
    first = template.members[0]["name"]
    if template.stars != first.count("*"):
        raise OptionError(
            f"groups must have as many * in the name {template.name!r} as in that of the first member, got {first!r}"
        )
    pattern = re.compile("([^./]+)".join(re.escape(part) for part in first.split("*")))
    fillings = [found.groups() for name in tensors if (found := pattern.fullmatch(name)) is not None]
    if not fillings:
        near = ", ".join(quote(name) for name in list(tensors)[:NEAR])
        raise OptionError(
            f"groups must name tensors of the model, got {first!r}, which none matches; it has {near} ..."
        )
    for filling in fillings:
        members = [{**each, "name": _filled(each["name"], filling)} for each in template.members]
        units = _units(template, members, tensors) if template.units is None else template.units
        try:
            places = tuple(_member(each, tensors) for each in members)
            yield Group(_filled(template.name, filling), units, places, template.blocks)
        except ValueError as error:  # numbers of a file that can't be
            raise OptionError(str(error)) from None


def _filled(name: str, filling: Sequence[str]) -> str:
    parts = name.split("*")
    if len(parts) - 1 > len(filling):
        raise OptionError(f"groups must have no more * in a member than in the first one, got {name!r}")
    return parts[0] + "".join(f"{text}{part}" for text, part in zip(filling, parts[1:], strict=False))


def _member(given: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> Member:
    tensor = tensors.get(given["name"])
    return Member(**{"scored": tensor is not None and len(tensor.shape) > 1, **given})


def _units(template: _Template, members: Sequence[Mapping[str, Any]], tensors: Mapping[str, Shaped]) -> int:
    """Return how many units an axis holds that is all theirs."""
    name, axis = members[0]["name"], members[0]["axis"]
    shape = tensors[name].shape
    if not -len(shape) <= axis < len(shape):
        raise OptionError(f"groups must name axes of their tensors, got axis {axis} of {name!r} with shape {shape}")
    each = sum(member.get("size", 1) for member in members if (member["name"], member["axis"]) == (name, axis))
    if each < 1 or shape[axis] % each or not shape[axis]:
        got = f"{shape[axis]} indices of {name!r} for {each} of each"
        raise OptionError(f"groups must say the units of {template.name!r} where they don't divide the axis, got {got}")
    return int(shape[axis] // each)


def _place(config: dict[str, Any], name: str) -> tuple[Any, Any]:
    """Return the object or list that holds a number of config.json, copied, and its key there."""
    *before, last = name.split(".")
    where: Any = config
    for key in before:
        inner = where[_key(where, key, name)]
        copy = dict(inner) if isinstance(inner, dict) else list(inner) if isinstance(inner, list) else None
        where[_key(where, key, name)] = copy
        where = copy
    return where, _key(where, last, name)


def _key(where: Any, key: str, name: str) -> Any:
    if isinstance(where, dict) and key in where:
        return key
    if isinstance(where, list) and key.isdecimal() and int(key) < len(where):
        return int(key)
    raise OptionError(f"numbers must name numbers of config.json, got {name!r}, which it has not")
