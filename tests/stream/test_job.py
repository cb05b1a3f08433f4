"""Jobs: what they make does not depend on where they run, on the order, or on how a tensor is cut among them."""

import pickle
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, directory, read, weights, write
from modelopt_rs.layouts.packed_encoder import PACK_QUANTIZED
from modelopt_rs.layouts.registry import layout_of
from modelopt_rs.planning.prune import PLAIN, PruneOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob, jobs_of, rewrite
from modelopt_rs.stream.model import Sink, TensorInfo
from modelopt_rs.stream.transform import Copy, Transform
from modelopt_rs.transforms.prune import Prune
from modelopt_rs.transforms.ranking import SharedThreshold

SHAPE = (96, 128)
INFO = TensorInfo("fc.weight", "F32", SHAPE, 4 * 96 * 128)


def encoder(**options: object) -> Transform:
    asked = QuantizeOptions(**options)  # type: ignore[arg-type]
    return asked.layout.encode(INFO, asked.layout.spec(asked), asked, None)


TRANSFORMS = {
    "copy": lambda: Copy(INFO),
    "8 bits": lambda: encoder(),
    "4 bits asymmetric": lambda: encoder(bits=4, scheme="asymmetric"),
    "2 bits": lambda: encoder(bits=2, group_size=32),
    "fp8": lambda: encoder(format="fp8_e4m3"),
    "fp8 blocks": lambda: encoder(format="fp8_e4m3", group_size=128),
    "mxfp4": lambda: encoder(format="mxfp4"),
    "nf4": lambda: encoder(format="nf4"),
    "rows pruned": lambda: Prune(INFO, PruneOptions(sparsity=0.5, scope="row"), PLAIN, None, Copy(INFO), None),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weights(SHAPE, 3))})


def made(path: Path, jobs: Iterable[TensorJob], transform: Transform) -> dict[str, bytes]:
    """What jobs write, put together by a sink."""
    with mo.files.SafetensorsSink(path, list(transform.outputs), durable=False) as sink:
        for job in jobs:
            for name, row, array in job.run(Execution(2**20, None, None, 0)):
                sink.write_at(name, row, array)
        sink.commit()
    with mo.files.open(path) as written:
        return {name: written.read(name).tobytes() for name in written.tensors}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_parts_of_a_tensor_in_any_order_make_the_bytes_of_the_whole(tmp_path: Path, source: Path, name: str) -> None:
    make = TRANSFORMS[name]
    with mo.files.open(source) as model:
        whole = made(tmp_path / "b.safetensors", [TensorJob(model, "fc.weight", make())], make())
        step = max(make().row_multiple, 32)
        ranges = [range(first, min(first + step, SHAPE[0])) for first in range(0, SHAPE[0], step)]
        parts = [TensorJob(model, "fc.weight", make(), rows) for rows in reversed(ranges)]
        assert made(tmp_path / "c.safetensors", parts, make()) == whole


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_pickled_job_makes_the_same_bytes(tmp_path: Path, source: Path, name: str) -> None:
    make = TRANSFORMS[name]
    with mo.files.open(source) as model:
        job = TensorJob(model, "fc.weight", make())
        copy = pickle.loads(pickle.dumps(job))
        want = made(tmp_path / "b.safetensors", [job], make())
        with copy.source:
            assert made(tmp_path / "c.safetensors", [copy], make()) == want


def run_elsewhere(job: TensorJob) -> list[tuple[str, int, np.ndarray]]:
    with job.source:
        return [(name, row, array.copy()) for name, row, array in job.run(Execution(2**20, 1, None, 0))]


class Processes:
    """An executor in other processes: what a cluster does."""

    def run(self, jobs: Iterable[TensorJob], sink: Sink, execution: Execution) -> None:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for rows in pool.map(run_elsewhere, jobs):
                for name, row, array in rows:
                    sink.write_at(name, row, array)


