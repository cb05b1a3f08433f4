"""What a structure is, and all of them by name."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# What a model reads, by the name of its parameter, for a batch of some size.
Inputs = Callable[[int], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Structure:
    """An architecture with random weights."""

    name: str
    library: str
    make: Callable[[], Any]
    inputs: Inputs
    words: bool = False  # axis 1 of the inputs has any length, too
    # Which of torch's exporters write it; a reason for each that doesn't stands beside the entry.
    exporters: tuple[str, ...] = ("torchscript", "dynamo")
    saved: bool = False  # as a directory of transformers, too
    fixed: bool = False  # no axis can be left open
    ranked: bool = False  # what it finds is sorted by a score, so that outputs of two models have other orders

    def build(self) -> torch.nn.Module:
        """Return the model with weights that are the same each time, and with statistics that normalize nothing."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0, 0.1)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        return model


def pictures(side: int, channels: int = 3) -> Inputs:
    return lambda batch: {"x": torch.randn(batch, channels, side, side)}


def load(libraries: tuple[str, ...] = ("torchvision", "timm", "transformers")) -> Mapping[str, Structure]:
    """Return the structures of the libraries; ImportError where one isn't installed."""
    modules = {"torchvision": "vision", "timm": "timm_models", "transformers": "families"}
    found = [each for name in libraries for each in importlib.import_module(f"zoo.{modules[name]}").STRUCTURES]
    return {each.name: each for each in found}
