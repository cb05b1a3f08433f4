"""`Losses`: what each code costs each weight of a model, and the model with the codes that are chosen."""

import glob
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from modelopt_rs.containers.container import Access
from modelopt_rs.containers.registry import open_source
from modelopt_rs.errors import FormatError, OptionError, UnsupportedError
from modelopt_rs.layouts.float_quantized import FLOAT_QUANTIZED
from modelopt_rs.operations.planned import Planned, whole
from modelopt_rs.operations.quantize import planner
from modelopt_rs.operations.skeleton import Writing, perform
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.loaders import groups_alike, is_expert
from modelopt_rs.planning.loss_table import (
    FLOAT,
    ZERO_POINTS,
    Answer,
    Coded,
    LossTable,
    TensorLosses,
    role_of,
    shared_group,
)
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.planning.sensitivity import Measured, layer_error
from modelopt_rs.report.reports import Report, TensorReport
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.memory import tile_bytes
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Transform
from modelopt_rs.transforms.together import Together

__all__ = ["EVERY", "Losses"]

CODES: Final[Mapping[str, tuple[int, int | None]]] = {
    "8g32": (8, 32),
    "8g128": (8, 128),
    "8": (8, None),
    "4g16": (4, 16),
    "4": (4, None),
    "4g64": (4, 64),
    "4g128": (4, 128),
    "2": (2, None),
    "2g64": (2, 64),
}
"""What weights can get: bits, and elements that share a scale where it is not what fits them.

Each number of bits has more than one size, or uniform bits would leave nothing to take from a weight for another.
"""

WITH_ZERO_POINTS: Final[Mapping[str, tuple[int, int | None]]] = {
    f"{code}{ZERO_POINTS}": how for code, how in CODES.items() if how[0] < 8
}
"""What besides all weights together can get where there is a config: it is what `quantize` gives them by default."""

EVERY: Final = {**CODES, **WITH_ZERO_POINTS}

STAYS: Final = "least loss at this size"  # why a weight has no code: nobody has excluded it
LARGEST: Final = 2**28  # bytes of a graph that is made and run with several answers
# About how far weights are off in so many bits: before they are measured.
USUAL: Final = {8: 0.007, 4: 0.08, 2: 0.33}


Plans: TypeAlias = dict[str, Planned]  # of a model with all its weights in one code, by code


