"""Make docs/speed.md of what the benches measured: `python benches/page.py FOLDER PAGE`, with their `--json` in FOLDER.

`make bench` does. Every row is there, also those that fall short.
"""

import json
import sys
from pathlib import Path
from typing import Any

from paired import Row, word

HEAD = """# Speed

What `make bench` measured: every row of `benches/`, in one run, those that fall short among them. Ours and the peer's
answers are compared first, then both are timed in turn. The ratio is the median of the pairs: how many times as long
the peer takes, or, where the target says "at most", how many times as long we take. The bound is the reading and
writing of the bytes alone, timed in the same rounds: where it takes so long that nobody could meet the target, the
result is `FORBIDDEN`. Two threads, but where the row says one. Ratios move with the load of a machine: run it on yours.
"""
TITLES = {
    "arrays": "Arrays: quantization and reductions",
    "reduce": "Reductions, given scales, embeddings, look-ups",
    "images": "Images, one thread",
    "linear": "Products with quantized weights",
    "search": "Searched scales",
    "optim": "Optimizers",
    "prune": "Pruning",
    "crop": "Cropping",
}


def time(ms: float) -> str:
    return f"{ms * 1e3:.2f} us" if ms < 0.1 else f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1e3:.2f} s"


COLUMNS = ("work", "peer", "ours", "peer's", "ratio", "target", "result", "the bound's ratio", "ours by the bound")


def line(row: Row) -> str:
    target = row.target.replace("<=", "at most").replace(">=", "at least").replace("<", "under")
    result = "" if row.met is None else word(row)
    bound = ("" if x is None else f"{x:.2f}" for x in (row.limit, row.of_bound))
    return table_line(
        row.work, row.peer, time(row.ours_ms), time(row.peer_ms), f"{row.ratio:.2f}", target, result, *bound
    )


def table_line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def part(name: str, found: dict[str, Any]) -> str:
    before, after = found["cores"]
    lines = [
        f"## {TITLES[name]}",
        "",
        f"`python benches/{name}.py`; {before:.1f} cores at hand before, {after:.1f} after.",
    ]
    for title, rows in found["sections"].items():
        lines += ["", f"**{title}**", "", table_line(*COLUMNS)]
        lines += [table_line(*["---"] * len(COLUMNS)), *(line(Row(**row)) for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    folder, page = map(Path, sys.argv[1:])
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in TITLES}
    page.write_text("\n".join([HEAD, *(part(name, each) for name, each in found.items())]))


if __name__ == "__main__":
    main()
