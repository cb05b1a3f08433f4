"""`QuantizedArray` as a table: rows by arrays and masks, made of parts, saved, shared."""

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import modelopt_rs as mo

RNG = np.random.default_rng(54)
X = RNG.standard_normal((50, 96)).astype(np.float32)
KINDS = [
    {"bits": bits, "scheme": scheme} | cut
    for bits in (8, 4, 2)
    for scheme in ("symmetric", "asymmetric", "minmax")
    for cut in ({}, {"axis": 0}, {"axis": 1}, {"group_size": 32}, {"group_size": 40})
] + [
    {"format": name} | cut
    for name, cut in (
        ("nf4", {}),
        ("fp4", {"group_size": 32}),
        ("mxfp4", {}),
        ("nvfp4", {}),
        ("fp8_e4m3", {}),
        ("fp8_e4m3", {"axis": 0}),
        ("fp8_e4m3", {"axis": 1}),
        ("fp8_e5m2", {"group_size": (16, 32)}),
    )
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_rows_are_those_of_the_whole_for_every_format_and_cut(options):
    for x in (X, X[:, :37].copy(), X.reshape(50, 4, 24)):
        if x.ndim == 3 and isinstance(options.get("group_size"), tuple):
            continue
        q = mo.quantize(x, **options)
        whole = q.dequantize()
        for indices in ([1, 2], [-1, 7, 7, 0], np.array([[3, 1], [2, -50]], np.int32), [], 7, -1, np.int64(3)):
            index = np.array(indices, np.int64) if isinstance(indices, list) else indices
            for threads in (1, 2):
                got = q.take(indices, threads=threads)
                assert got.tobytes() == whole[index].tobytes()
                assert got.shape == whole[index].shape
        mask = np.arange(50) % 3 == 0
        assert q.take(mask).tobytes() == whole[mask].tobytes()
        assert (q.take([5, 1], np.float64) == q.dequantize(np.float64)[[5, 1]]).all()
        if not isinstance(options.get("group_size"), tuple):
            assert (np.asarray(q[[4, -2]]) == whole[[4, -2]]).all()
            assert (np.asarray(q[mask]) == whole[mask]).all()
            assert len(q[mask]) == mask.sum()


def test_a_look_up_fills_what_is_given():
    q = mo.quantize(X, axis=0)
    out = np.empty((2, 96), np.float32)
    assert q.take([9, 3], out=out) is out
    assert (out == q.dequantize()[[9, 3]]).all()
    with pytest.raises(ValueError, match=r"take: out must have shape \(3, 96\), got \(2, 96\)"):
        q.take([1, 2, 3], out=out)


HUGE = 10**30


@pytest.mark.parametrize(
    ("look_up", "got"),
    [
        (lambda q: q.take(HUGE), HUGE),
        (lambda q: q.take([1, -HUGE]), -HUGE),
        (lambda q: q[-HUGE], -HUGE),
        (lambda q: q[[HUGE]], HUGE),
        (lambda q: q[50], 50),
        (lambda q: q[np.int8(-51)], -51),
        (lambda q: q[[3, 50, 99]], 50),
        (lambda q: q.take(np.array([3, -51, 99], np.int32)), -51),
    ],
)
def test_an_index_of_no_row_is_an_index_error_that_shows_it(look_up, got):
    with pytest.raises(
        IndexError, match=rf"(take: indices|QuantizedArray: index) must be within the 50 rows, got {got}$"
    ):
        look_up(mo.quantize(X, axis=0))


def test_indices_of_any_dtype_and_layout_look_up_the_same_rows():
    q = mo.quantize(X, axis=0)
    whole, wanted = q.dequantize(), np.array([[7, 3], [0, 49]])
    for dtype in (">i8", ">i4", "i4", "u1", "u8", "i8"):
        assert (q.take(wanted.astype(dtype)) == whole[wanted]).all()
    twice = np.repeat(wanted, 2, axis=1).astype(np.int32)[:, ::2]
    assert (q.take(twice) == whole[wanted]).all()
    assert (q.take(wanted.T) == whole[wanted.T]).all()


def test_small_and_large_look_ups_write_the_same_bits_and_refuse_the_same():
    """Small ones keep the GIL and register nothing."""
    for n in (3, 5000):
        q, ids = mo.quantize(X, axis=0), RNG.integers(-50, 50, n)
        whole = q.dequantize()
        out = np.full((n, 96), np.nan, np.float32)
        assert q.take(ids, out=out) is out
        assert out.tobytes() == q.take(ids).tobytes() == whole[ids].tobytes()
        half = q.take(ids, np.float16)
        assert half.dtype == np.float16
        assert half.tobytes() == whole.astype(np.float16)[ids].tobytes()
        q.codes = q.codes[::-1].copy()  # seen, though the table was checked before
        q.scale = q.scale[::-1].copy()
        assert q.take(ids).tobytes() == whole[::-1][ids].tobytes()
        out.flags.writeable = False
        with pytest.raises(ValueError, match="take: out must be writeable, got a read-only array"):
            q.take(ids, out=out)
    memory = np.zeros(64, np.float32)
    q = mo.QuantizedArray(memory.view(np.int8).reshape(4, 64), 0.5)
    with pytest.raises(ValueError, match="take: out and codes overlap in memory"):
        q.take(1, out=memory)
    spread = mo.QuantizedArray(memory.view(np.int8).reshape(4, 64)[:, ::2], 0.5)
    with pytest.raises(ValueError, match="take: out and codes overlap in memory"):
        spread.take(1, out=memory[:32])


def test_indices_and_parts_that_cannot_be_are_refused_by_name():
    q = mo.quantize(X, axis=0)
    for make, error, text in (
        (
            lambda: q.take(np.ma.masked_array([1, 2], [0, 1])),
            TypeError,
            "take: indices must be .*its mask would be lost",
        ),
        (lambda: q.take(np.array([1, 2], object)), TypeError, "take: indices must be an integer, .*, got ndarray"),
        (lambda: q.take([[1], [2, 3]]), TypeError, "take: indices must be an integer, .*, got list"),
        (
            lambda: mo.QuantizedArray(q.codes, 10**400),
            ValueError,
            "QuantizedArray: scale must be within .*, got int|got 1",
        ),
        (lambda: mo.QuantizedArray(q.codes, 1.0, shape=(-50, 96)).take(1), ValueError, r"take: q .*, got \(-50, 96\)"),
        (lambda: mo.QuantizedArray(q.codes, 1.0, shape=(10**30, 9)).take(1), ValueError, "take: q must have the shape"),
    ):
        with pytest.raises(error, match=text):
            make()
    with pytest.raises(TypeError, match="PackedWeight: it can't be made an array"):
        np.asarray(q.prepack())


def test_threads_look_up_at_once():
    q = mo.quantize(X, axis=0)
    whole, wrong = q.dequantize(), []

    def look_up(seed):
        rng = np.random.default_rng(seed)
        for n in (1, 3, 400) * 30:
            ids = rng.integers(0, 50, n)
            if q.take(ids).tobytes() != whole[ids].tobytes():
                wrong.append(ids)

    threads = [threading.Thread(target=look_up, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_group_size_that_no_64_bits_hold_is_a_group_for_each_row():
    q = mo.quantize(X, group_size=10**30)
    assert q.scale.shape == (50, 1)
    assert (q.take([3]) == mo.quantize(X, group_size=96).take([3])).all()
    given = mo.quant.quantize_linear(X, q.scale, axis=1, group_size=10**30)
    assert (given == q.codes).all()


def test_a_scale_of_another_dtype_is_shown():
    q = mo.quantize(X, axis=0)
    other = mo.QuantizedArray(q.codes, q.scale.astype(np.float16), axis=0)
    for use, function in ((other.dequantize, "dequantize"), (lambda: other.take(0), "take")):
        with pytest.raises(TypeError, match=f"{function}: scale must have dtype float32 or float64, got float16"):
            use()


def test_what_is_no_row_is_named():
    q = mo.quantize(X, axis=0)
    before = np.zeros((1, 96), np.float32)
    for bad, error, text in (
        (50, IndexError, "take: indices must be within the 50 rows, got 50"),
        ([0, -51], IndexError, "take: indices must be within the 50 rows, got -51"),
        ([True], IndexError, "take: indices must have shape (50,) as a mask of the rows, got (1,)"),
        ([1.5], TypeError, "take: indices must be an integer, an array of integers or a mask, got float64"),
        ("a", TypeError, "take: indices must be an integer, an array of integers or a mask, got str"),
        (slice(2), TypeError, "take: indices must be an integer, an array of integers or a mask, got slice"),
        (True, IndexError, "take: indices must have shape (50,) as a mask of the rows, got ()"),
        (
            np.array([1, 2**64 - 1], np.uint64),
            IndexError,
            "take: indices must be within the 50 rows, got 18446744073709551615",
        ),
    ):
        with pytest.raises(error) as caught:
            q.take(bad)
        assert text in str(caught.value)
    with pytest.raises(IndexError):
        q.take([77], out=before)
    assert not before.any()
    for bad, error, text in (
        ("a", TypeError, "QuantizedArray: index must be an integer, a slice"),
        ([[1]], ValueError, "QuantizedArray: index must have one axis, got shape (1, 1); take gives its numbers"),
        ([50], IndexError, "50"),
        (np.array([2**64 - 1], np.uint64), IndexError, "index must be within the 50 rows, got 18446744073709551615"),
        (True, IndexError, "QuantizedArray: index must have shape (50,) as a mask of the rows, got ()"),
        (np.False_, IndexError, "QuantizedArray: index must have shape (50,) as a mask of the rows, got ()"),
        ((1, 2), TypeError, "QuantizedArray: index must be of the first axis, got a tuple; np.asarray(q) has all axes"),
    ):
        with pytest.raises(error) as caught:
            q[bad]
        assert text in str(caught.value)
    with pytest.raises(TypeError, match="a 0-d array has no length"):
        mo.quantize(np.array(1.0)).take([0])
    with pytest.raises(ValueError, match=r"take: q must have axes, got shape \(\)"):
        mo.quantize(np.array(1.0)).take(0)


def test_indices_of_every_integer_dtype_and_byte_order_take_the_same_rows():
    q = mo.quantize(X, axis=0)
    want = q.dequantize()[[3, 0, 49]]
    for dtype in (*"bBhHiIlLqQ", ">i8", ">u2", ">i4"):
        indices = np.array([3, 0, 49]).astype(dtype)
        assert (q.take(indices) == want).all(), dtype
        assert (q[indices].dequantize() == want).all(), dtype


def test_it_has_what_arrays_have():
    q = mo.quantize(X.astype(np.float64), bits=4)
    assert (q.ndim, q.size, q.dtype, len(q)) == (2, 4800, np.float64, 50)
    assert (mo.quantize(X, format="mxfp4").dtype, mo.quantize(X).dtype) == (np.float32, np.float32)
    html = q._repr_html_()
    assert "<td>uint8</td><td>(50, 48)</td><td>2,400</td>" in html
    assert "bits=4" in html


def test_it_is_made_of_parts_with_what_is_left_out_found():
    codes = np.array([[1, -2], [3, 4]], np.int8)
    q = mo.QuantizedArray(codes, np.float32(0.5))
    assert (q.shape, q.scheme, q.scale.shape) == ((2, 2), "symmetric", ())
    assert np.asarray(q).tolist() == [[0.5, -1.0], [1.5, 2.0]]
    q = mo.QuantizedArray(codes.view(np.uint8), 0.5, np.uint8(1))
    assert q.scheme == "asymmetric"
    assert np.asarray(q)[0, 0] == 0.0
    q = mo.QuantizedArray(codes, 0.5, 1)
    assert q.zero_point.dtype == np.int8
    assert np.asarray(q).tolist() == [[0.0, -1.5], [1.0, 1.5]]
    q = mo.QuantizedArray(np.array([[0x21]], np.uint8), np.array([0.5], np.float32), bits=4, axis=0)
    assert q.shape == (1, 2)
    assert np.asarray(q).tolist() == [[0.5, 1.0]]
    q = mo.QuantizedArray(np.array([3], np.int8), 2.0)
    assert q.shape == (1,)
    assert np.asarray(q).tolist() == [6.0]
    made = mo.quantize(X, format="nf4")
    again = mo.QuantizedArray(made.codes, made.scale, bits=4, format="nf4", group_size=64)
    assert (np.asarray(again) == np.asarray(made)).all()
    assert again.shape == X.shape
    with pytest.raises(TypeError, match="QuantizedArray: scale must be a number or an array, got str"):
        mo.QuantizedArray(codes, "a")
    with pytest.raises(TypeError, match="QuantizedArray: codes must be a NumPy array, got list"):
        mo.QuantizedArray([1], 0.5)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_it_is_saved_copied_and_pickled_with_its_codes(options, tmp_path):
    q = mo.quantize(X, **options)
    q.save(tmp_path / "q.safetensors")
    for again in (mo.QuantizedArray.load(tmp_path / "q.safetensors"), pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        assert repr(again) == repr(q)
        assert again.parts.keys() == q.parts.keys()
        assert all((again.parts[name] == part).all() for name, part in q.parts.items())
        assert again.dequantize().tobytes() == q.dequantize().tobytes()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_mapped_one_is_the_same_and_stays_readable_when_its_file_is_replaced(options, tmp_path):
    path, q = tmp_path / "q.safetensors", mo.quantize(X, **options)
    q.save(path)
    mapped = mo.QuantizedArray.load(path, mmap=True)
    mo.quantize(-X, **options).save(path)
    path.unlink()
    assert mapped.dequantize().tobytes() == q.dequantize().tobytes()
    assert (mapped.take([3, 1]) == q.dequantize()[[3, 1]]).all()
    for part in mapped.parts.values():
        assert not part.flags.writeable
        assert part.flags.aligned
    with pytest.raises(ValueError, match="writeable"):
        mo.quantize(X, **options, out=mapped)


def test_how_one_is_loaded_is_a_yes_or_a_no(tmp_path):
    mo.quantize(X[:, :0]).save(tmp_path / "q.safetensors")
    assert mo.QuantizedArray.load(tmp_path / "q.safetensors", mmap=True).shape == (50, 0)
    with pytest.raises(TypeError, match="load: mmap must be a bool, got 'r'"):
        mo.QuantizedArray.load(tmp_path / "q.safetensors", mmap="r")


def test_processes_share_a_mapped_one(tmp_path):
    """What it takes of a process's own memory is next to nothing, after all of it was looked at."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    mo.quantize(np.ones((4096, 4096), np.float32), axis=0).save(tmp_path / "q.safetensors")
    code = """
import re, sys, modelopt_rs as mo
own = lambda: sum(map(int, re.findall(r"Private_Dirty: +(\\d+)", open("/proc/self/smaps").read())))
before = own()
q = mo.QuantizedArray.load(sys.argv[1], mmap=sys.argv[2] == "True")
assert mo.reduce.sum(q.codes) == 127 * 4096 * 4096
print(own() - before)
"""
    grown = [
        int(subprocess.check_output([sys.executable, "-c", code, tmp_path / "q.safetensors", mapped]))
        for mapped in ("True", "False")
    ]
    assert grown[0] < 8000 < 8000 + grown[0] < grown[1]  # KiB: modules that are imported, and the 16 MiB


def test_what_was_not_saved_so_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    save_file({"codes": X}, path)
    with pytest.raises(mo.FormatError, match="it is not a saved QuantizedArray"):
        mo.QuantizedArray.load(path)
    options = '{"bits": 8, "scheme": "symmetric", "shape": [60, 96], "axis": null, "group_size": null, "format": null}'
    for text in (options, options.replace("60", '"a"'), "{}", options.replace('"symmetric"', "[]")):
        parts = {"codes": np.zeros((50, 96), np.int8), "scale": np.ones(2, np.float32)}
        save_file(parts, path, {"modelopt_rs.quantized_array": text})
        with pytest.raises(mo.FormatError):
            mo.QuantizedArray.load(path)


# In a process of its own: other libraries of the tests have threads, which a fork must not meet.
FORK = """
import os, sys
import numpy as np
import modelopt_rs as mo
codes, scale = (np.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="r") for name in ("codes", "scale"))
q = mo.QuantizedArray(codes, scale, axis=0)
assert isinstance(q.codes, np.memmap)
want = q.dequantize()
for i in range(3):
    if os.fork() == 0:
        os._exit(0 if (q.take([i, 49]) == want[[i, 49]]).all() else 1)
print([os.wait()[1] for _ in range(3)])
"""


def test_forked_workers_share_a_table_that_is_mapped(tmp_path):
    for name, part in mo.quantize(X, axis=0).parts.items():
        np.save(tmp_path / f"{name}.npy", part)
    run = subprocess.run([sys.executable, "-c", FORK, tmp_path], capture_output=True, text=True, timeout=60)
    assert run.stdout == "[0, 0, 0]\n", run.stderr


def test_a_table_that_was_changed_is_looked_at_again():
    """A look-up keeps what it has checked; new parts, and parts changed in place, are seen."""
    q = mo.quantize(X, axis=0)
    before = q.take([1, 2])
    q.scale[1] *= 2
    assert (q.take(1) == 2 * before[0]).all()
    q.scale = q.scale * 3
    assert (q.take(2) == q.dequantize()[2]).all()
    q.codes = q.codes[::-1]
    assert (q.take([0, 49]) == q.dequantize()[[0, 49]]).all()
    q.codes.setflags(write=False)
    assert (q.take([0, 49]) == q.dequantize()[[0, 49]]).all()
    scale, q.scale = q.scale, q.scale.reshape(50, 1)
    with pytest.raises(ValueError, match=r"take: scale must have shape \(50,\), got \(50, 1\)"):
        q.take(1)
    q.scale = scale
    q.codes = q.codes.astype(np.int16)
    with pytest.raises(TypeError, match="take: codes must have dtype uint8 or int8, got int16"):
        q.take(1)


def test_a_table_that_was_used_is_pickled_and_copied():
    q = mo.quantize(X, bits=4, group_size=32)
    want = q.take([3])
    for again in (pickle.loads(pickle.dumps(q)), copy.copy(q), copy.deepcopy(q)):
        assert (again.take([3]) == want).all()
        assert again.scheme == q.scheme


def test_h54_rows_and_columns_together_are_no_rows():
    q = mo.quantize(np.ones((4, 4), np.float32))
    with pytest.raises(TypeError, match=r"index must be of the first axis, got a tuple; np\.asarray\(q\) has all axes"):
        q[1, 2]
