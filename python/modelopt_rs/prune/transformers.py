"""The groups of transformers in Hugging Face's naming, and the configuration that a cropped one needs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from modelopt_rs.arguments import listed, shown
from modelopt_rs.errors import ArgumentError, check_mapping
from modelopt_rs.prune.coupling import Group, Member, Shaped
from modelopt_rs.prune.crop import CropReport, GroupReport
from modelopt_rs.prune.families import family_of

__all__ = ["WHAT", "What", "cropped_config", "transformer_groups"]

What: TypeAlias = Literal["heads", "query_heads", "ffn", "hidden", "all"]
WHAT = ("heads", "query_heads", "ffn", "hidden", "all")
PROPORTION = "keep the same fraction of heads and hidden, one that leaves whole heads, or crop 'ffn' alone"


def transformer_groups(
    tensors: Mapping[str, Shaped], config: Mapping[str, Any], what: What | Iterable[What] = "all"
) -> tuple[Group, ...]:
    """Return the groups of a transformer whose layers are BERT's or Llama's, whatever their names.

    - "heads", one group for each layer, ``<layer>.heads``: the rows of queries, keys and values and the columns of the
      output projection. Where query heads share key-value heads (Llama), a unit is a key-value head with its queries.
      MPNet's layers share a bias for each head and lose the same heads: one group, ``encoder.heads``.
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
        What ``config.json`` holds. `model_type` must be one of bert, roberta, xlm-roberta, camembert, electra, mpnet,
        distilbert, llama (SmolLM, too), smollm3, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi, phi3, olmo,
        olmo2, olmo3, granite, glm, glm4, cohere, cohere2, starcoder2, stablelm, nemotron, arcee, seed_oss, exaone4 and
        ernie4_5.
    what : str or iterable of str
        As above.

    Returns
    -------
    tuple of Group

    Raises
    ------
    ValueError
        If the model type is another one, tensors are missing or don't fit the configuration, (with "hidden") there
        is one that is not known, or (with heads) a norm goes over all heads together (OLMo 2 and 3).

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
    check_mapping("transformer_groups", "tensors", tensors, "arrays by name")
    check_mapping("transformer_groups", "config", config, "what config.json holds")
    chosen = (what,) if isinstance(what, str) else tuple(listed("transformer_groups", "what", what, "str"))
    for each in chosen:
        if not isinstance(each, str) or each not in WHAT:
            raise ArgumentError("transformer_groups", f"what must be of {', '.join(WHAT)}, got {shown(each)}")
    if "all" in chosen:
        chosen = ("heads", "ffn", "hidden")
    model = _Model("transformer_groups", tensors, config)
    groups: list[Group] = []
    if "heads" in chosen and model.family.shared_bias:
        groups.append(model.shared_heads())
        chosen = tuple(each for each in chosen if each != "heads")
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
        self.function, self.tensors, self.config = function, tensors, config
        self.family = family_of(function, config)
        self.width = _number(function, config, self.family.keys[0])
        self.head = _head_size(function, config)
        query = f"{self.family.qkv[0]}.weight"
        found = (re.fullmatch(rf"((.*\.)?{self.family.layer})\.{re.escape(query)}", name) for name in tensors)
        self.layers = sorted((match[1] for match in found if match), key=_layer_number)
        if not self.layers:
            wanted = self.family.layer.replace("\\.", ".").replace("\\d+", "0") + f".{query}"
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

    def rows(self, name: str, size: int = 1, offset: int = 0) -> list[Member]:
        """Return the rows of a weight, and of its bias where there is one."""
        members = [Member(f"{name}.weight", 0, offset, size)]
        if f"{name}.bias" in self.tensors:
            members.append(Member(f"{name}.bias", 0, offset, size, scored=False))
        return members

    def counts(self, layer: str) -> tuple[int, int]:
        """Return how many query heads share a key-value head, and how many of those there are."""
        q, k, v = (f"{layer}.{name}.weight" for name in self.family.qkv)
        if q == k == v:
            shared = self.config.get("num_key_value_heads")
            heads = _number(self.function, self.config, self.family.keys[1])
            units = heads if shared is None else _number(self.function, self.config, "num_key_value_heads")
            rows = self.length(q, 0)
            if heads % units or rows != (heads + 2 * units) * self.head:
                want = f"{heads} heads of queries and twice {units} of keys and values, {self.head} wide each"
                raise ArgumentError(self.function, f"{q!r} must have the rows of {want}, got {rows}")
            return heads // units, units
        units = self.divided(k, 0, self.head)
        return self.divided(q, 0, units * self.head), units

    def check_norms(self, layer: str) -> None:
        """Refuse to crop heads where norms go over more than one: what they divide by would change."""
        for norm in self.family.qk_norms:
            for name, tensor in self.tensors.items():
                if name.startswith(f"{layer}.{norm}.") and tuple(tensor.shape) != (self.head,):
                    got = f"{name!r} of shape {tuple(tensor.shape)}"
                    text = f"what must not name heads where a norm goes over all of them, got {got}; use 'ffn'"
                    raise ArgumentError(self.function, text)

    def heads(self, layer: str) -> Group:
        self.check_norms(layer)
        each, units = self.counts(layer)
        q, k, v = (f"{layer}.{name}" for name in self.family.qkv)
        size = each * self.head
        first, second = (units * size, units * (size + self.head)) if q == k else (0, 0)
        members = [
            *self.rows(q, size),
            *self.rows(k, self.head, first),
            *self.rows(v, self.head, second),
            Member(f"{layer}.{self.family.attention_out}.weight", 1, size=size),
        ]
        return Group(f"{layer}.heads", units, tuple(members))

    def shared_heads(self) -> Group:
        """Return the heads of all layers as one group, and the columns of the bias that they share."""
        groups = [self.heads(layer) for layer in self.layers]
        table = f"{self.family.shared_bias}.weight"
        tables = [Member(name, 1, scored=False) for name in self.tensors if f".{name}".endswith(f".{table}")]
        members = [member for group in groups for member in group.members]
        return Group(f"{self.family.shared_bias.split('.')[0]}.heads", groups[0].units, (*members, *tables))

    def query_heads(self, layer: str) -> Group:
        if not self.family.key_value_heads:
            raise ArgumentError(
                self.function, "what must not be 'query_heads' for the BERT family, got it; use 'heads'"
            )
        self.check_norms(layer)
        each, blocks = self.counts(layer)
        out = f"{layer}.{self.family.attention_out}.weight"
        members = [*self.rows(f"{layer}.{self.family.qkv[0]}", self.head), Member(out, 1, size=self.head)]
        return Group(f"{layer}.query_heads", each * blocks, tuple(members), blocks)

    def ffn(self, layer: str) -> Group:
        into = [f"{layer}.{name}" for name in self.family.ffn]
        fused = len(into) - len(set(into)) + 1
        units = self.divided(f"{into[0]}.weight", 0, fused)
        members = [
            member
            for place, name in enumerate(into)
            for member in self.rows(name, offset=units * place if fused > 1 else 0)
        ]
        return Group(f"{layer}.ffn", units, (*members, Member(f"{layer}.{self.family.ffn_out}.weight", 1)))

    def hidden(self) -> Group:
        rules, embedding = self.family.hidden, self.family.embedding
        if embedding is not None and _number(self.function, self.config, embedding[0]) != self.width:
            rules = embedding[1] + rules
        members = []
        for name, tensor in self.tensors.items():
            for ending, axes in rules:
                if re.fullmatch(rf"(.*\.)?{ending}", name):
                    members += [Member(name, axis, scored=len(tensor.shape) > 1) for axis in axes]
                    break
            else:
                fix = "leave it out of tensors and crop it by a group of your own"
                raise ArgumentError(self.function, f"tensors must be known for 'hidden', got {name!r}; {fix}")
        return Group("hidden", self.width, tuple(members))


