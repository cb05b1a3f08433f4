"""Runs mutants in processes that are watched: one that hangs or dies is counted and replaced.

`python tests/fuzz/fuzz.py onnx 100000` runs them alone (so does `make fuzz`), and prints what fell.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MAX_MEMORY = 32 << 20
EXTRA_MEMORY = 64 << 20
RUNS = 2  # a run in onnxruntime has an allocator of its own, of max_memory and the weights; and gives copies
MAX_SECONDS = 10
"""Of CPU time, for a mutant with all that it goes through."""
A_WORKER = 1000  # mutants, whose memory is what each needs more than there was at its start
KEPT = 192 << 20
"""After the first mutant: libraries that are imported when they are needed, what an allocator keeps; more is a leak."""
WATCHDOG = 120  # seconds on the clock: other processes may have the CPU


@dataclass
class Outcome:
    """What became of mutants: unpromised errors, by seed; hangs, deaths, those over their memory, where a process
    kept too much; the most time and memory (of models that are run, too).
    """

    mutants: int = 0
    errors: dict[int, list[str]] = field(default_factory=dict)
    hangs: list[int] = field(default_factory=list)
    deaths: list[int] = field(default_factory=list)
    peak: int = 0
    peak_of_runs: int = 0
    greedy: list[int] = field(default_factory=list)
    leaks: list[int] = field(default_factory=list)
    kept: int = 0
    seconds: float = 0.0

    def problems(self) -> list[str]:
        """Return everything that is none of the promises."""
        found = [f"seed {seed}: {text}" for seed, texts in self.errors.items() for text in texts]
        found += [f"seed {seed}: hangs" for seed in self.hangs] + [f"seed {seed}: died" for seed in self.deaths]
        found += [f"seed {seed}: more memory" for seed in self.greedy]
        found += [f"seed {seed}: memory that is kept" for seed in self.leaks]
        return found


def fuzz(kind: str, seeds: range) -> Outcome:
    """Run the mutants of some seeds, one after the other."""
    outcome, left = Outcome(), list(reversed(seeds))
    while left:
        with _start(kind) as worker:  # which closes its pipes
            try:
                _feed(worker, left, outcome)
            finally:
                worker.kill()
    return outcome


def _start(kind: str) -> Any:
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "worker.py"), kind, str(MAX_MEMORY)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _feed(worker: Any, left: list[int], outcome: Outcome) -> None:
    for _ in range(min(A_WORKER, len(left))):
        seed = left.pop()
        outcome.mutants += 1
        worker.stdin.write(b"%d\n" % seed)
        worker.stdin.flush()
        if not select.select([worker.stdout], [], [], WATCHDOG)[0]:
            outcome.hangs.append(seed)
            return
        line = worker.stdout.readline()
        if not line:
            outcome.deaths.append(seed)
            return
        row = json.loads(line)
        if row["found"]:
            outcome.errors[seed] = row["found"]
        if row["seconds"] > MAX_SECONDS:
            outcome.hangs.append(seed)
        if row["peak"] > (RUNS if row["ran"] else 1) * MAX_MEMORY + EXTRA_MEMORY:
            outcome.greedy.append(seed)
        if row["kept"] > KEPT:
            outcome.leaks.append(seed)
        outcome.kept = max(outcome.kept, row["kept"])
        peak = "peak_of_runs" if row["ran"] else "peak"
        setattr(outcome, peak, max(getattr(outcome, peak), row["peak"]))
        outcome.seconds = max(outcome.seconds, row["seconds"])


def main() -> int:
    kind, count, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
    start = time.monotonic()
    outcome = fuzz(kind, range(first, first + count))
    problems = outcome.problems()
    kinds = Counter(problem.split(": ", 1)[-1].split(": ")[0] for problem in problems)
    for what, n in kinds.most_common():
        print(f"{n:6} {what}\n         e.g. {next(p for p in problems if what in p)[:400]}")
    print(
        f"{kind}: {outcome.mutants:,} mutants in {time.monotonic() - start:.0f} s, {len(outcome.errors):,} with errors, "  # noqa: E501
        f"{len(outcome.hangs)} hangs {outcome.hangs[:5]}, {len(outcome.deaths)} deaths {outcome.deaths[:5]}; "
        f"at most {outcome.seconds:.1f} s and {outcome.peak / 2**20:.0f} MiB more, "
        f"with a run {outcome.peak_of_runs / 2**20:.0f}, kept {outcome.kept / 2**20:.0f}"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
