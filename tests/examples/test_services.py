"""The services of the examples answer what they should, refuse what they should, and are measured by load."""

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
pytest.importorskip("matplotlib", reason="the extra `demo` is not installed")
if not sys.platform.startswith("linux"):
    pytest.skip("the load tests read /proc", allow_module_level=True)
import embedding_service
import load_test
import service
from digits import digits
from modelopt_rs.onnx.run.sessions import open_session

EXAMPLES = Path(service.__file__).parent


def run(name: str, *words: str) -> str:
    """What an example prints in a process of its own, which forks."""
    done = subprocess.run([sys.executable, EXAMPLES / name, *words], capture_output=True, text=True, timeout=1200)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def post_to(app: service.Application, body: bytes = b"", path: str = "/", **environ: str) -> tuple[str, Any]:
    """The status and the answer of an application, without a server."""
    given: dict[str, Any] = {}
    setup_testing_defaults(given)
    given |= {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(len(body)), "PATH_INFO": path, **environ}
    given["wsgi.input"] = io.BytesIO(body)
    statuses: list[str] = []
    answer = b"".join(app(given, lambda status, headers: statuses.append(status)))
    return statuses[0], json.loads(answer) if answer[:1] in b"[{" else answer


# ---- Photographs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return service.write(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [service.photograph(x, rng, 120, 150) for x in digits().held_out_x[:24]]


def test_codes_go_right_into_the_model_and_give_the_scores_that_floats_give(
    model: Path, photographs: list[np.ndarray]
) -> None:
    app = service.Digits(model, service.ours(model))
    for start in range(0, 24, 8):
        images = photographs[start : start + 8]
        app.read(images)
        coded = app.session.run(None, {app.input: app.batch})[0]
        floats = service.plan()(images)
        before = open_session(model.with_name("int8.onnx")).run(None, {"image": floats})[0]
        np.testing.assert_array_equal(coded, before)


@pytest.mark.parametrize("way", ["OpenCV", "NumPy"])
def test_the_same_codes_are_prepared_by_others(way: str, model: Path, photographs: list[np.ndarray]) -> None:
    if way == "OpenCV":
        pytest.importorskip("cv2", reason="the extra `bench` is not installed")
    dtype, (scale, _) = service.quantization(model)
    mine, theirs = np.zeros((2, 24, 3, service.SIDE, service.SIDE), dtype)
    service.ours(model)(photographs, mine)
    load_test.WAYS[way](model)(photographs, theirs)
    level = 1 / 255 / min(service.STD) / scale  # codes that one level makes
    differ = np.abs(mine.astype(np.int16) - theirs)
    assert differ.max() <= level + 1
    assert differ.mean() < 0.25  # OpenCV computes in whole numbers


def test_photographs_are_read(model: Path, photographs: list[np.ndarray]) -> None:
    app = service.Digits(model, service.ours(model))
    status, found = post_to(app, load_test.ppm(photographs[:8]))
    assert status == "200 OK"
    assert np.mean(np.array(found["digits"]) == digits().held_out_y[:8]) > 0.8
    # The batch of a request before is not read again.
    assert post_to(app, load_test.ppm(photographs[1:2])) == (status, {"digits": found["digits"][1:2]})
    assert post_to(app, b"") == (status, {"digits": []})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"GIF89a", "the body must be PPM files one after another"),
        (b"P6\n2 x\n255\n" + bytes(12), "the body must be PPM files one after another"),
        (b"P5\n2 2\n255\n" + bytes(12), "the body must be at most 8 PPM files of 8 bits (P6, 255)"),
        (b"P6\n2 2\n65535\n" + bytes(24), "the body must be at most 8 PPM files of 8 bits (P6, 255)"),
        (b"P6\n0 2\n255\n" + bytes(12), "the body must be at most 8 PPM files of 8 bits (P6, 255)"),
        (b"P6\n-2 2\n255\n" + bytes(12), "the body must be at most 8 PPM files of 8 bits (P6, 255)"),
        (9 * (b"P6\n1 1\n255\n" + bytes(3)), "the body must be at most 8 PPM files of 8 bits (P6, 255)"),
        (b"P6\n2 2\n255\n" + bytes(11), "an image of 2 x 2 must have 12 bytes, got 11"),
        (b"P6\n99999 99999\n255\n" + bytes(11), "an image of 99999 x 99999 must have 29999400003 bytes, got 11"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(body: bytes, message: str, model: Path) -> None:
    app = service.Digits(model, service.ours(model))
    assert post_to(app, body) == ("400 Bad Request", {"error": message})


def test_pixels_that_look_like_white_space_or_digits_are_pixels() -> None:
    pixels = np.frombuffer(b" \n\t 1 2 255\n", np.uint8).reshape(2, 2, 3)
    for image in service.images_of(load_test.ppm([pixels, pixels])):
        np.testing.assert_array_equal(image, pixels)


def test_other_requests_are_refused(model: Path) -> None:
    app = service.Digits(model, service.ours(model))
    assert post_to(app, REQUEST_METHOD="GET")[0] == "405 Method Not Allowed"
    assert post_to(app, CONTENT_LENGTH="")[0] == "405 Method Not Allowed"
    assert post_to(app, CONTENT_LENGTH="-1")[0] == "405 Method Not Allowed"
    assert post_to(app, CONTENT_LENGTH=str(1 << 27))[0] == "413 Content Too Large"


def test_a_load_test_compares_answers_measures_and_looks_at_memory(tmp_path: Path) -> None:
    words = ("--requests", "6", "--rounds", "2", "--workers", "2", "--images", "2", "--memory", "40")
    said = run("load_test.py", *words, "--size", "60", "80", "--picture", str(tmp_path / "a.svg"))
    assert "64 photographs: all services give the same answers" in said
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("| ")][1:]
    titles = [row[0].strip() for row in rows if not row[0].startswith(" -")]
    assert [titles[0], titles[-1]] == ["modelopt_rs", "NumPy"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:4] if not row[0].startswith(" -"))
    assert len(re.findall(r"40 requests: a worker had [\d.]+ MB of memory before, [\d.]+ after", said)) == 2
    assert (tmp_path / "a-dark.svg").exists()


