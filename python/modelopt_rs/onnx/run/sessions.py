"""Models in onnxruntime: sessions on the CPU, runs, and what becomes of its errors."""

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from modelopt_rs._core import FormatError, UnsupportedError
from modelopt_rs._types import Array
from modelopt_rs.containers.onnx import OnnxSource
from modelopt_rs.containers.reading import open_regular
from modelopt_rs.containers.system import READ, descriptor_path
from modelopt_rs.errors import quote
from modelopt_rs.interrupts import uninterrupted
from modelopt_rs.threads import get_num_threads

__all__ = ["FOLDER", "Ended", "Feed", "Session", "bounded", "limited", "new_session", "open_session"]
__all__ += ["resident", "run_session", "session_options", "size_of", "utf8"]

Session: TypeAlias = Any  # onnxruntime.InferenceSession
Feed: TypeAlias = Mapping[str, Array]
WEIGHTS = 4  # times the bytes of a model: read, widened, and laid out again for each operator
FOLDED = "optimization.constant_folding_max_output_size_in_bytes"
LOOK = 0.005  # seconds between two looks at a run that has bounds: it may fill 100 MB in ten times that
_BOUNDS: ContextVar["_Bounds | None"] = ContextVar("_BOUNDS", default=None)
_LIMIT: ContextVar[int | None] = ContextVar("_LIMIT", default=None)
_ARENA = threading.Lock()  # onnxruntime has one allocator that sessions share: it is ours while one is opened

INSTALL = 'running an ONNX model needs the extra onnx: pip install "modelopt_rs[onnx]"'
# Where the files of weights are looked for, of a model that comes as bytes, or under another path than its own.
FOLDER = "session.model_external_initializers_file_folder_path"
SILENT = 4  # only what is fatal: an error is raised as well, and would stand on stderr twice
MAX_DETAIL = 400
# How onnxruntime names the node that it means, in its several kinds of errors.
NODES = (
    re.compile(r"In Node, \(\"(?P<name>.*?)\", (?P<op>\w+), .*?, Error (?P<detail>.*)", re.S),
    re.compile(r"Node ?\((?P<name>.*?)\) Op ?\((?P<op>\w+)\) (?P<detail>.*)", re.S),
    re.compile(r"while running (?P<op>\w+) node\. Name:'(?P<name>.*?)' Status Message: (?P<detail>.*)", re.S),
    re.compile(r"(?P<detail>.*of operator \((?P<op>\w+)\) in node \((?P<name>.*?)\) is invalid\.)", re.S),
    re.compile(r"(?P<detail>Could not find an implementation) for (?P<op>\w+)\(\d+\) node with name '(?P<name>.*?)'"),
    re.compile(r"Fatal error: (?P<detail>[\w.]*:(?P<op>\w+)\(-?\d+\) is not a registered function/op)(?P<name>)"),
)
# Which file, which the message has already, and a place in its own sources: "/.../reshape_helper.h:91 f(int) ".
PLACE = re.compile(r"^(Load model from .*? failed: ?)?(/\S+:\d+ .*?\) )?", re.S)
NO_MEMORY = "is smaller than requested bytes"
STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (?P<status>\w+) : ")
UNSUPPORTED = re.compile(
    r"No Op registered|not a registered|No opset import|Could not find an implementation|[Uu]nsupported|Opset \d+"
)


def open_session(path: str | os.PathLike[str], *, threads: int | None = None) -> Session:
    """Load a model into onnxruntime, to run on the CPU.

    Parameters
    ----------
    path : path
        An ONNX file; data outside of it is found beside it.
    threads : int, optional
        Threads to run with.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    ImportError
        If onnxruntime is not installed.
    FormatError
        If onnxruntime refuses the model (`UnsupportedError` where it does not know how to run it).
    OSError
        If the file can't be opened.

    Examples
    --------
    With a file of a model::

        session = open_session("model.onnx", threads=1)
    """
    try:
        options = session_options(threads)
    except ImportError as e:
        raise ImportError(f"open_session: {INSTALL}") from e
    os.close(open_regular(path))  # says what is wrong with the path as for every other file
    with utf8(path) as model, utf8(Path(path).absolute().parent) as folder:
        if model != os.fspath(path):
            options.add_session_config_entry(FOLDER, folder)
        return new_session(model, options, path)


def _onnxruntime() -> Any:
    """Import it whole: an interrupt within its C code is an ImportError, "initialization failed"."""
    with uninterrupted():
        import onnxruntime
    return onnxruntime


def session_options(threads: int | None) -> Any:
    """Return what every session has: silence, and so many threads."""
    onnxruntime = _onnxruntime()

    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads or get_num_threads()
    options.inter_op_num_threads = 1
    return options


def new_session(model: str | bytes, options: Any, path: str | os.PathLike[str]) -> Session:
    """Load a model; under `limited` all that it holds comes out of so many bytes.

    Raises
    ------
    FormatError
        If onnxruntime refuses it.
    """
    onnxruntime = _onnxruntime()

    with _allocator(options):
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # its errors have no common class but this
            raise refusal(path, e, "refuses it") from e


