"""The border between Python and the kernels (C1 to C15): every kind of array and failure, nothing lost."""

import contextlib
import ctypes
import gc
import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core

# What takes only some shapes has tests of its own (test_prune.py, test_sparsegpt.py, test_gptq.py, test_awq.py).
OF_SOME_SHAPES = {"prune.n_of_m", "prune.blocks", "prune.wanda", "prune.sparsegpt", "prune.to_csr"}
OF_SOME_SHAPES |= {"quant.gptq", "quant.awq_scales"}
CALLS = {name: call for name, call in ref.calls(mo).items() if call.function not in OF_SOME_SHAPES}
FLOATS = {name: call for name, call in CALLS.items() if not call.codes and call.function != "dequantize"}
# one call of each public function that takes floats
FUNCTIONS = {call.function.split(".")[-1]: call for call in reversed(FLOATS.values())}
# What takes integers and bools as well; that has tests of its own (tests/reduce/test_numbers.py).
NUMBERS = set(mo.reduce.__all__) - {"absmax", "kth_magnitude"}
ONLY_FLOATS = [name for name in FUNCTIONS if name not in NUMBERS]
EVERY = {call.function.split(".")[-1]: call for call in reversed(CALLS.values())}

X = ref.wild(3 * 40, np.float32).reshape(3, 40)
Q = mo.quantize(X, bits=4, group_size=16)
C = (np.arange(120) % 4).astype(np.uint8).reshape(3, 40)

# each call that writes into `out`: what makes a right `out`, and the call
WRITERS = {
    "fake_quantize": (
        lambda: np.empty((3, 40), np.float32),
        lambda out, **kw: mo.fake_quantize(X, out=out, **kw),
    ),
    "dequantize": (lambda: np.empty((3, 40), np.float32), lambda out, **kw: mo.dequantize(Q, out=out, **kw)),
    "pack": (lambda: np.empty((3, 10), np.uint8), lambda out, **kw: mo.quant.pack(C, 2, out=out, **kw)),
    "unpack": (
        lambda: np.empty((3, 40), np.uint8),
        lambda out, **kw: mo.quant.unpack(ref.pack(C, 2), 2, 40, out=out, **kw),
    ),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)
each_writer = pytest.mark.parametrize("name", WRITERS)


# -------------------------------------------------------------------------------------------- what is written


@each_writer
def test_c1_a_read_only_out_is_refused(name):
    make, call = WRITERS[name]
    out = make()
    out[...] = 3
    out.flags.writeable = False
    with pytest.raises(ValueError, match=rf"^{name}: out is read-only|^{name}: out must be writ.*read-only"):
        call(out)
    assert (out == 3).all()


@pytest.mark.parametrize("scheme", ref.SCHEMES)
def test_c1_a_read_only_part_of_a_quantized_out_is_refused(scheme):
    for part in ("codes", "scale", "zero_point", "offset"):
        q = mo.quantize(X, scheme=scheme)
        array = getattr(q, part)
        if array is None:
            continue
        array.flags.writeable = False
        before = ref.bits_of(q)
        with pytest.raises(ValueError, match=rf"^quantize: out\.{part} .*read-only"):
            mo.quantize(X * 2, scheme=scheme, out=q)
        assert ref.bits_of(q) == before


@each_writer
def test_c4_a_byte_swapped_out_is_refused(name):
    make, call = WRITERS[name]
    out = make()
    if out.dtype.itemsize == 1:
        pytest.skip("one byte has no order")
    with pytest.raises(TypeError, match=rf"^{name}: out .*>f4"):
        call(out.astype(">f4"))


