"""What each code costs each weight: its bytes and its relative error; and what an error of a weight counts."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from modelopt_rs.errors import FormatError, OptionError
from modelopt_rs.planning.allocation import Allocation, Choice, allocate
from modelopt_rs.planning.decide import is_match
from modelopt_rs.planning.families import is_embedding
from modelopt_rs.planning.loaders import is_expert

__all__ = [
    "DOUBT",
    "FLOAT",
    "PRIORS",
    "ZERO_POINTS",
    "Answer",
    "Coded",
    "LossTable",
    "TensorLosses",
    "role_of",
    "shared_group",
]

FLOAT: Final = "float"
"""The code of a weight that stays as it is."""

ZERO_POINTS: Final = "z"
"""How codes end that loaders read only where all weights that are coded have the same: those with zero points."""

PRIORS: Final[Mapping[str, float]] = {
    "head": 3.0, "embedding": 1.0, "value": 2.0, "scores": 0.25, "down": 0.5, "other": 1.0
}  # fmt: skip
"""What the squared relative error of a weight counts times the root of its elements, by what it does.

The error of a layer goes once into what is added up along a model, whatever its size: that speaks for counting layers.
But where layers are of several sizes, the large ones (perceptrons beside attention) are most of what is added up: that
speaks for elements. Measured at the outputs, one weight coarser at a time, MiniLM is near elements and magika near
layers; the root is between. Of a table a token reads one row: half of all elements of MiniLM do no more than the first
perceptron (0.147 and 0.134 of the squared error), so tables and heads have no more elements than the largest layer.
Means of MiniLM, relative to what leads up in perceptrons: values 2, what leads down 0.45, queries and keys, which go
through a softmax, 0.25 of that. Heads as in llama.cpp's quantization to a target.
"""

DOUBT: Final = 0.75
"""How far the shares that layers have in the error of the outputs are from those that are thought.

It is the root of the sum over layers of (share - thought)^2 / thought. Measured at the outputs of five models of
transformers with random weights, which have these shares otherwise than any that is trained: GPT-2 0.31, T5 0.57, BERT
0.74, ViT 1.05, Llama 1.1 (of ViT perceptrons have 97 in 100, of Llama 16). What tables have is in no doubt: a token
reads a row.

References
----------
Duchi, Namkoong 2019, "Variance-based regularization with convex objectives", on the worst case over such shares: the
mean and so many times the deviation.
"""

TABLES: Final = ("embedding", "head")
"""What has a row for each word."""

LEAST_SHARE: Final = 0.1
"""Of what a weight counts by its elements: so much it counts at least where its effect on outputs was measured.

