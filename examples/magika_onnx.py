"""A file-type classifier (magika) quantized: how often its labels stay the same: `python examples/magika_onnx.py`.

The PyPI package `magika` carries a trained ONNX model (Conv and MatMul, 784 thousand weights) and the code that feeds
it. Some hundred files of known kinds that stand on any Debian machine are labelled by the original and by each
quantized model. Needs `pip install magika` and the extra `onnx`. Fratantonio et al. 2024 (arXiv 2409.13768).
"""

import json
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from zlib import crc32

import numpy as np

from modelopt_rs.onnx.run.sessions import open_session
from onnx_table import OURS, Row, Task, arguments, as_json, draw, measure, models, show

PLACES = ("/usr/include", "/usr/share", "/usr/lib/python3", "/usr/lib/python3.11", "/usr/bin", "/usr/lib/gcc", "/etc")
# What a file's name says about its kind, in magika's words. A header may be C or C++; jars and wheels are archives.
KINDS: dict[str, tuple[str, ...]] = {
    ".c": ("c",),
    ".h": ("c", "cpp"),
    ".hpp": ("cpp", "c"),
    ".py": ("python",),
    ".pyc": ("pythonbytecode",),
    ".pl": ("perl",),
    ".pm": ("perl",),
    ".sh": ("shell",),
    ".tcl": ("tcl",),
    ".js": ("javascript",),
    ".css": ("css",),
    ".html": ("html",),
    ".xml": ("xml",),
    ".pom": ("xml",),
    ".svg": ("svg",),
    ".json": ("json",),
    ".md": ("markdown",),
    ".rst": ("rst",),
    ".sql": ("sql",),
    ".png": ("png",),
    ".gif": ("gif",),
    ".gz": ("gzip",),
    ".jar": ("jar", "zip"),
    ".ttf": ("ttf",),
    ".crt": ("pem",),
    ".txt": ("txt", "txtascii", "txtutf8"),
    "": ("elf", "shell", "perl", "python"),  # programs
}
PER_KIND = 15
BATCH = 16
# What the best settings at each number of bits must reach: the share of labels that agree, and of the bytes.
ENOUGH = {"8 bits": (0.995, 0.27), "4 bits": (0.98, 0.15)}
# The last layer, which has 2 % of the weights, is worth 8 bits.
HEAD = "jax2tf_get_logits_/Const:0"
BEST = ("--group-size", "128", "--bits-of", f"{HEAD}=8")
VARIANTS = OURS | {"4 bits": ("quantize", "--bits", "4", *BEST)}
OUTPUT = "target_label"


def package_model() -> Path:
    """The directory of the model in the installed package."""
    import magika

    return Path(magika.__file__).parent / "models" / "standard_v3_3"


def find_files(per_kind: int = PER_KIND) -> dict[Path, tuple[str, ...]]:
    """Files of known kinds, at most so many of each, from all over: in the order of a checksum of their paths."""
    found: dict[str, list[Path]] = {suffix: [] for suffix in KINDS}
    for place in PLACES:
        for path in Path(place).rglob("*"):
            program = path.suffix == "" and path.parent.name == "bin"
            if path.suffix in found and (path.suffix or program) and path.is_file() and not path.is_symlink():
                found[path.suffix].append(path)
    chosen = {}
    for suffix, paths in found.items():
        paths.sort(key=lambda path: (crc32(str(path).encode()), str(path)))
        chosen |= dict.fromkeys(paths[:per_kind], KINDS[suffix])
    return chosen


def features(files: dict[Path, tuple[str, ...]]) -> tuple[list[Path], np.ndarray]:
    """Those of the files that need the model, and what magika's own code makes of them: a row of bytes each."""
    from magika import Magika

    client = Magika()
    config = client._model_config
    paths, rows = [], []
    for path in files:
        try:
            _, found = client._get_result_or_features_from_path(path)
        except OSError:
            continue
        if found is not None:
            begin, middle, end = config.beg_size, config.mid_size, config.end_size
            row = [*found.beg[:begin], *found.mid[:middle], *(found.end[-end:] if end else [])]
            paths.append(path)
            rows.append(row)
    return paths, np.array(rows, np.int32)


def labels(path: Path, rows: np.ndarray, batch: int = BATCH) -> list[str]:
    """What a model takes each file for, by its highest score."""
    names = json.loads((package_model() / "config.min.json").read_text())["target_labels_space"]
    session = open_session(path)
    scores = [session.run([OUTPUT], {"bytes": rows[i : i + batch]})[0] for i in range(0, len(rows), batch)]
    return [names[i] for i in np.concatenate(scores).argmax(axis=1)]


def client_labels(path: Path, files: list[Path], folder: Path) -> list[str]:
    """What magika's own client says of the files when it is given another model."""
    from magika import Magika

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(package_model() / "config.min.json", folder)
    shutil.copy(path, folder / "model.onnx")
    return [str(result.output.label) for result in Magika(model_dir=folder).identify_paths(files)]


def task(original: Path, rows: np.ndarray) -> Task:
    """The share of labels that a model agrees on with the original; timed on one file."""
    import onnx

    expected = labels(original, rows)
    batch = onnx.load(original).graph.input[0].type.tensor_type.shape.dim[0].dim_param

    def agreement(path: Path) -> float:
        return float(np.mean([a == b for a, b in zip(expected, labels(path, rows), strict=True)]))

    return Task({"bytes": rows}, {"bytes": rows[:1]}, OUTPUT, agreement, {batch: BATCH})


def main() -> int:
    """Label the files with every model; 1 if the labels of a model of ours stray further than they may."""
    args = arguments(__doc__).parse_args()
    files = find_files()
    paths, rows = features(files)
    with ExitStack() as stack:
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magika-")))
        folder.mkdir(parents=True, exist_ok=True)
        original = folder / "magika.onnx"
        shutil.copy(package_model() / "model.onnx", original)
        np.savez(folder / "magika.npz", bytes=rows)
        known = labels(original, rows)
        right = np.mean([label in files[path] for path, label in zip(paths, known, strict=True)])
        kinds = Counter(known)
        print(f"{len(paths)} files, which the original takes for {len(kinds)} kinds; as their names say: {right:.1%}\n")
        work = task(original, rows)
        found = models(args, original, folder, VARIANTS)
        table = [measure(title, original, path, work, args) for title, path in found.items()]
    show(table, "magika", "agreement")
    if args.picture:
        draw(table, "magika, file types", "labels that agree, %", "{:.1f}", 100, args.picture)
    if args.json:
        args.json.write_text(json.dumps(as_json(table), indent=1) + "\n")
    return complain(table)


def complain(table: list[Row]) -> int:
    """Say which models of ours are not good enough."""
    bad = [
        r for r in table if r.title in ENOUGH and not (r.score >= ENOUGH[r.title][0] and r.share <= ENOUGH[r.title][1])
    ]
    for row in bad:
        least, most = ENOUGH[row.title]
        print(
            f"{row.title} must agree on {least:.1%} at {most} of the bytes, got {row.score:.2%} at {row.share:.3f}",
            file=sys.stderr,
        )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
