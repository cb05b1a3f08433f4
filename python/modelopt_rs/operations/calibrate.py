"""`calibrate_file`, `merge_statistics`: what is known of the inputs of layers, as files that add up."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import check_types
from modelopt_rs.containers.container import Access
from modelopt_rs.containers.registry import open_source
from modelopt_rs.containers.safetensors_sink import SafetensorsSink
from modelopt_rs.errors import OptionError, check_option, quote
from modelopt_rs.operations.known_modules import known_modules
from modelopt_rs.planning.by_inputs import UNREACHED, KnownInputs
from modelopt_rs.planning.calibration import Calibrate, repeatable
from modelopt_rs.planning.decide import matches
from modelopt_rs.planning.statistics import KINDS, MARK, StatisticsFile, arrays_of, infos_of
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.report.statistics import CalibrateReport, SeenInputs
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import Source

__all__ = ["calibrate_file", "merge_statistics"]

Found = Hessian | ColumnNorms


def calibrate_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    calibrate: Calibrate,
    kind: str = "hessian",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    overwrite: bool = False,
    durable: bool = True,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
) -> CalibrateReport:
    """Run a model on samples, and write what goes into its layers: sums, never the values.

    `quantize_file` takes the file as `statistics`, so that nothing is run there; `merge_statistics` adds up those of
    several runs over different samples.

    Parameters
    ----------
    source_path : path
        An ONNX model (onnxruntime runs it: layers of MatMul, Gemm and, for "hessian", Conv), or a Hugging Face
        directory (transformers runs it: linear layers).
    out_path : path
        A safetensors file: of each weight `<name>.products` (the sum of ``x xᵀ`` over all rows, float64) or
        `<name>.squares` (the sums of squares), and `<name>.rows`. Of a convolution x are its patches, of each kernel
        position the channels; the sums of its groups lie below each other.
    calibrate : path, mapping, iterable or callable
        The samples, as `prune_file` takes them.
    kind : {"hessian", "norms"}
        Products, which ``method="gptq"`` takes and which grow with the square of a layer's inputs; or squares, enough
        for "awq" and for searched scales.
    include, exclude : sequence of str
        Globs over names of weights: only those that one of `include` matches, if any is given; none of `exclude`.
    max_memory : int or str
        The bytes, as a number or a text such as "64MiB", for the sums; where those of all layers take more, the samples
        are run as often as it needs.
    threads : int, optional
        Threads to compute with.
    overwrite : bool
        Replace what is at `out_path`.
    durable : bool
        Wait until the output is on the disk.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory.

    Returns
    -------
    CalibrateReport

    Raises
    ------
    OptionError, ValueError, TypeError
        If the samples don't fit the model, or no weight's inputs can be seen.
    ImportError
        If what runs the model isn't installed.
    OSError
        If the operating system refuses to read or write.
    """
    check_types(calibrate_file, locals())
    max_memory = bytes_of("max_memory", max_memory)
    start = time.perf_counter()
    check_option("kind", kind, KINDS)
    calibrate = repeatable(calibrate)
    with open_source(source_path, Access(allow_symlinks_under=allow_symlinks_under)) as source:
        execution = Execution(max_memory, threads, None, 0)
        known, columns = _known(source, "gptq" if kind == "hessian" else None, calibrate, execution)
        names = _chosen(known, columns, include, exclude)
        assert known.statistics is not None
        statistics = known.statistics
        statistics.keep(names)
        sizes = [(name, columns[name], known.groups.get(name, 1)) for name in names]
        seen = _write(out_path, sizes, kind, statistics.of, (overwrite, durable))
        unseen = {**known.unseen, **{each.name: UNREACHED for each in seen if not each.rows}}
        left = tuple((name, reason) for name, reason in unseen.items() if reason is not None and name in columns)
    seen = tuple(each for each in seen if each.rows)
    seconds = time.perf_counter() - start
    return CalibrateReport("calibrate", (str(source_path),), str(out_path), kind, seconds, seen, left)


def merge_statistics(
    paths: Sequence[str | os.PathLike[str]],
    out_path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    durable: bool = True,
) -> CalibrateReport:
    """Add up files of statistics: what one run over all their samples would have seen.

    The sums are those of one run, bit for bit where they are exact (counts always); else up to the rounding of float64,
    which depends on the order in which numbers are added. A weight that only some files have is taken from these.

    Parameters
    ----------
    paths : sequence of path
        Two or more, of one kind.
    out_path : path
        Where to write; it may not be one of them.
    overwrite : bool
        Replace what is at `out_path`.
    durable : bool
        Wait until the output is on the disk.

    Returns
    -------
    CalibrateReport

    Raises
    ------
    OptionError
        If there are fewer than two files, or these are of several kinds or weights have several numbers of inputs.
    FormatError
        If a file is malformed.
    """
    check_types(merge_statistics, locals())
    start = time.perf_counter()
    if isinstance(paths, str) or len(paths) < 2:
        got = 1 if isinstance(paths, str) else len(paths)
        raise OptionError(f"paths must be two or more files of statistics, got {got}")
    with ExitStack() as stack:
        files = [stack.enter_context(closing(StatisticsFile(path))) for path in paths]
        columns: dict[str, tuple[int, int]] = {}
        for file in files:
            if file.kind != files[0].kind:
                raise OptionError(f"paths must be of one kind, got {files[0].kind!r} and {file.kind!r}")
            for name, size in file.columns.items():
                whole = size, file.groups.get(name, 1)
                for wanted, got, what in zip(columns.setdefault(name, whole), whole, ("inputs", "groups"), strict=True):
                    if wanted != got:
                        raise OptionError(f"paths: {quote(name)} must have {wanted:,} {what} in all, got {got:,}")

        def of(name: str) -> Sequence[Found]:
            first, *others = (file.of(name) for file in files if name in file.columns)
            for other in others:
                for each, more in zip(first, other, strict=True):
                    each.merge(more)  # type: ignore[arg-type]  # all are of the same kind
            return first

        sizes = [(name, *size) for name, size in columns.items()]
        seen = _write(out_path, sizes, files[0].kind, of, (overwrite, durable))
    seconds, sources = time.perf_counter() - start, tuple(map(str, paths))
    return CalibrateReport("calibrate", sources, str(out_path), files[0].kind, seconds, seen)


def _known(
    source: Source, method: str | None, calibrate: Calibrate, execution: Execution
) -> tuple[KnownInputs, dict[str, int]]:
    """Return what is known of inputs, and how many there are of each weight."""
    if source.graph is None:
        if source.container != "checkpoint" or source.config is None:
            raise OptionError(
                f"calibrate: {source.path} must be an ONNX model or a Hugging Face directory: nothing runs it"
            )
        known = known_modules(source, method, calibrate, execution)
        return known, {name: info.shape[1] for name, info in source.tensors.items() if len(info.shape) == 2}
    from modelopt_rs.onnx.known_inputs import input_columns, known_inputs

    return known_inputs(source, method, calibrate, execution), input_columns(source)


def _chosen(known: KnownInputs, columns: dict[str, int], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the weights whose inputs are written."""
    every = {name: columns[name] for name in known.moments}
    infos = {name: infos_of(name, size, "norms")[0] for name, size in every.items()}
    included, excluded = matches(infos, include, "include"), matches(infos, exclude, "exclude")
    names = [name for name in every if name not in excluded and (name in included or not include)]
    if not names:
        name, reason = next(((n, r) for n, r in known.unseen.items() if r is not None and n in columns), (None, None))
        left = "" if name is None else f", as {quote(name)}: {reason}"
        raise OptionError(f"calibrate: no weight's inputs can be seen, or all are excluded{left}")
    return names


def _write(
    path: str | os.PathLike[str],
    sizes: Sequence[tuple[str, int, int]],
    kind: str,
    of: Callable[[str], Sequence[Found]],
    how: tuple[bool, bool],
) -> tuple[SeenInputs, ...]:
    """Write statistics, one weight after the other; whatever goes wrong, what was there stays."""
    infos = [info for name, size, groups in sizes for info in infos_of(name, size, kind, groups)]
    metadata = {MARK: "1", "kind": kind, "made_by": f"modelopt_rs {_core.__version__}"}
    seen = []
    with SafetensorsSink(path, infos, metadata, overwrite=how[0], durable=how[1]) as sink:
        for name, size, groups in sizes:
            arrays: Sequence[Array] = arrays_of(of(name), infos_of(name, size, kind, groups)[0].shape)
            for info, array in zip(infos_of(name, size, kind, groups), arrays, strict=True):
                sink.write_at(info.name, 0, array)
            seen.append(SeenInputs(name, size, int(arrays[1][0])))
        sink.commit()
    return tuple(seen)
