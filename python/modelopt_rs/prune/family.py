"""What there is to know of a family of transformers: what its layers and the numbers in config.json are called."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from modelopt_rs.errors import ArgumentError

__all__ = ["Family", "Rules", "number"]

# Which axes of a tensor are as long as the model is wide, by the end of its name; () for those that have none.
Rules: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the models of some types name their layers and numbers: all that a new family needs is one of these.

    Names of layers stand without ``.weight``, relative to a layer of the transformer. Biases are found in the tensors.
    A type with several kinds of layers (an encoder and a decoder; attention and experts) has an entry for each.

    Attributes
    ----------
    types : tuple of str
        The values of `model_type`.
    layer : str
        A regular expression: what the name of a layer ends as.
    qkv : tuple of str
        The projections to queries, keys and values. Thrice the same name: one matrix that holds them in this order.
        () where config.json has no number for heads that are apart from the model's width.
    attention_out : str
        The projection of all heads to the width of the model.
    ffn : tuple of str
        The projections into the feed-forward network; twice the same name: one matrix that holds both. () for none.
    ffn_out : str
        The projection out of it.
    transposed : bool
        Whether the weights of the feed-forward network are (in, out), as GPT-2's.
    qk_norms : tuple of str
        Norms of queries and keys, where a model has them; only those that go over one head allow to crop heads.
    hidden : rules
        Which axes are as long as the model is wide; () where that isn't known.
    embedding : (str, rules) or None
        The number in config.json of the width of the embeddings, and the rules where that is not the model's.
    shared_bias : str
        A table with a column for each head that all layers use: they then lose the same heads.
    keys : (str, str, str)
        The numbers in config.json of the model's width, its heads and its feed-forward width.
    section : str
        The object in config.json that holds the last of them, where it isn't at the top.
    multiple : bool
        Whether that number says how many times as wide as the model the feed-forward network is.
    key_value_heads : bool
        Whether several query heads may share a key-value head, ``num_key_value_heads``.
    head_dim : str
        The number in config.json of how wide a head is. "": the model's width by the number of heads.
    fixed_by : str
        An option in config.json, true in models that have norms as wide as that, whatever `head_dim` says.
    divides : bool
        Whether transformers wants the heads to divide the model's width none the less.
    lists_heads : bool
        Whether config.json may list the heads that are gone, as ``pruned_heads``.
    """

    types: tuple[str, ...]
    layer: str
    qkv: tuple[str, ...] = ()
    attention_out: str = ""
    ffn: tuple[str, ...] = ()
    ffn_out: str = ""
    transposed: bool = False
    hidden: Rules = ()
    qk_norms: tuple[str, ...] = ()
    embedding: tuple[str, Rules] | None = None
    shared_bias: str = ""
    keys: tuple[str, str, str] = ("hidden_size", "num_attention_heads", "intermediate_size")
    section: str = ""
    multiple: bool = False
    key_value_heads: bool = False
    head_dim: str = ""
    fixed_by: str = ""
    divides: bool = False
    lists_heads: bool = False

    def layer_of(self, name: str, ending: str) -> str | None:
        """Return the layer that a name consists of, with this ending; None if it has another form."""
        match = re.fullmatch(rf"((.*\.)?(?:{self.layer}))\.{re.escape(ending)}", name)
        return None if match is None else match[1]

    def head_size(self, function: str, config: Mapping[str, Any]) -> int:
        """Return how wide a head is."""
        if config.get(self.head_dim or "head_dim") is not None:
            return number(function, config, self.head_dim or "head_dim")
        width, heads = (number(function, config, each) for each in self.keys[:2])
        if width % heads:
            key = self.keys[0]
            raise ArgumentError(function, f"config[{key!r}] must be a multiple of its {heads} heads, got {width}")
        return width // heads


def number(function: str, config: Mapping[str, Any], key: str) -> int:
    """Return a number of a configuration that counts something."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(function, f"config[{key!r}] must be an integer of at least 1, got {value!r}")
    return value
