"""Weights that must be coded alike."""

import pytest

from modelopt_rs.planning.alike import choose_alike
from modelopt_rs.planning.bits import choose_bits
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.model import TensorInfo


@pytest.mark.parametrize(("prefix", "sizes"), [("mlp.experts.", {16}), ("mlp.layers.", {32, None})])
def test_no_expert_is_left_where_a_way_fits_all(prefix: str, sizes: set[int | None]) -> None:
    """H1: one weight in a hundred whose rows groups of 32 don't divide: to leave it would take fewer bytes."""
    options = QuantizeOptions(bits=4, scheme="symmetric")
    columns = {f"{prefix}{i}.up_proj.weight": 48 if i == 7 else 64 for i in range(100)}
    infos = {name: TensorInfo(name, "F32", (64, n), 256 * n) for name, n in columns.items()}
    choices = {name: choose_bits(info, options, None, None) for name, info in infos.items()}
    found = choose_alike(choices, infos, options, None).values()
    assert {None if choice is None else choice.spec.group_size for choice in found} == sizes
