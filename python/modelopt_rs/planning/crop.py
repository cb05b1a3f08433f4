"""Which units of a model are cropped, and what its tensors and its config.json become."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from modelopt_rs._core import UnsupportedError
from modelopt_rs.arguments import check_fields
from modelopt_rs.dtypes import FLOATS
from modelopt_rs.errors import ArgumentError, OptionError, check_option, quote
from modelopt_rs.planning.decide import check_plain
from modelopt_rs.planning.found_groups import find_feed_forward
from modelopt_rs.planning.given_groups import GivenGroups
from modelopt_rs.prune.choice import DEFAULT_ROUND, Choice, Chooser, Keep
from modelopt_rs.prune.configuration import cropped_config
from modelopt_rs.prune.coupling import Group, check_groups, cuts_of
from modelopt_rs.prune.crop import CropReport, crop_report
from modelopt_rs.prune.families import families_of, is_known
from modelopt_rs.prune.importance import Scores
from modelopt_rs.prune.transformers import transformer_groups
from modelopt_rs.stream.model import TensorInfo

__all__ = ["NONFINITE", "SCOPES", "WHAT", "CropOptions", "CropPlan", "as_options", "check_scored"]

# "channels" are found in graphs alone.
WHAT = ("heads", "query_heads", "ffn", "channels", "hidden", "all")
SCOPES = ("group", "global")
NONFINITE = ("raise", "remove")


@dataclass(frozen=True, slots=True, kw_only=True)
class CropOptions:
    """How to crop; the options of `crop_file` that change which bytes are written.

    Parameters
    ----------
    keep : float, int or mapping
        How many units of each group stay: a fraction, a number, or either by names or globs of groups.
    what : str or sequence of str
        "heads", "query_heads", "ffn", "channels", "hidden" or "all", or several.
    round_to : int, optional
        What the cropped lengths are a multiple of; by default 8 for fractions, 1 for numbers.
    scope : {"group", "global"}
        Whether each group keeps its share, or all groups together.
    norm : {1, 2, inf}
        Of the importance.
    nonfinite : {"raise", "remove"}
        What to do with units that have a NaN: refuse, or remove them first.
    given : GivenGroups, optional
        The groups, instead of `what`.

    Examples
    --------
    >>> from modelopt_rs.planning.crop import CropOptions
    >>> CropOptions(keep=0.75, what="ffn").what
    ('ffn',)
    """

    keep: Keep
    what: str | Sequence[str] = ()
    round_to: int | None = None
    scope: str = "group"
    norm: float = 2
    nonfinite: str = "raise"
    given: GivenGroups | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "what", (self.what,) if isinstance(self.what, str) else tuple(self.what))
        unknown = [word for word in self.what if word not in WHAT]
        if self.given is not None and self.what:
            raise OptionError(f"what must be left out where groups are given, got {', '.join(map(repr, self.what))}")
        if unknown or (not self.what and self.given is None):
            got = repr(unknown[0]) if unknown else "none"
            raise OptionError(f"what must be of {', '.join(repr(word) for word in WHAT)}, got {got}")
        check_option("scope", self.scope, SCOPES)
        check_option("nonfinite", self.nonfinite, NONFINITE)
        with as_options():
            self.choice.check("crop_file")

    @property
    def choice(self) -> Choice:
        """The same as the array functions take it."""
        return Choice(self.keep, self.round_to, self.scope, self.norm, self.nonfinite)

    def unmoved(self, report: CropReport) -> list[str]:
        """Say which groups stay whole though a share of them was to go: their lengths were rounded up to all."""
        if self.round_to == 1 or not isinstance(self.keep, float) or self.keep >= 1 or self.scope != "group":
            return []
        whole = [group for group in report.groups if len(group.kept) == group.units > 1]
        if not whole:
            return []
        more = f" and {len(whole) - 1:,} more" if len(whole) > 1 else ""
        step = DEFAULT_ROUND if self.round_to is None else self.round_to
        return [
            f"all {whole[0].units:,} units of {quote(whole[0].name)}{more} stay: lengths are multiples of {step}; "
            "round_to=1 (--round-to 1) takes the share as it is"
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the options in force, as a report has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "given"}
        if self.given is not None:
            values["numbers"] = dict(self.given.numbers)
        keep: Any = self.keep
        keep = {name: _number(n) for name, n in keep.items()} if isinstance(keep, Mapping) else _number(keep)
        # JSON has no infinity.
        return {**values, "keep": keep, "what": list(self.what), "norm": "inf" if self.norm == math.inf else self.norm}


class CropPlan:
    """What is cropped of a model: its groups and how much of each, checked before anything is read.

    Parameters
    ----------
    tensors : mapping
        The tensors of the model by name.
    config : mapping
        The model's config.json.
    options : CropOptions
    described : bool
        Whether config.json is written, too, and must be able to say what stays.

    Attributes
    ----------
    groups : tuple of Group
    cropped : list of Group
        Those that may lose units.
    given : GivenGroups or None
        The groups that are not those of a known family: as its user says, or as they were found.
    notes : tuple of str
        What should be known of how they were found.

    Raises
    ------
    OptionError
        If an option is wrong for this model, or config.json can't say what would stay.
    UnsupportedError
        If the model is quantized, or a tensor of another kind than the groups need.
    """

    def __init__(
        self, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], options: CropOptions, *, described: bool
    ) -> None:
        self._tensors, self._config, self._described, self.given = tensors, config, described, options.given
        self.notes: tuple[str, ...] = ()
        check_plain(tensors, config)
        lists_heads = False
        if self.given is None and not is_known(config):
            self._find(options.what)
        with as_options():
            if self.given is None:
                groups = transformer_groups(tensors, config, options.what)  # type: ignore[arg-type]
                # Some have a list for the heads of each layer.
                families = families_of("crop_file", config)
                lists_heads = families[0].lists_heads and set(options.what) == {"heads"}
            else:
                groups = self.given.of(tensors)
            self.groups = check_groups("crop_file", tensors, groups, TensorInfo)
            self._chooser = Chooser("crop_file", self.groups, options.choice)
        self.cropped = self._chooser.cropped
        if self.given is None:
            _check_matrices(tensors, self.cropped)
        check_scored(tensors, self.cropped)
        self._local = options.scope == "group"
        if described and not self._local and options.given is None and not lists_heads:
            raise OptionError(
                "scope must be 'group', got 'global': layers would keep different numbers, which config.json can't say"
            )

    def _find(self, what: Sequence[str]) -> None:
        """Take the feed-forward layers that can be told by their shapes for the groups, where a family isn't known."""
        reason = "by shapes 'ffn' alone is looked for"
        found = find_feed_forward(self._tensors, self._config) if set(what) == {"ffn"} else reason
        if isinstance(found, str):
            if found != reason:
                reason = f"by their shapes its feed-forward layers can't be told: {found}"
            try:
                families_of("crop_file", self._config)
            except ArgumentError as error:
                raise OptionError(f"{error.problem}; {reason}") from None
            return
        self.given = found
        self.notes = (
            f"{self._config.get('model_type')!r} is no family that is known by name: its {len(found.groups)} "
            f"feed-forward layers were found by their shapes, {quote(found.groups[0].members[0].name)} among them, and "
            f"{' and '.join(map(repr, found.numbers))} in config.json counts their units",
        )

    def draft(self) -> CropReport:
        """Return how much stays, as far as it doesn't depend on the weights: of each group its first units."""
        sizes = self._chooser.sizes() if self._local else {group.name: group.units for group in self.groups}
        report = crop_report(
            self._tensors,
            self.groups,
            {group.name: np.arange(sizes[group.name]) for group in self.groups},
            {group.name: np.full(group.units, np.nan) for group in self.groups},
        )
        self.config_of(report)
        return report

    def report(self, scores: Mapping[str, Scores]) -> CropReport:
        """Return what stays, given the importance of the units of the groups in `cropped`."""
        every = {group.name: scores.get(group.name, np.full(group.units, np.nan)) for group in self.groups}
        return crop_report(self._tensors, self.groups, self._chooser.kept(every), every)

    def config_of(self, report: CropReport) -> dict[str, Any] | None:
        """Return the new config.json; None if it needn't be written and can't say what stays."""
        if self.given is not None:
            return self.given.changed(self._config, report) if self._config else None
        try:
            with as_options():
                return cropped_config(self._config, report)
        except OptionError:
            if self._described or self._local:
                raise
            return None


def _number(value: Any) -> Any:
    """Return a number as JSON can hold it."""
    return value.item() if isinstance(value, np.number) else value


@contextmanager
def as_options() -> Iterator[None]:
    """Raise what an array function says of wrong values as wrong options."""
    try:
        yield
    except ArgumentError as error:
        raise OptionError(error.problem) from None


def _check_matrices(tensors: Mapping[str, TensorInfo], groups: Sequence[Group]) -> None:
    for name in cuts_of("crop_file", tensors, groups):
        shape = tensors[name].shape
        if len(shape) > 2:
            raise UnsupportedError(f"tensor {quote(name)} must be a vector or a matrix to be cropped, got {shape}")


def check_scored(tensors: Mapping[str, TensorInfo], groups: Sequence[Group]) -> None:
    """Refuse tensors whose units can't be ranked.

    Raises
    ------
    UnsupportedError
        If one that counts is of no floats.
    """
    for name, cuts in cuts_of("crop_file", tensors, groups).items():
        info = tensors[name]
        if info.dtype not in FLOATS and any(cut.member.scored for cut in cuts):
            floats = ", ".join(FLOATS)
            raise UnsupportedError(
                f"tensor {quote(name)} must be of {floats} for its units to be ranked, got {info.dtype}"
            )
