"""Threads, forks, affinity and the floating-point environment (D1 to D10, B9), each in its own process."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core

CALLS = ref.calls(mo) | ref.steps(mo)

PREAMBLE = """
import faulthandler
faulthandler.dump_traceback_later(90, exit=True)
import os, signal, sys, threading
import numpy as np
import modelopt_rs as mo

x = (np.arange(300_007, dtype=np.float32) % 1013) - 500  # some chunks: above any threshold of parallelism


def work(threads=4):
    q = mo.quantize(x, bits=4, group_size=64, threads=threads)
    total = mo.reduce.sum(q.dequantize(threads=threads), threads=threads)
    return total, q.codes.tobytes(), mo.reduce.quantile(x, 0.3, threads=threads)


def tasks():
    # those started since the imports: OpenBLAS and the watchdog have theirs
    return len(os.listdir("/proc/self/task")) - before


before = 0
before = tasks()
"""


def run(script, *, env=None, code=0, **kwargs):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **(env or {})},
        **kwargs,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


# ------------------------------------------------------------------------------------------------------ forks


def test_d1_100_forks_after_the_pool_has_started_give_the_parents_result():
    """D2 too: the work is cut into many chunks."""
    run("""
want = work()
assert tasks() > 0
for i in range(100):
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # a child that hangs dies of it
        os._exit(0 if work(2 + i % 7) == want else 3)
    assert os.waitpid(pid, 0)[1] == 0, i
assert work() == want
""")


def test_d1_multiprocessing_pools_that_fork_give_the_parents_result():
    run("""
import multiprocessing as mp
want = work()
with mp.get_context("fork").Pool(4, maxtasksperchild=1) as pool:
    got = [pool.apply_async(work, (1 + i % 4,)) for i in range(100)]
    assert all(r.get(timeout=60) == want for r in got)
assert work() == want
""")


def test_d1_process_pool_executors_that_fork_give_the_parents_result():
    run("""
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
want = work()
for _ in range(25):
    with ProcessPoolExecutor(4, mp_context=mp.get_context("fork")) as pool:
        assert all(r == want for r in pool.map(work, [4, 3, 2, 1], timeout=60))
    assert work() == want
""")


def test_d1_a_grandchild_works_and_so_does_a_fork_before_the_first_call():
    run("""
def fork(then):
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        then()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

fork(work)
want = work()
def child():
    ok = work() == want
    fork(lambda: os._exit(0 if work() == want else 3))
    os._exit(0 if ok and work() == want else 3)
fork(child)
assert work() == want
""")


def test_d3_a_fork_while_other_threads_are_inside_kernels_works():
    run("""
want = work()
stop = threading.Event()
def loop():
    while not stop.is_set():
        work(3)
threads = [threading.Thread(target=loop) for _ in range(3)]
for t in threads:
    t.start()
for i in range(50):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(0 if work() == want else 3)
    assert os.waitpid(pid, 0)[1] == 0, i
stop.set()
for t in threads:
    t.join()
""")


# ---------------------------------------------------------------------------------------------------- threads


def test_d5_d7_many_python_threads_at_once_get_the_same_result():
    run("""
from concurrent.futures import ThreadPoolExecutor
want = work()
with ThreadPoolExecutor(16) as pool:
    assert all(r == want for r in pool.map(work, [1 + i % 8 for i in range(160)]))
""")


def test_d5_the_interpreter_runs_on_while_a_kernel_computes():
    """With a switch interval of an hour, another thread can only run while the lock is released by will."""
    run("""
sys.setswitchinterval(3600)
big = np.ones(1 << 24, np.float32)
out = np.empty_like(big)
for call in (
    lambda: mo.reduce.sum(big),
    lambda: mo.reduce.kth_magnitude(big, 5),
    lambda: mo.reduce.histogram(big),
    lambda: mo.fake_quantize(big, out=out),
):
    ready, ran = threading.Event(), []
    def other():
        ready.wait()
        ran.append(True)
    t = threading.Thread(target=other)
    t.start()
    ready.set()
    for _ in range(20):
        call()
        if ran:
            break
    assert ran
    t.join()
""")


def test_d7_one_thread_never_starts_a_pool():
    run("""
want = work(1)
assert tasks() == 0, tasks()
with mo.num_threads(1):
    assert work(None) == want
mo.set_num_threads(1)
assert work(None) == want
assert tasks() == 0, tasks()
""")


def test_d7_small_work_never_starts_a_pool():
    run("""
for n in (0, 1, 1000):
    mo.quantize(x[:n], threads=8)
    mo.reduce.sum(x[:n], threads=8)
