"""Commands that are run in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints import files_of


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must succeed without a word on stderr; return its stdout."""
    from modelopt_rs.cli import main  # not before a test has seen that the extra is installed

    def call(*arguments: object) -> str:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail with a code; return its one line, and see that no file changed."""
    from modelopt_rs.cli import main

    def call(code: int, *arguments: object) -> str:
        before = files_of(tmp_path)
        got = main([str(a) for a in arguments])
        _, err = capsys.readouterr()
        assert (got, err.count("\n")) == (code, 1), err
        assert err.startswith("modelopt-rs: ")
        assert files_of(tmp_path) == before
        return err.removeprefix("modelopt-rs: ").rstrip("\n")

    return call
