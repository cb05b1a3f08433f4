"""Importance and gathering against NumPy and against the memory: `python benches/crop.py`. See arrays.py."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import modelopt_rs as mo
from paired import Case, Plain, Thunk, close, equal, measured, run

COLUMNS = 8192


def cases(w: np.ndarray) -> Iterator[Case]:
    for axis in (0, 1):
        yield Case(
            f"importance, 2-norm, axis {axis}",
            "np.linalg.norm",
            2.0,
            lambda axis=axis: mo.prune.importance(w, axis),
            lambda axis=axis: np.linalg.norm(w, axis=1 - axis),
            close(1e-2),  # the peer sums in float32
        )
    # In random order a half is gathered one by one; heads are blocks of 64.
    for axis, n in enumerate(w.shape):
        rng = np.random.default_rng(axis)
        heads = np.sort(rng.permutation(n // 64)[: n // 128])
        for kind, indices in (
            ("half", np.sort(rng.permutation(n)[: n // 2])),
            ("half in blocks of 64", (heads[:, None] * 64 + np.arange(64)).ravel()),
        ):
            ours: Thunk = lambda axis=axis, i=indices: mo.prune.take(w, i, axis)  # noqa: E731
            index: Thunk = lambda axis=axis, i=indices: w[:, i] if axis else w[i]  # noqa: E731
            yield Case(
                f"take, axis {axis}, {kind}", "w[:, i]" if axis else "w[i]", 2.0 if axis else 1.0, ours, index, equal
            )
    half = np.sort(np.random.default_rng(2).permutation(w.shape[1])[: w.shape[1] // 2])
    yield Case(
        "take, axis 1, half", "np.take", 1.0, lambda: mo.prune.take(w, half, 1), lambda: np.take(w, half, 1), equal
    )


def bounds(w: np.ndarray) -> Iterator[Case]:
    """Copies of as many bytes, in pages that were written before."""
    plain = Plain(w)
    for axis, part in ((0, 0.5), (1, 0.75)):  # of rows that go nothing is read
        n = w.shape[axis]
        indices = np.sort(np.random.default_rng(axis).permutation(n)[: n // 2])
        shape = (n // 2, w.shape[1]) if axis == 0 else (w.shape[0], n // 2)
        out, size = np.zeros(shape, w.dtype), int(w.size * part)
        source, target = plain.source[:size], plain.target[:size]

        def copy(source: np.ndarray = source, target: np.ndarray = target) -> None:
            middle = len(source) // 2
            list(plain.pool.map(np.copyto, (target[:middle], target[middle:]), (source[:middle], source[middle:])))

        yield Case(
            f"take, axis {axis}, half, out=",
            "copies of as many bytes",
            1.5,
            lambda axis=axis, indices=indices, out=out: mo.prune.take(w, indices, axis, out=out),
            copy,
            at_most=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    args = parser.parse_args()
    w = np.random.default_rng(1).standard_normal((args.elements // COLUMNS, COLUMNS), dtype=np.float32)
    sections = {"cropping": cases(w), "cropping against the bound": bounds(w)}
    return run(((title, measured(some, args.rounds)) for title, some in sections.items()), args.json)


if __name__ == "__main__":
    sys.exit(main())
