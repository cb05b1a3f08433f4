"""What users write, as type checkers see it: `mypy --strict` and pyright find nothing here. Not run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import modelopt_rs as mo

w: NDArray[np.float32] = np.ones((64, 64), np.float32)


def arrays() -> None:
    q = mo.quantize(w, bits=4, group_size=32, search="mse")
    assert_type(q, mo.QuantizedArray)
    again = mo.quantize(w, bits=4, group_size=32, out=q)
    plain: NDArray[Any] = again.dequantize()
    total: float = float(mo.reduce.sum(plain))
    low, high = mo.reduce.minmax(plain, axis=1)
    print(total, low, high, q[:2].shape, q.nbytes, q.scale.dtype)
    print(mo.fake_quantize(w, format="nf4", out=w).mean())
    print([each.name for each in mo.quant.formats() if each.bits == 4])
    calibrator = mo.quant.Calibrator(method="percentile")
    calibrator.update(w)
    with mo.num_threads(2):
        print(mo.get_num_threads())


def pruning() -> None:
    sparse = mo.prune.magnitude(w, 0.5, nonfinite="largest")
    mask: NDArray[Any] = mo.prune.n_of_m(w, 2, 4, mask="bits")
    hessian = mo.prune.Hessian()
    hessian.update(w)
    corrected = mo.prune.sparsegpt(w, hessian, n=2, m=4)
    assert_type(mo.prune.global_magnitude([w, w], 0.5), list[NDArray[Any]])
    assert_type(mo.prune.global_magnitude({"w": w}, 0.5), dict[str, NDArray[Any]])
    print(sparse, mask, corrected, mo.prune.compress(sparse).nbytes)
    grow = mo.prune.cubic(0.75, begin=0, end=10)
    pruned = mo.prune.PrunedOptimizer(mo.optim.AdamW([w], lr=0.01), grow)
    print(pruned.step([w]).norm, grow(3))


def training(params: dict[str, NDArray[np.float32]], grads: Mapping[str, NDArray[np.float32]]) -> None:
    optimizer = mo.optim.AdamW(params, lr=mo.optim.schedule.cosine(0.1, 200), state_bits=8, master=True)
    result = optimizer.step(dict(grads), clip_norm=1.0, nonfinite="skip")
    assert_type(result.stepped, bool)
    optimizer.save(Path("optimizer.safetensors"))
    mean = {name: np.zeros_like(p) for name, p in params.items()}
    mo.optim.lion_step(params, grads, mean, step=1, lr=1e-3, nonfinite="raise")
    mo.optim.ema_step([w], [w], decay=0.9)


def files(source: Path) -> None:
    report = mo.quantize_file(source, "small", bits=4, bits_of={"*.value.weight": 8}, max_memory="64MiB")
    print(report.totals.bytes_after, report.warnings, [each.reason for each in report.tensors])
    mo.prune_file(source, "sparse", n=2, m=4, then=mo.QuantizeOptions(bits=4))
    mo.crop_file(source, "cropped", keep=0.75, what="ffn")
    mo.optimize_file(source, "fit", target_size="15MB")
    print(mo.compare_files(source, "small", run=mo.RunOptions(inputs={"x": w})).sqnr_db)
    with mo.files.open(source, dequantize=True) as model:
        for name, info in model.tensors.items():
            print(name, info.shape, model.read(name).dtype)
    info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    with mo.files.SafetensorsSink("model.safetensors", [info]) as sink:
        sink.write("fc.weight", w)
        sink.commit()


def errors(source: Path) -> None:
    try:
        mo.inspect_file(source)
    except (mo.LimitError, mo.UnsupportedError) as error:
        print(error)
    except mo.FormatError as error:
        print(error)
