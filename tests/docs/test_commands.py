"""Every command in the documents is one that the command line takes: its name, its options, and their values."""

import re
import shlex
from pathlib import Path

import pytest

click = pytest.importorskip("click")
pytest.importorskip("rich")

from modelopt_rs.cli.app import app  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "reference" / "vocabulary.md")  # which lists former names
NAMES = "|".join(app.commands)
SPAN = re.compile(rf"`(?:modelopt-rs )?((?:{NAMES}) [^`]*)`")
OPTION = re.compile(r"`(--[a-z][a-z-]*)")
# What belongs to the examples, to pip and to others.
ELSEWHERE = {"--fix", "--help", "--memory", "--no-deps", "--offline", "--peers", "--strict", "--suite", "--version"}


def commands(text: str) -> list[str]:
    """What runs the command in blocks for a shell."""
    blocks = re.findall(r"^```sh(?: skip)?\n(.*?)^```$", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("modelopt-rs ") for line in lines if line.startswith("modelopt-rs ")]


def parse(line: str) -> None:
    """Take commands apart as the command line does, without running them."""
    for part in line.partition("  #")[0].partition(" | ")[0].split(" --then "):
        name, *rest = shlex.split(part)
        context = click.Context(app.commands[name], info_name=name)
        app.commands[name].make_parser(context).parse_args(rest)


def quoted(text: str) -> list[tuple[str, str]]:
    """Options that a sentence quotes with their command."""
    return [(span.split()[0], option) for span in SPAN.findall(text) for option in re.findall(r"--[a-z][a-z-]*", span)]


def options(name: str) -> set[str]:
    """The options of a command."""
    return {each for option in app.commands[name].params for each in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_of_a_page_are_those_of_the_command_line(page: Path) -> None:
    text = page.read_text()
    for line in commands(text):
        parse(line)
    for name, option in quoted(text):
        assert option in options(name) | {"--then", "--bits"}, f"{name} {option}"
    assert set(OPTION.findall(text)) - {each for name in app.commands for each in options(name)} - ELSEWHERE == set()


def test_the_law_sees_a_former_option_and_a_mistyped_one() -> None:
    for line in ("prune a -o b --nan raise", "quantize a -o b --bitz 4"):
        with pytest.raises(click.UsageError):
            parse(line)
    assert quoted("Use `prune --keep 2:4` or `quantize a.onnx --bits 4`") == [
        ("prune", "--keep"),
        ("quantize", "--bits"),
    ]
