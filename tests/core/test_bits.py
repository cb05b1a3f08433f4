"""The same input gives the same bits for every instruction set and every number of threads (B10, B11).

Every public call, every dtype, every length from 0 to 66 (64 lanes, all tails) and some to 257, on both sides of the
powers of two up to 4,096, and around one, three and four chunks. An input that is refused must be refused in the same
words.
"""

import itertools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core

CALLS = ref.calls(mo) | ref.steps(mo)
SHORT = [*range(67), *range(70, 257, 13), 127, 128, 129, 255, 256, 257]
CUTS = ((1, 0), (1, 1), (3, -1), (4, 1))  # chunks, and elements more
LONG = sorted({2**k + d for k in range(9, 13) for d in (-1, 0, 1)} | {k * ref.CHUNK + d for k, d in CUTS})
THREADS = (2, 3, 8)  # numbers that divide the chunks and that don't, and more than there are chunks: in turn
OFFSETS = 7  # the inputs start at different places of a cache line


def outcome(call: ref.Call, argument: Any, threads: int) -> Any:
    try:
        return ref.bits_of(call.run(argument, threads))
    except ValueError as error:
        return str(error)


def prepared(call: ref.Call, x: np.ndarray) -> Any:
    """The argument of a call, or None where making it is itself refused (an empty input of quantize)."""
    try:
        return call.prepare(x)
    except ValueError:
        return None


def data(dtype: Any) -> np.ndarray:
    n = LONG[-1] + OFFSETS
    if dtype == "uint8":
        return np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)
    return ref.wild(n, dtype)


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    return {str(dtype): data(dtype) for dtype in [*ref.DTYPES, "uint8"]}


@pytest.mark.parametrize("name", CALLS)
def test_b10_b11_bits_do_not_depend_on_the_instruction_set_or_the_threads(name, isas, inputs):
    call = CALLS[name]
    dtypes = ["uint8"] if call.codes else ref.DTYPES
    for (place, dtype), (turn, n) in itertools.product(enumerate(dtypes), enumerate([*SHORT, *LONG])):
        if n > 2 * ref.CHUNK and len(dtypes) > 1 and (place + turn) % 2:
            continue  # how chunks are shared out is the same for every dtype: each has one long length
        argument = prepared(call, inputs[str(dtype)][n % OFFSETS : n % OFFSETS + n])
        _core.set_isa("portable")
        want = outcome(call, argument, 1)
        # Short inputs are one piece of work: to see that of one set of instructions is enough.
        runs = [(isa, THREADS[(turn + i) % 3]) for i, isa in enumerate(isas)]
        if n <= ref.CHUNK // 2:
            runs = [*((isa, 1) for isa in isas[1:]), *([(isas[-1], 5)] if turn % 4 == 0 else [])]
        for isa, threads in runs:
            _core.set_isa(isa)
            got = outcome(call, argument, threads)
            assert got == want, f"{n} elements of {dtype}, {isa}, {threads} threads"


@pytest.fixture
def turning_isas(isas) -> Iterator[None]:
    """Another thread sets one instruction set after the other, as fast as it can."""
    done = threading.Event()

    def turn() -> None:
        for isa in itertools.cycle(isas):
            _core.set_isa(isa)
            if done.is_set():
                return

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=turn)
    thread.start()
    yield
    done.set()
    thread.join()
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", CALLS)
def test_b10_bits_do_not_depend_on_an_instruction_set_that_another_thread_sets_meanwhile(name, turning_isas, inputs):
    call = CALLS[name]
    for dtype in ["uint8"] if call.codes else ref.DTYPES:
        argument = prepared(call, inputs[str(dtype)][: ref.CHUNK])
        want = outcome(call, argument, 1)
        assert all(outcome(call, argument, 2) == want for _ in range(8))


