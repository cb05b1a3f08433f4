"""Try a built wheel as users have it: `python ci/check_wheel.py FOLDER [--suite]`.

The wheel is audited, and installed into fresh virtual environments of every CPython that is here, with the oldest
versions of what it needs and with the newest. In each a few commands are run in an empty folder, with `--suite` the
whole test suite too; with the first CPython the tutorials as they stand. The source archive must hold what a build
needs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "0.1"
MAX_BYTES = 4_000_000
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = (
    *("hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "safetensors>=0.5", "scikit-learn>=1.4"),
    *("h5py>=3.11", "jinja2>=3.1", "matplotlib>=3.8"),
)
# What the tests look at, without the package and its sources.
FOLDERS = ("tests", "examples", "docs", "ci", ".ci", ".github")
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
    "pyproject.toml",
    "Cargo.toml",
    "Makefile",
)
COMMANDS = (
    ("info",),
    ("--version",),
    ("inspect", "source.safetensors"),
    ("quantize", "source.safetensors", "-o", "small.safetensors", "--bits", "4"),
    ("compare", "source.safetensors", "small.safetensors"),
    ("dequantize", "small.safetensors", "-o", "plain.safetensors"),
    ("prune", "source.safetensors", "-o", "sparse.safetensors", "--n-of-m", "2:4"),
    ("quantize", "source.onnx", "-o", "small.onnx", "--bits", "8"),
    ("compare", "source.onnx", "small.onnx"),
)
BLOCK = re.compile(r"^```(\S+)(?: skip)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = """
import numpy as np, modelopt_rs as mo
assert "site-packages" in mo.__file__, mo.__file__
w = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
assert abs(mo.quantize(w, bits=4, group_size=32).dequantize() - w).max() < 0.08
params = {"w": np.zeros((8, 8), np.float32)}
mo.optim.AdamW(params, lr=0.1, state_bits=8).step({"w": np.ones((8, 8), np.float32)})
assert (params["w"] < 0).all()
print("arrays and optimizers work with NumPy", np.__version__)
"""

# CPython 3.13 and older end a thread that comes back from a call while they exit by unwinding it.
EXIT = """
import threading, numpy as np, modelopt_rs as mo
x, inside = np.ones(1 << 22, np.float32), threading.Event()
def loop():
    while True:
        mo.reduce.sum(x)
        inside.set()
threading.Thread(target=loop, daemon=True).start()
inside.wait()
"""


def say(text: str) -> None:
    """Print a line now."""
    print(f"== {text}", flush=True)


def run(*command: str | Path, cwd: Path | None = None, quiet: bool = True) -> str:
    """Run a command without what this shell says about Python; show its output if it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    stream = subprocess.PIPE if quiet else None
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, stdout=stream, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout or ''}")
    return done.stdout or ""


def audit(wheel: Path) -> None:
    """Check that every Linux since glibc 2.28 and every CPython since 3.11 can load it, and what is in it."""
    tools = Path(sys.executable).parent
    said = run(tools / "auditwheel", "show", wheel)
    tag = re.search(r'platform tag:\s+"manylinux_2_(\d+)_x86_64"', said)
    assert tag, said
    assert int(tag[1]) <= 28, said
    say(f"auditwheel: loads with glibc 2.{tag[1]}")
    run(tools / "abi3audit", "--strict", wheel)
    say("abi3audit --strict has nothing to say")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        boms = [name for name in names if "/sboms/" in name]
        assert len(boms) == 1, boms
        parts = {part["name"] for part in json.loads(archive.read(boms[0]))["components"]}
        assert {"pyo3", "rayon", "numpy"} <= parts, parts
        assert any(name.endswith("licenses/LICENSE") for name in names)
        assert "modelopt_rs/py.typed" in names
        assert "modelopt_rs/_core.pyi" in names
    assert wheel.stat().st_size < MAX_BYTES, wheel.stat().st_size
    say(f"{wheel.name}: {wheel.stat().st_size:,} bytes, a CycloneDX list of {len(parts)} parts")


