"""What quantized weights do to the outputs of a whole model: layers that are near enough can add up to too much."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.errors import FormatError, UnsupportedError
from modelopt_rs.onnx.int8.observe import packed
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream
from modelopt_rs.onnx.measure.output_errors import TRIED_DTYPES, coarse, compared
from modelopt_rs.onnx.run.inputs import Feed
from modelopt_rs.onnx.run.work import Work
from modelopt_rs.onnx.weights import Weight
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.sensitivity import layer_error
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source

__all__ = ["ENOUGH", "LESS", "OUTPUTS", "WORTH", "SummedErrors", "most_useful", "out_of_proportion", "together_by_sum"]

OUTPUTS: Final[Mapping[int, float]] = {4: 1.0, 2: 1.5}
"""How many times as far as a layer the outputs of a model may be off, by the bits that are asked for: 0.15 at 4 bits is
16 dB; 0.75 at 2 bits is 2.5 dB, and what is lost beyond it is more than a few weights' bytes are worth: MiniLM loses 17
points with a limit of 0.75, 25 with one of 1.0, for 9 % of the bytes.
"""
SAMPLES: Final = 2  # that the model is run on
LARGEST: Final = 2**26  # bytes of a weight that is looked at: a table is as good as never what does most for its bytes
WORK: Final = 2**36  # bytes of weights that all runs read
PRODUCTS: Final = 2**41  # that all runs take: some minutes
GROUP: Final = 32  # elements that share a scale, where no size is given
# What is left of a squared error with the next higher number of bits: of steps 1 / 5 and 1 / 17 as wide.
LESS: Final[Mapping[int, float]] = {2: 1 / 25, 4: 1 / 289}
NOISE: Final = 1e-8  # the squared error of a second run, where threads add in another order
WORTH: Final = 16.0
"""How many times the mean a weight does to the outputs for its bytes that gets more bits before these are far off."""
ENOUGH: Final = 1 / 3
"""Of the limit of outputs: what is no further off is left alone."""
COVERED: Final = 0.25  # the squared error of outputs from which on errors cover each other
SMOOTH: Final = 1 / 16  # of the squared error at 4 bits, at most at 8 bits: else outputs jump (sorted, sampled)


class SummedErrors:
    """Runs a model with one weight at a time off by its codes, then with many.

    The weights are initializers that can be overridden, so one session does for all. The squared errors of weights are
    taken to add up to what they do together.

    Parameters
    ----------
    model : Model
        As it was read from `path`.
    path : path
    source : Source
        Has the weights.
    execution : Execution
        Its memory doesn't say what is looked at, or bits would follow from it.
    data : Data
        Where inputs come from.
    """

    def __init__(
        self, model: ir.Model, path: str | os.PathLike[str], source: Source, execution: Execution, data: Data
    ) -> None:
        self._model, self._path, self._source, self._execution, self._data = model, path, source, execution, data

    def of(self, weights: Mapping[str, Weight], options: QuantizeOptions, bits: Mapping[str, int]) -> dict[str, Array]:
        """Return the squared relative errors of all outputs by weight; {} where nothing can be said of the model.

        Parameters
        ----------
        weights : mapping
            Those that would be quantized.
        options : QuantizeOptions
        bits : mapping
            Of each of them.
        """
        sizes = {name: self._source.tensors[name].nbytes for name in weights}
        fed = [name for name in weights if self._source.tensors[name].dtype in TRIED_DTYPES]
        known = {name: weights[name] for name in fed if sizes[name] <= LARGEST}
        if sum(sizes.values()) * len(known) > WORK:
            return {}
        try:
            run = self._runs(list(known))
            if run is None:
                return {}
            there = run({})
            again = run({})
        except (FormatError, UnsupportedError):
            return {}
        noise = _squares(there, again)
        if not len(noise) or (noise > NOISE).any():
            return {}
        found: dict[str, Array] = {}
        parts: dict[str, Array] = {}
        # Weights that are held together: each is rounded once, for itself and for all of them.
        for names in packed({name: sizes[name] for name in known}, LARGEST):
            rounded = {name: self._coarse(known[name], options.with_bits(bits[name])) for name in names}
            for name, array in rounded.items():
                found[name] = _squares(there, run({name: array}))
            part = together_by_sum(_squares(there, run(rounded)), [found[name] for name in names])
            parts |= dict.fromkeys(names, part)
        if not found or not np.isfinite(list(found.values())).all():
            return {}
        worst = max(found, key=lambda name: float(found[name].max()))
        finer = _squares(there, run({worst: self._coarse(weights[worst], options.with_bits(8))}))
        if finer.max() > SMOOTH * found[worst].max():
            return {}
        return {name: each * parts[name] for name, each in found.items()}

    def _runs(self, names: list[str]) -> Callable[[Feed], list[list[Any]]] | None:
        """Return what runs the model on all samples with some weights replaced, and gives its outputs.

        None: it would take too much to do that for each.
        """
        how: dict[str, Any] = {"threads": self._execution.threads, "max_memory": self._execution.max_memory}
        stream = InputStream(self._model, self._path, [], self._data, most=SAMPLES, weights=names, **how)
        if stream.work(Work.of(self._model)) * len(names) > PRODUCTS:
            return None
        outputs = [str(value.name) for value in self._model.graph.outputs]
        return lambda replaced: list(stream.outputs(outputs, replaced))

    def _coarse(self, weight: Weight, options: QuantizeOptions) -> Array:
        """Return a weight as its codes would have it, in blocks along what its node sums over."""
        const = weight.value.const_value
        assert const is not None
        array, axis = const.numpy(), weight.uses[0].out_axis
        group = GROUP if options.group_size is None else options.group_size
        in_groups = group and array.size // array.shape[axis] % group == 0
        how: dict[str, Any] = {"group_size": group} if in_groups else {"axis": 0}
        return coarse(array, axis, bits=options.bits, search=options.search, threads=self._execution.threads, **how)


def together_by_sum(together: Array, alone: Sequence[Array]) -> Array:
    """Return what part of the sum of squared errors outputs are off where all weights are off together.

    Errors meet in the same values: of a detector of 73 convolutions outputs are 0.22 off, by the sum of squares 0.16;
    of a recurrent network that reads characters 0.23 and 0.28. What isn't finite says nothing; nor do outputs that are
    off by more than their half that they are off by less than the sum: noise can't hide what it covers.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.measure.summed_errors import together_by_sum
    >>> together_by_sum(np.array([0.4, 0.1, 0.0]), [np.array([0.1, 0.1, 0.0]), np.array([0.1, 0.1, 0.0])]).tolist()
    [2.0, 0.5, 1.0]
    """
    total = np.sum(list(alone), axis=0)
    known = (total > 0.0) & np.isfinite(together)
    part = np.where(known, together, 1.0) / np.where(known, total, 1.0)
    return np.where(together > COVERED, np.maximum(part, 1.0), part)


def most_useful(
    errors: Mapping[str, Array], sizes: Mapping[str, int], bits: Mapping[str, int], limit: float
) -> dict[str, int]:
    """Return weights that get more bits so that no output is further off than a limit, and how many.

    Those go first that take the most of the worst output's error for each of their bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.measure.summed_errors import most_useful
    >>> errors = {"a": np.array([0.2]), "b": np.array([0.1])}
    >>> most_useful(errors, {"a": 64, "b": 64}, {"a": 4, "b": 4}, 0.5)
    {'a': 8}
    """
    left = {name: errors[name].astype(np.float64) for name in errors}
    moved: dict[str, int] = {}
    while left:
        total = np.sum(list(left.values()), axis=0)
        at = int(np.argmax(total))
        have = {name: moved.get(name, bits[name]) for name in left}
        able = [name for name in left if have[name] in LESS]
        if math.sqrt(total[at]) <= limit or not able:
            break
        best = max(able, key=lambda name: left[name][at] / (sizes[name] * have[name]))
        left[best] = left[best] * LESS[have[best]]
        moved[best] = 2 * have[best]
    return moved


def out_of_proportion(
    errors: Mapping[str, Array], sizes: Mapping[str, int], bits: Mapping[str, int], enough: float
) -> dict[str, tuple[int, float]]:
    """Return weights that do far more for their bytes than all do, the bits that they get, and how much more.

    Codes of least error for a size do the same for each of their bytes, and two bits more divide a squared error by 16
    (reverse water-filling: Cover and Thomas, Elements of Information Theory, 10.3.3): a weight that does 16 times
    the mean should have two bits more, and the next that there are have two or four more. Shares of the error add up to
    1, so such weights have a sixteenth of the bytes at most; mostly they have a thousandth. Where no output is further
    off than `enough` all stay as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.measure.summed_errors import out_of_proportion
    >>> errors = {"a": np.array([0.2]), "b": np.array([0.1])}
    >>> [bits, times] = out_of_proportion(errors, {"a": 64, "b": 6400}, {"a": 4, "b": 4}, 0.1)["a"]
    >>> bits, round(float(times))
    (8, 67)
    """
    left = {name: errors[name].astype(np.float64) for name in errors}
    have = {name: bits[name] for name in errors}
    moved: dict[str, tuple[int, float]] = {}
    while left:
        total = np.sum(list(left.values()), axis=0)
        at = int(np.argmax(total))
        able = [name for name in left if have[name] in LESS]
        if math.sqrt(total[at]) <= enough or not able:
            break
        nbytes = sum(sizes[name] * have[name] for name in left)
        density = {name: left[name][at] / total[at] * nbytes / (sizes[name] * have[name]) for name in able}
        best = max(able, key=lambda name: density[name])
        if density[best] < WORTH:
            break
        left[best] = left[best] * LESS[have[best]]
        have[best] *= 2
        moved[best] = have[best], density[best]
    return moved


def _squares(there: list[list[Any]], found: list[list[Any]]) -> Array:
    """Return of every output of floats its squared relative error over all samples: infinite where shapes differ."""
    floats = [each for each in compared(there, found) if each.floats]
    return np.array([math.inf if each.mismatch else layer_error(each.figures) ** 2 for each in floats])
