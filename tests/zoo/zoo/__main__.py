"""`python -m zoo`: models through the commands, a line of results after each, and the table at the end."""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.table import read, write

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
SECONDS = 600  # for a model and all of its commands
MADE_WITH = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime", "numpy")  # said in the table


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


def trial(made: Any, folder: Path, lines: Path, only: list[str], trained: Any) -> None:
    """All commands on a model."""
    from zoo import loaders
    from zoo.trial import Result, Trial

    quiet(folder)
    reader = {
        "saved": lambda: loaders.transformers(made.loader or made.name, Path(made.inputs)),
        "weights": lambda: loaders.ourselves,
    }.get(made.form, lambda: loaders.onnxruntime(Path(made.inputs)))()
    try:
        measure = None if trained is None else trained.measure(folder)
        one = Trial(made, folder / "out" / made.name / made.form, reader, measure)
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


def jobs(structures: Mapping[str, Any]) -> Iterator[tuple[int, Any, str]]:
    """Return the forms of structures: first one of ONNX, by the exporters in turn, and that of safetensors of each."""
    for other in (False, True):
        for index, structure in enumerate(structures.values()):
            exporters = structure.exporters
            first = exporters[index % len(exporters)]
            if not other:
                yield index, structure, first
                yield index, structure, "saved" if structure.saved else "weights"
            else:
                yield from ((index, structure, each) for each in exporters if each != first)


def main() -> int:
    parser = argparse.ArgumentParser(prog="zoo", description=__doc__)
    parser.add_argument("filters", nargs="*", default=["*"], help="globs of LIBRARY/NAME/FORM; all by default")
    parser.add_argument("--folder", type=Path, default=Path("target/zoo"), help="where models are kept")
    parser.add_argument("--table", type=Path, help="where the table is written (docs/zoo.md)")
    parser.add_argument("--commands", nargs="*", default=[], help="only these columns")
    parser.add_argument("--libraries", nargs="*", default=["torchvision", "timm", "transformers"])
    parser.add_argument("--trained", action="store_true", help="and the trained models of packages")
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
    """Make the models that are asked for, and try each."""
    from zoo.export import Made

    done = {(each.get("name"), each.get("form")) for each in read(lines)}
    append(lines, {"versions": {name: version(name) for name in MADE_WITH if find_spec(name)}})

    def wanted(library: str, name: str, form: str) -> bool:
        title = f"{library}/{name}/{form}"
        return (name, form) not in done and any(fnmatch(title, f"*{each}*") for each in arguments.filters)

    structures = prepared(tuple(arguments.libraries))
    for index, structure, form in jobs(structures):
        if wanted(structure.library, structure.name, form):
            in_process(export, structure, index, arguments.folder, form, lines)
            known = arguments.folder / "models" / structure.name / f"{form}.json"
            if known.exists():
                tried(Made(**json.loads(known.read_text())), arguments, lines)
            else:
                print(f"{structure.library}/{structure.name}/{form}: not made", flush=True)
    if arguments.trained:
        from zoo.trained import TRAINED

        for each in TRAINED.values():
            if wanted(each.package, each.name, each.form):
                tried(each.made(arguments.folder), arguments, lines, each)


def prepared(libraries: tuple[str, ...]) -> Mapping[str, Any]:
    """The structures; what all processes import is imported once."""
    for name in ("compressed_tensors", "onnxruntime", "onnxscript", "modelopt_rs.cli.app"):
        importlib.import_module(name)
    import torch

    from zoo.structures import load

    torch.set_num_threads(1)
    return load(libraries)


def tried(made: Any, arguments: argparse.Namespace, lines: Path, trained: Any = None) -> None:
    start = time.perf_counter()
    ended = in_process(trial, made, arguments.folder, lines, arguments.commands, trained)
    told(lines, made, ended)
    print(f"{made.library}/{made.name}/{made.form}: {time.perf_counter() - start:.1f} s", flush=True)
    if arguments.table:
        write(arguments.table, read(lines))


def told(lines: Path, made: Any, ended: str) -> None:
    """Print what was found of a model; a death is a line of its own."""
    mine = [each for each in read(lines) if (each.get("name"), each.get("form")) == (made.name, made.form)]
    if ended and mine and "begun" in mine[-1]:
        dead = {**mine[-1], "command": mine[-1]["begun"], "code": -1, "problems": [ended]}
        append(lines, dead)
        mine.append(dead)
    for each in mine:
        for problem in each.get("problems", ()):
            print(f"  {each['command']}: {problem}")
        if "unmade" in each:
            print(f"  {each['unmade']}")


if __name__ == "__main__":
    sys.exit(main())
