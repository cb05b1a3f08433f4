"""The groups of transformers in Hugging Face's naming."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from modelopt_rs.arguments import listed, shown
from modelopt_rs.errors import ArgumentError, check_mapping
from modelopt_rs.prune.coupling import Group, Member, Shaped
from modelopt_rs.prune.families import families_of
from modelopt_rs.prune.family import Family, number

__all__ = ["WHAT", "What", "transformer_groups"]

What: TypeAlias = Literal["heads", "query_heads", "ffn", "hidden", "all"]
WHAT = ("heads", "query_heads", "ffn", "hidden", "all")
_CHOICE: Final = re.compile(r"\(([^()|]*)(?:\|[^()]*)?\)(\??)")


def transformer_groups(
    tensors: Mapping[str, Shaped], config: Mapping[str, Any], what: What | Iterable[What] = "all"
) -> tuple[Group, ...]:
    """Return the groups of a transformer of Hugging Face whose layers are known, whatever their names.

    - "heads", one group for each layer, ``<layer>.heads``: the rows of queries, keys and values and the columns of the
      output projection. Where query heads share key-value heads (Llama), a unit is a key-value head with its queries.
      Layers of MPNet and T5 share a bias for each head and lose the same heads: one group, ``encoder.heads``.
    - "query_heads" (Llama), ``<layer>.query_heads``: query heads alone, the same number for each key-value head. Not
      with "heads".
    - "ffn", one for each layer, ``<layer>.ffn``: the width of the feed-forward network; of a mixture of experts one for
      each expert.
    - "hidden", one group ``hidden``: the width of the model, from the embeddings to the last norm and the heads of
      tasks. Cropping it changes what every norm divides by: without training expect much worse answers.
    - "all": heads, ffn and hidden.

    `what` may be several of them.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        All tensors of the model, under Hugging Face's names, with any prefix (``bert.``, ``model.``).
    config : mapping
        What ``config.json`` holds. `model_type` must be known: BERT, Llama and many more, of some "ffn" alone. The
        how-to of cropping lists them.
    what : str or iterable of str
        As above.

    Returns
    -------
    tuple of Group

    Raises
    ------
    ValueError
        If the model type is another one, or one whose config.json can't say what would stay, tensors are missing or
        don't fit the configuration, (with "hidden") there is one that is not known, or (with heads) a norm goes over
        all heads together (OLMo 2 and 3).

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
    models = _models("transformer_groups", tensors, config)
    for each in chosen:
        _check_known("transformer_groups", config, models, each)
    groups = [group for model in models for group in model.groups(chosen)]
    if "hidden" in chosen:
        groups.append(models[0].hidden())
    return tuple(groups)


def _models(function: str, tensors: Mapping[str, Shaped], config: Mapping[str, Any]) -> list["_Model"]:
    """Return the kinds of layers of a model: of an encoder with a decoder, or of several experts, those that it has."""
    models = [_Model(function, tensors, config, family) for family in families_of(function, config)]
    if not any(model.layers for model in models):
        layer = _CHOICE.sub(lambda found: "" if found[2] else found[1], models[0].family.layer)
        wanted = layer.replace("\\d+", "0").replace("\\", "") + f".{models[0].first}"
        raise ArgumentError(function, f"tensors must hold the layers of the model, got no name that ends as {wanted}")
    return models


def _check_known(function: str, config: Mapping[str, Any], models: Sequence["_Model"], what: str) -> None:
    """Refuse what config.json, or the table of families, has no number for."""
    families, kind = [model.family for model in models], config["model_type"]
    known = {
        "heads": any(family.qkv for family in families),
        "query_heads": any(family.key_value_heads for family in families),
        "ffn": any(family.ffn for family in families),
        "hidden": bool(families[0].hidden),
    }
    if known[what]:
        return
    if what == "query_heads" and known["heads"]:
        raise ArgumentError(function, "what must not be 'query_heads' for the BERT family, got it; use 'heads'")
    reason = "is known for what lies between" if what == "hidden" else "has a config.json that can't say it"
    use = " and ".join(repr(each) for each, has in known.items() if has)
    fix = f"use {use}, or export it to ONNX"
    raise ArgumentError(function, f"what must not name {what!r} for {kind!r}, which {reason}; {fix}")


