"""The groups of transformers by their names, and the configurations: all that needs no torch."""

import re

import numpy as np
import pytest

import modelopt_rs as mo

BERT = {"model_type": "bert", "hidden_size": 12, "num_attention_heads": 4, "intermediate_size": 10}
LLAMA = BERT | {"model_type": "llama", "num_key_value_heads": 2}


def bert(prefix="", layers=2, head=3):
    shapes = {f"embeddings.{name}_embeddings.weight": (5, 12) for name in ("word", "position", "token_type")}
    shapes |= {"embeddings.LayerNorm.weight": (12,), "pooler.dense.weight": (12, 12), "pooler.dense.bias": (12,)}
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= {
                f"{layer}attention.self.{part}.weight": (4 * head, 12),
                f"{layer}attention.self.{part}.bias": (12,),
            }
        shapes |= {
            f"{layer}attention.output.dense.weight": (12, 4 * head),
            f"{layer}attention.output.dense.bias": (12,),
        }
        shapes |= {f"{layer}intermediate.dense.weight": (10, 12), f"{layer}intermediate.dense.bias": (10,)}
        shapes |= {f"{layer}output.dense.weight": (12, 10), f"{layer}output.LayerNorm.bias": (12,)}
    return fill({prefix + name: shape for name, shape in shapes.items()})


def llama(prefix="model.", layers=2):
    shapes = {f"{prefix}embed_tokens.weight": (5, 12), f"{prefix}norm.weight": (12,), "lm_head.weight": (5, 12)}
    for i in range(layers):
        layer = f"{prefix}layers.{i}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (12 if part == "q" else 6, 12) for part in "qkv"}
        shapes |= {f"{layer}self_attn.o_proj.weight": (12, 12), f"{layer}mlp.down_proj.weight": (12, 10)}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (10, 12) for part in ("gate", "up")}
        shapes |= {f"{layer}{norm}.weight": (12,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return fill(shapes)


def fill(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "bert.", "roberta.", "a.b."])
def test_bert_under_any_prefix(prefix):
    tensors = bert(prefix)
    groups = mo.prune.transformer_groups(tensors, BERT)
    layers = [f"{prefix}encoder.layer.{i}.{what}" for i in range(2) for what in ("heads", "ffn")]
    assert [group.name for group in groups] == [*layers, "hidden"]
    small, report = mo.prune.crop(tensors, groups, round_to=1)
    shape = {name.removeprefix(prefix): tensor.shape for name, tensor in small.items()}
    assert shape["encoder.layer.1.attention.self.key.weight"] == (6, 6)
    assert shape["encoder.layer.1.attention.output.dense.weight"] == (6, 6)
    assert shape["encoder.layer.0.output.dense.weight"] == (6, 5)
    assert shape["embeddings.word_embeddings.weight"] == (5, 6)
    assert shape["pooler.dense.weight"] == (6, 6)
    assert mo.prune.cropped_config(BERT, report) == BERT | {
        "hidden_size": 6,
        "num_attention_heads": 2,
        "intermediate_size": 5,
    }


def test_llama_with_shared_keys():
    tensors = llama()
    groups = mo.prune.transformer_groups(tensors, LLAMA, ("heads", "ffn"))
    assert [(group.name, group.units) for group in groups[:2]] == [
        ("model.layers.0.heads", 2),
        ("model.layers.0.ffn", 10),
    ]
    small, report = mo.prune.crop(tensors, groups, keep={"*.heads": 1, "*.ffn": 5})
    assert small["model.layers.0.self_attn.q_proj.weight"].shape == (6, 12)
    assert small["model.layers.0.self_attn.k_proj.weight"].shape == (3, 12)
    assert small["model.layers.0.self_attn.o_proj.weight"].shape == (12, 6)
    new = mo.prune.cropped_config(LLAMA, report)
    assert new == LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 5, "head_dim": 3}


def test_layers_are_numbered_not_sorted_as_words():
    groups = mo.prune.transformer_groups(bert(layers=11), BERT, "ffn")
    assert [group.name.split(".")[2] for group in groups] == [str(i) for i in range(11)]


