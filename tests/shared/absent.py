"""Run operations on files in a process that lacks what another system lacks: `python absent.py macos FOLDER`."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LIKE, FOLDER = sys.argv[1], Path(sys.argv[2])
MACOS = ("O_TMPFILE", "posix_fadvise", "preadv")
WINDOWS = (
    *(
        "O_TMPFILE",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "O_CLOEXEC",
        "posix_fadvise",
        "preadv",
        "pread",
        "pwrite",
    ),
    *("statvfs", "fchown", "fchmod", "sysconf", "sched_getaffinity"),
)
if LIKE != "linux":
    for name in MACOS if LIKE == "macos" else WINDOWS:
        delattr(os, name)
    is_dir = Path.is_dir
    hidden = {"/proc/self/fd"} | ({"/dev/fd"} if LIKE == "windows" else set())
    Path.is_dir = lambda self: str(self) not in hidden and is_dir(self)  # type: ignore[method-assign,assignment]
    read_text = Path.read_text

    def no_proc(self: Path, *args: Any, **more: Any) -> str:
        if str(self).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return read_text(self, *args, **more)

    Path.read_text = no_proc  # type: ignore[method-assign]
if LIKE == "windows":
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # found out before, as it is there
    if hasattr(shutil, "_rmtree_impl"):  # CPython 3.14 has chosen by it already
        shutil._rmtree_impl = shutil._rmtree_unsafe
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    sys.modules["resource"] = None  # type: ignore[assignment]
    os.supports_dir_fd.clear()  # type: ignore[attr-defined]
    # Windows has this one by calls of its own.
    shutil.disk_usage = lambda _: SimpleNamespace(free=1 << 40)  # type: ignore[assignment,return-value]

import numpy as np  # noqa: E402

import modelopt_rs as mo  # noqa: E402

w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
source = FOLDER / "a.safetensors"
with mo.files.SafetensorsSink(source, [info]) as sink:
    sink.write("fc.weight", w)
    sink.commit()
small = FOLDER / "b.safetensors"
mo.quantize_file(source, small, bits=4)
mo.quantize_file(source, small, bits=8, overwrite=True)
try:
    mo.quantize_file(source, small, bits=8)
except FileExistsError:
    pass
else:
    raise SystemExit("replaced what it should not")
mo.prune_file(source, FOLDER / "c.safetensors", sparsity=0.5, format="bitmask")
mo.dequantize_file(small, FOLDER / "d.safetensors")
assert mo.compare_files(source, small).sqnr_db > 40
assert mo.inspect_file(source).tensors[0].nonfinite == 0
folder = FOLDER / "model"
folder.mkdir()
(folder / "config.json").write_text('{"model_type": "bert"}')
(folder / "model.safetensors").write_bytes(source.read_bytes())
mo.quantize_file(folder, FOLDER / "model-8", bits=8)
mo.quantize_file(folder, FOLDER / "model-8", bits=8, overwrite=True)
optimizer = mo.optim.AdamW({"w": w.copy()}, lr=0.1)
optimizer.step({"w": w})
optimizer.save(FOLDER / "optimizer")
optimizer.load(FOLDER / "optimizer")
print(mo.get_num_threads() >= 1)
print("all done")
