"""Reports as pages and pictures: whole in themselves, safe whatever a model is called, and true."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, weights, write
from modelopt_rs.operations import page
from modelopt_rs.operations.distributions import _levels, distributions
from modelopt_rs.report import pictures
from modelopt_rs.report.page import parts_of, to_html
from modelopt_rs.report.reports import Report

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


HOSTILE = '<img src=x onerror="alert(1)">$\\alpha$.weight'


@pytest.fixture
def report(tmp_path: Path) -> Report:
    source = write(tmp_path / "a.safetensors", {**bert(), HOSTILE: ("F32", weights((64, 64), 3))})
    return mo.quantize_file(source, tmp_path / "b.safetensors", bits=4)


class Page(HTMLParser):
    """The tags of a page, and the rows of its last table but what is in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def written(report: Report, path: Path, **options: object) -> str:
    mo.write_report(report, path, **options)
    return path.read_text()


def test_a_page_needs_nothing_from_elsewhere(report: Report, tmp_path: Path) -> None:
    parsed = Page(written(report, tmp_path / "r.html"))
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "img", "iframe", "object"), tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), attributes


def test_names_of_a_hostile_model_are_only_text(report: Report, tmp_path: Path) -> None:
    parsed = Page(written(report, tmp_path / "r.html", command=HOSTILE))
    assert all("onerror" not in attributes for _, attributes in parsed.tags)
    assert parsed.words.count(HOSTILE) >= 2  # in the table, and as the command


def test_a_page_has_every_tensor_and_every_figure_of_the_report(report: Report, tmp_path: Path) -> None:
    words = Page(written(report, tmp_path / "r.html")).words
    for tensor in report.tensors:
        assert tensor.name in words
        assert f"{tensor.bytes_after:,}" in words
        if tensor.sqnr_db is not None:
            assert f"{tensor.sqnr_db:.2f}" in words
    assert f"{report.totals.sqnr_db:.2f} dB" in words


def test_the_same_report_is_the_same_page(report: Report, tmp_path: Path) -> None:
    assert written(report, tmp_path / "r.html") == written(report, tmp_path / "s.html")
    for name in ("r.png", "s.png"):
        mo.write_report(report, tmp_path / name)
    assert (tmp_path / "r.png").read_bytes() == (tmp_path / "s.png").read_bytes()
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_that_of_the_report(report: Report, tmp_path: Path) -> None:
    assert written(report, tmp_path / "r.json") == report.to_json()


def test_distributions_count_the_weights_of_the_worst_tensors(report: Report, tmp_path: Path) -> None:
    found = distributions(report)
    lossy = sorted((t for t in report.tensors if t.sqnr_db is not None), key=lambda t: t.sqnr_db)
    assert [each.name for each in found] == [t.name for t in lossy[:3]]
    with (
        mo.files.open(tmp_path / "a.safetensors") as old,
        mo.files.open(tmp_path / "b.safetensors", dequantize=True) as new,
    ):
        for each in found:
            x, y = old.read(each.name), new.read(each.name)
            np.testing.assert_array_equal(each.before, np.histogram(x.astype(np.float64), each.edges)[0])
            np.testing.assert_array_equal(each.after, np.histogram(y.astype(np.float64), each.edges)[0])
            assert each.before.sum() >= 0.99 * x.size
            assert np.isin(each.levels, y).all()
            assert 2 <= len(each.levels) <= 16


def test_what_has_gone_or_was_replaced_is_not_drawn(report: Report, tmp_path: Path) -> None:
    again = mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "a.safetensors", bits=8, overwrite=True)
    assert distributions(again) == ()
    (tmp_path / "b.safetensors").unlink()
    assert distributions(report) == ()
    assert "Where the loss is greatest" not in written(report, tmp_path / "r.html")


