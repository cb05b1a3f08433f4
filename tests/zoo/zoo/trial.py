"""A model through the commands, and what must hold of each."""

import contextlib
import io
import json
import math
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# By the column of the table: the command and its options. INPUTS is the directory of samples.
INPUTS = "INPUTS"
COMMANDS: dict[str, tuple[str, ...]] = {
    "8": ("quantize",),
    "4": ("quantize", "--bits", "4"),
    "2": ("quantize", "--bits", "2"),
    "dynamic": ("quantize", "--activations", "dynamic"),
    "static": ("quantize", "--calibrate", INPUTS),
    "prune": ("prune", "--sparsity", "0.5"),
    "2:4": ("prune", "--n-of-m", "2:4"),
    "crop": ("crop", "--keep", "0.75", "--what", "all"),
}
DIRECTORY = ("8", "4", "2", "prune", "2:4", "crop")
CROP_OF_DIRECTORY = ("crop", "--keep", "0.75", "--what", "ffn")
# The least SQNR of the worst output in decibels, with random weights and inputs.
FLOORS = {"8": 25.0, "4": 6.0, "2": 0.0, "dynamic": 15.0, "static": 10.0}
# How a summary says what has left weights written all the same that it left alone.
ADVICE = ("--include", "only_dequantize", "quantized already")
PROGRESS = re.compile(r"^\w+: \d+ % of [\d,]+ bytes$", re.MULTILINE)
WARNED = ("2",)  # below its floor where the report says that layers are far off

Outputs = list[dict[str, np.ndarray]]


@dataclass
class Result:
    """What came of a command. `problems` are the laws that it broke."""

    name: str
    library: str
    form: str
    command: str
    code: int = 0
    before: int = 0
    after: int = 0
    changed: int = 0
    sqnr_db: float | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    figure: float | None = None  # of a trained model's task

    def line(self) -> str:
        return json.dumps(asdict(self))


def size(path: Path) -> int:
    """The bytes of a file or of all in a directory."""
    return sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else path.stat().st_size


def strings(value: Any) -> Iterator[str]:
    """All texts of a report."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def run_command(arguments: list[str], report: Path) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code, what it printed, and its errors."""
    from modelopt_rs.cli.app import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run([*arguments, "--json", str(report)])
        except BaseException:
            code = 70
            traceback.print_exc(file=err)
    return code, out.getvalue(), err.getvalue()


def sqnr(known: Outputs, found: Outputs) -> float | None:
    """The least SQNR over the outputs that are floats and whose shapes do not depend on values; None if none is."""
    least: float | None = None
    for name in known[0]:
        pairs = [(a[name], b[name]) for a, b in zip(known, found, strict=True)]
        if known[0][name].dtype.kind != "f" or any(a.shape != b.shape for a, b in pairs):
            continue
        a, b = (np.concatenate([each.ravel().astype(np.float64) for each in side]) for side in zip(*pairs, strict=True))
        if not np.isfinite(a).all() or not (power := float((a * a).sum())):
            continue
        noise = float(((a - b) ** 2).sum())
        db = math.inf if noise == 0 else 10 * math.log10(power / noise) if math.isfinite(noise) else -math.inf
        least = db if least is None else min(least, db)
    return least