FORK = """
import os, signal
from service import fork
print(*fork(lambda: None, 2).pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_what_forked_them_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, cwd=EXAMPLES, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    # They hold the pipes of that process, which end here only when they are ending.
    for path in (Path(f"/proc/{pid}/stat") for pid in pids):
        until = time.monotonic() + 30
        while path.exists() and path.read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < until
            time.sleep(0.05)


def test_answers_that_differ_end_a_load_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_test, "ask", lambda port, request: b'{"digits": [%d]}' % (port if request == b"b" else 1))
    services = {"one": service.Workers(1, []), "two": service.Workers(2, [])}
    assert load_test.same_answers(services, [b"a"]) == [[1]]
    with pytest.raises(SystemExit, match="two answers 1 of 2 requests otherwise than one"):
        load_test.same_answers(services, [b"a", b"b"])


def test_memory_that_grows_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(load_test, "load", lambda *_: None)
    held = iter([[10_000_000, 20_000_000], [10_000_000, 20_000_000 + load_test.MOST_GROWN + 1]])
    monkeypatch.setattr(load_test, "resident", lambda pids: next(held))
    args = load_test.argparse.Namespace(memory=5, clients=1)
    assert load_test.looked_for_growth(service.Workers(1, [1, 2]), [], args) == 1
    assert "1 workers have grown by more than 1048576 bytes" in capsys.readouterr().err


def test_what_a_process_holds_and_computes_is_read() -> None:
    mine = [os.getpid()]
    assert 10_000_000 < load_test.resident(mine)[0] < 20_000_000_000
    assert embedding_service.own(mine) <= load_test.resident(mine)[0] + 1e6
    assert load_test.cpu_seconds(mine) > 0


# ---- Embeddings


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[embedding_service.Table]:
    folder = tmp_path_factory.mktemp("tables")
    embedding_service.write(folder, (500, 32))
    return [kind(folder / name) for name, kind in embedding_service.TABLES.values()]


def test_rows_and_nearest_are_those_of_the_table(tables: list[embedding_service.Table]) -> None:
    coded, floats = (embedding_service.Embeddings(table) for table in tables)
    ids = np.array([3, 499, 3])
    status, body = post_to(floats, ids.tobytes(), "/rows")
    assert (status, body) == ("200 OK", tables[1].rows(ids).tobytes())
    near = np.frombuffer(post_to(coded, ids.tobytes(), "/rows")[1], np.float32).reshape(3, 32)
    np.testing.assert_allclose(near, tables[1].rows(ids), atol=0.01)
    vector = tables[1].rows(np.array([7]))[0]
    for app in (coded, floats):
        status, found = post_to(app, vector.tobytes(), "/nearest")
        assert (status, found[0], len(set(found))) == ("200 OK", 7, 10)
        products = tables[1].products(vector)[found]
        assert (np.diff(products) < 0.01).all()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rows", np.array([500]).tobytes(), "400"),
        ("/rows", b"abc", "400"),
        ("/nearest", b"abc", "400"),
        ("/nearest", bytes(4 * 31), "400"),
        ("/other", b"", "404"),
    ],
)
def test_wrong_questions_are_refused(
    path: str, body: bytes, status: str, tables: list[embedding_service.Table]
) -> None:
    for table in tables:
        said, found = post_to(embedding_service.Embeddings(table), body, path)
        assert said.startswith(status)
        assert found["error"]


def test_the_embedding_service_is_measured(tmp_path: Path) -> None:
    words = ("--requests", "6", "--rounds", "1", "--table", "2000", "64", "--picture", str(tmp_path / "a.svg"))
    said = run("embedding_service.py", *words)
    assert re.search(r"of the 10 nearest rows \d+\.\d% are the same as with floats", said)
    rows = [line for line in said.splitlines() if re.match(r"\| (modelopt_rs|NumPy)", line)]
    assert len(rows) == 4
    assert (tmp_path / "a.svg").exists()
