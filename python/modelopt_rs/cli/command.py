"""Commands whose help shows examples first and options in groups, that take former names, and say what was meant."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import click

from modelopt_rs.deprecated import REMOVED_IN

__all__ = ["Choice", "Command", "Group", "Whole", "group_of"]

GROUPS: Final[Mapping[str, frozenset[str]]] = {
    "Output": frozenset({"--output", "--overwrite", "--no-verify", "--dry-run", "--json", "--report"}),
    "Running": frozenset({"--threads", "--max-memory", "--debug", "--help", "--version"}),
}
if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # no generic before click 8.2
    _Choice = click.Choice

ONNX, OWN = "ONNX models only", "Options"
STANDARD_OUTPUT: Final = "json_path"
"""The one file of a command that may be standard output, called `-`."""
MARK: Final = "ONNX: "
"""What the help of an option begins with that only ONNX models have."""


def group_of(option: click.Parameter) -> str:
    """Name the group that an option stands in."""
    if (getattr(option, "help", None) or "").startswith(MARK):
        return ONNX
    return next((title for title, names in GROUPS.items() if not names.isdisjoint(option.opts)), OWN)


def closest(text: str, known: Sequence[str]) -> str:
    """Say what was meant, where that is clear.

    Examples
    --------
    >>> from modelopt_rs.cli.command import closest
    >>> closest("quantise", ["prune", "quantize"])
    '; did you mean quantize?'
    """
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "."


class Choice(_Choice):
    """One of some words; of others it says which was meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            text = error.message.rstrip(".") + closest(str(value), list(map(str, self.choices)))
            raise click.BadParameter(text, ctx, param) from None


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class Command(click.Command):
    """A command of `modelopt-rs`.

    Parameters
    ----------
    former : mapping
        Former options: what they are now, alone ("--keep": "--n-of-m") or with
        a value ("--scope local": "--scope group").
    """

    def __init__(self, *args: Any, former: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._former = dict(former or {})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments, former ones too; those are said on stderr."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        made = self._today(args)
        self._check_files(ctx, made)
        try:
            rest = super().parse_args(ctx, made)
        except click.NoSuchOption as error:
            raise click.NoSuchOption(error.option_name, self._unknown(ctx, error.option_name), ctx=ctx) from None
        self._check_names(ctx)
        return rest

    def _unknown(self, ctx: click.Context, option: str) -> str:
        """Say of an option that this command has not which it might be, or which commands have it."""
        # What stands behind --then is no command of its own.
        commands = getattr(ctx.parent and ctx.parent.command, "commands", {})
        having = [name for name, each in commands.items() if option in _names(each)]
        if having:
            verb = "has" if len(having) == 1 else "have"
            return f"No such option '{option}' of {ctx.info_name}: {', '.join(having)} {verb} it"
        return f"No such option '{option}'{closest(option, [each for each in _names(self) if each != '--help'])}"

    def _check_files(self, ctx: click.Context, args: Sequence[str]) -> None:
        """Refuse `--json --no-run`: click takes the second option for the name of a file."""
        known = {name: param for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        for arg, value in pairwise(args):
            if arg == "--":
                return
            param = known.get(arg) if arg.startswith("-") else None
            if param is not None and isinstance(param.type, click.Path) and value.startswith("-") and value in known:
                raise click.BadParameter(f"{value!r} is an option; a file of that name is ./{value}", ctx, param)

    def _check_names(self, ctx: click.Context) -> None:
        """Refuse the names of no file, and `-`, which stands for standard output in --json alone."""
        for param in self.get_params(ctx):
            given = ctx.params.get(str(param.name)) if isinstance(param.type, click.Path) else None
            names = given if isinstance(given, tuple) else (given,)
            if "" in names:
                raise click.BadParameter("'' names no file", ctx, param)
            if "-" in names and param.name != STANDARD_OUTPUT:
                text = "'-' is no file: only --json FILE may be standard output; a file of that name is ./-"
                raise click.BadParameter(text, ctx, param)

    def _today(self, args: list[str]) -> list[str]:
        made = [part for arg in args for part in self._split(arg)]
        for old, new in self._former.items():
            before, after = old.split(), new.split()
            for i in range(len(made) - len(before) + 1):
                if made[i : i + len(before)] == before:
                    made[i : i + len(before)] = after
                    text = f"modelopt-rs: warning: {old} is now {new}; the old form is gone in version {REMOVED_IN}"
                    click.echo(text, err=True)
        return made

    def _split(self, arg: str) -> list[str]:
        """Take a former option apart from its value."""
        name, equals, value = arg.partition("=")
        return [name, value] if equals and any(old.split()[0] == name for old in self._former) else [arg]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then what the command does."""
        text, examples = _split_help(inspect.cleandoc(self.help or ""))
        if examples:
            with formatter.section("Examples"):
                for line in examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group."""
        _write_groups(self, ctx, formatter)


def _names(command: click.Command) -> list[str]:
    return [name for param in command.params for name in (*param.opts, *param.secondary_opts) if name[:2] == "--"]


class Group(click.Group):
    """The commands; of other words it says which was meant."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with the whole of its first sentence."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=1000)) for name, each in commands if each])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = closest(args[0], self.list_commands(ctx)).replace(".", "; see modelopt-rs --help")
            raise click.UsageError(f"No such command {args[0]!r}{near}", ctx)
        return super().resolve_command(ctx, args)


def _split_help(text: str) -> tuple[str, list[str]]:
    """Return the text of a help and its examples: the last part, which is marked not to be wrapped."""
    before, mark, last = text.rpartition("\b\n")
    if not mark or not last.lstrip().startswith("modelopt-rs"):
        return text, []
    return before.rstrip(), [line.strip() for line in last.strip().splitlines()]


def _write_groups(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (OWN, ONNX, *GROUPS)}
    for option in command.get_params(ctx):
        record = option.get_help_record(ctx)
        if record is not None and isinstance(option, click.Option):
            text = record[1]
            if text.startswith(MARK):
                text = text[len(MARK)].upper() + text[len(MARK) + 1 :]
            rows[group_of(option)].append((record[0], text))
    for title, records in rows.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)