@each_writer
def test_c5_an_out_with_any_strides_is_right_or_refused_and_never_copied(name):
    make, call = WRITERS[name]
    want = call(make())
    rows, columns = want.shape
    frame = np.full((2 * rows, 3 * columns), 77, want.dtype)
    layouts = {
        "fortran": np.asfortranarray(make()),
        "rows apart": frame[::2, :columns],
        "columns apart": frame[:rows, ::3],
        "negative rows": frame[:rows, :columns][::-1],
        "negative columns": frame[:rows, :columns][:, ::-1],
    }
    for layout, out in layouts.items():
        frame[...] = 77
        try:
            got = call(out)
        except ValueError as error:
            message = str(error)
            assert (out == 77).all() or layout == "fortran"
            assert message.startswith(f"{name}: out must be")
        else:
            assert got is out
            np.testing.assert_array_equal(out, want)
        assert (frame == 77).sum() >= frame.size - want.size


@each_writer
def test_c5_an_out_whose_elements_share_memory_is_refused(name):
    make, call = WRITERS[name]
    right = make()
    for wrong in (
        np.lib.stride_tricks.as_strided(right, right.shape, (0, right.itemsize)),
        np.lib.stride_tricks.as_strided(right, right.shape, (0, 0)),
        np.lib.stride_tricks.as_strided(right, right.shape, (right.itemsize, right.itemsize)),
    ):
        right[...] = 9
        with pytest.raises(ValueError, match=rf"^{name}: out "):
            call(wrong)
        assert (right == 9).all()


def overlaps() -> Iterator[Any]:
    """(name of the function, argument that must be named, memory, call)."""
    memory = np.arange(200, dtype=np.float32)
    yield "fake_quantize", memory, lambda: mo.fake_quantize(memory[:150], out=memory[50:])
    yield "fake_quantize", memory, lambda: mo.fake_quantize(memory[::-1], out=memory)
    square = np.arange(100, dtype=np.float32).reshape(10, 10)
    yield "fake_quantize", square, lambda: mo.fake_quantize(square.T, out=square)
    codes = (np.arange(64) % 4).astype(np.uint8)
    yield "pack", codes, lambda: mo.quant.pack(codes, 2, out=codes[3:19])
    yield "pack", codes, lambda: mo.quant.pack(codes[:16], 2, out=codes[15:19])
    packed = np.arange(64, dtype=np.uint8)
    yield "unpack", packed, lambda: mo.quant.unpack(packed[:16], 2, 64, out=packed)
    q = mo.quantize(ref.wild(400, np.float32), group_size=4)
    yield (
        "dequantize",
        q.scale,
        lambda: mo.dequantize(
            mo.QuantizedArray(q.codes[:100], q.scale[:25], None, None, 8, "symmetric", (100,), None, 4),
            out=q.scale,
        ),
    )


@pytest.mark.parametrize("case", range(7))
def test_b4_an_out_that_overlaps_an_input_is_refused(case):
    function, memory, call = list(overlaps())[case]
    before = memory.tobytes()
    with pytest.raises(ValueError, match=rf"^{function}: .*\bout\b.*overlap"):
        call()
    assert memory.tobytes() == before


def test_b4_the_same_array_as_input_and_out_is_right_or_refused():
    x = X.copy()
    want = mo.fake_quantize(x)
    try:
        mo.fake_quantize(x, out=x)
    except ValueError:
        np.testing.assert_array_equal(x, X)
    else:
        np.testing.assert_array_equal(x, want)


def test_b4_quantizing_into_ones_own_parts_is_refused():
    """The float input is the memory of the scale that the call would write."""
    q = mo.quantize(ref.wild(100, np.float32), group_size=1)
    before = ref.bits_of(q)
    with pytest.raises(ValueError, match=r"^quantize: .*overlap"):
        mo.quantize(q.scale, group_size=1, out=q)
    assert ref.bits_of(q) == before


def test_b4_neighbours_in_one_buffer_are_accepted():
    memory = np.concatenate([ref.wild(100, np.float32), np.zeros(100, np.float32)])
    want = mo.fake_quantize(memory[:100].copy())
    assert np.array_equal(mo.fake_quantize(memory[:100], out=memory[100:]), want)
    memory = np.zeros((10, 6), np.float32)
    memory[:, ::3] = ref.wild(20, np.float32).reshape(10, 2)
    want = mo.fake_quantize(memory[:, ::3].copy())
    out = memory[:, 1::3]
    try:
        mo.fake_quantize(memory[:, ::3], out=out)
    except ValueError as error:
        message = str(error)
        assert "overlap" not in message
    else:
        np.testing.assert_array_equal(out, want)


