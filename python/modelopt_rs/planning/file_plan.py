"""What an operation has decided about a model file, before anything is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelopt_rs.stream.model import Sink, Source
from modelopt_rs.stream.transform import Transform

__all__ = ["FilePlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """All that is written of a model, and what is reported of it.

    Attributes
    ----------
    view : Source
        The model as its tensors are read.
    transforms : mapping of str to Transform
        What becomes of each tensor of the view that is not dropped.
    report : callable
        Makes the report, given the seconds that all took; called after everything is written.
    origins : mapping of str to str
        The tensor of the stored model in whose place a tensor of the view stands, where it has another name.
    metadata : mapping of str to str
        What is added to the file's own.
    quantization_config : mapping or None
        What `config.json` says of how weights are stored; None: nothing.
    config : mapping, optional
        The new `config.json` without it; by default the model's own.
    check : callable, optional
        Looks at what is written before it is put in place, and may refuse it.
    """

    view: Source
    transforms: Mapping[str, Transform]
    report: Callable[[float], Any]
    origins: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    quantization_config: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    check: Callable[[Sink], None] | None = None
