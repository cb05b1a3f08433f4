"""Which tensors of a model are quantized, how, and why the others are not."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final

from modelopt_rs.arguments import check_fields
from modelopt_rs.dtypes import FLOATS, STORED
from modelopt_rs.errors import OptionError, check_option
from modelopt_rs.layouts.layout import StoredWeight, WritableLayout
from modelopt_rs.layouts.packed_encoder import PACK_QUANTIZED
from modelopt_rs.layouts.packed_spec import PackedSpec, as_matrix
from modelopt_rs.layouts.registry import layout_of
from modelopt_rs.planning.decide import Decision, check_globs, check_plain, decide, is_match, matches
from modelopt_rs.planning.loaders import is_expert, why_none_loaded, why_not_loaded
from modelopt_rs.planning.sensitivity import ACTIVATION_ERROR, LAYER_ERRORS
from modelopt_rs.quant.formats import BITS
from modelopt_rs.stream.model import TensorInfo

__all__ = [
    "METHODS",
    "NONFINITE",
    "QUANTIZED",
    "QuantizeOptions",
    "is_loaded",
    "more_bits",
    "only_dequantized",
    "plan_quantize",
    "read_format",
    "refusal",
    "spec_of",
    "why_never",
]

QUANTIZED: Final = {name: FLOATS[name] for name in STORED.values()}
"""The dtypes of weights that are quantized, and the `dtype=` that the array functions need for them."""

METHODS: Final = ("gptq", "awq")
"""By what goes into layers."""

NONFINITE: Final = ("raise", "saturate")

# Of convolutions: where the last axis is longer, its rows are those of a matrix for each of the first.
LONGEST_WINDOW: Final = 31

TIED_HEAD = re.compile(r"lm_head|embed_out|decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How to quantize; the options of `quantize_file` that change which bytes are written.

    Parameters
    ----------
    bits : {8, 4, 2}
        Bits of a code.
    scheme : {"symmetric", "asymmetric"}, optional
        Whether the range is around zero, or has a zero point of its own. By default asymmetric below 8 bits where the
        loaders read zero points, else symmetric.
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
        With activations in 8 bits: layers whose activations are further off stay float; by default `ACTIVATION_ERROR`.
    uniform : bool
        All weights get the bits asked for, however large their error, but where more take fewer bytes.
    only_dequantize : bool
        Take also what no loader reads back but `dequantize` and the other commands here.
    search : {"mse"} or None
        How the scales of uniform codes are found: those of least squared error, or by the plain formula.
    scale_dtype : {"float32", "float16", "bfloat16"}, optional
        What the scales of uniform codes are stored in. By default float32 at 8 bits, below 16 bits: bfloat16 for
        weights in bfloat16, else float16.
    norm : float, optional
        With `search`: the power of errors whose sum is made small, from 0.5 to 4; by default 2.
    group_size_of : mapping of str to int
        The group size of the weights that a glob matches, where it is another; the first that matches counts.
    method : {"gptq", "awq"}, optional
        How weights are rounded by what goes into their layers.

    Examples
    --------
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> QuantizeOptions(bits=4).spec.group_size
    32
    """

    bits: int = 8
    scheme: str | None = None
    group_size: int | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    nonfinite: str = "raise"
    format: str | None = None
    bits_of: Mapping[str, int] = field(default_factory=dict)
    max_layer_error: float | None = None
    uniform: bool = False
    only_dequantize: bool = False
    search: str | None = "mse"
    scale_dtype: str | None = None
    norm: float | None = None
    group_size_of: Mapping[str, int] = field(default_factory=dict)
    method: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_option("bits", self.bits, BITS)
        if self.scheme == "minmax":
            raise OptionError("scheme 'minmax' can't be stored: the file layout has no offset; use 'asymmetric'")
        if self.scheme not in (None, "symmetric", "asymmetric"):
            raise OptionError(f"scheme must be 'symmetric' or 'asymmetric', got {self.scheme!r}")
        if self.group_size is not None and self.group_size < 0:
            raise OptionError(f"group_size must be 0 (one scale a row) or more, got {self.group_size}")
        check_option("nonfinite", self.nonfinite, NONFINITE)
        check_option("search", self.search, ("mse", None))
        if self.norm is not None and not (self.search == "mse" and self.format is None and 0.5 <= self.norm <= 4.0):
            got = f"{self.norm:g}" if self.search == "mse" and self.format is None else f"{self.norm:g} without it"
            raise OptionError(f"norm must be from 0.5 to 4, of uniform codes with search 'mse', got {got}")
        check_option("scale_dtype", self.scale_dtype, (*STORED, None))
        if self.format is not None and self.scale_dtype is not None:
            raise OptionError(f"scale_dtype must be left out with format {self.format!r}, got {self.scale_dtype!r}")
        if self.format is not None and not (self.bits == 8 and self.scheme in (None, "symmetric")):
            given = f"bits={self.bits}, scheme={self.scheme!r}"
            raise OptionError(f"bits and scheme must be left out with format {self.format!r}, got {given}")
        self._check_bits()
        self._check_method()
        check_globs(self.include, self.exclude)
        self.layout.spec(self)

    def _check_bits(self) -> None:
        for glob, bits in self.bits_of.items():
            check_option(f"bits_of {glob!r}", bits, BITS)
        if self.max_layer_error is not None:
            if not self.max_layer_error > 0.0:
                raise OptionError(f"max_layer_error must be above 0, got {self.max_layer_error}")
            if self.uniform:
                raise OptionError(f"max_layer_error must be left out with uniform, got {self.max_layer_error}")
        for glob, size in self.group_size_of.items():
            if type(size) is not int or size < 0:
                raise OptionError(f"group_size_of {glob!r} must be 0 (one scale a row) or more, got {size!r}")
        for name, given in (("bits_of", self.bits_of), ("max_layer_error", self.max_layer_error is not None)):
            if given and self.format is not None:
                raise OptionError(f"{name} must be left out with format {self.format!r}: all its codes are of one size")

    def _check_method(self) -> None:
        if self.method is None:
            return
        check_option("method", self.method, (*METHODS, None))
        if self.format is not None:
            raise OptionError(f"method must be left out with format {self.format!r}, got {self.method!r}")
        if self.nonfinite != "raise":
            raise OptionError(f"nonfinite must be 'raise' with method {self.method!r}, got {self.nonfinite!r}")

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

    @property
    def activation_error(self) -> float | None:
        """The largest error of what goes into a layer that computes in int8; None: any."""
        if self.uniform:
            return None
        return ACTIVATION_ERROR if self.max_layer_error is None else self.max_layer_error

    def at(self, name: str) -> "QuantizeOptions":
        """Return the options for one weight: with its bits, and without zero points where they would not be read.

        Examples
        --------
        >>> from modelopt_rs.planning.quantize import QuantizeOptions
        >>> QuantizeOptions(bits=4, bits_of={"*.value.weight": 8}).at("layer.0.value.weight").bits
        8
        """
        bits = next((n for glob, n in self.bits_of.items() if is_match(name, glob)), self.bits)
        return self.with_scheme(name).with_group_size(name).with_bits(bits)

    def with_bits(self, bits: int) -> "QuantizeOptions":
        """Return the options with other bits."""
        # Most weights have what was asked for: a plan of thousands makes no options of its own for each.
        return self if bits == self.bits else replace(self, bits=bits)

    def with_group_size(self, name: str) -> "QuantizeOptions":
        """Return the options with the group size of one weight."""
        size = next((n for glob, n in self.group_size_of.items() if is_match(name, glob)), self.group_size)
        return self if size == self.group_size else replace(self, group_size=size)

    def with_scheme(self, name: str) -> "QuantizeOptions":
        """Return the options with the scheme of one weight: experts are merged only without zero points."""
        free = self.scheme is None and self.format is None and not self.only_dequantize
        return replace(self, scheme="symmetric") if free and is_expert(name) else self

    @property
    def has_half_scales(self) -> bool:
        """Whether the scales of an ONNX model are stored in float16."""
        return self.bits < 8 if self.scale_dtype is None else self.scale_dtype == "float16"

    @property
    def sought(self) -> str | float | None:
        """What is searched: None, "mse", or the norm of which errors are least."""
        return self.search if self.norm in (None, 2.0) else self.norm

    @property
    def as_plain(self) -> bool:
        """Whether scales are of the plain formula in float32, and rounded only as they are stored."""
        return self.search is None and self.scale_dtype == "float32"

    def stored_scales(self, bits: int, info: TensorInfo) -> str:
        """Return the dtype of files that the scales of a weight are stored in.

        Parameters
        ----------
        bits : int
            Of its codes.
        info : TensorInfo
            The weight.

        Examples
        --------
        >>> from modelopt_rs.planning.quantize import QuantizeOptions
        >>> from modelopt_rs.stream.model import TensorInfo
        >>> info = TensorInfo("fc.weight", "F32", (4, 64), 1024)
        >>> QuantizeOptions().stored_scales(8, info), QuantizeOptions().stored_scales(4, info)
        ('F32', 'F16')
        """
        if self.scale_dtype is not None:
            return STORED[self.scale_dtype]
        if info.dtype == "BF16":
            return "F32" if bits == 8 else "BF16"
        # At 8 bits they are few, and what is lost by their rounding could be seen. transformers leaves merged experts
        # in the dtype of the scales and computes in it. In other float32 models it multiplies in float16 or in
        # float32: below 8 bits scales of float16 are made so that both give the same numbers.
        is_whole = bits == 8 or (is_expert(info.name) and info.dtype != "F16")
        return "F32" if is_whole else "F16"

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
        values["scheme"] = "symmetric" if self.format is not None else self.spec.scheme
        del values["bits_of"], values["max_layer_error"], values["uniform"]
        for name in ("search", "scale_dtype", "method", "norm"):
            if values[name] is None or self.format is not None:
                del values[name]
        del values["group_size_of"]
        if self.group_size_of:
            values["group_size_of"] = dict(self.group_size_of)
        if self.bits_of:
            values["bits_of"] = dict(self.bits_of)
        if not self.only_dequantize:
            del values["only_dequantize"]
        if self.format is not None:
            return values
        del values["format"]
        return {**values, "group_size": self.spec.group_size or 0}


