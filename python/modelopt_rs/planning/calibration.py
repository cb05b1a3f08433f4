"""Calibration data, and inputs of a run, as users give them: of ONNX models and of Hugging Face directories."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

__all__ = ["Calibrate", "check_there", "repeatable", "said"]

Calibrate: TypeAlias = str | PathLike[str] | Mapping[str, Any] | Iterable[Any] | Callable[[], Any]
"""Where calibration data come from: a file or directory, arrays by input, samples, or what returns them."""

Data = TypeVar("Data")


def said(data: Calibrate) -> str:
    """Return where calibration data come from, as a report says it."""
    return str(data) if isinstance(data, (str, PathLike)) else type(data).__name__


def check_there(data: Calibrate | None) -> None:
    """Refuse data of which the path is wrong: before a framework is imported to run on them, which takes a while.

    Raises
    ------
    OSError
        If there is nothing at their path.
    """
    if isinstance(data, (str, PathLike)):
        Path(data).stat()


def repeatable(data: Data) -> Data | list[Any]:
    """Return the same data, of an iterator in a list: models are run on them more than once."""
    return list(data) if isinstance(data, Iterator) else data
