"""Weights that a graph computes of constants: Slice, Reshape, Concat, a normalized weight. Each becomes an initializer.

The nodes that computed it stay until it is known that it is quantized: `Folding.settle` removes them, or undoes it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx.dtypes import tensor_info
from modelopt_rs.containers.onnx.wire import LAZY_BYTES
from modelopt_rs.onnx.constant_paths import ConstantPath, Program, constant_paths, program_of
from modelopt_rs.onnx.int8.build import drop_unused
from modelopt_rs.onnx.names import Names
from modelopt_rs.onnx.weights import ONNX_FLOATS
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Source, TensorInfo, Tile

__all__ = ["Folding"]


class Folding(Source):
    """An ONNX model whose computed weights are tensors, too; they are computed again each time they are read.

    Parameters
    ----------
    source : Source
        Its graph is changed. It stays open when this is closed.
    most : int
        The most bytes of constants to compute one weight of.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, onnx, onnx_ir as ir
    >>> from modelopt_rs.files.onnx import OnnxSource
    >>> from modelopt_rs.onnx.folding import Folding
    >>> model = ir.from_onnx_text('''
    ...     <ir_version: 10, opset_import: ["": 21]>
    ...     net (float[n, 32] x) => (float[n, 16] y)
    ...     <int64[2] shape = {32, 16}> { t = Reshape(w, shape)  y = MatMul(x, t) }''')
    >>> model.graph.register_initializer(ir.val("w", const_value=ir.tensor(np.ones((16, 32), np.float32), name="w")))
    >>> model.graph[0].replace_input_with(0, model.graph.initializers["w"])
    >>> with tempfile.TemporaryDirectory() as d:
    ...     ir.save(model, f"{d}/m.onnx")
    ...     with OnnxSource(f"{d}/m.onnx") as source:
    ...         sorted(Folding(source, 2**20).tensors)
    ['t_folded', 'w']
    """

    def __init__(self, source: Source, most: int) -> None:
        self._source = source
        self.container, self.path = source.container, source.path
        self._programs: dict[str, Program] = {}
        # By name of a weight what computes it, in each body for itself, and the first output of a node that takes it.
        self._computed: dict[str, list[tuple[str, str]]] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._last: tuple[str, Array] | None = None
        model: ir.Model = source.graph
        opset = model.graph.opset_imports.get("", 0)
        names = Names(model)
        for path in constant_paths(model, most):
            self._fold(path, program_of(path, opset, most), names)

    def _fold(self, path: ConstantPath, program: Program, names: Names) -> None:
        # Of several that are alike one does for all, also in other bodies.
        name = next((name for name, each in self._programs.items() if each == program), None)
        if name is None:
            array = program.run()
            dtype = None if array is None else ir.DataType.from_numpy(array.dtype)
            if array is None or dtype not in ONNX_FLOATS or array.nbytes < LAZY_BYTES:
                return
            if 5 * array.size > 4 * path.nbytes:
                return  # in bytes it would be as large as what it is computed of
            name = names.unused(f"{path.value.name}_folded")
            self._programs[name], self._computed[name] = program, []
            self._infos[name] = tensor_info(name, dtype.value, array.shape)
            names.initializer(name, self._lazy(name, dtype, array.shape))
        # Two bodies may have the same names.
        path.value.name = names.unused(f"{path.value.name}_computed")
        initializer = self.graph.graph.initializers[name]
        for user, index in list(path.value.uses()):
            self._computed[name].append((path.value.name, str(user.outputs[0].name)))
            user.replace_input_with(index, initializer)

    def _lazy(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
        return ir.LazyTensor(lambda: ir.tensor(self.read(name), dtype=dtype), dtype, ir.Shape(shape), name=name)

    def settle(
        self, model: ir.Model, quantized: Mapping[str, object], infos: Mapping[str, TensorInfo]
    ) -> dict[str, TensorInfo]:
        """Remove what computed the weights that are quantized now; let it compute the others.

        Parameters
        ----------
        model : Model
            The graph as it is by now: its opset may have been raised.
        quantized : mapping
            The names of the weights that are.
        infos : mapping
            All tensors and computed weights.

        Returns
        -------
        dict
            Without the tensors that are gone. A weight that is computed still has no bytes: what it is computed of has.
        """
        before = set(model.graph.initializers) - set(self._computed)
        values = {value.name: value for graph in model.graphs() for node in graph for value in node.outputs}
        for name, computed in self._computed.items():
            initializer = model.graph.initializers.pop(name, None)
            if name not in quantized and initializer is not None:
                for node, index in list(initializer.uses()):
                    node.replace_input_with(index, _of_taker([(values[each], out) for each, out in computed], node))
        # Only then: a Split may compute one that is quantized, and one that is not.
        for computed in self._computed.values():
            drop_unused(model, [values[each] for each in dict.fromkeys(each for each, _ in computed)])
        gone = before - set(model.graph.initializers)
        still = set(self._computed) - set(quantized)
        return {k: replace(info, nbytes=0) if k in still else info for k, info in infos.items() if k not in gone}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, with those that are computed."""
        return MappingProxyType({**self._source.tensors, **self._infos})

    @property
    def graph(self) -> ir.Model:
        """The graph."""
        model: ir.Model = self._source.graph
        return model

    @property
    def nbytes(self) -> int:
        """The bytes of the model's files."""
        return self._source.nbytes

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's own metadata."""
        return self._source.metadata

    def read(self, name: str) -> Array:
        """Return one tensor, whole."""
        if name not in self._programs:
            return self._source.read(name)
        if self._last is None or self._last[0] != name:
            array = self._programs[name].run()
            assert array is not None
            self._last = name, array.view(np.uint16) if self._infos[name].dtype == "BF16" else array
        return self._last[1]

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows."""
        if name not in self._programs:
            yield from self._source.tiles(name, max_bytes, rows)
            return
        info = self._infos[name]
        array, step = self.read(name).reshape(info.rows, -1), max(max_bytes // max(info.row_nbytes, 1), 1)
        rows = range(info.rows) if rows is None else rows
        for first in range(rows.start, rows.stop, step):
            yield Tile(first, array[first : min(first + step, rows.stop)])

    def buffers(self, name: str) -> list[Buffer]:
        """Return what reading a tensor holds besides its tile."""
        if name not in self._programs:
            return list(self._source.buffers(name))
        # The constants, and what comes of them on the way.
        return [Buffer("u1", 2 * self._programs[name].nbytes + self._infos[name].nbytes, per=0)]

    def close(self) -> None:
        """Do nothing."""


def _of_taker(computed: list[tuple[ir.Value, str]], node: ir.Node) -> ir.Value:
    """Return the value that a node took: two bodies may have the same names."""
    mine = [value for value, out in computed if out == node.outputs[0].name]
    beside = (value for value in mine if (producer := value.producer()) is not None and producer.graph is node.graph)
    return next(beside, mine[0])
