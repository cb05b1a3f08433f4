"""What an error of a weight does to the outputs of a model: each weight coarser by itself, in onnxruntime."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.errors import FormatError, UnsupportedError
from modelopt_rs.onnx.attention_values import makes_attention_values
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream
from modelopt_rs.onnx.run.outputs import OutputFigures
from modelopt_rs.onnx.weights import find_weights
from modelopt_rs.planning.loss_table import role_of
from modelopt_rs.planning.sensitivity import layer_error
from modelopt_rs.quant.coding import fake_quantize
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source

__all__ = ["TRIED_BITS", "TRIED_DTYPES", "coarse", "compared", "output_errors", "relative", "roles", "scores"]

TRIED_BITS: Final = (4, 2)
"""In how many bits weights are tried: what an error does hardly depends on its size."""

GROUP: Final = 32
SAMPLES: Final = (4, 16)
"""On how many samples a model is run at least, and at most: on few it is chance which of two weights counts more."""
WORK: Final = 2**32  # bytes of weights that all runs read where they are on more than the least
TRIED_DTYPES: Final = ("F32", "F16")


BEHIND: Final = {
    "ArgMax", "Cast", "Hardmax", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze", "TopK",
    "Unsqueeze",
}  # fmt: skip
"""What outputs go through last that says less of how far they are off: probabilities, and what is made of them."""


def roles(model: ir.Model) -> dict[str, str]:
    """Return what weights do, by their names and by the graph: keys of `PRIORS`."""
    found = {}
    for weight in find_weights(model):
        found[weight.name] = role_of(weight.name)
        if any(use.kind == "gather" for use in weight.uses):
            found[weight.name] = "embedding"
        elif any(makes_attention_values(use.node) for use in weight.uses):
            found[weight.name] = "value"
    return found


def output_errors(
    source: Source, names: Mapping[str, object], data: Data, execution: Execution
) -> dict[str, dict[int, float]]:
    """Return by how much an error of a weight is more or less at the outputs, by weight and bits of what was tried.

    Of a few samples the outputs are compared with those with one weight rounded: their relative error (the root of the
    mean over all outputs of floats of its square), divided by the weight's. It is empty where the model does not run
    on inputs that are made up, has no outputs of floats, or has others than before; weights are left out that are not
    float32 or float16, that stand in no tensor of the source, or take more than a quarter of the memory.

    Parameters
    ----------
    source : Source
        Has the graph, as it was read.
    names : mapping
        Weights, in this order.
    data : Data
        Where inputs come from.
    execution : Execution
        Told of each weight.

    Raises
    ------
    ValueError, TypeError
        If what is given does not fit the model.

    References
    ----------
    Malinovskii et al. 2024 (arXiv 2411.17525): what the errors of layers do to the loss, measured layer by layer.
    """
    model: ir.Model = source.graph
    able = [name for name in names if _is_able(source, name, execution.max_memory // 4)]
    if not able:
        return {}
    most = max(SAMPLES[0], min(SAMPLES[1], WORK // max(source.nbytes * len(able) * len(TRIED_BITS), 1)))
    how: Any = {"threads": execution.threads, "max_memory": execution.max_memory, "most": most, "weights": able}
    try:
        seen = scores(model)
        stream = InputStream(model, source.path, seen, replace(data, varied=most), **how)
        there = list(stream.outputs(seen))
    except (FormatError, UnsupportedError):
        if data.made_up:
            return {}
        raise
    found: dict[str, dict[int, float]] = {}
    for name in able:
        array = source.read(name)
        found[name] = {}
        for bits in TRIED_BITS:
            how = {"group_size": GROUP, "search": "mse", "threads": execution.threads}
            rounded = coarse(array, 0, bits=bits, **how)
            own = OutputFigures(name, execution.threads)
            own.add(array, rounded)
            off = relative(compared(there, stream.outputs(seen, {name: rounded})))
            error = layer_error(own.figures)
            if off is None or not np.isfinite(off) or not np.isfinite(error):
                return {}
            found[name][bits] = off / error if error else 0.0
        execution.advance(array.nbytes, name)
    return found


def _is_able(source: Source, name: str, most: int) -> bool:
    info = source.tensors.get(name)
    there = name in source.graph.graph.initializers
    return info is not None and there and info.dtype in TRIED_DTYPES and info.nbytes <= most


def coarse(array: Array, axis: int, /, **how: Any) -> Array:
    """Return a weight as its codes have it, in blocks of what is not `axis`; for `how` see `quantize`."""
    rows = np.ascontiguousarray(np.moveaxis(array, axis, 0))
    made = fake_quantize(rows.reshape(len(rows), -1), scheme="asymmetric", nonfinite="saturate", **how)
    return np.ascontiguousarray(np.moveaxis(made.reshape(rows.shape), 0, axis))


def compared(there: Iterable[list[Any]], found: Iterable[list[Any]]) -> list[OutputFigures]:
    """Return how far each output is off, over all samples."""
    figures: list[OutputFigures] = []
    for before, after in zip(there, found, strict=True):
        figures = figures or [OutputFigures(str(i)) for i in range(len(before))]
        for each, x, y in zip(figures, before, after, strict=True):
            each.add(x, y)
    return figures


def scores(model: ir.Model) -> list[str]:
    """Return the values that are compared: outputs, or scores where they are made of these."""
    found: dict[str, None] = {}
    for output in model.graph.outputs:
        value = output
        while (before := _before(value.producer())) is not None:
            value = before
        known = value.dtype in (None, ir.DataType.FLOAT)
        found[str(value.name if known else output.name)] = None
    return list(found)


def _before(node: ir.Node | None) -> ir.Value | None:
    """Return what a node makes probabilities or labels of; None where it doesn't."""
    before = node.inputs[0] if node is not None and node.domain == "" and node.inputs else None
    made = None if before is None else before.producer()
    if node is None or made is None:
        return None
    if node.op_type == "Div" and made.op_type == "Exp":  # a softmax in parts
        return made.inputs[0]
    return before if node.op_type in BEHIND else None


def relative(figures: list[OutputFigures]) -> float | None:
    """Return how far values of floats are off; None where they can't be compared."""
    floats = [each.figures for each in figures if each.floats and each.figures.xx > 0.0]
    if not floats or any(each.mismatch for each in figures):
        return None
    return float(np.sqrt(sum(each.dd / each.xx for each in floats) / len(floats)))
