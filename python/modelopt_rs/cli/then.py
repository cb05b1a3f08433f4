"""`--then quantize ...`: a second step in the same pass, with options of its own."""

import click

from modelopt_rs.cli.command import Command
from modelopt_rs.cli.options import SEARCHES, quantization, read_bits_of, selection
from modelopt_rs.planning.quantize import QuantizeOptions

__all__ = ["Chain", "then_option"]

then_option = click.option(
    "--then",
    metavar="quantize ...",
    help="Quantize in the same pass. Last: what stands behind it are options of quantize "
    "(--bits, --bits-of, --scheme, --group-size, --search, --norm, --scale-dtype, --format, --nonfinite, "
    "--only-dequantize, --include, --exclude).",
)


@click.command(cls=Command)
@quantization
@selection("Quantize")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def then_quantize(
    bits: str,
    scheme: str | None,
    group_size: int | None,
    nonfinite: str,
    only_dequantize: bool,
    format: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    bits_of: tuple[str, ...],
    search: str,
    norm: float | None,
    scale_dtype: str | None,
) -> QuantizeOptions:
    """Quantize in the same pass what is left, and other tensors by the rules of quantize."""
    return QuantizeOptions(
        bits=int(bits),
        scheme=scheme,
        group_size=group_size,
        nonfinite=nonfinite,
        format=format,
        only_dequantize=only_dequantize,
        include=include,
        exclude=exclude,
        bits_of=read_bits_of(bits_of),
        search=SEARCHES[search],
        scale_dtype=scale_dtype,
        norm=norm,
    )


class Chain(Command):
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
    except click.NoSuchOption as error:
        # What the first step has, and the second has not, holds for both and stands before.
        known = any(error.option_name in parameter.opts for parameter in ctx.command.params)
        fix = f"; {error.option_name} must stand before --then" if known else ""
        text = error.format_message()
        raise click.UsageError(f"after --then quantize: {text.rstrip('.') + fix if fix else text}") from None
    except click.UsageError as error:
        raise click.UsageError(f"after --then quantize: {error.format_message()}") from None
    return options
