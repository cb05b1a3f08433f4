"""The floors of the Python house: imports go down only. Prints each breach; exits 1 if any.

Read from the syntax tree of every module, imports inside functions too:

- a module imports from its own floor's package or from floors below it (CONTRIBUTING.md, rule 9);
- an import inside a function is of an optional extra, or of a package that needs one;
- no name with an underscore is taken from another package;
- a file has at most 300 lines without its docstrings, a function 50, and 7 arguments but for public keyword options.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "python"
PACKAGE = "modelopt_rs"
# From the ground up. What stands in one line is one floor: its parts don't know each other.
FLOORS = (
    ("_core", "_types"),
    ("errors",),
    ("arguments", "arrays", "deprecated", "signatures"),
    ("dtypes",),
    ("threads",),
    ("reduce",),
    ("quant", "preprocess"),
    ("optim",),
    ("prune",),
    ("stream",),
    ("containers",),
    ("layouts",),
    ("planning",),
    ("transforms",),
    ("report",),
    ("onnx",),
    ("operations",),
    ("files", "graph"),
    ("interop",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
# What may be imported inside a function: the extras, and our packages that can't be imported without one.
EXTRAS = {"click", "keras", "matplotlib", "ml_dtypes", "onnx", "onnx_ir", "onnxruntime", "rich", "tokenizers", "torch"}
EXTRAS |= {"gguf", "h5py", "jinja2", "transformers"}
NEED_AN_EXTRA = ("onnx", "containers.onnx", "interop", "cli")
SHARED = ("_core", "_types", "__init__", "__version__")
# The one way up: saving an optimizer is a method of an object that knows arrays, and writes a file.
# It is imported when it is asked for, or `import modelopt_rs.optim` would read all that knows files.
UP = {("quant.checkpoint", "containers"), ("quant.checkpoint", "stream"), ("quant.array", "quant")}
UP |= {("stream.model", "layouts")}
UP |= {("optim.checkpoint", "containers"), ("optim.checkpoint", "stream"), ("optim.optimizer", "optim")}
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS = 300, 50, 7


def parts_of(path: Path) -> tuple[str, ...]:
    """Return a module's name below the package."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts


def imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str, str | None, bool]]:
    """Yield each import: the statement, the module, the name taken of it, and whether it is inside a function."""
    inside = {id(node) for each in ast.walk(tree) if isinstance(each, FUNCTIONS) for node in ast.walk(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, None, id(node) in inside
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                yield node, node.module, alias.name, id(node) in inside


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def target(module: str, name: str | None) -> tuple[str, ...]:
    """Return which of our modules an import takes from."""
    parts = tuple(module.split(".")[1:])
    return parts or ((name,) if name in LEVEL else ("__init__",))


def breaches(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield what is wrong with the imports of a module."""
    own = parts_of(path)
    lazy = own == ("__init__",)
    for node, module, name, inside in imports(tree):
        where = f"{path.relative_to(ROOT.parent)}:{node.lineno}"
        if module.split(".")[0] != PACKAGE:
            if inside and module.split(".")[0] not in EXTRAS:
                yield f"{where}: imports {module} inside a function, which is no optional extra"
            continue
        other = target(module, name)
        if (".".join(own), other[0]) in UP and (other[0] != own[0] or other[-1] == "checkpoint"):
            continue
        if other[0] not in LEVEL:
            yield f"{where}: {other[0]} is on no floor"
        elif other[0] != own[0] and LEVEL[other[0]] >= LEVEL[own[0]]:
            yield f"{where}: {'.'.join(own)} is below {'.'.join(other)}, which it imports"
        if inside and not lazy and not ".".join(other).startswith(NEED_AN_EXTRA):
            yield f"{where}: imports {'.'.join(other)} inside a function, which needs no optional extra"
        private = [part for part in (*other, name or "") if part.startswith("_") and part not in SHARED]
        if private and other[0] != own[0]:
            yield f"{where}: takes the private name {private[0]} from {'.'.join(other)}"


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the lines of docstrings, and of strings that document a name."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def _is_face(name: str) -> bool:
    """Whether a function is one that users call."""
    return not name.startswith("_") or name.startswith("__")


def sizes(path: Path, tree: ast.Module, text: str) -> Iterator[str]:
    """Yield what is too long."""
    docs = docstring_lines(tree)
    n = len(text.splitlines()) - len(docs)
    if n > MAX_LINES:
        yield f"{path.relative_to(ROOT.parent)}: {n} lines without docstrings ({MAX_LINES} at most)"
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        lines = set(range(node.lineno, (node.end_lineno or node.lineno) + 1)) - docs
        where = f"{path.relative_to(ROOT.parent)}:{node.lineno}"
        if len(lines) > MAX_FUNCTION + len(node.args.kwonlyargs):
            yield f"{where}: {node.name} has {len(lines)} lines ({MAX_FUNCTION} at most)"
        positional = [arg for arg in node.args.args if arg.arg not in ("self", "cls")]
        if len(positional) > MAX_ARGUMENTS and not node.args.kwonlyargs and not _is_face(node.name):
            yield f"{where}: {node.name} takes {len(positional)} arguments ({MAX_ARGUMENTS} at most)"


def main() -> int:
    """Check every module."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        found += [*breaches(path, tree), *sizes(path, tree, text)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
