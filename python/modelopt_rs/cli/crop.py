"""`modelopt-rs crop`."""

import math
import re
from collections import Counter

import click

from modelopt_rs.cli.command import Choice, Whole
from modelopt_rs.cli.onnx_options import show_onnx
from modelopt_rs.cli.options import common, dry_run, links, model, need, need_output, output, parse_share
from modelopt_rs.cli.reports import ReportPaths
from modelopt_rs.cli.run_options import checking
from modelopt_rs.cli.show import line, progress, show_plan, show_totals, show_warnings
from modelopt_rs.cli.then import Chain, then_option
from modelopt_rs.operations.crop import crop_file
from modelopt_rs.planning.crop import NONFINITE, SCOPES, WHAT
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.report.reports import CropFileReport

__all__ = ["crop", "parse_keep"]


def parse_keep(text: str) -> tuple[str, float]:
    """Return the groups and the share or number that a text such as 0.75, 8 or '*.ffn=0.5' says.

    Examples
    --------
    >>> from modelopt_rs.cli.crop import parse_keep
    >>> parse_keep("0.75"), parse_keep("75%"), parse_keep("*.heads=6")
    (('*', 0.75), ('*', 0.75), ('*.heads', 6))
    """
    groups, _, number = text.rpartition("=")
    if re.fullmatch(r"\d{1,9}(\.\d{1,17})? ?%", number, re.ASCII):
        return groups or "*", parse_share(number)
    if re.fullmatch(r"\d{1,9}", number, re.ASCII):
        return groups or "*", int(number)
    if re.fullmatch(r"\d{0,9}\.\d{1,17}", number, re.ASCII):
        return groups or "*", float(number)
    raise click.BadParameter(f"{text!r} is not a share such as 0.75, a number such as 8, or GROUPS= and one of them")


@click.command(cls=Chain, former={"--nan": "--nonfinite", "--scope local": "--scope group"})
@model
@output(required=False)
@click.option(
    "--keep",
    type=parse_keep,
    multiple=True,
    metavar="SHARE|N",
    help="What stays of each group: a share with a point (0.75; 1.0 is all), or a whole number of units, at least 5 % "
    "of them. '*.ffn=0.5' says it of some groups, before a plain one. Repeatable; the first that matches counts.",
)
@click.option(
    "--what",
    type=Choice(WHAT),
    multiple=True,
    help="What is cropped; all is heads, ffn and hidden, and channels of convolutions in ONNX models. Repeatable.",
)
@click.option(
    "--groups",
    type=click.Path(),
    metavar="JSON",
    help="Instead of --what, of a model whose structure isn't known: a file that says which axes of which tensors "
    "shrink together, and which numbers count them.",
)
@click.option(
    "--calibrate",
    type=click.Path(),
    metavar="DATA",
    help="Choose units by what they say to the layers behind them, and let what stays make up for what goes: an .npz, "
    "a directory of them, or (of a Hugging Face directory) a file of texts.",
)
@click.option(
    "--round-to",
    type=Whole(min=1),
    metavar="N",
    help="Make cropped lengths multiples of N.  [default: 8 for shares, 1 for numbers]",
)
@click.option(
    "--scope",
    type=Choice(SCOPES),
    default="group",
    show_default=True,
    help="What keeps SHARE: each group, or all groups as one.",
)
@click.option(
    "--norm",
    type=Choice(["1", "2", "inf"]),
    default="2",
    show_default=True,
    help="The importance of a unit: this norm of its weights.",
)
@click.option(
    "--nonfinite",
    type=Choice(NONFINITE),
    default="raise",
    show_default=True,
    help="Units with a NaN: refuse, or remove first.",
)
@click.option("--config", type=click.Path(), metavar="JSON", help="The config.json of a model that is a file alone.")
@then_option
@checking(calibrates=True)
@dry_run
@links
@common
def crop(
    *,
    model: str,
    output: str | None,
    keep: tuple[tuple[str, float], ...],
    what: tuple[str, ...],
    groups: str | None,
    calibrate: str | None,
    round_to: int | None,
    scope: str,
    norm: str,
    nonfinite: str,
    config: str | None,
    then: QuantizeOptions | None,
    allow_symlinks_under: str | None,
    max_memory: int,
    threads: int | None,
    dry_run: bool,
    reports: ReportPaths,
    no_verify: bool,
    overwrite: bool,
    run: RunOptions | None,
) -> None:
    """Remove the least important parts of a model: smaller matrices.

    FILE|DIR is a Hugging Face model directory or a sharded checkpoint of a
    family that is known (BERT, Llama, GPT-2, T5, BART, Mixtral, ViT, CLIP,
    Whisper and their kin ...; of others --what ffn finds layers by their
    shapes), one safetensors file with --config, or an ONNX model; OUT is the
    same. config.json gets the new sizes, so that transformers
    loads OUT. In an ONNX model, what can't be cropped is named, with the reason.
    Without training expect worse answers, with --what hidden much worse ones.

    \b
    modelopt-rs crop model/ -o small/ --keep 0.75 --what ffn
    modelopt-rs crop model/ -o small/ --keep 0.5 --what heads --what ffn
    modelopt-rs crop model/ -o small/ --keep 0.75 --what ffn --then quantize
    """  # noqa: D301
    need_output(output, dry_run)
    for option, given in (("'--keep'", keep), ("'--what' (or '--groups')", what or groups)):
        need(given, option)
    keeps = dict(keep)
    if len(keeps) < len(keep):
        raise click.UsageError("--keep must name groups once, got some twice")
    with progress("crop") as callback:
        report = crop_file(
            model,
            output or "",
            # A share alone holds for what the others don't name.
            keep=keeps["*"] if list(keeps) == ["*"] else dict(sorted(keeps.items(), key=lambda item: item[0] == "*")),
            what=what or None,
            groups=groups,
            calibrate=calibrate,
            round_to=round_to,
            scope=scope,
            norm=math.inf if norm == "inf" else int(norm),
            nonfinite=nonfinite,
            config=config,
            then=then,
            max_memory=max_memory,
            threads=threads,
            dry_run=dry_run,
            verify=not no_verify,
            overwrite=overwrite,
            run=run,
            allow_symlinks_under=allow_symlinks_under,
            progress=callback,
        )
    reports.write(report)
    show_plan(report)
    show_totals(report)
    show_warnings(report.warnings)
    _show_groups(report)
    show_onnx(report)


def _show_groups(report: CropFileReport) -> None:
    """Print how many units groups keep, alike ones in one line, and what is to be known for loading."""
    alike = Counter((group.name.rpartition(".")[2], group.units, group.kept) for group in report.groups)
    for (kind, units, kept), count in alike.items():
        line(f"kept  {kept:,} of {units:,} {kind}" + (f" in each of {count:,} layers" if count > 1 else ""))
    for key, (before, after) in (report.config or {}).items():
        if not isinstance(after, dict):
            line(f"config  {key} {'-' if before is None else before} -> {after}")
    for note in report.notes:
        line(f"note  {note}")
