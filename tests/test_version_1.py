"""What version 0.1 gave, as hashes: the modules may move, the bytes may not.

Every array function, optimizer, command and file function is called on inputs made here, and the SHA-256 of all that
it gives is compared with `version_1.json`. The hashes exist for the time in which the house is rebuilt: nothing that a
user sees changes unless an issue names it. Only public names are used. A result that is not in the list, of a call that
came later, is not looked at; a name of the list that nothing gives any more fails.

A deliberate change of bytes changes its hashes here, and the message of that commit says which and why:

    python tests/test_version_1.py --write

writes the list anew, from what the package gives now, and says how many hashes came, went and changed. The list must be
the same with `MODELOPT_RS_ISA=portable` and with any number of threads.

Arrays are hashed with dtype and shape, files by their bytes. In a canonical form are hashed:

- ONNX models: as read with the package onnx, for the bytes of the message are of onnx and protobuf. Of each message its
  fields by number, attributes, opsets, initializers and properties in the order of their names, and tensors as dtype,
  shape and data; without `value_info`, which onnx's shape inference writes. Models have opsets that need no converting,
  which onnx does. Files of external data are hashed by their bytes.
- Reports: without times, memory, paths and sizes of ONNX files, and numbers to 6 digits, for decibels are logarithms of
  the C library. Learning rates and sparsities of schedules likewise, which are its powers and cosines.
- Ranges by entropy and mean-squared error: as scale and zero point, for NumPy's powers may differ in the last bit.

Not hashed, because the bits are of BLAS, LAPACK, libm or onnxruntime, not ours: Muon, `least_squares`, a Hessian and
`InputStats` but of whole numbers, norms of several arrays together (`math.hypot`), bias correction, SmoothQuant but
by square roots, runs of models and their times; static ranges are of models whose sums are exact. Nor is what commands
print.
"""

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import modelopt_rs as mo

sys.path.insert(0, str(Path(__file__).parent / "shared"))  # for --write, without pytest
import reference as ref
from checkpoints import NUMPY, Tensors, directory, files_of, sharded, to_bf16, weights, write

HASHES = Path(__file__).with_name("version_1.json")
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {dtype.name: dtype for dtype in ref.DTYPES}
LENGTHS = (1, 6, 33, 130, 4099, ref.CHUNK + 65)
SMALLEST = {"float32": -149, "float64": -1074, "float16": -24, "bfloat16": -133}
Results = Iterator[tuple[str, Any]]
Group = Callable[[Path], Results]
GROUPS: dict[str, Group] = {}


def group(name: str) -> Callable[[Group], Group]:
    """Add what gives results by name: one test."""

    def add(function: Group) -> Group:
        GROUPS[name] = function
        return function

    return add


# ---------------------------------------------------------------------------------------------------- hashes


def feed(sha: Any, value: Any) -> None:
    """Take in all that a result is: kinds, dtypes, shapes and bytes."""
    if isinstance(value, bytes | str):
        data = value.encode() if isinstance(value, str) else value
        sha.update(f"{type(value).__name__} {len(data)}\n".encode() + data)
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)}\n".encode())
        for key, item in value.items():
            feed(sha, (str(key), item))
    elif isinstance(value, tuple | list):
        sha.update(f"tuple {len(value)}\n".encode())
        for item in value:
            feed(sha, item)
    elif value is None:
        sha.update(b"None\n")
    elif hasattr(value, "zero_point"):
        feed(sha, (value.codes, value.scale, value.zero_point, value.offset))
    elif isinstance(value, mo.optim.BlockState):
        feed(sha, (value.codes, value.absmax))
    else:
        array = np.asarray(value)
        assert array.dtype != object, value
        sha.update(f"{array.dtype.name} {array.shape}\n".encode() + array.tobytes())


def digest(value: Any) -> str:
    sha = hashlib.sha256()
    feed(sha, value)
    return sha.hexdigest()


def results(name: str) -> dict[str, str]:
    """The hashes of a group."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, str] = {}
        for what, value in GROUPS[name](Path(folder)):
            assert f"{name}/{what}" not in found, what
            found[f"{name}/{what}"] = digest(value)
    return found


# -------------------------------------------------------------------------------------------------- the data


def values(shape: int | tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Numbers of magnitudes from 2^-12 to 2^12, zeros of both signs and subnormals: the same on every NumPy."""
    dtype, n = np.dtype(dtype), int(np.prod(shape))
    i = np.arange(n, dtype=np.uint64)
    exponents = ((i + np.uint64(seed)) * np.uint64(2654435761) >> np.uint64(7)) % np.uint64(25)
    x = weights((n,), seed).astype(np.float64) + weights((n,), seed + 77).astype(np.float64) * 2.0**-24
    x = np.ldexp(x, exponents.astype(np.int32) - 12)
    x[5::37], x[11::41] = 0.0, -0.0
    x = x.astype(np.float32).astype(dtype) if dtype != np.float64 else x
    tiny = np.ldexp((np.arange(n) % 49 + 1).astype(np.float64), SMALLEST[dtype.name])
    x[7::53] = tiny.astype(dtype)[7::53]
    return x.reshape(shape)


