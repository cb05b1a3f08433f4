"""The modules of a model's weights, as what loads it will name them: by them `config.json` says what is quantized.

A loader makes the modules first, and asks `config.json` for each whether its weight is quantized. The module's name is
not quite the tensor's in the file: a base model's prefix comes or goes with the head of a task, heads may be new, or
tied and in no file, and transformers renames parts of some models. So modules are named by regular expressions that
hold with any prefix, for both names, and for no module that is left as it is.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias

from modelopt_rs.layouts.renamed import renamed

__all__ = ["Modules"]

Parts: TypeAlias = tuple[str, ...]
# What a model with a head calls its base model, besides its type.
_BASES: Final = ("model", "transformer", "base_model", "backbone")
_ANY: Final = r"(?:.*\.)?"


class Modules:
    r"""The modules of the weights of a model.

    Parameters
    ----------
    names : iterable of str
        The weights; names that don't end in ".weight" are no module's.
    config : mapping
        The model's config.json; empty where there is none.

    Examples
    --------
    >>> from modelopt_rs.layouts.modules import Modules
    >>> names = [f"bert.encoder.layer.{i}.output.dense.weight" for i in range(2)]
    >>> modules = Modules([*names, "classifier.weight"], {"model_type": "bert"})
    >>> print(*modules.patterns(names))
    (?:.*\.)?encoder\.layer\.\d+\.output\.dense$
    >>> print(*modules.patterns(names[1:]))
    (?:.*\.)?encoder\.layer\.1\.output\.dense$
    >>> modules.others(names)
    ['classifier']
    """

    def __init__(self, names: Iterable[str], config: Mapping[str, Any]) -> None:
        self._modules = {name: name.removesuffix(".weight") for name in names if name.endswith(".weight")}
        parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
        kinds = [part["model_type"] for part in parts if isinstance(part.get("model_type"), str)]
        self._bases = (*_BASES, *(kind.replace("-", "_") for kind in kinds[:1]))
        self._renamed = {module: renamed(module, kinds) for module in self._modules.values()}

    def others(self, chosen: Collection[str]) -> list[str]:
        """Return the modules of all weights but these."""
        return [module for name, module in self._modules.items() if name not in chosen]

    def patterns(self, chosen: Collection[str]) -> list[str]:
        """Return regular expressions, for `re.match`, that hold for the modules of these weights and no others.

        One for all that differ in numbers alone.
        """
        alike: dict[Parts, list[str]] = {}
        for name in chosen:
            if name in self._modules:
                parts = self._modules[name].split(".")
                alike.setdefault(tuple("" if part.isdigit() else part for part in parts), []).append(
                    self._modules[name]
                )
        others: dict[str, list[Parts]] = {}
        for module in self.others(set(chosen)):
            for name in dict.fromkeys((module, self._renamed[module])):
                others.setdefault(_last(name.split(".")), []).append(tuple(name.split(".")))
        return [self._pattern(modules, others) for modules in alike.values()]

    def _pattern(self, modules: list[str], others: Mapping[str, list[Parts]]) -> str:
        """Return what holds for modules whose names differ in numbers alone, as in the file and as renamed."""
        buts: dict[str, None] = {}
        bodies: dict[str, None] = {}
        for names in (
            [module.split(".") for module in modules],
            [self._renamed[module].split(".") for module in modules],
        ):
            but, tails = self._parts([tuple(name) for name in names], others.get(_last(names[0]), []))
            buts |= dict.fromkeys(but)
            bodies |= dict.fromkeys(tails)
        # Branches whose names are these behind a prefix of their own.
        guard = f"(?!{_ANY}{_either(list(buts))}$)" if buts else ""
        return f"{guard}{_ANY}{_either(list(bodies))}$"

    def _parts(self, names: list[Parts], others: list[Parts]) -> tuple[list[str], list[str]]:
        """Return what must not match, and what must; `others` have the same last part as the names."""
        has_base = len(names[0]) > 1 and names[0][0] in self._bases
        for begin in (1, 0) if has_base else (0,):
            bodies = {name[begin:] for name in names}
            longer = [other for other in others if any(other[i:] in bodies for i in range(len(other)))]
            if not longer:
                break
        tails = _tails([name[begin:] for name in names], 0, _ANY, [other for other in others if other not in longer])
        return [re.escape(".".join(other)) for other in longer], tails


def _last(parts: Collection[str]) -> str:
    """Return the last part; a number is as good as any other."""
    last = list(parts)[-1]
    return "" if last.isdigit() else last


def _tails(names: list[Parts], at: int, head: str, others: list[Parts]) -> list[str]:
    """Return patterns of what follows `head`, which stands for the first `at` parts of all names.

    Numbers are any number where that matches none of the others, else they are listed.
    """
    rest = names[0][at:]
    loose = r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in rest)
    matches = re.compile(f"{head}{loose}$").match
    number = next((i for i, part in enumerate(rest, at) if part.isdigit()), None)
    if number is None or not any(matches(".".join(other)) for other in others):
        return [loose]
    by_number: dict[str, list[Parts]] = {}
    for name in names:
        by_number.setdefault(name[number], []).append(name)
    before = "".join(re.escape(part) + r"\." for part in names[0][at:number])
    alike: dict[tuple[str, ...], list[str]] = {}
    for value, some in by_number.items():
        after = r"\." if number + 1 < len(names[0]) else ""
        tails = _tails(some, number + 1, f"{head}{before}{value}{after}", others)
        alike.setdefault(tuple(after + tail for tail in tails), []).append(value)
    return [f"{before}{_either(values)}{tail}" for tails, values in alike.items() for tail in tails]


def _either(patterns: list[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"