# ----------------------------------------------------------------------------------------------- what is read


@each_function
@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        (np.bool_, TypeError, "bool"),
        (np.int8, TypeError, "int8"),
        (np.uint8, TypeError, "uint8"),
        (np.int64, TypeError, "int64"),
        (np.complex64, TypeError, "complex64"),
        (np.longdouble, TypeError, "longdouble|float128"),
        (object, TypeError, "object"),
        ("S4", TypeError, r"S4"),
        ("U4", TypeError, r"U4"),
        ("M8[s]", TypeError, "datetime64|M8"),
        ([("a", "f4")], TypeError, "f4|void"),
    ],
    ids=str,
)
def test_c6_c9_other_dtypes_are_refused(name, kind, error, match):
    x = np.zeros(120, kind)
    if name in NUMBERS and x.dtype.kind in "biu":
        FUNCTIONS[name].run(x)
        return
    with pytest.raises(error, match=rf"^{name}: {FUNCTIONS[name].argument} must .*({match})"):
        FUNCTIONS[name].run(x)


@pytest.mark.parametrize("name", ONLY_FLOATS)
def test_c6_a_bool_array_with_other_bytes_than_0_and_1_is_refused_too(name):
    with pytest.raises(TypeError, match=rf"^{name}: {FUNCTIONS[name].argument} must .*bool"):
        FUNCTIONS[name].run(np.array([24, 2, 1, 0], np.uint8).view(np.bool_))


@each_function
@pytest.mark.parametrize("swapped", [">f4", ">f8", ">f2"])
def test_c4_a_byte_swapped_input_is_refused_with_the_way_out(name, swapped):
    argument = FUNCTIONS[name].argument
    with pytest.raises(
        TypeError,
        match=rf"^{name}: {argument} has big-endian dtype '{swapped}'; use \w+\.astype\('[=<]{swapped[1:]}'\)",
    ):
        FUNCTIONS[name].run(X.ravel().astype(swapped))


@each_function
def test_c9_masked_arrays_and_what_is_no_array_are_refused(name):
    with pytest.raises(TypeError, match=rf"^{name}: {FUNCTIONS[name].argument} must .*[Mm]ask"):
        FUNCTIONS[name].run(np.ma.masked_array(X.ravel(), X.ravel() > 0))
    for wrong, kind in (
        (None, "NoneType"),
        ("abc", "str"),
        ([1.0, 2.0], "list"),
        (1.5, "float"),
        (b"1234", "bytes"),
    ):
        with pytest.raises(TypeError, match=rf"^{name}: {FUNCTIONS[name].argument} must .*got .*{kind}"):
            FUNCTIONS[name].run(wrong)


@each_function
def test_c9_a_subclass_is_read_as_the_array_that_it_is(name):
    class Sub(np.ndarray):
        def __array_finalize__(self, obj):
            self.touched = True

    call = FUNCTIONS[name]
    x = X.ravel()
    got = call.run(x.view(Sub))
    assert ref.bits_of(got) == ref.bits_of(call.run(x))
    assert type(got) is type(call.run(x))


def test_c9_an_object_that_makes_an_array_is_right_or_refused():
    class Makes:
        def __array__(self, dtype=None, copy=None):
            return X

    try:
        got = mo.reduce.sum(Makes())
    except TypeError:
        return
    assert got == mo.reduce.sum(X)


