"""How the documents are built: `make docs`."""

import os
import re
from typing import Any

from modelopt_rs import __version__

project = "modelopt_rs"

release = version = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_click",
    "sphinx_copybutton",
]
copyright = "the modelopt_rs developers"
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]
smartquotes = False  # or the two dashes of an option become one
html_theme = "furo"
html_title = f"modelopt_rs {version}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["lines.css"]
default_role = "py:obj"  # what a docstring puts into backticks is linked where it has a page

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# What a person copies is the command, without its prompt and its output.
copybutton_exclude = ".linenos, .gp, .go"

autosummary_generate = True
autodoc_typehints = "none"  # types stand in the docstrings
numpydoc_show_class_members = True
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False

# Links to the documents of others need a network: without one the same pages are built, with words for links.
intersphinx_mapping = (
    {"numpy": ("https://numpy.org/doc/stable", None), "python": ("https://docs.python.org/3", None)}
    if os.environ.get("MODELOPT_RS_INTERSPHINX") == "1"
    else {}
)


def _plain_text(app: Any, context: Any, lines: list[str]) -> None:
    """A star in the help of a command is a star of a glob."""
    lines[:] = [line.replace("*", r"\*") for line in lines]


def _no_empty_last_line(app: Any, page: str, source: list[str]) -> None:
    """A session of Python in a page ends with an empty line, for the test that runs it; nobody needs to see that."""
    source[0] = re.sub(r"\n\n```$", "\n```", source[0], flags=re.MULTILINE)


def setup(app: Any) -> None:
    """Connect what the pages and the help of commands go through."""
    app.connect("source-read", _no_empty_last_line)
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", _plain_text)
