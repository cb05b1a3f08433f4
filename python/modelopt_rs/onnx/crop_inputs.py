"""Cropping an ONNX model by calibration data: which units say least to the layers behind them, and what makes up."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.crop.coupling import GraphGroup
from modelopt_rs.onnx.layer_inputs import refuse_unseen
from modelopt_rs.onnx.layer_statistics import LayerInputs
from modelopt_rs.onnx.weight_axes import find_weight_axes
from modelopt_rs.onnx.weights import find_weights
from modelopt_rs.planning.onnx import Calibrate
from modelopt_rs.prune.coupling import Member
from modelopt_rs.prune.importance import Scores
from modelopt_rs.prune.repair import InputStats
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Transform
from modelopt_rs.transforms.repair import Repair

__all__ = ["CropInputs"]


class CropInputs:
    """What goes into the layers that take the units of groups, while calibration data run through the model.

    Parameters
    ----------
    source : Source
        Has a graph, which is not cropped yet.
    groups : sequence of GraphGroup
    calibrate : path, mapping, iterable or callable
    execution : Execution

    Raises
    ------
    OptionError
        If a group is of the hidden width: norms between divide by what goes.
    """

    def __init__(
        self, source: Source, groups: Sequence[GraphGroup], calibrate: Calibrate, execution: Execution
    ) -> None:
        if any(group.kind == "hidden" for group in groups):
            raise OptionError(
                "what must not name 'hidden' with calibrate, got it: norms divide by all of it; "
                "name what is between them: 'ffn', 'heads' or 'channels'"
            )
        self._source, unseen = source, refuse_unseen(source.graph)
        axes = find_weight_axes(source.graph)
        grouped = {
            weight.name
            for weight in find_weights(source.graph)
            for use in weight.uses
            if "group" in use.node.attributes and use.node.attributes["group"].as_int() > 1
        }
        self._axes: dict[str, tuple[int, int]] = {}
        self._members: dict[str, list[tuple[str, Member]]] = {}
        for group in groups:
            for member in group.members:
                name, lies = member.name, axes.get(member.name)
                if lies is None or lies.out_axis is None or lies.in_axis != member.axis % len(_shape(source, name)):
                    continue
                if name in unseen or name in grouped or name not in source.tensors:
                    continue
                if source.tensors[name].dtype == "F32":
                    self._axes[name] = (lies.out_axis, lies.in_axis)
                    self._members.setdefault(name, []).append((group.name, member))
        self._groups = {group.name: group for group in groups}
        self._norms, self._sums = (
            LayerInputs(
                source.graph,
                source.path,
                kind,
                [name for name in source.tensors if name in self._axes],
                calibrate,
                max_memory=execution.max_memory // 2,
                threads=execution.threads,
            )
            for kind in (ColumnNorms, Hessian)
        )

    def scores(self, scores: Mapping[str, Scores]) -> dict[str, Scores]:
        """Return the importance of units: ``sqrt(sum |w[:, j]|² |x[j]|²)`` over their inputs `j` to layers behind.

        Of groups that no layer takes whose inputs are seen it is as it was.
        """
        energy: dict[str, Scores] = {}
        for name, members in self._members.items():
            wanted = [(group, member) for group, member in members if group in scores]
            if not wanted:
                continue
            out_axis, in_axis = self._axes[name]
            weight = np.moveaxis(self._source.read(name), (out_axis, in_axis), (0, -1)).astype(np.float64)
            [norms] = self._norms.of(name)
            assert isinstance(norms, ColumnNorms)
            each = np.square(weight).sum(axis=0).reshape(-1) * np.square(norms.norms.astype(np.float64))
            each = each.reshape(-1, weight.shape[-1]).sum(axis=0)
            for group, member in wanted:
                units = self._groups[group].units
                own = each[member.offset : member.offset + units * member.size].reshape(units, -1).sum(axis=1)
                energy[group] = energy[group] + own if group in energy else own
        return {**scores, **{group: np.sqrt(found) for group, found in energy.items()}}

    def repair(self, name: str, stays: Mapping[int, NDArray[np.bool_]], then: Transform) -> Transform:
        """Return the transform that makes up for what goes of a weight's inputs before `then` crops it."""
        if name not in self._axes or self._axes[name][1] not in stays:
            return then

        def stats() -> InputStats:
            [hessian] = self._sums.of(name)
            assert isinstance(hessian, Hessian)
            assert hessian.stats is not None
            return hessian.stats

        return Repair(self._source.tensors[name], self._axes[name], stays[self._axes[name][1]], stats, then)


def _shape(source: Source, name: str) -> tuple[int, ...]:
    info = source.tensors.get(name)
    return (0,) if info is None else info.shape