def test_an_executor_in_other_processes_writes_the_same_file(tmp_path: Path) -> None:
    source = directory(tmp_path / "model", bert())
    want = tmp_path / "here"
    mo.quantize_file(source, want, bits=4, scheme="asymmetric", durable=False)
    with mo.files.open(source) as model:
        options = QuantizeOptions(bits=4, scheme="asymmetric")
        spec = PACK_QUANTIZED.spec(options)
        stored = mo.files.Dequantized(mo.files.open(want)).specs
        transforms: dict[str, Transform] = {
            name: PACK_QUANTIZED.encode(info, spec, options, None) if name in stored else Copy(info)
            for name, info in model.tensors.items()
        }
        tensors = [info for transform in transforms.values() for info in transform.outputs]
        with mo.files.open(want) as here:
            metadata = dict(here.metadata)
        sink = mo.files.SafetensorsSink(tmp_path / "b.safetensors", tensors, metadata, durable=False)
        execution = Execution(2**20, None, None, 0)
        rewrite(model, sink, transforms, execution, verify=True, executor=Processes())
    assert (tmp_path / "b.safetensors").read_bytes() == (want / "model.safetensors").read_bytes()


def test_a_source_that_has_changed_is_not_opened_again(source: Path) -> None:
    with mo.files.open(source) as model:
        pickled = pickle.dumps(model)
    write(source, {"fc.weight": ("F32", weights(SHAPE, 4))})
    with pytest.raises(ValueError, match=r"a\.safetensors: has changed since it was opened"):
        pickle.loads(pickled)


def test_tensors_that_are_ranked_together_stay_in_one_process(source: Path) -> None:
    shared = SharedThreshold(32, 0, 0)
    transform = Prune(INFO, PruneOptions(sparsity=0.5, scope="global"), PLAIN, shared, Copy(INFO), None)
    with mo.files.open(source) as model, pytest.raises(TypeError, match="must be pruned in one process"):
        pickle.dumps(jobs_of(model, {"fc.weight": transform}))


@pytest.mark.parametrize("rows", [range(3, 96), range(32)])
def test_a_part_is_refused_where_all_rows_belong_together(source: Path, rows: range) -> None:
    ranked = Prune(INFO, PruneOptions(sparsity=0.5), PLAIN, None, Copy(INFO), None)
    with (
        mo.files.open(source) as model,
        pytest.raises(ValueError, match=r"TensorJob: rows must be all of 'fc.weight', got \d+ to \d+"),
    ):
        list(TensorJob(model, "fc.weight", ranked, rows).run(Execution(2**20, None, None, 0)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_declared_buffers_and_tiles_stay_within_the_budget(source: Path, name: str) -> None:
    transform, seen = TRANSFORMS[name](), []
    budget = 40_000 if transform.row_multiple < 100 else 200_000
    begin = transform.begin

    def noted(rows: int) -> None:
        seen.append(rows * INFO.row_nbytes + sum(buffer.nbytes(rows) for buffer in transform.buffers))
        begin(rows)

    transform.begin = noted  # type: ignore[method-assign]
    with mo.files.open(source) as model:
        for _ in TensorJob(model, "fc.weight", transform).run(Execution(budget, None, None, 0)):
            pass
    assert seen
    assert seen[0] <= budget


def test_every_format_has_one_layout() -> None:
    for name in ("fp8_e4m3", "mxfp4", "nvfp4", "nf4", "fp4"):
        assert name in layout_of(name).formats
    assert layout_of(None) is PACK_QUANTIZED


def test_rows_may_come_in_any_order_and_each_once(tmp_path: Path) -> None:
    x = weights((10, 4), 1)
    info = TensorInfo("x", "F32", (10, 4), 160)
    with mo.files.SafetensorsSink(tmp_path / "a.safetensors", [info], durable=False) as sink:
        sink.write_at("x", 6, x[6:])
        assert sink.next_row("x") == 0
        sink.write("x", x[:2])
        sink.write_at("x", 4, x[4:6])
        assert sink.next_row("x") == 2
        for row, rows in [(1, x[1:3]), (5, x[5:6]), (3, x[3:5])]:
            with pytest.raises(ValueError, match=r"write: tensor 'x': rows \d to \d are written already"):
                sink.write_at("x", row, rows)
        for row in (-1, 9):
            with pytest.raises(ValueError, match="write: tensor 'x' has 160 bytes, got 32 after"):
                sink.write_at("x", row, x[:2])
        with pytest.raises(ValueError, match="not all is written: tensor 'x' has 128 of 160 bytes"):
            sink.commit()
    with mo.files.SafetensorsSink(tmp_path / "a.safetensors", [info], durable=False) as sink:
        for row in (8, 2, 0, 6, 4):
            sink.write_at("x", row, x[row : row + 2])
        sink.commit()
    assert read(tmp_path / "a.safetensors")["x"][1].tobytes() == x.tobytes()
