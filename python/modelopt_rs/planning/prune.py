"""Which tensors of a model are pruned, how, and why the others are not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from modelopt_rs.dtypes import FLOATS
from modelopt_rs.errors import OptionError, check_option
from modelopt_rs.planning.decide import Decision, check_globs, check_plain, decide
from modelopt_rs.planning.families import CONV1D, is_conv1d
from modelopt_rs.stream.model import TensorInfo, is_kernel, is_merged

__all__ = [
    "FORMATS",
    "METHODS",
    "NONFINITE",
    "SCOPES",
    "PruneOptions",
    "WeightAxes",
    "axes_in_files",
    "none_pruned",
    "plan_prune",
]

SCOPES = ("tensor", "row", "global")
FORMATS = ("dense", "bitmask")
NONFINITE = ("raise", "largest")
METHODS = ("magnitude", "wanda", "sparsegpt")
LARGEST_GROUP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """How to prune; the options of `prune_file` that change which bytes are written.

    Parameters
    ----------
    sparsity : float, optional
        The share of weights that goes, from 0 to 1.
    n, m : int, optional
        Instead of `sparsity`: how many of each `m` consecutive inputs stay.
    method : {"magnitude", "wanda", "sparsegpt"}
        What goes: the smallest weights, those that meet the smallest inputs as well, or those that the others make up
        for best. The last two need calibration data.
    scope : {"tensor", "row", "global"}
        What loses the share `sparsity`: each tensor, each of its rows, or all tensors together. Of "magnitude" alone.
    format : {"dense", "bitmask"}
        Store zeros, or the other weights and a bit for each.
    include, exclude : sequence of str
        Globs over tensor names: what to prune besides the default, and what not to. `exclude` wins.
    nonfinite : {"raise", "largest"}
        What a NaN is: an error, or larger than all numbers, so that it stays.

    Examples
    --------
    >>> from modelopt_rs.planning.prune import PruneOptions
    >>> PruneOptions(n=2, m=4).structure
    '2:4'
    """

    sparsity: float | None = None
    n: int | None = None
    m: int | None = None
    method: str = "magnitude"
    scope: str = "tensor"
    format: str = "dense"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    nonfinite: str = "raise"

    def __post_init__(self) -> None:
        if (self.n is None) != (self.m is None):
            raise OptionError(f"n and m must come together, got n={self.n}, m={self.m}")
        if (self.sparsity is None) == (self.m is None):
            got = "neither" if self.sparsity is None else "both"
            raise OptionError(f"sparsity, or n and m, must be given, got {got}")
        if self.sparsity is not None and not 0.0 <= self.sparsity <= 1.0:
            raise OptionError(f"sparsity must be from 0 to 1, got {self.sparsity}")
        if self.m is not None and not 2 <= self.m <= LARGEST_GROUP:
            raise OptionError(f"m must be from 2 to {LARGEST_GROUP}, got {self.m}")
        if self.n is not None and self.m is not None and not 1 <= self.n < self.m:
            raise OptionError(f"n must be from 1 to below m ({self.m}), got {self.n}")
        for name, known in (("method", METHODS), ("scope", SCOPES), ("format", FORMATS), ("nonfinite", NONFINITE)):
            check_option(name, getattr(self, name), known)
        if self.m is not None and self.scope != "tensor":
            raise OptionError(f"scope must be left out with n and m, got {self.scope!r}")
        if self.calibrated and self.scope != "tensor":
            own = "each row loses the share" if self.method == "wanda" else "each tensor loses the share"
            raise OptionError(f"scope must be left out with method {self.method!r} ({own}), got {self.scope!r}")
        check_globs(self.include, self.exclude)

    @property
    def calibrated(self) -> bool:
        """Whether what goes depends on calibration data."""
        return self.method != "magnitude"

    @property
    def structure(self) -> str:
        """The structure of the zeros, as compressed-tensors spells it."""
        return "unstructured" if self.m is None else f"{self.n}:{self.m}"

    def as_dict(self) -> dict[str, Any]:
        """Return the options in force, as a report has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "include": list(self.include), "exclude": list(self.exclude)}


@dataclass(frozen=True, slots=True)
class WeightAxes:
    """How a weight lies in its tensor.

    Attributes
    ----------
    out_axis, in_axis : int or None
        The axis that has an index for each output, and the one that is summed over; None where that can't be said.
    default : Decision
        What is done with it if no glob names it.
    refused : str or None
        Why it can't be pruned.
    unclear : str or None
        Why its axes can't be said.
    """

    out_axis: int | None = 0
    in_axis: int | None = 1
    default: Decision = field(default_factory=lambda: Decision("prune", "a weight"))
    refused: str | None = None
    unclear: str | None = None


