"""Images against OpenCV, torch and NumPy, in one run: `python benches/images.py [--json FILE]`.

Answers are compared first, then both sides timed in alternation; see `benches/paired.py`. One thread, but where said.
With them a read of the image's bytes and a fill of the output are timed: where the peer takes so little more that
nobody can be faster by the target, the row says so.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modelopt_rs.preprocess import Image
from paired import Case, close, equal, measured, moving, run

SIDE = 640
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
INT8 = (0.02, -3)
MEAN_LEVEL, STD_LEVEL = (MEAN * 255).tolist(), (STD * 255).tolist()
RNG = np.random.default_rng(14)


def plan(**options: Any) -> Image:
    return Image(resize=None, mean=MEAN, std=STD, threads=1, **options)


def float_cases(x: np.ndarray) -> Iterator[Case]:
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    ours, out = plan(), np.zeros((1, 3, SIDE, SIDE), np.float32)
    scaled = Image(resize=None, threads=1)
    theirs, floats = np.zeros((3, SIDE, SIDE), np.float32), np.zeros(x.shape, np.float32)
    scale, shift = (*(1 / (255 * STD)).tolist(), 0.0), (*(-MEAN / STD).tolist(), 0.0)

    def multiply_and_split() -> np.ndarray:
        cv2.multiply(x, scale, dst=floats, dtype=cv2.CV_32F)
        cv2.add(floats, shift, dst=floats)
        cv2.split(floats, list(theirs))
        return theirs

    def only_scaled() -> np.ndarray:
        cv2.multiply(x, (1 / 255, 1 / 255, 1 / 255, 0.0), dst=floats, dtype=cv2.CV_32F)
        cv2.split(floats, list(theirs))
        return theirs

    def blob() -> np.ndarray:
        return cv2.dnn.blobFromImage(x, 1 / 255, mean=MEAN_LEVEL)

    mean, std, source = torch.from_numpy(MEAN)[:, None, None], torch.from_numpy(STD)[:, None, None], torch.from_numpy(x)
    target = torch.zeros(3, SIDE, SIDE)

    def by_torch() -> Any:
        target.copy_(source.permute(2, 0, 1))
        return target.mul_(1 / 255).sub_(mean).div_(std)

    def by_numpy() -> np.ndarray:
        return np.ascontiguousarray(((x.astype(np.float32) * np.float32(1 / 255) - MEAN) / STD).transpose(2, 0, 1))

    work = "normalize 640 x 640 to NCHW float32"
    same, bound = close(1e-5, 1e-5), moving(x.nbytes, np.zeros_like(out))
    yield Case(f"{work}, scale only", "OpenCV multiply, split", 2.5,
               lambda: scaled(x, out=out[0]), only_scaled, same, bound=bound)  # fmt: skip
    yield Case(work, "OpenCV multiply, split (scale only)", 2.5, lambda: ours(x, out=out[0]), only_scaled,
               bound=bound)  # fmt: skip
    yield Case(work, "OpenCV multiply, add, split", 2.5, lambda: ours(x, out=out[0]), multiply_and_split, same,
               bound=bound)  # fmt: skip
    yield Case(work, "blobFromImage (no std)", 12, lambda: ours(x, out=out), blob, bound=bound)
    yield Case(work, "torch", 3, lambda: ours(x, out=out[0]), by_torch, same, bound=bound)
    yield Case(work, "NumPy", 20, lambda: ours(x, out=out[0]), by_numpy, equal, bound=bound)


def code_cases(x: np.ndarray) -> Iterator[Case]:
    import cv2

    levels = np.arange(256, dtype=np.float32)[:, None]
    y = (levels * np.float32(1 / 255) - MEAN) / STD
    table = np.clip(np.rint(y / np.float32(INT8[0])) + INT8[1], -128, 127).astype(np.int8).view(np.uint8)[None]
    beside, apart = np.zeros_like(x), np.zeros((3, SIDE, SIDE), np.uint8)

    def look_up() -> np.ndarray:
        return cv2.LUT(x, table, dst=beside).view(np.int8)

    def look_up_and_split() -> np.ndarray:
        cv2.split(cv2.LUT(x, table, dst=beside), list(apart))
        return apart.view(np.int8)

    peers: dict[str, Callable[[], np.ndarray]] = {"NHWC": look_up, "NCHW": look_up_and_split}
    for layout, theirs in peers.items():
        ours = plan(dtype=np.int8, quantization=INT8, layout=layout)
        out = np.zeros_like(theirs())
        yield Case(f"normalize 640 x 640 to {layout} int8", "OpenCV LUT and NumPy", 5,
                   lambda ours=ours, out=out: ours(x, out=out), theirs, equal,
                   bound=moving(x.nbytes, np.zeros_like(out)))  # fmt: skip


def resize_cases() -> Iterator[Case]:
    import cv2

    frame = RNG.integers(0, 256, (1080, 1920, 3), np.uint8)
    ours, out = Image(size=(SIDE, SIDE), swap_channels=True, threads=1), np.zeros((1, 3, SIDE, SIDE), np.float32)

    def letterbox() -> np.ndarray:
        small = cv2.resize(frame, (SIDE, 360), interpolation=cv2.INTER_LINEAR)
        framed = cv2.copyMakeBorder(small, 140, 140, 0, 0, cv2.BORDER_CONSTANT, value=(114, 114, 114))
        return cv2.dnn.blobFromImage(framed, 1 / 255, swapRB=True)

    yield Case("letterbox 1920 x 1080 to 640 x 640", "OpenCV resize, copyMakeBorder, blobFromImage", 1.3,
               lambda: ours(frame, out=out), letterbox, close(0, 1.01 / 255))  # fmt: skip
    other = RNG.integers(0, 256, (1000, 1700, 3), np.uint8)

    def odd() -> np.ndarray:
        small = cv2.resize(other, (SIDE, 376), interpolation=cv2.INTER_LINEAR)
        framed = cv2.copyMakeBorder(small, 132, 132, 0, 0, cv2.BORDER_CONSTANT, value=(114, 114, 114))
        return cv2.dnn.blobFromImage(framed, 1 / 255, swapRB=True)

    yield Case("letterbox 1700 x 1000 to 640 x 640", "OpenCV resize, copyMakeBorder, blobFromImage", 1.3,
               lambda: ours(other, out=out), odd, close(0, 1.01 / 255))  # fmt: skip
    batch, small = [frame] * 32, RNG.integers(0, 256, (224, 224, 3), np.uint8)
    many = np.zeros((32, 3, SIDE, SIDE), np.float32)
    both = Image(size=(SIDE, SIDE), swap_channels=True, threads=2)

    def one_by_one() -> np.ndarray:
        for i, image in enumerate(batch):
            ours(image, out=many[i])
        return many

    yield Case("32 images, two threads", "one after the other", 1.7, lambda: both(batch, out=many), one_by_one, equal)
    few, plain = np.zeros((1, 3, 224, 224), np.float32), plan()

    def by_numpy() -> np.ndarray:
        return np.ascontiguousarray(((small * np.float32(1 / 255) - MEAN) / STD).transpose(2, 0, 1))

    yield Case("224 x 224, one thread", "NumPy", 10, lambda: plain(small, out=few[0]), by_numpy, equal,
               calls=50, bound=moving(small.nbytes, np.zeros_like(few)))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=41)
    arguments = parser.parse_args()
    x = RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    cases = {"to floats": float_cases(x), "to codes": code_cases(x), "resized": resize_cases()}
    return run(((title, measured(some, arguments.rounds)) for title, some in cases.items()), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
