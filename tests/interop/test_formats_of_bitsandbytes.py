"""Codes and scales of nf4 and fp4 are those of bitsandbytes, bit for bit."""

import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref

torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
functional = pytest.importorskip("bitsandbytes.functional", reason="the extra `interop` is not installed: bitsandbytes")


def swapped(packed):
    """The other order of two codes in a byte."""
    return packed >> 4 | packed << 4


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [64, 128, 4096])
def test_codes_and_scales_are_those_of_bitsandbytes(name, block):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        t = torch.from_numpy(ref.wild(64 * 4096, np.float32).reshape(64, 4096)).to(dtype)
        t[3] = 0
        packed, state = functional.quantize_4bit(t, blocksize=block, quant_type=name)
        x = t.view(torch.uint16).numpy().view(ref.BF16) if dtype == torch.bfloat16 else t.numpy()
        q = mo.quantize(x, format=name, group_size=block)
        np.testing.assert_array_equal(q.scale.ravel(), state.absmax.numpy())
        theirs = packed.numpy().reshape(q.codes.shape)
        if name == "fp4":  # it has two zeros, and from one version to another takes either for small numbers
            for sign, magnitude in ((0x80, 0x70), (0x08, 0x07)):
                theirs = theirs & ~((theirs & magnitude == 0) * np.uint8(sign))
        np.testing.assert_array_equal(swapped(q.codes), theirs)
        back = functional.dequantize_4bit(packed, state)
        if dtype == torch.float32:
            np.testing.assert_array_equal(q.dequantize(), back.numpy().reshape(64, 4096))
