"""What a process of its own answers is asked once for the same bytes: processes take longer than the tests."""

from functools import cache

import pytest


@pytest.fixture
def apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions and shapes by the library onnx; what it refuses is asked again (`test_opset.py` tests all of it)."""
    for module in ("opset", "crop.shapes"):
        monkeypatch.setattr(f"modelopt_rs.onnx.{module}.call_apart", remembered())


@cache
def remembered() -> object:
    pytest.importorskip("onnx")
    from modelopt_rs.onnx.child_process import call_apart

    return cache(call_apart)
