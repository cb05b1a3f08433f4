"""`python -m zoo`: models through the commands, a line of results after each, and the table at the end."""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
SECONDS = 600  # for a model and all of its commands


def in_process(work: Callable[..., None], *arguments: Any) -> str:
    """Run in a process of its own, which may die or hang; return how it ended, '' where well."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return f"longer than {SECONDS} s"
    return "" if process.exitcode == 0 else f"ended with {process.exitcode}"


def export(structure: Any, index: int, folder: Path, form: str, lines: Path) -> None:
    """Make the files of a structure; what can't be made is a line."""
    from zoo.export import write

    quiet(folder)
    try:
        write(structure, index, folder / "models", form)
    except Exception as error:
        told = str(error).strip().splitlines() or [""]
        append(
            lines, {"name": structure.name, "library": structure.library, "form": form, "unmade": f"{told[0][:200]}"}
        )


def trial(made: Any, folder: Path, lines: Path, only: list[str]) -> None:
    """All commands on a model."""
    from zoo import loaders
    from zoo.trial import Result, Trial

    quiet(folder)
    reader = {
        "saved": lambda: loaders.transformers(made.name, Path(made.inputs)),
        "weights": lambda: loaders.ourselves,
    }.get(made.form, lambda: loaders.onnxruntime(Path(made.inputs)))()
    try:
        one = Trial(made, folder / "out" / made.name / made.form, reader)
    except Exception as error:  # the source itself
        why = f"{type(error).__name__}: {str(error)[:200]}"
        append(lines, {"name": made.name, "library": made.library, "form": made.form, "unmade": f"does not run: {why}"})
        return
    for command in one.commands():
        if only and command not in only:
            continue
        append(lines, {"name": made.name, "library": made.library, "form": made.form, "begun": command})
        result: Result = one(command)
        append(lines, json.loads(result.line()) | {"opset": made.opset, "open": made.open, "note": made.note})


def quiet(folder: Path) -> None:
    """What libraries write to the terminal goes to a file."""
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.nice(5)


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def forms(structure: Any) -> list[str]:
    return [*structure.exporters, "saved" if structure.saved else "weights"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="zoo", description=__doc__)
    parser.add_argument("filters", nargs="*", default=["*"], help="globs of LIBRARY/NAME/FORM; all by default")
    parser.add_argument("--folder", type=Path, default=Path("target/zoo"), help="where models are kept")
    parser.add_argument("--table", type=Path, help="where the table is written (docs/zoo.md)")
    parser.add_argument("--commands", nargs="*", default=[], help="only these columns")
    parser.add_argument("--libraries", nargs="*", default=["torchvision", "timm", "transformers"])
    parser.add_argument("--export-only", action="store_true")
    parser.add_argument("--resume", action="store_true", help="leave out what the lines of results have")
    parser.add_argument("--lines", type=Path, help="the file of results (FOLDER/results.jsonl)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lines = arguments.lines or arguments.folder / "results.jsonl"
    if not arguments.resume:
        lines.unlink(missing_ok=True)
    walk(arguments, lines)
    return 0


def walk(arguments: argparse.Namespace, lines: Path) -> None:
    import compressed_tensors  # noqa: F401  imported once, for all processes
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import torch

    import modelopt_rs.cli.app  # noqa: F401
    from zoo.export import Made
    from zoo.structures import load

    torch.set_num_threads(1)
    found = load(tuple(arguments.libraries))
    done = {(e["name"], e["form"]) for e in read(lines)} if lines.exists() else set()
    for index, structure in enumerate(found.values()):
        for form in forms(structure):
            name = f"{structure.library}/{structure.name}/{form}"
            if (structure.name, form) in done or not any(fnmatch(name, f"*{each}*") for each in arguments.filters):
                continue
            start = time.perf_counter()
            ended = in_process(export, structure, index, arguments.folder, form, lines)
            known = arguments.folder / "models" / structure.name / f"{form}.json"
            if not known.exists():
                print(f"{name}: not made {ended}", flush=True)
                continue
            made = Made(**json.loads(known.read_text()))
            exported = time.perf_counter() - start
            if not arguments.export_only:
                ended = in_process(trial, made, arguments.folder, lines, arguments.commands)
                told(lines, made, ended)
            print(f"{name}: {exported:.1f} s, {time.perf_counter() - start - exported:.1f} s", flush=True)


def told(lines: Path, made: Any, ended: str) -> None:
    """Print what was found of a model; a death is a line of its own."""
    mine = [each for each in read(lines) if (each["name"], each["form"]) == (made.name, made.form)]
    if ended and mine and "begun" in mine[-1]:
        dead = {**mine[-1], "command": mine[-1]["begun"], "code": -1, "problems": [ended]}
        append(lines, dead)
        mine.append(dead)
    for each in mine:
        for problem in each.get("problems", ()):
            print(f"  {each['command']}: {problem}")
        if "unmade" in each:
            print(f"  {each['unmade']}")


def read(lines: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


if __name__ == "__main__":
    sys.exit(main())
