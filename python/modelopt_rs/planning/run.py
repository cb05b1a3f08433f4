"""How an ONNX model is run against another one: on which inputs, how often, and how far off it may be."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from modelopt_rs.arguments import check_fields
from modelopt_rs.errors import OptionError
from modelopt_rs.planning.calibration import Calibrate
from modelopt_rs.stream.model import Source

__all__ = ["DEFAULT_RUN", "RunOptions", "check_not_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """On which inputs two models are run, and how.

    Parameters
    ----------
    inputs : path, mapping, array, iterable or callable, optional
        The inputs by name, as arrays or in a file of NumPy (.npz); a directory of such files; an iterable of mappings,
        or what returns one; of a model with one input also an array, or a file of one (.npy). By default they are the
        samples that activations are calibrated with, or made up from the graph: a smoke test, no measure.
    dims : mapping
        Lengths of axes that the graph leaves open: by the axis's name (``{"batch": 8}``) or, also where it has none,
        by input and axis (``{"pixels:2": 224}``). Inputs that are given are cut into runs of this length along
        their batch. By default an axis that is made up has several lengths in turn: at first 1; 16 where its name has
        "seq", "len", "token" or "time"; 224 for "height" and "width"; then others, until the model runs, and larger
        ones. A batch is 1 long, and 0 what is called "past".
    samples : int
        How many inputs of a size are made up.
    max_error : float, optional
        The most that any output may be off.
    rounds : int
        How often both are timed; 0: not at all.
    memory : bool
        Whether the peak memory of each is measured too, in a process of its own.
    seed : int
        Of what is generated.

    Raises
    ------
    OptionError
        If an option has a wrong value.

    Examples
    --------
    >>> from modelopt_rs.planning.run import RunOptions
    >>> RunOptions(dims={"batch": 8}).rounds
    11
    """

    inputs: Calibrate | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    samples: int = 1
    max_error: float | None = None
    rounds: int = 11
    memory: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        """Show what is not the default."""
        values = [(each.name, getattr(self, each.name), each) for each in fields(self)]
        other = [f"{name}={value!r}" for name, value, each in values if not _is_default(value, each)]
        return f"RunOptions({', '.join(other)})"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("samples", 1), ("rounds", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name, length in self.dims.items():
            if length < 0:
                raise OptionError(f"dims: {name} must be 0 or more, got {length}")
        if self.max_error is not None and not (self.max_error >= 0.0 and math.isfinite(self.max_error)):
            raise OptionError(f"max_error must be a finite number of 0 or more, got {self.max_error}")


def _is_default(value: Any, of: "Field[Any]") -> bool:
    default = of.default_factory() if of.default_factory is not MISSING else of.default
    return type(value) is type(default) and bool(value == default)


DEFAULT_RUN = RunOptions()
"""Inputs that are made up, timed, and no limit to errors."""

_OPTIONS = "(--inputs, --dim, --max-error and others)"


def check_not_run(source: Source, run: RunOptions | None) -> None:
    """Refuse to be told how a model is run that is no ONNX model."""
    if run is not None and (run.inputs is not None or run != DEFAULT_RUN):  # arrays can't be compared so
        raise OptionError(
            f"run {_OPTIONS} must be left out for a model that is no ONNX model, got it for {source.path}"
        )