def plan_quantize(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    options: QuantizeOptions,
    stored: Mapping[str, StoredWeight] = MappingProxyType({}),
) -> dict[str, Decision]:
    """Decide for each tensor whether it is quantized.

    Parameters
    ----------
    tensors : mapping
        The tensors of the model by name.
    config : mapping
        The model's config.json; empty where there is none.
    options : QuantizeOptions
    stored : mapping, optional
        Those of them that are quantized already, and stay as they are.

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
    unread = why_none_loaded(tensors, options.layout.name, config) if not options.only_dequantize else None
    cannot = {
        name: why_not(info, options, config)
        or unread
        or (_why_tied(name, options, config) if name in included else None)
        for name, info in tensors.items()
    }
    for info in only_dequantized(included, tensors, config, options):
        with_it = "only_dequantize (--only-dequantize)" + ("" if options.format is None else " without format")
        cannot[info.name] = f"{cannot[info.name]}; {with_it} takes it"
    cannot |= {name: f"quantized already ({weight.words})" for name, weight in stored.items()}
    return decide("quantize", tensors, cannot, options.include, options.exclude)


def why_never(info: TensorInfo) -> str | None:
    """Say why a tensor can't be quantized with any options, for its dtype or shape; None if it can."""
    if info.dtype not in QUANTIZED:
        return f"dtype {info.dtype} is not one of {', '.join(QUANTIZED)}"
    return "empty" if 0 in info.shape else None