class _Model:
    """A model's tensors and numbers, and one kind of its layers; each method makes a group."""

    def __init__(self, function: str, tensors: Mapping[str, Shaped], config: Mapping[str, Any], family: Family) -> None:
        self.function, self.tensors, self.config, self.family = function, tensors, config, family
        if family.qkv:
            self.width = number(function, config, family.keys[0])
            self.head = family.head_size(function, config)
        self.first = f"{(family.qkv or family.ffn)[0]}.weight"
        found = {layer for name in tensors if (layer := family.layer_of(name, self.first)) is not None}
        self.layers = sorted(found, key=_in_order)

    def groups(self, what: Iterable[str]) -> Iterator[Group]:
        """Yield the groups of each layer."""
        makers = {"heads": self.heads, "query_heads": self.query_heads, "ffn": self.ffn}
        shared = bool(self.family.shared_bias)
        if "heads" in what and shared and self.layers:
            yield self.shared_heads()
        for layer in self.layers:
            for each, make in makers.items():
                has = self.family.ffn if each == "ffn" else self.family.qkv
                if each in what and has and not (shared and each == "heads"):
                    yield make(layer)

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

    def rows(self, name: str, size: int = 1, offset: int = 0, axis: int = 0) -> list[Member]:
        """Return the outputs of a weight, its rows as a rule, and of its bias where there is one."""
        members = [Member(f"{name}.weight", axis, offset, size)]
        if f"{name}.bias" in self.tensors:
            members.append(Member(f"{name}.bias", 0, offset, size, scored=False))
        return members

    def counts(self, layer: str) -> tuple[int, int]:
        """Return how many query heads share a key-value head, and how many of those there are."""
        q, k, v = (f"{layer}.{name}.weight" for name in self.family.qkv)
        if q == k == v:
            shared = self.config.get("num_key_value_heads")
            heads = number(self.function, self.config, self.family.keys[1])
            units = heads if shared is None else number(self.function, self.config, "num_key_value_heads")
            rows = self.length(q, 0)
            if heads % units or rows != (heads + 2 * units) * self.head:
                want = f"{heads} heads of queries and twice {units} of keys and values, {self.head} wide each"
                raise ArgumentError(self.function, f"{q!r} must have the rows of {want}, got {rows}")
            return heads // units, units
        units = self.divided(k, 0, self.head)
        if self.family.head_dim and not self.family.key_value_heads:
            heads = number(self.function, self.config, self.family.keys[1])
            if units != heads:
                got = self.tensors[k].shape
                raise ArgumentError(self.function, f"{k!r} must have {heads} heads of {self.head} rows, got {got}")
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
        self.check_norms(layer)
        each, blocks = self.counts(layer)
        out = f"{layer}.{self.family.attention_out}.weight"
        members = [*self.rows(f"{layer}.{self.family.qkv[0]}", self.head), Member(out, 1, size=self.head)]
        return Group(f"{layer}.query_heads", each * blocks, tuple(members), blocks)

    def ffn(self, layer: str) -> Group:
        axis = int(self.family.transposed)
        into = [f"{layer}.{name}" for name in self.family.ffn]
        fused = len(into) - len(set(into)) + 1
        units = self.divided(f"{into[0]}.weight", axis, fused)
        members = [
            member
            for place, name in enumerate(into)
            for member in self.rows(name, offset=units * place if fused > 1 else 0, axis=axis)
        ]
        return Group(f"{layer}.ffn", units, (*members, Member(f"{layer}.{self.family.ffn_out}.weight", 1 - axis)))

    def hidden(self) -> Group:
        rules, embedding = self.family.hidden, self.family.embedding
        if embedding is not None and number(self.function, self.config, embedding[0]) != self.width:
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


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    """Return what names are sorted by: as words, but numbers by their size."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
