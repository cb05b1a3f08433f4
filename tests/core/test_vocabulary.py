"""One name, one set of values and one default for each idea, over all functions, classes and commands."""

import importlib
import inspect
import pydoc
import types
import warnings
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import modelopt_rs as mo
import vocabulary
from modelopt_rs.deprecated import renamed

PUBLIC = vocabulary.public()


def literals(hint: Any) -> set[Any]:
    """The values that an annotation lists."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return set().union(*(literals(each) for each in get_args(hint)))
    return set()


def hints(function: Any) -> dict[str, Any]:
    given = function.__init__ if inspect.isclass(function) else function
    try:
        return get_type_hints(given)
    except (NameError, TypeError, AttributeError):
        return {}


def test_a_word_that_many_share_is_in_the_table() -> None:
    """A word of four or more functions has a row in `tests/shared/vocabulary.py`."""
    many = {word for word, names in vocabulary.users().items() if len(names) >= vocabulary.SHARED}
    assert many - {"self", "args", "kwargs", "common"} <= vocabulary.WORDS.keys()


def test_former_words_do_not_come_back() -> None:
    found = {word: names for word, names in vocabulary.users().items() if word in vocabulary.FORMER}
    assert found == {}


def test_a_word_has_the_values_of_the_table_everywhere() -> None:
    odd = []
    for name, function in PUBLIC.items():
        for word, hint in hints(function).items():
            values = vocabulary.WORDS.get(word, ("", ()))[1]
            if values and not literals(hint) <= {*values, None}:
                odd.append((name, word, literals(hint) - set(values)))
    assert odd == []


def test_words_of_whole_operations_have_one_default() -> None:
    words = ("threads", "max_memory", "verify", "overwrite", "dry_run", "durable", "include", "exclude", "out", "mask")
    words += ("rounding", "scale_dtype", "group_size", "damping", "block_size", "grad_scale", "clip_value")
    for word in words:
        defaults = {
            repr(parameter.default)
            for function in PUBLIC.values()
            for parameter in vocabulary.parameters(function)
            if parameter.name == word and parameter.default is not parameter.empty
        }
        assert len(defaults) == 1, (word, defaults)


def test_the_page_is_made_from_the_code() -> None:
    assert vocabulary.PAGE.read_text() == vocabulary.page(), "run python tests/shared/vocabulary.py"


@pytest.mark.parametrize("name", PUBLIC)
def test_help_shows_every_option_in_a_few_lines(name: str) -> None:
    """H63: the signature is short, has every option, and no types in it."""
    shown = str(inspect.signature(PUBLIC[name])) if vocabulary.parameters(PUBLIC[name]) else ""
    assert len(shown) <= 450
    assert "**" not in shown
    assert all(each.annotation is each.empty for each in vocabulary.parameters(PUBLIC[name]))


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_help_of_a_class_has_its_methods_without_types(name: str) -> None:
    """H63: `help(SGD)` showed a step of 540 characters, of a base class of the package too."""
    lines = pydoc.render_doc(PUBLIC[name], renderer=pydoc.plaintext).splitlines()
    methods = [line for line in lines if "(self, " in line or "(cls, " in line]
    assert not [line for line in methods if "ndarray[tuple" in line or "collections.abc." in line]


@pytest.mark.parametrize("module", [*vocabulary.MODULES, ".files"])
def test_dir_shows_what_is_public(module: str) -> None:
    names = importlib.import_module(f"modelopt_rs{module}")
    assert dir(names) == sorted(names.__all__)


# ------------------------------------------------------------------------------------------------ former names

W = np.arange(1.0, 9.0).reshape(2, 4)
FORMER = {
    "nan": (lambda: mo.prune.magnitude(W, nan="largest"), lambda: mo.prune.magnitude(W, nonfinite="largest")),
    "keep, group": (
        lambda: mo.prune.wanda(W, np.ones(4), keep=2, group=4),
        lambda: mo.prune.wanda(W, np.ones(4), n=2, m=4),
    ),
    "block": (
        lambda: mo.prune.sparsegpt(W, np.eye(4), 0.5, block=2),
        lambda: mo.prune.sparsegpt(W, np.eye(4), 0.5, block_size=2),
    ),
    "mask": (lambda: mo.prune.blocks(W, (1, 2), mask=True), lambda: mo.prune.blocks(W, (1, 2), mask="bool")),
    "block_size": (
        lambda: mo.quant.quantize_linear(W, np.ones((2, 2)), axis=1, block_size=2),
        lambda: mo.quant.quantize_linear(W, np.ones((2, 2)), axis=1, group_size=2),
    ),
    "schedule": (
        lambda: mo.prune.cubic(5, sparsity=0.5, begin=0, end=10),
        lambda: mo.prune.cubic(0.5, begin=0, end=10)(5),
    ),
    "schedule by name": (
        lambda: mo.prune.constant(step=5, sparsity=0.5),
        lambda: mo.prune.constant(0.5)(5),
    ),
    "coding": (
        lambda: mo.optim.BlockState.from_array(W.astype(np.float32), coding="four", signed=False).codes,
        lambda: mo.optim.BlockState.from_array(W.astype(np.float32), coding="dynamic4", signed=False).codes,
    ),
    "coding of an optimizer": (
        lambda: mo.optim.Adam(np.ones(4, np.float32), coding="float8").param_groups[0]["coding"],
        lambda: mo.optim.Adam(np.ones(4, np.float32)).param_groups[0]["coding"],
    ),
    "length": (
        lambda: mo.quant.unpack(np.uint8([33]), 4, n=2),
        lambda: mo.quant.unpack(np.uint8([33]), 4, length=2),
    ),
}


@pytest.mark.parametrize("name", FORMER)
def test_a_former_name_is_taken_with_a_warning_at_the_line_of_the_caller(name: str) -> None:
    old, new = FORMER[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = old()
    assert {each.category for each in caught} == {DeprecationWarning}
    assert all("is now" in str(each.message) and each.filename == __file__ for each in caught)
    np.testing.assert_array_equal(result, new())


def test_former_names_of_steps_and_attributes() -> None:
    bad = np.array([np.nan, 1.0], np.float32)
    with pytest.warns(DeprecationWarning, match="error_if_nonfinite"), pytest.raises(ValueError, match="grad"):
        mo.optim.sgd_step(np.ones(2, np.float32), bad, step=1, error_if_nonfinite=True)
    with pytest.warns(DeprecationWarning, match="error_if_nonfinite"), pytest.raises(ValueError, match="grad"):
        mo.optim.SGD([np.ones(2, np.float32)]).step([bad], error_if_nonfinite=True)
    small = mo.prune.compress(mo.prune.n_of_m(W), n=2, m=4)
    with pytest.warns(DeprecationWarning, match=r"GroupsArray\.keep is now GroupsArray\.n"):
        assert small.keep == 2
    hessian, norms = mo.prune.Hessian(), mo.prune.ColumnNorms()
    for each in (hessian, norms):
        each.update(W)
        with pytest.warns(DeprecationWarning, match="rows is now"):
            assert each.rows == each.count == 2
    with pytest.warns(DeprecationWarning, match="matrix"):
        np.testing.assert_array_equal(hessian.matrix(), hessian.second_derivative)
    with pytest.warns(DeprecationWarning, match="norm"):
        np.testing.assert_array_equal(norms.norm(), norms.norms)


def test_a_name_and_its_former_name_together_are_refused() -> None:
    with pytest.raises(TypeError, match="magnitude: nonfinite must be given once, got it as nan as well"):
        mo.prune.magnitude(W, nan="raise", nonfinite="raise")


def test_a_call_by_names_of_today_costs_no_more_than_a_look_at_its_keywords() -> None:
    @renamed(old="new")
    def function(new: int = 0) -> int:
        return new

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (function(), function(3), function(new=4)) == (0, 3, 4)
    with pytest.warns(DeprecationWarning, match="old is now new"):
        assert function(old=5) == 5


# ------------------------------------------------------------------------------- the same ideas everywhere


def test_dicts_are_taken_wherever_lists_are() -> None:
    rng = np.random.default_rng(0)
    made = lambda: {name: rng.standard_normal(5).astype(np.float32) for name in "ab"}  # noqa: E731
    p, g, m = made(), made(), {name: np.zeros(5, np.float32) for name in "ba"}
    lists = [[x.copy() for x in (d["a"], d["b"])] for d in (p, g, m)]
    mo.optim.lion_step(p, g, m, step=1)
    mo.optim.lion_step(*lists, step=1)
    np.testing.assert_array_equal([p["a"], p["b"], m["a"], m["b"]], [*lists[0], *lists[2]])
    average, other = made(), None
    other = [average["a"].copy(), average["b"].copy()]
    mo.optim.ema_step(average, p, decay=0.5)
    mo.optim.ema_step(other, lists[0], decay=0.5)
    np.testing.assert_array_equal([average["a"], average["b"]], other)
    pruned = mo.prune.global_magnitude(p, 0.5)
    np.testing.assert_array_equal(list(pruned.values()), mo.prune.global_magnitude(lists[0], 0.5))
    assert list(pruned) == ["a", "b"]
    assert mo.prune.global_magnitude(p, 0.5, out=p).keys() == p.keys()
    np.testing.assert_array_equal([p["a"], p["b"]], list(pruned.values()))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (({"a": W}, [W]), TypeError, r"accumulate_step: grad must be a dict like total, got"),
        (
            ({"a": W}, {"b": W}),
            ValueError,
            r"accumulate_step: grad must have the keys of total, got one that lacks 'a'",
        ),
        (({"a": W}, {"a": W, "b": W}), ValueError, r"got one that has 2 keys for 1"),
    ],
)
def test_dicts_that_do_not_go_together_are_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mo.optim.accumulate_step(*given)


def test_fake_quantize_works_in_place() -> None:
    for options in (
        {},
        {"bits": 4, "group_size": 2},
        {"format": "nf4"},
        {"rounding": "away", "scale": 0.1},
        {"search": "mse"},
    ):
        x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
        want = mo.fake_quantize(x, **options)
        assert mo.fake_quantize(x, out=x, **options) is x
        np.testing.assert_array_equal(x, want)
    x = np.array([1.0, np.nan], np.float32)
    with pytest.raises(ValueError, match="fake_quantize"):
        mo.fake_quantize(x, out=x)
    assert x[0] == 1.0
    x.flags.writeable = False
    with pytest.raises(ValueError, match="fake_quantize: out must be writable, got a read-only array"):
        mo.fake_quantize(x, nonfinite="saturate", out=x)


def test_statistics_are_taken_alike() -> None:
    x = np.random.default_rng(0).standard_normal((20, 4))
    made = [mo.prune.ColumnNorms(), mo.prune.InputStats(), mo.prune.Hessian()]
    for each in made:
        each.update(x)
        assert each.count == 20
    by_norms = mo.prune.wanda(W, made[0], 0.5)
    np.testing.assert_array_equal(by_norms, mo.prune.wanda(W, made[0].norms.astype(np.float64), 0.5))
    np.testing.assert_array_equal(by_norms, mo.prune.wanda(W, made[1], 0.5))
    with pytest.raises(ValueError, match="wanda: x_stats must come after an update, got none"):
        mo.prune.wanda(W, mo.prune.ColumnNorms(), 0.5)
    other = mo.prune.InputStats()
    other.merge(made[1])
    other.merge(mo.prune.InputStats())
    np.testing.assert_array_equal(other.products, made[1].products)
    with pytest.raises(ValueError, match=r"InputStats: x must have shape \(\.\.\., 4\), got"):
        other.update(x[:, :3])


def test_sizes_are_numbers_or_texts(tmp_path: Any) -> None:
    info = mo.files.TensorInfo("fc.weight", "F32", (64, 64), 4 * 64 * 64)
    with mo.files.SafetensorsSink(tmp_path / "a.safetensors", [info]) as sink:
        sink.write("fc.weight", np.ones((64, 64), np.float32))
        sink.commit()
    for size in (64 * 2**20, "64MiB"):
        mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", max_memory=size, overwrite=True)
    for size, said in ((0, "above 0, got 0"), (-5, "above 0, got -5"), ("0B", "at least one byte, got '0B'")):
        with pytest.raises(mo.OptionError, match=f"max_memory must be {said}"):
            mo.inspect_file(tmp_path / "a.safetensors", max_memory=size)
    with pytest.raises(ValueError, match=r"max_memory must be a size such as 256MiB, .*, got '12 furlongs'"):
        mo.inspect_file(tmp_path / "a.safetensors", max_memory="12 furlongs")


def test_every_function_of_files_and_graphs_takes_sizes_as_texts() -> None:
    """H64: `calibrate_file` and those of graphs took numbers alone."""
    taken = {
        name: function for name, function in PUBLIC.items() if "max_memory" in inspect.signature(function).parameters
    }
    assert len(taken) >= 10
    for name, function in taken.items():
        assert str in get_args(get_type_hints(function)["max_memory"]), name