@dataclass(frozen=True, slots=True)
class Losses:
    """One model, how it is read and written, and what is asked of all its weights."""

    source: str | os.PathLike[str]
    output: str | os.PathLike[str]
    options: QuantizeOptions
    onnx: OnnxOptions | None
    run: RunOptions | None
    writing: Writing

    @contextmanager
    def planned(self) -> Iterator[Plans]:
        """Plan each code; while it lasts all sources are open."""
        with ExitStack() as stack:
            yield self._plans(stack, self._execution())

    def sizes(self, found: Plans) -> LossTable:
        """Return the table without errors: plans alone, no weight is read."""
        with self._open() as source:
            roles, options = _roles(source), self._with(source)
            config = {} if options.only_dequantize or source.graph is not None else source.config or {}
        coded = {name: sizes for each in found.values() for name, sizes in each.codes.items()}
        rest = next(iter(found.values()))
        tensors = {}
        for name in coded:
            codes = {FLOAT: Coded(rest.copied[name], 0.0)}
            codes |= {code: each.codes[name] for code, each in found.items() if name in each.codes}
            group = name if rest.has_graph else shared_group(name)
            tensors[name] = TensorLosses(rest.elements[name], roles.get(name) or role_of(name), group, codes)
        # What computes coded weights of a graph is gone: as floats they stand for it.
        there = set(rest.plan.transforms if rest.has_graph else rest.copied) - set(coded)
        fixed = rest.overhead + sum(rest.copied[name] for name in there)
        alike = groups_alike(dict.fromkeys(coded, options.spec), options.layout.name, config)
        names = tuple(name for _, names in alike for name in names if not is_expert(name))  # they are a group
        return LossTable(rest.fingerprint, fixed, tensors, names)

    def check(self, table: LossTable, size: int) -> None:
        """Refuse what could not be written, before weights are measured: bits are given as if all were alike."""
        usual = {
            name: replace(each, codes={code: _usual(code, coded) for code, coded in each.codes.items()})
            for name, each in table.tensors.items()
        }
        codes, _ = replace(table, tensors=usual).allocate(size, {})
        self._perform(codes, None, replace(self.writing, dry_run=True))

    def measured(self, table: LossTable, plans: Plans) -> LossTable:
        """Return the table with errors: each tile of a weight is read once, and taken through all codes.

        Of an ONNX model that may be run it is measured too what errors do to its outputs.
        """
        execution = self._execution(self.writing.progress)
        names = list(table.tensors)
        view = next(iter(plans.values())).plan.view
        has_graph = view.graph is not None
        nbytes = sum(view.tensors[name].nbytes for name in names)
        execution.total = 2 * nbytes if has_graph and self.run is not None else nbytes
        found = {name: dict(table.tensors[name].codes) for name in names}
        for name in names:
            transforms = {code: each.transform(name) for code, each in plans.items() if name in each.codes}
            errors = _errors(view, name, transforms, execution)
            able = {code: coded for code, coded in found[name].items() if code in errors or code not in transforms}
            found[name] = {code: replace(coded, error=errors.get(code, coded.error)) for code, coded in able.items()}
        if has_graph and self.run is not None:
            found = self._with_outputs(found, execution)
        return replace(table, tensors={name: replace(each, codes=found[name]) for name, each in table.tensors.items()})

    def nbytes(self, codes: Mapping[str, str], otherwise: int) -> int:
        """Return the bytes of an ONNX model with these codes, exactly; of others what the table says."""
        found = [otherwise]

        def measured(source: Source, plan: FilePlan) -> None:
            if source.graph is not None:
                found[0] = whole(source, plan)

        self._perform(codes, None, replace(self.writing, dry_run=True), measured)
        return found[0]

    @contextmanager
    def looked_at(self) -> "Iterator[Callable[[Mapping[str, str]], Answer] | None]":
        """Give what makes the model with codes, and says how far its scores are off; None where they can't be seen.

        They are seen of a graph that may be run, runs on inputs that are given or made up, and isn't too large.
        """
        # What an iterator has is good for one pass, which is that of the last check.
        if self.run is None or isinstance(self.run.inputs, Iterator):
            yield None
            return
        with ExitStack() as stack:
            source = stack.enter_context(self._open())
            if source.graph is None or source.nbytes > LARGEST:
                yield None
                return
            from modelopt_rs.onnx.measure.layer_inputs import Data
            from modelopt_rs.onnx.measure.whole_errors import WholeErrors

            data = Data(None, self.run)
            try:
                errors = WholeErrors(source, data, self._execution())
            except (FormatError, UnsupportedError):
                if not data.made_up:
                    raise
                yield None
                return
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelopt-rs-")))
            made = replace(self, output=folder / Path(self.output).name)
            quiet = replace(self.writing, dry_run=False, overwrite=True, verify=False, durable=False, progress=None)

            def off(codes: Mapping[str, str]) -> Answer:
                made._perform(codes, None, quiet)
                return Answer(dict(codes), Path(made.output).stat().st_size, errors.of(made.output))

            yield off

    def written(self, codes: Mapping[str, str]) -> Report:
        """Write the model."""
        report = self._perform(codes, self.run, self.writing)
        return replace(report, tensors=tuple(_with_reason(each, codes) for each in report.tensors))

    def _with_outputs(self, found: dict[str, dict[str, Coded]], execution: Execution) -> dict[str, dict[str, Coded]]:
        """Return the codes with what each does to the outputs of an ONNX model."""
        from modelopt_rs.onnx.measure.layer_inputs import Data
        from modelopt_rs.onnx.measure.output_errors import output_errors

        with self._open() as source:
            seen = output_errors(source, found, Data(None, self.run), execution)
        return {
            name: {
                code: coded if name not in seen else replace(coded, output=coded.error * _more(seen[name], code))
                for code, coded in codes.items()
            }
            for name, codes in found.items()
        }

    def _execution(self, progress: Any = None) -> Execution:
        writing = self.writing
        return Execution(
            writing.max_memory, writing.threads, progress, 0, source=str(self.source), output=str(self.output),
            dry_run=True, overwrite=writing.overwrite,
        )  # fmt: skip

    def _open(self) -> Source:
        return open_source(self.source, Access(allow_symlinks_under=self.writing.allow_symlinks_under))

    def _plans(self, stack: ExitStack, execution: Execution) -> Plans:
        """Plan each code; a graph is edited by a plan, and so opened for each."""
        found: dict[str, Planned] = {}
        refused: OptionError | None = None
        source = stack.enter_context(self._open())
        for code, (bits, group_size) in (EVERY if self._is_loaded(source) else CODES).items():
            if source.graph is not None and (found or refused):
                source = stack.enter_context(self._open())
            # Where nothing is named float8 stays as it is at 8 bits, and then no other code could be compared with it.
            named = {"*": bits} if source.graph is None and FLOAT_QUANTIZED.mark(source.tensors) else {}
            options = self._with(source, [code], bits=bits, group_size=group_size, bits_of=named)
            try:
                plan = planner(options, self.onnx, None)(source, execution)
            except OptionError as why:  # experts, or what is included, have no such blocks or no zero points
                refused = refused or why
                continue
            run = self.run if source.graph is not None else None
            found[code] = Planned.of(source, plan, f"{self.options} {self.onnx} {_said(run)}")
        if refused is not None and not found:
            raise refused
        return found

    def _is_loaded(self, source: Source) -> bool:
        """Whether there is a config for loaders."""
        return source.graph is None and bool(source.config) and not self.options.only_dequantize

    def _with(self, source: Source, codes: Iterable[str] = (), **changes: Any) -> QuantizeOptions:
        """Return the options; where there is a config for loaders mixed bits have no zero points."""
        scheme = "asymmetric" if any(code in WITH_ZERO_POINTS for code in codes) else "symmetric"
        return replace(self.options, scheme=scheme if self._is_loaded(source) else None, **changes)

    def _perform(
        self,
        codes: Mapping[str, str],
        run: RunOptions | None,
        writing: Writing,
        see: Callable[[Source, FilePlan], None] = lambda source, plan: None,
    ) -> Report:
        coded = {glob.escape(name): EVERY[code] for name, code in codes.items() if code != FLOAT}
        bits_of = {name: bits for name, (bits, _) in coded.items()}
        size_of = {name: size for name, (_, size) in coded.items() if size is not None}
        left = [glob.escape(name) for name, code in codes.items() if code == FLOAT]

        def plan(source: Source, execution: Execution) -> FilePlan:
            exclude = [*self.options.exclude, *left]
            options = self._with(source, codes.values(), bits_of=bits_of, group_size_of=size_of, exclude=exclude)
            made = planner(options, self.onnx, run)(source, execution)
            see(source, made)
            return made

        report: Report = perform(self.source, self.output, plan, writing)
        return report


