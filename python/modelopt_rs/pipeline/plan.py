"""Which tensors of a model are quantized or pruned, which are left alone, and why.

The default takes what is known to stand it best: the weights of layers, but not embeddings and heads. `include` and
`exclude` globs change it. Every tensor gets a decision and a one-line reason.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, TypeAlias

from modelopt_rs._core import UnsupportedError
from modelopt_rs.files import PackedSpec, TensorInfo
from modelopt_rs.files.bitmask import bitmask_modules
from modelopt_rs.files.messages import quote
from modelopt_rs.files.pack_quantized import is_weight

__all__ = ["Decision", "OptionError", "QuantizeOptions", "plan_quantize"]

Action: TypeAlias = Literal["quantize", "prune", "copy"]

BITS = (8, 4, 2)
FLOATS: Final[dict[str, Literal["bf16"] | None]] = {
    "F32": None,
    "F16": None,
    "BF16": "bf16",
}  # the `dtype=` that the array functions need
NO_WEIGHT = "its name does not end in .weight"
DEFAULT_GROUP = {8: 0, 4: 32, 2: 32}

# By the last part of the module's name, as the architectures of transformers spell them.
EMBEDDING = re.compile(r"(\w*_)?embeddings?|embed|(\w*_)?emb|embed_\w+|wte|wpe|shared|relative_attention_bias")
ROUTER = re.compile(r"gate|router")
# Anywhere in the module's name: a head may have several layers (`classifier.dense`).
HEAD = re.compile(r"(\w*_)?lm_head|classifier|score|qa_outputs|cls|embed_out|output_projection|vocab_projector")
TIED = re.compile(r"lm_head|embed_out|decoder|embed_tokens|word_embeddings|wte|shared|tok_embeddings")
CONV1D = re.compile(r"c_attn|c_proj|c_fc|q_attn")
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


class OptionError(ValueError):
    """An option has a wrong value, or asks for what can't be done with this model."""


def check_globs(include: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse one string where there must be several."""
    for name, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str):
            raise TypeError(f"{name} must be a sequence of globs, got one string")


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with one tensor, and why."""

    action: Action
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How to quantize; the options of `quantize_file` that change which bytes are written.

    Parameters
    ----------
    bits : {8, 4, 2}
        Bits of a code.
    scheme : {"symmetric", "asymmetric"}
        Whether the range is around zero, or has a zero point of its own.
    group_size : int, optional
        Consecutive elements of a row that share a scale; 0: the whole row (a scale for each output channel).
        By default 0 at 8 bits, 32 at 4 and 2 bits.
    include, exclude : sequence of str
        Globs over tensor names: what to quantize besides the default, and what not to. `exclude` wins.
    nonfinite : {"raise", "saturate"}
        What to do with weights that are NaN or infinite.

    Examples
    --------
    >>> from modelopt_rs.pipeline.plan import QuantizeOptions
    >>> QuantizeOptions(bits=4).spec.group_size
    32
    """

    bits: int = 8
    scheme: str = "symmetric"
    group_size: int | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    nonfinite: str = "raise"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise OptionError(f"bits must be 8, 4 or 2, got {self.bits}")
        if self.scheme == "minmax":
            raise OptionError("scheme 'minmax' can't be stored: the file layout has no offset; use 'asymmetric'")
        if self.scheme not in ("symmetric", "asymmetric"):
            raise OptionError(f"scheme must be 'symmetric' or 'asymmetric', got {self.scheme!r}")
        if self.group_size is not None and self.group_size < 0:
            raise OptionError(f"group_size must be 0 (one scale a row) or more, got {self.group_size}")
        if self.nonfinite not in ("raise", "saturate"):
            raise OptionError(f"nonfinite must be 'raise' or 'saturate', got {self.nonfinite!r}")
        check_globs(self.include, self.exclude)

    @property
    def spec(self) -> PackedSpec:
        """How a weight is packed."""
        size = DEFAULT_GROUP[self.bits] if self.group_size is None else self.group_size
        return PackedSpec(self.bits, self.scheme == "symmetric", size or None)

    def as_dict(self) -> dict[str, Any]:
        """Return the options in force, as a report has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **values,
            "group_size": self.spec.group_size or 0,
            "include": list(self.include),
            "exclude": list(self.exclude),
        }


def plan_quantize(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], options: QuantizeOptions
) -> dict[str, Decision]:
    """Decide for each tensor whether it is quantized.

    Parameters
    ----------
    tensors : mapping
        The tensors of the model by name.
    config : mapping
        The model's config.json; empty where there is none.
    options : QuantizeOptions

    Returns
    -------
    dict
        A decision for every name, in the order of `tensors`.

    Raises
    ------
    OptionError
        If a glob matches no tensor, or an include glob only tensors that can't be quantized.
    UnsupportedError
        If the model is quantized already.

    Examples
    --------
    >>> from modelopt_rs.files.model import TensorInfo
    >>> from modelopt_rs.pipeline.plan import QuantizeOptions, plan_quantize
    >>> tensors = {"fc.weight": TensorInfo("fc.weight", "F32", (4, 8), 128)}
    >>> plan_quantize(tensors, {}, QuantizeOptions())["fc.weight"].action
    'quantize'
    """
    check_plain(tensors, config)
    plan = decide("quantize", tensors, config, lambda info: why_not(info, options), options.include, options.exclude)
    _check_tied(plan, _matches(tensors, options.include, "include"), config)
    return plan


