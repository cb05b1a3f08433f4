"""H57: an argument of the wrong type is refused by name, by every function on files and every class of options."""

import dataclasses
import inspect
import os
import re
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, files_of, write
from modelopt_rs.planning.crop import CropOptions

FUNCTIONS = {
    mo.quantize_file: {},
    mo.prune_file: {"sparsity": 0.5},
    mo.crop_file: {"keep": 0.5, "what": "ffn"},
    mo.optimize_file: {"target_bpw": 4.5},
    mo.dequantize_file: {},
    mo.compare_files: {},
    mo.inspect_file: {},
}
OPTIONS = {mo.QuantizeOptions: {}, mo.OnnxOptions: {}, mo.RunOptions: {}, CropOptions: {"keep": 0.5, "what": "ffn"}}
WRONG: tuple[Any, ...] = (None, "4", 4, 4.5, {"bits": 4}, [1], b"x", object(), np.zeros(2))


def takes(hint: Any, value: Any) -> bool:
    """Whether an annotation may take a value: by its text, which is what a reader has."""
    text = str(hint)
    fits = {
        type(None): "None" in text,
        str: "str" in text.replace("Sequence[str]", "") or "Literal" in text or text == "Any",
        int: bool(re.search(r"\bint\b|\bfloat\b|<class 'int'>|<class 'float'>", text)),
        float: "float" in text,
        dict: "Mapping" in text,
        list: "Sequence" in text or "Iterable" in text,
        bytes: "Iterable" in text,
        np.ndarray: "Iterable" in text,
    }
    return fits.get(type(value), False)


def cases() -> list[Any]:
    found = []
    for call, needed in {**FUNCTIONS, **OPTIONS}.items():
        hints = get_type_hints(call)
        hints.pop("return", None)
        names = [f.name for f in dataclasses.fields(call) if f.init] if inspect.isclass(call) else list(hints)
        for name in names:
            wrong = [value for value in WRONG if not takes(hints[name], value)]
            found.append(pytest.param(call, needed, name, wrong, id=f"{call.__name__}-{name}"))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("types") / "a.safetensors", bert())


@pytest.mark.parametrize(("call", "needed", "name", "wrong"), cases())
def test_h57_a_wrong_type_is_named(
    call: Any, needed: dict[str, Any], name: str, wrong: list[Any], source: Path
) -> None:
    arguments = dict(needed)
    if not inspect.isclass(call):
        for path in ("source_path", "path", "a", "b"):
            if path in inspect.signature(call).parameters:
                arguments[path] = source
        if "out_path" in inspect.signature(call).parameters:
            arguments["out_path"] = source.parent / "b.safetensors"
    before = files_of(source.parent)
    assert wrong or name == "calibrate"
    for value in wrong:
        with pytest.raises(TypeError, match=rf"^{call.__name__}: {name} must be (a|an|None) ?.*, got \S+") as caught:
            call(**{**arguments, name: value})
        assert "\n" not in str(caught.value)
    assert files_of(source.parent) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": "4"}, "quantize_file: bits must be an int, got '4'"),
        ({"bits": True}, "quantize_file: bits must be an int, got True"),
        ({"max_memory": 6.4}, "quantize_file: max_memory must be an int or a str, got 6.4"),
        ({"include": "fc.*"}, "quantize_file: include must be a sequence of str, got 'fc.*'"),
        ({"run": {"rounds": 0}}, "quantize_file: run must be a RunOptions or None, got dict"),
        ({"onnx": {"target": "portable"}}, "quantize_file: onnx must be an OnnxOptions or None, got dict"),
        ({"progress": 3}, "quantize_file: progress must be a callable or None, got 3"),
    ],
)
def test_h57_the_messages_say_what_came(arguments: dict[str, Any], message: str, source: Path) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        mo.quantize_file(source, source.parent / "b.safetensors", **arguments)


def test_h57_then_is_options_of_quantize(source: Path) -> None:
    with pytest.raises(TypeError, match=r"^prune_file: then must be a QuantizeOptions or None, got dict$"):
        mo.prune_file(source, source.parent / "b.safetensors", sparsity=0.5, then={"bits": 4})


def test_h57_what_numpy_and_paths_have_is_taken(source: Path, tmp_path: Path) -> None:
    class Path2(os.PathLike):
        def __fspath__(self) -> str:
            return str(source)

    report = mo.quantize_file(Path2(), tmp_path / "b.safetensors", bits=np.int64(8), max_memory=np.int32(1 << 26))
    assert report.totals.changed
    assert issubclass(mo.OptionError, ValueError)


def test_h57_calibration_data_mean_static_activations() -> None:
    assert mo.OnnxOptions(calibrate="data.npz").activations == "static"
    assert mo.OnnxOptions().activations == "none"
    with pytest.raises(mo.OptionError, match="calibrate must be left out with activations 'dynamic'"):
        mo.OnnxOptions(calibrate="data.npz", activations="dynamic")


def test_h57_calibration_data_of_a_file_of_weights_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(mo.OptionError, match=r"calibrate \(calibration data\) needs method 'gptq' or 'awq' for "):
        mo.quantize_file(source, tmp_path / "b.safetensors", onnx=mo.OnnxOptions(calibrate="data.npz"))


@pytest.mark.parametrize("name", ["b.onnx", "b.ONNX", "b.h5", "b.gguf", "b.pb", "b.bin"])
def test_h47_a_name_of_another_container_is_refused(source: Path, name: str) -> None:
    before = files_of(source.parent)
    message = rf"create: path must not end in \{name[1:]}, got .*{name}; what is made of .* is written as safetensors"
    for call in (mo.quantize_file, mo.dequantize_file, mo.prune_file):
        with pytest.raises(mo.OptionError, match=message):
            call(source, source.parent / name, **({"sparsity": 0.5} if call is mo.prune_file else {}))
    assert files_of(source.parent) == before
