"""What an earlier version has written is read by this one, to the same bits. The files are never written again."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo

FOLDERS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "source.safetensors").exists())
CHECKPOINTS = [path for folder in FOLDERS for path in sorted(folder.glob("*.safetensors"))]
OPTIMIZERS = [path for folder in FOLDERS for path in sorted(folder.glob("*.optim"))]
MODELS = [path for folder in FOLDERS for path in sorted(folder.glob("int*.onnx"))]


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_there_are_files_of_version_0_1() -> None:
    assert (len(CHECKPOINTS), len(OPTIMIZERS), len(MODELS)) >= (6, 3, 2)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=named)
def test_weights_are_the_same_bits(path: Path, tmp_path: Path) -> None:
    with mo.files.open(path, dequantize=True) as source, np.load(path.with_suffix(".npz")) as wanted:
        assert set(source.tensors) == set(wanted.files)
        for name in wanted.files:
            np.testing.assert_array_equal(source.read(name).view(np.uint32), wanted[name].view(np.uint32))
    if path.stem != "source":
        mo.dequantize_file(path, tmp_path / "plain.safetensors")
        with mo.files.open(tmp_path / "plain.safetensors") as plain, np.load(path.with_suffix(".npz")) as wanted:
            np.testing.assert_array_equal(plain.read("up.weight"), wanted["up.weight"])


@pytest.mark.parametrize("path", OPTIMIZERS, ids=named)
def test_optimizers_go_on_where_they_were(path: Path) -> None:
    with np.load(path.with_name(f"{path.stem}-steps.npz")) as steps:
        params = {"w": steps["before"].copy()}
        after = steps["after"]
    options = {"state_bits": 8, "state_min_size": 0} if path.stem.endswith("-8") else {}
    kind = mo.optim.Lion if path.stem == "lion" else mo.optim.AdamW
    optimizer = kind(params, lr=0.01, **options)
    optimizer.load(path)
    optimizer.step({"w": params["w"].copy()})
    np.testing.assert_array_equal(params["w"].view(np.uint32), after.view(np.uint32))


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra `onnx` is not installed")
@pytest.mark.parametrize("path", MODELS, ids=named)
def test_models_are_read_and_run(path: Path) -> None:
    report = mo.compare_files(path.with_name("source.onnx"), path, run=mo.RunOptions(rounds=0))
    assert report.run is not None
    assert report.run.sqnr_db is not None
    assert report.run.sqnr_db > (30 if path.stem == "int8" else 12)
