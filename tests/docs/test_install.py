"""The extras are those of pyproject.toml, wherever they are listed for users."""

import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("click")

from modelopt_rs.cli.info import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OURS = {"test", "interop", "bench"}  # for those who change it


def brought(extra: str) -> set[str]:
    """The packages that an extra brings, without their versions and without extras of ours."""
    return {re.split(r"[^\w.-]", each)[0] for each in PROJECT[extra] if not each.startswith("modelopt_rs[")}


def test_info_names_the_packages_of_each_extra() -> None:
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == {extra: brought(extra) for extra in EXTRAS}
    assert set(EXTRAS) == set(PROJECT) - OURS - {"demo"}


def test_the_page_lists_all_extras_with_what_they_bring() -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]+) \|", page, re.M))
    assert {extra: set(packages.split(", ")) for extra, packages in rows.items()} == {
        extra: brought(extra) for extra in set(PROJECT) - OURS
    }
