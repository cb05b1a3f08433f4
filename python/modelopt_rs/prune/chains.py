"""The groups of networks whose layers follow each other: perceptrons and chains of convolutions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.arguments import check_flag, check_types, listed
from modelopt_rs.errors import check_mapping
from modelopt_rs.prune.coupling import Group, Member

__all__ = ["Layer", "chain_groups", "mlp_groups"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a chain: the names of its tensors.

    Attributes
    ----------
    weight : str
        OIHW (torch) or (out, in); see the axes.
    bias : str, optional
        One number for each output.
    channelwise : tuple of str
        What else has one number for each output: scale, shift, running mean and variance of a batch norm behind the
        layer, slopes of a PReLU.
    depthwise : bool
        Each output sees one input channel only (torch: ``groups=in_channels``), the outputs of a channel together.
    out_axis, in_axis : int
        Of `weight`: 0 and 1 in torch, -1 and -2 in Keras.
    """

    weight: str
    bias: str | None = None
    channelwise: tuple[str, ...] = ()
    depthwise: bool = False
    out_axis: int = 0
    in_axis: int = 1

    def members(self, size: int) -> list[Member]:
        """Return the slices that make the outputs, `size` of them a unit."""
        others = [*([self.bias] if self.bias is not None else []), *self.channelwise]
        plain = [Member(name, 0, size=size, scored=False) for name in others]
        return [Member(self.weight, self.out_axis, size=size), *plain]


def chain_groups(
    tensors: Mapping[str, Array], layers: Sequence[Layer], *, channels_last: bool = False
) -> tuple[Group, ...]:
    """Return a group for the outputs of each layer but the last: what makes them, and what reads them.

    Outputs live with the bias and the batch norm behind them, with depthwise convolutions that follow, and with the
    inputs of the next layer. A linear layer behind a flattened image reads height times width numbers of each channel.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Only their shapes are looked at.
    layers : sequence of Layer
        In their order. Activations and pooling between them don't matter; other branches do: a layer whose outputs
        something else reads as well needs a group written by hand.
    channels_last : bool
        Whether flattened images are (height, width, channel), as in Keras, instead of (channel, height, width).

    Returns
    -------
    tuple of Group
        Named after the weights that make the outputs.

    Raises
    ------
    ValueError
        If a tensor is missing, or a layer does not fit the one before.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> shapes = {"conv.weight": (8, 3, 3, 3), "bn.weight": (8,), "linear.weight": (10, 8 * 16)}
    >>> tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    >>> layers = [mo.prune.Layer("conv.weight", channelwise=("bn.weight",)), mo.prune.Layer("linear.weight")]
    >>> [group] = mo.prune.chain_groups(tensors, layers)
    >>> group.units, [member.size for member in group.members]
    (8, [1, 1, 16])
    """
    check_flag("chain_groups", "channels_last", channels_last)
    return _chain("chain_groups", tensors, listed("chain_groups", "layers", layers, "Layer"), channels_last)


def mlp_groups(
    tensors: Mapping[str, Array],
    weights: Sequence[str],
    biases: Sequence[str | None] | None = None,
    *,
    transposed: bool = False,
) -> tuple[Group, ...]:
    """Return a group for each hidden layer of a multilayer perceptron.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Only their shapes are looked at.
    weights : sequence of str
        The names of the weights, (out, in), in their order.
    biases : sequence of str or None, optional
        The names of the biases, None where a layer has none.
    transposed : bool
        Whether weights are (in, out), as in Keras.

    Raises
    ------
    ValueError
        If a tensor is missing, or a layer does not fit the one before.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = {"a": np.ones((5, 4)), "b": np.ones((6, 5)), "c": np.ones((2, 6))}
    >>> [(group.name, group.units) for group in mo.prune.mlp_groups(w, ["a", "b", "c"])]
    [('a', 5), ('b', 6)]
    """
    check_mapping("mlp_groups", "tensors", tensors, "arrays by name")
    check_types(mlp_groups, locals())
    if not weights:
        raise ValueError("mlp_groups: weights must name one or more layers, got none")
    names = list(biases) if biases is not None else [None] * len(weights)
    if len(names) != len(weights):
        raise ValueError(f"mlp_groups: biases must have {len(weights)} names like weights, got {len(names)}")
    axes = (1, 0) if transposed else (0, 1)
    layers = [Layer(w, b, out_axis=axes[0], in_axis=axes[1]) for w, b in zip(weights, names, strict=True)]
    return _chain("mlp_groups", tensors, layers, False)


def _chain(function: str, tensors: Mapping[str, Array], layers: list[Layer], channels_last: bool) -> tuple[Group, ...]:
    check_mapping(function, "tensors", tensors, "arrays by name")
    groups: list[Group] = []
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"{function}: layers must be of Layer, got {type(layer).__name__}")
    if not layers or layers[0].depthwise or layers[-1].depthwise:
        got = "none" if not layers else "a depthwise one at an end"
        raise ValueError(f"{function}: layers must begin and end with a layer that is not depthwise, got {got}")
    made_by, units, width, members = layers[0], 0, 1, list[Member]()
    for i, layer in enumerate(layers):
        if i and not layer.depthwise:
            members += _readers(function, tensors, layer, units, width, channels_last)
            groups.append(Group(made_by.weight, units, tuple(members)))
        outputs = _length(function, tensors, layer, layer.out_axis)
        if not layer.depthwise:
            made_by, units, width, members = layer, outputs, 1, layer.members(1)
        elif outputs % (units * width):
            what = f"a multiple of the {units * width} channels before it"
            raise ValueError(f"{function}: layer {layer.weight!r} must have {what} as outputs, got {outputs}")
        else:
            width = outputs // units
            members += layer.members(width)
    return tuple(groups)


def _readers(
    function: str, tensors: Mapping[str, Array], layer: Layer, units: int, width: int, channels_last: bool
) -> list[Member]:
    """Return the slices of a layer that read the units, `width` channels each."""
    inputs = _length(function, tensors, layer, layer.in_axis)
    if inputs % (units * width):
        what = f"a multiple of the {units * width} outputs before it"
        raise ValueError(f"{function}: layer {layer.weight!r} must have {what} as inputs, got {inputs}")
    if not channels_last:
        return [Member(layer.weight, layer.in_axis, size=inputs // units)]
    channels = units * width
    return [Member(layer.weight, layer.in_axis, offset, width) for offset in range(0, inputs, channels)]


def _length(function: str, tensors: Mapping[str, Array], layer: Layer, axis: int) -> int:
    tensor = tensors.get(layer.weight)
    if not isinstance(tensor, np.ndarray):
        got = "none of that name" if tensor is None else type(tensor).__name__
        raise ValueError(f"{function}: layer {layer.weight!r} must be an array among the tensors, got {got}")
    if not -tensor.ndim <= axis < tensor.ndim:
        raise ValueError(f"{function}: layer {layer.weight!r} must have an axis {axis}, got shape {tensor.shape}")
    return int(tensor.shape[axis])
