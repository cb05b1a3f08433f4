"""What the ONNX examples share: models made smaller by `modelopt-rs` or onnxruntime's own tools, in a table."""

import argparse
import contextlib
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import charts
from modelopt_rs.onnx.run.pair import compare_models
from modelopt_rs.onnx.run.sessions import open_session
from modelopt_rs.planning.run import RunOptions

Feed = Mapping[str, np.ndarray]
Maker = Callable[[Path, Path], None]
Makers = dict[str, Maker]

# Titles, and what `modelopt-rs` is told; DATA is the file of inputs beside the original.
DATA = "DATA.npz"
OURS: dict[str, tuple[str, ...]] = {
    "8 bits": ("quantize", "--bits", "8"),
    "4 bits": ("quantize", "--bits", "4"),
    "2 bits": ("quantize", "--bits", "2"),
}


@dataclass
class Row:
    """One model against the original: its size, what it is good for, how far off and how fast it is."""

    title: str
    nbytes: int
    share: float  # of the original's bytes
    score: float
    cosine: float
    sqnr_db: float
    ms: float
    speedup: float  # median of original / this, of runs in turn


def stored(path: Path) -> int:
    """The bytes of a model: its file, and those that lie beside it."""
    import onnx

    found = onnx.load(path, load_external_data=False).graph.initializer
    outside = {entry.value for t in found for entry in t.external_data if entry.key == "location"}
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in outside)


@dataclass
class Task:
    """What models are measured on: inputs for figures, inputs of one run to time, the output, and what counts."""

    inputs: Feed
    one: Feed
    output: str
    score: Callable[[Path], float]
    dims: Mapping[str, int] = field(default_factory=dict)  # how many of `inputs` are run at a time


def measure(title: str, original: Path, other: Path, task: Task, args: argparse.Namespace) -> Row:
    """Run both on the same inputs."""
    options = RunOptions(inputs=task.inputs, dims=task.dims, rounds=0)
    report = compare_models(original, other, options, threads=args.threads)
    timed = compare_models(original, other, RunOptions(inputs=task.one, rounds=args.rounds), threads=args.threads)
    mine = next(found for found in report.outputs if found.name == task.output)
    size, whole = stored(other), stored(original)
    ms, speed = timed.latency_after_ms, timed.speedup
    return Row(title, size, size / whole, task.score(other), mine.cosine, mine.sqnr_db, ms, speed)


def show(rows: Sequence[Row], name: str, score: str) -> None:
    """Print the rows as a table of Markdown."""
    print(f"| {name:28} | bytes       | of it | {score:>9} | cosine  | SQNR dB | ms     | speed  |")
    print(f"| {'-' * 28} | ----------- | ----- | {'-' * 9} | ------- | ------- | ------ | ------ |")
    for r in rows:
        print(
            f"| {r.title:28} | {r.nbytes:11,} | {r.share:5.3f} | {r.score:9.4f} | {r.cosine:7.5f} | {r.sqnr_db:7.2f} "
            f"| {r.ms:6.3f} | {r.speedup:5.2f}x |",
            flush=True,
        )
    print()


def draw(rows: Sequence[Row], title: str, score: str, form: str, times: float, path: Path) -> None:
    """Draw size, worth and speed of each model; the score is written `times` what it is."""
    size, unit = (1e6, "MB") if rows[0].nbytes >= 10**6 else (1e3, "kB")
    panels = [
        charts.Panel(
            f"size, {unit}", [r.nbytes / size for r in rows], "{:.1f}" if rows[0].nbytes > 10 * size else "{:.2f}"
        ),
        charts.Panel(score, [times * r.score for r in rows], form),
        charts.Panel("times as fast", [r.speedup for r in rows], "{:.2f}"),
    ]
    titles = [r.title for r in rows]
    mine = [each for each in titles[1:] if not each.startswith("onnxruntime")]
    charts.save(charts.bars(titles, panels, title, mine), path)


def command_of(words: Sequence[str], source: Path) -> list[str]:
    """What `modelopt-rs` is told, in the folder of the original."""
    return [words[0], source.name, *(f"{source.stem}.npz" if word == DATA else word for word in words[1:])]


def ours(variants: Mapping[str, Sequence[str]] = OURS) -> Makers:
    """The models that the command line makes."""

    def maker(words: Sequence[str]) -> Maker:
        def run(source: Path, target: Path) -> None:
            command = [
                sys.executable,
                "-m",
                "modelopt_rs",
                *command_of(words, source),
                "-o",
                target.name,
                "--overwrite",
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=source.parent)

        return run

    return {title: maker(words) for title, words in variants.items()}


def peers() -> Makers:
    """The models that onnxruntime's own quantizers make."""

    def dynamic(source: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)

    def blocks(bits: int, tables: bool, source: Path, target: Path) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        config = DefaultWeightOnlyQuantConfig(
            block_size=32,
            is_symmetric=True,
            accuracy_level=4,
            bits=bits,
            op_types_to_quantize=("MatMul", "Gather") if tables else ("MatMul",),
            quant_axes=(("MatMul", 0), ("Gather", 1)),
        )
        work = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
        work.process()
        work.model.save_model_to_file(str(target))

    return {
        "onnxruntime, dynamic int8": dynamic,
        "onnxruntime, 8 bits": lambda source, target: blocks(8, False, source, target),
        "onnxruntime, 4 bits": lambda source, target: blocks(4, False, source, target),
        "onnxruntime, 4 bits, tables": lambda source, target: blocks(4, True, source, target),
        "onnxruntime, 2 bits": lambda source, target: blocks(2, False, source, target),
    }


def make(makers: Makers, source: Path, folder: Path) -> dict[str, Path]:
    """Make all of them."""
    made = {}
    for title, maker in makers.items():
        made[title] = folder / (re.sub(r"\W+", "-", title) + ".onnx")
        maker(source, made[title])
    return made


def make_peers(source: Path, folder: Path) -> dict[str, Path]:
    """Make those of others; one that can't be made or loaded is named and left out."""
    made: dict[str, Path] = {}
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's tools advise on every model
    for title, maker in peers().items():
        try:
            with contextlib.redirect_stdout(sys.stderr):
                one = make({title: maker}, source, folder)
                open_session(one[title])  # not all that is written can be loaded
                made |= one
        except Exception as e:
            print(f"{title}: {type(e).__name__}: {e}", file=sys.stderr)
    logging.getLogger().setLevel(level)
    return made


def arguments(doc: str) -> argparse.ArgumentParser:
    """The options that the examples have in common."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", help="models to measure; none: those that are made here")
    parser.add_argument("--peers", action="store_true", help="also what onnxruntime's own quantizers make")
    parser.add_argument("--no-ours", action="store_true", help="not what modelopt-rs makes")
    parser.add_argument("--out", type=Path, help="keep the original, its inputs and all models in this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the rows, as .svg or .png")
    parser.add_argument("--rounds", type=int, default=21, help="how often each is timed (default 21)")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def models(
    args: argparse.Namespace, original: Path, folder: Path, variants: Mapping[str, Sequence[str]] = OURS
) -> dict[str, Path]:
    """The models to measure: the original, and those that the arguments ask for."""
    found = {"the original": original} | {path.name: path for path in args.models}
    if not args.models and not args.no_ours:
        for title, words in variants.items():
            print(f"{title}: modelopt-rs {shlex.join(command_of(words, original))}")
        print(flush=True)
        found |= make(ours(variants), original, folder)
    if args.peers:
        found |= make_peers(original, folder)
    return found


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows, for a file."""
    return [asdict(row) for row in rows]
