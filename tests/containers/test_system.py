"""Where the system lacks what Linux has, the package imports, reads and writes all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelopt_rs.containers import system

SCRIPT = Path(__file__).parents[1] / "shared" / "absent.py"


@pytest.mark.parametrize("like", ["linux", "macos", "windows"])
def test_every_operation_works_without_what_only_linux_has(like: str, tmp_path: Path) -> None:
    """In a process in which those functions and modules are gone before the package is imported."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), like, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all done"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_link_on_the_way_is_refused_where_the_system_can_not_refuse_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("folder")
    fd = system.open_beneath(tmp_path, ["folder", "file"])
    assert system.read_place(fd, 9, 0) == b"x"
    os.close(fd)
    with pytest.raises(OSError, match=r"[Tt]oo many|[Nn]ot a directory"):
        system.open_beneath(tmp_path, ["link", "file"])


def test_the_only_module_that_asks_what_the_system_has() -> None:
    """`O_TMPFILE`, locks, reads at a place and the like are named in one module."""
    package = Path(system.__file__).parents[1]
    words = (
        "fcntl.",
        "O_TMPFILE",
        "os.preadv",
        "os.pread",
        "os.pwrite",
        "os.statvfs",
        "posix_fadvise",
        "fchown",
        "dir_fd",
    )
    found = [
        (path.name, word)
        for path in package.rglob("*.py")
        for word in words
        if path.name != "system.py" and any(f"{word}" in line for line in code_of(path))
    ]
    assert found == []


def code_of(path: Path) -> list[str]:
    """Lines without comments and docstrings, near enough."""
    return [line for line in path.read_text().splitlines() if "os." in line or "fcntl." in line or "dir_fd" in line]
