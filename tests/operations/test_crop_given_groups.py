"""`crop_file` by groups that its user gives, where nothing knows the structure of a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import Tensors, directory, files_of, read, weights, write
from families import config_of
from modelopt_rs.errors import OptionError

CONFIG = {"model_type": "strange", "ffn": 24, "vision": {"width": [48, 7]}, "vocab_size": 11}


def strange(layers: int = 2) -> Tensors:
    """A model of layers that nobody knows: two products, and a convolution between them."""
    shapes: dict[str, tuple[int, ...]] = {"stem.weight": (8, 11)}
    for i in range(layers):
        shapes |= {
            f"trunk.{i}.wide.weight": (24, 8),
            f"trunk.{i}.wide.bias": (24,),
            f"trunk.{i}.mix.weight": (24, 1, 3),
        }
        shapes |= {f"trunk.{i}.narrow.weight": (8, 48)}
    return {name: ("F32", weights(shape, seed).astype(np.float32)) for seed, (name, shape) in enumerate(shapes.items())}


MEMBERS = [
    {"name": "trunk.*.wide.weight", "axis": 0},
    {"name": "trunk.*.wide.bias", "axis": 0},
    {"name": "trunk.*.mix.weight", "axis": 0},
    {"name": "trunk.*.narrow.weight", "axis": 1, "size": 2},
]
FILE = {
    "groups": [{"name": "trunk.*.ffn", "members": MEMBERS}],
    "numbers": {"ffn": "*.ffn", "vision.width.0": "trunk.0.ffn"},
}


def given(path: Path, content: Any = FILE) -> Path:
    path.write_text(json.dumps(content))
    return path


def plain(layers: int = 2) -> list[mo.prune.Group]:
    """The same groups as the array functions take them."""
    return [
        mo.prune.Group(
            f"trunk.{i}.ffn",
            24,
            tuple(
                mo.prune.Member(m["name"].replace("*", str(i)), m["axis"], size=m.get("size", 1), scored="bias" not in m["name"])  # noqa: E501
                for m in MEMBERS
            ),
        )
        for i in range(layers)
    ]  # fmt: skip


@pytest.mark.parametrize("keep", [0.75, {"trunk.0.*": 16, "trunk.1.*": 0.5}])
def test_given_groups_are_cropped_as_in_whole_arrays(tmp_path: Path, keep: Any) -> None:
    source = write(tmp_path / "a.safetensors", strange())
    want, _ = mo.prune.crop({name: x for name, (_, x) in strange().items()}, plain(), keep=keep)
    content = {"groups": FILE["groups"]}
    mo.crop_file(source, tmp_path / "b.safetensors", keep=keep, groups=given(tmp_path / "groups.json", content))
    mo.crop_file(source, tmp_path / "c.safetensors", keep=keep, groups=plain(), max_memory=20_000, threads=2)
    for out in ("b", "c"):
        got = read(tmp_path / f"{out}.safetensors")
        assert got.keys() == want.keys()
        for name, array in want.items():
            np.testing.assert_array_equal(got[name][1], array)


def test_numbers_of_the_config_that_count_units_change_with_them(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", strange(), CONFIG)
    report = mo.crop_file(source, tmp_path / "b", keep=16, groups=given(tmp_path / "groups.json"))
    assert config_of(tmp_path / "b") == CONFIG | {"ffn": 16, "vision": {"width": [32, 7]}}
    assert report.config == {"ffn": (24, 16), "vision": ({"width": [48, 7]}, {"width": [32, 7]})}
    assert report.notes == ()
    assert report.options["numbers"] == FILE["numbers"]
    mo.crop_file(source, tmp_path / "c", keep=16, groups=plain(), numbers=FILE["numbers"])
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")


def test_groups_that_no_number_counts_are_said(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", strange(), CONFIG)
    report = mo.crop_file(source, tmp_path / "b", keep=16, groups=plain(), numbers={"ffn": "trunk.0.ffn"})
    [note] = report.notes
    assert note == "no number of config.json counts the units of 'trunk.1.ffn': if there is one, say it in numbers"


def test_a_directory_without_a_config_stays_one(tmp_path: Path) -> None:
    source = directory(tmp_path / "a", strange(), CONFIG)
    (source / "config.json").unlink()
    report = mo.crop_file(source, tmp_path / "b", keep=16, groups=plain())
    assert not (tmp_path / "b" / "config.json").exists()
    assert report.notes == ()


def member(**changes: Any) -> Any:
    return {"groups": [{"name": "x.*", "members": [{"name": "trunk.*.wide.weight", "axis": 0} | changes]}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"groups must be a list of one or more objects, got None$"),
        ({"groups": []}, r"groups must be a list of one or more objects, got \[\]$"),
        ({"group": 1}, r"must have keys of groups, numbers, got 'group'$"),
        ({"groups": [1]}, r"groups\[0\] must be an object with name and members, got 1$"),
        ({"groups": [{"name": "a"}]}, r"groups\[0\] must have 'members', got none$"),
        ({"groups": [{"name": "a", "members": []}]}, r"groups\[0\]\.members must not be empty, got \[\]$"),
        ({"groups": [{"name": "a", "members": [3]}]}, r"groups\[0\]\.members\[0\] must be an object with name and axis"),  # noqa: E501
        (member(axis="0"), r"groups\[0\]\.members\[0\]\.axis must be an integer, got '0'$"),
        (member(axis=True), r"groups\[0\]\.members\[0\]\.axis must be an integer, got True$"),
        (member(scored=1), r"groups\[0\]\.members\[0\]\.scored must be true or false, got 1$"),
        (member(width=1), r"members\[0\] must have keys of name, axis, offset, size, scored, got 'width'$"),
        (member(axis=2), r"groups must name axes of their tensors, got axis 2 of 'trunk\.0\.wide\.weight' with shape \(24"),  # noqa: E501
        (member(size=7), r"must say the units of 'x\.\*' where they don't divide the axis, got 24 indices of"),
        (member(size=0), r"must say the units of 'x\.\*' where they don't divide the axis, got 24 indices of"),
        (member(offset=-1), r"Member: offset must be at least 0, got -1$"),
        ({"groups": [FILE["groups"][0] | {"units": 0}]}, r"Group 'trunk\.0\.ffn': units must be at least 1, got 0$"),
        (member(offset=1), r"must hold 24 units of 1 from index 1 on along axis 0, got shape \(24, 8\)"),
        (member(name="trunk.*.gone"), r"groups must name tensors .* got 'trunk\.\*\.gone', which none matches; it has 'st"),  # noqa: E501
        (member(name="stem.weight"), r"as many \* in the name 'x\.\*' as in that of the first member, got 'stem\.weight'$"),  # noqa: E501
        (FILE | {"numbers": 1}, r"numbers must be an object of groups by numbers, got 1$"),
        (FILE | {"numbers": {"ffn": "x"}}, r"numbers\['ffn'\] must name groups, got 'x', which none matches$"),
        (FILE | {"numbers": {"gone": "*"}}, r"numbers must name numbers of config\.json, got 'gone', which it has not$"),  # noqa: E501
        (FILE | {"numbers": {"ffn.x": "*"}}, r"numbers must name numbers of config\.json, got 'ffn\.x', which it has not$"),  # noqa: E501
        (FILE | {"numbers": {"model_type": "*"}}, r"'model_type' must be a multiple of the 24 units .* got 'strange'$"),
        (FILE | {"numbers": {"vocab_size": "*"}}, r"'vocab_size' must be a multiple of the 24 units .* got 11$"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, content: Any, message: str) -> None:
    source = directory(tmp_path / "a", strange(), CONFIG)
    groups = given(tmp_path / "groups.json", content)
    with pytest.raises(OptionError, match=message):
        mo.crop_file(source, tmp_path / "b", keep=0.5, groups=groups)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": plain(), "what": "ffn"}, "what must be left out where groups are given, got 'ffn'"),
        ({"what": "ffn", "numbers": {}}, "numbers must be left out without groups"),
        ({"groups": "groups.json", "numbers": {}}, "numbers must be left out where groups is a file"),
        ({}, "what must be of .*, got none"),
        ({"groups": plain(3)}, "groups must name tensors of the model, got 'trunk.2.wide.weight', which none"),
        ({"groups": [*plain(), *plain()]}, "groups must have names of their own, got 'trunk.0.ffn' twice"),
        ({"groups": plain(), "keep": {"*.0.*": 8, "*.1.*": 16}, "numbers": {"ffn": "*"}}, r"keep the same .* \[8, 16\] of 2"),  # noqa: E501
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, options: Any, message: str) -> None:
    source = directory(tmp_path / "a", strange(), CONFIG)
    with pytest.raises(OptionError, match=message):
        mo.crop_file(source, tmp_path / "b", **({"keep": 0.5} | options))
    assert not (tmp_path / "b").exists()


def test_numbers_want_a_config(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", strange())
    with pytest.raises(OptionError, match=r"config \(--config\) must be given, got none"):
        mo.crop_file(source, tmp_path / "b.safetensors", keep=16, groups=plain(), numbers={"ffn": "*"})
    config = given(tmp_path / "config.json", CONFIG)
    report = mo.crop_file(
        source, tmp_path / "b.safetensors", keep=16, groups=plain(), numbers={"ffn": "*"}, config=config
    )
    assert report.config == {"ffn": (24, 16)}


@pytest.mark.parametrize(("options", "said"), [({}, True), ({"round_to": 1}, False), ({"keep": 0.5}, False)])
def test_groups_that_rounding_leaves_whole_are_said(tmp_path: Path, options: Any, said: bool) -> None:
    source = write(tmp_path / "a.safetensors", strange())
    report = mo.crop_file(source, tmp_path / "b.safetensors", **({"keep": 0.9, "groups": plain()} | options))
    note = (
        "all 24 units of 'trunk.0.ffn' and 1 more stay: lengths are multiples of 8; "
        "round_to=1 (--round-to 1) takes the share as it is"
    )
    assert report.notes == ((note,) if said else ())
