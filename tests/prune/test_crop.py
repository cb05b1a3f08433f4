"""`prune.crop`: exact counts, ties, order, groups of every kind, and the law that what is all zero is not missed."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo
import reference as ref
from modelopt_rs.prune import Group, Layer, Member


def weight(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def rows(n, name="rows", **options):
    return Group(name, n, (Member("w", 0),), **options)


# ----------------------------------------------------------------------------------------------------- choice


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 99))
def test_the_most_important_are_kept_in_their_order(n, keep, seed):
    tensors = {"w": weight(n, 3, seed=seed)}
    small, report = mo.prune.crop(tensors, [rows(n)], keep=keep, round_to=1)
    count = max(1, round(keep * n))
    norms = np.linalg.norm(tensors["w"].astype(np.float64), axis=1)
    want = np.sort(np.argsort(norms, kind="stable")[n - count :])
    assert report["rows"].kept.tolist() == want.tolist()
    np.testing.assert_array_equal(small["w"], tensors["w"][want])
    np.testing.assert_allclose(report["rows"].scores, norms, rtol=1e-12)
    assert sorted([*report["rows"].kept, *report["rows"].removed]) == list(range(n))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=30), st.integers(1, 30))
def test_b12_of_equal_units_the_first_goes_first(values, count):
    count = min(count, len(values))
    tensors = {"w": np.array(values, np.float32)[:, None]}
    _, report = mo.prune.crop(tensors, [rows(len(values))], keep=count)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    assert report["rows"].kept.tolist() == sorted(order[len(values) - count :])


@given(st.integers(1, 64), st.floats(0.01, 1.0), st.integers(1, 16), st.integers(1, 8))
def test_axes_become_multiples_of_round_to(n, keep, round_to, size):
    tensors = {"w": weight(n * size, 2)}
    group = Group("g", n, (Member("w", 0, size=size),))
    step = round_to // math.gcd(round_to, size)
    count = max(1, round(keep * n))
    if count < n and step > n:
        with pytest.raises(ValueError, match="round_to must be reached by"):
            mo.prune.crop(tensors, [group], keep=keep, round_to=round_to)
        return
    small, report = mo.prune.crop(tensors, [group], keep=keep, round_to=round_to)
    kept = len(report["g"].kept)
    if count == n:
        assert kept == n
        return
    assert small["w"].shape[0] == kept * size
    assert small["w"].shape[0] % round_to == 0
    assert kept > 0
    assert abs(kept - count) <= max(step - 1, step / 2) or kept == n // step * step


@given(st.integers(1, 64), st.floats(0.01, 1.0), st.integers(1, 8))
def test_fractions_give_multiples_of_8_where_a_shorter_one_exists(n, keep, size):
    tensors, group = {"w": weight(n * size, 2)}, Group("g", n, (Member("w", 0, size=size),))
    _, report = mo.prune.crop(tensors, [group], keep=keep)
    count, kept = max(1, round(keep * n)), len(report["g"].kept)
    if count == n or 8 // math.gcd(8, size) >= n:
        assert kept == count
    else:
        assert kept * size % 8 == 0
        assert 0 < kept <= n
        assert kept == len(mo.prune.crop(tensors, [group], keep=keep, round_to=8)[1]["g"].kept)


@given(st.integers(1, 40), st.data())
def test_numbers_are_taken_as_they_are(n, data):
    count = data.draw(st.integers(1, n))
    for keep in (count, {"r*": count}):
        report = mo.prune.plan_crop({"w": weight(n, 2)}, [rows(n)], keep=keep)
        assert len(report["rows"].kept) == count
    if n >= 8:
        report = mo.prune.plan_crop({"w": weight(n, 2)}, [rows(n)], keep=count, round_to=8)
        assert len(report["rows"].kept) == (n if count == n else min(max(1, round(count / 8)), n // 8) * 8)


def test_importance_is_the_norm_of_all_that_goes():
    tensors = {"a": weight(6, 5), "b": weight(3, 12, seed=1), "bias": weight(6)}
    members = (Member("a", 0), Member("b", 1, size=2), Member("bias", 0, scored=False))
    for norm in (1, 2, math.inf):
        report = mo.prune.plan_crop(tensors, [Group("g", 6, members)], norm=norm)
        parts = [np.concatenate([tensors["a"][u], tensors["b"][:, 2 * u : 2 * u + 2].ravel()]) for u in range(6)]
        want = [np.linalg.norm(part.astype(np.float64), norm) for part in parts]
        np.testing.assert_allclose(report["g"].scores, want, rtol=1e-12)


def test_importance_too_large_for_float64_is_infinite():
    tensors = {"a": np.array([[1e-3], [1e300]]), "b": np.array([[1.0, 1e300]])}
    report = mo.prune.plan_crop(tensors, [Group("g", 2, (Member("a", 0), Member("b", 1)))])
    assert report["g"].kept.tolist() == [1]


def test_scores_of_ones_own_decide():
    tensors = {"w": weight(4, 3), "int": np.arange(4)}
    group = Group("g", 4, (Member("w", 0), Member("int", 0)))
    small, report = mo.prune.crop(tensors, [group], keep=2, scores={"g": np.array([5, 1, 1, 9])})
    assert report["g"].kept.tolist() == [0, 3]
    assert small["int"].tolist() == [0, 3]


def test_keep_by_name_and_pattern():
    tensors = {name: weight(8, 2, seed=i) for i, name in enumerate("abcd")}
    groups = [Group(f"{name}.rows", 8, (Member(name, 0),)) for name in "abcd"]
    _, report = mo.prune.crop(tensors, groups, keep={"a.rows": 3, "[bc].*": 0.25})
    assert [len(group.kept) for group in report.groups] == [3, 2, 2, 8]


def test_blocks_keep_the_same_number_each():
    tensors = {"w": np.array([9, 8, 7, 6, 1, 2, 3, 4], np.float32)[:, None]}
    _, report = mo.prune.crop(tensors, [rows(8, blocks=2)], keep=0.5)
    assert report["rows"].kept.tolist() == [0, 1, 6, 7]
    _, report = mo.prune.crop(tensors, [rows(8, blocks=4)], keep=0.1)
    assert report["rows"].kept.tolist() == [0, 2, 5, 7]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.floats(0.01, 1.0), st.integers(0, 99))
def test_global_keeps_the_exact_number_of_the_relatively_best(sizes, keep, seed):
    # Layers of very different scales: relative to their means they are alike.
    tensors = {f"w{i}": weight(n, 4, seed=seed + i) * np.float32(10.0**i) for i, n in enumerate(sizes)}
    groups = [Group(f"w{i}", n, (Member(f"w{i}", 0),)) for i, n in enumerate(sizes)]
    report = mo.prune.plan_crop(tensors, groups, keep=keep, round_to=1, scope="global")
    assert sum(len(group.kept) for group in report.groups) == max(len(sizes), round(keep * sum(sizes)))
    # What was removed is nowhere better than what was kept, but for the one of each group that always stays.
    relative = [group.scores / group.scores.mean() for group in report.groups]
    removed = [score for group, s in zip(report.groups, relative, strict=True) for score in s[group.removed]]
    spare = [score for group, s in zip(report.groups, relative, strict=True) for score in np.sort(s[group.kept])[:-1]]
    assert max(removed, default=0) <= min(spare, default=math.inf)


def test_nan_importance_is_refused_or_removed_first():
    tensors = {"w": weight(4, 3)}
    tensors["w"][1, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"crop: scores of group 'rows' must not be NaN, got NaN for unit 1; nonfinite="
    ):
        mo.prune.crop(tensors, [rows(4)])
    for scope in ("group", "global"):
        small, report = mo.prune.crop(tensors, [rows(4)], keep=3, nonfinite="remove", scope=scope)
        assert report["rows"].removed.tolist() == [1]
        assert np.isfinite(small["w"]).all()


# ---------------------------------------------------------------------------------------------------- tensors


@given(st.data())
def test_crop_is_indexing_for_any_groups(data):
    """Several groups on several axes of several tensors, with offsets and unit sizes."""
    dtypes = [*ref.DTYPES, "int8", "bool"]
    tensors, places = {}, []
    for i in range(data.draw(st.integers(1, 3))):
        shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
        tensors[f"t{i}"] = weight(*shape, seed=i).astype(data.draw(st.sampled_from(dtypes)))
        places += [(f"t{i}", axis, n) for axis, n in enumerate(shape)]
    places = data.draw(st.lists(st.sampled_from(places), unique=True, min_size=1))
    groups, kept = [], {}
    for name, axis, n in places:
        size = data.draw(st.integers(1, n))
        units = data.draw(st.integers(1, n // size))
        offset = data.draw(st.integers(0, n - units * size))
        group = Group(f"{name}.{axis}", units, (Member(name, axis, offset, size),))
        chosen = data.draw(st.sets(st.integers(0, units - 1), min_size=1))
        groups.append(group)
        kept[group.name] = np.array(sorted(chosen))
    got = mo.prune.apply_crop(tensors, groups, kept)
    for name, tensor in tensors.items():
        want = tensor
        for group in groups:
            [member] = group.members
            if member.name == name:
                gone = [u for u in range(group.units) if u not in kept[group.name]]
                indices = [member.offset + u * member.size + i for u in gone for i in range(member.size)]
                want = np.delete(want, indices, axis=member.axis)
        assert got[name].dtype == tensor.dtype
        assert got[name].tobytes() == want.tobytes()
        assert got[name].shape == want.shape


def test_members_at_several_offsets_of_one_axis():
    fused = np.arange(12, dtype=np.float32).reshape(12, 1)  # queries, keys and values of 4 units each
    group = Group("heads", 2, tuple(Member("qkv", 0, offset, 2) for offset in (0, 4, 8)))
    small, _ = mo.prune.crop({"qkv": fused}, [group], keep=1)
    assert small["qkv"].ravel().tolist() == [2, 3, 6, 7, 10, 11]


def test_untouched_tensors_are_returned_as_they_are_and_shared_ones_stay_shared():
    tied = weight(4, 6)
    tensors = {"a": tied, "b": tied, "c": weight(3)}
    group = Group("g", 6, (Member("a", 1), Member("b", 1)))
    small, report = mo.prune.crop(tensors, [group])
    assert small["c"] is tensors["c"]
    assert small["a"] is small["b"]
    assert list(small) == list(tensors)
    whole, _ = mo.prune.crop(tensors, [group], keep=1.0)
    assert whole["a"] is tied
    assert report.shapes == {"a": ((4, 6), (4, 3)), "b": ((4, 6), (4, 3))}
    assert report.bytes_before == 2 * 96 + 12
    assert report.bytes_after == 2 * 48 + 12
    assert (report["g"].bytes_before, report["g"].bytes_after) == (192, 96)


def test_inputs_are_not_written():
    tensors = {"w": weight(8, 8)}
    before = tensors["w"].copy()
    small, _ = mo.prune.crop(tensors, [rows(8), Group("columns", 8, (Member("w", 1),))])
    assert not np.shares_memory(small["w"], tensors["w"])
    np.testing.assert_array_equal(tensors["w"], before)


def test_a_report_crops_a_second_set_of_tensors_alike():
    tensors, state = {"w": weight(8, 3)}, {"w": weight(8, 3, seed=1)}
    small, report = mo.prune.crop(tensors, [rows(8)], keep=3)
    moments = mo.prune.apply_crop(state, [rows(8)], report.kept)
    np.testing.assert_array_equal(moments["w"], state["w"][report["rows"].kept])
    again = mo.prune.apply_crop(tensors, [rows(8)], report.kept)
    np.testing.assert_array_equal(again["w"], small["w"])


# -------------------------------------------------------------------------------------- what is zero is not missed


def relu(x):
    return np.maximum(x, 0)


def mlp(tensors, x):
    names = [name for name in tensors if name.endswith("weight")]
    for i, name in enumerate(names):
        x = x @ tensors[name].T + tensors[name.replace("weight", "bias")]
        x = relu(x) if i < len(names) - 1 else x
    return x


@given(st.integers(0, 99), st.lists(st.integers(2, 9), min_size=3, max_size=5))
def test_units_of_zeros_are_not_missed_in_a_perceptron(seed, sizes):
    rng = np.random.default_rng(seed)
    weights = [f"{i}.weight" for i in range(len(sizes) - 1)]
    tensors = {}
    for i, name in enumerate(weights):
        tensors[name] = rng.standard_normal((sizes[i + 1], sizes[i]))
        tensors[f"{i}.bias"] = rng.standard_normal(sizes[i + 1])
    dead = [rng.permutation(n)[: n // 2] for n in sizes[1:-1]]
    for i, gone in enumerate(dead):
        tensors[weights[i]][gone] = 0
        tensors[weights[i + 1]][:, gone] = 0  # their biases may be anything: nothing reads them
    groups = mo.prune.mlp_groups(tensors, weights, [f"{i}.bias" for i in range(len(weights))])
    keep = {group.name: group.units - len(gone) for group, gone in zip(groups, dead, strict=True)}
    small, report = mo.prune.crop(tensors, groups, keep=keep)
    assert [sorted(gone) for gone in dead] == [group.removed.tolist() for group in report.groups]
    x = rng.standard_normal((7, sizes[0]))
    np.testing.assert_allclose(mlp(small, x), mlp(tensors, x), rtol=1e-12, atol=1e-12)


def conv(x, w, groups=1):
    """NCHW, stride 1, no padding, by the definition."""
    n, _, height, width = x.shape
    out, per_group, kh, kw = w.shape
    y = np.zeros((n, out, height - kh + 1, width - kw + 1))
    for o in range(out):
        first = o // (out // groups) * per_group
        for i, j in np.ndindex(kh, kw):
            part = x[:, first : first + per_group, i : i + y.shape[2], j : j + y.shape[3]]
            y[:, o] += np.einsum("nchw,c->nhw", part, w[o, :, i, j])
    return y


def batch_norm(x, tensors, name):
    gamma, beta, mean, var = (
        tensors[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * gamma + beta


NORM = ("weight", "bias", "running_mean", "running_var")
LAYERS = [
    Layer("conv1.weight", "conv1.bias", tuple(f"bn1.{part}" for part in NORM)),
    Layer("depth.weight", None, tuple(f"bn2.{part}" for part in NORM), depthwise=True),
    Layer("conv2.weight", "conv2.bias"),
    Layer("linear.weight", "linear.bias"),
]


def chain(tensors, x, channels_last=False):
    x = conv(x, tensors["conv1.weight"]) + tensors["conv1.bias"][:, None, None]
    x = relu(batch_norm(x, tensors, "bn1"))
    x = conv(x, tensors["depth.weight"], groups=x.shape[1])
    x = relu(batch_norm(x, tensors, "bn2"))
    x = relu(conv(x, tensors["conv2.weight"]) + tensors["conv2.bias"][:, None, None])
    x = x.transpose(0, 2, 3, 1) if channels_last else x
    return x.reshape(len(x), -1) @ tensors["linear.weight"].T + tensors["linear.bias"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_units_of_zeros_are_not_missed_in_a_chain_of_convolutions(channels_last):
    rng = np.random.default_rng(0)
    shapes = {"conv1.weight": (6, 3, 3, 3), "conv1.bias": (6,), "depth.weight": (12, 1, 3, 3)}
    shapes |= {"conv2.weight": (5, 12, 1, 1), "conv2.bias": (5,), "linear.weight": (4, 5 * 4 * 4), "linear.bias": (4,)}
    shapes |= {f"bn1.{part}": (6,) for part in NORM} | {f"bn2.{part}": (12,) for part in NORM}
    tensors = {name: np.abs(rng.standard_normal(shape)) - 0.5 * ("var" not in name) for name, shape in shapes.items()}
    tensors["conv1.weight"][[1, 4]] = 0
    tensors["depth.weight"][[2, 3, 8, 9]] = 0  # two for each channel
    tensors["conv2.weight"][:, [2, 3, 8, 9]] = 0
    tensors["conv2.weight"][3] = 0
    pixels = tensors["linear.weight"].reshape(4, 16, 5) if channels_last else tensors["linear.weight"].reshape(4, 5, 16)
    (pixels[:, :, 3] if channels_last else pixels[:, 3])[...] = 0
    groups = mo.prune.chain_groups(tensors, LAYERS, channels_last=channels_last)
    assert [(group.name, group.units) for group in groups] == [("conv1.weight", 6), ("conv2.weight", 5)]
    small, report = mo.prune.crop(tensors, groups, keep={"conv1.weight": 4, "conv2.weight": 4})
    assert [group.removed.tolist() for group in report.groups] == [[1, 4], [3]]
    assert small["depth.weight"].shape == (8, 1, 3, 3)
    assert small["bn2.running_var"].shape == (8,)
    assert small["linear.weight"].shape == (4, 64)
    x = rng.standard_normal((2, 3, 8, 8))
    want = chain(tensors, x, channels_last)
    np.testing.assert_allclose(chain(small, x, channels_last), want, rtol=1e-12, atol=1e-12)


def test_a_perceptron_of_keras():
    tensors = {"a": weight(4, 6), "b": weight(6, 3)}
    groups = mo.prune.mlp_groups(tensors, ["a", "b"], transposed=True)
    small, _ = mo.prune.crop(tensors, groups)
    assert (small["a"].shape, small["b"].shape) == ((4, 3), (3, 3))


# --------------------------------------------------------------------------------------------------- messages

W = {"w": weight(4, 6), "int": np.arange(4), "list": [1, 2]}
ROWS = [rows(4)]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Member(1, 0), TypeError, "Member: name must be a string, got int"),
        (lambda: Member("w", "x"), TypeError, "Member: axis must be an integer, got 'x'"),
        (lambda: Member("w", 0, -1), ValueError, "Member: offset must be at least 0, got -1"),
        (lambda: Member("w", 0, size=0), ValueError, "Member: size must be at least 1, got 0"),
        (lambda: Group(1, 4, (Member("w", 0),)), TypeError, "Group: name must be a string, got int"),
        (lambda: Group("g", 0, (Member("w", 0),)), ValueError, "Group 'g': units must be at least 1, got 0"),
        (lambda: Group("g", 2.0, (Member("w", 0),)), TypeError, "Group 'g': units must be an integer, got 2.0"),
        (lambda: Group("g", 4, ()), ValueError, "Group 'g': members must not be empty, got ()"),
        (lambda: Group("g", 4, ("w",)), TypeError, "Group 'g': members must be of Member, got str"),
        (lambda: rows(4, blocks=3), ValueError, "Group 'rows': blocks must divide the 4 units, got 3"),
        (lambda: mo.prune.crop(W, ["w"]), TypeError, "crop: groups must be of Group, got str"),
        (
            lambda: mo.prune.crop(W, [rows(4)] * 2),
            ValueError,
            "crop: groups must have names of their own, got 'rows' twice",
        ),
        (
            lambda: mo.prune.crop({}, ROWS),
            ValueError,
            "crop: group 'rows': tensor 'w' must be among the tensors, got none of that name",
        ),
        (
            lambda: mo.prune.crop(W, [Group("g", 2, (Member("list", 0),))]),
            TypeError,
            "crop: group 'g': tensor 'list' must be a NumPy array, got list",
        ),
        (
            lambda: mo.prune.crop({"w": mo.files.TensorInfo("w", "F32", (4, 6), 96)}, ROWS),
            TypeError,
            "crop: group 'rows': tensor 'w' must be a NumPy array, got TensorInfo",
        ),
        (
            lambda: mo.prune.crop(W, [Group("g", 4, (Member("w", 2),))]),
            ValueError,
            "crop: group 'g': tensor 'w' must have an axis 2, got shape (4, 6)",
        ),
        (
            lambda: mo.prune.crop(W, [Group("g", 2, (Member("w", 1, 2, 3),))]),
            ValueError,
            "crop: group 'g': tensor 'w' must hold 2 units of 3 from index 2 on along axis 1, got shape (4, 6)",
        ),
        (
            lambda: mo.prune.crop(W, [rows(4), Group("g", 2, (Member("w", -2, 2),))]),
            ValueError,
            "crop: groups must not overlap, got those of 'rows' and 'g' on axis 0 of 'w' at index 2",
        ),
        (
            lambda: mo.prune.crop(W, [Group("g", 4, (Member("int", 0),))]),
            TypeError,
            "crop: group 'g': tensor 'int' must be floats to be scored, got int64; give scores['g'], or make",
        ),
        (
            lambda: mo.prune.crop(W, [Group("g", 4, (Member("w", 0, scored=False),))]),
            ValueError,
            "crop: group 'g' must have a scored member, got none; or give scores['g']",
        ),
        (lambda: mo.prune.crop(W, ROWS, keep=0.0), ValueError, "crop: keep must be above 0 and at most 1, got 0.0"),
        (lambda: mo.prune.crop(W, ROWS, keep=1.5), ValueError, "an int is a number of units"),
        (
            lambda: mo.prune.crop(W, ROWS, keep=math.nan),
            ValueError,
            "crop: keep must be above 0 and at most 1, got nan",
        ),
        (lambda: mo.prune.crop(W, ROWS, keep=5), ValueError, "crop: keep must be from 1 to the 4 of 'rows', got 5"),
        (lambda: mo.prune.crop(W, ROWS, keep=True), TypeError, "crop: keep must be a float (a fraction) or an int"),
        (
            lambda: mo.prune.crop(W, ROWS, keep={"x*": 1}),
            ValueError,
            "crop: keep must name groups, got 'x*', which none",
        ),
        (lambda: mo.prune.crop(W, ROWS, keep={"rows": 0}), ValueError, "crop: keep['rows'] must be from 1 to the 4"),
        (
            lambda: mo.prune.crop(W, [rows(4, blocks=2)], keep=3),
            ValueError,
            "crop: keep must be a multiple of the 2 blocks of 'rows', got 3",
        ),
        (
            lambda: mo.prune.crop(W, ROWS, round_to=8),
            ValueError,
            "crop: round_to must be reached by the 4 units of group 'rows', got 8, for which 8 are needed",
        ),
        (lambda: mo.prune.crop(W, ROWS, round_to=0), ValueError, "crop: round_to must be at least 1, got 0"),
        (lambda: mo.prune.crop(W, ROWS, round_to=2.0), TypeError, "crop: round_to must be an integer, got 2.0"),
        (lambda: mo.prune.crop(W, ROWS, scope="all"), ValueError, "crop: scope must be 'group' or 'global', got 'all'"),
        (lambda: mo.prune.crop(W, ROWS, norm=3), ValueError, "crop: norm must be 1, 2 or inf, got 3"),
        (
            lambda: mo.prune.crop(W, ROWS, nonfinite="x"),
            ValueError,
            "crop: nonfinite must be 'raise' or 'remove', got 'x'",
        ),
        (lambda: mo.prune.crop(W, ROWS, scores={"x": [1]}), ValueError, "crop: scores must name groups, got 'x'"),
        (
            lambda: mo.prune.crop(W, ROWS, scores={"rows": np.ones(3)}),
            ValueError,
            "crop: scores['rows'] must have shape (4,), got (3,)",
        ),
        (
            lambda: mo.prune.crop(W, ROWS, scores={"rows": ["a"] * 4}),
            TypeError,
            "crop: scores['rows'] must be numbers, got dtype <U1",
        ),
        (
            lambda: mo.prune.plan_crop(W, ROWS, keep=9),
            ValueError,
            "plan_crop: keep must be from 1 to the 4 of 'rows', got 9",
        ),
        (lambda: mo.prune.apply_crop(W, ROWS, {"x": [0]}), ValueError, "apply_crop: kept must name groups, got 'x'"),
        (
            lambda: mo.prune.apply_crop(W, ROWS, {"rows": [0.5]}),
            TypeError,
            "apply_crop: kept['rows'] must be a 1-d array of integers, got float64 of shape (1,)",
        ),
        (
            lambda: mo.prune.apply_crop(W, ROWS, {"rows": [1, 1]}),
            ValueError,
            "apply_crop: kept['rows'] must be one or more ascending units from 0 to below 4, got [1, 1]",
        ),
        (lambda: mo.prune.apply_crop(W, ROWS, {"rows": [4]}), ValueError, "units from 0 to below 4, got [4]"),
        (lambda: mo.prune.apply_crop(W, ROWS, {"rows": np.zeros(0, int)}), ValueError, "one or more ascending units"),
        (
            lambda: mo.prune.mlp_groups(W, ["w"], ["a", "b"]),
            ValueError,
            "mlp_groups: biases must have 1 names like weights",
        ),
        (
            lambda: mo.prune.mlp_groups(W, ["w", "w"]),
            ValueError,
            "mlp_groups: layer 'w' must have a multiple of the 4 outputs before it as inputs, got 6",
        ),
        (
            lambda: mo.prune.mlp_groups(W, ["w", "x"]),
            ValueError,
            "layer 'x' must be an array among the tensors, got none",
        ),
        (lambda: mo.prune.mlp_groups(W, ["int", "w"]), ValueError, "layer 'w' must have a multiple of the 4 outputs"),
        (lambda: mo.prune.mlp_groups(W, ["w", "int"]), ValueError, "layer 'int' must have an axis 1, got shape (4,)"),
        (
            lambda: mo.prune.chain_groups(W, []),
            ValueError,
            "chain_groups: layers must begin and end with a layer that is",
        ),
        (lambda: mo.prune.chain_groups(W, ["w", "w"]), TypeError, "chain_groups: layers must be of Layer, got str"),
        (
            lambda: mo.prune.chain_groups(W, [Layer("w"), Layer("w", depthwise=True)]),
            ValueError,
            "is not depthwise, got a depthwise one at an end",
        ),
        (
            lambda: mo.prune.chain_groups(
                {"a": weight(4, 1), "b": weight(6, 1), "c": weight(2, 6)},
                [Layer("a"), Layer("b", depthwise=True), Layer("c")],
            ),
            ValueError,
            "chain_groups: layer 'b' must have a multiple of the 4 channels before it as outputs, got 6",
        ),
    ],
)
def test_messages(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_a_report_does_not_know_other_groups():
    with pytest.raises(KeyError):
        mo.prune.plan_crop(W, ROWS)["x"]


def test_a_number_of_units_that_reads_as_per_cent_is_refused():
    """H62: of 2,000 units keep=50 is 2.5 %, not half."""
    tensors = {"a.weight": np.ones((2000, 3), np.float32), "b.weight": np.ones((3, 2000), np.float32)}
    groups = mo.prune.mlp_groups(tensors, ["a.weight", "b.weight"], [None, None])
    with pytest.raises(ValueError, match=r"got the int 50: 50 of the 2,000 of .*; 50 % are 0.5; if so few"):
        mo.prune.crop(tensors, groups, keep=50)
