"""The options of all commands as a table: `python tests/shared/commands.py` writes the page."""

from pathlib import Path

import click

from modelopt_rs.cli.app import app
from modelopt_rs.cli.command import group_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "options.md"
TITLES = {"Options": "What is done", "ONNX models only": "ONNX models only", "Output": "Output", "Running": "Running"}

HEAD = """# Options of all commands

What a command does where an option is not given. `not set`: nothing; `no`: a switch is off; `see help`: it depends on
other options, and the command's `--help` says how. An empty cell: there is no such option.
"""


def options() -> dict[str, dict[str, dict[str, str]]]:
    """The default of each option by command, by group of options and option."""
    found: dict[str, dict[str, dict[str, str]]] = {title: {} for title in TITLES}
    for command in app.commands.values():
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden and option.opts[-1] != "--help":
                name = max(option.opts, key=len)
                found[group_of(option)].setdefault(name, {})[str(command.name)] = default_of(option)
    return found


def default_of(option: click.Option) -> str:
    """What an option is where it is not given."""
    value = option.to_info_dict()["default"]
    if "[default: " in (option.help or ""):
        return "see help"
    if option.is_flag:
        return "no"
    return "" if value is None or value == () else str(value)


def page() -> str:
    """The page."""
    commands = [str(name) for name in app.commands]
    lines = [*HEAD.splitlines(), ""]
    for title, rows in options().items():
        users = [name for name in commands if any(name in row for row in rows.values())]
        lines += [f"## {TITLES[title]}", "", f"| option | {' | '.join(users)} |", f"| --- |{' --- |' * len(users)}"]
        for name, row in sorted(rows.items()):
            cells = [row.get(user, " ") or "not set" for user in users]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
