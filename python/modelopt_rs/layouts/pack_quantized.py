"""The `pack-quantized` layout of compressed-tensors, which transformers, vLLM and SGLang load.

For a weight `NAME.weight` of shape [out, in] with b-bit codes the file holds:

- `NAME.weight_packed`, I32 [out, ceil(in * b / 32)]: each row a stream of unsigned codes q + 2^(b-1), the
  first in the lowest bits of the first word;
- `NAME.weight_scale` [out, groups], one group of the whole row or in / group_size of them;
- `NAME.weight_shape`, I64 [2];
- for asymmetric codes `NAME.weight_zero_point`, I32 [ceil(out * b / 32), groups]: unsigned zero points,
  each column a stream down the rows.

What loads it computes (q - zero_point) * scale, and needs group_size to divide `in`.

Weights of convolutions and of recurrent layers (`NAME.weight_ih_l0`) are stored alike, as no other loader reads: `in`
is the product of all axes but the first, and `NAME.weight_shape` has all axes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelopt_rs._core import FormatError, UnsupportedError
from modelopt_rs.containers.strict_json import parse_object
from modelopt_rs.errors import quote
from modelopt_rs.layouts.packed_spec import PackedSpec, as_matrix, packed_words
from modelopt_rs.quant.formats import BITS
from modelopt_rs.stream.model import Source, TensorInfo, may_be_weight

__all__ = [
    "METADATA_KEY",
    "packed_metadata",
    "packed_tensors",
    "quantization_config",
    "read_specs",
]

METADATA_KEY = "modelopt_rs.quantization"
_SCALES = {"F32": 4, "F16": 2, "BF16": 2}


def packed_tensors(name: str, shape: Sequence[int], spec: PackedSpec, scale_dtype: str = "F32") -> list[TensorInfo]:
    """Return the tensors that stand for one weight: packed, scale, shape and, if asymmetric, zero point.

    Parameters
    ----------
    name : str
        The weight's name; it ends in ".weight", or is that of a recurrent layer's weight.
    shape : sequence of int
        Its shape, [out, in]; of a convolution, with axes behind these.
    spec : PackedSpec
        How it is packed. Its group size must divide `in`, as what loads the file demands.
    scale_dtype : {"F32", "F16", "BF16"}
        Of the scales. compressed-tensors dequantizes to the dtype of the scales.

    Raises
    ------
    ValueError
        If the layout can't hold such a weight.

    Examples
    --------
    >>> from modelopt_rs.files import PackedSpec, packed_tensors
    >>> for info in packed_tensors("fc.weight", (8, 64), PackedSpec(4, group_size=32)):
    ...     print(info.name, info.dtype, info.shape)
    fc.weight_packed I32 (8, 8)
    fc.weight_scale F32 (8, 2)
    fc.weight_shape I64 (2,)
    """
    where = f"packed_tensors: {quote(name)}"
    if not may_be_weight(name):
        raise ValueError(f"{where}: the name must end in '.weight'")
    if len(shape) < 2:
        raise ValueError(f"{where}: must have 2 axes or more, got shape {tuple(shape)}")
    rows, columns = as_matrix(shape)
    if spec.group_size is not None and columns % spec.group_size:
        raise ValueError(f"{where}: group_size {spec.group_size:,} does not divide its rows of {columns:,}")
    if scale_dtype not in _SCALES:
        raise ValueError(f"{where}: scale_dtype must be F32, F16 or BF16, got {quote(scale_dtype)}")
    groups = spec.groups(columns)
    packed = packed_words(columns, spec.bits)
    tensors = [
        TensorInfo(f"{name}_packed", "I32", (rows, packed), 4 * rows * packed),
        TensorInfo(f"{name}_scale", scale_dtype, (rows, groups), _SCALES[scale_dtype] * rows * groups),
        TensorInfo(f"{name}_shape", "I64", (len(shape),), 8 * len(shape)),
    ]
    if not spec.symmetric:
        down = packed_words(rows, spec.bits)
        tensors.append(TensorInfo(f"{name}_zero_point", "I32", (down, groups), 4 * down * groups))
    return tensors


def quantization_config(targets: Mapping[PackedSpec, Sequence[str]], ignore: Sequence[str] = ()) -> dict[str, Any]:
    """Return what goes into `config.json` under "quantization_config".

    Parameters
    ----------
    targets : mapping of PackedSpec to sequence of str
        Which modules are packed how: names of modules or of their classes ("Linear"), or "re:" and a pattern.
    ignore : sequence of str
        The modules that stay as they are although they are a target.

    Examples
    --------
    >>> from modelopt_rs.files import PackedSpec, quantization_config
    >>> config = quantization_config({PackedSpec(4, group_size=32): ["Linear"]}, ignore=["lm_head"])
    >>> config["config_groups"]["group_0"]["weights"]["group_size"]
    32
    """
    groups = {}
    for i, (spec, names) in enumerate(targets.items()):
        weights = {
            "num_bits": spec.bits,
            "type": "int",
            "symmetric": spec.symmetric,
            "strategy": "group" if spec.group_size else "channel",
            "group_size": spec.group_size,
            "dynamic": False,
        }
        groups[f"group_{i}"] = {
            "targets": list(names),
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignore),
    }


def packed_metadata(specs: Mapping[str, PackedSpec]) -> dict[str, str]:
    """Return the header's metadata that say how each weight is packed, by its plain name.

    With them a file can be read back without a `config.json`.
    """
    weights: dict[PackedSpec, list[str]] = {}
    for name, spec in specs.items():
        weights.setdefault(spec, []).append(name)
    groups = [
        {"num_bits": s.bits, "symmetric": s.symmetric, "group_size": s.group_size, "targets": names}
        for s, names in weights.items()
    ]
    return {METADATA_KEY: json.dumps({"format": "pack-quantized", "groups": groups}, separators=(",", ":"))}


def read_specs(source: Source) -> tuple[dict[str, PackedSpec], list[PackedSpec]]:
    """Return what a source says of how its weights are packed.

    Returns
    -------
    dict of str to PackedSpec
        By the weight's plain name, from the file's own metadata.
    list of PackedSpec
        Those of `config.json`, which says only by modules and their classes where they apply.
    """
    named: dict[str, PackedSpec] = {}
    if METADATA_KEY in source.metadata:
        where = f"{source.path}: metadata {METADATA_KEY!r}"
        groups = parse_object(source.metadata[METADATA_KEY], where).get("groups")
        if not isinstance(groups, list):
            raise FormatError(f"{where}: groups must be a list")
        for group in groups:
            spec = _spec(group, where)
            names = group.get("targets")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise FormatError(f"{where}: targets must be a list of names")
            named.update(dict.fromkeys(names, spec))
    config = source.config or {}
    return named, _config_specs(config.get("quantization_config"), f"{source.path}: quantization_config")


def _config_specs(quantization: Any, where: str) -> list[PackedSpec]:
    if quantization is None:
        return []
    groups = quantization.get("config_groups", {}) if isinstance(quantization, dict) else None
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise FormatError(f"{where}: config_groups must be an object of objects")
    if quantization.get("quant_method") != "compressed-tensors":
        return []
    specs = [
        _spec(group.get("weights"), where)
        for group in groups.values()
        if (group.get("format") or quantization.get("format")) == "pack-quantized"
    ]
    return list(dict.fromkeys(specs))


def _spec(weights: Any, where: str) -> PackedSpec:
    if not isinstance(weights, dict):
        raise FormatError(f"{where}: weights must be an object")
    bits, symmetric = weights.get("num_bits"), weights.get("symmetric", True)
    size = weights.get("group_size") or 0
    if type(bits) is not int or type(symmetric) is not bool or type(size) is not int or size < -1:
        raise FormatError(f"{where}: num_bits, symmetric or group_size is wrong")
    strategy = weights.get("strategy") or ("group" if size > 0 else "channel")
    if weights.get("type", "int") != "int" or strategy not in ("channel", "group"):
        raise UnsupportedError(f"{where}: weights of strategy {quote(str(strategy))} are not supported")
    if bits not in BITS:
        raise UnsupportedError(f"{where}: {bits:,} bits are not supported, only 2, 4 and 8")
    if strategy == "group" and size < 1:
        raise FormatError(f"{where}: group_size {size:,} must be at least 1")
    return PackedSpec(bits, symmetric, size if strategy == "group" else None)
