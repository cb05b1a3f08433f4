"""What a graph says of the values of its inputs: how long the tables are that they are looked up in, what they are
compared with, and whether images have the numbers of files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.onnx.run.generate import is_image
from modelopt_rs.onnx.run.work import Work

__all__ = ["Known", "compared", "known_values", "pixels", "vocabulary"]

# Which input of an operator has the ids, and which the table.
LOOK_UPS: Final[dict[str, tuple[int, int]]] = {
    "Gather": (1, 0),
    "GatherElements": (1, 0),
    "GatherBlockQuantized": (1, 0),
    "EmbedLayerNormalization": (0, 2),
}
# What hands ids on without changing them.
CARRIERS: Final = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice")

# What moves the numbers of an image, and changes none.
MOVERS: Final = (
    *("Cast", "Concat", "Identity", "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)
# Images of files have a spread of about 64, normalized ones of 1: this is between them.
BETWEEN: Final = 8.0
LARGEST: Final = 2**24  # bytes of the weight of a first layer

# Above this a number that an input is compared with is a bound, not a choice.
MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Known:
    """What a graph says of the values of its inputs.

    Attributes
    ----------
    limits : mapping
        How many ids there are, by input.
    equal : mapping
        The numbers that an input is compared with, such as rates of sampling.
    pixels : frozenset of str
        The inputs that are images with the numbers of files, 0 to 255.
    work : Work
        What a run takes.
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    equal: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pixels: frozenset[str] = frozenset()
    work: Work = field(default_factory=Work)

    @property
    def choices(self) -> int:
        """The most numbers that one input is compared with."""
        return max(map(len, self.equal.values()), default=0)


def known_values(model: ir.Model) -> Known:
    """Return what a graph says of the values of its inputs."""
    return Known(vocabulary(model), compared(model), pixels(model), Work.of(model))


