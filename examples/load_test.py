"""Load on the service of `service.py`, and on the same with OpenCV and with NumPy: `python examples/load_test.py`.

Every service has its own workers; bounded numbers of requests go to each in turn, over loopback, a connection for each
request. Before anything is timed all must give the same answers. `--memory 50000` sends so many more to ours, and
compares the resident memory of its workers before and after. Needs the extra `onnx`, scikit-learn, and OpenCV (extra
`bench`; without it that row is left out).
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import charts
from digits import digits
from service import MEAN, SIDE, STD, Digits, Prepare, Workers, fork, ours, photograph, quantization, write_apart

WARM_UP = 1000  # requests before memory is looked at: by then every worker has seen every kind
MOST_GROWN = 1 << 20  # bytes a worker
TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


# ---- The same preparation by others


def levels_to_codes(model: Path) -> np.ndarray:
    """The code of each level of each channel, [256, 3]: normalized and quantized by the formula in float32."""
    dtype, (scale, zero_point) = quantization(model)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    x = (np.arange(256, dtype=np.float32)[:, None] * np.float32(1 / 255) - mean) / std
    limits = np.iinfo(dtype)
    return np.clip(np.rint(x / np.float32(scale)) + zero_point, limits.min, limits.max).astype(dtype)


def by_opencv(model: Path) -> Prepare:
    """Its fastest way: resize, cut, look up codes in a table, split the channels into the batch."""
    import cv2

    cv2.setNumThreads(1)
    table = levels_to_codes(model).view(np.uint8)[None]

    def run(images: list[np.ndarray], out: np.ndarray) -> None:
        for image, target in zip(images, out.view(np.uint8), strict=True):
            height, width = image.shape[:2]
            ratio = SIDE / min(height, width)
            small = cv2.resize(image, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_LINEAR)
            top, left = (small.shape[0] - SIDE) // 2, (small.shape[1] - SIDE) // 2
            cv2.split(cv2.LUT(small[top : top + SIDE, left : left + SIDE], table), list(target))

    return run


def by_numpy(model: Path) -> Prepare:
    """The formula: bilinear by four gathers, then normalized, quantized and transposed."""
    dtype, (scale, zero_point) = quantization(model)
    mean, std, limits = np.array(MEAN, np.float32), np.array(STD, np.float32), np.iinfo(dtype)

    def places(n: int, small: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The two pixels that each output pixel lies between, and the weight of the second."""
        at = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5 + (small - SIDE) // 2)) * np.float32(n / small) - 0.5
        first = np.floor(at).astype(np.intp)
        return first.clip(0, n - 1), (first + 1).clip(0, n - 1), (at - first).astype(np.float32)

    def run(images: list[np.ndarray], out: np.ndarray) -> None:
        for image, target in zip(images, out, strict=True):
            height, width = image.shape[:2]
            ratio = SIDE / min(height, width)
            top, bottom, down = places(height, round(height * ratio))
            left, right, across = places(width, round(width * ratio))
            across, down = across[None, :, None], down[:, None, None]
            upper = image[top][:, left] * (1 - across) + image[top][:, right] * across
            lower = image[bottom][:, left] * (1 - across) + image[bottom][:, right] * across
            levels = np.rint(upper * (1 - down) + lower * down)
            x = (levels * np.float32(1 / 255) - mean) / std
            codes = np.clip(np.rint(x / np.float32(scale)) + zero_point, limits.min, limits.max)
            target[...] = codes.transpose(2, 0, 1)

    return run


WAYS: dict[str, Callable[[Path], Prepare]] = {"modelopt_rs": ours, "OpenCV": by_opencv, "NumPy": by_numpy}


# ---- Requests


def ppm(images: Sequence[np.ndarray]) -> bytes:
    """Images as PPM files, one after another."""
    return b"".join(b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes() for image in images)


def post(body: bytes, path: str = "/") -> bytes:
    """A whole request."""
    return b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


def ask(port: int, request: bytes) -> bytes:
    """The body of the answer to a request; RuntimeError if it is not 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"the service answered {head[:80]!r} {body[:200]!r}")
    return body


def load(port: int, requests: Sequence[bytes], n: int, clients: int) -> tuple[float, list[float]]:
    """Send `n` requests, at most `clients` at a time; the seconds for all, and for each."""

    def one(i: int) -> float:
        start = time.perf_counter()
        ask(port, requests[i % len(requests)])
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        took = list(pool.map(one, range(n)))
    return time.perf_counter() - start, took


def cpu_seconds(pids: Sequence[int]) -> float:
    """What processes have computed for so far, in their own code and in the kernel's."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) * TICK


def resident(pids: Sequence[int]) -> list[int]:
    """Bytes of memory that each process holds."""
    return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE for pid in pids]


# ---- Measuring


@dataclass
class Row:
    """One service: how much it answers, how fast, and what that costs its workers."""

    title: str
    rates: list[float] = field(default_factory=list)  # requests a second, of each round
    latencies: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # seconds a request, of each round
    prepare: float = 0.0  # seconds an image

    def cells(self) -> tuple[float, ...]:
        """Requests a second, p50 and p99 and CPU in milliseconds, preparing in milliseconds."""
        p50, p99 = 1e3 * np.quantile(self.latencies, [0.5, 0.99])
        return float(np.median(self.rates)), p50, p99, 1e3 * float(np.median(self.cpu)), 1e3 * self.prepare