def decide(
    action: Literal["quantize", "prune"],
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    why_not: Callable[[TensorInfo], str | None],
    include: Sequence[str],
    exclude: Sequence[str],
    default: Callable[[TensorInfo], Decision] | None = None,
) -> dict[str, Decision]:
    """Decide for each tensor whether an action takes it.

    Parameters
    ----------
    action : str
        What is done with tensors.
    tensors : mapping
        The tensors of the model by name.
    config : mapping
        The model's config.json; empty where there is none.
    why_not : callable
        Says why it can't be done with a tensor; None if it can.
    include, exclude : sequence of str
        Globs over names: what to take besides the default, and what not to. `exclude` wins.
    default : callable, optional
        Decides for a tensor that it can be done with and that no glob names; by default by its name.

    Raises
    ------
    OptionError
        If a glob matches no tensor, or an include glob only tensors that it can't be done with.
    """
    included = _matches(tensors, include, "include")
    excluded = _matches(tensors, exclude, "exclude")
    cannot = {name: why_not(info) for name, info in tensors.items()}
    plan = {}
    for name, info in tensors.items():
        reason = cannot[name]
        if name in excluded:
            plan[name] = Decision("copy", f"excluded by {excluded[name]!r}")
        elif reason is not None:
            plan[name] = Decision("copy", reason)
        elif name in included:
            plan[name] = Decision(action, f"included by {included[name]!r}")
        elif default is not None:
            plan[name] = default(info)
        else:
            kept = _kept_by_default(name, config)
            layer = "weight of a linear layer" if len(info.shape) == 2 else "weight of a convolution"
            plan[name] = Decision("copy", kept) if kept else Decision(action, layer)
    _check_included(action, cannot, include)
    return plan


def why_not(info: TensorInfo, options: QuantizeOptions) -> str | None:
    """Say why a tensor can't be quantized with these options; None if it can."""
    if info.dtype not in FLOATS:
        return f"dtype {info.dtype} is not one of {', '.join(FLOATS)}"
    if len(info.shape) != 2:
        return f"not 2-dimensional, but {len(info.shape)}-dimensional"
    if 0 in info.shape:
        return "empty"
    if not is_weight(info.name):
        return NO_WEIGHT
    size = options.spec.group_size
    if size and info.shape[1] % size:
        return f"rows of {info.shape[1]:,} are no multiple of the group size {size:,}"
    return None


def check_plain(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> None:
    """Refuse a model that is quantized already, or stored as bitmasks."""
    masked = next(bitmask_modules(tensors), None)
    if masked is not None:
        raise UnsupportedError(
            f"the model is stored as bitmasks already (it has tensor {quote(masked + '.bitmask')}): dequantize it first"
        )
    packed = next((name for name in tensors if name.endswith("weight_packed")), None)
    if packed is not None or config.get("quantization_config"):
        what = f"it has tensor {quote(packed)}" if packed else "its config.json has a quantization_config"
        raise UnsupportedError(f"the model is quantized already ({what}): dequantize it first")


def _matches(tensors: Mapping[str, TensorInfo], globs: Sequence[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for glob in globs:
        names = [name for name in tensors if fnmatchcase(name, glob)]
        if not names:
            raise OptionError(f"{option} {glob!r} matches no tensor")
        for name in names:
            found.setdefault(name, glob)
    return found


def _kept_by_default(name: str, config: Mapping[str, Any]) -> str | None:
    if not is_weight(name):
        return NO_WEIGHT
    parts = name.removesuffix(".weight").split(".")
    if parts == ["output"] or any(HEAD.fullmatch(part) for part in parts):
        return "the last head"
    if EMBEDDING.fullmatch(parts[-1]):
        return "an embedding"
    if ROUTER.fullmatch(parts[-1]):
        return "a router of experts"
    if config.get("model_type") in CONV1D_MODELS and CONV1D.fullmatch(parts[-1]):
        return "a Conv1D layer: stored as [in, out]"
    return None


def _check_included(action: str, cannot: Mapping[str, str | None], include: Sequence[str]) -> None:
    """Refuse a glob that can't have any effect; one that also matches a bias or a norm is welcome."""
    for glob in include:
        refused = [(name, reason) for name, reason in cannot.items() if fnmatchcase(name, glob)]
        if all(reason is not None for _, reason in refused):
            name, reason = refused[0]
            raise OptionError(f"include {glob!r}: tensor {quote(name)} can't be {action}d: {reason}")


def _check_tied(plan: Mapping[str, Decision], included: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """A loader that ties the head to the embedding keeps one of the two: then neither may be packed."""
    if not config.get("tie_word_embeddings", False):
        return
    for name, glob in included.items():
        part = name.removesuffix(".weight").split(".")[-1]
        if plan[name].action == "quantize" and TIED.fullmatch(part):
            raise OptionError(
                f"include {glob!r}: tensor {quote(name)} is tied to the embedding by config.json's "
                "tie_word_embeddings; exclude it"
            )
