"""Which tensors of a model are quantized, how, and why the others are not."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from modelopt_rs.arguments import check_fields
from modelopt_rs.errors import OptionError
from modelopt_rs.layouts.layout import WritableLayout
from modelopt_rs.layouts.packed_encoder import PACK_QUANTIZED
from modelopt_rs.layouts.packed_spec import PackedSpec, as_matrix
from modelopt_rs.layouts.registry import layout_of
from modelopt_rs.planning.decide import Decision, check_globs, check_plain, decide, matches
from modelopt_rs.planning.loaders import why_not_loaded
from modelopt_rs.planning.sensitivity import LAYER_ERRORS
from modelopt_rs.stream.model import TensorInfo

__all__ = [
    "BITS",
    "QUANTIZED",
    "QuantizeOptions",
    "is_loaded",
    "more_bits",
    "only_dequantized",
    "plan_quantize",
    "refusal",
    "spec_of",
]

BITS = (8, 4, 2)
QUANTIZED: Final[dict[str, Literal["bf16"] | None]] = {"F32": None, "F16": None, "BF16": "bf16"}
"""The dtypes of weights that are quantized, and the `dtype=` that the array functions need for them."""

TIED_HEAD = re.compile(r"lm_head|embed_out|decoder")


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
    format : str, optional
        A named format instead of uniform codes: see `quantize_file`.
    bits_of : mapping of str to {8, 4, 2}
        Bits of the weights that a glob matches, where they are others than `bits`; the first that matches counts.
    max_layer_error : float, optional
        Below 8 bits: weights whose relative error would be larger get more bits. By default that of `LAYER_ERRORS`.
    uniform : bool
        All weights get the bits asked for, however large their error, but where more take fewer bytes.
    symmetric_at_8 : bool
        Weights that get 8 bits where fewer are asked for have no zero points, as where 8 are asked for.
    only_dequantize : bool
        Take also what no loader reads back but `dequantize` and the other commands here.

    Examples
    --------
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> QuantizeOptions(bits=4).spec.group_size
    32
    """

    bits: int = 8
    scheme: str = "symmetric"
    group_size: int | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    nonfinite: str = "raise"
    format: str | None = None
    bits_of: Mapping[str, int] = field(default_factory=dict)
    max_layer_error: float | None = None
    uniform: bool = False
    symmetric_at_8: bool = False
    only_dequantize: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
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
        if self.format is not None and (self.bits, self.scheme) != (8, "symmetric"):
            given = f"bits={self.bits}, scheme={self.scheme!r}"
            raise OptionError(f"bits and scheme must be left out with format {self.format!r}, got {given}")
        self._check_bits()
        check_globs(self.include, self.exclude)
        self.layout.spec(self)

    def _check_bits(self) -> None:
        for glob, bits in self.bits_of.items():
            if bits not in BITS:
                raise OptionError(f"bits_of {glob!r} must be 8, 4 or 2, got {bits}")
        if self.max_layer_error is not None:
            if not self.max_layer_error > 0.0:
                raise OptionError(f"max_layer_error must be above 0, got {self.max_layer_error}")
            if self.uniform:
                raise OptionError(f"max_layer_error must be left out with uniform, got {self.max_layer_error}")
        for name, given in (("bits_of", self.bits_of), ("max_layer_error", self.max_layer_error is not None)):
            if given and self.format is not None:
                raise OptionError(f"{name} must be left out with format {self.format!r}: all its codes are of one size")

    def as_measured(self) -> dict[str, Any]:
        """Return the options in force where weights are measured, as a report has them."""
        limited = {"max_layer_error": self.layer_error} if self.bits < 8 else {}
        return {**self.as_dict(), **limited}

    @property
    def layer_error(self) -> float | None:
        """The largest error of a layer that is taken; None: any."""
        # Weights whose bits a glob says are not measured.
        if self.uniform or self.format is not None or self.bits == 8:
            return None
        return LAYER_ERRORS[self.bits] if self.max_layer_error is None else self.max_layer_error

    def at(self, name: str) -> "QuantizeOptions":
        """Return the options for one weight: with its bits.

        Examples
        --------
        >>> from modelopt_rs.planning.quantize import QuantizeOptions
        >>> QuantizeOptions(bits=4, bits_of={"*.value.weight": 8}).at("layer.0.value.weight").bits
        8
        """
        return self.with_bits(next((n for glob, n in self.bits_of.items() if fnmatchcase(name, glob)), self.bits))

    def with_bits(self, bits: int) -> "QuantizeOptions":
        """Return the options with other bits."""
        scheme = "symmetric" if bits == 8 and self.symmetric_at_8 else self.scheme
        return replace(self, bits=bits, scheme=scheme)

    @property
    def layout(self) -> WritableLayout:
        """The layout that weights are stored in."""
        return layout_of(self.format)

    @property
    def spec(self) -> PackedSpec:
        """How a weight is coded, where there is no named format."""
        return PACK_QUANTIZED.spec(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the options in force, as a report has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"include": list(self.include), "exclude": list(self.exclude)}
        del values["bits_of"], values["max_layer_error"], values["uniform"], values["symmetric_at_8"]
        if self.bits_of:
            values["bits_of"] = dict(self.bits_of)
        if not self.only_dequantize:
            del values["only_dequantize"]
        if self.format is not None:
            return values
        del values["format"]
        return {**values, "group_size": self.spec.group_size or 0}


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
    >>> from modelopt_rs.stream.model import TensorInfo, is_weight
    >>> from modelopt_rs.planning.quantize import QuantizeOptions, plan_quantize
    >>> tensors = {"fc.weight": TensorInfo("fc.weight", "F32", (4, 8), 128)}
    >>> plan_quantize(tensors, {}, QuantizeOptions())["fc.weight"].action
    'quantize'
    """
    check_plain(tensors, config)
    included = matches(tensors, options.include, "include")
    cannot = {
        name: why_not(info, options, config) or (_why_tied(name, options, config) if name in included else None)
        for name, info in tensors.items()
    }
    return decide("quantize", tensors, config, cannot, options.include, options.exclude)


def why_not(info: TensorInfo, options: QuantizeOptions, config: Mapping[str, Any]) -> str | None:
    """Say why a tensor can't be quantized with these options; None if it can."""
    if info.dtype not in QUANTIZED:
        return f"dtype {info.dtype} is not one of {', '.join(QUANTIZED)}"
    if 0 in info.shape:
        return "empty"
    options = options.at(info.name)
    unread = why_not_loaded(info, options.layout.name, options.layout.spec(options), config)
    can_hold = options.layout.can_hold(info)
    if unread is not None and not (options.only_dequantize and can_hold):
        return unread
    refused = refusal(info, options)
    can = any(refusal(info, replace(options, bits=bits)) is None for bits in more_bits(options))
    return None if can else refused