@each_function
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_c3_misaligned_inputs_are_read_right(name, dtype):
    call = FUNCTIONS[name]
    for n in (0, 1, 3, 120, ref.CHUNK + 9):
        x = ref.wild(n, dtype)
        b = b"\0" + x.tobytes()
        view = np.frombuffer(b[0:], np.uint8)[1:].view(dtype)
        assert n == 0 or not view.flags.aligned
        outcomes = []
        for value in (x, view):
            try:
                outcomes.append(ref.bits_of(call.run(value, 2)))
            except ValueError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


@each_writer
def test_c3_a_misaligned_out_is_written_right_or_refused(name):
    make, call = WRITERS[name]
    want = call(make())
    memory = np.full(want.nbytes + 2, 77, np.uint8)
    out = memory[1:-1].view(want.dtype).reshape(want.shape)
    try:
        call(out)
    except ValueError:
        assert (memory == 77).all()
    else:
        np.testing.assert_array_equal(out, want)
    assert memory[0] == memory[-1] == 77


@each_function
def test_c5_fortran_transposed_reversed_and_broadcast_inputs(name):
    """test_bits has the other strides, call by call."""
    call = FUNCTIONS[name]
    x = ref.wild(60, np.float32).reshape(3, 4, 5)
    for view in (
        np.asfortranarray(x),
        x.transpose(2, 0, 1),
        x[::-1, :, ::-1],
        x[:, 1:3, ::2],
        np.broadcast_to(x[0], (3, 4, 5)),
        np.broadcast_to(np.float32(1.5), (2, 3)),
        np.lib.stride_tricks.sliding_window_view(x.ravel(), 8),
        x[:, None, :, :],
    ):
        assert ref.bits_of(call.run(view, 2)) == ref.bits_of(call.run(view.copy(), 2))


@each_function
def test_c1_read_only_inputs_are_read(name):
    x = X.ravel().copy()
    want = ref.bits_of(FUNCTIONS[name].run(x))
    x.flags.writeable = False
    assert ref.bits_of(FUNCTIONS[name].run(x)) == want


@pytest.mark.parametrize("name", CALLS)
def test_no_call_writes_its_input(name):
    call = CALLS[name]
    x = np.arange(333, dtype=np.uint8) if call.codes else ref.wild(333, np.float32)
    argument = call.prepare(x)
    before = ref.bits_of((argument, x))
    call.run(argument, 2)
    assert ref.bits_of((argument, x)) == before


# ------------------------------------------------------------------------------------------------ guard pages


