"""Cropping a Hugging Face directory by calibration data, which transformers runs."""

from collections.abc import Sequence

from modelopt_rs.errors import OptionError
from modelopt_rs.operations.module_inputs import ModuleInputs, can_run, linear_weights
from modelopt_rs.planning.calibration import Calibrate, check_there
from modelopt_rs.prune.coupling import Group
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source
from modelopt_rs.transforms.unit_inputs import UnitInputs, check_no_hidden, takers

__all__ = ["ModuleCropInputs", "check_runs"]


def check_runs(source: Source, what: Sequence[str]) -> None:
    """Refuse calibration of what nothing runs, or of the hidden width.

    Raises
    ------
    OptionError
        If it is no Hugging Face directory; or norms between divide by what goes.
    """
    if not can_run(source):
        fix = "crop it as an ONNX model, or arrays by prune.InputStats, prune.crop and prune.least_squares"
        raise OptionError(f"calibrate must be left out for a model of tensors alone: nothing runs it; {fix}")
    check_no_hidden(not {"hidden", "all"}.isdisjoint(what), "'ffn' or 'heads'")


class ModuleCropInputs(UnitInputs):
    """What goes into the linear layers that take the units of groups, as transformers runs the model.

    Parameters
    ----------
    source : Source
        A Hugging Face directory, which is not cropped yet.
    groups : sequence of Group
    calibrate : path, mapping, iterable or callable
    execution : Execution

    Raises
    ------
    ImportError
        If torch and transformers aren't installed.
    OptionError
        If transformers has no linear layer of a tensor that takes units: one of another kind, or under another name.
    """

    def __init__(self, source: Source, groups: Sequence[Group], calibrate: Calibrate, execution: Execution) -> None:
        check_there(calibrate)
        modules = linear_weights(source.path, source.tensors)
        # torch's linear layers are (out, in).
        axes = {name: (0, 1) for name, axis in takers(source, groups) if axis == 1 and name in modules}
        if not axes:
            text = "a model with linear layers, of the tensors' names, that take the units, got none"
            raise OptionError(f"calibrate needs {text}; leave calibrate out, or crop it as an ONNX model")
        columns = {name: source.tensors[name].shape[1] for name in axes}
        chosen = {name: modules[name] for name in axes}
        room = execution.max_memory // 2  # the other half is for the weight
        norms, sums = (
            ModuleInputs(source.path, chosen, kind, columns, calibrate, room) for kind in (ColumnNorms, Hessian)
        )
        super().__init__(source, groups, axes, norms.of, sums.of)
