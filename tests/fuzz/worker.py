"""A process that is given seeds, a line each, and answers for each what became of its mutant.

`python worker.py KIND MAX_MEMORY`: a line of JSON for every seed: "ok", or an error that nobody promised.
"""

import gc
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import modelopt_rs as mo
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError
from modelopt_rs.report.peak import peak_memory

PROMISED = (FormatError, LimitError, UnsupportedError)
PACKAGE = str(Path(mo.__file__).parent)
ADDRESS_SPACE = 8 << 30  # what is over it would take the machine with it


def is_promised(error: BaseException, path: str) -> bool:
    """Whether an error is one that the package says it raises; a ValueError must say what of."""
    if isinstance(error, (*PROMISED, OSError)):
        return True
    kinds = (ValueError,) if type(error).__module__ == "builtins" else (ValueError, ImportError)
    named = str(error).startswith((path, "quantize", "prune", "crop", "inspect", "open", "raise_opset", "OnnxSink"))
    return type(error).__module__.startswith("modelopt_rs") or (type(error) in kinds and named)


def onnx_steps(path: Path, pick: random.Random, limit: int) -> Iterator[Callable[[], Any]]:
    """What every model goes through, once it opens."""
    from modelopt_rs.planning.onnx import OnnxOptions

    out = path.with_name("out.onnx")
    common: dict[str, Any] = {"max_memory": limit, "threads": 1, "durable": False, "overwrite": True}
    # To run is onnxruntime's part: a few are.
    common["run"] = mo.RunOptions() if is_run(pick) else None
    yield lambda: mo.inspect_file(path, max_memory=limit, threads=1)
    yield lambda: mo.quantize_file(path, out, bits=8, **common)
    yield lambda: mo.quantize_file(path, out, bits=4, **common)
    yield lambda: mo.quantize_file(path, out, onnx=OnnxOptions(activations="dynamic"), **common)
    yield lambda: mo.prune_file(path, out, sparsity=0.5, **common)
    yield lambda: mo.crop_file(path, out, keep=0.5, what="all", **common)


def is_run(pick: random.Random) -> bool:
    """Whether a model is run: the first that is picked."""
    return pick.random() < 0.05


def checkpoint_steps(path: Path, pick: random.Random, limit: int) -> Iterator[Callable[[], Any]]:
    """What every safetensors file and directory goes through."""
    out = path.with_name("out" + path.suffix)
    common: dict[str, Any] = {"max_memory": limit, "threads": 1, "durable": False, "overwrite": True}
    yield lambda: mo.inspect_file(path, max_memory=limit, threads=1)
    yield lambda: mo.quantize_file(path, out, bits=8, **common)
    yield lambda: mo.quantize_file(path, out, bits=4, **common)
    yield lambda: mo.prune_file(path, out, sparsity=0.5, **common)
    yield lambda: mo.crop_file(path, out, keep=0.5, what=pick.choice(["heads", "ffn", "all"]), **common)
    yield lambda: mo.dequantize_file(path, out, **common)


def torch_steps(path: Path, pick: random.Random, limit: int) -> Iterator[Callable[[], Any]]:
    """What every file of torch goes through."""
    out = path.with_name("out.safetensors")
    common: dict[str, Any] = {"max_memory": limit, "threads": 1, "durable": False, "overwrite": True}
    yield lambda: mo.inspect_file(path, max_memory=limit, threads=1)
    yield lambda: mo.quantize_file(path, out, bits=4, **common)
    yield lambda: mo.prune_file(path, out, sparsity=0.5, **common)
    yield lambda: mo.compare_files(path, out, max_memory=limit, threads=1)


def imatrix_steps(path: Path, pick: random.Random, limit: int) -> Iterator[Callable[[], Any]]:
    """What every importance matrix goes through."""
    from mutate_files import plain_directory

    source, out = path.with_name("model"), path.with_name("out")
    if not source.exists():
        plain_directory(source)
    yield lambda: all_of(path)
    if pick.random() < 0.1:
        common: dict[str, Any] = {"max_memory": limit, "threads": 1, "durable": False, "overwrite": True}
        yield lambda: mo.quantize_file(source, out, bits=4, statistics=path, **common)


def all_of(path: Path) -> None:
    """Read all statistics of a file."""
    from modelopt_rs.planning.statistics import StatisticsFile

    with closing(StatisticsFile(path)) as statistics:
        for name in statistics.columns:
            statistics.of(name)


STEPS = {
    "onnx": onnx_steps,
    "graphs": onnx_steps,
    "safetensors": checkpoint_steps,
    "quantized": checkpoint_steps,
    "torch": torch_steps,
    "imatrix": imatrix_steps,
}


def mutator(kind: str) -> Any:
    """Return the class that makes mutants of a kind."""
    if kind == "onnx":
        from mutate_onnx import Mutator

        return Mutator
    if kind == "graphs":
        from mutate_graphs import GraphMutator

        return GraphMutator
    if kind == "safetensors":
        from mutate_safetensors import Mutator as SafetensorsMutator

        return SafetensorsMutator
    import mutate_files

    return getattr(mutate_files, f"{kind.capitalize()}Mutator")


def read(path: Path) -> None:
    """Open a model and read all of it."""
    with mo.files.open(path) as source:
        for name in source.tensors:
            for _ in source.tiles(name, 1 << 16):
                pass


def files(kind: str, folder: Path, limit: int) -> Callable[[int], list[str]]:
    """Return what makes the mutant of a seed and takes it through the commands."""
    mutants = mutator(kind)

    def run(seed: int) -> list[str]:
        pick = random.Random(seed)
        if kind in ("onnx", "graphs"):
            path = folder / "m.onnx"
            path.write_bytes(mutants(seed).mutant())
        else:
            path = mutants(seed).mutant(folder)
        found: list[str] = []
        try:
            if kind != "imatrix":  # which is no model
                read(path)
        except BaseException as error:
            return [] if is_promised(error, str(path)) else [described(error)]
        for step in STEPS[kind](path, pick, limit):
            try:
                step()
            except BaseException as error:
                if not is_promised(error, str(path)):
                    found.append(described(error))
        return found

    return run


def arrays(seed: int) -> list[str]:
    """Misuse functions of arrays some times."""
    from mutate_calls import misuse

    found = []
    for i in range(50):
        error = misuse(seed * 50 + i)
        if error is not None:
            found.append(described(error))
    return found


def described(error: BaseException) -> str:
    """Return an error with the last lines of ours and of all that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    return f"{type(error).__name__} at {where} ({last}): {str(error)[:300]}"


def forget_peak() -> None:
    """Let the peak of this process's memory be what it has now (Linux 4.0)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    kind, limit = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with tempfile.TemporaryDirectory() as folder:
        run = arrays if kind == "arrays" else files(kind, Path(folder), limit)
        first = 0
        for line in sys.stdin:
            start = time.process_time()
            forget_peak()
            before = resident()
            with np.errstate(all="ignore"):
                found = run(int(line))
            gc.collect(0)
            peak = peak_memory()
            first = first or peak  # it has brought the libraries
            row = {"seed": int(line), "found": found, "seconds": time.process_time() - start}
            row |= {"peak": max(0, peak - max(before, first)), "kept": max(0, resident() - first)}
            row["ran"] = kind in ("onnx", "graphs") and is_run(random.Random(int(line)))
            answers.write(json.dumps(row) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
