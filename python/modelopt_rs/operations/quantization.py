"""What is quantized of a model's tensors, whatever else is done to them in the same pass."""

from collections.abc import Mapping
from typing import Any

from modelopt_rs.layouts.layout import Encoder
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.quantize import QuantizeOptions, plan_quantize
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Copy, Transform

__all__ = ["Quantization"]


class Quantization:
    """Which tensors of a model are quantized, by what, and what the file says of it.

    Parameters
    ----------
    tensors : mapping
        The tensors as they are quantized (cropped, where they are cropped before).
    config : mapping
        The model's config.json; empty where there is none.
    options : QuantizeOptions or None
        None: nothing is quantized.
    threads : int or None

    Attributes
    ----------
    decisions : dict
        For each tensor.
    encoders : dict
        What quantizes the tensors that are chosen.
    metadata : mapping of str to str
        How the weights are stored, for a reader that has the file alone.
    config : mapping or None
        The same for config.json.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        config: Mapping[str, Any],
        options: QuantizeOptions | None,
        threads: int | None,
    ) -> None:
        self.decisions: dict[str, Decision] = {}
        self.encoders: dict[str, Encoder] = {}
        self.metadata: Mapping[str, str] = {}
        self.config: Mapping[str, Any] | None = None
        self.threads = threads
        if options is None:
            return
        self.decisions = plan_quantize(tensors, config, options)
        chosen = [name for name, decision in self.decisions.items() if decision.action == "quantize"]
        layout, spec = options.layout, options.layout.spec(options)
        self.encoders = {name: layout.encode(tensors[name], spec, options.nonfinite, threads) for name in chosen}
        if chosen:
            self.metadata, self.config = layout.describe(dict.fromkeys(chosen, spec), self._left(tensors))

    def _left(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        """Return the layers that stay as they are: a loader looks for the codes of all others."""
        left = [
            name.removesuffix(".weight")
            for name, decision in self.decisions.items()
            if decision.action == "copy" and name.endswith(".weight") and len(tensors[name].shape) == 2
        ]
        # A head that is tied to the embedding is a layer of the model, but not in the file.
        if not any("lm_head" in name.split(".") for name in tensors):
            left.append("lm_head")
        return left

    def transform(self, info: TensorInfo) -> Transform:
        """Return what becomes of a tensor."""
        return self.encoders.get(info.name) or Copy(info)

    def figures(self) -> dict[str, ErrorFigures]:
        """Return how far the codes that were made are from the weights, by tensor."""
        return {name: encoder.figures for name, encoder in self.encoders.items()}