def check_sdist(archive: Path) -> None:
    """Check that the source archive has what a build needs, and no more than is in the repository."""
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for needed in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE", "src/lib.rs"):
        assert needed in names, needed
    assert "python/modelopt_rs/__init__.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    say(f"{archive.name}: {len(names)} files")


def interpreters() -> list[tuple[str, str]]:
    """Find the CPythons that are here, by version: in the path, and those of pyenv."""
    found = {}
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}")]
        candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")))
        for path in filter(None, candidates):
            asked = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
            done = subprocess.run([path, "-c", asked], capture_output=True, text=True)
            if done.stdout.strip() == f"{version} cpython":
                found.setdefault(version, path)
    return list(found.items())


def environment(python: str, folder: Path, wheel: Path, constraints: Path | None, extras: str) -> Path:
    """Make a virtual environment with the wheel in it; return its Python."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    options = ["-c", str(constraints)] if constraints else []
    run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, f"{wheel}[{extras}]")
    return inside


def smoke(inside: Path, folder: Path) -> None:
    """Run commands in an empty folder."""
    folder.mkdir()
    for name in ("source.safetensors", "source.onnx"):
        shutil.copy(GOLDEN / name, folder)
    say(run(inside, "-W", "error", "-c", PYTHON, cwd=folder).strip())
    for _ in range(5):
        run(inside, "-c", EXIT, cwd=folder)
    for command in COMMANDS:
        run(inside.parent / "modelopt-rs", *command, cwd=folder)
    plain = (folder / "small.safetensors").stat().st_size, (folder / "source.safetensors").stat().st_size
    assert plain[0] < 0.5 * plain[1], plain


def tutorial(python: str, folder: Path, wheel: Path, page: Path) -> None:
    """Do what a tutorial says, from its line of installation on, with this wheel for the one of the registry."""
    folder.mkdir()
    # What is no session of Python needs guests, torch for one; the tests run it where they are.
    blocks = [(kind, text) for kind, text in BLOCK.findall(page.read_text()) if kind == "sh" or text.startswith(">>> ")]
    assert blocks[0][1].startswith("python -m venv try && . try/bin/activate\npip install"), page
    script = ["set -eu"]
    for kind, text in blocks:
        lines = [line[4:] for line in text.splitlines() if line.startswith((">>> ", "... "))]
        script.append(text if kind == "sh" else "python - <<'PYTHON'\n" + "\n".join(lines) + "\nPYTHON")
    script[1] = script[1].replace("python -m venv", f"{python} -m venv", 1).replace('"modelopt_rs[', f'"{wheel}[', 1)
    run("bash", "-c", "\n".join(script), cwd=folder)
    say(f"{page.name}: every command works as it stands")


def suite(inside: Path, folder: Path, constraints: Path) -> None:
    """Run the test suite against the installed wheel: from a copy of the tests, without the package beside it."""
    folder.mkdir()
    run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints), *TESTS)
    for name in (*FOLDERS, *PAGES):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    options = ("-q", "-m", "not slow", "-n", "2", "--dist", "worksteal", "--ignore=tests/zoo", "--ignore=tests/interop")
    run(inside, "-m", "pytest", *options, "tests", cwd=folder, quiet=False)


def main() -> None:
    """Audit, then install and try."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suite", action="store_true")
    given = parser.parse_args()
    wheel, archive = (next(given.folder.resolve().glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    audit(wheel)
    check_sdist(archive)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, (version, python) in enumerate(interpreters()):
            for which in ("lowest", "newest") if i == 0 else ("newest",):
                extras = "cli,onnx,bf16"
                constraints = ROOT / "ci" / f"{which}.txt"
                inside = environment(python, folder / f"{version}-{which}", wheel, constraints, extras)
                smoke(inside, folder / f"{version}-{which}-work")
                say(f"CPython {version} with the {which} versions: works")
                if given.suite:
                    suite(inside, folder / f"{version}-{which}-suite", constraints)
            if i == 0:
                for page in sorted((ROOT / "docs" / "tutorial").glob("*.md")):
                    tutorial(python, folder / page.stem, wheel, page)


if __name__ == "__main__":
    main()
