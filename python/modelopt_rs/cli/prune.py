"""`modelopt-rs prune`."""

import re

import click

from modelopt_rs.cli.options import common, dry_run, model, output, quantization, selection
from modelopt_rs.cli.show import progress, show_plan, show_totals, write_report
from modelopt_rs.pipeline import QuantizeOptions, prune_file

__all__ = ["parse_keep", "prune"]


def parse_keep(text: str) -> tuple[int, int]:
    """Return the numbers that a text such as 2:4 says.

    Examples
    --------
    >>> from modelopt_rs.cli.prune import parse_keep
    >>> parse_keep("2:4")
    (2, 4)
    """
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{text!r} is not N:M such as 2:4")
    return int(match[1]), int(match[2])


@click.command()
@quantization
@selection("Quantize")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def then_quantize(
    bits: str, scheme: str, group_size: int | None, nonfinite: str, include: tuple[str, ...], exclude: tuple[str, ...]
) -> QuantizeOptions:
    """Quantize in the same pass what was pruned, and other tensors by the rules of quantize."""
    return QuantizeOptions(
        bits=int(bits), scheme=scheme, group_size=group_size, nonfinite=nonfinite, include=include, exclude=exclude
    )


class Chain(click.Command):
    """A command that ends at `--then`: what stands behind it are the name of another step and its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse both parts; the options of the second become the parameter `then`."""
        at = next((i for i, arg in enumerate(args) if arg == "--then" or arg.startswith("--then=")), len(args))
        step = _read_step(ctx, args[at:])
        rest = super().parse_args(ctx, args[:at])
        ctx.params["then"] = step
        return rest


def _read_step(ctx: click.Context, args: list[str]) -> QuantizeOptions | None:
    if not args:
        return None
    words = [*args[0].split("=", 1)[1:], *args[1:]]
    if words[:1] != ["quantize"]:
        got = repr(words[0]) if words else "nothing"
        raise click.UsageError(f"--then must be followed by quantize and its options, got {got}")
    try:
        with then_quantize.make_context("--then quantize", words[1:], parent=ctx) as context:
            options: QuantizeOptions = then_quantize.invoke(context)
    except click.UsageError as error:
        raise click.UsageError(f"after --then quantize: {error.format_message()}") from None
    return options


@click.command(cls=Chain)
@model
@output(required=False)
@click.option("--sparsity", type=float, metavar="SHARE", help="Share of weights that become zero, from 0 to 1.")
@click.option(
    "--keep",
    type=parse_keep,
    metavar="N:M",
    help="Instead: N of each M consecutive inputs stay (axis 1: of a convolution, its input channels).",
)
@click.option(
    "--scope",
    type=click.Choice(["tensor", "row", "global"]),
    default="tensor",
    show_default=True,
    help="What loses SHARE: each tensor, each of its rows, or all tensors as one.",
)
@click.option(
    "--format",
    type=click.Choice(["dense", "bitmask"]),
    default="dense",
    show_default=True,
    help="Store zeros, or a bit for each weight and those that are left.",
)
@click.option(
    "--nan",
    type=click.Choice(["raise", "largest"]),
    default="raise",
    show_default=True,
    help="NaN: refuse, or keep as larger than all numbers.",
)
@selection("Prune")
@click.option(
    "--then",
    metavar="quantize ...",
    help="Quantize in the same pass. Last: what stands behind it are options of quantize "
    "(--bits, --scheme, --group-size, --nonfinite, --include, --exclude).",
)
@dry_run
@common
def prune(
    *,
    model: str,
    output: str | None,
    sparsity: float | None,
    keep: tuple[int, int] | None,
    scope: str,
    format: str,
    nan: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    then: QuantizeOptions | None,
    max_memory: int,
    threads: int | None,
    dry_run: bool,
    report_path: str | None,
    no_verify: bool,
    overwrite: bool,
) -> None:
    """Set the smallest weights of a model to zero.

    FILE|DIR is a safetensors file, a Hugging Face model directory, or a sharded
    checkpoint; OUT is the same. Exactly SHARE of the weights goes, among equal
    ones the first. Weights of two and more axes are pruned; embeddings, the
    last head and routers are left alone unless --include names them.

    \b
    modelopt-rs prune model.safetensors -o sparse.safetensors --sparsity 0.5
    modelopt-rs prune model/ -o small/ --sparsity 0.7 --format bitmask
    modelopt-rs prune model/ -o small/ --keep 2:4 --then quantize --bits 4
    """  # noqa: D301
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output' (or --dry-run)")
    if sparsity is None and keep is None:
        raise click.UsageError("Missing option '--sparsity' or '--keep'")
    with progress("prune") as callback:
        report = prune_file(
            model,
            output or "",
            sparsity=sparsity,
            keep=keep[0] if keep else None,
            group=keep[1] if keep else None,
            scope=scope,
            format=format,
            then=then,
            nan=nan,
            include=include,
            exclude=exclude,
            max_memory=max_memory,
            threads=threads,
            dry_run=dry_run,
            verify=not no_verify,
            overwrite=overwrite,
            progress=callback,
        )
    write_report(report_path, report.to_json())
    show_plan(report)
    show_totals(report)
