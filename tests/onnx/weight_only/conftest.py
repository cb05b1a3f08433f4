"""Models here are converted, or their shapes inferred, many times in the same way."""

import pytest


@pytest.fixture(autouse=True)
def _apart_once(apart_once: None) -> None:
    """Ask another process once."""