def cropped_config(config: Mapping[str, Any], report: CropReport) -> dict[str, Any]:
    """Return the configuration of a model that `crop` has cropped by `transformer_groups`.

    All layers must keep the same numbers (``scope="group"``). What transformers can load:

    - ``intermediate_size`` (DistilBERT: ``hidden_dim``) and, for the Llama family, ``num_attention_heads``,
      ``num_key_value_heads`` and ``head_dim``: every version. Llama, Gemma 2 and Gemma 3 also want ``hidden_size`` to
      be a multiple of the heads.
    - In the BERT family (and StableLM) a head is ``hidden_size / num_attention_heads`` wide. Heads cropped in
      proportion to "hidden" load in every version. Heads of BERT, RoBERTa and ELECTRA cropped alone are written as
      ``pruned_heads`` (for each layer those that are gone), which transformers up to 4 understands and 5 does not: load
      them there with `modelopt_rs.interop.transformers.from_pretrained`. Of the others that is an error.

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
    check_mapping(function, "config", config, "what config.json holds")
    if not isinstance(report, CropReport):
        raise TypeError(f"{function}: report must be a CropReport, got {type(report).__name__}")
    family, new = family_of(function, config), dict(config)
    parts: dict[str, list[GroupReport]] = {"heads": [], "query_heads": [], "ffn": [], "hidden": []}
    for group in report.groups:
        kind = group.name.rpartition(".")[2]
        if kind in parts:
            parts[kind].append(group)
    width, _, ffn = family.keys
    head = _head_size(function, config)
    for group in parts["hidden"]:
        new[width] = len(group.kept)
        if family.embedding is not None and config.get(family.embedding[0]) == config[width]:
            new[family.embedding[0]] = new[width]
    if parts["ffn"]:
        new[ffn] = _same(function, parts["ffn"])
    if family.key_value_heads and (family.head_dim or parts["heads"] or parts["query_heads"] or parts["hidden"]):
        _shared_heads(function, config, new, head, parts)
    elif not family.key_value_heads and (parts["heads"] or parts["hidden"]):
        _plain_heads(function, config, new, head, parts["heads"])
    return new


def _shared_heads(
    function: str, config: Mapping[str, Any], new: dict[str, Any], head: int, parts: dict[str, list[GroupReport]]
) -> None:
    """Write the numbers of query and key-value heads, and how wide they are."""
    family, queries = family_of(function, config), _number(function, config, "num_attention_heads")
    shared = queries if config.get("num_key_value_heads") is None else _number(function, config, "num_key_value_heads")
    if queries % shared:
        raise ArgumentError(
            function, f"config['num_attention_heads'] must be a multiple of the {shared} key-value heads, got {queries}"
        )
    width = _number(function, new, "hidden_size")
    if parts["heads"]:
        new["num_key_value_heads"] = _same(function, parts["heads"])
        new["num_attention_heads"] = new["num_key_value_heads"] * (queries // shared)
    if parts["query_heads"]:
        new["num_attention_heads"] = _same(function, parts["query_heads"])
        new["num_key_value_heads"] = shared
    heads, kind = new["num_attention_heads"], str(config["model_type"]).capitalize()
    if family.head_dim and not config.get(family.fixed_by):
        new["head_dim"] = head
    elif heads * head != width:
        got = f"{heads} heads of {head} and hidden_size {width}"
        raise ArgumentError(
            function, f"hidden_size must be heads times their width for {kind}, got {got}; {PROPORTION}"
        )
    if family.divides and width % heads:
        got = f"{heads} heads and hidden_size {width}"
        fix = "keep a number of heads that divides it"
        raise ArgumentError(
            function, f"heads must divide hidden_size for transformers to load {kind}, got {got}; {fix}"
        )


def _plain_heads(
    function: str, config: Mapping[str, Any], new: dict[str, Any], head: int, heads: list[GroupReport]
) -> None:
    """Write the number of heads, or which are gone, where the model's width says how wide a head is."""
    family = family_of(function, config)
    n = _number(function, config, family.keys[1])
    width = _number(function, new, family.keys[0])
    pruned = _pruned_heads(function, config, n)
    counts = {len(group.kept) for group in heads} or {n}
    if not pruned and len(counts) == 1 and (same := counts.pop()) * head == width:
        new[family.keys[1]] = same
        return
    if width != _number(function, config, family.keys[0]) or not family.lists_heads:
        got = f"{family.keys[0]} {width} with heads of {head}"
        raise ArgumentError(
            function,
            f"{family.keys[0]} must be heads times their width in the BERT family, got {got}; {PROPORTION}",
        )
    for group in heads:
        layer = _layer_number(group.name)
        left = [i for i in range(n) if i not in pruned.get(layer, [])]
        if len(left) != group.units:
            got = f"{len(left)} of {n}, {group.units} in the tensors"
            raise ArgumentError(function, f"config['pruned_heads'] must leave the heads of layer {layer}, got {got}")
        pruned[layer] = sorted([*pruned.get(layer, []), *(left[i] for i in group.removed)])
    pruned = {layer: gone for layer, gone in sorted(pruned.items()) if gone}
    if pruned:
        new["pruned_heads"] = {str(layer): [int(i) for i in gone] for layer, gone in pruned.items()}


def _pruned_heads(function: str, config: Mapping[str, Any], n: int) -> dict[int, list[int]]:
    """Return the heads, of `n`, that are gone already, by layer."""
    given = config.get("pruned_heads") or {}
    try:
        pruned = {int(layer): sorted({int(head) for head in gone}) for layer, gone in given.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        text = "an object of lists of heads by layer"
        raise ArgumentError(function, f"config['pruned_heads'] must be {text}, got {given!r:.80}") from None
    if any(not 0 <= head < n for gone in pruned.values() for head in gone):
        raise ArgumentError(function, f"config['pruned_heads'] must be of heads 0 to {n - 1}, got {given!r:.80}")
    return pruned


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


def _head_size(function: str, config: Mapping[str, Any]) -> int:
    if config.get("head_dim") is not None:
        return _number(function, config, "head_dim")
    key = family_of(function, config).keys[0]
    width, heads = (_number(function, config, each) for each in family_of(function, config).keys[:2])
    if width % heads:
        raise ArgumentError(function, f"config[{key!r}] must be a multiple of its {heads} heads, got {width}")
    return width // heads
