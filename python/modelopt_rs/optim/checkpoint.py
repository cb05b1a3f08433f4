"""Optimizer states as safetensors files."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelopt_rs._core import FormatError
from modelopt_rs._types import Array
from modelopt_rs.containers.safetensors import SafetensorsSource
from modelopt_rs.containers.safetensors_sink import SafetensorsSink
from modelopt_rs.optim.state import BlockState
from modelopt_rs.stream.model import TensorInfo

__all__ = ["load_states", "save_states"]

_KEY = "modelopt_rs.optim"
_DTYPES = {"float32": "F32", "float64": "F64", "uint8": "U8"}


def save_states(
    path: str | os.PathLike[str],
    algorithm: str,
    names: Sequence[str],
    states: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Write everything but the parameters to one file, all or nothing."""
    arrays: dict[str, Array] = {}
    described = []
    for name, state in zip(names, states, strict=True):
        entry: dict[str, Any] = {}
        for key, value in state.items():
            if isinstance(value, BlockState):
                arrays[f"{name}.{key}.codes"], arrays[f"{name}.{key}.absmax"] = value.codes, value.absmax
                entry[key] = {"shape": value.shape, "coding": value.coding, "signed": value.signed}
            elif isinstance(value, np.ndarray):
                arrays[f"{name}.{key}"] = value
            else:
                entry[key] = value
        described.append(entry)
    plain = [{k: None if callable(v) else v for k, v in group.items()} for group in groups]
    text = json.dumps({"version": 1, "algorithm": algorithm, "names": list(names), "state": described, "groups": plain})
    infos = [TensorInfo(k, _DTYPES[a.dtype.name], a.shape, a.nbytes) for k, a in arrays.items()]
    with SafetensorsSink(path, infos, {_KEY: text}) as sink:
        for key, array in arrays.items():
            sink.write(key, array)
        sink.commit()


def load_states(path: str | os.PathLike[str], algorithm: str, names: Sequence[str]) -> dict[str, Any]:
    """Read them as a `state_dict`."""
    with SafetensorsSource(path) as source:
        if _KEY not in source.metadata:
            raise FormatError(f"{os.fspath(path)}: no optimizer state: its metadata has no {_KEY!r}")
        try:
            stored = json.loads(source.metadata[_KEY])
            version, saved, saved_names = stored["version"], stored["algorithm"], stored["names"]
            entries, groups = stored["state"], stored["groups"]
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{os.fspath(path)}: {_KEY!r} is malformed: {error}") from error
        if (version, saved) != (1, algorithm):
            raise ValueError(
                f"{algorithm}.load: {os.fspath(path)} must hold {algorithm}, got {saved} (version {version})"
            )
        if saved_names != list(names):
            raise ValueError(
                f"{algorithm}.load: {os.fspath(path)} must have the parameters {list(names)}, got {saved_names}"
            )
        states: dict[int, dict[str, Any]] = {i: {} for i in range(len(names))}
        try:
            for i, (name, entry) in enumerate(zip(names, entries, strict=True)):
                for key, value in entry.items():
                    states[i][key] = value
                    if isinstance(value, dict):
                        codes, absmax = (source.read(f"{name}.{key}.{part}") for part in ("codes", "absmax"))
                        states[i][key] = BlockState(
                            codes, absmax, value["shape"], coding=value["coding"], signed=value["signed"]
                        )
            places = {name: i for i, name in enumerate(names)}
            for tensor in source.tensors:
                name, _, key = tensor.rpartition(".")
                if name in places and key not in states[places[name]]:
                    states[places[name]][key] = source.read(tensor)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{os.fspath(path)}: its states and {_KEY!r} do not fit: {error}") from error
    return {"state": states, "param_groups": groups}