@pytest.mark.parametrize("kind", ["compress", "decompress", "Image", "linear"])
def test_b10_thousands_of_pieces_of_work_while_another_thread_sets_the_instruction_set(kind, turning_isas):
    """Each asks which set is in use: one that asked twice, and relied on the same answer, was found by these."""
    rng = np.random.default_rng(5)
    x = np.maximum(rng.normal(size=(20_000, 16)), 0).astype(np.float32)
    bits = np.packbits(x != 0, axis=1, bitorder="little")
    small = mo.prune.BitmaskArray(x[x != 0], bits, np.append(0, np.cumsum(np.count_nonzero(x, axis=1))), x.shape)
    image = rng.integers(0, 256, (20_000, 64, 3), np.uint8)
    plan = mo.preprocess.Image(image.shape[:2], dtype="uint8", quantization=(0.01, 3), layout="NHWC")
    q = mo.quantize(x.reshape(-1, 64), bits=8, axis=0)
    run = {
        "compress": lambda: mo.prune.compress(x).values,
        "decompress": small.decompress,
        "Image": lambda: plan(image),
        "linear": lambda: mo.quant.linear(x[:40].reshape(10, 64), q),
    }[kind]
    want = run()
    for _ in range(10):
        np.testing.assert_array_equal(run(), want)


@pytest.mark.parametrize("name", ["sum", "var", "norm2", "sum-axis0", "quantize-symmetric8-all", "histogram"])
def test_b10_bits_stay_the_same_over_200_runs_under_load(name):
    """Eight threads on however few CPUs there are: they never finish in the same order."""
    call = CALLS[name]
    x = call.prepare(ref.wild(5 * ref.CHUNK + 3, np.float32))
    want = outcome(call, x, 1)
    for _ in range(200):
        assert outcome(call, x, 8) == want


@pytest.mark.parametrize("name", [n for n, c in CALLS.items() if not c.function.startswith("dequantize")])
def test_c5_bits_do_not_depend_on_the_strides(name):
    call = CALLS[name]
    for n in (5, 130, ref.CHUNK + 65):
        if call.codes:
            wide = np.zeros((2, 3 * n), np.uint8)
            wide[:, ::3] = data("uint8")[: 2 * n].reshape(2, n)
            if name.startswith("pack"):
                wide &= 2 ** int(name[4:]) - 1
            views = [wide[:, ::3], wide[::-1, ::3], wide[:, ::-3][:, :n]]
        elif call.prepare in (ref.rows, ref.columns):
            wide = ref.wild(3 * n, np.float32).reshape(call.prepare(ref.wild(3 * n, np.float32)).shape)
            views = [np.asfortranarray(wide), wide[::-1, ::-1], np.repeat(wide, 2, axis=1)[:, ::2], wide[::2]]
        else:
            wide = ref.wild(3 * n, np.float32)
            if call.prepare is ref.poisoned:
                wide = ref.poisoned(wide)
            views = [wide[::3], wide[::-1], wide[::-2], wide.reshape(3, n).T]
        for view in views:
            argument = view
            same = np.ascontiguousarray(view)
            if call.codes and name.startswith("unpack"):
                argument, same = view[0], same[0]
            assert outcome(call, argument, 2) == outcome(call, same, 2)


def test_the_list_of_calls_is_complete():
    """A new public function must stand in the list, so that the laws are tested for it.

    Muon's bits are the BLAS's; a Calibrator's are those of reductions that are in the list; codes with given scales
    have the same laws in `tests/quant/test_linear_codes.py`.
    """
    listed = {call.function for call in CALLS.values()}
    public = {f"reduce.{name}" for name in mo.reduce.__all__}
    public |= {name if hasattr(mo, name) else f"quant.{name}" for name in mo.quant.__all__}
    public |= {f"optim.{name}" for name in mo.optim.__all__ if name.endswith("_step")}
    prune = {"threshold", "magnitude", "n_of_m", "blocks", "wanda", "sparsegpt", "compress", "to_csr"}
    public |= {f"prune.{name}" for name in mo.prune.__all__ if name in prune}
    others = {
        "QuantizedArray",
        "quant.Calibrator",
        "quant.PackedWeight",
        "quant.Format",
        "quant.formats",
        "optim.muon_step",
    }
    others |= {"quant.quantize_linear", "quant.dequantize_linear", "quant.requantize_linear"}
    assert listed == public - others


def test_b11_the_instruction_set_can_be_chosen(isas):
    assert "portable" in isas
    for isa in isas:
        _core.set_isa(isa)
        assert _core.isa() == isa
    with pytest.raises(ValueError, match=r"^set_isa: .*portable.*avx2.*avx512.*got .*sse9"):
        _core.set_isa("sse9")
    assert _core.isa() == isas[-1]
