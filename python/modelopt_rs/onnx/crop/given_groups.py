"""The structure of a graph as its user says it: groups of initializers, and integers of the graph that count units."""

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from modelopt_rs.containers.onnx.tensors import initializer_infos
from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.crop.coupling import GraphGroup
from modelopt_rs.planning.crop import as_options
from modelopt_rs.planning.given_groups import GivenGroups, rescaled
from modelopt_rs.stream.model import Source

__all__ = ["given_groups", "write_numbers"]

INDEXED = re.compile(r"(.+)\[(\d{1,9})\]")


def given_groups(source: Source, given: GivenGroups) -> list[GraphGroup]:
    """Return the groups that are given for a graph, whose constants become initializers.

    Parameters
    ----------
    source : Source
        Has a graph.
    given : GivenGroups

    Raises
    ------
    OptionError
        If they name tensors or integers that it has not.
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(source.graph)
    common.LiftSubgraphInitializersToMainGraphPass()(source.graph)
    with as_options():
        groups = given.of({**source.tensors, **initializer_infos(source.graph)})
    for name, units, _ in given.counted([(group.name, group.units, group.units) for group in groups]):
        rescaled(repr(name), _read(source.graph, name), units, units)
    return [GraphGroup(group.name, group.units, group.members, group.blocks) for group in groups]


def write_numbers(model: ir.Model, counted: Sequence[tuple[str, int, int]]) -> None:
    """Write the numbers of a graph that count units.

    Parameters
    ----------
    model : ir.Model
        Is changed.
    counted : sequence of (str, int, int)
        Where each stands, how many units there were, and how many there are.

    Raises
    ------
    OptionError
        If one isn't a multiple of the units. Then nothing is changed.
    """
    for name, number in [(name, rescaled(repr(name), _read(model, name), was, now)) for name, was, now in counted]:
        _write(model, name, number)


def _read(model: ir.Model, name: str) -> int:
    where, index = _where(model, name)
    numbers = _numbers_of(where, name)
    if not 0 <= index < len(numbers):
        raise OptionError(f"numbers must name integers of the graph, got {name!r}, where there are {len(numbers)}")
    return numbers[index]


def _write(model: ir.Model, name: str, number: int) -> None:
    where, index = _where(model, name)
    numbers = _numbers_of(where, name)
    numbers[index] = number
    if isinstance(where, ir.Value):
        tensor = where.const_value
        assert tensor is not None
        array = np.array(numbers, tensor.dtype.numpy()).reshape(tensor.shape.numpy())
        where.const_value = ir.tensor(array, name=where.name)
        return
    node, attribute = where
    is_one = node.attributes[attribute].type == ir.AttributeType.INT
    node.attributes.add(ir.AttrInt64(attribute, number) if is_one else ir.AttrInt64s(attribute, numbers))


def _where(model: ir.Model, name: str) -> tuple[ir.Value | tuple[ir.Node, str], int]:
    """Return the initializer, or the node and its attribute, that holds a number, and the number's index there."""
    indexed = INDEXED.fullmatch(name)
    base, index = (indexed[1], int(indexed[2])) if indexed is not None else (name, 0)
    if base in model.graph.initializers:
        return model.graph.initializers[base], index
    called, _, attribute = base.rpartition(".")
    for node in model.graph.all_nodes():
        if node.name == called and attribute in node.attributes:
            return (node, attribute), index
    text = "name[i] of an initializer, node.attribute or node.attribute[i] of a node"
    raise OptionError(f"numbers must name integers of the graph ({text}), got {name!r}, which it has not")


def _numbers_of(where: ir.Value | tuple[ir.Node, str], name: str) -> list[int]:
    if isinstance(where, ir.Value):
        tensor = where.const_value
        array = None if tensor is None or tensor.size > 1 << 10 else np.asarray(tensor.numpy())
        if array is not None and array.dtype.kind in "iu":
            return [int(number) for number in array.ravel()]
    else:
        attribute = where[0].attributes[where[1]]
        if attribute.type == ir.AttributeType.INT:
            return [attribute.as_int()]
        if attribute.type == ir.AttributeType.INTS:
            return list(attribute.as_ints())
    raise OptionError(f"numbers must name integers of the graph, got {name!r}, which holds others")
