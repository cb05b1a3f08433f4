"""The options that only ONNX models have; nothing of the package onnx is needed to make them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from modelopt_rs.arguments import check_fields
from modelopt_rs.errors import OptionError, check_option
from modelopt_rs.planning.calibration import Calibrate, said
from modelopt_rs.planning.decide import is_match
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant.formats import BITS

__all__ = ["CHOICES", "OnnxOptions"]

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "target": ("onnxruntime", "portable"),
    "activations": ("none", "dynamic", "static"),
    "method": ("minmax", "moving_average", "percentile", "entropy", "mse"),
}
LEVELS = (0, 1, 2, 3, 4)
OPSETS = (7, 26)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOptions:
    """How an ONNX model is quantized, besides what `QuantizeOptions` says.

    Parameters
    ----------
    target : {"onnxruntime", "portable"}
        Also the operators of onnxruntime (com.microsoft), or only those of the standard.
    activations : {"none", "dynamic", "static"}, optional
        Leave activations as they are, quantize them by the ranges of each call, or by ranges of calibration data. By
        default "static" with `calibrate` at 8 bits, else "none".
    calibrate : path, mapping or callable, optional
        Calibration data: for static ranges, or below 8 bits to measure which layers need more.
    method : {"minmax", "moving_average", "percentile", "entropy", "mse"}
        How ranges are found in calibration data.
    bias_correction : bool, optional
        Take the mean error out of biases. By default of static layers that have one, and of convolutions.
    equalize : bool
        Make the ranges of channels alike before.
    smooth : float, optional
        SmoothQuant's alpha: how much of the range of activations goes into weights, from 0 to 1.
    accuracy_level : {0, 1, 2, 3, 4}
        Of `MatMulNBits`. 4 computes with activations of 8 bits, which is several times faster than 0.
    per_tensor : bool
        One scale for a whole tensor, where the target's form has one ("portable").
    opset : int, optional
        The opset of the output, at least; by default the input's, or what the new operators need.
    bits_of : mapping of str to {8, 4, 2}
        Bits of the weights that a glob matches, where they are others than `bits`; the first that matches counts.

    Attributes
    ----------
    implied : bool
        Whether nothing but `calibrate` says that activations are static.

    Examples
    --------
    >>> from modelopt_rs.planning.onnx import OnnxOptions
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> OnnxOptions(target="portable").accuracy_level
    4
    >>> mixed = OnnxOptions(bits_of={"*.value.weight": 8})
    >>> mixed.at("layer.0.value.weight", QuantizeOptions(bits=4)).bits
    8
    """

    target: str = "onnxruntime"
    activations: str | None = None
    calibrate: Calibrate | None = None
    method: str = "minmax"
    bias_correction: bool | None = None
    equalize: bool = False
    smooth: float | None = None
    accuracy_level: int = 4
    per_tensor: bool = False
    opset: int | None = None
    bits_of: Mapping[str, int] = field(default_factory=dict)
    implied: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.activations is None:
            object.__setattr__(self, "implied", self.calibrate is not None)
            object.__setattr__(self, "activations", "none" if self.calibrate is None else "static")
        for name, known in CHOICES.items():
            check_option(name, getattr(self, name), known)
        if self.accuracy_level not in LEVELS:
            raise OptionError(f"accuracy_level must be from 0 to 4, got {self.accuracy_level}")
        if self.smooth is not None and not 0.0 <= self.smooth <= 1.0:
            raise OptionError(f"smooth must be from 0 to 1, got {self.smooth}")
        if self.opset is not None and not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise OptionError(f"opset must be from {OPSETS[0]} to {OPSETS[1]}, got {self.opset}")
        if self.per_tensor and self.target != "portable":
            raise OptionError("per_tensor needs target 'portable': MatMulNBits has a scale for each block")
        if (self.activations == "static") != (self.calibrate is not None):
            if self.calibrate is None:
                fix = "give data of the model's task by --calibrate, or take 'dynamic', which needs none"
                raise OptionError(f"calibrate must be given with activations 'static', got none; {fix}")
            raise OptionError(f"calibrate must be left out with activations {self.activations!r}, got it")
        self._check_activations()

    def _check_activations(self) -> None:
        """Refuse what would change nothing, for it is about activations that are not quantized in that way."""
        for name, used in (
            ("method", self.method != "minmax"),
            ("bias_correction", bool(self.bias_correction)),
            ("smooth", self.smooth is not None),
        ):
            if used and self.activations != "static":
                raise OptionError(
                    f"{name} needs activations 'static', got {self.activations!r}: it needs calibration data"
                )
        if self.equalize and self.activations == "none":
            raise OptionError("equalize needs activations 'dynamic' or 'static', got 'none'")

        for glob, bits in self.bits_of.items():
            check_option(f"bits_of {glob!r}", bits, BITS)
        if self.bits_of and self.activations != "none":
            raise OptionError(
                f"bits_of needs activations 'none', got {self.activations!r}: integer kernels take int8 weights"
            )

    def at(self, name: str, options: QuantizeOptions) -> QuantizeOptions:
        """Return the options for one weight: `options` with its bits."""
        bits = next((bits for glob, bits in self.bits_of.items() if is_match(name, glob)), options.bits)
        return options.with_group_size(name).with_bits(bits)

    def as_dict(self, given: Calibrate | None = None) -> dict[str, Any]:
        """Return the options in force, as a report has them; of calibration data only where they come from.

        `given`: data that calibrate bits, not activations.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        data = self.calibrate if given is None else given
        if self.activations != "static":
            values["bias_correction"] = False
        return {**values, "calibrate": None if data is None else said(data), "bits_of": dict(self.bits_of)}