Inputs that are made up may leave out a part of a model.
"""

ROLES: Final = {
    "head": re.compile(r"(?:.*[._/])?(?:lm_head|embed_out|output_projection)(?:[._/].*)?"),
    "value": re.compile(r"(?:.*[._/])?(?:v|v_proj|value|value_proj|v_lin)(?:[._/](?:weight|MatMul.*))?"),
    "scores": re.compile(r"(?:.*[._/])?(?:[qk]|[qk]_proj|query|key|(?:query|key)_proj|[qk]_lin)"
                         r"(?:[._/](?:weight|MatMul.*))?"),
    "down": re.compile(r"(?:.*[._/])?(?:down_proj|fc2|w2|lin2|wo|dense_4h_to_h|(?<!attention[._/])output[._/]dense)"
                       r"(?:[._/](?:weight|MatMul.*))?"),
}  # fmt: skip
# What runtimes make one matrix of, and so must have the same bits.
FUSED: Final = re.compile(
    r"(.*\.)(?:(q_proj|k_proj|v_proj|query|key|value|q_lin|k_lin|v_lin)|(gate_proj|up_proj))\.weight"
)


def role_of(name: str) -> str:
    """Return what a weight does, by its name: a key of `PRIORS`.

    Examples
    --------
    >>> from modelopt_rs.planning.loss_table import role_of
    >>> role_of("encoder.layer.0.output.dense.weight"), role_of("encoder.layer.0.attention.output.dense.weight")
    ('down', 'other')
    """
    if is_embedding(name):
        return "embedding"
    return next((role for role, pattern in ROLES.items() if pattern.fullmatch(name)), "other")


def shared_group(name: str) -> str:
    """Return what the weights have in common that must have the same bits: those of no others have their name.

    Examples
    --------
    >>> from modelopt_rs.planning.loss_table import shared_group
    >>> shared_group("h.0.q_proj.weight") == shared_group("h.0.v_proj.weight"), shared_group("h.0.o_proj.weight")
    (True, 'h.0.o_proj.weight')
    """
    if is_expert(name):
        return "experts"
    found = FUSED.fullmatch(name)
    return name if found is None else found[1] + ("qkv" if found[2] else "gate_up")


@dataclass(frozen=True, slots=True)
class Coded:
    """A weight in a code: the bytes of all that stands for it, and how far it is off, relative to its size.

    `output` is how far the outputs of the model are off by it alone, relative to them; None where they were not seen.
    """

    nbytes: int
    error: float
    output: float | None = None


@dataclass(frozen=True, slots=True)
class TensorLosses:
    """One weight: its elements, what it does, with what it shares its code, and what each code makes of it."""

    elements: int
    role: str
    group: str
    codes: Mapping[str, Coded]


@dataclass(frozen=True, slots=True)
class Answer:
    """Codes of all weights, the bytes of the model with them, and how far its outputs are off; None: not seen."""

    codes: Mapping[str, str]
    nbytes: int
    off: float | None = None


def _coded(read: Mapping[str, Any]) -> Coded:
    output = read["output"]
    return Coded(int(read["nbytes"]), float(read["error"]), None if output is None else float(output))


def _answer(read: Mapping[str, Any], tensors: Mapping[str, TensorLosses]) -> Answer:
    codes = {str(name): str(code) for name, code in read["codes"].items()}
    if codes.keys() != tensors.keys() or any(code not in tensors[name].codes for name, code in codes.items()):
        raise ValueError
    return Answer(codes, int(read["nbytes"]), None if read["off"] is None else float(read["off"]))


NONE: Final = 2**62  # bytes of what can't be had
SCHEMA: Final = 6
"""Of the JSON."""


@dataclass(frozen=True, slots=True)
class LossTable:
    """All weights that can be coded, and the bytes of all the rest.

    Attributes
    ----------
    of : str
        A fingerprint of the model and of the options.
    fixed : int
    tensors : mapping of str to TensorLosses
    alike : tuple of str
        Weights that are read only if all that are coded have one code.
    seen : tuple of Answer
        To other sizes: a larger one gets none that is worse.
    """

    of: str
    fixed: int
    tensors: Mapping[str, TensorLosses]
    alike: tuple[str, ...] = ()
    seen: tuple[Answer, ...] = ()

    @property
    def elements(self) -> int:
        """Of all weights that can be coded."""
        return sum(each.elements for each in self.tensors.values())

    def range(self) -> tuple[int, int]:
        """Return the smallest and the largest size that can be had."""
        ranges = [self._range(code) for code in self._ways()]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def _range(self, alike: str | None, at_most: Mapping[str, str] = MappingProxyType({})) -> tuple[int, int]:
        groups = self._groups({}, alike, at_most).values()
        sizes = [[choice.nbytes for choice in each.values()] or [NONE] for each in groups]
        return self.fixed + sum(map(min, sizes)), self.fixed + sum(map(max, sizes))

    def _ways(self) -> list[str | None]:
        """Return the codes that those can have which must be alike, and those of which all weights have the same."""
        every = dict.fromkeys(code for each in self.tensors.values() for code in each.codes)
        alike = {code for name in self.alike for code in self.tensors[name].codes if code != FLOAT}
        whole = [code for code in every if code.endswith(ZERO_POINTS)]
        others: list[str | None] = [code for code in every if code in alike and code not in whole]
        return [*(others or [None]), *whole]

    def _groups(
        self, priors: Mapping[str, float], alike: str | None, at_most: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, dict[str, Choice]]:
        """Return for each group what each code that all its weights have makes of it.

        Those that must be alike, with zero points all, have the code `alike`, or stay as they are.
        """
        members: dict[str, list[str]] = {}
        for name, each in self.tensors.items():
            members.setdefault(each.group, []).append(name)
        losses = self.losses(priors)
        found: dict[str, dict[str, Choice]] = {}
        for group, names in members.items():
            able = [code for code in self.tensors[names[0]].codes if all(code in self.tensors[n].codes for n in names)]
            if alike is None or not alike.endswith(ZERO_POINTS):
                able = [code for code in able if not code.endswith(ZERO_POINTS)]
            if alike is not None and (alike.endswith(ZERO_POINTS) or not set(names).isdisjoint(self.alike)):
                able = [code for code in able if code in (alike, FLOAT)]
            if at_most:
                most = {name: self.tensors[name].codes[at_most[name]].error for name in names}
                able = [code for code in able if all(self.tensors[n].codes[code].error <= most[n] for n in names)]
            found[group] = {
                code: Choice(
                    sum(self.tensors[name].codes[code].nbytes for name in names),
                    sum(losses[name][code] for name in names),
                )
                for code in able
            }
        return found

    def counts(self, name: str, priors: Mapping[str, float]) -> float:
        """Return what the squared error of a weight counts: the root of its elements times its prior.

        The prior is that of the first glob that matches, else of what it does.
        Tables and heads have no more elements than the largest layer.
        """
        given = self._given(name, priors)
        return math.sqrt(self._elements(name)) * (PRIORS[self.tensors[name].role] if given is None else given)

    def _given(self, name: str, priors: Mapping[str, float]) -> float | None:
        return next((prior for glob, prior in priors.items() if is_match(name, glob)), None)

    def _elements(self, name: str) -> int:
        own = self.tensors[name].elements
        layers = [each.elements for each in self.tensors.values() if each.role not in TABLES]
        return min(own, max(layers, default=own)) if self.tensors[name].role in TABLES else own

    def losses(self, priors: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Return for each weight the loss of each code.

        Where outputs were measured, and no prior is given, it is their squared error, in a unit in which all that were
        measured count together as much as by their elements.
        """
        counts = {name: self.counts(name, priors) for name in self.tensors}
        found = {
            name: {code: counts[name] * coded.error**2 for code, coded in each.codes.items()}
            for name, each in self.tensors.items()
        }
        seen = {
            name: {code: coded.output**2 for code, coded in each.codes.items() if coded.output is not None}
            for name, each in self.tensors.items()
            if self._given(name, priors) is None
        }
        total = sum(sum(each.values()) for each in seen.values())
        unit = sum(found[name][code] for name, each in seen.items() for code in each) / total if total else 0.0
        for name, each in seen.items() if unit else ():
            found[name] |= {code: max(unit * loss, LEAST_SHARE * found[name][code]) for code, loss in each.items()}
        return found

    def loss(self, allocation: Allocation, priors: Mapping[str, float]) -> float:
        """Return the root of the mean of squared errors, each counted as its prior says."""
        total = sum(self.counts(name, priors) for name in self.tensors)
        return (allocation.loss / total) ** 0.5 if total else 0.0

    def loss_of(self, codes: Mapping[str, str], priors: Mapping[str, float]) -> float:
        """Return the loss of an answer, as that of an allocation."""
        losses = self.losses(priors)
        return sum(losses[name][code] for name, code in codes.items())

    def at_worst(self, codes: Mapping[str, str]) -> float:
        """Return the loss of an answer if weights count otherwise than is thought, for which it has `DOUBT`.

        The squared errors of layers have `DOUBT` times their deviation besides their mean: where all are equally far
        off that is nothing, whatever counts. Of what was measured at outputs nothing is in doubt.
        """
        loss = self.loss_of(codes, {})
        if any(coded.output is not None for each in self.tensors.values() for coded in each.codes.values()):
            return loss
        layers = {name: self.counts(name, {}) for name, each in self.tensors.items() if each.role not in TABLES}
        squares = {name: self.tensors[name].codes[codes[name]].error ** 2 for name in layers}
        total = sum(layers.values())
        mean = sum(layers[name] * squares[name] for name in layers) / total if total else 0.0
        off = sum(layers[name] * (squares[name] - mean) ** 2 for name in layers)
        return loss + DOUBT * math.sqrt(off * total)

    def same(self, codes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Return what all answers have in common of which the same file is made, whatever its codes are called."""
        found = []
        for name in sorted(codes):
            able = self.tensors[name].codes
            error = able[codes[name]].error
            found.append((name, next(code for code, coded in able.items() if coded.error == error)))
        return tuple(found)

    def uniform(self, code: str) -> tuple[dict[str, str], int]:
        """Return the answer in which all weights that can have a code have it, and about the bytes of the model."""
        able: dict[str, bool] = {}
        for each in self.tensors.values():
            able[each.group] = able.get(each.group, True) and code in each.codes
        codes = {name: code if able[each.group] else FLOAT for name, each in self.tensors.items()}
        return codes, self.fixed + sum(self.tensors[name].codes[code].nbytes for name, code in codes.items())

    def others(self, size: int, codes: Mapping[str, str]) -> list[tuple[tuple[str, str], dict[str, str]]]:
        """Return the answers of least loss of which each has another code for one group than this one has.

        Those of the least loss come first, each with the group and the code that it does not get. What a group gives
        up, others get: bits go from one weight to another.
        """
        found = []
        for taken in {each.group: codes[name] for name, each in self.tensors.items()}.items():
            try:
                found.append((taken, self.allocate(size, {}, [taken])))
            except OptionError:  # it can have no other
                continue
        return [(taken, answer) for taken, (answer, _) in sorted(found, key=lambda each: each[1][1].loss)]

    def allocate(
        self,
        size: int,
        priors: Mapping[str, float],
        without: Sequence[tuple[str, str]] = (),
        at_most: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[dict[str, str], Allocation]:
        """Return the code of each weight with which the model is at most of this size, and the answer for groups.

        `without` are groups, and a code that each does not get, nor another that makes the same of it: of some layers
        blocks of 128 are what there is without a size. By `at_most` no weight is further off than by its code there.
        """
        able = [code for code in self._ways() if self._range(code, at_most)[0] <= size] or [None]
        made = [self._allocated(size, priors, code, (without, at_most)) for code in able]
        codes, found = min(made, key=lambda each: each[1].loss)
        return codes, replace(found, bound=min(each.bound for _, each in made))

    def _allocated(
        self,
        size: int,
        priors: Mapping[str, float],
        alike: str | None,
        limits: tuple[Sequence[tuple[str, str]], Mapping[str, str]],
    ) -> tuple[dict[str, str], Allocation]:
        groups = self._groups(priors, alike, limits[1])
        for group, code in limits[0]:
            able = groups[group]
            loss = able[code].loss if code in able else None
            groups[group] = {other: choice for other, choice in able.items() if choice.loss != loss}
            if not groups[group]:
                raise OptionError(f"without must leave {group} a code, got {code}, its only one")
        codes = [list(each) for each in groups.values()]
        found = allocate([list(each.values()) for each in groups.values()], size - self.fixed)
        of_group = {name: each[i] for name, each, i in zip(groups, codes, found.chosen, strict=True)}
        return {name: of_group[each.group] for name, each in self.tensors.items()}, found

    def to_json(self) -> str:
        """Return it as a text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str) -> "LossTable":
        """Read it again.

        Raises
        ------
        FormatError
            If it is none.
        """
        try:
            read: dict[str, Any] = json.loads(text)
            if read["schema"] != SCHEMA:
                raise FormatError(f"{where}: a table of losses of another version; remove it")
            tensors = {
                name: TensorLosses(
                    int(each["elements"]),
                    str(each["role"]),
                    str(each["group"]),
                    {code: _coded(c) for code, c in each["codes"].items()},
                )
                for name, each in read["tensors"].items()
            }
            alike = tuple(str(name) for name in read["alike"])
            wrong = any(each.role not in PRIORS or not each.codes for each in tensors.values())
            if wrong or not tensors.keys() >= set(alike):
                raise ValueError
            seen = tuple(_answer(each, tensors) for each in read["seen"])
            return cls(str(read["of"]), int(read["fixed"]), tensors, alike, seen)
        except FormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(f"{where}: not a table of losses") from None

    def check_of(self, of: str, where: str) -> None:
        """Refuse a table of another model or of other options."""
        if self.of != of:
            raise OptionError(f"table must be of this model and these options, got another in {where}; remove it")
