"""Settings and fixtures that all tests share."""

import ctypes
import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Before NumPy is imported: threads of a BLAS that wait by spinning take half of the CPU from the other worker.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import pytest
from hypothesis import settings

# A shell starts what runs in its background with SIGINT ignored, and processes hand that down: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("deterministic")

collect_ignore = ["shared", "zoo/zoo"]  # what tests import; pyproject.toml puts the folders on the path


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: needs some GiB of memory or tens of seconds, or a guest such as torch")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What ten thousand collected tests hold is not looked through at each collection of garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def available_isas() -> list[str]:
    """The instruction sets that this CPU has."""
    from modelopt_rs import _core

    before, found = _core.isa(), []
    for name in ("portable", "avx2", "avx512"):
        try:
            _core.set_isa(name)
        except ValueError:
            continue
        found.append(name)
    _core.set_isa(before)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", available_isas(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once with each instruction set of this CPU."""
    from modelopt_rs import _core

    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture
def isas() -> Iterator[list[str]]:
    """The instruction sets, for a test that switches between them; the one in use comes back after it."""
    from modelopt_rs import _core

    before = _core.isa()
    yield available_isas()
    _core.set_isa(before)


@pytest.fixture(scope="session")
def mxcsr(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A C library with `set_mxcsr(word)` and `get_mxcsr()` for the calling thread (x86-64)."""
    if os.uname().machine != "x86_64":
        pytest.skip("MXCSR is a register of x86-64")
    folder: Path = tmp_path_factory.mktemp("mxcsr")
    source, library = folder / "mxcsr.c", folder / "mxcsr.so"
    source.write_text(
        "#include <xmmintrin.h>\n"
        "void set_mxcsr(unsigned word) { _mm_setcsr(word); }\n"
        "unsigned get_mxcsr(void) { return _mm_getcsr(); }\n"
    )
    try:
        subprocess.run(["gcc", "-O0", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("gcc is not installed")
    return ctypes.CDLL(str(library))
