"""Functions of the library onnx in a process of their own: its assertions abort, and what it computes has no bounds."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import onnx_ir as ir
from onnx import onnx_cpp2py_export

from modelopt_rs.errors import quote

__all__ = ["Ended", "Failed", "call_apart", "without_large"]

# What depends on a constant depends on small ones (shapes, axes, scales of Resize).
LARGE: Final = 1024
MEMORY: Final = (64 << 20, 64)
"""The bytes that a call may take, besides for each byte of the model."""
_REFUSED: Final = 3
# The process begins from nothing: a copy of this one could hold locks of threads that it doesn't have. Only the
# library's compiled part is loaded: the whole takes five times as long. What it prints must not come between the bytes
# of the model.
_PROGRAM: Final = f"""
import os, sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
out = os.dup(1)
os.dup2(2, 1)
name, path = "onnx_cpp2py_export", sys.argv[1]
spec = spec_from_file_location(name, path, loader=ExtensionFileLoader(name, path))
onnx = module_from_spec(spec)
spec.loader.exec_module(onnx)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
module, function = sys.argv[3].split(".")
arguments = [word == "True" if word in ("True", "False") else int(word) for word in sys.argv[4:]]
try:
    data = getattr(getattr(onnx, module), function)(sys.stdin.buffer.read(), *arguments)
except BaseException as error:
    sys.stderr.write(str(error) or type(error).__name__)
    sys.stderr.flush()
    os._exit({_REFUSED})
with os.fdopen(out, "wb") as file:
    file.write(data)
"""


class Failed(Exception):
    """The function raised an error, or its process died or took too long; the text says which."""


class Ended(Failed):
    """It took too long, which depends on the machine: nothing may be decided by it."""


def call_apart(function: str, data: bytes, *arguments: int, seconds: float) -> bytes:
    """Call a function of the library's compiled part that makes a serialized model of another, and of numbers.

    Parameters
    ----------
    function : str
        As "version_converter.convert_version".
    data : bytes
    *arguments : int
    seconds : float
        How long it may take.

    Raises
    ------
    Failed
        If it gives nothing (`Ended`: in that time).
    """
    if not sys.executable:
        raise Failed("there is no Python to run it in")
    most = MEMORY[0] + MEMORY[1] * len(data)
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(onnx_cpp2py_export.__file__), str(most), function]
    try:
        done = subprocess.run(
            [*command, *map(str, arguments)], input=data, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise Ended(f"it takes more than {seconds:g} seconds") from None
    if done.returncode == 0:
        return bytes(done.stdout)
    words = done.stderr.decode(errors="replace").strip()
    if done.returncode == _REFUSED:
        raise Failed(quote(words))
    died = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
    raise Failed(f"it crashed ({died}): {quote(words.splitlines()[-1] if words else '')}")


@contextmanager
def without_large(graph: ir.Graph) -> Iterator[dict[str, ir.TensorProtocol]]:
    """While it lasts, let large initializers be in a file that is never read; yield them by name."""
    large = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }
    try:
        for name, tensor in large.items():
            shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]  # shapes of tensors have no symbols
            graph.initializers[name].const_value = ir.ExternalTensor(
                "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
        yield large
    finally:
        for name, tensor in large.items():
            graph.initializers[name].const_value = tensor
