"""`modelopt-rs info`: what is installed, and what this machine runs."""

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from modelopt_rs import __version__, get_num_threads
from modelopt_rs._core import isa
from modelopt_rs.cli.command import Command
from modelopt_rs.cli.show import line

__all__ = ["info", "version_line"]

# By extra: the packages that it brings.
EXTRAS = {
    "cli": ("click", "rich"),
    "onnx": ("onnx", "onnx-ir", "onnxruntime"),
    "report": ("jinja2", "matplotlib"),
    "bf16": ("ml_dtypes",),
    "keras-files": ("h5py",),
    "torch": ("torch",),
    "keras": ("keras",),
}


@click.command(cls=Command)
def info() -> None:
    """Show the version, the instruction set, the threads, and which extras are installed.

    \b
    modelopt-rs info
    """  # noqa: D301
    line(version_line())
    line(f"Python {platform.python_version()}, NumPy {version('numpy')}, {platform.system()} {platform.machine()}")
    for extra, packages in EXTRAS.items():
        found = {package: _installed(package) for package in packages}
        if all(found.values()):
            line(f"{extra:12}{', '.join(f'{package} {number}' for package, number in found.items())}")
        else:
            line(f'{extra:12}not installed: pip install "modelopt_rs[{extra}]"')


def version_line() -> str:
    """Return the version, and what decides how fast this machine is; neither changes a bit."""
    threads = get_num_threads()
    return f"modelopt-rs {__version__} ({isa()}, {threads} thread{'' if threads == 1 else 's'})"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