def test_pruned_heads_are_those_of_the_whole_model():
    """Cropped twice, heads keep the numbers that they had at first."""
    tensors, config, scores = bert(layers=1), BERT, np.array([1.0, 4.0, 2.0, 3.0])
    for keep in (3, 2):
        groups = mo.prune.transformer_groups(tensors, config, "heads")
        tensors, report = mo.prune.crop(tensors, groups, keep=keep, scores={groups[0].name: scores})
        config, scores = mo.prune.cropped_config(config, report), scores[report.groups[0].kept]
    assert config == BERT | {"pruned_heads": {"0": [0, 2]}}


def test_what_nothing_is_cropped_of_needs_no_new_configuration():
    report = mo.prune.plan_crop(bert(), mo.prune.transformer_groups(bert(), BERT), keep=1.0)
    assert mo.prune.cropped_config(BERT, report) == BERT


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def planned(tensors, config, what, keep, **options):
    groups = mo.prune.transformer_groups(tensors, config, what)
    return mo.prune.cropped_config(config, mo.prune.plan_crop(tensors, groups, keep=keep, **options))


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: mo.prune.transformer_groups(bert(), BERT | {"model_type": "t5"}),
            "transformer_groups: config['model_type'] must be one of bert, roberta, xlm-roberta, camembert, electra,",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT, "mlp"),
            "transformer_groups: what must be of heads, query_heads, ffn, hidden, all, got 'mlp'",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT | {"hidden_size": None}),
            "transformer_groups: config['hidden_size'] must be an integer of at least 1, got None",
        ),
        (
            lambda: mo.prune.transformer_groups({}, BERT),
            "transformer_groups: tensors must hold the layers of the model, got no name that ends as encoder.layer.0.",
        ),
        (
            lambda: mo.prune.transformer_groups(without(bert(), "encoder.layer.0.attention.self.key.weight"), BERT),
            "transformer_groups: tensors must hold 'encoder.layer.0.attention.self.key.weight' with an axis 0, got no",
        ),
        (
            lambda: mo.prune.transformer_groups(bert() | {QUERY: np.ones((7, 12))}, BERT),
            f"transformer_groups: {QUERY!r} must have a multiple of 12 along axis 0, got (7, 12)",
        ),
        (
            lambda: mo.prune.transformer_groups(bert() | {"adapter.weight": np.ones(3)}, BERT),
            "transformer_groups: tensors must be known for 'hidden', got 'adapter.weight'; leave it out of tensors",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT, "query_heads"),
            "transformer_groups: what must not be 'query_heads' for the BERT family, got it; use 'heads'",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT | {"num_attention_heads": 5}),
            "transformer_groups: config['hidden_size'] must be a multiple of its 5 heads, got 12",
        ),
        (
            lambda: planned(bert(), BERT | {"pruned_heads": {"0": 3}}, "heads", 2),
            "cropped_config: config['pruned_heads'] must be an object of lists of heads by layer, got {'0': 3}",
        ),
        (
            lambda: planned(llama(), LLAMA | {"num_key_value_heads": "2"}, "heads", 1),
            "cropped_config: config['num_key_value_heads'] must be an integer of at least 1, got '2'",
        ),
        (
            lambda: planned(bert(), BERT, "hidden", 6),
            "cropped_config: hidden_size must be heads times their width in the BERT family, got hidden_size 6 with h",
        ),
        (
            lambda: planned(bert(), BERT, "ffn", {"*.0.ffn": 5}),
            "cropped_config: report must keep as many 'ffn' in every layer, got [5, 10]",
        ),
        (
            lambda: planned(llama(), LLAMA, "heads", {"*.0.heads": 1}),
            "cropped_config: report must keep as many 'heads' in every layer, got [1, 2]",
        ),
        (
            lambda: planned(llama(), LLAMA, ("hidden", "heads"), {"hidden": 5, "*.heads": 1}),
            "cropped_config: heads must divide hidden_size for transformers to load Llama, got 2 heads and hidden_siz",
        ),
        (
            lambda: planned(llama(), LLAMA, ("heads", "query_heads"), 0.5),
            "plan_crop: groups must not overlap, got those of 'model.layers.0.heads' and 'model.layers.0.query_heads'",
        ),
    ],
)
def test_messages(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