def why_not(info: TensorInfo, options: QuantizeOptions, config: Mapping[str, Any]) -> str | None:
    """Say why a tensor can't be quantized with these options; None if it can."""
    if (reason := why_never(info)) is not None:
        return reason
    options = options.at(info.name)
    unread = why_not_loaded(info, options.layout.name, options.layout.spec(options), config)
    can_hold = options.layout.can_hold(info)
    if unread is not None and not (options.only_dequantize and can_hold):
        held = options.only_dequantize and options.format is not None and layout_of(None).can_hold(info)
        return f"{options.format} has no way to hold it: leave out format" if held else unread
    refused = refusal(info, options)
    can = any(refusal(info, replace(options, bits=bits)) is None for bits in more_bits(options))
    return None if can else refused


def only_dequantized(
    names: Iterable[str], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], options: QuantizeOptions
) -> list[TensorInfo]:
    """Return the weights that are left alone for no other reason than that no loader would read them back."""
    if options.only_dequantize:
        return []
    unread = why_none_loaded(tensors, options.layout.name, config)
    asked = replace(options, only_dequantize=True)
    # Formats by name are of matrices called `weight`: all else is coded without one.
    without = asked if options.format is None else replace(asked, format=None)
    return [
        info
        for info in map(tensors.__getitem__, names)
        if len(info.shape) >= 2
        and (unread is not None or why_not(info, options, config) is not None)
        and any(why_not(info, each, config) is None for each in (asked, without))
    ]


def read_format(
    unread: Iterable[TensorInfo], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], options: QuantizeOptions
) -> str | None:
    """Return the format by which a loader reads most of what it doesn't read otherwise; None if there is none."""
    if not config or why_none_loaded(tensors, layout_of("nf4").name, config) is not None:
        return None
    infos = list(unread)
    # Of all formats only those of bitsandbytes have a loader of their own.
    other = QuantizeOptions(format="nf4", include=options.include, exclude=options.exclude)
    read = sum(info.nbytes for info in infos if why_not(info, other, config) is None)
    return "nf4" if options.format != "nf4" and 2 * read > sum(info.nbytes for info in infos) else None


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
    """Return how a weight is coded: where no size of groups is given, in half the default's if that does not fit."""
    spec = options.layout.spec(options)
    size = getattr(spec, "group_size", None)
    if options.format is not None or options.group_size is not None:
        return spec
    if size is None and len(info.shape) == 3 and info.shape[-1] > LONGEST_WINDOW:  # else an expert has one
        return replace(spec, group_size=info.shape[-1])
    return replace(spec, group_size=size // 2) if size and as_matrix(info.shape)[1] % size else spec


def _why_tied(name: str, options: QuantizeOptions, config: Mapping[str, Any]) -> str | None:
    """A head that is tied to the embedding is made of it."""
    part = name.removesuffix(".weight").split(".")[-1]
    if config.get("tie_word_embeddings", False) and TIED_HEAD.fullmatch(part) and not options.only_dequantize:
        return "it is tied to the embedding by config.json's tie_word_embeddings: include that"
    return None