def compared(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Return the integers that inputs of a single number are compared with by Equal, by input.

    Parameters
    ----------
    model : onnx_ir.Model

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.run.vocabulary import compared
    >>> rate = ir.val("rate", ir.DataType.INT64, [])
    >>> known = ir.val("known", const_value=ir.tensor(np.array(16000), name="known"))
    >>> node = ir.node("Equal", [rate, known])
    >>> graph = ir.Graph([rate], node.outputs, nodes=[node], initializers=[known])
    >>> compared(ir.Model(graph, ir_version=8))
    {'rate': (16000,)}
    """
    found: dict[str, list[int]] = {}
    for node in model.graph.all_nodes():
        if node.op_type != "Equal" or len(node.inputs) != 2:
            continue
        for one, other in ((0, 1), (1, 0)):
            value, number = _source(node.inputs[one]), _number(node.inputs[other])
            if number is None or value is None or value.name is None or value not in model.graph.inputs:
                continue
            if number not in found.setdefault(value.name, []):
                found[value.name].append(number)
    return {name: tuple(numbers) for name, numbers in found.items()}


def _number(value: ir.Value | None) -> int | None:
    """Return a constant that is one integer."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_integer():
        return None
    number = int(tensor.numpy().reshape(-1)[0])
    return number if abs(number) <= MOST else None


def pixels(model: ir.Model) -> frozenset[str]:
    """Return the inputs that are images with the numbers of files, 0 to 255, and not normalized ones.

    Either the graph normalizes them; or its first convolution, trained with a normalization that was folded into it,
    has biases that nothing but such numbers would be seen beside: of a detector that takes files 34 times as large as
    its weights, of models that take normalized images up to half as large.

    Parameters
    ----------
    model : onnx_ir.Model

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.run.vocabulary import pixels
    >>> image = ir.val("image", ir.DataType.FLOAT, [1, 3, 224, 224])
    >>> much = ir.val("much", const_value=ir.tensor(np.float32(255), name="much"))
    >>> node = ir.node("Div", [image, much])
    >>> graph = ir.Graph([image], node.outputs, nodes=[node], initializers=[much])
    >>> sorted(pixels(ir.Model(graph, ir_version=8)))
    ['image']
    """
    found = set()
    for value in model.graph.inputs:
        dtype = "" if value.dtype is None or value.dtype == ir.DataType.STRING else value.dtype.numpy().name
        shape = [axis if isinstance(axis, int) else None for axis in value.shape or ()]
        if dtype.startswith("float") and is_image(dtype, shape) and _takes_pixels(value):
            found.add(str(value.name))
    return frozenset(found)


def _takes_pixels(value: ir.Value) -> bool:
    """Whether what an image comes to first is made for the numbers of files."""
    seen = set()
    while (node := next((node for node, _ in value.uses()), None)) is not None and node not in seen:
        seen.add(node)
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            size = max((size for each in node.inputs if (size := _size(each)) is not None), default=0.0)
            return 0.0 < size < 1 / BETWEEN if node.op_type == "Mul" else size > BETWEEN
        if node.op_type == "Conv":
            weight, bias = (_array(each) for each in (*node.inputs[1:3], None, None)[:2])
            if weight is None or bias is None or len(bias) != len(weight) or not weight.size:
                return False
            norms = np.sqrt(np.square(weight).reshape(len(weight), -1).sum(1))
            return bool(np.median(np.abs(bias)) > BETWEEN * np.median(norms))
        if node.op_type not in MOVERS or not node.outputs:
            return False
        value = node.outputs[0]
    return False


def _size(value: ir.Value | None) -> float | None:
    """Return the largest magnitude of a constant."""
    array = _array(value)
    return None if array is None or not array.size else float(np.abs(array).max())


def _array(value: ir.Value | None) -> Array | None:
    """Return a constant of floats that is not large."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.nbytes > LARGEST:
        return None
    return tensor.numpy().astype(np.float64)


def vocabulary(model: ir.Model) -> dict[str, int]:
    """Return how many rows the smallest table has that an input is looked up in, by input.

    A one-hot code is a table, too, as of models that a product takes the rows of their table with.

    Parameters
    ----------
    model : onnx_ir.Model

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.run.vocabulary import vocabulary
    >>> ids = ir.val("ids", ir.DataType.INT64, ["n"])
    >>> table = ir.val("table", ir.DataType.FLOAT, [30522, 384])
    >>> node = ir.node("Gather", [table, ids])
    >>> graph = ir.Graph([ids], node.outputs, nodes=[node], initializers=[table])
    >>> vocabulary(ir.Model(graph, ir_version=8))
    {'ids': 30522}
    """
    limits: dict[str, int] = {}
    for node in model.graph.all_nodes():
        for value, rows in _looked_up(node):
            ids = _source(value)
            if ids is not None and ids.name is not None and ids in model.graph.inputs and rows:
                limits[ids.name] = min(rows, limits.get(ids.name, rows))
    return limits


def _looked_up(node: ir.Node) -> list[tuple[ir.Value | None, int]]:
    """Return what may be ids, and how many there are; 0 where they are none, or that is not known."""
    inputs = node.inputs
    if node.op_type in LOOK_UPS:
        at, of = LOOK_UPS[node.op_type]
        return [(inputs[at], _rows(node, inputs[of]))] if len(inputs) > max(at, of) else []
    if node.op_type == "OneHot" and len(inputs) > 1:
        return [(inputs[0], max(_number(inputs[1]) or 0, 0))]
    if node.op_type == "Equal" and len(inputs) == 2:  # what exporters write a one-hot code with
        return [(inputs[0], _counted(inputs[1])), (inputs[1], _counted(inputs[0]))]
    return []


def _counted(value: ir.Value | None) -> int:
    """Return how many numbers a constant has along one axis, if they are 0, 1, 2 ...; else 0."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or not 1 < tensor.size <= MOST or tensor.size not in tensor.shape.numpy():
        return 0
    numeric = tensor.dtype.is_integer() or tensor.dtype.is_floating_point()
    return tensor.size if numeric and np.array_equal(tensor.numpy().reshape(-1), np.arange(tensor.size)) else 0


def _source(value: ir.Value | None) -> ir.Value | None:
    """Return where ids come from."""
    while value is not None and (node := value.producer()) is not None and node.op_type in CARRIERS:
        value = node.inputs[0]
    return value


def _rows(node: ir.Node, table: ir.Value | None) -> int:
    """Return how long a table is along the axis of the look-up; 0 where that is not known."""
    if table is None or table.shape is None or table.producer() is not None:
        return 0
    axis = next((node.attributes[name].as_int() for name in ("axis", "gather_axis") if name in node.attributes), 0)
    length = table.shape[axis] if -len(table.shape) <= axis < len(table.shape) else 0
    return length if isinstance(length, int) else 0
