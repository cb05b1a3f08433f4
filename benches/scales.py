"""What searched scales and GPTQ are worth on MiniLM: `python benches/scales.py [--elements N]`.

The weights of its encoder in groups of 32 with scales of 16 bits, by the plain formula and searched (SQNR in dB); the
model with 4 bits in transformers (the mean cosine of 80 sentences to the original's), searched and by GPTQ; and the
time that a search takes, beside two of others: the MSE observer of llm-compressor and the optimizer of HQQ.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import minilm_onnx
import modelopt_rs as mo
from modelopt_rs.cli.demo import find_model
from paired import THREADS, Case, cores_at_hand, measure, told

GROUP = 32
# Bits and scheme, and the least SQNR with searched scales.
SCHEMES: list[tuple[int, str, float]] = [
    (8, "symmetric", 45.6),
    (4, "symmetric", 21.35),
    (2, "symmetric", 9.3),
    (4, "asymmetric", 21.95),
    (2, "asymmetric", 9.4),
]
COMMAND = ("quantize", "--bits", "4", "--scheme", "symmetric", "--group-size", str(GROUP), "--uniform")
GPTQ = ("--method", "gptq", "--calibrate", "texts.txt")
# How a directory is made, and the least mean cosine.
WAYS: list[tuple[str, tuple[str, ...], float]] = [
    ("plain scales", ("--search", "none"), 0.0),
    ("searched scales", (), 0.972),
    ("GPTQ", GPTQ, 0.985),
]
COLUMNS = 4096


def encoder() -> list[np.ndarray]:
    """The matrices of the encoder."""
    with mo.files.open(find_model()) as source:
        found = [source.read(name) for name in source.tensors if name.startswith("encoder.")]
    return [w for w in found if w.ndim == 2]


def sqnr(weights: list[np.ndarray], **options: Any) -> float:
    """Of all weights together."""
    signal = noise = 0.0
    for w in weights:
        off = np.asarray(mo.quantize(w, group_size=GROUP, **options)).astype(np.float64) - w
        signal, noise = signal + float(np.square(w, dtype=np.float64).sum()), noise + float(np.square(off).sum())
    return float(10 * np.log10(signal / noise))


def scales() -> bool:
    """Print what each scheme loses; say whether all are as good as they must be."""
    weights, good = encoder(), True
    print(f"{sum(w.size for w in weights):,} weights of MiniLM's encoder, groups of {GROUP}, SQNR in dB\n")
    print("| bits | scheme | plain | searched, 16-bit scales | at least |\n| --- | --- | --- | --- | --- |")
    for bits, scheme, least in SCHEMES:
        plain = sqnr(weights, bits=bits, scheme=scheme)
        found = sqnr(weights, bits=bits, scheme=scheme, search="mse", scale_dtype="float16")
        good &= found >= least
        print(f"| {bits} | {scheme} | {plain:.2f} | {found:.2f} | {least:.2f} |", flush=True)
    return good


def embeddings(folder: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """Those of a directory as transformers loads it: the mean of the tokens that are there, of length 1."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tensors = {name: torch.from_numpy(x) for name, x in feed.items()}
    with torch.no_grad():
        states = model(**tensors).last_hidden_state.numpy()
    mask = feed["attention_mask"][..., None]
    mean = (states * mask).sum(axis=1) / mask.sum(axis=1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


def whole_model() -> bool:
    """Print what the model is worth in transformers; say whether it is enough."""
    texts = minilm_onnx.sentences()
    feed, good = minilm_onnx.tokenize(texts), True
    expected = embeddings(find_model(), feed)
    print(f"\nMiniLM, 4 bits symmetric in groups of {GROUP}, {len(texts)} sentences in transformers\n")
    print("| scales | weights, bytes | mean cosine | lowest | at least |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="scales-") as name:
        folder = Path(name)
        (folder / "texts.txt").write_text("\n".join(calibration(texts)))
        for title, options, least in WAYS:
            words = [sys.executable, "-m", "modelopt_rs", *COMMAND, str(find_model()), "-o", "out", "--overwrite"]
            subprocess.run([*words, *options], check=True, stdout=subprocess.DEVNULL, cwd=folder)
            cosines = (embeddings(folder / "out", feed) * expected).sum(axis=1)
            size = sum(path.stat().st_size for path in (folder / "out").glob("*.safetensors"))
            good &= bool(cosines.mean() >= least)
            print(f"| {title} | {size:,} | {cosines.mean():.4f} | {cosines.min():.4f} | {least:g} |", flush=True)
    return good


def calibration(texts: list[str]) -> list[str]:
    """Other sentences than those that are measured: lines of the licences and documents that Python has."""
    seen, found = set(texts), []
    for module in (argparse, subprocess, tempfile, np.linalg, np.fft, np.random):
        for obj in vars(module).values():
            for line in str(getattr(obj, "__doc__", "")).split("\n\n"):
                text = " ".join(line.split())
                if 40 <= len(text) <= 300 and text not in seen:
                    seen.add(text)
                    found.append(text)
    return found[:256]


def observed(t: Any) -> Any:
    """The range of least error to the power 2.4 among 20 shrunken ones, as the MSE observer of llm-compressor."""
    import torch

    groups = t.reshape(-1, GROUP)
    top = groups.abs().amax(1, keepdim=True)
    best, kept, idle = torch.full_like(top, torch.inf), top.clone(), 0
    for i in range(20):
        scale = (1 - i / 100) * top / 7.5
        off = ((groups / scale).round().clamp(-8, 7) * scale - groups).abs_().pow_(2.4).sum(1, keepdim=True)
        better = off < best
        if better.any():
            kept, best, idle = torch.where(better, (1 - i / 100) * top, kept), torch.where(better, off, best), 0
        else:
            idle += 1
            if idle >= 5:
                break
    scale = kept / 7.5
    return ((groups / scale).round().clamp_(-8, 7) * scale).reshape(t.shape)


def half_quadratic(t: Any) -> Any:
    """Zero points by half-quadratic steps, lp of 0.7, 20 iterations, as HQQ's optimize_weights_proximal.

    At the end they are rounded: HQQ keeps them as floats, which take 12 bits more for each group than ours.
    """
    import torch

    groups = t.reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = 15 / (high - low)
    zero, beta, best = -low * scale, 10.0, torch.inf
    for _ in range(20):
        codes = (groups * scale + zero).round().clamp(0, 15)
        off = groups - (codes - zero) / scale
        off = off.sign() * torch.relu(off.abs() - off.abs().pow(-0.3) / beta)
        zero = (codes - (groups - off) * scale).mean(1, keepdim=True)
        beta *= 1.01
        now = float((groups - (codes - zero) / scale).abs().mean())
        if now >= best:
            break
        best = now
    zero = zero.round().clamp_(0, 15)
    return (((groups * scale + zero).round().clamp_(0, 15) - zero) / scale).reshape(t.shape)


def of_others(elements: int, rounds: int) -> bool:
    """Print the time of a search beside those of others; say whether it is short enough, at no less SQNR."""
    import torch

    torch.set_num_threads(THREADS)
    mo.set_num_threads(THREADS)
    x = np.random.default_rng(1).standard_normal((elements // COLUMNS, COLUMNS), dtype=np.float32)
    t = torch.from_numpy(x)
    print(f"\n{x.size:,} normal numbers, {THREADS} threads, {cores_at_hand():.1f} of {THREADS} cores at hand\n")

    def no_less(ours: mo.QuantizedArray, theirs: Any) -> None:
        lost, lost_theirs = (np.linalg.norm(np.asarray(each) - x) for each in (ours, theirs))
        assert lost <= lost_theirs, (lost, lost_theirs)

    def searched(scheme: str) -> Any:
        return lambda: mo.quantize(
            x, bits=4, scheme=scheme, group_size=GROUP, search="mse", scale_dtype="float16", nonfinite="saturate"
        )

    cases = [
        Case("4 bits symmetric, searched", "the MSE observer", 20, searched("symmetric"), lambda: observed(t), no_less),
        Case("4 bits asymmetric, searched", "HQQ", 20, searched("asymmetric"), lambda: half_quadratic(t), no_less),
    ]
    rows = [told(measure(case, rounds)) for case in cases]
    for row in rows:
        print(f"{row.work}: {x.size / row.ours_ms / 1e6:.3f} G elements/s")
    return all(row.met for row in rows)


def main() -> int:
    """Print all; 1 if something is less than it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24, help="of the rows against others (default 16 M)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    good = scales()
    if importlib.util.find_spec("transformers"):
        good &= whole_model()
        good &= of_others(args.elements, args.rounds)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
