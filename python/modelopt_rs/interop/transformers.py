"""Cropped models of the BERT family in transformers: `from_pretrained` for what a configuration can't say.

transformers 5 makes every BERT layer with ``num_attention_heads`` heads. Of a model that lost heads, ``config.json``
lists those that are gone as ``pruned_heads`` (see `modelopt_rs.prune.cropped_config`). Here the layers are made that
narrow before the weights are loaded; nothing of transformers is changed. Models of the Llama family and those that lost
only feed-forward width need none of this.
"""

from pathlib import Path
from typing import Any

try:
    import torch
    import transformers
except ModuleNotFoundError as error:
    what = f"interop.transformers: {error.name} must be installed; pip install torch transformers"
    raise ModuleNotFoundError(what, name=error.name) from error

from modelopt_rs.signatures import show_options

__all__ = ["from_pretrained"]


def from_pretrained(model_class: Any, path: str | Path, **options: Any) -> Any:
    """Load a model whose configuration has ``pruned_heads``.

    Parameters
    ----------
    model_class : type
        A model's class, as ``transformers.BertModel``, or an Auto class, as ``transformers.AutoModel``.
    path : str or Path
        As for transformers.
    **options
        What transformers' ``from_pretrained`` takes.

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    ValueError
        If the configuration lists heads that the model does not have.

    Examples
    --------
    With a directory that `modelopt_rs.prune` has made::

        model = from_pretrained(transformers.AutoModel, "minilm-cropped")
    """
    config = options.pop("config", None)
    if config is None:
        config = transformers.AutoConfig.from_pretrained(path)
    mapping = getattr(model_class, "_model_mapping", None)
    base = model_class if mapping is None else mapping[type(config)]

    def init(model: Any, config: Any, *arguments: Any, **named: Any) -> None:
        base.__init__(model, config, *arguments, **named)
        _narrow(model, config)

    narrow: Any = type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})
    return narrow.from_pretrained(path, config=config, **options)


def _narrow(model: Any, config: Any) -> None:
    """Make the attention of each layer as wide as the heads that are left."""
    pruned = {int(layer): set(gone) for layer, gone in (getattr(config, "pruned_heads", None) or {}).items()}
    n = config.num_attention_heads
    for layer, gone in pruned.items():
        if not gone <= set(range(n)) or len(gone) == n or layer >= config.num_hidden_layers:
            text = f"some of the {n} heads of a layer, got {sorted(gone)} for layer {layer}"
            raise ValueError(f"from_pretrained: pruned_heads must name {text}")
    for name, module in model.named_modules():
        if name.endswith(".attention") and hasattr(module, "self") and hasattr(module.self, "query"):
            layer = int(name.split(".")[-2])
            heads = n - len(pruned.get(layer, ()))
            attention, width = module.self, heads * module.self.attention_head_size
            for part in ("query", "key", "value"):
                old = getattr(attention, part)
                setattr(attention, part, torch.nn.Linear(old.in_features, width, bias=old.bias is not None))
            out = module.output
            out.dense = torch.nn.Linear(width, out.dense.out_features, bias=out.dense.bias is not None)
            attention.num_attention_heads, attention.all_head_size = heads, width


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