@contextmanager
def _allocator(options: Any) -> Iterator[None]:
    """While it lasts a session that is opened takes an allocator of its own, under `limited`."""
    limit = _LIMIT.get()
    if limit is None:
        yield
        return
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Constants that are computed as a session is opened come out of another allocator, and each may be twice the last.
    options.add_session_config_entry(FOLDED, str(limit // 4))
    with _ARENA:
        _register(limit)
        try:
            yield
        finally:
            _register(0)  # of later sessions of this process that share one, nobody is limited


def _register(nbytes: int) -> None:
    """Let sessions that are opened from now on, and share an allocator, have one of so many bytes (0: of any)."""
    ort = _onnxruntime()

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1
    arena = ort.OrtArenaCfg({"max_mem": nbytes, "arena_extend_strategy": same_as_requested})
    ort.create_and_register_allocator(memory, arena)


@contextmanager
def limited(nbytes: int, *models: str | os.PathLike[str]) -> Iterator[None]:
    """While it lasts, sessions that are opened hold no more than so many bytes: a node that needs more fails.

    `bounded` looks at a run from time to time, and ends it before its next node; this is never late.

    Parameters
    ----------
    nbytes : int
        For the values between nodes.
    *models : path
        What is opened: their weights come on top, also as onnxruntime lays them out again.
    """
    token = _LIMIT.set(nbytes + WEIGHTS * max(map(size_of, models)))
    try:
        yield
    finally:
        _LIMIT.reset(token)


def size_of(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a model, or of all that is beside it, where its weights may be; 0 where it can't be read.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.sessions import size_of
    >>> size_of("no such folder/model.onnx")
    0
    """
    try:
        beside = sum(each.stat().st_size for each in Path(path).parent.iterdir() if each.is_file())
        return max(Path(path).stat().st_size, beside)
    except OSError:
        return 0


@contextmanager
def utf8(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a path as onnxruntime takes it, which wants UTF-8; while it lasts the file or directory is open."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        fd = os.open(path, READ)
        try:
            there = descriptor_path(fd)
            yield name if there is None else str(there)
        finally:
            os.close(fd)
    else:
        yield name


def run_session(
    session: Session, path: str | os.PathLike[str], feed: Mapping[str, Array], outputs: list[str] | None = None
) -> list[Any]:
    """Run a model once.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    path : path
        What an error calls the model.
    feed : mapping
        The inputs by name.
    outputs : list of str, optional
        Which outputs; by default all.

    Raises
    ------
    FormatError
        If the run fails.
    """
    bounds = _BOUNDS.get()
    try:
        if bounds is not None:
            return bounds.run(session, path, feed, outputs)
        found: list[Any] = session.run(outputs, dict(feed))
    except FormatError:
        raise
    except Exception as e:
        raise refusal(path, e, "can't run it") from e
    return found


class Ended(FormatError):
    """A run took more than its bounds."""


@contextmanager
def bounded(seconds: float, nbytes: int) -> Iterator[None]:
    """While it lasts, end runs that compute for longer or take more memory: a model may double its data in a loop.

    Parameters
    ----------
    seconds : float
        Of the processor, over all threads.
    nbytes : int
        What the memory of this process may grow by.
    """
    token = _BOUNDS.set(_Bounds(seconds, nbytes))
    try:
        yield
    finally:
        _BOUNDS.reset(token)


@dataclass(frozen=True, slots=True)
class _Bounds:
    seconds: float
    nbytes: int

    def run(self, session: Session, path: str | os.PathLike[str], feed: Feed, outputs: list[str] | None) -> list[Any]:
        onnxruntime = _onnxruntime()

        options, done, why = onnxruntime.RunOptions(), threading.Event(), []
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")  # what it took, for the next
        started, held = time.process_time(), resident()

        def watch() -> None:
            while not done.wait(LOOK):
                if time.process_time() - started > self.seconds:
                    why.append(f"computes for more than {self.seconds:.0f} seconds")
                elif resident() - held > self.nbytes:
                    why.append(f"takes more than {self.nbytes:,} bytes")
                if why:
                    options.terminate = True  # it ends before its next node
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            found: list[Any] = session.run(outputs, dict(feed), options)
        except Exception as e:
            if NO_MEMORY in str(e):  # of its allocator, under `limited`
                why.append(f"takes more than {self.nbytes:,} bytes")
            if why:
                raise Ended(f"{Path(path)}: a run in onnxruntime {why[0]}") from e
            raise
        finally:
            done.set()
            watcher.join()
        return found


def resident() -> int:
    """Return the bytes of memory that this process has resident now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def refusal(path: str | os.PathLike[str], error: Exception, verb: str) -> Exception:
    """Return our error for one of onnxruntime's, with the node that it names.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.sessions import refusal
    >>> text = "[ONNXRuntimeError] : 1 : FAIL : Node (mm) Op (MatMul) [ShapeInferenceError] Incompatible dimensions"
    >>> print(refusal("m.onnx", RuntimeError(text), "refuses it"))
    m.onnx: onnxruntime refuses it: node 'mm' (MatMul): '[ShapeInferenceError] Incompatible dimensions'
    """
    if isinstance(error, MemoryError):
        return error
    text = STATUS.sub("", str(error)).strip()
    found = next((match for pattern in NODES if (match := pattern.search(text))), None)
    name = found["name"] or _first_node(path, found["op"]) if found else ""
    where = f"node {quote(name)} ({found['op']}): " if found else ""
    detail = PLACE.sub("", (found["detail"] if found else text).strip())
    kind = UnsupportedError if UNSUPPORTED.search(text) else FormatError
    return kind(f"{Path(path)}: onnxruntime {verb}: {where}{quote(detail, MAX_DETAIL)}")


def _first_node(path: str | os.PathLike[str], op: str) -> str:
    """Return the name of the first node of an operator; it is empty where it has none, or can't be found."""
    try:
        with OnnxSource(path, allow_hard_links=True, allow_symlinks_under="/") as source:
            return next((node.name or "" for node in source.model.graph.all_nodes() if node.op_type == op), "")
    except (OSError, ValueError):
        return ""
