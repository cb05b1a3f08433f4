"""How an ONNX model is run against another one: on which inputs, how often, and how far off it may be."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelopt_rs._types import Array
from modelopt_rs.errors import OptionError
from modelopt_rs.stream.model import Source

__all__ = ["DEFAULT_RUN", "RunOptions", "check_not_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """On which inputs two models are run, and how.

    Parameters
    ----------
    inputs : path or mapping, optional
        The inputs by name, as arrays or in a file of NumPy (.npz). By default they are generated from the graph.
    dims : mapping
        Lengths of axes that the graph leaves open: by the axis's name (``{"batch": 8}``) or, also where it has none,
        by input and axis (``{"pixels:2": 224}``). Inputs that are given are cut into runs of this length along
        their first axis. By default a generated axis is 1 long; 16 where its name has "seq", "len", "token" or
        "time"; 224 for "height" and "width"; 0 for "past".
    samples : int
        How many inputs are generated.
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

    inputs: str | os.PathLike[str] | Mapping[str, Array] | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    samples: int = 1
    max_error: float | None = None
    rounds: int = 11
    memory: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("rounds", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name, length in self.dims.items():
            if length < 0:
                raise OptionError(f"dims: {name} must be 0 or more, got {length}")
        if self.max_error is not None and not (self.max_error >= 0.0 and math.isfinite(self.max_error)):
            raise OptionError(f"max_error must be a finite number of 0 or more, got {self.max_error}")


DEFAULT_RUN = RunOptions()
"""Generated inputs, timed, and no limit to errors."""

_OPTIONS = "(--inputs, --dim, --max-error and others)"


def check_not_run(source: Source, run: RunOptions | None) -> None:
    """Refuse to be told how a model is run that is no ONNX model."""
    if run is not None and run != DEFAULT_RUN:
        raise OptionError(
            f"run {_OPTIONS} must be left out for a model that is no ONNX model, got it for {source.path}"
        )