def steps_of_256(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Whole numbers over 256, whose products and sums are exact in any order."""
    return np.rint(weights(shape, seed) * 256).astype(np.float32) / np.float32(256)


# ------------------------------------------------------------------------------------- calls with one array


def outcome(call: ref.Call, x: np.ndarray, **more: Any) -> Any:
    """What a call gives, or that it refuses (an empty array, a dtype), whatever it says."""
    try:
        argument = call.prepare(x)
        argument = argument.view(np.uint16) if more else argument
        return call.run(argument, **more)
    except (TypeError, ValueError):
        return "refused"


def calls_of(functions: str) -> dict[str, ref.Call]:
    every = ref.calls(mo) | ref.steps(mo)
    return {name: call for name, call in every.items() if f"{call.function}.".startswith(functions)}


def array_calls(functions: str, dtype: str) -> Group:
    def found(folder: Path) -> Results:
        for name, call in calls_of(functions).items():
            yield name, [outcome(call, values(n, DTYPES[dtype], i)) for i, n in enumerate(LENGTHS)]

    return found


FUNCTIONS = {
    "reduce": "reduce.",
    "quantize": "quantize.",
    "fake_quantize": "fake_quantize.",
    "dequantize": "dequantize.",
    "prune": "prune.",
    "optim": "optim.",
}
for function, prefix in FUNCTIONS.items():
    for each in DTYPES:
        GROUPS[f"{function}-{each}"] = array_calls(prefix, each)


@group("bf16-bits")
def _(folder: Path) -> Results:
    """Bfloat16 as uint16, which needs no package."""
    for prefix in ("reduce.", "quantize.", "fake_quantize.", "prune.", "optim."):
        for name, call in calls_of(prefix).items():
            if not name.startswith(("compress-groups", "wanda", "sparsegpt", "blocks")):
                yield f"{call.function}/{name}", [outcome(call, values(n, BF16, n), dtype="bf16") for n in (6, 258)]
    for scheme in ref.SCHEMES:
        q = mo.quantize(values((3, 70)), bits=4, scheme=scheme, group_size=32)
        yield f"dequantize/{scheme}", mo.dequantize(q, dtype="bf16")


@group("pack")
def _(folder: Path) -> Results:
    for bits in (8, 4, 2, 1):
        for n in LENGTHS:
            codes = (np.arange(3 * n) * 7919 // 3 % 2**bits).astype(np.uint8).reshape(3, n)
            packed = mo.quant.pack(codes, bits)
            signed = mo.quant.unpack(packed, bits, n, signed=True)
            again = mo.quant.pack(signed, bits)
            yield f"{bits}/{n}", (packed, mo.quant.unpack(packed, bits, n), signed, again)


@group("shapes")
def _(folder: Path) -> Results:
    """Strides, axes, grains and no axes at all."""
    x = values((4, 6, 50))
    views = {"transposed": x.T, "reversed": x[::-1, :, ::-2], "scalar": x[0, 0, 0], "one": x[:1, :1, :1]}
    for name, view in views.items():
        view = np.asarray(view)
        last = {"axis": -1} if view.ndim else {}
        yield (
            f"{name}/reduce",
            (mo.reduce.sum(view), mo.reduce.minmax(view, keepdims=True), mo.reduce.var(view, **last)),
        )
        for scheme in ref.SCHEMES:
            yield f"{name}/quantize-{scheme}", mo.quantize(view, bits=4, scheme=scheme)
            yield f"{name}/fake_quantize-{scheme}", mo.fake_quantize(view, bits=2, scheme=scheme, **last)
        yield f"{name}/magnitude", (mo.prune.magnitude(view, 0.5), mo.prune.threshold(view, 0.5, mask="bool"))
    for axis in (0, 1, 2, (0, 2), (0, 1, 2)):
        how = {"axis": axis, "keepdims": True}
        yield (
            f"axes/{axis}",
            [getattr(mo.reduce, name)(x, **how) for name in ("sum", "mean", "var", "norm", "absmax", "count_nonzero")],
        )


# ------------------------------------------------------------------------------------------------ calibration


@group("calibrator")
def _(folder: Path) -> Results:
    for name, dtype in DTYPES.items():
        batches = []
        for i in range(4):
            x = weights((999 + 100 * i,), i)
            batches.append((x * x * x * (np.float32(i) + x * x)).astype(dtype))
        for method in ("minmax", "moving_average", "percentile", "entropy", "mse"):
            for symmetric in (False, True):
                calibrator = mo.quant.Calibrator(method, bits=8 if symmetric else 4, symmetric=symmetric, percentile=99)
                for batch in batches:
                    calibrator.update(batch)
                ends = None if method in ("entropy", "mse") else calibrator.range()
                yield f"{method}-{'symmetric' if symmetric else 'asymmetric'}-{name}", (calibrator.params(), ends)
    moving = mo.quant.Calibrator("moving_average", momentum=0.25)
    parts = [mo.quant.Calibrator("percentile", percentile=90, bins=256) for _ in range(2)]
    for i in range(4):
        moving.update(values(300, seed=i))
        parts[i % 2].update(values(300, seed=i))
    parts[0].merge(parts[1])
    yield "momentum", (moving.range(), moving.params())
    yield "merged", (parts[0].range(), parts[0].params())


# ---------------------------------------------------------------------------------------------------- pruning


@group("prune-several")
def _(folder: Path) -> Results:
    for name, dtype in DTYPES.items():
        arrays = [values(shape, dtype, i) for i, shape in enumerate([(13, 40), (7,), (3, 5, 6)])]
        yield f"global_magnitude-{name}", [mo.prune.global_magnitude(arrays, share) for share in (0.0, 0.3, 0.9, 1.0)]
        yield f"global_magnitude-bits-{name}", mo.prune.global_magnitude(arrays, 0.6, mask="bits")
        w = arrays[0]
        masks = [mo.prune.magnitude(w, 0.7, mask=kind) for kind in ("bits", "bool")]
        yield f"apply_mask-{name}", [mo.prune.apply_mask(w, mask) for mask in masks]
        holes = w.copy()
        holes[2, 3:9] = np.nan
        holes[4, 5] = np.inf
        yield (
            f"nan-{name}",
            [
                mo.prune.magnitude(holes, 0.9, nonfinite="largest"),
                mo.prune.n_of_m(holes, 1, 4, nonfinite="largest"),
                mo.prune.threshold(holes, 0.1, nonfinite="largest"),
                mo.prune.blocks(holes, (1, 4), 0.5, nonfinite="largest"),
            ],
        )
        even = weights((13, 40), 4).astype(dtype)
        for norm in (1, 2, np.inf):
            yield (
                f"blocks-norm{norm}-{name}",
                [
                    mo.prune.blocks(even, (1, 8), 0.4, norm=norm),
                    mo.prune.blocks(even, (13, 2), 0.4, norm=norm, axis=1, mask="bool"),
                ],
            )
        norms = mo.prune.ColumnNorms()
        for i in range(3):
            norms.update(values((9, 40), dtype, 50 + i))
        yield f"column_norms-{name}", norms.norms
        length = norms.norms.astype(np.float64 if name == "float64" else np.float32)
        yield f"wanda-{name}", [mo.prune.wanda(w, length, 0.4), mo.prune.wanda(w, length, n=1, m=4)]


@group("prune-corrected")
def _(folder: Path) -> Results:
    """Second derivatives of whole numbers: exact whoever multiplies."""
    hessian, stats = mo.prune.Hessian(), mo.prune.InputStats(40)
    for i in range(2):
        hessian.update(steps_of_256((90, 40), i))
        stats.update(steps_of_256((90, 40), i))
    yield "hessian", (hessian.second_derivative, hessian.count)
    yield "stats", (stats.count, stats.mean, stats.products)
    for name, dtype in DTYPES.items():
        w = weights((24, 40), 3).astype(dtype)
        yield f"sparsegpt-{name}", mo.prune.sparsegpt(w, hessian, 0.5, block_size=16)
        yield f"sparsegpt-groups-{name}", mo.prune.sparsegpt(w, hessian, n=2, m=4, damping=0.1)
        small = steps_of_256((24, 40)).astype(dtype)
        bias, mean = small[:, 0], steps_of_256((40,), 4).astype(dtype)
        yield f"compensate_bias-{name}", mo.prune.compensate_bias(bias, small, np.arange(0, 40, 3), mean)


@group("importance")
def _(folder: Path) -> Results:
    for name, dtype in DTYPES.items():
        w, other = values((12, 5, 8), dtype), values((12, 5, 8), dtype, 1)
        for norm in (1, 2, np.inf):
            yield f"norm{norm}-{name}", [mo.prune.importance(w, axis, norm=norm) for axis in (0, 1, 2)]
            yield f"norm{norm}-size-{name}", [mo.prune.importance(w, axis, norm=norm, size=4) for axis in (0, 2)]
            yield (
                f"activation{norm}-{name}",
                mo.prune.importance(
                    w, 0, criterion="activation", norm=norm, activations=values((7, 12, 4), dtype, 2), activation_axis=1
                ),
            )
        for criterion in ("variance", "geometric_median"):
            yield f"{criterion}-{name}", [mo.prune.importance(w, axis, criterion=criterion) for axis in (0, 1, 2)]
        for criterion in ("taylor", "taylor_gate"):
            yield f"{criterion}-{name}", mo.prune.importance(w, 0, criterion=criterion, size=3, grad=other)
        yield f"scale-{name}", mo.prune.importance(w, 0, criterion="scale", size=2, scale=values(12, dtype, 3))


@group("take")
def _(folder: Path) -> Results:
    index = np.array([5, 0, 3, 3, 1])
    for dtype in ("float32", "float64", "float16", "int8", "uint16", "int32", "int64", "bool", "complex64", "S3"):
        x = (np.arange(6 * 7 * 6) % 251).reshape(6, 7, 6).astype(dtype)
        yield dtype, [mo.prune.take(x, index, axis) for axis in (0, 1, 2)]
    yield "bfloat16", mo.prune.take(values((6, 40), BF16), index, 0)
    yield "strided", mo.prune.take(values((6, 40)).T[::2], index, -1)


def cropped(tensors: dict[str, np.ndarray], groups: Any, **options: Any) -> Any:
    small, report = mo.prune.crop(tensors, groups, **options)
    scores = {each.name: (each.kept, each.scores, each.bytes_before, each.bytes_after) for each in report.groups}
    return small, scores, str(report.shapes), report.bytes_before, report.bytes_after


@group("crop-arrays")
def _(folder: Path) -> Results:
    for name, dtype in DTYPES.items():
        w = {"0": values((24, 10), dtype), "0.b": values(24, dtype), "2": values((40, 24), dtype, 1)}
        w |= {"4": values((3, 40), dtype, 2), "4.b": values(3, dtype)}
        groups = mo.prune.mlp_groups(w, ["0", "2", "4"], ["0.b", None, "4.b"])
        for norm in (1, 2, np.inf):
            yield f"mlp-norm{norm}-{name}", cropped(w, groups, keep=0.5, norm=norm)
        yield f"mlp-global-{name}", cropped(w, groups, keep=0.4, scope="global", round_to=1)
        yield f"mlp-numbers-{name}", cropped(w, groups, keep={"0": 7, "*": 0.7}, round_to=4)
        yield f"mlp-scores-{name}", cropped(w, groups, keep=0.5, scores={"0": np.arange(24)[::-1]})
        shapes = {"c": (8, 3, 3, 3), "bn": (8,), "d": (16, 1, 3, 3), "e": (24, 16, 1, 1), "f": (10, 24 * 4)}
        w = {key: values(shape, dtype, i) for i, (key, shape) in enumerate(shapes.items())}
        layers = [mo.prune.Layer("c", channelwise=("bn",)), mo.prune.Layer("d", depthwise=True)]
        layers += [mo.prune.Layer("e"), mo.prune.Layer("f")]
        for last in (False, True):
            groups = mo.prune.chain_groups(w, layers, channels_last=last)
            yield f"chain-{'last' if last else 'first'}-{name}", cropped(w, groups, keep=0.5)
            kept = {each.name: np.arange(0, each.units, 3) for each in groups}
            yield f"apply_crop-{'last' if last else 'first'}-{name}", mo.prune.apply_crop(w, groups, kept)


@group("crop-transformers")
def _(folder: Path) -> Results:
    for name, (make, config) in MODELS.items():
        tensors = {key: array for key, (dtype, array) in make("F32").items()}
        for what in ("heads", "ffn", "hidden", "all"):
            groups = mo.prune.transformer_groups(tensors, config, what)
            yield f"{name}-{what}", cropped(tensors, groups, keep=0.5)
            if what != "hidden":  # alone it leaves no whole heads
                plan = mo.prune.plan_crop(tensors, groups, keep=0.5)
                yield f"{name}-{what}-config", json.dumps(mo.prune.cropped_config(config, plan))


@group("schedules")
def _(folder: Path) -> Results:
    s, rates = mo.prune, mo.optim.schedule
    grow = {"sparsity": 0.8, "begin": 3, "end": 17, "initial": 0.1}
    yield "prune", [[f"{f(**grow)(t):.6g}" for t in range(20)] for f in (s.linear, s.cubic)]
    yield "prune-constant", [s.constant(0.5, begin=4)(t) for t in range(9)]
    made = {
        "constant": rates.constant(0.1),
        "step_decay": rates.step_decay(0.1, 3, 0.5),
        "exponential": rates.exponential(0.1, 0.9),
        "cosine": rates.cosine(0.1, 10, 0.01),
        "polynomial": rates.polynomial(0.1, 10, 2.0, 0.01),
        "linear_warmup": rates.linear_warmup(rates.cosine(0.1, 10), 5, 0.1),
        "one_cycle": rates.one_cycle(0.1, 15),
        "one_cycle-linear": rates.one_cycle(0.1, 15, anneal="linear", pct_start=0.5),
    }
    for name, schedule in made.items():
        yield name, [f"{schedule(t):.6g}" for t in range(1, 20)]


# ----------------------------------------------------------------------------------------------- optimizers

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd-nesterov": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "sgd-dampened": ("SGD", {"momentum": 0.8, "dampening": 0.1, "maximize": True}),
    "adagrad": ("Adagrad", {"initial_accumulator_value": 0.1, "lr_decay": 0.01}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-centered": ("RMSprop", {"momentum": 0.9, "centered": True}),
    "adadelta": ("Adadelta", {"weight_decay": 0.01}),
    "adam": ("Adam", {"weight_decay": 0.01}),
    "adam-amsgrad": ("Adam", {"amsgrad": True}),
    "adam-optax": ("Adam", {"semantics": "optax"}),
    "adamw": ("AdamW", {}),
    "nadam": ("NAdam", {}),
    "radam": ("RAdam", {}),
    "adamax": ("Adamax", {}),
    "lion": ("Lion", {"weight_decay": 0.1}),
    "lamb": ("LAMB", {"weight_decay": 0.1}),
    "adafactor": ("Adafactor", {"weight_decay": 0.1}),
}
CODED = {"sgd-nesterov": (8,), "adagrad": (8,), "rmsprop": (8,), "adam": (8, 4), "adamw": (8, 4), "lion": (8,)}
SHAPES = {"a": (30, 41), "b": (7,), "c": ()}


def arrays_of(seed: int, dtype: Any) -> dict[str, np.ndarray]:
    return {key: weights(shape, seed + 9 * i).astype(dtype) for i, (key, shape) in enumerate(SHAPES.items())}


def trained(folder: Path, name: str, dtype: Any, **more: Any) -> Any:
    """Parameters, states and saved bytes after some steps; gradients have other dtypes' numbers in the third."""
    kind, options = OPTIMIZERS[name]
    params = arrays_of(0, dtype)
    optimizer = getattr(mo.optim, kind)(params, **{"lr": 0.05, **options, **more})
    for t in range(1, 6):
        how = {"grad_scale": 2.0, "clip_value": 0.25} if t == 3 else {}
        grads: dict[str, Any] = arrays_of(100 * t, dtype)
        grads = {key: grad for key, grad in grads.items() if t != 4 or key != "b"}
        optimizer.step(grads, **how)
    optimizer.save(folder / "state.safetensors")
    return params, list(optimizer.state), (folder / "state.safetensors").read_bytes()


def optimizers(dtype: str) -> Group:
    def found(folder: Path) -> Results:
        for name in OPTIMIZERS:
            yield name, trained(folder, name, DTYPES[dtype])
            if dtype in ("float16", "bfloat16"):
                yield f"{name}-master", trained(folder, name, DTYPES[dtype], master=True)
                if name not in ("lamb", "adafactor"):
                    yield f"{name}-rounded", trained(folder, name, DTYPES[dtype], rounding_seed=5)

    return found


for each in DTYPES:
    GROUPS[f"optimizers-{each}"] = optimizers(each)


@group("optimizers-coded")
def _(folder: Path) -> Results:
    for name, choices in CODED.items():
        for bits in choices:
            for coding in ("minifloat", "dynamic")[: 2 if bits == 8 else 1]:
                for dtype in ("float32", "bfloat16"):
                    how = {"state_bits": bits, "coding": coding, "state_min_size": 0}
                    yield f"{name}-{bits}-{coding}-{dtype}", trained(folder, name, DTYPES[dtype], **how)


@group("optimizers-more")
def _(folder: Path) -> Results:
    """Groups, schedules, clipping of one array's norm, accumulation, resumed states, bfloat16 bits."""
    p, q = weights((20, 9)), weights((6,), 1)
    schedule = mo.optim.schedule.step_decay(0.1, 2, 0.5)
    optimizer = mo.optim.AdamW([{"params": [p], "lr": schedule}, {"params": [q], "weight_decay": 0.0}], lr=0.02)
    for t in range(5):
        optimizer.step([weights((20, 9), t + 2), weights((6,), t + 3)])
    yield "groups", (p, q, list(optimizer.state))
    again = mo.optim.AdamW([{"params": [p], "lr": schedule}, {"params": [q], "weight_decay": 0.0}], lr=0.02)
    again.load_state_dict(optimizer.state_dict())
    again.step([weights((20, 9), 30), weights((6,), 31)])
    yield "resumed", (p, q, list(again.state))
    one = weights((333,), 5)
    clipped = mo.optim.SGD(one, lr=0.1, momentum=0.9)
    for t in range(3):
        clipped.step(weights((333,), 50 + t) * 8, clip_norm=1.0)
    yield "clip_norm", (one, mo.optim.global_norm(one), mo.optim.global_norm([None, values(999)]))
    total = weights((333,), 6)
    summed = mo.optim.Adam(total, lr=0.1)
    for t in range(3):
        summed.accumulate(weights((333,), 60 + t))
    summed.step()
    yield "accumulated", (total, list(summed.state))
    bits = to_bf16(weights((300,), 7))
    raw = mo.optim.Lion(bits, lr=0.01, dtype="bf16", master=True)
    for t in range(3):
        raw.step(to_bf16(weights((300,), 70 + t)))
    yield "bf16-bits", (bits, list(raw.state))


@group("block-states")
def _(folder: Path) -> Results:
    for coding in ("minifloat", "dynamic", "dynamic4"):
        for signed in (False, True):
            for n in (1, 129, 5000):
                x = values(n, seed=n)
                state = mo.optim.BlockState.from_array(x if signed else np.abs(x), coding=coding, signed=signed)
                zeros = mo.optim.BlockState.zeros((n,), coding=coding, signed=signed)
                yield f"{coding}-{'signed' if signed else 'unsigned'}-{n}", (state, state.dequantize(), zeros)


@group("pruned-optimizers")
def _(folder: Path) -> Results:
    def grow(step: int) -> float:
        return mo.prune.cubic(0.75, begin=0, end=4)(step)

    ways: dict[str, dict[str, Any]] = {
        "tensor": {"sparsity": grow},
        "row": {"sparsity": grow, "scope": "row", "every": 2},
        "global": {"sparsity": 0.6, "scope": "global"},
        "groups": {"n": 2, "m": 4},
    }
    for name, way in ways.items():
        for kind in ("SGD", "AdamW", "Adafactor"):
            params = {"a": weights((12, 16)), "b": weights((8, 24), 1), "c": weights((5,), 2)}
            optimizer = mo.prune.PrunedOptimizer(getattr(mo.optim, kind)(params, lr=0.05), **way)
            for t in range(5):
                optimizer.step({key: weights(p.shape, 10 * t + i) for i, (key, p) in enumerate(params.items())})
            yield f"{name}-{kind}", (params, optimizer.masks, list(optimizer.optimizer.state), optimizer.sparsity)


# ----------------------------------------------------------------------------------- safetensors and commands


def of(shapes: dict[str, tuple[int, ...]], dtype: str) -> Tensors:
    made = {}
    for seed, (name, shape) in enumerate(sorted(shapes.items())):
        x = weights(shape, seed)
        made[name] = (dtype, to_bf16(x) if dtype == "BF16" else x.astype(NUMPY[dtype]))
    return made


def bert(dtype: str) -> Tensors:
    shapes = {f"embeddings.{name}_embeddings.weight": (11, 64) for name in ("word", "position", "token_type")}
    shapes |= {"embeddings.LayerNorm.weight": (64,), "pooler.dense.weight": (64, 64), "pooler.dense.bias": (64,)}
    for i in range(2):
        layer = f"encoder.layer.{i}."
        linear = {f"attention.self.{part}": (64, 64) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (64, 64), "intermediate.dense": (96, 64), "output.dense": (64, 96)}
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        shapes |= {f"{layer}output.LayerNorm.{part}": (64,) for part in ("weight", "bias")}
    model = of({f"bert.{name}": shape for name, shape in shapes.items()}, dtype)
    return model | {"bert.embeddings.position_ids": ("I64", np.arange(11).reshape(1, 11))}


def llama(dtype: str) -> Tensors:
    shapes = {"model.embed_tokens.weight": (11, 64), "model.norm.weight": (64,), "lm_head.weight": (11, 64)}
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (64 if part == "q" else 16, 64) for part in "qkv"}
        shapes |= {f"{layer}self_attn.o_proj.weight": (64, 64), f"{layer}mlp.down_proj.weight": (64, 96)}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (96, 64) for part in ("gate", "up")}
        shapes |= {f"{layer}{norm}.weight": (64,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return of(shapes, dtype)


WIDTHS = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96, "vocab_size": 11}
MODELS = {
    "bert": (bert, {"model_type": "bert", **WIDTHS}),
    "llama": (llama, {"model_type": "llama", **WIDTHS, "num_key_value_heads": 2, "torch_dtype": "float32"}),
}
LEFT_OUT = {"seconds", "gb_per_s", "peak_memory", "source", "output", "a", "b", "file_bytes", "warnings"}
LEFT_OUT |= {"search", "scale_dtype"}


def said(report: Any) -> str:
    """A report without what differs between two runs or came later, and numbers to 6 digits."""
    read = json.loads(report if isinstance(report, str) else report.to_json())
    left_out = LEFT_OUT | {"changed"} if "b" in read else LEFT_OUT  # of a comparison

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in left_out}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return f"{value:.6g}" if isinstance(value, float) else value

    return json.dumps(plain(read))


