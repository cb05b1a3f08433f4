"""`modelopt-rs quantize` and `prune` on a large checkpoint: `python benches/files.py [--size GIB] [--json FILE]`.

Makes a synthetic checkpoint (one 1 GiB tensor, the rest 64 MiB each), quantizes it to 4 bits and prunes half of it,
each in a process of its own, and prints seconds, GB/s of input and the process's peak memory against `--max-memory`
+ 64 MiB. The file is in the page cache. Each run is paired with the plain road of the same bytes: read the input, write
and sync the output.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

MIB, GIB = 2**20, 2**30
BUDGET_MIB, SLACK_MIB = 256, 64
TARGETS_GB_PER_S = {"quantize": 1.0, "quantize, searched": 0.4}
SQNR_OF_4_BITS = 19.0  # of normal numbers in groups of 32
BLOCK = 4 * MIB  # small: a child's ru_maxrss starts from what its parent held


WORK = {
    "quantize": ["quantize", "--bits", "4", "--scheme", "symmetric", "--search", "none", "--uniform", "--no-verify"],
    "quantize, searched": ["quantize", "--bits", "4"],
    "prune": ["prune", "--sparsity", "0.5", "--no-verify"],
    "prune to bitmasks": ["prune", "--sparsity", "0.5", "--scope", "global", "--format", "bitmask", "--no-verify"],
    "prune, then quantize": ["prune", "--sparsity", "0.5", "--no-verify", "--then", "quantize", "--bits", "4"],
}


@dataclass
class Run:
    work: str
    seconds: float
    gb_per_s: float
    peak_mib: float
    plain_seconds: float
    bytes_out: int


def tensors(nbytes: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Names and shapes: a 1 GiB tensor where `nbytes` allows one, 64 MiB ones for the rest."""
    columns, found, left = 4096, {}, nbytes
    if nbytes >= GIB:
        found["model.layers.0.mlp.up_proj.weight"] = (GIB // itemsize // (4 * columns), 4 * columns)
        left -= GIB
    for i in range(1, left // (64 * MIB) + 1):
        found[f"model.layers.{i}.self_attn.q_proj.weight"] = (64 * MIB // itemsize // columns, columns)
    return found


def make(path: Path, nbytes: int, dtype: str) -> None:
    """Stream a safetensors file to disk: one block of normal numbers, rolled a little each time."""
    itemsize = 4 if dtype == "F32" else 2
    header, at = {}, 0
    for name, shape in tensors(nbytes, itemsize).items():
        end = at + shape[0] * shape[1] * itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = np.random.default_rng(5).standard_normal(BLOCK // itemsize, dtype=np.float32) * np.float32(0.02)
    if dtype == "BF16":
        block = (block.view(np.uint32) >> 16).astype(np.uint16)
    elif dtype == "F16":
        block = block.astype(np.float16)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i in range(0, at, BLOCK):
            file.write(np.roll(block, i // BLOCK).data)
        file.flush()
        os.fsync(file.fileno())  # or its writing back would compete with what is timed


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def plain(source: Path, target: Path, bytes_out: int) -> float:
    """Read `source` by blocks; write and sync `bytes_out` bytes."""
    start, block = time.perf_counter(), bytearray(BLOCK)
    with source.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass
    with target.open("wb", buffering=0) as file:
        for i in range(0, bytes_out, BLOCK):
            file.write(memoryview(block)[: min(BLOCK, bytes_out - i)])
        os.fsync(file.fileno())
    taken = time.perf_counter() - start
    target.unlink()
    return taken


def run(words: list[str], source: Path, target: Path, threads: int) -> tuple[float, float]:
    """Run the command line; return seconds of the whole process and its peak memory in MiB."""
    command = [sys.executable, "-m", "modelopt_rs", words[0], str(source), "-o", str(target)]
    command += ["--max-memory", f"{BUDGET_MIB}MiB", "--threads", str(threads), *words[1:]]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        taken = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{words[0]} exited with {process.returncode}:\n{log.read().decode(errors='replace')}")
    return taken, usage.ru_maxrss / 1024


def check_zeros(source: Path, target: Path) -> None:
    """The first tensor, from the output's own bytes: half of it zeros, the rest as it was and no smaller than those."""
    gone, total, largest, smallest = 0, 0, 0.0, np.inf
    for x, y in zip(magnitudes(source), magnitudes(target), strict=True):
        zero = y == 0
        if (x[~zero] != y[~zero]).any():
            raise SystemExit("the first tensor has changed where it is not zero")
        gone, total = gone + int(zero.sum()), total + x.size
        largest, smallest = max(largest, x[zero].max(initial=0.0)), min(smallest, y[~zero].min(initial=np.inf))
    if gone != total // 2 or largest > smallest:
        raise SystemExit(f"the first tensor is not pruned by half: {gone} of {total}")


def magnitudes(path: Path) -> Iterator[np.ndarray]:
    """The magnitudes of the first tensor, by blocks."""
    with path.open("rb") as file:
        n = int.from_bytes(file.read(8), "little")
        entry = next(iter(json.loads(file.read(n)).values()))
        begin, end = entry["data_offsets"]
        kind = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry["dtype"]])
        file.seek(8 + n + begin)
        for at in range(begin, end, BLOCK):
            x = np.fromfile(file, kind, min(BLOCK, end - at) // kind.itemsize)
            yield np.abs((x.astype(np.uint32) << 16).view(np.float32) if kind == "<u2" else x)


def check(source: Path, target: Path) -> None:
    """The first tensor, read back as floats, against the input."""
    import modelopt_rs as mo

    with mo.files.open(source) as before, mo.files.open(target, dequantize=True) as after:
        name = next(iter(before.tensors))
        if before.tensors[name].dtype == "BF16":
            raise SystemExit("what comes back is compared for F32 and F16")
        x, back = before.read(name).astype(np.float64), after.read(name).astype(np.float64)
    sqnr = 10 * np.log10(np.sum(x**2) / np.sum((back - x) ** 2))
    if not sqnr >= SQNR_OF_4_BITS:
        raise SystemExit(f"{name} does not come back: {sqnr:.2f} dB")


CHECKS = {"quantize": check, "quantize, searched": check, "prune": check_zeros}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=4, metavar="GIB", help="of the checkpoint (default 4)")
    parser.add_argument("--dtype", choices=["F32", "F16", "BF16"], default="F32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK), help="what to run (default: all)")
    parser.add_argument("--dir", type=Path, help="where to make it (default: the directory for temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the runs as JSON too")
    args = parser.parse_args()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        source, target = Path(folder, "model.safetensors"), Path(folder, "small.safetensors")
        make(source, int(args.size * GIB), args.dtype)
        nbytes = size(source)
        for i in range(args.rounds):
            for work in args.work:
                taken, peak = run(WORK[work], source, target, args.threads)
                bytes_out = size(target)
                if i == 0 and work in CHECKS:
                    # In a child of its own: the peak memory of those that are timed starts from that of this process.
                    with ProcessPoolExecutor(1) as pool:
                        pool.submit(CHECKS[work], source, target).result()
                target.unlink()
                road = plain(source, Path(folder, "plain"), bytes_out)
                runs.append(Run(work, taken, nbytes / taken / 1e9, peak, road, bytes_out))
    for r in runs:
        print(
            f"{r.work}: {nbytes / GIB:.2f} GiB {args.dtype} -> {r.bytes_out / GIB:.2f} GiB in {r.seconds:.2f} s: "
            f"{r.gb_per_s:.2f} GB/s of input, peak {r.peak_mib:.0f} MiB; plain road {r.plain_seconds:.2f} s"
        )
    limit = BUDGET_MIB + SLACK_MIB
    for work in args.work:
        mine = [r for r in runs if r.work == work]
        speed = statistics.median(r.gb_per_s for r in mine)
        peak = max(r.peak_mib for r in mine)
        ratio = statistics.median(r.seconds / r.plain_seconds for r in mine)
        target_speed = TARGETS_GB_PER_S.get(work, 0.0)
        print(
            f"{work:21} {speed:.2f} GB/s (median){'' if speed >= target_speed else ' NOT MET'}, "
            f"peak {peak:.0f} MiB (largest){'' if peak <= limit else ' NOT MET'}, "
            f"{ratio:.2f} x the time of the plain road (median of the pairs)"
        )
    speeds = ", ".join(f"{work} >= {speed:g} GB/s" for work, speed in TARGETS_GB_PER_S.items())
    print(f"targets: {speeds}, memory <= {limit} MiB")
    if args.json:
        args.json.write_text(json.dumps({"bytes": nbytes, "runs": [asdict(r) for r in runs]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
