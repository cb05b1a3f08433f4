"""What a normalization says of the inputs of the layers behind it: mean squares without any data."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.dtypes import widened
from modelopt_rs.planning.by_inputs import WORDS
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.model import TensorInfo

__all__ = ["SEARCHED", "norm_moments", "norm_of"]

SEARCHED: Final = f"{WORDS[None]}, as its norm says"

# The layers of encoders whose stream is normalized behind each addition (Vaswani et al. 2017), and where the norm
# stands that makes their inputs: in the same layer, or in the one before it (of the first that of the embeddings).
BEHIND: Final = (
    (r"intermediate\.dense", "attention.output.LayerNorm", "attention.LayerNorm"),
    (r"ffn\.lin1", "sa_layer_norm"),
)
AFTER: Final = (
    (r"attention\.(self\.(query|key|value)|attn\.(q|k|v))", "output.LayerNorm"),
    (r"attention\.(q|k|v)_lin", "output_layer_norm"),
)
FIRST: Final = "embeddings.LayerNorm"
LAYER: Final = re.compile(r"((?:.*\.)?)((?:encoder|transformer)\.layer\.)(\d{1,6})\.(.+)\.weight")


def norm_of(name: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return the LayerNorm whose results a weight is multiplied with, by its name; None where that isn't known.

    Examples
    --------
    >>> from modelopt_rs.planning.norms import norm_of
    >>> from modelopt_rs.stream.model import TensorInfo
    >>> tensors = {name: TensorInfo(name, "F32", (4,), 16) for name in ("a.LayerNorm.weight", "a.LayerNorm.bias")}
    >>> norm_of("encoder.layer.0.intermediate.dense.weight", tensors) is None
    True
    """
    found = LAYER.fullmatch(name)
    if found is None:
        return None
    prefix, layers, number, module = found[1], found[2], int(found[3]), found[4]
    made = [f"{prefix}{layers}{number}.{norm}" for way, *norms in BEHIND if re.fullmatch(way, module) for norm in norms]
    for way, norm in AFTER:
        if re.fullmatch(way, module):
            made.append(f"{prefix}{layers}{number - 1}.{norm}" if number else f"{prefix}{FIRST}")
    return next((norm for norm in made if {f"{norm}.weight", f"{norm}.bias"} <= tensors.keys()), None)


def norm_moments(
    tensors: Mapping[str, TensorInfo], names: Iterable[str], read: Callable[[str], Array]
) -> dict[str, Moments]:
    """Return the mean squares of the inputs of weights behind a LayerNorm, as `ByInputs` takes them.

    What leaves it is ``weight * n + bias``, and what is normalized, ``n``, has a mean of 0 and a mean square of 1 over
    its elements: so each has about ``weight**2 + bias**2``. In two trained models (MiniLM, 24 weights; RXNMapper, 2)
    codes of 4 bits that are searched so are up to 11 % nearer to a layer's outputs on real inputs, on average 2 and
    10 %, and none is more than 2 % further off; the more the squares differ, the more is gained.

    Parameters
    ----------
    tensors : mapping
    names : iterable of str
        Weights.
    read : callable
        Returns one of the tensors.

    References
    ----------
    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", arXiv 1906.04721: means
    behind a normalization are known without data.
    """
    found: dict[str, Moments] = {}
    for name in names:
        norm = norm_of(name, tensors)
        parts = [tensors[f"{norm}.{part}"] for part in ("weight", "bias")] if norm else []
        if not parts or any(part.shape != tensors[name].shape[1:] for part in parts):
            continue
        weight, bias = (widened(read(part.name), part.dtype).astype(np.float64) for part in parts)
        squares = np.square(weight) + np.square(bias)
        if np.isfinite(squares).all() and squares.any():
            found[name] = partial(np.asarray, squares)
    return found
