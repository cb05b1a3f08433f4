"""Repair of weights whose inputs go: what is solved is stored as near as its dtype allows."""

import ml_dtypes
import numpy as np
import pytest

from modelopt_rs.dtypes import rounded
from modelopt_rs.prune import InputStats
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Copy
from modelopt_rs.transforms.repair import Repair

STORED = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}


def repaired(weight: np.ndarray, dtype: str, stats: InputStats, stays: np.ndarray) -> np.ndarray:
    info = TensorInfo("fc.weight", dtype, weight.shape, weight.nbytes)
    repair = Repair(info, (0, 1), stays, lambda: stats, Copy(info))
    repair.begin(len(weight))
    [(_, found)] = repair(weight)
    return found


@pytest.mark.parametrize("dtype", STORED)
def test_a_repaired_weight_is_the_one_of_float32_rounded_to_nearest(dtype: str) -> None:
    rng = np.random.default_rng(5)
    weight, stats = rng.normal(size=(48, 32)).astype(STORED[dtype]), InputStats(32)
    stats.update(rng.normal(size=(200, 32)).astype(np.float32) @ rng.normal(size=(32, 32)).astype(np.float32))
    stays = np.arange(32) % 4 != 1
    want = repaired(weight.astype(np.float32), "F32", stats, stays).astype(STORED[dtype])
    stored = weight.view(np.uint16) if dtype == "BF16" else weight
    np.testing.assert_array_equal(repaired(stored, dtype, stats, stays).view(np.uint16), want.view(np.uint16))


def test_all_numbers_of_16_bits_stay_and_all_others_go_to_the_nearest() -> None:
    bits = np.arange(2**16, dtype=np.uint32)
    exact = (bits << np.uint32(16)).view(np.float32)
    np.testing.assert_array_equal(rounded(exact, "BF16"), bits.astype(np.uint16))
    near = np.concatenate([bits << np.uint32(16) | np.uint32(low) for low in (1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    x = near.view(np.float32)[np.isfinite(near.view(np.float32))]
    np.testing.assert_array_equal(rounded(x, "BF16"), x.astype(ml_dtypes.bfloat16).view(np.uint16))
