"""Structures as files: ONNX by both exporters of torch, directories of transformers, safetensors; and their inputs."""

import contextlib
import io
import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.structures import Structure

# The opsets that each exporter writes; a structure gets one of them, the next structure the next.
OPSETS = {"torchscript": range(11, 21), "dynamo": range(18, 23)}
BATCHES = (1, 2, 3)  # of the inputs, where the batch is open
BATCH = 2


@dataclass(frozen=True)
class Variant:
    """How a structure is exported. What torch can't do gets the next that it can: `Made` has that."""

    exporter: str
    opset: int
    open: bool  # the axes of batch and words have any length

    def others(self) -> list["Variant"]:
        """This one, and those that come nearest."""
        highest = OPSETS[self.exporter][-1]
        nearest = [
            Variant(self.exporter, opset, self.open) for opset in (14, 17, 18, 20) if self.opset < opset <= highest
        ]
        return [self, *nearest, *([Variant(self.exporter, highest, False)] if self.open else [])]


@dataclass(frozen=True)
class Made:
    """A model file or directory, with a directory of inputs beside it."""

    name: str
    library: str
    form: str  # torchscript, dynamo, saved or weights
    path: str
    inputs: str
    opset: int = 0
    open: bool = False
    note: str = ""  # what torch could not do of what was asked
    ranked: bool = False
    loader: str = ""  # the class of transformers, where it isn't the name


def variants(index: int, structure: Structure) -> list[Variant]:
    """Return a variant for each exporter; over the structures, all opsets with open and fixed axes come."""
    found = []
    for name in structure.exporters:
        opsets = OPSETS[name]
        # Open and fixed in turns of the opsets, each exporter the other way about.
        turn = index + index // len(opsets) + (name == "dynamo")
        found.append(Variant(name, opsets[index % len(opsets)], turn % 2 == 0 and not structure.fixed))
    return found


def write(structure: Structure, index: int, folder: Path, form: str) -> Made:
    """Return the files of a structure in a form, made where they aren't there."""
    base = folder / structure.name
    known = base / f"{form}.json"
    if known.exists():
        return Made(**json.loads(known.read_text()))
    base.mkdir(parents=True, exist_ok=True)
    model = structure.build()
    if form in OPSETS:
        variant = next(each for each in variants(index, structure) if each.exporter == form)
        made = _exported(structure, model, variant, base)
    elif form == "saved":
        model.save_pretrained(base / "saved")
        inputs = _samples(structure, base / "inputs-saved", BATCHES)
        made = Made(structure.name, structure.library, form, str(base / "saved"), str(inputs))
    else:
        from safetensors.torch import save_file

        save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, base / "weights.safetensors")
        made = Made(structure.name, structure.library, form, str(base / "weights.safetensors"), "")
    known.write_text(json.dumps(asdict(made)))
    return made


def _samples(structure: Structure, folder: Path, batches: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    for i, batch in enumerate(batches):
        np.savez(folder / f"{i}.npz", **{name: value.numpy() for name, value in structure.inputs(batch).items()})
    return folder


def _exported(structure: Structure, model: torch.nn.Module, variant: Variant, base: Path) -> Made:
    path = base / f"{variant.exporter}.onnx"
    failed = ""
    for each in variant.others():
        try:
            _export(structure, model, each, path)
        except Exception as error:
            failed = failed or f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
            continue
        one = 1 if structure.fixed else BATCH
        batches = BATCHES if each.open else (one,) * len(BATCHES)
        inputs = _samples(structure, base / f"inputs-{variant.exporter}", batches)
        return Made(
            structure.name,
            structure.library,
            each.exporter,
            str(path),
            str(inputs),
            each.opset,
            each.open,
            failed,
            structure.ranked,
        )
    raise RuntimeError(failed)


def _export(structure: Structure, model: torch.nn.Module, variant: Variant, path: Path) -> None:
    if structure.saved:
        from zoo.families import Answer

    torch.manual_seed(2)
    inputs = structure.inputs(1 if structure.fixed else BATCH)
    module = Answer(model, tuple(inputs)) if structure.saved else model
    dynamo = variant.exporter == "dynamo"
    options: dict[str, Any] = {"input_names": list(inputs), "opset_version": variant.opset, "dynamo": dynamo}
    if variant.open:
        axes = {name: _axes(structure, name) for name in inputs}
        if dynamo:
            dims = dict.fromkeys(("batch", "words"), torch.export.Dim.DYNAMIC)
            shapes = tuple({axis: dims[of] for axis, of in each.items()} for each in axes.values())
            options["dynamic_shapes"] = (shapes,) if structure.saved else shapes  # Answer takes *inputs
        else:
            options["dynamic_axes"] = axes
    if dynamo:
        options["external_data"] = False
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, tuple(inputs.values()), str(path), **options)


def _axes(structure: Structure, name: str) -> dict[int, str]:
    return {0: "batch", 1: "words"} if (structure.words and "ids" in name) or name == "attention_mask" else {0: "batch"}
