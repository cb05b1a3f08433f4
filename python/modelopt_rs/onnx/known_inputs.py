"""Which weights of an ONNX model are rounded by what goes into their layers, and what is known of it."""

from collections.abc import Iterable, Mapping
from functools import partial

from modelopt_rs._types import Array
from modelopt_rs.onnx.layer_inputs import refuse_unseen
from modelopt_rs.onnx.layer_statistics import LayerInputs
from modelopt_rs.onnx.weights import Weight, find_weights
from modelopt_rs.planning.by_inputs import decided_by_inputs, moments_of, statistics_kind, unseen_in_words
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.onnx import Calibrate
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source

__all__ = ["KnownInputs"]


class KnownInputs:
    """The inputs of the weights of MatMul and Gemm, as a float model runs on samples.

    Parameters
    ----------
    source : Source
        Whose graph is not rewritten yet.
    method : {"gptq", "awq"} or None
    calibrate : path, mapping, iterable or callable
    execution : Execution
        Of a dry run nothing is looked at.

    Attributes
    ----------
    unseen : mapping
        By name of a weight why its inputs are not known; None: they are.
    """

    def __init__(self, source: Source, method: str | None, calibrate: Calibrate, execution: Execution) -> None:
        self._method = method
        refused = refuse_unseen(source.graph)
        weights = {weight.name: weight for weight in find_weights(source.graph)}
        self.unseen = {name: refused.get(name) or _why_not(weight) for name, weight in weights.items()}
        names = [name for name, reason in self.unseen.items() if reason is None and name in source.tensors]
        self._statistics: LayerInputs | None = None
        if names and not execution.dry_run:
            self._statistics = LayerInputs(
                source.graph,
                source.path,
                statistics_kind(method),
                names,
                calibrate,
                max_memory=execution.max_memory // 2,  # the other half is for the weight that is rounded
                threads=execution.threads,
            )
        self.moments: Mapping[str, Moments] = {name: partial(self._of, name) for name in names}

    def _of(self, name: str) -> Array:
        assert self._statistics is not None
        [found] = self._statistics.of(name)
        return moments_of(found)

    def decided(self, decisions: Mapping[str, Decision], names: Iterable[str]) -> tuple[dict[str, Decision], list[str]]:
        """Return decisions that say how weights are rounded, and what should be known of it.

        From now on the inputs of these weights alone are looked at, in this order.
        """
        if self._statistics is not None:
            self._statistics.keep([name for name in names if name in self.moments])
        words = unseen_in_words(decisions, self.unseen, self._method)
        return decided_by_inputs(decisions, self.unseen, self._method), words


def _why_not(weight: Weight) -> str | None:
    """Say why a weight whose inputs can be seen is not rounded by them."""
    if any(use.kind == "conv" for use in weight.uses):
        return "a convolution's"
    if len({(use.in_axis, use.out_axis) for use in weight.uses}) > 1:
        return "it is used along both axes"
    return None
