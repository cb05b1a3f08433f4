"""Feed-forward layers that are found by shapes: only where nothing else can depend on their width."""

from typing import Any

import numpy as np
import pytest

from modelopt_rs.errors import ArgumentError
from modelopt_rs.planning.found_groups import find_feed_forward
from modelopt_rs.planning.given_groups import GivenGroups
from modelopt_rs.prune import Member
from modelopt_rs.prune.families import families_of, is_known

CONFIG = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 50}
LAYER = {"up.weight": (40, 12), "up.bias": (40,), "down.weight": (12, 40), "down.bias": (12,), "q.weight": (12, 12)}


def model(layer: dict[str, tuple[int, ...]], layers: int = 2, **more: tuple[int, ...]) -> dict[str, np.ndarray]:
    shapes = {f"h.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    return {name: np.zeros(shape, np.float32) for name, shape in {**shapes, "embed.weight": (50, 12), **more}.items()}


def told(tensors: dict[str, np.ndarray], config: dict[str, Any] = CONFIG) -> GivenGroups:
    found = find_feed_forward(tensors, config)
    assert isinstance(found, GivenGroups), found
    return found


def test_a_layer_has_its_matrices_and_the_bias_of_what_leads_in() -> None:
    found = told(model(LAYER))
    assert [group.name for group in found.groups] == ["h.0.ffn", "h.1.ffn"]
    members = (Member("h.1.up.weight", 0), Member("h.1.up.bias", 0, scored=False), Member("h.1.down.weight", 1))
    assert (found.groups[1].units, found.groups[1].members) == (40, members)
    assert found.numbers == {"intermediate_size": "*.ffn"}


def test_a_gate_beside_what_it_opens_and_matrices_that_lie_the_other_way_are_found() -> None:
    gated = {"gate.weight": (40, 12), "up.weight": (40, 12), "down.weight": (12, 40)}
    assert [len(group.members) for group in told(model(gated)).groups] == [3, 3]
    turned = {"up.weight": (12, 40), "up.bias": (40,), "down.weight": (40, 12)}
    assert [m.axis for m in told(model(turned)).groups[0].members] == [1, 0, 0]
    numbered = {"mlp.0.weight": (40, 12), "mlp.0.bias": (40,), "mlp.2.weight": (12, 40)}
    assert [group.name for group in told(model(numbered)).groups] == ["h.0.ffn", "h.1.ffn"]


def test_each_side_has_a_number_of_its_own() -> None:
    sides = {f"enc.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
    sides |= {f"dec.0.{name}": tuple(56 if n == 40 else n for n in shape) for name, shape in LAYER.items()}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in sides.items()}
    numbers = {"encoder_ffn_dim": 40, "decoder_ffn_dim": 56}
    found = told(tensors, {"d_model": 12, **numbers})
    assert set(found.numbers) == set(numbers)
    sizes = [(group.name, group.units, group.units // 2) for group in found.groups]
    assert list(found.counted(sizes)) == [("encoder_ffn_dim", 40, 20), ("decoder_ffn_dim", 56, 28)]


@pytest.mark.parametrize(
    ("layer", "more", "config", "reason"),
    [
        (LAYER, {}, {"hidden_size": 12}, "has no number that is called as"),
        (LAYER, {}, CONFIG | {"sizes": list(range(50, 1050))}, "has more than 1,000 numbers"),
        (LAYER, {}, CONFIG | {"window": 40}, "'intermediate_size', 40, elsewhere as well"),
        (LAYER, {}, CONFIG | {"text_config": {"sizes": [1, 40]}}, "elsewhere as well"),
        (LAYER, {}, CONFIG | {"intermediate_size": 44}, "no tensors are as wide"),
        (LAYER | {"norm.weight": (40,)}, {}, CONFIG, "'h.0.norm.weight' [40] is no matrix"),
        (LAYER | {"conv.weight": (40, 1, 3)}, {}, CONFIG, "'h.0.conv.weight' [40, 1, 3] is no matrix"),
        (LAYER | {"mix.weight": (40, 40)}, {}, CONFIG, "[40, 40] is no matrix"),
        (LAYER | {"other.weight": (40, 12), "third.weight": (40, 12)}, {}, CONFIG, "has 3 and 1 matrices"),
        (LAYER | {"other.weight": (12, 40)}, {}, CONFIG, "matrices of that width"),
        ({"up.weight": (40, 12)}, {}, CONFIG, "has 1 and 0 matrices"),
        ({"up.weight": (40, 12), "down.weight": (24, 40)}, {}, CONFIG, "has 1 and 1 matrices"),
        (LAYER, {"head.up.weight": (40, 12), "head.down.weight": (12, 40)}, CONFIG, "matrices of that width"),
        (LAYER | {"fused.weight": (80, 12)}, {}, CONFIG, "an axis of 80, which may follow from"),
        (LAYER | {"half.weight": (20, 12)}, {}, CONFIG, "an axis of 20, which may follow from"),
        (LAYER, {"h.2.up.weight": (40, 16), "h.2.down.weight": (16, 40)}, CONFIG, "its layers are not alike"),
    ],
)
def test_what_is_not_certain_is_not_told(
    layer: dict[str, tuple[int, ...]], more: dict[str, tuple[int, ...]], config: dict[str, Any], reason: str
) -> None:
    found = find_feed_forward(model(layer, **more), config)
    assert isinstance(found, str)
    assert reason in found


def test_lengths_that_other_numbers_explain_stand_in_no_way() -> None:
    """A head is as wide as the model by their number; two of them are 8, a fifth of the width."""
    assert told(model(LAYER | {"k.weight": (8, 12)}), CONFIG | {"num_key_value_heads": 2}).groups
    assert told(model(LAYER | {"table.weight": (80, 12)}), CONFIG | {"max_length": 80}).groups


def test_numbers_of_thousands_of_digits_and_zeros_cost_nothing() -> None:
    config = CONFIG | {"hidden_size": 0, "sizes": [10**4000 + i for i in range(900)]}
    found = find_feed_forward(model(LAYER | {"fused.weight": (80, 12)}), config)
    assert isinstance(found, str)
    assert "an axis of 80, which may follow from" in found


def test_a_deep_configuration_needs_no_recursion() -> None:
    deep: dict[str, Any] = {"length": 40}
    for _ in range(5000):
        deep = {"part": deep}
    found = find_feed_forward(model(LAYER), CONFIG | deep)
    assert isinstance(found, str)
    assert "elsewhere as well" in found


@pytest.mark.parametrize("kind", [{}, [], 3, True])
def test_a_type_that_is_no_name_is_refused(kind: Any) -> None:
    assert is_known({"model_type": kind})
    with pytest.raises(ArgumentError, match=r"config\['model_type'\] must be one of"):
        families_of("crop_file", {"model_type": kind})