def only_dequantized(
    tensors: Iterable[TensorInfo], config: Mapping[str, Any], options: QuantizeOptions
) -> list[TensorInfo]:
    """Return the weights that are left alone for no other reason than that no loader would read them back."""
    if options.only_dequantize:
        return []
    asked = replace(options, only_dequantize=True)
    return [
        info
        for info in tensors
        if len(info.shape) >= 2 and why_not(info, options, config) is not None and why_not(info, asked, config) is None
    ]


def more_bits(options: QuantizeOptions) -> list[int]:
    """Return the numbers of bits above those asked for."""
    return [] if options.format is not None else sorted(bits for bits in BITS if bits > options.bits)


def is_loaded(info: TensorInfo, spec: Any, options: QuantizeOptions, config: Mapping[str, Any]) -> bool:
    """Whether a weight that is coded so is read back by a loader, or need not be."""
    return options.only_dequantize or why_not_loaded(info, options.layout.name, spec, config) is None


def refusal(info: TensorInfo, options: QuantizeOptions) -> str | None:
    """Say why a layout can't hold a weight with exactly these options; None if it can."""
    return options.layout.why_not(info, spec_of(info, options))


def spec_of(info: TensorInfo, options: QuantizeOptions) -> Any:
    """Return how a weight is coded: where no size of groups is given, in half the default's if that doesn't fit."""
    spec = options.layout.spec(options)
    size = getattr(spec, "group_size", None)
    if options.format is None and options.group_size is None and size and as_matrix(info.shape)[1] % size:
        return replace(spec, group_size=size // 2)
    return spec


def _why_tied(name: str, options: QuantizeOptions, config: Mapping[str, Any]) -> str | None:
    """A head that is tied to the embedding is made of it."""
    part = name.removesuffix(".weight").split(".")[-1]
    if config.get("tie_word_embeddings", False) and TIED_HEAD.fullmatch(part) and not options.only_dequantize:
        return "it is tied to the embedding by config.json's tie_word_embeddings: include that"
    return None
