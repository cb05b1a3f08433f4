"""The allocation of bits: the best of all, or as near as it says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelopt_rs.errors import OptionError
from modelopt_rs.planning.allocation import Choice, allocate

CHOICES = st.lists(
    st.builds(Choice, nbytes=st.integers(0, 60), loss=st.integers(0, 40).map(lambda n: n / 8)), min_size=1, max_size=4
)


def brute_force(groups: list[list[Choice]], budget: int) -> float | None:
    losses = [
        sum(choice.loss for choice in each)
        for each in itertools.product(*groups)
        if sum(choice.nbytes for choice in each) <= budget
    ]
    return min(losses, default=None)


@settings(max_examples=150, deadline=None)
@given(groups=st.lists(CHOICES, min_size=1, max_size=6), budget=st.integers(0, 300))
def test_no_answer_has_less_loss(groups: list[list[Choice]], budget: int) -> None:
    want = brute_force(groups, budget)
    if want is None:
        with pytest.raises(OptionError, match=r"^budget must be at least .* bytes, got"):
            allocate(groups, budget)
        return
    found = allocate(groups, budget)
    assert found.loss == pytest.approx(want, abs=1e-12)
    assert found.nbytes == sum(group[i].nbytes for group, i in zip(groups, found.chosen, strict=True)) <= budget
    assert found.gap == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_large_ones_say_how_near_they_are_and_fill_the_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(200):
        n, how = int(rng.integers(1_000, 1_000_000)), rng.lognormal()
        groups.append([Choice(n * bits // 8, how * 4.0**-bits) for bits in (2, 3, 4, 6, 8)])
    least, most = (sum(f(choice.nbytes for choice in group) for group in groups) for f in (min, max))
    last = np.inf
    for part in (0.0, 0.1, 0.35, 0.7, 1.0):
        budget = int(least + part * (most - least))
        found = allocate(groups, budget)
        assert budget * 0.995 <= found.nbytes <= budget
        assert found.bound <= found.loss <= last
        assert found.gap < 0.01
        last = found.loss


@pytest.mark.parametrize("seed", range(3))
def test_one_that_is_half_of_all_leaves_no_gap(seed: int) -> None:
    """A table and the layers of MiniLM: by one price for all some of these sizes have a gap of over 5 %."""
    rng = np.random.default_rng(seed)
    sizes = [11_700_000, *([150_000] * 24), *([590_000] * 12)]
    bits = (2.5, 4.125, 4.25, 4.5, 8.1, 32)
    groups = [
        [Choice(int(n * b / 8), n * how * (0.0 if b == 32 else 4.0**-b)) for b in bits]
        for n, how in zip(sizes, rng.lognormal(sigma=0.2, size=len(sizes)), strict=True)
    ]
    least, most = (sum(f(choice.nbytes for choice in group) for group in groups) for f in (min, max))
    for part in np.linspace(0.02, 0.6, 12):
        found = allocate(groups, int(least + part * (most - least)))
        assert found.gap < 0.05
