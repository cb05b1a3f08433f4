"""The configuration that a cropped transformer needs."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from modelopt_rs.errors import ArgumentError, check_mapping
from modelopt_rs.prune.crop import CropReport, GroupReport
from modelopt_rs.prune.families import families_of
from modelopt_rs.prune.family import Family, number

__all__ = ["cropped_config"]

PROPORTION: Final = "keep the same fraction of heads and hidden, one that leaves whole heads, or crop 'ffn' alone"


def cropped_config(config: Mapping[str, Any], report: CropReport) -> dict[str, Any]:
    """Return the configuration of a model that `crop` has cropped by `transformer_groups`.

    All layers of a kind (those of an encoder, those of a decoder) must keep the same numbers (``scope="group"``). What
    transformers can load:

    - ``intermediate_size``, or what it is called (``hidden_dim``, ``ffn_dim``, ``n_inner``, ``d_ff`` ...), and, for the
      Llama family, ``num_attention_heads``, ``num_key_value_heads`` and ``head_dim``: every version. Llama, Gemma 2 and
      Gemma 3 also want ``hidden_size`` to be a multiple of the heads.
    - ``mlp_ratio`` of DINOv2 is an integer: what stays must be a multiple of ``hidden_size``.
    - ``num_heads`` and ``d_kv`` of T5: every version. ``head_dim`` of the ViT family: transformers 5.
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
    families, new = families_of(function, config), dict(config)
    main = next((family for family in families if family.qkv), None)
    parts: dict[str, list[GroupReport]] = {"heads": [], "query_heads": [], "ffn": [], "hidden": []}
    for group in report.groups:
        kind = group.name.rpartition(".")[2]
        if kind in parts:
            parts[kind].append(group)
    for group in parts["hidden"]:
        width, embedding = families[0].keys[0], families[0].embedding
        new[width] = len(group.kept)
        if embedding is not None and config.get(embedding[0]) == config[width]:
            new[embedding[0]] = new[width]
    for family in families:
        found = [group for group in parts["ffn"] if family.ffn and family.layer_of(group.name, "ffn") is not None]
        if found:
            _feed_forward(function, config, new, family, found)
    if main is not None and main.key_value_heads:
        if main.head_dim or parts["heads"] or parts["query_heads"] or parts["hidden"]:
            _shared_heads(function, config, new, main, parts)
    elif main is not None and (parts["heads"] or parts["hidden"]):
        _plain_heads(function, config, new, main, parts["heads"])
    return new


def _feed_forward(
    function: str, config: Mapping[str, Any], new: dict[str, Any], family: Family, groups: list[GroupReport]
) -> None:
    """Write how wide the feed-forward networks are, wherever the number stands."""
    key = family.keys[2]
    if family.multiple:
        new[key] = _multiple(function, config.get(key), key, groups)
        return
    same = _same(function, groups)
    if not family.section:
        new[key] = same
        return
    # What an older version has written as well, transformers takes instead.
    for name in (family.section, f"{family.section}_dict"):
        section = new.get(name)
        if section is None and name == family.section:
            section = {}
        if isinstance(section, Mapping):
            new[name] = {**section, key: same}
        elif section is not None:
            raise ArgumentError(function, f"config[{name!r}] must be an object, got {section!r:.80}")


def _multiple(function: str, value: Any, key: str, groups: list[GroupReport]) -> int | float:
    """Return how many times as wide as the model the feed-forward networks are that have units left."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ArgumentError(function, f"config[{key!r}] must be a number above 0, got {value!r}")
    shares = sorted({Fraction(len(group.kept), group.units) for group in groups})
    if len(shares) > 1:
        got = ", ".join(map(str, shares))
        raise ArgumentError(function, f"report must keep the same share of 'ffn' in every layer, got {got}")
    exact = Fraction(value) * shares[0]
    if isinstance(value, int) and exact.denominator > 1:
        width = Fraction(groups[0].units, value)
        fix = f"keep a multiple of {width} units"
        raise ArgumentError(function, f"config[{key!r}] must stay an integer, got {float(exact):.6g}; {fix}")
    after = int(exact) if isinstance(value, int) else float(exact)
    for group in groups:
        width = group.units / Fraction(value)
        if width.denominator > 1 or int(int(width) * after) != len(group.kept):
            text = f"must say the {len(group.kept)} units of {group.name!r}, got {after}"
            raise ArgumentError(function, f"config[{key!r}] {text}; keep another number of them")
    return after


def _shared_heads(
    function: str, config: Mapping[str, Any], new: dict[str, Any], family: Family, parts: dict[str, list[GroupReport]]
) -> None:
    """Write the numbers of query and key-value heads, and how wide they are."""
    head, queries = family.head_size(function, config), number(function, config, "num_attention_heads")
    shared = queries if config.get("num_key_value_heads") is None else number(function, config, "num_key_value_heads")
    if queries % shared:
        raise ArgumentError(
            function, f"config['num_attention_heads'] must be a multiple of the {shared} key-value heads, got {queries}"
        )
    width = number(function, new, "hidden_size")
    if parts["heads"]:
        new["num_key_value_heads"] = _same(function, parts["heads"])
        new["num_attention_heads"] = new["num_key_value_heads"] * (queries // shared)
    if parts["query_heads"]:
        new["num_attention_heads"] = _same(function, parts["query_heads"])
        new["num_key_value_heads"] = shared
    heads, kind = new["num_attention_heads"], str(config["model_type"]).capitalize()
    if family.head_dim and not config.get(family.fixed_by):
        new[family.head_dim] = head
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
    function: str, config: Mapping[str, Any], new: dict[str, Any], family: Family, heads: list[GroupReport]
) -> None:
    """Write the number of heads, and how wide they are, or which are gone where the model's width says how wide."""
    head, n = family.head_size(function, config), number(function, config, family.keys[1])
    if family.head_dim:
        if (same := _same(function, heads)) != n:
            new[family.keys[1]], new[family.head_dim] = same, head
        return
    width = number(function, new, family.keys[0])
    pruned = _pruned_heads(function, config, n)
    counts = {len(group.kept) for group in heads} or {n}
    if not pruned and len(counts) == 1 and (same := counts.pop()) * head == width:
        new[family.keys[1]] = same
        return
    if width != number(function, config, family.keys[0]) or not family.lists_heads:
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
