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
from modelopt_rs.dtypes import BY_WORD
from modelopt_rs.optim.state import FORMER_CODINGS, BlockState
from modelopt_rs.stream.model import TensorInfo

__all__ = ["load_states", "save_states"]

_KEY = "modelopt_rs.optim"
_SUM, _AVERAGE, _MASK = "accumulated", "average", "mask"


def save_states(
    path: str | os.PathLike[str], algorithm: str, names: Sequence[str], state_dict: Mapping[str, Any]
) -> None:
    """Write everything but the parameters to one file, all or nothing."""
    states, groups = state_dict["state"], state_dict["param_groups"]
    arrays: dict[str, Array] = {}
    described = []
    for name, state in zip(names, states.values(), strict=True):
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
    stored = {"version": 1, "algorithm": algorithm, "names": list(names), "state": described, "groups": plain}
    if state_dict["steps"] != max((state["step"] for state in states.values()), default=0):
        stored["steps"] = state_dict["steps"]
    if accumulated := state_dict.get("accumulated"):
        stored["accumulated"] = accumulated["count"]
        arrays.update({f"{names[i]}.{_SUM}": x for i, x in accumulated["sums"].items()})
    arrays.update({f"{names[i]}.{_AVERAGE}": x for i, x in state_dict.get("averages", {}).items()})
    if "masks" in state_dict:
        stored["pruning"] = {"step": state_dict["step"], "sparsity": state_dict["sparsity"]}
        arrays.update({f"{name}.{_MASK}": x for name, x in state_dict["masks"].items()})
    infos = [TensorInfo(k, BY_WORD[a.dtype.name], a.shape, a.nbytes) for k, a in arrays.items()]
    with SafetensorsSink(path, infos, {_KEY: json.dumps(stored)}) as sink:
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
            more = {key: stored[key] for key in ("steps", "accumulated", "pruning") if key in stored}
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
                        coding: Any = FORMER_CODINGS.get(value["coding"], value["coding"])
                        states[i][key] = BlockState(
                            codes, absmax, value["shape"], coding=coding, signed=value["signed"]
                        )
            places = {name: i for i, name in enumerate(names)}
            for tensor in source.tensors:
                name, _, key = tensor.rpartition(".")
                if name in places and key not in states[places[name]]:
                    states[places[name]][key] = source.read(tensor)
            beside = _beside(states, list(names), more)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{os.fspath(path)}: its states and {_KEY!r} do not fit: {error}") from error
    return {"state": states, "param_groups": groups, **beside}


def _beside(states: dict[int, dict[str, Any]], names: list[str], stored: dict[str, Any]) -> dict[str, Any]:
    """Take out of the states what is beside them: sums, averages and masks."""

    def taken(key: str) -> dict[int, Array]:
        return {i: state.pop(key) for i, state in states.items() if key in state}

    sums, averages, masks = (taken(key) for key in (_SUM, _AVERAGE, _MASK))
    made: dict[str, Any] = {"steps": stored["steps"]} if "steps" in stored else {}
    if "accumulated" in stored:
        made["accumulated"] = {"count": stored["accumulated"], "sums": sums}
    if averages:
        made["averages"] = averages
    if "pruning" in stored:
        made.update(stored["pruning"], masks={names[i]: bits for i, bits in masks.items()})
    return made
