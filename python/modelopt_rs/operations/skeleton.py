"""The one execution of every operation that writes a model file: open, plan, jobs, verify, report."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelopt_rs.containers.container import Access, Output
from modelopt_rs.containers.registry import check_suffix, create, open_source
from modelopt_rs.errors import UnsupportedError, quote
from modelopt_rs.layouts.registry import METADATA_KEY
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.warnings import beside_in_words
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.job import rewrite
from modelopt_rs.stream.memory import DEFAULT_MEMORY
from modelopt_rs.stream.model import Sink, Source, TensorInfo

__all__ = ["Writing", "perform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How a model is read and written, whatever is done to it.

    Attributes
    ----------
    max_memory : int
        The most bytes that tiles and their results may take at a time.
    threads : int or None
        Threads to compute with.
    dry_run : bool
        Decide and report, write nothing.
    verify : bool
        Read the output back before it takes its place, and compare.
    overwrite : bool
        Replace what is at the destination.
    durable : bool
        Wait until the output is on the disk.
    allow_symlinks_under : path or None
        External data may be symbolic links to files beneath this directory.
    progress : callable or None
        Called with (bytes done, bytes in all, tensor name).
    """

    max_memory: int = DEFAULT_MEMORY
    threads: int | None = None
    dry_run: bool = False
    verify: bool = True
    overwrite: bool = False
    durable: bool = True
    allow_symlinks_under: str | os.PathLike[str] | None = None
    progress: Progress | None = None


def perform(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    plan_for: Callable[[Source, Execution], FilePlan],
    writing: Writing,
) -> Any:
    """Take a model through an operation; whatever goes wrong, what is at the destination stays.

    Parameters
    ----------
    source_path, out_path : path
        Where to read and where to write.
    plan_for : callable
        Decides what becomes of the tensors of a source: the operation.
    writing : Writing

    Returns
    -------
    object
        What the plan reports.
    """
    start = time.perf_counter()
    with open_source(source_path, Access(allow_symlinks_under=writing.allow_symlinks_under)) as source:
        execution = Execution(
            max_memory=writing.max_memory,
            threads=writing.threads,
            progress=writing.progress,
            total=0 if writing.dry_run else sum(info.nbytes for info in source.tensors.values()),
            source=str(source_path),
            output=str(out_path),
            dry_run=writing.dry_run,
            overwrite=writing.overwrite,
        )
        if not writing.dry_run:
            check_suffix(out_path, source)  # before the long work
        notes = source.notes  # of the graph as it stands in the file: a plan edits it
        beside = beside_in_words(source.beside, source.nbytes)  # what fails here has written nothing
        plan = plan_for(source, execution)
        if not writing.dry_run:
            sink = _create(source, out_path, plan, writing)
            rewrite(plan.view, sink, plan.transforms, execution, verify=writing.verify, check=plan.check)
        report = plan.report(time.perf_counter() - start)
        return replace(report, warnings=(*dict.fromkeys((*notes, *plan.view.notes)), *report.warnings, *beside))


def _create(source: Source, out_path: str | os.PathLike[str], plan: FilePlan, writing: Writing) -> Sink:
    outputs = {name: transform.outputs for name, transform in plan.transforms.items()}
    _check_names(source, outputs)
    return create(
        out_path,
        Output(
            source=source,
            tensors=[info for infos in outputs.values() for info in infos],
            origins={info.name: plan.origins.get(name, name) for name, infos in outputs.items() for info in infos},
            metadata={**{k: v for k, v in source.metadata.items() if k != METADATA_KEY}, **plan.metadata},
            config=_config(source.config if plan.config is None else plan.config, plan.quantization_config),
            overwrite=writing.overwrite,
            durable=writing.durable,
        ),
    )


def _check_names(source: Source, outputs: Mapping[str, Sequence[TensorInfo]]) -> None:
    """Refuse to write two tensors of one name: parts of a weight, where the model has tensors called so."""
    makers: dict[str, str] = {}
    for name, infos in outputs.items():
        for info in infos:
            other = makers.setdefault(info.name, name)
            if other != name:
                made = f"{quote(info.name)} would be made of {quote(other)} and of {quote(name)}"
                raise UnsupportedError(f"{source.path}: tensor {made}; exclude one")


def _config(
    config: Mapping[str, Any] | None, quantization_config: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    if config is None:
        return None
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    return plain if quantization_config is None else {**plain, "quantization_config": quantization_config}
