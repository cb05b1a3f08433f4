"""What `config.json` says of weights in the layouts of compressed-tensors."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

__all__ = ["config_of_formats"]


def config_of_formats(
    layout: str, weights: Mapping[Hashable, Mapping[str, Any]], ignore: Sequence[str]
) -> dict[str, Any]:
    """Return what goes into `config.json` under "quantization_config".

    Parameters
    ----------
    layout : str
        The name of the layout.
    weights : mapping
        What is said of the weights that are coded alike, by how they are.
    ignore : sequence of str
        The modules that stay as they are although they are a target.
    """
    groups = {
        f"group_{i}": {
            "targets": ["Linear"],
            "weights": dict(said),
            "input_activations": None,
            "output_activations": None,
            "format": layout,
        }
        for i, said in enumerate(weights.values())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignore),
    }
