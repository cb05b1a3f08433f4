"""Raising the opset of a model whose weights are not in memory."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import onnx
import onnx_ir as ir
from onnx import onnx_cpp2py_export

from modelopt_rs._core import UnsupportedError
from modelopt_rs.errors import listing, quote

__all__ = ["raise_ir_version", "raise_opset"]

# Operators whose new version depends on a constant have small ones (shapes, axes, scales of Resize).
LARGE = 1024
MAX_SECONDS: Final = 300
"""How long a conversion may take."""
_RANDOM: Final = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial")
NO_KERNEL: Final = dict.fromkeys(("RoiAlign", "MaxRoiPool", "GlobalLpPool", *_RANDOM), 22)
"""The operators of which onnxruntime has kernels up to some version, and the first version that it has none of."""
_REFUSED: Final = 3
# Its assertions abort the process that calls it, so it gets one of its own: from nothing, as a copy of this one could
# hold locks of threads that it doesn't have. Only the library's compiled part is loaded: the whole takes five times as
# long. What it prints must not come between the bytes of the model.
_CONVERT: Final = f"""
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
    data = onnx.version_converter.convert_version(sys.stdin.buffer.read(), int(sys.argv[2]))
except Exception as error:
    sys.stderr.write(str(error))
    sys.stderr.flush()
    os._exit({_REFUSED})
with os.fdopen(out, "wb") as file:
    file.write(data)
"""


def raise_opset(model: ir.Model, opset: int) -> None:
    """Convert a model to a later version of the standard operators, in place; nothing is read of its large tensors.

    Parameters
    ----------
    model : Model
    opset : int
        More than it has.

    Raises
    ------
    UnsupportedError
        If the library can't convert it; the model stays as it was.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.opset import raise_opset
    >>> x = ir.val("x", ir.DataType.FLOAT, [1])
    >>> y = ir.val("y", ir.DataType.FLOAT, [1])
    >>> node = ir.Node("", "Relu", [x], outputs=[y])
    >>> model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 13}, name="g"), ir_version=7)
    >>> raise_opset(model, 21)
    >>> model.graph.opset_imports[""], model.ir_version
    (21, 10)
    """
    if model.functions:
        names = listing([quote(f.name) for f in model.functions.values()])
        raise UnsupportedError(f"raise_opset: a model with functions ({names}) can't be converted to opset {opset}")
    have = model.graph.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and have < NO_KERNEL.get(node.op_type, 0) <= opset:
            raise _cannot(opset, f"onnxruntime has no kernel for {node.op_type} of it")
    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }
    with _elsewhere(model.graph, large):
        graph = _converted(model, opset)
    for name, tensor in large.items():
        if name not in graph.initializers:
            raise _cannot(opset, f"the initializer {quote(name)} is gone")
        graph.initializers[name].const_value = tensor
    graph.metadata_props.update(model.graph.metadata_props)  # which the converter does not know
    model.graph = graph
    raise_ir_version(model)


def _cannot(opset: int, why: str) -> UnsupportedError:
    return UnsupportedError(f"raise_opset: onnx can't convert the model to opset {opset}: {why}")


def _converted(model: ir.Model, opset: int) -> ir.Graph:
    try:
        data = _convert(ir.to_proto(model).SerializeToString(), opset)
        converted: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
        return converted.graph
    except (UnsupportedError, MemoryError, OSError):
        raise
    except Exception as error:  # the libraries' errors have no common class but this
        raise _cannot(opset, quote(str(error))) from error


def _convert(data: bytes, opset: int) -> bytes:
    """Convert a serialized model in a process of its own."""
    if not sys.executable:
        raise _cannot(opset, "there is no Python to run the converter in")
    library = str(onnx_cpp2py_export.__file__)
    command = [sys.executable, "-I", "-S", "-c", _CONVERT, library, str(opset)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=MAX_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _cannot(opset, f"its converter takes more than {MAX_SECONDS} seconds") from None
    if done.returncode == 0:
        return bytes(done.stdout)
    words = done.stderr.decode(errors="replace").strip()
    if done.returncode == _REFUSED:
        raise _cannot(opset, quote(words))
    died = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
    last = words.splitlines()[-1] if words else ""
    raise _cannot(opset, f"its converter crashed ({died}): {quote(last)}; convert it where it was exported")


def raise_ir_version(model: ir.Model) -> None:
    """Let a model say an IR version that has its opsets, and initializers that are no inputs."""
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items() if d in ("", "ai.onnx.ml")]
    least = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, least, 4)


@contextmanager
def _elsewhere(graph: ir.Graph, large: dict[str, ir.TensorProtocol]) -> Iterator[None]:
    """While it lasts, let large tensors be in a file that is never read."""
    try:
        for name, tensor in large.items():
            shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]  # shapes of tensors have no symbols
            graph.initializers[name].const_value = ir.ExternalTensor(
                "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
        yield
    finally:
        for name, tensor in large.items():
            graph.initializers[name].const_value = tensor