def written(path: Path) -> Any:
    """The bytes of a file or of all files of a directory."""
    return files_of(path) if path.is_dir() else path.read_bytes()


def sources(folder: Path) -> dict[str, Path]:
    """The same kind of model in each form of files, and of each dtype."""
    model, config = MODELS["bert"]
    wrong = model("F32")
    broken = wrong["bert.encoder.layer.0.intermediate.dense.weight"][1]
    broken[3, 5], broken[4, 6], broken[5, 7] = np.nan, np.inf, -np.inf
    return {
        "file": write(folder / "file.safetensors", model("F32"), {"format": "pt"}),
        "half": write(folder / "half.safetensors", model("F16")),
        "bfloat": write(folder / "bfloat.safetensors", model("BF16")),
        "directory": directory(folder / "directory", model("F32"), config),
        "llama": directory(folder / "llama", llama("BF16"), MODELS["llama"][1]),
        "sharded": sharded(folder / "sharded", model("F32")),
        "broken": write(folder / "broken.safetensors", wrong),
    }


# Version 0.1 searched no scales, kept them in float32, and had zero points only where they were asked for.
PLAIN_SCALES: dict[str, Any] = {"search": None, "scale_dtype": "float32"}
PLAIN = {**PLAIN_SCALES, "scheme": "symmetric"}
ASYMMETRIC = ["--scheme", "asymmetric"]
PLAIN_WORDS = ["--search", "none", "--scale-dtype", "float32", "--scheme", "symmetric"]
QUANTIZE: dict[str, dict[str, Any]] = {
    "8": {},
    "8-asymmetric": {"scheme": "asymmetric"},
    "4-group16": {"bits": 4, "group_size": 16},
    "4-asymmetric-group8": {"bits": 4, "scheme": "asymmetric", "group_size": 8},
    "4-row": {"bits": 4},
    "2-asymmetric": {"bits": 2, "scheme": "asymmetric"},
    "2-group16": {"bits": 2, "group_size": 16},
    "include": {"include": ["*embed*s.weight"], "exclude": ["*.0.*"]},
}
PRUNE: dict[str, dict[str, Any]] = {
    "tensor": {"sparsity": 0.5},
    "row": {"sparsity": 0.3, "scope": "row"},
    "global": {"sparsity": 0.7, "scope": "global"},
    "2of4": {"n": 2, "m": 4},
    "bitmask": {"sparsity": 0.8, "format": "bitmask"},
    "bitmask-global": {"sparsity": 0.5, "scope": "global", "format": "bitmask"},
    "bitmask-2of4": {"n": 2, "m": 4, "format": "bitmask"},
    "then4": {"sparsity": 0.5, "then": mo.QuantizeOptions(bits=4, group_size=16, **PLAIN)},
    "then8": {"n": 1, "m": 8, "then": mo.QuantizeOptions(**{**PLAIN, "scheme": "asymmetric"})},
    "include": {"sparsity": 0.5, "include": ["*embed*s.weight"], "exclude": ["*.1.*"]},
}
CROP: dict[str, dict[str, Any]] = {
    "ffn": {"keep": 0.75, "what": "ffn"},
    "all": {"keep": 0.5, "what": "all"},
    "heads": {"keep": {"*.heads": 1, "*.ffn": 16}, "what": ["heads", "ffn"], "norm": 1},
    "inf": {"keep": 0.3, "what": "ffn", "round_to": 4, "norm": float("inf")},
    "then4": {"keep": 0.5, "what": "ffn", "then": mo.QuantizeOptions(bits=4, group_size=16, **PLAIN)},
}
FORMS = ("file", "half", "bfloat", "directory", "llama", "sharded")