assert tasks() == 0, tasks()
""")


def test_d7_the_pool_grows_no_further_than_asked():
    run("""
for _ in range(15):
    for threads in range(1, 9):
        work(threads)
assert tasks() < 40, tasks()
""")


def test_d8_a_panic_leaves_the_pool_usable():
    run("""
from modelopt_rs import _core
want = work()
for _ in range(20):
    _core.set_fault(True)
    try:
        work()
    except mo.InternalError as error:
        assert "please report" in str(error)
    else:
        raise SystemExit("no error")
    finally:
        _core.set_fault(False)
    assert work() == want
""")


def test_d10_a_daemon_thread_inside_a_call_does_not_hold_up_the_exit():
    script = (
        PREAMBLE
        + """
big = np.ones(1 << 22, np.float32)
faulthandler.cancel_dump_traceback_later()  # a child would wait for that thread at its end
for _ in range(49):
    pid = os.fork()
    if pid == 0:  # it ends as an interpreter does, without the imports that come before
        signal.alarm(60)
        break
    assert os.waitpid(pid, 0)[1] == 0
inside = threading.Event()
def loop():
    while True:
        mo.reduce.kth_magnitude(big, 5, threads=2)
        inside.set()
threading.Thread(target=loop, daemon=True).start()
inside.wait()
"""
    )
    # The thread that waited to dump tracebacks may not have ended yet: CPython 3.12 and newer warn of a fork beside it.
    quiet = ("-W", "ignore:This process:DeprecationWarning")
    done = subprocess.run([sys.executable, *quiet, "-c", script], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------------------------------- how many of them


@pytest.fixture
def default_threads():
    before = mo.get_num_threads()
    yield before
    mo.set_num_threads(before)


def test_d6_set_num_threads_holds_for_the_process_and_num_threads_for_a_block(default_threads):
    mo.set_num_threads(3)
    assert mo.get_num_threads() == 3
    with mo.num_threads(5):
        assert mo.get_num_threads() == 5
        with mo.num_threads(1):
            assert mo.get_num_threads() == 1
        assert mo.get_num_threads() == 5
        seen = []
        other = threading.Thread(target=lambda: seen.append(mo.get_num_threads()))
        other.start()
        other.join()
        assert seen == [3]
    with pytest.raises(KeyError), mo.num_threads(7):
        raise KeyError
    assert mo.get_num_threads() == 3


@pytest.mark.parametrize("n", [0, -1, 1025, 2**80])
def test_d6_a_number_of_threads_out_of_range_is_refused(n, default_threads):
    for name, call in (
        ("set_num_threads", mo.set_num_threads),
        ("num_threads", lambda n: mo.num_threads(n).__enter__()),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: n must be .*1.*1024, got {n}"):
            call(n)
    assert mo.get_num_threads() == default_threads


@pytest.mark.parametrize("n", ["2", 1.0, None, True, [1]])
def test_d6_a_number_of_threads_of_another_type_is_refused(n, default_threads):
    with pytest.raises(TypeError, match=r"^set_num_threads: n must be an integer, got "):
        mo.set_num_threads(n)
    if n is not None:
        with pytest.raises(TypeError, match=r"threads must be an integer, got "):
            mo.reduce.sum(np.ones(3, np.float32), threads=n)
    assert mo.get_num_threads() == default_threads


def test_d6_numpy_integers_are_numbers_of_threads():
    assert mo.reduce.sum(np.ones(3, np.float32), threads=np.int32(2)) == 3


def test_d6_one_cpu_by_affinity_means_one_thread():
    if shutil.which("taskset") is None:
        pytest.skip("taskset is not installed")
    cpu = min(os.sched_getaffinity(0))
    environment = {k: v for k, v in os.environ.items() if k != "MODELOPT_RS_NUM_THREADS"}
    script = PREAMBLE + "assert mo.get_num_threads() == 1\nwork(None)\nassert tasks() == 0"
    subprocess.run(["taskset", "-c", str(cpu), sys.executable, "-c", script], check=True, env=environment, timeout=60)


def test_d6_the_environment_variable_sets_the_number():
    run("assert mo.get_num_threads() == 3", env={"MODELOPT_RS_NUM_THREADS": "3"})
    run("work(None); assert tasks() == 0", env={"MODELOPT_RS_NUM_THREADS": "1"})


@pytest.mark.parametrize(
    ("variable", "text"),
    [("MODELOPT_RS_NUM_THREADS", t) for t in ("0", "-1", "two", "1.5", "99999999999999999999")]
    + [("MODELOPT_RS_ISA", t) for t in ("sse9", "AVX", "0")],
)
def test_d6_garbage_in_an_environment_variable_is_a_value_error_that_names_it(variable, text):
    done = run("work(None)", env={variable: text}, code=1)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert variable in last
    assert text in last


@pytest.mark.parametrize("chosen", ["portable", "avx2", "avx512"])
def test_b11_the_environment_variable_chooses_the_instruction_set(chosen, isas):
    if chosen not in isas:
        done = run("work()", env={"MODELOPT_RS_ISA": chosen}, code=1)
        assert "MODELOPT_RS_ISA" in done.stderr
    else:
        run(
            f"from modelopt_rs import _core; assert _core.isa() == {chosen!r}; work()",
            env={"MODELOPT_RS_ISA": chosen},
        )


def test_d6_threads_that_cannot_start_mean_serial_work_and_a_warning():
    nobody = "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)"
    become = nobody if os.geteuid() == 0 else ""  # the limit does not bind root
    run(f"""