class Trial:
    """One model, its answers, and a command after the other."""

    def __init__(
        self,
        made: Any,
        folder: Path,
        answers: Callable[[Path], Outputs],
        measure: Callable[[Path], float] | None = None,
    ) -> None:
        self.made, self.folder, self.answers, self.measure = made, folder, answers, measure
        self.source = Path(made.path)
        self.known = answers(self.source)
        self.sizes: dict[str, int] = {}

    def commands(self) -> dict[str, tuple[str, ...]]:
        """Return the commands that there are for the form of the model."""
        if self.made.form in ("saved", "weights"):
            found = {name: COMMANDS[name] for name in DIRECTORY}
            found["crop"] = CROP_OF_DIRECTORY
            if self.made.form == "weights":
                del found["crop"]  # without a configuration nobody knows the structure
                # A file alone has no loader but ours.
                found |= {name: (*found[name], "--only-dequantize") for name in ("8", "4", "2")}
            return found
        return COMMANDS

    def __call__(self, name: str) -> Result:
        """Run a command and look at all that it must hold."""
        made, arguments = self.made, self.commands()[name]
        result = Result(made.name, made.library, made.form, name, before=size(self.source))
        self.folder.mkdir(parents=True, exist_ok=True)
        suffix = "" if self.source.is_dir() else self.source.suffix
        out, report = self.folder / f"{name.replace(':', '-')}{suffix}", self.folder / "report.json"
        _remove(out)
        given = [made.inputs if each == INPUTS else each for each in arguments]
        start = time.perf_counter()
        result.code, printed, errors = run_command([given[0], str(self.source), "-o", str(out), *given[1:]], report)
        result.seconds = time.perf_counter() - start
        if result.code:
            result.problems.append(f"exit {result.code}: {errors.strip()[-600:]}")
            return result
        said = json.loads(report.read_text())
        result.after = size(out)
        result.changed = said["totals"]["changed"]
        result.notes = [each.removeprefix("note  ") for each in printed.splitlines() if each.startswith("note  ")]
        known = set(strings(said))
        result.problems += [f"not in the report: {each}" for each in result.notes if each not in known]
        if errors := PROGRESS.sub("", errors).strip():
            result.problems.append(f"printed on stderr: {errors[-300:]}")
        self._sized(result, printed)
        self._answers(result, out)
        if self.measure is not None and not any(each.startswith("is not loaded") for each in result.problems):
            self._measured(result, out)
        _remove(out)
        return result

    def _measured(self, result: Result, out: Path) -> None:
        """The task's figure is within what the number of bits may cost, or the report says what cost it."""
        assert self.measure is not None
        result.figure = self.measure(out)
        loss = 100 - result.figure
        if result.command == "8" and loss > 0.5:
            result.problems.append(f"{loss:.2f} points lost at 8 bits")
        if result.command == "4" and loss > 2 and not any("at 8 bits" in each for each in result.notes):
            result.problems.append(f"{loss:.2f} points lost at 4 bits without a word")

    def _sized(self, result: Result, printed: str) -> None:
        """Smaller than the source, and with fewer bits not larger than with more.

        What nothing could be done to is no larger, and its summary says why and which option would.
        """
        name, before, after = result.command, result.before, result.after
        advised = not result.changed and any(each in printed for each in ADVICE)
        self.sizes[name] = after
        if name in ("prune", "2:4"):
            # Zeros take the bytes that numbers took; what the file says of itself may differ a little.
            if after > before + 1024:
                result.problems.append(f"larger: {before:,} -> {after:,} bytes")
        elif after > before or (after == before and not advised):
            result.problems.append(f"not smaller: {before:,} -> {after:,} bytes, {result.changed} tensors changed")
        more = {"4": "8", "2": "4"}.get(name, "")
        if more in self.sizes and after > self.sizes[more]:
            result.problems.append(f"larger than with {more} bits: {self.sizes[more]:,} -> {after:,} bytes")

    def _answers(self, result: Result, out: Path) -> None:
        """It is loaded, answers with as many numbers, finite ones, near those of the source."""
        try:
            found = self.answers(out)
        except Exception as error:
            result.problems.append(f"is not loaded: {type(error).__name__}: {str(error)[:300]}")
            return
        result.sqnr_db = sqnr(self.known, found)
        for a, b in zip(self.known, found, strict=True):
            bad = [
                name
                for name in a
                if a[name].dtype.kind == "f" and np.isfinite(a[name]).all() > np.isfinite(b[name]).all()
            ]
            if bad:
                result.problems.append(f"not finite: {', '.join(bad)}")
                return
        floor = FLOORS.get(result.command, -math.inf)
        warned = result.command in WARNED and any("off" in each for each in result.notes)
        if result.sqnr_db is not None and result.sqnr_db < floor and not warned and not self.made.ranked:
            result.problems.append(f"{result.sqnr_db:.1f} dB, under {floor:g}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        for each in path.parent.glob(f"{path.name}*"):
            each.unlink()