def prepare_seconds(prepare: Prepare, images: list[np.ndarray], batch: np.ndarray, rounds: int) -> float:
    """CPU seconds for one image, the median."""
    took = []
    for _ in range(rounds):
        start = time.process_time()
        prepare(images, batch[: len(images)])
        took.append((time.process_time() - start) / len(images))
    return float(np.median(took))


def same_answers(services: dict[str, Workers], requests: Sequence[bytes]) -> list[list[int]]:
    """What all services answer to each request; SystemExit where they differ."""
    found = {}
    for title, workers in services.items():
        found[title] = [json.loads(ask(workers.port, request))["digits"] for request in requests]
    first, expected = next(iter(found.items()))
    for title, answers in found.items():
        differ = sum(a != b for a, b in zip(expected, answers, strict=True))
        if differ:
            raise SystemExit(f"{title} answers {differ} of {len(requests)} requests otherwise than {first}")
    return expected


def measure(services: dict[str, Workers], requests: Sequence[bytes], args: argparse.Namespace) -> list[Row]:
    """Load on all services in turn, in every round."""
    rows = {title: Row(title) for title in services}
    for _ in range(args.rounds):
        for title, workers in services.items():
            before = cpu_seconds(workers.pids)
            seconds, took = load(workers.port, requests, args.requests, args.clients)
            rows[title].rates.append(args.requests / seconds)
            rows[title].latencies += took
            rows[title].cpu.append((cpu_seconds(workers.pids) - before) / args.requests)
    return list(rows.values())


def grown(workers: Workers, requests: Sequence[bytes], n: int, clients: int) -> Iterator[tuple[int, int]]:
    """The resident memory of each worker after a warm-up, and after `n` requests more."""
    load(workers.port, requests, min(n, WARM_UP), clients)
    before = resident(workers.pids)
    load(workers.port, requests, n, clients)
    yield from zip(before, resident(workers.pids), strict=True)


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print("| preparation | requests/s | p50, ms | p99, ms | CPU ms a request | of it preparing an image |")
    print("| ----------- | ---------- | ------- | ------- | ---------------- | ------------------------ |")
    for row in rows:
        rate, p50, p99, cpu, prepare = row.cells()
        print(f"| {row.title:11} | {rate:10.0f} | {p50:7.2f} | {p99:7.2f} | {cpu:16.2f} | {prepare:24.3f} |")


def draw(rows: Sequence[Row], path: Path) -> None:
    """The same as a picture."""
    rate, _, p99, _, prepare = zip(*(row.cells() for row in rows), strict=True)
    panels = [
        charts.Panel("requests a second", rate, "{:.0f}"),
        charts.Panel("99 of 100 answered within, ms", p99, "{:.1f}"),
        charts.Panel("preparing an image, ms CPU", prepare, "{:.2f}"),
    ]
    title = "A service that reads photographs, by what prepares them"
    charts.save(charts.bars([row.title for row in rows], panels, title, [rows[0].title]), path)


def arguments() -> argparse.Namespace:
    """How much load, of what kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300, help="to each service in each round (default 300)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="of each service")
    parser.add_argument("--clients", type=int, default=2, help="requests at a time")
    parser.add_argument("--images", type=int, default=1, help="photographs in a request")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of a photograph"
    )
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="then send N requests, and look for growth")
    parser.add_argument("--picture", type=Path, default=Path("load_test.svg"), help="where it goes")
    return parser.parse_args()


def main() -> int:
    """Compare answers, measure, look at memory; 1 if it grows."""
    args = arguments()
    data, rng = digits(), np.random.default_rng(1)
    photographs = [photograph(x, rng, *args.size) for x in data.held_out_x[: 32 * args.images]]
    requests = [post(ppm(photographs[i : i + args.images])) for i in range(0, len(photographs), args.images)]
    services: dict[str, Workers] = {}
    with tempfile.TemporaryDirectory(prefix="service-") as folder:
        model = write_apart(Path(folder))
        ways = dict(WAYS)
        try:
            import cv2  # noqa: F401
        except ImportError:
            print(f"OpenCV is not installed: {ways.pop('OpenCV').__name__} is left out")
        try:
            for title, way in ways.items():
                services[title] = fork(lambda way=way: Digits(model, way(model)), args.workers)
            answers = np.concatenate(same_answers(services, requests))
            right = np.mean(answers == data.held_out_y[: len(answers)])
            print(f"{len(answers)} photographs: all services give the same answers, {right:.1%} of them right\n")
            rows = measure(services, requests, args)
            batch = np.zeros((args.images, 3, SIDE, SIDE), quantization(model)[0])
            for row, way in zip(rows, ways.values(), strict=True):
                row.prepare = prepare_seconds(way(model), photographs[: args.images], batch, 10 * args.rounds)
            show(rows)
            draw(rows, args.picture)
            print(f"\nthe picture: {args.picture}")
            return looked_for_growth(services["modelopt_rs"], requests, args) if args.memory else 0
        finally:
            for workers in services.values():
                workers.stop()


def looked_for_growth(workers: Workers, requests: Sequence[bytes], args: argparse.Namespace) -> int:
    """Print the memory of each worker before and after; 1 if one has grown."""
    bad = 0
    for before, after in grown(workers, requests, args.memory, args.clients):
        print(f"{args.memory:,} requests: a worker had {before / 1e6:.2f} MB of memory before, {after / 1e6:.2f} after")
        bad += after - before > MOST_GROWN
    if bad:
        print(f"{bad} workers have grown by more than {MOST_GROWN} bytes", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
