"""The groups of transformers in Hugging Face's naming, and the configuration that a cropped one needs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from modelopt_rs.errors import ArgumentError
from modelopt_rs.prune.coupling import Group, Member, Shaped, check_mapping
from modelopt_rs.prune.crop import CropReport, GroupReport

__all__ = ["WHAT", "What", "cropped_config", "is_bert", "transformer_groups"]

What: TypeAlias = Literal["heads", "query_heads", "ffn", "hidden", "all"]
WHAT = ("heads", "query_heads", "ffn", "hidden", "all")
_BERT = ("bert", "roberta", "xlm-roberta", "camembert")
_LLAMA = ("llama", "mistral", "qwen2", "qwen3")

# Which axes of a tensor are hidden, by the end of its name; () for those that have none.
_BERT_HIDDEN: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", (1,)),
    (r"embeddings\.(position_ids|token_type_ids)", ()),
    (r"(LayerNorm|layer_norm)\.(weight|bias|gamma|beta)", (0,)),
    (r"self\.(query|key|value)\.weight", (1,)),
    (r"self\.(query|key|value)\.bias", ()),
    (r"intermediate\.dense\.weight", (1,)),
    (r"intermediate\.dense\.bias", ()),
    (r"output\.dense\.(weight|bias)", (0,)),
    (r"(pooler|transform|lm_head|classifier)\.dense\.weight", (0, 1)),
    (r"(pooler|transform|lm_head|classifier)\.dense\.bias", (0,)),
    (r"(decoder|out_proj|classifier|qa_outputs|seq_relationship)\.weight", (1,)),
    (r"(decoder|out_proj|classifier|qa_outputs|seq_relationship|lm_head|predictions)\.bias", ()),
)
_LLAMA_HIDDEN: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"(embed_tokens|lm_head|score)\.weight", (1,)),
    (r"(q|k|v|gate|up)_proj\.weight", (1,)),
    (r"(q|k|v|gate|up)_proj\.bias", ()),
    (r"(o|down)_proj\.(weight|bias)", (0,)),
    (r"(q|k)_norm\.weight", ()),
    (r"rotary_emb\.inv_freq", ()),
    (r"(norm|input_layernorm|post_attention_layernorm)\.weight", (0,)),
)


def transformer_groups(
    tensors: Mapping[str, Shaped], config: Mapping[str, Any], what: What | Iterable[What] = "all"
) -> tuple[Group, ...]:
    """Return the groups of a model of the BERT or the Llama family.

    - "heads", one group for each layer, ``<layer>.heads``: the rows of queries, keys and values and the columns of the
      output projection. Where query heads share key-value heads (Llama), a unit is a key-value head with its queries.
    - "query_heads" (Llama), ``<layer>.query_heads``: query heads alone, the same number for each key-value head. Not
      with "heads".
    - "ffn", one for each layer, ``<layer>.ffn``: the width of the feed-forward network.
    - "hidden", one group ``hidden``: the width of the model, from the embeddings to the last norm and the heads of
      tasks. Cropping it changes what every norm divides by: without training expect much worse answers.
    - "all": heads, ffn and hidden.

    `what` may be several of them.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        All tensors of the model, under Hugging Face's names, with any prefix (``bert.``, ``model.``).
    config : mapping
        What ``config.json`` holds. `model_type` must be bert, roberta, xlm-roberta, camembert, llama, mistral, qwen2
        or qwen3.
    what : str or iterable of str
        As above.

    Returns
    -------
    tuple of Group

    Raises
    ------
    ValueError
        If the model type is another one, tensors are missing or don't fit the configuration, or (with "hidden") there
        is one that is not known.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> config = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 6}
    >>> layer = "encoder.layer.0."
    >>> names = [layer + f"attention.{n}.weight" for n in ("self.query", "self.key", "self.value", "output.dense")]
    >>> tensors = {name: np.ones((8, 8), np.float32) for name in names}
    >>> [group] = mo.prune.transformer_groups(tensors, config, "heads")
    >>> group.name, group.units, [(member.axis, member.size) for member in group.members]
    ('encoder.layer.0.heads', 2, [(0, 4), (0, 4), (0, 4), (1, 4)])
    """
    chosen = (what,) if isinstance(what, str) else tuple(what)
    for each in chosen:
        if each not in WHAT:
            raise ArgumentError("transformer_groups", f"what must be of {', '.join(WHAT)}, got {each!r}")
    if "all" in chosen:
        chosen = ("heads", "ffn", "hidden")
    model = _Model("transformer_groups", tensors, config)
    groups: list[Group] = []
    for layer in model.layers:
        if "heads" in chosen:
            groups.append(model.heads(layer))
        if "query_heads" in chosen:
            groups.append(model.query_heads(layer))
        if "ffn" in chosen:
            groups.append(model.ffn(layer))
    if "hidden" in chosen:
        groups.append(model.hidden())
    return tuple(groups)


class _Model:
    """A model's tensors and numbers; each method makes a group."""

    def __init__(self, function: str, tensors: Mapping[str, Shaped], config: Mapping[str, Any]) -> None:
        check_mapping(function, "tensors", tensors)
        self.function, self.tensors = function, tensors
        self.bert = is_bert(function, config)
        self.width = _number(function, config, "hidden_size")
        self.head = _head_size(function, config)
        first = (
            r"(.*encoder\.layer\.\d+)\.attention\.self\.query\.weight"
            if self.bert
            else (r"(.*layers\.\d+)\.self_attn\.q_proj\.weight")
        )
        found = (re.fullmatch(first, name) for name in tensors)
        self.layers = sorted((match[1] for match in found if match), key=_layer_number)
        if not self.layers:
            wanted = "encoder.layer.0.attention.self.query.weight" if self.bert else "layers.0.self_attn.q_proj.weight"
            raise ArgumentError(
                function, f"tensors must hold the layers of the model, got no name that ends as {wanted}"
            )

    def length(self, name: str, axis: int) -> int:
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.shape) <= axis:
            got = "none of that name" if tensor is None else f"shape {tensor.shape}"
            raise ArgumentError(self.function, f"tensors must hold {name!r} with an axis {axis}, got {got}")
        return int(tensor.shape[axis])

    def divided(self, name: str, axis: int, by: int) -> int:
        """Return how many units of `by` indices there are along an axis."""
        n = self.length(name, axis)
        if n % by or n == 0:
            got = self.tensors[name].shape
            raise ArgumentError(self.function, f"{name!r} must have a multiple of {by} along axis {axis}, got {got}")
        return n // by

    def rows(self, names: Iterable[str], size: int = 1) -> list[Member]:
        """Return the rows of weights, and of their biases where there are some."""
        members = []
        for name in names:
            members.append(Member(f"{name}.weight", 0, size=size))
            if f"{name}.bias" in self.tensors:
                members.append(Member(f"{name}.bias", 0, size=size, scored=False))
        return members

    def heads(self, layer: str) -> Group:
        if self.bert:
            q, k, v = (f"{layer}.attention.self.{name}" for name in ("query", "key", "value"))
            out = f"{layer}.attention.output.dense"
        else:
            q, k, v, out = (f"{layer}.self_attn.{name}_proj" for name in "qkvo")
        units = self.divided(f"{k}.weight", 0, self.head)
        size = self.divided(f"{q}.weight", 0, units * self.head) * self.head
        members = [*self.rows([q], size), *self.rows([k, v], self.head), Member(f"{out}.weight", 1, size=size)]
        return Group(f"{layer}.heads", units, tuple(members))

    def query_heads(self, layer: str) -> Group:
        if self.bert:
            raise ArgumentError(
                self.function, "what must not be 'query_heads' for the BERT family, got it; use 'heads'"
            )
        q, k, _, out = (f"{layer}.self_attn.{name}_proj" for name in "qkvo")
        blocks = self.divided(f"{k}.weight", 0, self.head)
        units = self.divided(f"{q}.weight", 0, blocks * self.head) * blocks
        members = [*self.rows([q], self.head), Member(f"{out}.weight", 1, size=self.head)]
        return Group(f"{layer}.query_heads", units, tuple(members), blocks)

    def ffn(self, layer: str) -> Group:
        if self.bert:
            into, out = [f"{layer}.intermediate.dense"], f"{layer}.output.dense"
        else:
            into, out = [f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"], f"{layer}.mlp.down_proj"
        units = self.length(f"{into[0]}.weight", 0)
        return Group(f"{layer}.ffn", units, (*self.rows(into), Member(f"{out}.weight", 1)))

    def hidden(self) -> Group:
        members = []
        for name, tensor in self.tensors.items():
            for ending, axes in _BERT_HIDDEN if self.bert else _LLAMA_HIDDEN:
                if re.fullmatch(rf"(.*\.)?{ending}", name):
                    members += [Member(name, axis, scored=len(tensor.shape) > 1) for axis in axes]
                    break
            else:
                fix = "leave it out of tensors and crop it by a group of your own"
                raise ArgumentError(self.function, f"tensors must be known for 'hidden', got {name!r}; {fix}")
        return Group("hidden", self.width, tuple(members))


def cropped_config(config: Mapping[str, Any], report: CropReport) -> dict[str, Any]:
    """Return the configuration of a model that `crop` has cropped by `transformer_groups`.

    All layers must keep the same numbers (``scope="local"``). What transformers can load:

    - ``intermediate_size`` and, for the Llama family, ``num_attention_heads``, ``num_key_value_heads`` and
      ``head_dim``: every version. Llama itself also wants ``hidden_size`` to be a multiple of the heads.
    - In the BERT family a head is ``hidden_size / num_attention_heads`` wide. Heads cropped in proportion to "hidden"
      load in every version. Heads cropped alone are written as ``pruned_heads`` (for each layer those that are gone),
      which transformers up to 4 understands and 5 does not: load them there with
      `modelopt_rs.interop.transformers.from_pretrained`.

    Parameters
    ----------
    config : mapping
        What ``config.json`` held before. Not written.
    report : CropReport
        What `crop` or `plan_crop` returned.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If layers keep different numbers, or no configuration can say what was kept.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> config = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 6}
    >>> names = "attention.self.query", "intermediate.dense", "output.dense"
    >>> shapes = (8, 8), (6, 8), (8, 6)
    >>> tensors = {f"encoder.layer.0.{n}.weight": np.ones(s, np.float32) for n, s in zip(names, shapes)}
    >>> _, report = mo.prune.crop(tensors, mo.prune.transformer_groups(tensors, config, "ffn"), keep=4)
    >>> mo.prune.cropped_config(config, report)["intermediate_size"]
    4
    """
    function = "cropped_config"
    bert, new = is_bert(function, config), dict(config)
    parts: dict[str, list[GroupReport]] = {"heads": [], "query_heads": [], "ffn": [], "hidden": []}
    for group in report.groups:
        kind = group.name.rpartition(".")[2]
        if kind in parts:
            parts[kind].append(group)
    head = _head_size(function, config)
    for group in parts["hidden"]:
        new["hidden_size"] = len(group.kept)
    if parts["ffn"]:
        new["intermediate_size"] = _same(function, parts["ffn"])
    if bert and (parts["heads"] or parts["hidden"]):
        _bert_heads(function, config, new, head, parts["heads"])
    elif not bert:
        _llama_heads(function, config, new, head, parts)
    return new


def _llama_heads(
    function: str, config: Mapping[str, Any], new: dict[str, Any], head: int, parts: dict[str, list[GroupReport]]
) -> None:
    queries = _number(function, config, "num_attention_heads")
    shared = queries if config.get("num_key_value_heads") is None else _number(function, config, "num_key_value_heads")
    if parts["heads"]:
        new["num_key_value_heads"] = _same(function, parts["heads"])
        new["num_attention_heads"] = new["num_key_value_heads"] * (queries // shared)
    if parts["query_heads"]:
        new["num_attention_heads"] = _same(function, parts["query_heads"])
        new["num_key_value_heads"] = shared
    new["head_dim"] = head
    if config["model_type"] == "llama" and new["hidden_size"] % new["num_attention_heads"]:
        got = f"{new['num_attention_heads']} heads and hidden_size {new['hidden_size']}"
        raise ArgumentError(function, f"heads must divide hidden_size for transformers to load Llama, got {got}")


def _bert_heads(
    function: str, config: Mapping[str, Any], new: dict[str, Any], head: int, heads: list[GroupReport]
) -> None:
    n = _number(function, config, "num_attention_heads")
    pruned = _pruned_heads(function, config)
    counts = {len(group.kept) for group in heads} or {n}
    if not pruned and len(counts) == 1 and (same := counts.pop()) * head == new["hidden_size"]:
        new["num_attention_heads"] = same
        return
    if new["hidden_size"] != config["hidden_size"]:
        got = f"hidden_size {new['hidden_size']} with heads of {head}"
        fix = "keep the same fraction of heads and hidden, one that leaves whole heads"
        raise ArgumentError(
            function, f"hidden_size must be heads times their width in the BERT family, got {got}; {fix}"
        )
    for group in heads:
        layer = _layer_number(group.name)
        left = [i for i in range(n) if i not in pruned.get(layer, [])]
        pruned[layer] = sorted([*pruned.get(layer, []), *(left[i] for i in group.removed)])
    pruned = {layer: gone for layer, gone in sorted(pruned.items()) if gone}
    if pruned:
        new["pruned_heads"] = {str(layer): [int(i) for i in gone] for layer, gone in pruned.items()}


def _pruned_heads(function: str, config: Mapping[str, Any]) -> dict[int, list[int]]:
    """Return the heads that are gone already, by layer."""
    given = config.get("pruned_heads") or {}
    try:
        return {int(layer): sorted(int(head) for head in gone) for layer, gone in given.items()}
    except (AttributeError, TypeError, ValueError):
        text = "an object of lists of heads by layer"
        raise ArgumentError(function, f"config['pruned_heads'] must be {text}, got {given!r}") from None


def _same(function: str, groups: list[GroupReport]) -> int:
    counts = sorted({len(group.kept) for group in groups})
    if len(counts) > 1:
        kind = groups[0].name.rpartition(".")[2]
        raise ArgumentError(function, f"report must keep as many {kind!r} in every layer, got {counts}")
    return counts[0]


def _layer_number(name: str) -> int:
    match = re.search(r"layers?\.(\d+)", name)
    return int(match[1]) if match else 0


def _number(function: str, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(function, f"config[{key!r}] must be an integer of at least 1, got {value!r}")
    return value


def is_bert(function: str, config: Mapping[str, Any]) -> bool:
    """Say which of the two families a model is of; ValueError if it is of neither."""
    check_mapping(function, "config", config)
    kind = config.get("model_type")
    if kind not in _BERT + _LLAMA:
        raise ArgumentError(function, f"config['model_type'] must be one of {', '.join(_BERT + _LLAMA)}, got {kind!r}")
    return kind in _BERT


def _head_size(function: str, config: Mapping[str, Any]) -> int:
    if config.get("head_dim") is not None:
        return _number(function, config, "head_dim")
    width, heads = (_number(function, config, key) for key in ("hidden_size", "num_attention_heads"))
    if width % heads:
        raise ArgumentError(function, f"config['hidden_size'] must be a multiple of its {heads} heads, got {width}")
    return width // heads