import resource, warnings
want = work(1)
{become}
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=int).start()
except RuntimeError:
    pass
else:
    print("RLIMIT_NPROC does not bind here")
    sys.exit(0)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert work(4) == want
assert seen, "no warning"
assert all(w.category is RuntimeWarning and "thread" in str(w.message) for w in seen)
warnings.simplefilter("error")
try:
    work(4)
except RuntimeWarning:
    pass
assert work(1) == want
""")


# --------------------------------------------------------------------------------- floating-point environment

FTZ_DAZ = 0x9FC0  # flush to zero, denormals are zero, all exceptions masked
ROUND_UP = 0x5F80


@pytest.mark.parametrize("name", [n for n, c in CALLS.items() if not c.codes])
def test_b9_the_callers_floating_point_mode_changes_no_bit(name, mxcsr, isas):
    """As a library built with -ffast-math leaves it; the caller's own mode is as before after the call."""
    call = CALLS[name]
    turns = itertools.cycle(
        isas
    )  # the mode is set where work begins, before an instruction set is chosen: each in turn
    for dtype in ref.DTYPES:
        x = ref.wild(ref.CHUNK + 77, dtype)
        info = np.finfo(np.float32 if dtype == ref.BF16 else dtype)
        x[5::3] = (np.arange(x[5::3].size) % 97 * float(info.smallest_subnormal)).astype(dtype)
        tiny = np.zeros_like(x) + (float(info.tiny) / 4)
        for values in (x, tiny.astype(dtype)):
            argument = call.prepare(values)
            _core.set_isa(next(turns))
            want = ref.bits_of(call.run(argument, 1))
            # The workers are the same whatever they compute.
            for word, threads in itertools.product((FTZ_DAZ, ROUND_UP), (1, 3) if values is x else (1,)):
                default = mxcsr.get_mxcsr()
                mxcsr.set_mxcsr(word)
                try:
                    got = call.run(argument, threads)
                finally:
                    left = mxcsr.get_mxcsr()
                    mxcsr.set_mxcsr(default)
                assert left & 0xFFC0 == word & 0xFFC0
                assert ref.bits_of(got) == want


# ----------------------------------------------------------------------------------------------- instructions


def test_d9_it_runs_on_a_cpu_without_avx():
    """Any AVX instruction outside of what is dispatched would be an illegal one here."""
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if qemu is None:
        pytest.skip("qemu-x86_64 is not installed; no other way finds AVX in a library without symbols")
    script = PREAMBLE + "from modelopt_rs import _core\nassert _core.isa() == 'portable'\nwork()"
    done = subprocess.run(
        [qemu, "-cpu", "Nehalem", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if "NumPy was built with baseline" in done.stderr:
        pytest.skip("this NumPy needs a newer CPU than Nehalem (x86-64-v2)")
    assert done.returncode == 0, done.stderr


def test_d2_the_pool_is_used_in_one_file_only():
    source = Path(__file__).resolve().parents[2] / "src"
    if not source.is_dir():
        pytest.skip("the sources are not here")
    users = [p.name for p in source.rglob("*.rs") if "rayon::" in p.read_text()]
    assert users == ["par.rs"]


def test_c14_the_module_does_not_claim_to_run_without_the_gil():
    """Nobody has tried that for long enough: an interpreter without it takes it back at the import, and says so."""
    source = Path(__file__).resolve().parents[2] / "src" / "bindings" / "mod.rs"
    if source.is_file():
        assert "#[pymodule(gil_used = true)]" in source.read_text()
    assert getattr(sys, "_is_gil_enabled", lambda: True)()