def _with_reason(each: TensorReport, codes: Mapping[str, str]) -> TensorReport:
    return replace(each, reason=STAYS) if codes.get(each.name) == FLOAT else each


def _usual(code: str, coded: Coded) -> Coded:
    return coded if code == FLOAT else replace(coded, error=USUAL[EVERY[code][0]])


def _more(seen: Mapping[int, float], code: str) -> float:
    """Return by how much an error is more at the outputs: of bits that were not tried as of the nearest."""
    bits = 8 if code == FLOAT else EVERY[code][0]
    return seen[min(seen, key=lambda tried: abs(tried - bits))]


def _roles(source: Source) -> Mapping[str, str]:
    if source.graph is None:
        return {}
    from modelopt_rs.onnx.measure.output_errors import roles

    return roles(source.graph)


def _said(run: RunOptions | None) -> str:
    """Return what it is measured on, in words."""
    if run is None:
        return "not run"
    inputs = run.inputs if isinstance(run.inputs, (str, os.PathLike)) else type(run.inputs).__name__
    return f"{inputs} {dict(run.dims)} {run.samples} {run.seed}"


def _errors(view: Source, name: str, transforms: Mapping[str, Measured], execution: Execution) -> dict[str, float]:
    """Take a weight through all that code it: each tile once, or once for each where memory isn't enough for all.

    What its numbers are too large for is not in the answer.
    """
    info = view.tensors[name]
    together = [Together(list(transforms.values()))]
    try:
        for each in together:
            buffers = [*view.buffers(name), *each.buffers]
            tile_bytes(info, buffers, execution.max_memory, row_multiple=each.row_multiple)
    except OptionError:
        together = [Together([each]) for each in transforms.values()]
    quiet = replace(execution, progress=None, done=0)
    for each in together[1:]:
        _run(view, name, each, quiet)
    _run(view, name, together[0], execution)
    able = [each for these in together for each in these.able]
    return {code: layer_error(each.figures) for code, each in transforms.items() if each in able}


def _run(view: Source, name: str, transform: Transform, execution: Execution) -> None:
    for _ in TensorJob(view, name, transform).run(execution):
        pass
