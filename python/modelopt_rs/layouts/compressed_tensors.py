"""What `config.json` says of weights in the layouts of compressed-tensors."""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, TypeVar

from modelopt_rs.layouts.modules import Modules

__all__ = ["config_of_formats", "dense_on_loading", "ignored", "targets_of"]

Spec = TypeVar("Spec", bound=Hashable)
_MERGED: Final = re.compile(r"(?:^|\.)experts\.\d+\.")


def targets_of(specs: Mapping[str, Spec], modules: Modules) -> dict[Spec, list[str]]:
    """Return for each way of coding the modules whose weights are coded so, as the targets of a group name them.

    Parameters
    ----------
    specs : mapping
        How each weight is coded, by its name.
    modules : Modules
        Of all weights of the model.
    """
    names: dict[Spec, list[str]] = {}
    for name, spec in specs.items():
        names.setdefault(spec, []).append(name)
    return {spec: [f"re:{each}" for each in _patterns(some, modules)] for spec, some in names.items()}


def _patterns(names: Sequence[str], modules: Modules) -> list[str]:
    """Return the patterns of modules, without the word by which transformers tells merged experts from all others."""
    merged = [name for name in names if _MERGED.search(name)]
    others = [name for name in names if not _MERGED.search(name)]
    found = modules.patterns(merged) if merged else []
    # As in `shared_experts`, which may be coded as those are that are merged.
    return found + [each.replace("experts", "expert[s]") for each in (modules.patterns(others) if others else ())]


def ignored(specs: Mapping[str, Any], modules: Modules) -> list[str]:
    """Return the modules that stay as they are. No target names them, but vLLM wants every module to be named."""
    left = modules.others(specs)
    # A head that is tied to the embedding is a layer of the model, but not in the file.
    return left if any("lm_head" in name.split(".") for name in [*left, *specs]) else [*left, "lm_head"]


def dense_on_loading(targets: Mapping[Any, Sequence[str]]) -> dict[str, bool]:
    """Return what makes transformers 5 dequantize weights as it loads them, where it can tell how each is coded.

    Else its modules hold codes up to the first pass, and models whose weights it initializes by name, renames or ties
    don't load. As it loads it knows two ways of coding: that of experts and that of all the rest.
    """
    experts = [all("experts" in target for target in names) for names in targets.values()]
    return {"dequantize": True} if len(experts) == 1 or sorted(experts) == [False, True] else {}


def config_of_formats(
    layout: str, weights: Mapping[Spec, Mapping[str, Any]], specs: Mapping[str, Spec], modules: Modules
) -> dict[str, Any]:
    """Return what goes into `config.json` under "quantization_config".

    Parameters
    ----------
    layout : str
        The name of the layout.
    weights : mapping
        What is said of the weights that are coded alike, by how they are.
    specs : mapping
        How each weight is coded, by its name.
    modules : Modules
        Of all weights of the model.
    """
    targets = targets_of(specs, modules)
    groups = {
        f"group_{i}": {
            "targets": names,
            "weights": dict(weights[spec]),
            "input_activations": None,
            "output_activations": None,
            "format": layout,
        }
        for i, (spec, names) in enumerate(targets.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored(specs, modules),
        **dense_on_loading(targets),
    }
