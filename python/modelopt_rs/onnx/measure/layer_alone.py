"""A layer as a model of its own: one node, its constants, and what it takes as inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx.tensors import in_memory, initializer_infos, stored
from modelopt_rs.onnx.opset import raise_alike
from modelopt_rs.onnx.run.sessions import new_session, session_options
from modelopt_rs.onnx.weight_only.forms.choice import BLOCKED
from modelopt_rs.onnx.weight_only.rewrite import quantize_weights
from modelopt_rs.onnx.weights import RECURRENT, Use, find_weights, is_constant
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Transform

__all__ = ["WHAT", "LayerAlone", "taken"]

# What is kept of the inputs of a node, by its kind.
WHAT: Final = {"matmul": "rows", "gemm": "rows", "conv": "maps", "convtranspose": "maps"} | dict.fromkeys(
    RECURRENT, "steps"
)
LENGTHS: Final = 4  # which input of a recurrent layer says how long each sequence is
COLUMNS: Final = 8  # a multiple of which is taken of the outputs of a product that is too large


def taken(use: Use) -> list[str] | None:
    """Return the values that a node takes besides constants; None where its output can't be had of some rows of them.

    A product has its weight on the right, and nothing else that is no constant but its rows.
    """
    what = WHAT.get(use.kind)
    if what is None or use.inner or (what == "rows" and use.index != 1):
        return None
    values = [value for value in _inputs(use) if value is not None and not is_constant(value)]
    others = values[1:] if what != "steps" else []
    turned = use.kind == "gemm" and use.node.attributes.get_int("transA", False)
    floats = all(value.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16) for value in values)
    alone = bool(values) and values[0] is use.node.inputs[0]
    return (
        list(dict.fromkeys(str(value.name) for value in values))
        if alone and floats and not others and not turned
        else None
    )


def _inputs(use: Use) -> list[ir.Value | None]:
    """Return what the node takes; how long sequences are does not count."""
    lengths = use.kind in RECURRENT
    return [None if lengths and i == LENGTHS else value for i, value in enumerate(use.node.inputs)]


class LayerAlone:
    """One node with what it needs, that runs with float weights and with quantized ones.

    Parameters
    ----------
    use : Use
        Of a weight: all that the node has are quantized.
    source : Source
        Has the weights.
    opset : mapping
        The opsets of its model.
    most : int
        Bytes of a weight: of a larger one of a product some outputs are taken.
    threads : int or None
    """

    def __init__(self, use: Use, source: Source, opsets: Mapping[str, int], most: int, threads: int | None) -> None:
        self._use, self._source, self._most, self._threads = use, source, most, threads
        self._opsets = dict(opsets)
        self._columns: Array | None = None
        self._arrays: dict[str, Array] = {}

    def run(self, samples: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Return the outputs with float weights; one sample has an array for each of `taken`."""
        return self._run(self._model(samples[0]), samples)

    def run_quantized(
        self, samples: Sequence[Sequence[Array]], options: QuantizeOptions, onnx: OnnxOptions, max_memory: int
    ) -> list[list[Array]] | None:
        """Return the outputs with quantized weights; None if one of them isn't."""
        model = self._model(samples[0])
        raise_alike(model, BLOCKED)
        infos = {name: info for name, info in initializer_infos(model).items() if name in self._arrays}
        wanted = {weight.name for weight in find_weights(model)} & infos.keys()
        made, _ = quantize_weights(model, infos, options, onnx, threads=self._threads, max_memory=max_memory)
        if not made.keys() >= wanted:
            return None
        for name, transform in made.items():
            for part, data in _coded(transform, self._arrays[name].reshape(infos[name].rows, -1)).items():
                value = model.graph.initializers[part]
                assert value.const_value is not None
                shape = tuple(value.const_value.shape.numpy())
                value.const_value = in_memory(value.const_value.dtype, shape, stored(Path(part), data))
                value.const_value.name = part
        return self._run(model, samples)

    def _model(self, sample: Sequence[Array]) -> ir.Model:
        values: dict[ir.Value, ir.Value] = {}
        nodes: list[ir.Node] = []
        initializers: list[ir.Value] = []
        fed: list[ir.Value] = []
        rest = iter(sample)

        def value_of(old: ir.Value | None) -> ir.Value | None:
            if old is None:
                return None
            passed: list[ir.Node] = []  # what passes a constant on, the last first: there may be thousands
            root: ir.Value | None = old
            is_made = is_constant(old)
            while is_made and root is not None and root not in values and (node := root.producer()) is not None:
                passed.append(node)
                root = node.inputs[0] if node.inputs else None  # a Constant takes nothing
            if root is not None and root not in values:
                values[root] = constant(root) if is_made else given(root)
            for node in reversed(passed):
                out = node.outputs[0]
                values[out] = ir.val(str(out.name), out.dtype)
                nodes.append(_like(node, [values[each] for each in node.inputs if each is not None], [values[out]]))
            return values[old]

        def constant(old: ir.Value) -> ir.Value:
            initializers.append(ir.val(str(old.name), const_value=ir.tensor(self._constant(old), name=old.name)))
            return initializers[-1]

        def given(old: ir.Value) -> ir.Value:
            array = next(rest)
            fed.append(ir.val(str(old.name), ir.DataType.from_numpy(array.dtype), [None] * array.ndim))
            return fed[-1]

        node = self._use.node
        inputs = [value_of(each) for each in _inputs(self._use)]
        outputs = [ir.val(value.name or "", self._use.dtype) for value in node.outputs]
        nodes.append(_like(node, inputs, outputs))
        told = [new for new, old in zip(outputs, node.outputs, strict=True) if old.uses() or old.is_graph_output()]
        graph = ir.Graph(fed, told, nodes=nodes, initializers=initializers, opset_imports=self._opsets, name="layer")
        return ir.Model(graph, ir_version=10)

    def _constant(self, old: ir.Value) -> Array:
        """Read a constant; of a weight of a product that is too large some outputs."""
        name, use = str(old.name), self._use
        assert old.const_value is not None
        if name not in self._source.tensors or (use.kind == "gemm" and old in use.node.inputs[2:]):
            array: Array = old.const_value.numpy()
            cut = use.kind == "gemm" and self._columns is not None and array.ndim and array.shape[-1] > 1
            return array[..., self._columns] if cut else array
        if name not in self._arrays:
            self._arrays[name] = self._weight(name, old)
        return self._arrays[name]

    def _weight(self, name: str, old: ir.Value) -> Array:
        info, axis = self._source.tensors[name], self._use.out_axis
        if info.nbytes <= self._most:
            assert old.const_value is not None
            whole: Array = old.const_value.numpy()
            return whole
        outputs = info.shape[axis]
        count = int(outputs * self._most / info.nbytes) // COLUMNS * COLUMNS
        if WHAT[self._use.kind] != "rows" or not count or info.dtype == "BF16":
            raise ValueError(f"LayerAlone: {name!r} is too large")
        self._columns = np.linspace(0, outputs - 1, count).astype(int)
        parts = []
        for tile in self._source.tiles(name, self._most):
            first, rows = tile.first_row, tile.array
            at = self._columns[(self._columns >= first) & (self._columns < first + len(rows))] - first
            parts.append(rows[:, self._columns] if axis else rows[at])
        return np.concatenate(parts)

    def _run(self, model: ir.Model, samples: Sequence[Sequence[Array]]) -> list[list[Array]]:
        data = ir.to_proto(model).SerializeToString()
        session = new_session(data, session_options(self._threads), self._source.path)
        names = [each.name for each in session.get_inputs()]
        found: list[list[Any]] = [session.run(None, dict(zip(names, each, strict=True))) for each in samples]
        return found


def _like(node: ir.Node, inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]) -> ir.Node:
    return ir.Node(
        node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs, name=node.name or "layer"
    )


def _coded(coder: Transform, array: Array) -> dict[str, bytes]:
    """Take a whole weight through its coder; return the bytes of all that it makes."""
    rows = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
    made: dict[str, list[bytes]] = {part.name: [] for part in coder.outputs}
    coder.begin(len(rows))
    for _ in range(coder.sweeps):
        for name, part in [*coder(rows.copy()), *coder.end()]:
            made[name].append(np.ascontiguousarray(part).tobytes())
    return {name: b"".join(parts) for name, parts in made.items()}
