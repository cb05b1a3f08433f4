"""AWQ of Hugging Face directories: weights times factors of their inputs, where it is known what makes these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.dtypes import widened
from modelopt_rs.layouts.packed_spec import PackedSpec
from modelopt_rs.layouts.row_quantizer import ROUNDED
from modelopt_rs.operations.quantization import Quantization
from modelopt_rs.planning.by_inputs import KnownInputs
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.families import model_types
from modelopt_rs.quant.awq import awq_scales
from modelopt_rs.stream.model import Source, TensorInfo
from modelopt_rs.stream.transform import Transform
from modelopt_rs.transforms.scaled import Scaled

__all__ = ["AWQ_FAMILIES", "ModuleFactors", "find_module_factors"]

AWQ_FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose norms multiply by their weights, and whose layers take what they make and nothing else does."""

# Of one layer: what is divided, and the matrices whose inputs it makes.
MADE: Final = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)


@dataclass(slots=True)
class ModuleFactors:
    """What tensors of a model are multiplied by so that its results stay.

    Attributes
    ----------
    tensors : dict
        By name, by axis, what elements are multiplied by.
    """

    tensors: dict[str, dict[int, Array]] = field(default_factory=dict)

    def transform(self, info: TensorInfo, then: Transform) -> Transform:
        """Return what becomes of a tensor: times its factors, if it has some."""
        return Scaled(info, self.tensors[info.name], then) if info.name in self.tensors else then

    def decided(self, decisions: Mapping[str, Decision]) -> dict[str, Decision]:
        """Return decisions that say which tensors are divided and copied."""
        divided = Decision("copy", "divided by the factors of AWQ")
        return {
            name: divided if name in self.tensors and each.action == "copy" else each
            for name, each in decisions.items()
        }


def find_module_factors(view: Source, known: KnownInputs, quantization: Quantization, options: Any) -> ModuleFactors:
    """Find factors of the inputs of weights that are quantized, where what makes these inputs can be divided by them.

    Parameters
    ----------
    view : Source
    known : KnownInputs
        What is known of the inputs, which are divided from now on; other weights are taken out of it. Of a dry run
        nothing, and then there are no factors.
    quantization : Quantization
        Says how weights are coded.
    options : QuantizeOptions
    """
    found = ModuleFactors()
    if known.method != "awq":
        return found
    specs = {name: spec for name, spec in quantization.specs.items() if name in known.moments}
    groups = list(_groups(view.tensors, specs)) if model_types(view.config or {}) & set(AWQ_FAMILIES) else []
    taken = {name for names, _ in groups for name in names}
    reason = "what makes its input can't be divided, or others take it too"
    known.leave(dict.fromkeys(known.moments.keys() - taken, reason))
    moments = dict(known.moments)
    for names, divided in groups if known.is_looked_at else ():
        squares = known.moments[names[0]]()
        if not squares.size:
            continue
        s = _factors(view, names, specs[names[0]], np.sqrt(squares), options)
        for name in names:
            found.tensors.setdefault(name, {})[1] = s
            moments[name] = partial(np.divide, squares, np.square(s, dtype=np.float64))
        for name in divided:
            found.tensors.setdefault(name, {})[0] = 1 / s
    known.moments = moments
    return found


def _groups(tensors: Mapping[str, TensorInfo], specs: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the weights of one input, all of them quantized alike, and the tensors that are divided for them."""
    ends = ".input_layernorm.weight"
    for prefix in [name.removesuffix(ends) for name in tensors if name.endswith(ends)]:
        for maker, takers in MADE:
            names = [f"{prefix}.{taker}.weight" for taker in takers]
            divided = [name for part in ("weight", "bias") if (name := f"{prefix}.{maker}.{part}") in tensors]
            if not divided or not all(isinstance(specs.get(name), PackedSpec) for name in names):
                continue
            same = len({specs[name] for name in names}) == 1
            # Where several heads share their values, what is made has not the length of what is taken.
            fits = tensors[divided[0]].shape[0] == tensors[names[0]].shape[1]
            if same and fits and all(tensors[name].dtype in ROUNDED for name in (*names, *divided)):
                yield names, divided


def _factors(view: Source, names: Sequence[str], spec: PackedSpec, magnitudes: Array, options: Any) -> Array:
    """Return the factors of one input."""
    first = view.tensors[names[0]]
    stored = options.stored_scales(spec.bits, first)
    return awq_scales(
        np.concatenate([widened(view.read(name), view.tensors[name].dtype).astype(np.float32) for name in names]),
        magnitudes,
        bits=spec.bits,
        scheme="symmetric" if spec.symmetric else "asymmetric",
        axis=None if spec.group_size else 0,
        group_size=spec.group_size,
        search=options.search,
        scale_dtype=ROUNDED[stored],
    )
