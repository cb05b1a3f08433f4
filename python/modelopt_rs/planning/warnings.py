"""What should be known of a quantized model besides its figures."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelopt_rs.errors import quote
from modelopt_rs.planning.decide import Decision, moved_in_words
from modelopt_rs.planning.families import CONV1D_MODELS, model_types
from modelopt_rs.planning.sensitivity import LAYER_ERRORS, LayerError, layer_error
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo

__all__ = [
    "beside_in_words",
    "doubles_in_words",
    "far_off_at_8_bits",
    "few_samples_in_words",
    "not_run_in_words",
    "old_loader_in_words",
    "outputs_in_words",
    "quantize_warnings",
    "unread_in_words",
]

SHOWN = 3  # layers that are named
AT_8_BITS: Final = 0.05
"""How far a weight of 8 bits may be off before it is told: six times as far as most are, half as far as at 4 bits."""
OUTPUTS_AT_8_BITS: Final = 0.3
"""The same of outputs: 10 dB, below which no model of 8 bits kept the figure of its task, static int8 included."""
SAMPLES: Final = 16
"""How many samples show the ranges that others have. Of four, the others of four trained models go 0.11 to 0.45 of a
range beyond it in the mean of all values, of sixteen 0.03 to 0.26."""
TRIED: Final = (5, 23)
"""The version of transformers that reads all that is written. As tried 5.20 and 5.22 make up weights of these."""
LOST_BEFORE: Final = frozenset({"t5", "mt5", "umt5", "longt5", *CONV1D_MODELS})


def quantize_warnings(
    decisions: Mapping[str, Decision],
    schemes: Iterable[tuple[int, bool]],
    sizes: tuple[int, int],
    errors: Mapping[str, LayerError],
) -> tuple[str, ...]:
    """Return the sentences.

    Parameters
    ----------
    decisions : mapping
        For each tensor.
    schemes : iterable of (int, bool)
        Of each weight whose scales are of the plain formula its bits, and whether it has no zero points.
    sizes : (int, int)
        The bytes of the model before and after.
    errors : mapping
        What was measured of weights, those that were left alone too.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import quantize_warnings
    >>> quantize_warnings({}, [(8, True)], (1000, 1200), {})
    ('the result is larger than its source: 1,200 bytes instead of 1,000',)
    """
    found = moved_in_words(decisions.values())
    symmetric = sum(bits == 2 and alike for bits, alike in schemes)
    if symmetric:
        weights = f"{symmetric:,} weight{'' if symmetric == 1 else 's'}"
        found.append(f"{weights} of 2 bits without zero points, which leave little of a model: asymmetric loses less")
    found += _far_off({name: error for name, error in errors.items() if _has(decisions[name], error.bits)})
    before, after = sizes
    if after > before:
        found.append(f"the result is larger than its source: {after:,} bytes instead of {before:,}")
    return tuple(found)


def old_loader_in_words(config: Mapping[str, Any]) -> list[str]:
    """Say that the version of transformers that wrote a model would make up weights of it.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import old_loader_in_words
    >>> old_loader_in_words({"model_type": "gpt2", "transformers_version": "5.20.1"})
    ['config.json is of transformers 5.20: of a quantized gpt2 versions before 5.23 make up weights']
    >>> old_loader_in_words({"model_type": "gpt2", "transformers_version": "5.23.0"})
    []
    """
    version = config.get("transformers_version")
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    kinds = sorted(LOST_BEFORE & model_types(config))
    if found is None or not kinds or (int(found[1]), int(found[2])) >= TRIED:
        return []
    before = f"versions before {TRIED[0]}.{TRIED[1]} make up weights"
    return [f"config.json is of transformers {found[0]}: of a quantized {kinds[0]} {before}"]


def not_run_in_words(shapes: Iterable[tuple[int, ...]]) -> list[str]:
    """Say that bitsandbytes (0.50) raises an error where it lays such weights out for some CPUs.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import not_run_in_words
    >>> not_run_in_words([(64, 96), (64, 128)])[0][:61]
    '1 weight has a shape that bitsandbytes can run on GPUs only: '
    >>> not_run_in_words([(64, 128)])
    []
    """
    n = sum(rows % 32 != 0 or columns % 64 != 0 for rows, columns, *_ in shapes)
    if not n:
        return []
    has = "1 weight has a shape" if n == 1 else f"{n:,} weights have shapes"
    why = "on CPUs with bfloat16 in AVX-512 the rows must be a multiple of 32 and the columns of 64"
    return [f"{has} that bitsandbytes can run on GPUs only: {why}; exclude leaves them floats"]


def unread_in_words(sizes: Iterable[int], total: int, format: str | None = None, read: str | None = None) -> list[str]:
    """Say that weights stay as they are because no loader reads their codes, if they are a third of the result.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import unread_in_words
    >>> unread_in_words([900], 1000)[0][:68]
    '1 weight, 90 % of the result, stays as it is: no loader reads its co'
    >>> unread_in_words([200], 1000)
    []
    >>> unread_in_words([900], 1000, read="nf4")[0][68:111]
    "des; format 'nf4' is one that transformers "
    """
    found = list(sizes)
    if 3 * sum(found) <= total:
        return []
    weights = "1 weight" if len(found) == 1 else f"{len(found):,} weights"
    stay = "stays as it is: no loader reads its" if len(found) == 1 else "stay as they are: no loader reads their"
    way = "only_dequantize (--only-dequantize)" + ("" if format is None else f" without format {format!r}")
    other = "" if read is None else f" format {read!r} is one that transformers reads;"
    return [
        f"{weights}, {100 * sum(found) / total:.0f} % of the result, {stay} codes;{other} {way} has dequantize do it; "
        "an ONNX export of the model runs quantized in onnxruntime"
    ]


def doubles_in_words(infos: Iterable[TensorInfo], total: int) -> list[str]:
    """Say that weights of float64 stay as they are, if they are a third of the result: codes are of at most float32.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import doubles_in_words
    >>> from modelopt_rs.stream.model import TensorInfo
    >>> doubles_in_words([TensorInfo("fc.weight", "F64", (4, 8), 256)], 300)
    ['1 weight of float64, 85 % of the result, stays as it is: a model in float32 is half as large, and is quantized']
    >>> doubles_in_words([TensorInfo("fc.weight", "F32", (4, 8), 128)], 150)
    []
    """
    found = [info.nbytes for info in infos if info.dtype == "F64" and len(info.shape) >= 2]
    if 3 * sum(found) <= total:
        return []
    weights = "1 weight" if len(found) == 1 else f"{len(found):,} weights"
    stay = "stays as it is" if len(found) == 1 else "stay as they are"
    share = f"{100 * sum(found) / total:.0f} % of the result"
    return [f"{weights} of float64, {share}, {stay}: a model in float32 is half as large, and is quantized"]


def beside_in_words(beside: Mapping[str, int], nbytes: int) -> list[str]:
    """Say which files come along as they are, if they are a tenth of the model: its result may be no smaller by them.

    Parameters
    ----------
    beside : mapping
        Their bytes, by name.
    nbytes : int
        The bytes of the model before.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import beside_in_words
    >>> print(*beside_in_words({"pytorch_model.bin": 450, "onnx/model.onnx": 460}, 450))
    2 other files come along as they are, 2.0 times as large as the model was: 'onnx/model.onnx', 'pytorch_model.bin'; \
