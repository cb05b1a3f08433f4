"""Cropping an ONNX model by calibration data: which units say least to the layers behind them, and what makes up."""

from collections.abc import Sequence

from modelopt_rs.onnx.crop.coupling import GraphGroup
from modelopt_rs.onnx.measure.layer_inputs import refuse_unseen
from modelopt_rs.onnx.measure.layer_statistics import LayerInputs
from modelopt_rs.onnx.weight_axes import find_weight_axes
from modelopt_rs.onnx.weights import find_weights
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source
from modelopt_rs.transforms.unit_inputs import UnitInputs, check_no_hidden, takers

__all__ = ["CropInputs"]


class CropInputs(UnitInputs):
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
        check_no_hidden(any(group.kind == "hidden" for group in groups), "'ffn', 'heads' or 'channels'")
        unseen = refuse_unseen(source.graph)
        axes = find_weight_axes(source.graph)
        grouped = {
            weight.name
            for weight in find_weights(source.graph)
            for use in weight.uses
            if use.node.attributes.get_int("group", 1) > 1
        }
        found = {
            name: (lies.out_axis, lies.in_axis)
            for name, axis in takers(source, groups, ("F32",))
            if (lies := axes.get(name)) is not None
            and lies.out_axis is not None
            and lies.in_axis == axis
            and name not in unseen
            and name not in grouped
        }
        norms, sums = (
            LayerInputs(
                source.graph,
                source.path,
                kind,
                list(found),
                calibrate,
                max_memory=execution.max_memory // 2,
                threads=execution.threads,
            )
            for kind in (ColumnNorms, Hessian)
        )
        super().__init__(source, groups, found, norms.of, sums.of)
