"""Which weights of a Hugging Face directory are rounded by what goes into their layers, and what is known of it."""

from modelopt_rs.errors import OptionError
from modelopt_rs.operations.module_factors import AWQ_FAMILIES
from modelopt_rs.operations.module_inputs import ModuleInputs, can_run, linear_weights
from modelopt_rs.planning.by_inputs import KnownInputs, statistics_kind
from modelopt_rs.planning.calibration import Calibrate, check_there
from modelopt_rs.planning.families import CONV1D, is_conv1d, model_types
from modelopt_rs.planning.statistics import StatisticsFile
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source

__all__ = ["known_modules", "unseen_modules"]

AWQ = "method must be 'gptq' for this model, got 'awq': only of {known} it is known what makes the inputs of layers"
CONV1D_GROUPS = f"{CONV1D}, so scales lie along its outputs, and inputs don't say how to round it"
NO_LAYER = "no linear layer that transformers runs under the name of a tensor"
NOT_LINEAR = "no linear layer that transformers runs: what goes into it isn't seen"


def known_modules(
    source: Source,
    method: str | None,
    calibrate: Calibrate | None,
    execution: Execution,
    statistics: StatisticsFile | None = None,
) -> KnownInputs:
    """Return what is known of the inputs of linear layers, as transformers runs the float model on samples.

    Of a file (`statistics`) what it says of the inputs of matrices; then nothing is run.

    Raises
    ------
    OptionError
        If the model is tensors alone.
    ImportError
        If torch and transformers aren't installed.
    """
    if method == "awq" and not model_types(source.config or {}) & set(AWQ_FAMILIES):
        raise OptionError(AWQ.format(known=", ".join(AWQ_FAMILIES)))
    if statistics is not None:
        columns = {name: info.shape[1] for name, info in source.tensors.items() if len(info.shape) == 2}
        unseen: dict[str, str | None] = dict.fromkeys(source.tensors, "no matrix")
        unseen |= statistics.check(columns, method)
        return KnownInputs(method, unseen, None if execution.dry_run else statistics)
    assert calibrate is not None
    if not can_run(source):
        fix = "give its Hugging Face directory, or quantize it as an ONNX model"
        raise OptionError(f"method must be left out for a model that is tensors alone, got {method!r}; {fix}")
    check_there(calibrate)
    modules = linear_weights(source.path, source.tensors)
    config = source.config or {}
    unseen = {name: CONV1D_GROUPS if is_conv1d(name, config) else NOT_LINEAR for name in source.tensors}
    unseen |= dict.fromkeys(modules)
    seen = None
    if modules and not execution.dry_run:
        columns = {name: source.tensors[name].shape[1] for name in modules}
        kind, room = statistics_kind(method), execution.max_memory // 2  # the other half is for the weight
        seen = ModuleInputs(source.path, modules, kind, columns, calibrate, room)
    known = KnownInputs(method, unseen, seen)
    known.fix = "leave it out, or quantize it as an ONNX model"
    return known


def unseen_modules(source: Source, method: str) -> dict[str, str]:
    """Return why weights of a Hugging Face directory can't be pruned by what goes into them.

    Raises
    ------
    OptionError
        If the model is tensors alone, or none of its weights can be pruned so.
    ImportError
        If torch and transformers aren't installed.
    """
    if not can_run(source):
        fix = "give its Hugging Face directory, or prune it as an ONNX model"
        got = f"got {method!r}: nothing runs it; {fix}"
        raise OptionError(f"method must be 'magnitude' for a model that is tensors alone, {got}")
    modules = linear_weights(source.path, source.tensors)
    if not modules:
        fix = "or prune it as an ONNX model"
        raise OptionError(f"method must be 'magnitude' for a model that has {NO_LAYER}, got {method!r}; {fix}")
    return {name: NOT_LINEAR for name in source.tensors if name not in modules}
