"""The floors of the Python house: imports go down only. Prints each breach; exits 1 if any.

Read from the syntax tree of every module, imports inside functions too:

- a module imports from its own floor's package or from floors below it (CONTRIBUTING.md, rule 9), also where only type
  checkers look, and by its whole name: no relative import, none by a function that is given a name;
- an import inside a function is of an optional extra, or of a package that needs one;
- no name with an underscore is taken from another package, nor an attribute that only another package has;
- a file has at most 300 lines without its docstrings, a function 50, and 7 arguments but for public keyword options.
"""

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "python"
PACKAGE = "modelopt_rs"
# From the ground up. What stands in one line is one floor: its parts don't know each other.
FLOORS = (
    ("start", "interrupts"),
    ("_core", "_types"),
    ("errors",),
    ("dtypes",),
    ("arguments", "arrays", "deprecated", "signatures"),
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
# The ways up are methods: an optimizer and a quantized array, which know arrays, are saved as files, and a source,
# which knows tensors, gives one in codes by its layout. What they need is imported when it is asked for, or
# `import modelopt_rs.optim` would read all that knows files.
UP = {("quant.checkpoint", "containers"), ("quant.checkpoint", "stream"), ("quant.array", "quant")}
UP |= {("stream.model", "layouts")}
UP |= {("optim.checkpoint", "containers"), ("optim.checkpoint", "stream"), ("optim.optimizer", "optim")}
# What imports by a name that is computed, and the modules that may: names of the face load when they are asked for.
BY_NAME = {"__import__", "exec", "eval", "import_module", "find_loader", "run_module", "run_path", "resolve_name"}
BY_NAME_TAKEN = {("__init__", "import_module")}
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS = 300, 50, 7


@functools.cache
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Return all nodes of a tree, or of a part: they are looked through several times."""
    return tuple(ast.walk(tree))


def shown(path: Path) -> str:
    """Return how a breach names a file."""
    return str(path.relative_to(ROOT.parent))


def parts_of(path: Path) -> tuple[str, ...]:
    """Return a module's name below the package."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts


def imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str, str | None, bool]]:
    """Yield each import: the statement, the module, the name taken of it, and whether it is inside a function."""
    inside = {id(node) for each in nodes(tree) if isinstance(each, FUNCTIONS) for node in nodes(each)}
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, None, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, "." * node.level + (node.module or ""), alias.name, id(node) in inside


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
        where = f"{shown(path)}:{node.lineno}"
        if module.startswith("."):
            yield f"{where}: imports {module} relatively; floors are read from whole names"
            continue
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


def by_name(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield imports by a name that is computed, and looks into the modules that there are."""
    own, name_of_file = ".".join(parts_of(path)), shown(path)
    for node in nodes(tree):
        where = f"{name_of_file}:{getattr(node, 'lineno', 0)}"
        called = node.func if isinstance(node, ast.Call) else None
        # (`model.eval()` is a method; `importlib.import_module` and `builtins.exec` are functions of a module.)
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        of_method = isinstance(called, ast.Attribute) and name in ("exec", "eval")
        if name in BY_NAME and not of_method and (own, name) not in BY_NAME_TAKEN:
            yield f"{where}: imports by {name}; floors are read from import statements"
        if isinstance(node, ast.ImportFrom) and node.module in ("importlib", "builtins", "sys", "runpy", "pkgutil"):
            for alias in node.names:
                if alias.name in BY_NAME | {"modules"} and (own, alias.name) not in BY_NAME_TAKEN:
                    yield f"{where}: takes {alias.name} from {node.module}; floors are read from import statements"
        if isinstance(node, ast.Attribute) and node.attr == "modules" and getattr(node.value, "id", "") == "sys":
            yield f"{where}: looks into sys.modules; import what is wanted"


def private_names(tree: ast.Module) -> set[str]:
    """Return the private names that a module defines: functions, classes, variables and attributes."""
    found: set[str] = set()
    for node in nodes(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # of __slots__, or for getattr
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def borrowed(path: Path, tree: ast.Module, defined: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield private attributes that the module's own package doesn't have, and another has; `defined` is by package."""
    own = (parts_of(path) or ("__init__",))[0]
    for node in nodes(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in defined[own]:
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            # What a class inherits is its own; what a library calls so is not ours.
            if isinstance(root, ast.Name) and root.id in {"self", "cls"} | EXTRAS:
                continue
            others = sorted(package for package, names in defined.items() if node.attr in names)
            if others:
                where = f"{shown(path)}:{node.lineno}"
                yield f"{where}: takes the private attribute {node.attr} of {others[0]}"


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the lines of docstrings, and of strings that document a name."""
    lines: set[int] = set()
    for node in nodes(tree):
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
        yield f"{shown(path)}: {n} lines without docstrings ({MAX_LINES} at most)"
    for node in nodes(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        lines = set(range(node.lineno, (node.end_lineno or node.lineno) + 1)) - docs
        where = f"{shown(path)}:{node.lineno}"
        if len(lines) > MAX_FUNCTION + len(node.args.kwonlyargs):
            yield f"{where}: {node.name} has {len(lines)} lines ({MAX_FUNCTION} at most)"
        positional = [arg for arg in node.args.args if arg.arg not in ("self", "cls")]
        if len(positional) > MAX_ARGUMENTS and not node.args.kwonlyargs and not _is_face(node.name):
            yield f"{where}: {node.name} takes {len(positional)} arguments ({MAX_ARGUMENTS} at most)"


def main() -> int:
    """Check every module."""
    texts = {path: path.read_text() for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    defined: dict[str, set[str]] = {}
    for path, tree in trees.items():
        defined.setdefault((parts_of(path) or ("__init__",))[0], set()).update(private_names(tree))
    found = []
    for path, tree in trees.items():
        found += [*breaches(path, tree), *by_name(path, tree), *borrowed(path, tree, defined)]
        found += sizes(path, tree, texts[path])
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