@pytest.fixture(scope="module")
def guarded() -> np.ndarray:
    """Bytes whose end is the end of what may be read: reading the next one kills the process."""
    size = 4 * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(start + size, mmap.PAGESIZE, 0) == 0
    return np.frombuffer(memory, np.uint8, size)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_b2_nothing_beyond_an_array_is_read_or_written(dtype, guarded, isa):
    """All lengths to 257 that end at the guard page, then all offsets of a cache line."""
    places = [(n, 0) for n in range(258)] + [(n, offset) for n in (1, 64, 129) for offset in range(64)]
    for n, offset in places:
        end = guarded.size - offset
        x = guarded[end - n * dtype.itemsize : end].view(dtype)
        x[...] = ref.wild(257, dtype)[:n]
        mo.reduce.sum(x)
        mo.reduce.nanminmax(x) if n else None
        mo.reduce.kth_magnitude(x, n // 2) if n else None
        want = mo.fake_quantize(x.copy(), bits=4, group_size=32)
        q = mo.quantize(x, bits=4, group_size=32)
        if x.flags.aligned:
            mo.dequantize(q, dtype=dtype, out=x)
            assert x.tobytes() == want.tobytes()


def test_b2_nothing_beyond_codes_is_read_or_written(guarded, isa):
    for bits in ref.BITS:
        for n in range(258):
            codes = guarded[guarded.size - n :]
            codes[...] = np.arange(n) % 2**bits
            packed = mo.quant.pack(codes, bits)
            tail = guarded[guarded.size - packed.size :]
            tail[...] = packed
            back = mo.quant.unpack(tail, bits, n)
            np.testing.assert_array_equal(back, np.arange(n) % 2**bits)
            mo.quant.unpack(packed, bits, n, out=codes)
            np.testing.assert_array_equal(codes, back)
            mo.quant.pack(back, bits, out=tail)
            np.testing.assert_array_equal(tail, packed)


# ----------------------------------------------------------------------------------------- threads and memory


def in_threads(*functions):
    """Run the functions at once and return what each returned; an exception of one is raised here."""
    barrier, results = threading.Barrier(len(functions)), [None] * len(functions)

    def body(i, f):
        barrier.wait()
        try:
            results[i] = f()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=body, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("name", EVERY)
def test_c8_two_threads_read_the_same_array_at_once(name):
    call = EVERY[name]
    x = np.arange(70_000, dtype=np.uint8) if call.codes else ref.wild(70_000, np.float32)
    argument = call.prepare(x)
    want = ref.bits_of(call.run(argument))

    def body():
        return all(ref.bits_of(call.run(argument, 2)) == want for _ in range(20))

    assert in_threads(body, body) == [True, True]


ROUNDS = 100_000 // len(WRITERS)


@each_writer
def test_c8_two_threads_that_write_the_same_out_are_told_or_both_right(name):
    make, call = WRITERS[name]
    out, want = make(), call(make())

    def body():
        refused = 0
        for _ in range(ROUNDS):
            try:
                call(out)
            except ValueError as error:
                if "in use by another call" not in str(error):
                    raise
                refused += 1
        return refused

    assert min(in_threads(body, body)) < ROUNDS  # one may be refused each time, while the other is in one long call
    np.testing.assert_array_equal(call(out), want)


def test_c7_resizing_an_array_while_it_is_read_cannot_free_it():
    """A resize between two calls is the caller's right; one inside a call must be refused."""
    x = ref.wild(200_000, np.float32)
    cut = np.zeros_like(x)
    cut[:10] = x[:10]
    allowed = {mo.reduce.sum(values) for values in (x, x[:10], cut)}
    done = threading.Event()

    def read():
        found = set()
        while not done.is_set():
            found.add(mo.reduce.sum(x, threads=2))
        return found <= allowed

    def resize():
        try:
            for i in range(100_000):
                with contextlib.suppress(ValueError):
                    x.resize(10 if i % 2 else 200_000)
        finally:
            done.set()

    assert in_threads(read, resize) == [True, None]


def failing_calls():
    """Each class of error, of each kind of function: argument and call."""
    bad = X.astype(np.int32)
    nan = ref.poisoned(X)
    locked = np.empty_like(X)
    locked.flags.writeable = False
    out = np.empty_like(X)
    packed = np.full((3, 10), 255, np.uint8)
    yield bad, lambda: mo.reduce.absmax(bad)
    yield X, lambda: mo.reduce.sum(X, axis=5)
    yield X, lambda: mo.reduce.minmax(X, axis="no")
    yield X, lambda: mo.reduce.kth_magnitude(X, 10**6)
    yield X, lambda: mo.reduce.quantile(X, 2.0)
    yield X, lambda: mo.reduce.histogram(X, 0)
    yield nan, lambda: mo.quantize(nan)
    yield nan, lambda: mo.fake_quantize(nan, out=out)
    yield X, lambda: mo.quantize(X, bits=3)
    yield X, lambda: mo.quantize(X, out=Q)
    yield locked, lambda: mo.fake_quantize(X, out=locked)
    yield X, lambda: mo.fake_quantize(X, threads=0)
    yield Q.codes, lambda: mo.dequantize(Q, dtype=np.int8)
    yield out, lambda: mo.dequantize(Q, out=out[:2])
    yield C, lambda: mo.quant.pack(C + 9, 2)
    yield C, lambda: mo.quant.pack(C, 2, out=packed[:1])
    yield packed, lambda: mo.quant.unpack(packed, 2, 39)
    yield packed, lambda: mo.quant.unpack(packed, 2, 9)


def test_c15_failing_calls_leak_no_reference():
    for argument, call in failing_calls():
        for counted in range(4_000):
            if counted == 500:
                gc.collect()
                before = sys.getrefcount(argument), len(gc.get_objects()), sys.getrefcount(type(argument))
            try:
                call()
            except (TypeError, ValueError):
                continue
            pytest.fail("no error")
        gc.collect()
        after = sys.getrefcount(argument), len(gc.get_objects()), sys.getrefcount(type(argument))
        assert all(now <= then + 20 for then, now in zip(before, after, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_c15_calls_that_work_leak_no_reference(name):
    call = EVERY[name]
    x = np.arange(300, dtype=np.uint8) if call.codes else ref.wild(300, np.float32)
    argument = call.prepare(x)
    for counted in range(400):
        if counted == 100:
            before = sys.getrefcount(argument)
        call.run(argument, 2)
    assert sys.getrefcount(argument) <= before + 2


def run(script: str, *arguments: str) -> str:
    """Run a script in its own process; a hang ends after a minute with every thread's stack."""
    preamble = "import faulthandler; faulthandler.dump_traceback_later(60, exit=True)\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + script, *arguments],
        # under a limit neither what was freed nor the arena of a thread that a fork left behind (64 MiB) may serve
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


OUT_OF_MEMORY = {  # each needs more than the 8 MiB that are left
    "quantize": "mo.quantize(x, threads=2)",
    "quantize-axis": "mo.quantize(x.reshape(-1, 1), axis=0, threads=2)",
    "fake_quantize": "mo.fake_quantize(x, threads=2)",
    "fake_quantize-group": "mo.fake_quantize(x, group_size=1, out=out, threads=2)",
    "dequantize": "q.dequantize(threads=2)",
    "pack": "mo.quant.pack(codes, 8, threads=2)",
    "unpack": "mo.quant.unpack(q.codes, 2, x.size, threads=2)",
    "histogram": "mo.reduce.histogram(x, 1 << 23, threads=2)",
    "quantile": "mo.reduce.quantile(x, np.broadcast_to(0.5, 1 << 23), threads=2)",
    "kth_magnitude": "mo.reduce.kth_magnitude(x, 1 << 23, threads=2)",
    "sum-axis0": "mo.reduce.sum(x.reshape(2, -1), axis=0, threads=2)",
    "sum-axis1": "mo.reduce.sum(x.reshape(-1, 2), axis=1, threads=2)",
    "minmax-axis0": "mo.reduce.minmax(x.reshape(2, -1), axis=0, threads=2)",
    "var-axis1": "mo.reduce.var(x.reshape(-1, 2), axis=1, threads=2)",
    "sum-strided": "mo.reduce.sum(x[::2], threads=2)",
}


EACH_IN_A_CHILD = """
import faulthandler, os, resource, sys, traceback
import numpy as np
import modelopt_rs as mo

def each_in_a_child(cases, work):
    "An allocation that fails in Rust would abort the process: a fork for each, and the imports only once."
    faulthandler.dump_traceback_later(110, exit=True)
    for name, code in cases.items():
        pid = os.fork()
        if pid == 0:
            try:
                work(name, code)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, name
"""


def test_c10_running_out_of_memory_is_a_memory_error_and_nothing_is_lost():
    run(
        EACH_IN_A_CHILD
        + f"""
def work(name, code):
    x = np.ones(1 << 24, np.float32)
    codes = np.ones(1 << 24, np.uint8)
    q = mo.quantize(x, bits=2)
    out = np.empty_like(x)
    for _ in range(3):
        mo.fake_quantize(x, out=out, threads=2)  # the workers have their stacks and arenas
    out[...] = 7
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), -1))
    try:
        exec(code)
    except MemoryError:
        assert mo.reduce.minmax(out, threads=2) == (7, 7)  # nothing was written
    else:
        # what needs less than it could is welcome
        assert name in ("quantile", "kth_magnitude", "sum-strided", "fake_quantize-group")
    assert mo.reduce.minmax(x, threads=2) == (1, 1)
    assert mo.fake_quantize(x, out=out, threads=2) is out
    assert mo.reduce.sum(x, threads=2) == 1 << 24

each_in_a_child({OUT_OF_MEMORY!r}, work)
"""
    )


HUGE = {
    "sum": "mo.reduce.sum(np.empty((0, 2**58), np.float32), axis=0)",
    "minmax": "mo.reduce.minmax(np.broadcast_to(np.float32(1), (1, 2**60)), axis=0)",
    "kth_magnitude": "mo.reduce.kth_magnitude(np.broadcast_to(np.float32(1), (2**30, 2**30)), 5)",
    "histogram": "mo.reduce.histogram(np.ones(3), 2**56)",
    "quantize-group": "mo.quantize(np.broadcast_to(np.float32(1), (2**31, 2**31)), group_size=1)",
    "quantize-axis": "mo.quantize(np.empty((0, 2**58), np.float32), axis=1)",
    "fake_quantize": "mo.fake_quantize(np.broadcast_to(np.float32(1), (2**31, 2**30)), axis=0)",
    "unpack": "mo.quant.unpack(np.empty((2**60, 0), np.uint8), 2, 2**60)",
    "pack": "mo.quant.pack(np.broadcast_to(np.uint8(1), (2**31, 2**31)), 2)",
}


def test_c10_c11_shapes_beyond_any_memory_are_errors_and_no_abort():
    run(
        EACH_IN_A_CHILD
        + f"""
def work(name, code):
    try:
        exec(code)
    except (ValueError, MemoryError):
        pass
    else:
        raise SystemExit("no error")
    assert mo.reduce.sum(np.ones(3, np.float32)) == 3

each_in_a_child({HUGE!r}, work)
"""
    )


def test_c13_a_subinterpreter_gets_an_import_error_and_the_main_one_goes_on():
    run(
        """
import numpy as np
import modelopt_rs as mo

try:
    import _interpreters as interpreters
except ImportError:
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        raise SystemExit(0)
code = '''
try:
    import modelopt_rs
except ImportError:
    pass
else:
    raise SystemError("the import worked")
'''
for _ in range(3):
    failure = interpreters.run_string(interpreters.create(), code)
    assert failure is None, failure
assert mo.reduce.sum(np.ones(5, np.float32)) == 5
"""
    )


# ----------------------------------------------------------------------------------------------------- panics


@pytest.mark.parametrize("name", EVERY)
def test_c2_a_panic_in_any_entry_is_an_internal_error_and_the_next_call_works(name):
    call = EVERY[name]
    x = np.arange(300, dtype=np.uint8) if call.codes else ref.wild(300, np.float32)
    argument = call.prepare(x)
    want = ref.bits_of(call.run(argument))
    _core.set_fault(True)
    try:
        with pytest.raises(mo.InternalError, match=rf"^{name}: .*please report"):
            call.run(argument)
    finally:
        _core.set_fault(False)
    assert issubclass(mo.InternalError, RuntimeError)
    assert ref.bits_of(call.run(argument)) == want


def test_c2_every_function_of_the_core_goes_through_the_gate():
    bindings = Path(__file__).resolve().parents[2] / "src" / "bindings"
    if not bindings.is_dir():
        pytest.skip("the sources are not here")
    functions = {}
    for file in bindings.glob("*.rs"):
        for text in file.read_text().split("#[pyfunction")[1:]:
            found = re.search(r"fn (\w+)", text)
            if found:  # else of a macro, which hands on to functions of its file
                functions[found[1]] = re.search(r"\bentry\(", text) is not None
            else:
                code = file.read_text()
                for name in set(re.findall(r"\w+ => (\w+)", code)):
                    if body := re.search(rf"\nfn {name}\b.*?\n}}\n", code, re.S):
                        functions[name] = "entry(" in body[0]
    assert len(functions) > 15
    assert [name for name, gated in functions.items() if not gated] == ["set_fault"]
