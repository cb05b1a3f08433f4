"""pack and unpack: inverse of each other, one layout, strict about what is not theirs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from modelopt_rs.quant import pack, unpack

SIGNS = {"signed": np.int8, "unsigned": np.uint8}


def limits(bits, dtype):
    low = -(2 ** (bits - 1)) if dtype == np.int8 else 0
    return low, low + 2**bits - 1


def codes_of(shape, bits, dtype, seed=0):
    low, high = limits(bits, dtype)
    return np.random.default_rng(seed).integers(low, high + 1, shape, dtype=np.int64).astype(dtype)


@pytest.mark.parametrize("dtype", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("bits", ref.BITS)
def test_a8_unpack_undoes_pack_for_every_length(bits, dtype, isa):
    everything = codes_of(1025, bits, dtype)
    for n in range(1026):
        codes = everything[:n]
        packed = pack(codes, bits)
        assert packed.dtype == np.uint8
        assert packed.shape == (-(-n * bits // 8),)
        np.testing.assert_array_equal(unpack(packed, bits, n, signed=dtype == np.int8), codes, strict=True)


@pytest.mark.parametrize("dtype", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("bits", ref.BITS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 5), (2, 3, 7), (4, 0), (0, 5), (5, 257), (2, 70_001)], ids=str)
def test_a8_pack_equals_the_oracle(bits, dtype, shape):
    """Each row starts on a byte; the padding bits are zero; a 0-d array packs to shape (1,)."""
    codes = codes_of(shape, bits, dtype)
    row = codes if shape else codes.reshape(1)
    want = ref.pack(row, bits) if row.size < 10_000 else None
    got = pack(codes, bits)
    if want is not None:
        np.testing.assert_array_equal(got, want, strict=True)
    np.testing.assert_array_equal(unpack(got, bits, row.shape[-1], signed=dtype == np.int8), row, strict=True)


@pytest.mark.parametrize("bits", ref.BITS)
def test_a8_every_byte_unpacks_as_the_oracle_says(bits, isa):
    every = np.arange(256, dtype=np.uint8)
    for signed in (False, True):
        n = 256 * 8 // bits
        np.testing.assert_array_equal(
            unpack(every, bits, n, signed=signed), ref.unpack(every, bits, n, signed), strict=True
        )


@given(st.data())
def test_a8_pack_of_any_rows_equals_the_oracle(data):
    bits, dtype = data.draw(st.sampled_from(ref.BITS)), data.draw(st.sampled_from([np.int8, np.uint8]))
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 40)))
    codes = codes_of(shape, bits, dtype, data.draw(st.integers(0, 99)))
    np.testing.assert_array_equal(pack(codes, bits), ref.pack(codes, bits))


@pytest.mark.parametrize("dtype", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("bits", [4, 2])
def test_a1_codes_that_do_not_fit_are_refused_wherever_they_stand(bits, dtype, isa):
    low, high = limits(bits, dtype)
    info = np.iinfo(dtype)
    for wrong in {low - 1, high + 1, info.min, info.max} - set(range(low, high + 1)):
        if not info.min <= wrong <= info.max:
            continue
        for n in (1, 2, 3, 64, 65, 257):
            for place in range(n):
                codes = codes_of(n, bits, dtype)
                codes[place] = wrong
                out = np.full(-(-n * bits // 8), 0xA5, np.uint8)
                with pytest.raises(ValueError, match=rf"^pack: codes must be .*{low}.*{high}.*got {wrong}"):
                    pack(codes, bits, out=out)
                assert (out == 0xA5).all()


@pytest.mark.parametrize("bits", [4, 2])
def test_a8_padding_bits_that_are_not_zero_are_refused(bits):
    per_byte = 8 // bits
    for n in range(1, 200):
        used = n % per_byte
        if used == 0:
            continue
        for bit in range(used * bits, 8):
            packed = pack(codes_of((3, n), bits, np.uint8), bits)
            packed[1, -1] |= 1 << bit
            with pytest.raises(ValueError, match=r"^unpack: .*padding"):
                unpack(packed, bits, n)


@pytest.mark.parametrize("bits", ref.BITS)
@pytest.mark.parametrize("n", [0, 1, 9, 64])
def test_a8_a_wrong_buffer_length_is_refused(bits, n):
    right = -(-n * bits // 8)
    for length in {right - 1, right + 1, 2 * right} - {right, -1}:
        with pytest.raises(ValueError, match=rf"^unpack: packed must .*{right}.*got .*{length}"):
            unpack(np.zeros(length, np.uint8), bits, n)


@pytest.mark.parametrize("bits", ref.BITS)
def test_out_is_written_and_returned(bits):
    codes = codes_of((3, 11), bits, np.int8)
    packed = np.empty((3, -(-11 * bits // 8)), np.uint8)
    assert pack(codes, bits, out=packed) is packed
    np.testing.assert_array_equal(packed, ref.pack(codes, bits))
    back = np.empty((3, 11), np.int8)
    assert unpack(packed, bits, 11, signed=True, out=back) is back
    np.testing.assert_array_equal(back, codes)


C = np.array([[1, 2, 3], [3, 2, 1]], np.uint8)
P = np.array([[0x21, 0x03]], np.uint8)
ERRORS = {
    "pack: bits 3": (lambda: pack(C, 3), ValueError, r"^pack: bits must be 8, 4, 2 or 1, got 3"),
    "pack: bits 0": (lambda: pack(C, 0), ValueError, r"^pack: bits must be 8, 4, 2 or 1, got 0"),
    "pack: bits enormous": (lambda: pack(C, 2**80), ValueError, r"^pack: bits must be 8, 4, 2 or 1"),
    "pack: bits a float": (lambda: pack(C, 4.0), TypeError, r"^pack: bits must be"),
    "pack: float codes": (lambda: pack(C.astype(np.float32), 4), TypeError, r"^pack: codes must .*float32"),
    "pack: int32 codes": (lambda: pack(C.astype(np.int32), 4), TypeError, r"^pack: codes must .*int32"),
    "pack: bool codes": (lambda: pack(C > 1, 4), TypeError, r"^pack: codes must .*bool"),
    "pack: a list": (lambda: pack([1, 2], 4), TypeError, r"^pack: codes must .*list"),
    "pack: out shape": (
        lambda: pack(C, 4, out=np.zeros((2, 3), np.uint8)),
        ValueError,
        r"^pack: out must have shape \(2, 2\).*got \(2, 3\)",
    ),
    "pack: out dtype": (
        lambda: pack(C, 4, out=np.zeros((2, 2), np.int8)),
        TypeError,
        r"^pack: out must .*int8",
    ),
    "pack: threads": (lambda: pack(C, 4, threads=0), ValueError, r"^pack: threads must be .*got 0"),
    "unpack: bits 16": (lambda: unpack(P, 16, 3), ValueError, r"^unpack: bits must be 8, 4, 2 or 1, got 16"),
    "unpack: n < 0": (lambda: unpack(P, 4, -1), ValueError, r"^unpack: length must be .*got -1"),
    "unpack: n a float": (lambda: unpack(P, 4, 3.0), TypeError, r"^unpack: length must be"),
    "unpack: n = 2^62": (lambda: unpack(P, 4, 2**62), ValueError, r"^unpack: "),
    "unpack: n = 2^64 - 1": (lambda: unpack(P, 4, 2**64 - 1), ValueError, r"^unpack: "),
    "unpack: n enormous": (lambda: unpack(P, 2, 2**80), ValueError, r"^unpack: "),
    "unpack: int8": (lambda: unpack(P.view(np.int8), 4, 3), TypeError, r"^unpack: packed must .*int8"),
    "unpack: 0-d": (lambda: unpack(np.array(1, np.uint8), 4, 1), ValueError, r"^unpack: packed must"),
    "unpack: out dtype": (
        lambda: unpack(P, 4, 3, signed=True, out=np.zeros((1, 3), np.uint8)),
        TypeError,
        r"^unpack: out must .*uint8",
    ),
    "unpack: out shape": (
        lambda: unpack(P, 4, 3, out=np.zeros((3, 1), np.uint8)),
        ValueError,
        r"^unpack: out must have shape \(1, 3\).*got \(3, 1\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a8_a_wrong_argument_is_named(case):
    """C11 too: lengths whose product overflows."""
    call, error, match = ERRORS[case]
    with pytest.raises(error, match=match):
        call()


def free_bytes():
    with open("/proc/meminfo") as lines:  # noqa: PTH123
        fields = dict(line.split(":") for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


@pytest.mark.slow
def test_a9_more_than_2_to_the_31_elements():
    n = 2**31 + 17
    if free_bytes() < 6 * 2**30:
        pytest.skip("needs 6 GiB of memory")
    codes = np.zeros(n, np.uint8)
    marks = {0: 1, 2**30: 2, 2**31 - 1: 3, 2**31: 1, 2**31 + 1: 2, n - 1: 3}
    for place, code in marks.items():
        codes[place] = code
    packed = pack(codes, 2)
    assert packed.shape == (-(-n // 4),)
    want: dict[int, int] = {}
    for place, code in marks.items():
        want[place // 4] = want.get(place // 4, 0) | code << 2 * (place % 4)
    assert {int(i): int(packed[i]) for i in np.flatnonzero(packed)} == want
    codes[2**31 + 5] = 4
    with pytest.raises(ValueError, match=r"^pack: codes must"):
        pack(codes, 2, out=packed)
    codes[2**31 + 5] = 0
    out = codes  # memory that is there: new pages take longer than the work
    out[:: 2**22 + 1] = 255  # what must be written over
    assert unpack(packed, 2, n, out=out) is out
    eights = np.flatnonzero(out[: n - n % 8].view(np.uint64)) * 8  # eight bytes at a time: this is what takes long
    where = [int(i) for first in [*eights, n - n % 8] for i in range(first, min(first + 8, n)) if out[i]]
    assert {i: int(out[i]) for i in where} == marks