def test_a_dry_run_says_that_nothing_was_written(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    text = written(mo.quantize_file(source, "", dry_run=True), tmp_path / "r.html")
    assert "A dry run: nothing was written" in text
    assert "Where the loss is greatest" not in text


@pytest.mark.parametrize("name", ["r", "r.htm", "r.txt", ".html"])
def test_a_report_is_html_png_or_json(report: Report, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^write_report: path must end in \.html, \.png or \.json, got '"):
        mo.write_report(report, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_missing_library_is_named(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    message = r'^write_report: a report in \.png needs matplotlib: pip install "modelopt_rs\[report\]"$'
    with pytest.raises(ImportError, match=message):
        mo.write_report(report, tmp_path / "r.png")
    mo.write_report(report, tmp_path / "r.json")


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^write_report: report must be "):
        mo.write_report({"tensors": []}, tmp_path / "r.html")


def test_inspect_and_compare_have_pages(report: Report, tmp_path: Path) -> None:
    looked = mo.inspect_file(tmp_path / "a.safetensors")
    words = Page(written(looked, tmp_path / "i.html")).words
    assert {tensor.name for tensor in looked.tensors} <= set(words)
    compared = mo.compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    words = Page(written(compared, tmp_path / "c.html")).words
    assert {f"{tensor.cosine:.6g}" for tensor in compared.tensors} <= set(words)
    assert "Where the loss is greatest" in words


def test_every_command_writes_a_page_with_its_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from modelopt_rs.cli import main

    a, b = write(tmp_path / "a.safetensors", bert()), tmp_path / "b.safetensors"
    lines = (
        ("quantize", a, "-o", b), ("prune", a, "--sparsity", "0.5", "-o", tmp_path / "c.safetensors"), ("inspect", a),
        ("compare", a, b), ("dequantize", b, "-o", tmp_path / "d.safetensors"),
    )  # fmt: skip
    for command, *rest in lines:
        out = tmp_path / f"{command}.html"
        assert main([command, *map(str, rest), "--report", str(out), "--json", f"{out}.json"]) == 0
        assert f"modelopt-rs {command} " in "".join(Page(out.read_text()).words)
        assert json.loads(Path(f"{out}.json").read_text())["schema"] == 1


def test_a_wrong_ending_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from modelopt_rs.cli import main

    source = write(tmp_path / "a.safetensors", bert())
    code = main(["quantize", str(source), "-o", str(tmp_path / "b.safetensors"), "--report", str(tmp_path / "r.pdf")])
    assert code == 2
    assert re.search(r"'--report': '.*r\.pdf' does not end in \.html or \.png", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_page_of_optimize_says_what_could_be_had(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    report = mo.optimize_file(source, tmp_path / "b.safetensors", target_bpw=5.0, durable=False)
    text = to_html(report)
    assert "tensors quantized" in text
    assert re.search(r"Sizes from [\d.]+ kB to [\d.]+ kB could be had. The loss at this one is 0\.\d+; at most", text)


def test_a_picture_that_stands_alone_says_what_its_colours_are(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = pictures.png
    monkeypatch.setattr(pictures, "png", lambda figure: drawn.append(figure) or draw(figure))
    mo.write_report(report, tmp_path / "r.png")
    mo.write_report(mo.inspect_file(report.source), tmp_path / "i.png")
    words = [[text.get_text() for each in figure.legends for text in each.get_texts()] for figure in drawn]
    assert words == [["before", "after"], ["weights before", "weights after", "levels"], []]
    assert not any(each.legends for each in (pictures.draw_sizes(parts_of(report)),))  # a page says it in words


@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (32, 16, 4, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_levels_are_those_of_a_group_whatever_axis_it_lies_along(shape: tuple[int, ...], turned: bool) -> None:
    rows = (shape[0], int(np.prod(shape[1:])))
    x = np.random.default_rng(0).standard_normal(rows).astype(np.float32)
    lying = np.ascontiguousarray(x.T) if turned else x
    y = mo.fake_quantize(lying, bits=4, group_size=32)
    assert 4 <= len(_levels(x, y.T if turned else y)) <= 15


def test_a_crop_has_no_columns_of_errors_that_it_does_not_have(tmp_path: Path) -> None:
    members = (mo.prune.Member("h.weight", 0), mo.prune.Member("out.weight", 1))
    tensors = {"h.weight": ("F32", weights((64, 8), 1)), "out.weight": ("F32", weights((8, 64), 2))}
    source = write(tmp_path / "a.safetensors", tensors)
    report = mo.crop_file(source, tmp_path / "b.safetensors", keep=0.5, groups=[mo.prune.Group("h", 64, members)])
    words = Page(written(report, tmp_path / "r.html")).words
    assert "bytes after" in words
    assert "SQNR, dB" not in words


def test_each_cell_says_its_column_where_a_window_has_no_room_for_columns(report: Report, tmp_path: Path) -> None:
    cells = [attributes for tag, attributes in Page(written(report, tmp_path / "r.html")).tags if tag == "td"]
    assert cells
    assert {each["data-label"] for each in cells} >= {"tensor", "why", "bytes before"}


@pytest.mark.parametrize(
    ("quantize", "parts"), [(False, ["cropped"]), (True, ["cropped and quantized: weight of a linear layer"])]
)
def test_tensors_that_are_cropped_to_other_shapes_are_drawn_as_one(
    tmp_path: Path, quantize: bool, parts: list[str]
) -> None:
    tensors = {"up.weight": ("F32", weights((64, 32), 1)), "down.weight": ("F32", weights((32, 64), 2))}
    source = write(tmp_path / "a.safetensors", tensors)
    members = (mo.prune.Member("up.weight", 0), mo.prune.Member("down.weight", 1))
    options = {"then": mo.QuantizeOptions(bits=4)} if quantize else {}
    report = mo.crop_file(
        source, tmp_path / "b.safetensors", keep=0.5, groups=[mo.prune.Group("h", 64, members)], **options
    )
    assert [part for part, *_ in parts_of(report)] == ["the whole model", *parts]


@pytest.mark.parametrize("are_made_up", [True, False])
def test_h22_figures_of_made_up_inputs_are_no_headline(tmp_path: Path, are_made_up: bool) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
    value, w = onnx.helper.make_tensor_value_info, np.ones((64, 64), np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", 1, [1, 64])], [value("y", 1, [1, 64])],
        [onnx.numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "a.onnx")
    given = {} if are_made_up else {"inputs": {"x": w[:1]}}
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", run=mo.RunOptions(rounds=1, **given))
    for each in (report, mo.compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx", run=mo.RunOptions(**given))):
        words = Page(text := written(each, tmp_path / f"{type(each).__name__}.html")).words
        assert ("speed" in words) == ("SQNR of outputs" in words) == (not are_made_up)
        assert {"time", "peak memory"} <= set(words)
        assert ("a smoke test" in text) == are_made_up


def test_reports_and_sources_show_themselves_in_a_line(report: Report, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    totals = report.totals
    sizes = f"{totals.bytes_before:,} -> {totals.bytes_after:,} bytes, SQNR {totals.sqnr_db:.2f} dB"
    paths = f"command='quantize', source={a!r}, output={b!r}"
    assert repr(report) == f"Report({paths}: {totals.changed} of {len(report.tensors)} tensors, {sizes})"
    compared = mo.compare_files(a, b)
    differ = f"{compared.changed} of {len(compared.tensors)} tensors differ"
    assert repr(compared).startswith(f"CompareReport(a={a!r}, b={b!r}: {differ}, SQNR ")
    seen = mo.inspect_file(a)
    what = f"{len(seen.tensors)} tensors, {seen.elements:,} elements, {seen.bytes:,} bytes, 0 non-finite"
    assert repr(seen) == f"InspectReport(source={a!r}: {what})"
    with mo.files.open(a) as source:
        assert repr(source) == f"SafetensorsSource({a!r}, {len(source.tensors)} tensors)"


def test_checkpoints_that_are_compared_have_their_sizes_in_the_picture_too(report: Report, tmp_path: Path) -> None:
    compared = mo.compare_files(report.source, report.output)
    assert compared.file_bytes == tuple(Path(each).stat().st_size for each in (report.source, report.output))
    mo.write_report(compared, tmp_path / "c.png")  # a picture of no sizes was an empty axis, and a warning
    mo.write_report(compared, tmp_path / "c.html")
    assert "<h2>Sizes</h2>" in (tmp_path / "c.html").read_text()
