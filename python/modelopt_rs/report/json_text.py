"""The JSON of a report: its fields by name, in order, with `"schema": 1` first.

A later version may add fields; it raises the number if it renames, retypes or drops one. Bytes are integers, times are
seconds. A number that does not exist (the SQNR of a tensor that was not quantized) or that JSON can't hold (an infinite
SQNR: not one value changed) is null.
"""

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["to_json"]

SCHEMA = 1


def to_json(report: Any) -> str:
    """Return any report of this module as a JSON text that ends with a newline."""
    return json.dumps({"schema": SCHEMA, **_plain(report)}, indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
