"""Small models of transformers with random weights, as directories."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")


def randomized(model: Any) -> Any:
    """Give all parameters random numbers, biases and norms too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def save(model: Any, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Save a model; return its tensors and its config.json."""
    model.save_pretrained(folder)
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    return tensors, json.loads((folder / "config.json").read_text())


def write(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Path:
    """Write a directory as transformers does."""
    folder.mkdir()
    safetensors_numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