def file_calls(function: str, ways: dict[str, dict[str, Any]], form: str) -> Group:
    def found(folder: Path) -> Results:
        source = sources(folder)[form]
        for i, (name, options) in enumerate(ways.items()):
            out = folder / f"out{i}{source.suffix}"
            call = getattr(mo, f"{function}_file")
            options = {**PLAIN, **options} if function == "quantize" else options
            report = call(source, out, durable=False, **options)
            yield name, written(out)
            yield f"{name}/report", said(report)
            if not i:
                yield f"{name}/plan", said(call(source, folder / "none", dry_run=True, **options))
            if function != "crop" or "then" in options:
                mo.dequantize_file(out, folder / f"dense{i}{source.suffix}", durable=False)
                yield f"{name}/dequantized", written(folder / f"dense{i}{source.suffix}")
                if i < 2:
                    yield f"{name}/compared", said(mo.compare_files(source, out))

    return found


for form in FORMS:
    GROUPS[f"quantize_file-{form}"] = file_calls("quantize", QUANTIZE, form)
    GROUPS[f"prune_file-{form}"] = file_calls("prune", PRUNE, form)
for form in ("directory", "llama"):
    GROUPS[f"crop_file-{form}"] = file_calls("crop", CROP, form)


@group("files-more")
def _(folder: Path) -> Results:
    """Numbers that are none, small tiles, other dtypes, a config beside a file, reader and writer."""
    paths = sources(folder)
    for scheme in ("symmetric", "asymmetric"):
        out = folder / f"{scheme}.safetensors"
        how = {**PLAIN_SCALES, "bits": 4, "scheme": scheme, "nonfinite": "saturate", "max_memory": 20_000}
        report = mo.quantize_file(paths["broken"], out, durable=False, **how)
        yield f"saturated-{scheme}", (written(out), said(report))
    mo.prune_file(paths["broken"], folder / "nan.safetensors", sparsity=0.5, nonfinite="largest", durable=False)
    yield "nan-largest", written(folder / "nan.safetensors")
    (folder / "config.json").write_text(json.dumps(MODELS["bert"][1]))
    mo.crop_file(
        paths["half"],
        folder / "cropped.safetensors",
        keep=0.5,
        what="heads",
        config=folder / "config.json",
        durable=False,
    )
    yield "crop-with-config", written(folder / "cropped.safetensors")
    for dtype in ("float32", "float16", "bfloat16"):
        out = folder / f"{dtype}.safetensors"
        mo.dequantize_file(folder / "symmetric.safetensors", out, dtype=dtype, durable=False)
        yield f"dequantize-{dtype}", written(out)
    with mo.files.open(folder / "symmetric.safetensors", dequantize=True) as source:
        yield "open-dequantized", {name: source.read(name) for name in source.tensors}
    arrays = {"w": weights((33, 7)), "n": np.arange(5), "half": weights((4, 4), 1).astype(np.float16)}
    names = {"w": "F32", "n": "I64", "half": "F16"}
    infos = [mo.files.TensorInfo(name, names[name], a.shape, a.nbytes) for name, a in arrays.items()]
    with mo.files.SafetensorsSink(folder / "sink.safetensors", infos, {"author": "nobody"}, durable=False) as sink:
        for name, array in arrays.items():
            sink.write(name, array)
        sink.commit()
    yield "sink", written(folder / "sink.safetensors")