what nothing reads can be removed
    >>> beside_in_words({"1_Dense/model.safetensors": 20}, 450)
    []
    """
    total = sum(beside.values())
    if 10 * total < nbytes or not total:
        return []
    large = sorted(beside, key=lambda name: (-beside[name], name))
    more = len(large) - SHOWN
    names = ", ".join(map(quote, large[:SHOWN])) + (f" and {more:,} more" if more > 0 else "")
    come = (
        f"{len(large):,} other files come along as they are" if len(large) > 1 else "1 other file comes along as it is"
    )
    times = f"{total / max(nbytes, 1):.1f} times as large as the model was"
    return [f"{come}, {times}: {names}; what nothing reads can be removed"]


def far_off_at_8_bits(figures: Mapping[str, ErrorFigures]) -> list[str]:
    """Say which weights of 8 bits are far off. It costs nothing: what is off is added up as codes are made.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import far_off_at_8_bits
    >>> from modelopt_rs.stream.error_figures import ErrorFigures
    >>> far_off_at_8_bits({"a.weight": ErrorFigures(xx=1.0, dd=0.01), "b.weight": ErrorFigures(xx=1.0, dd=1e-4)})
    ["1 weight is more than 0.05 off at 8 bits (the most: 'a.weight' 0.1): smaller groups or exclude lose less"]
    """
    errors = {name: error for name, each in figures.items() if (error := layer_error(each)) > AT_8_BITS}
    if not errors:
        return []
    worst = ", ".join(f"{quote(name)} {errors[name]:.2g}" for name in _worst(errors))
    are = "1 weight is" if len(errors) == 1 else f"{len(errors):,} weights are"
    return [f"{are} more than {AT_8_BITS:g} off at 8 bits (the most: {worst}): smaller groups or exclude lose less"]


def outputs_in_words(error: float | None, are_made_up: bool) -> list[str]:
    """Say that the outputs of an ONNX model of 8 bits are far off, and on what: nothing else was measured.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import outputs_in_words
    >>> outputs_in_words(0.5, True)
    ['at 8 bits the outputs are 0.5 off on made-up inputs, which may say little: --inputs DATA measures real ones']
    >>> outputs_in_words(0.1, False)
    []
    """
    if error is None or error <= OUTPUTS_AT_8_BITS:
        return []
    made_up = "made-up inputs, which may say little: --inputs DATA measures real ones"
    return [f"at 8 bits the outputs are {error:.2g} off on {made_up if are_made_up else 'the given inputs'}"]


def few_samples_in_words(count: int | None) -> list[str]:
    """Say that ranges are those of too few samples. None: nobody knows how many there are.

    Whatever the data are: of ``n + 1`` samples that come in any order the last has the largest number of all with a
    chance of ``1 / (n + 1)``, and then it is clipped.

    Examples
    --------
    >>> from modelopt_rs.planning.warnings import few_samples_in_words
    >>> few_samples_in_words(4)
    ['activations have the ranges of 4 samples: another goes beyond each end with a chance of 1 in 5; give 16 or more']
    >>> few_samples_in_words(16)
    []
    """
    if count is None or count >= SAMPLES:
        return []
    samples = "1 sample" if count == 1 else f"{count} samples"
    words = f"another goes beyond each end with a chance of 1 in {count + 1}; give {SAMPLES} or more"
    return [f"activations have the ranges of {samples}: {words}"]


def _worst(errors: Mapping[str, float]) -> list[str]:
    return sorted(errors, key=lambda name: -errors[name])[:SHOWN]


def _far_off(errors: Mapping[str, LayerError]) -> list[str]:
    """Say which layers are the furthest off, where some are further than 4 bits are expected to be."""
    far = {name: found.error for name, found in errors.items() if found.error > LAYER_ERRORS[4]}
    if not far:
        return []
    shown = ", ".join(f"{quote(name)} {far[name]:.2g}" for name in _worst(far))
    kept = "1 layer keeps its bits and is" if len(far) == 1 else f"{len(far):,} layers keep their bits and are"
    return [f"{kept} more than {LAYER_ERRORS[4]:g} off (the most: {shown}): more bits lose less"]


def _has(decision: Decision, bits: int) -> bool:
    """Whether a weight is written with the bits that it was measured with."""
    return decision.action == "quantize" and (decision.moved is None or decision.moved.bits == bits)
