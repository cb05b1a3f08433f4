"""Cropping a graph: the edits that a choice of units needs."""

from collections.abc import Container, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.onnx.crop.coupling import GraphGroup
from modelopt_rs.prune.choice import Indices
from modelopt_rs.prune.coupling import check_ascending
from modelopt_rs.prune.crop import take

__all__ = ["crop_graph"]


def crop_graph(
    model: ir.Model, groups: Sequence[GraphGroup], kept: Mapping[str, Array], streamed: Container[str] = ()
) -> dict[str, dict[int, Indices]]:
    """Remove units from a graph, in place.

    Parameters
    ----------
    model : ir.Model
        The one in which the groups were found.
    groups : sequence of GraphGroup
        As `find_groups` returned them for the model as it is: after a crop they are void.
    kept : mapping of str to ndarray of integers
        The units that stay, by group, ascending; groups that are left out stay whole. ``report.kept`` is one.
    streamed : container of str
        The names of initializers whose bytes go from file to file: they get placeholders of the new shape. All others
        are cropped here.

    Returns
    -------
    dict
        For each initializer that gets smaller, by axis the indices that stay.

    Raises
    ------
    ValueError
        If `kept` names no group, or holds anything but ascending units of it; or if a group isn't one of this model.
        Then nothing is changed.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.crop.coupling import find_groups
    >>> from modelopt_rs.onnx.crop.apply import crop_graph
    >>> model = ir.from_onnx_text('''
    ...     <ir_version: 10, opset_import: ["": 21]>
    ...     net (float[n, 2] x) => (float[n, 1] y)
    ...     <float[2, 3] a = {1, 2, 3, 4, 5, 6}, float[3, 1] b = {1, 2, 3}>
    ...     { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }''')
    >>> groups, _ = find_groups(model)
    >>> crop_graph(model, groups, {"a.ffn": np.array([0, 2])})
    {'a': {1: array([0, 2])}, 'b': {0: array([0, 2])}}
    >>> model.graph.initializers["a"].const_value.numpy()
    array([[1., 3.],
           [4., 6.]], dtype=float32)
    """
    units = {group.name: group.units for group in groups}
    for name in kept:
        if name not in units:
            raise ValueError(f"crop_graph: kept must name groups, got {name!r}")
    chosen = {
        name: check_ascending("crop_graph", f"kept[{name!r}]", given, "units", units[name])
        for name, given in kept.items()
    }
    for group in groups:
        _check(model, group)
    masks: dict[str, dict[int, Array]] = {}
    for group in groups:
        gone = np.ones(group.units, np.bool_)
        gone[chosen.get(group.name, np.arange(group.units))] = False
        if gone.any():
            _mark(model, group, gone, masks)
            for edit in group.edits:
                edit.apply(gone)
    stay = {name: {axis: np.flatnonzero(mask) for axis, mask in axes.items()} for name, axes in masks.items()}
    for name, axes in stay.items():
        _shorten(model.graph.initializers[name], axes, name in streamed)
    return stay


def _check(model: ir.Model, group: GraphGroup) -> None:
    for member in group.members:
        value = model.graph.initializers.get(member.name)
        shape = () if value is None or value.const_value is None else value.const_value.shape.numpy()
        stop = member.offset + group.units * member.size
        if len(shape) <= member.axis or stop > shape[member.axis]:
            got = f"{group.units} units of {member.name!r} along axis {member.axis} of shape {shape}"
            raise ValueError(f"crop_graph: groups must be those of the model as it is, got {got}")


def _mark(model: ir.Model, group: GraphGroup, gone: Array, masks: dict[str, dict[int, Array]]) -> None:
    """Take from the masks of the members what goes."""
    for member in group.members:
        tensor = model.graph.initializers[member.name].const_value
        assert tensor is not None
        length = tensor.shape.numpy()[member.axis]
        mask = masks.setdefault(member.name, {}).setdefault(member.axis, np.ones(length, np.bool_))
        mask[member.offset : member.offset + group.units * member.size] = np.repeat(~gone, member.size)


def _shorten(value: ir.Value, axes: Mapping[int, Indices], streamed: bool) -> None:
    tensor = value.const_value
    assert tensor is not None
    assert value.name is not None
    shape = [len(axes[axis]) if axis in axes else length for axis, length in enumerate(tensor.shape.numpy())]
    if streamed:
        from modelopt_rs.containers.onnx import placeholder

        value.const_value = placeholder(value.name, tensor.dtype, tuple(shape))
    else:
        array = tensor.numpy()
        for axis, indices in sorted(axes.items()):
            array = take(array, indices, axis)
        value.const_value = ir.tensor(array, dtype=tensor.dtype, name=value.name)
    value.shape = ir.Shape(shape)
