"""JSON of untrusted files: one way to read it, or an error."""

import json
from typing import Any

from modelopt_rs._core import FormatError
from modelopt_rs.errors import quote

__all__ = ["parse_object"]


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise FormatError(f"key {quote(key)} stands twice")
            seen.add(key)
    return result


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the JSON object `text`; `where` names it in the error.

    Raises
    ------
    FormatError
        If it is not JSON, not an object, nests too deep, or has a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_no_twins)
    except FormatError as e:
        raise FormatError(f"{where}: {e}") from None
    except RecursionError:
        raise FormatError(f"{where}: nests too deep") from None
    except ValueError as e:
        # json.JSONDecodeError, UnicodeDecodeError, or a number of too many digits: each says where.
        raise FormatError(f"{where}: not valid JSON: {str(e)[:128]}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: must be a JSON object")
    return value
