"""`write_report`: a report as a page or a picture to look at, or as JSON."""

import os
from importlib.util import find_spec
from pathlib import Path

from modelopt_rs.arguments import check_types
from modelopt_rs.containers.atomic import write_whole
from modelopt_rs.errors import quote
from modelopt_rs.operations.distributions import distributions
from modelopt_rs.report.page import parts_of, to_html
from modelopt_rs.report.pictures import picture
from modelopt_rs.report.reports import CompareReport, InspectReport, Report

__all__ = ["check_report_path", "write_json", "write_report"]

# The libraries that each kind of file is made with.
KINDS = {".html": ("jinja2", "matplotlib"), ".png": ("matplotlib",), ".json": ()}


def write_report(
    report: Report | CompareReport | InspectReport,
    path: str | os.PathLike[str],
    *,
    command: str | None = None,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
) -> None:
    """Write a report as a page to look at (.html), as its pictures (.png), or as JSON (.json).

    The page is one file that opens without a network: sizes before and after, the error of each tensor in a table
    that can be sorted, how the weights of the worst tensors are spread and where their codes stand, and what a run
    measured. For the spread the model and what was made of it are read once more; of a dry run, or where they have
    gone, it is left out.

    Parameters
    ----------
    report : Report, CompareReport or InspectReport
        What `quantize_file`, `prune_file`, `crop_file`, `dequantize_file`, `compare_files` or `inspect_file` returned.
    path : path
        Where to write; replaced if it is there. Whole or not at all.
    command : str, optional
        A command line to show as that which made the report.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory, as in a hub's cache.

    Raises
    ------
    ValueError
        If `path` ends in something else.
    ImportError
        If the extra `report` is not installed (for JSON it need not be).
    OSError
        If the operating system refuses to read or write.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/model.safetensors", [info]) as sink:
    ...         sink.write("fc.weight", w)
    ...         sink.commit()
    ...     report = mo.quantize_file(f"{d}/model.safetensors", f"{d}/small.safetensors", bits=4)
    ...     mo.write_report(report, f"{d}/report.json")
    ...     text = Path(d, "report.json").read_text()
    >>> "fc.weight" in text
    True
    """
    check_types(write_report, locals())
    kind = check_report_path(path)
    if kind == ".json":
        write_json(report, path)
        return
    spread = distributions(report, allow_symlinks_under=allow_symlinks_under)
    if kind == ".png":
        data = picture(parts_of(report), spread)
    else:
        data = to_html(report, spread, command).encode("utf-8", "backslashreplace")
    write_whole(path, data)


def write_json(report: Report | CompareReport | InspectReport, path: str | os.PathLike[str]) -> None:
    """Write a report as JSON, whatever the file is called."""
    write_whole(path, report.to_json().encode())


def check_report_path(path: str | os.PathLike[str]) -> str:
    """Return what kind of file a path names, if it can be written here.

    Raises
    ------
    ValueError
        If its ending names none.
    ImportError
        If the libraries that make it are not installed.
    """
    kind = Path(path).suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"write_report: path must end in .html, .png or .json, got {quote(os.fspath(path))}")
    missing = [name for name in KINDS[kind] if find_spec(name) is None]
    if missing:
        raise ImportError(f'write_report: a report in {kind} needs {missing[0]}: pip install "modelopt_rs[report]"')
    return kind
