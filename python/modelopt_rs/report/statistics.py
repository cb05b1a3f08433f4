"""What `calibrate_file` reports."""

from dataclasses import dataclass

from modelopt_rs.report.json_text import to_json

__all__ = ["CalibrateReport", "SeenInputs"]


@dataclass(frozen=True, slots=True)
class SeenInputs:
    """What was seen of the inputs of one weight: how many inputs it has, and how many rows of them."""

    name: str
    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class CalibrateReport:
    """What a file of statistics has; `left` are the weights that it has nothing of, each with the reason."""

    command: str
    sources: tuple[str, ...]
    output: str
    kind: str
    seconds: float
    weights: tuple[SeenInputs, ...]
    left: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """Return the report as JSON."""
        return to_json(self)