PLAIN = WeightAxes()
"""Of files that have nothing but tensors: (out, in)."""

OF_KERAS = WeightAxes(None, None, unclear="a weight of Keras has its outputs along the last axis")
OF_EXPERTS = WeightAxes(None, None, unclear="experts in one tensor have their inputs along one axis or the other")


def axes_in_files(tensors: Iterable[str], config: Mapping[str, Any], format: str = "dense") -> dict[str, WeightAxes]:
    """Return how those weights of a model without a graph lie that aren't (out, in), by their names.

    Examples
    --------
    >>> from modelopt_rs.planning.prune import axes_in_files
    >>> axes_in_files(["h.0.attn.c_attn.weight"], {"model_type": "gpt2"})["h.0.attn.c_attn.weight"].in_axis
    0
    """
    refused = None if format == "dense" else f"{CONV1D}, and no loader has bitmasks for it"
    conv1d = WeightAxes(1, 0, refused=refused)
    kernels = {name: OF_KERAS for name in tensors if is_kernel(name)}
    experts = {name: OF_EXPERTS for name in tensors if is_merged(name)}
    return {name: conv1d for name in tensors if is_conv1d(name, config)} | kernels | experts


def none_pruned(decisions: Mapping[str, Decision]) -> list[str]:
    """Say that nothing is pruned, with the reason that most tensors have; nothing where something is.

    Examples
    --------
    >>> from modelopt_rs.planning.decide import Decision
    >>> from modelopt_rs.planning.prune import none_pruned
    >>> none_pruned({"w": Decision("copy", "quantized already")})
    ['no tensor is pruned; the commonest reason: quantized already']
    """
    if any(decision.action == "prune" for decision in decisions.values()):
        return []
    reasons = Counter(decision.reason for decision in decisions.values()).most_common(1)
    return [f"no tensor is pruned; the commonest reason: {reason}" for reason, _ in reasons]


def plan_prune(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    options: PruneOptions,
    axes: Mapping[str, WeightAxes] | None = None,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Decision]:
    """Decide for each tensor whether it is pruned.

    Parameters
    ----------
    tensors : mapping
        The tensors of the model by name.
    config : mapping
        The model's config.json; empty where there is none.
    options : PruneOptions
    axes : mapping, optional
        How each tensor lies, of a model that has a graph. By default all are (out, in), and their names decide.
    refused : mapping, optional
        Why some can't be pruned, by name.

    Returns
    -------
    dict
        A decision for every name, in the order of `tensors`.

    Raises
    ------
    OptionError
        If a glob matches no tensor, or an include glob only tensors that can't be pruned.
    UnsupportedError
        If the model is quantized already, or stored as bitmasks.

    Examples
    --------
    >>> from modelopt_rs.stream.model import TensorInfo, is_kernel
    >>> from modelopt_rs.planning.prune import PruneOptions, plan_prune
    >>> tensors = {"fc.weight": TensorInfo("fc.weight", "F32", (4, 6), 96)}
    >>> plan_prune(tensors, {}, PruneOptions(n=2, m=4))["fc.weight"].reason
    '6 inputs are no multiple of 4'
    """
    if axes is None:  # in a graph nodes make numbers of what is stored otherwise
        check_plain(tensors, config)
    known = axes_in_files(tensors, config, options.format) if axes is None else axes
    return decide(
        "prune",
        tensors,
        {name: why_not(info, options, known.get(name, PLAIN)) or refused.get(name) for name, info in tensors.items()},
        options.include,
        options.exclude,
        None if axes is None else {name: each.default for name, each in axes.items()},
    )


def why_not(info: TensorInfo, options: PruneOptions, layout: WeightAxes = PLAIN) -> str | None:
    """Say why a tensor can't be pruned with these options; None if it can."""
    if info.dtype not in FLOATS:
        return f"dtype {info.dtype} is not one of {', '.join(FLOATS)}"
    if layout.refused is not None:
        return layout.refused
    if len(info.shape) < 2:
        return f"{len(info.shape)}-dimensional: not a matrix or more"
    if 0 in info.shape:
        return "empty"
    if layout.unclear is not None and (options.m or options.scope == "row" or options.calibrated):
        return f"which axis holds inputs isn't clear: {layout.unclear}"
    if options.m and layout.in_axis is not None and info.shape[layout.in_axis] % options.m:
        return f"{info.shape[layout.in_axis]:,} inputs are no multiple of {options.m}"
    return None