@group("inspect")
def _(folder: Path) -> Results:
    paths = sources(folder)
    for form, path in paths.items():
        yield form, said(mo.inspect_file(path))
    for form in ("half", "bfloat", "sharded"):
        yield f"compared-{form}", said(mo.compare_files(paths["file"], paths[form]))


def run(main: Callable[[list[str]], int], words: list[Any]) -> None:
    """Run a command that must succeed; what it prints is not looked at."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(word) for word in words]) == 0, words


@group("cli")
def _(folder: Path) -> Results:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from modelopt_rs.cli import main

    paths, out = sources(folder), folder / "out"
    commands = {
        "quantize": ["quantize", paths["directory"], *PLAIN_WORDS, "--bits", 4, "--group-size", 8, *ASYMMETRIC],
        "quantize-include": [
            "quantize",
            paths["llama"],
            *PLAIN_WORDS,
            "--include",
            "*embed*s.weight",
            "--exclude",
            "*.0.*",
        ],
        "prune": ["prune", paths["directory"], "--sparsity", 0.5, "--scope", "row"],
        "prune-bitmask": ["prune", paths["sharded"], "--n-of-m", "2:4", "--format", "bitmask"],
        "prune-then": ["prune", paths["llama"], "--sparsity", 0.5, "--then", "quantize", "--bits", 4, *PLAIN_WORDS],
        "crop": ["crop", paths["directory"], "--keep", 0.75, "--what", "ffn"],
        "crop-then": [
            "crop",
            paths["llama"],
            "--keep",
            "*.ffn=16",
            "--what",
            "ffn",
            "--then",
            "quantize",
            *PLAIN_WORDS,
        ],
    }
    for name, command in commands.items():
        words = [command[0], "-o", out, "--overwrite", "--json", folder / "report.json", *command[1:]]
        run(main, words)
        yield name, written(out)
        yield f"{name}/report", said((folder / "report.json").read_text())
        dense = ["dequantize", out, "-o", folder / "dense", "--overwrite", "--dtype", "float16"]
        if not name.startswith("crop"):
            run(main, dense)
            yield f"{name}/dequantized", written(folder / "dense")
    for name, words in {
        "inspect": ["inspect", paths["directory"]],
        "compare": ["compare", paths["file"], paths["half"]],
    }.items():
        run(main, [*words, "--json", folder / "report.json"])
        yield name, said((folder / "report.json").read_text())


# ----------------------------------------------------------------------------------------------------- ONNX


def model(nodes: list[Any], inputs: dict[str, Any], shapes: dict[str, tuple[int, ...]], opset: int, kind: str) -> Any:
    """A model of one output "y"; weights that are multiples of 1/8, so that all sums are exact."""
    from onnx import TensorProto, helper, numpy_helper

    element = TensorProto.FLOAT16 if kind == "float16" else TensorProto.FLOAT
    arrays = {name: np.rint(weights(s, i) * 8).astype(np.float32) / 8 for i, (name, s) in enumerate(shapes.items())}
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a.astype(kind)), name) for name, a in arrays.items()]
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name == "ids" else element, shape)
        for name, shape in inputs.items()
    ]
    output = helper.make_tensor_value_info("y", element, ["n", None])
    graph = helper.make_graph(nodes, "g", values, [output], tensors)
    version = {17: 8, 21: 10, 25: 13}[opset]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)


def convolutions(opset: int = 21, kind: str = "float32") -> Any:
    """Convolutions, MatMul with Add, and Gemm both ways round."""
    from onnx import helper

    node = helper.make_node
    nodes = [
        node("Conv", ["x", "first", "first_bias"], ["c1"], "n1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "n2"),
        node("Conv", ["r1", "second"], ["c2"], "n3", strides=[4, 4]),
        node("Relu", ["c2"], ["r2"], "n4"),
        node("Flatten", ["r2"], ["f"], "n5"),
        node("MatMul", ["f", "fc"], ["m"], "n6"),
        node("Add", ["m", "fc_bias"], ["a"], "n7"),
        node("Relu", ["a"], ["r3"], "n8"),
        node("Gemm", ["r3", "head", "head_bias"], ["g"], "n9", transB=1),
        node("Relu", ["g"], ["r4"], "n10"),
        node("Gemm", ["r4", "last"], ["y"], "n11"),
    ]
    shapes = {"first": (32, 8, 3, 3), "first_bias": (32,), "second": (16, 32, 4, 4), "fc": (64, 128), "fc_bias": (128,)}
    shapes |= {"head": (48, 128), "head_bias": (48,), "last": (48, 32)}
    return model(nodes, {"x": ["n", 8, 8, 8]}, shapes, opset, kind)


def embedded(opset: int = 21) -> Any:
    """An embedding, a weight behind a Transpose, one that two layers share, and one that an Add takes."""
    from onnx import helper

    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["e"], "n1"),
        node("Transpose", ["behind"], ["t"], "n2", perm=[1, 0]),
        node("MatMul", ["e", "t"], ["m1"], "n3"),
        node("Relu", ["m1"], ["r1"], "n4"),
        node("MatMul", ["r1", "shared"], ["m2"], "n5"),
        node("Tanh", ["m2"], ["r2"], "n6"),
        node("MatMul", ["r2", "shared"], ["m3"], "n7"),
        node("Add", ["m3", "wide"], ["a"], "n8"),
        node("MatMul", ["a", "out"], ["y"], "n9"),
    ]
    shapes = {"table": (40, 32), "behind": (64, 32), "shared": (64, 64), "wide": (5, 64), "out": (64, 32)}
    return model(nodes, {"ids": [5]}, shapes, opset, "float32")


def perceptron(opset: int = 21) -> Any:
    from onnx import helper

    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h1"], "n1"),
        node("Relu", ["h1"], ["r1"], "n2"),
        node("MatMul", ["r1", "w2"], ["m2"], "n3"),
        node("Add", ["m2", "b2"], ["h2"], "n4"),
        node("Relu", ["h2"], ["r2"], "n5"),
        node("MatMul", ["r2", "w3"], ["y"], "n6"),
    ]
    shapes = {"w1": (24, 40), "b1": (40,), "w2": (40, 32), "b2": (32,), "w3": (32, 12)}
    return model(nodes, {"x": ["n", 24]}, shapes, opset, "float32")


def plain(message: Any) -> Any:
    """A message of protobuf as tuples and texts that do not depend on who wrote it; see above."""
    from onnx import TensorProto, numpy_helper

    if isinstance(message, TensorProto):
        data = message.raw_data or list(message.string_data) or numpy_helper.to_array(message).tobytes()
        return message.name, message.data_type, tuple(message.dims), data
    fields = {}
    for field, value in message.ListFields():
        if field.name == "value_info":
            continue
        one = plain if field.message_type is not None else (lambda x: x if isinstance(x, bytes | str) else repr(x))
        several = not isinstance(value, bytes | str) and hasattr(value, "__len__")
        items = [one(item) for item in value] if several else one(value)
        by_name = ("attribute", "opset_import", "initializer", "metadata_props", "functions")
        fields[field.name] = sorted(items, key=repr) if field.name in by_name else items
    return fields


def read_onnx(path: Path) -> Any:
    """A model in canonical form, and the bytes of the files beside it that have its data."""
    import onnx

    proto = onnx.load(path)
    beside = [file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")) if file != path]
    return plain(proto), beside


def onnx_calls(function: str, make: Callable[[], Any], ways: dict[str, dict[str, Any]]) -> Group:
    def found(folder: Path) -> Results:
        pytest.importorskip("onnx_ir")
        pytest.importorskip("onnxruntime")
        import onnx

        onnx.save(make(), folder / "a.onnx")
        for i, (name, options) in enumerate(ways.items()):
            out = folder / f"b{i}.onnx"
            given = {key: value() if key == "onnx" else value for key, value in options.items()}
            given = {**PLAIN_SCALES, **given} if function == "quantize" else given
            report = getattr(mo, f"{function}_file")(folder / "a.onnx", out, run=None, durable=False, **given)
            yield name, read_onnx(out)
            yield f"{name}/report", said(report)

    return found


def weight_only(bits: int, excluded: str, *targets: str) -> dict[str, dict[str, Any]]:
    """The ways to quantize weights alone."""
    ways: dict[str, dict[str, Any]] = {}
    for target in targets:
        for scheme, sizes in {"symmetric": (None, 64), "asymmetric": (None, 64), None: (None,)}.items():
            for size in sizes:
                ways[f"{target}-{scheme}-{size}"] = {
                    "bits": bits,
                    "scheme": scheme,
                    "group_size": size,
                    "onnx": lambda target=target: mo.OnnxOptions(target=target),
                }
    ways["left-out"] = {"bits": bits, "exclude": [excluded], "onnx": lambda: mo.OnnxOptions(accuracy_level=0)}
    if "portable" in targets:
        ways["per-tensor"] = {"bits": bits, "onnx": lambda: mo.OnnxOptions(target="portable", per_tensor=True)}
    return ways


for net, maker, excluded in (("convolutions", convolutions, "fc"), ("embedded", embedded, "shared")):
    for bits in (8, 4):
        ways = weight_only(bits, excluded, "onnxruntime", "portable")
        GROUPS[f"onnx-weights-{net}-{bits}"] = onnx_calls("quantize", maker, ways)
    for bits, target, opset in ((2, "onnxruntime", 21), (2, "portable", 25)):
        GROUPS[f"onnx-weights-{net}-{bits}-{target}"] = onnx_calls(
            "quantize", lambda maker=maker, opset=opset: maker(opset), weight_only(bits, excluded, target)
        )
GROUPS["onnx-weights-half"] = onnx_calls(
    "quantize",
    lambda: convolutions(kind="float16"),
    {str(bits): {"bits": bits, "scheme": scheme} for bits in (8, 4, 2) for scheme in ("symmetric",)},
)
GROUPS["onnx-weights-mixed"] = onnx_calls(
    "quantize",
    convolutions,
    {
        "4-8": {"bits": 4, "onnx": lambda: mo.OnnxOptions(bits_of={"fc": 8, "head": 2})},
        "8-4": {"bits": 8, "scheme": "symmetric", "onnx": lambda: mo.OnnxOptions(bits_of={"*": 4})},
    },
)


def static(shape: tuple[int, ...], **options: Any) -> Callable[[], Any]:
    """Options with calibration data of numbers whose sums are exact."""
    data = np.rint(weights(shape, 99) * 8).astype(np.float32) / 8
    return lambda: mo.OnnxOptions(activations="static", calibrate={"x": data}, bias_correction=False, **options)


for net, maker, shape, excluded in (
    ("perceptron", perceptron, (1024, 24), "w2"),
    ("convolutions", convolutions, (64, 8, 8, 8), "fc"),
):
    GROUPS[f"onnx-activations-{net}"] = onnx_calls(
        "quantize",
        maker,
        {
            "dynamic": {"onnx": lambda: mo.OnnxOptions(activations="dynamic")},
            "dynamic-equalized": {"onnx": lambda: mo.OnnxOptions(activations="dynamic", equalize=True)},
            "dynamic-left-out": {
                "exclude": [excluded],
                "onnx": lambda: mo.OnnxOptions(activations="dynamic"),
            },
            "static-equalized": {"uniform": True, "onnx": static(shape, equalize=True)},
            "static-smooth": {"uniform": True, "onnx": static(shape, smooth=0.5)},
            **{
                f"static-{method}": {"uniform": True, "onnx": static(shape, method=method)}
                for method in ("minmax", "moving_average", "percentile", "entropy", "mse")
            },
        },
    )
for net, maker in {"convolutions": convolutions, "embedded": embedded, "perceptron": perceptron}.items():
    GROUPS[f"onnx-prune-{net}"] = onnx_calls(
        "prune",
        maker,
        {name: PRUNE[name] for name in ("tensor", "row", "global", "2of4")},
    )
for net, maker, what in (("convolutions", convolutions, ["channels", "ffn"]), ("perceptron", perceptron, ["ffn"])):
    GROUPS[f"onnx-crop-{net}"] = onnx_calls(
        "crop",
        maker,
        {
            **{each: {"keep": 0.5, "what": each} for each in what},
            "all": {"keep": 0.5, "what": "all"},
            "norm1": {"keep": 0.75, "what": "all", "norm": 1, "round_to": 4},
            "global": {"keep": 0.3, "what": "all", "scope": "global", "round_to": 1},
        },
    )


def seeded(proto: Any) -> Any:
    """The model with numbers of this file in all its float tensors of 1 KiB and more, wherever they stand."""
    from onnx import TensorProto, numpy_helper

    def visit(message: Any) -> None:
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            for item in value if hasattr(value, "__len__") else [value]:
                if isinstance(item, TensorProto):
                    if item.data_type == TensorProto.FLOAT and len(item.dims):
                        new = weights(tuple(item.dims), len(item.name))
                        item.CopyFrom(numpy_helper.from_array(new, item.name))
                else:
                    visit(item)

    visit(proto)
    return proto


@group("onnx-samples")
def _(folder: Path) -> Results:
    """Weights in Constant nodes, branches, loops, functions, inputs and external data; and a transformer."""
    pytest.importorskip("onnx_ir")
    pytest.importorskip("onnxruntime")
    import onnx_samples

    for name, make in onnx_samples.CORPUS.items():
        for external in (False, True):
            path = onnx_samples.save(folder / f"{name}{external}.onnx", seeded(make()), external=external)
            out, what = path.with_name(f"to-{path.name}"), f"{name}{'-external' if external else ''}"
            report = mo.quantize_file(path, out, run=None, durable=False, **PLAIN_SCALES)
            yield what, (read_onnx(out), said(report))
            yield f"{what}/inspect", said(mo.inspect_file(path))
            mo.prune_file(path, out, sparsity=0.5, run=None, durable=False, overwrite=True)
            yield f"{what}/pruned", read_onnx(out)
            yield f"{what}/compared", said(mo.compare_files(path, out, run=None))
            onnx_samples.resave(path, out.with_name(f"as-{path.name}"), external=external, durable=False)
            yield f"{what}/resaved", read_onnx(out.with_name(f"as-{path.name}"))


@group("onnx-transformer")
def _(folder: Path) -> Results:
    pytest.importorskip("onnx_ir")
    pytest.importorskip("onnxruntime")
    import onnx

    import graph_bert

    onnx.save(seeded(graph_bert.bert("lengths")), folder / "a.onnx")
    for what in ("heads", "ffn", "all"):
        report = mo.crop_file(folder / "a.onnx", folder / f"{what}.onnx", what=what, keep=0.5, run=None, durable=False)
        yield what, (read_onnx(folder / f"{what}.onnx"), said(report))


@group("onnx-cli")
def _(folder: Path) -> Results:
    for module in ("onnx_ir", "onnxruntime", "click", "rich"):
        pytest.importorskip(module)
    import onnx

    from modelopt_rs.cli import main

    onnx.save(convolutions(), folder / "a.onnx")
    commands = {
        "quantize": ["quantize", *PLAIN_WORDS[:4], "--bits", 4, "--bits-of", "fc=8"],
        "quantize-portable": ["quantize", *PLAIN_WORDS[:4], "--target", "portable", *ASYMMETRIC],
        "dynamic": ["quantize", *PLAIN_WORDS, "--activations", "dynamic", "--equalize"],
        "prune": ["prune", "--n-of-m", "2:4"],
        "crop": ["crop", "--keep", 0.5, "--what", "channels"],
    }
    for name, command in commands.items():
        words = [*command, folder / "a.onnx", "-o", folder / f"{name}.onnx", "--no-run", "--json", folder / "r.json"]
        run(main, words)
        yield name, (read_onnx(folder / f"{name}.onnx"), said((folder / "r.json").read_text()))


# ---------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    return json.loads(HASHES.read_text())


@pytest.mark.parametrize("name", GROUPS)
def test_what_version_1_gave_is_given_still(name: str, pinned: dict[str, str]) -> None:
    known = {key: value for key, value in pinned.items() if key.startswith(f"{name}/")}
    assert known, "no hash of this group; see the module's docstring"
    found = results(name)
    assert not known.keys() - found.keys(), "nothing gives these any more"
    assert not {key for key, value in known.items() if found[key] != value}, "these gave other bytes"


def test_every_hash_is_of_a_group(pinned: dict[str, str]) -> None:
    assert not {key for key in pinned if key.split("/")[0] not in GROUPS}


def main_write() -> None:
    before = json.loads(HASHES.read_text()) if HASHES.exists() else {}
    now = {key: value for name in GROUPS for key, value in results(name).items()}
    HASHES.write_text(json.dumps(now, indent=0, sort_keys=True) + "\n")
    changed = sorted(key for key in now.keys() & before.keys() if now[key] != before[key])
    print(f"{len(now)} hashes: {len(now.keys() - before.keys())} came, {len(before.keys() - now.keys())} went")
    print(f"{len(changed)} changed", *changed, sep="\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_version_1.py --write")
    main_write()
