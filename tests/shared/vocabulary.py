"""One word for each idea in public signatures: the table, and the page `docs/reference/vocabulary.md` made from it.

`python tests/shared/vocabulary.py` writes the page. A new word that many functions share gets a row in `WORDS`.
"""

import importlib
import inspect
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "vocabulary.md"
MODULES = ("", ".reduce", ".quant", ".prune", ".optim", ".optim.schedule", ".preprocess", ".graph")
# Word: what it means, and the values that it may have where these are words or few.
WORDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "axis": ("Along which axis, or which axes; of quantization: the axis that keeps its own scale.", ()),
    "betas": ("How much of the means of gradients and of their squares stays.", ()),
    "bias": ("What a layer adds to its products.", ()),
    "bits": ("Bits of a code.", (8, 4, 2)),
    "block_size": ("Columns that GPTQ and SparseGPT take at a time.", ()),
    "calibrate": ("Samples of what goes into a model: a path, arrays, or what gives them.", ()),
    "clip_value": ("Gradients are clamped to ± this.", ()),
    "codes": ("The codes of a quantized array.", ()),
    "coding": ("How states of optimizers are coded in 8 bits.", ("minifloat", "dynamic", "dynamic4")),
    "damping": ("What is added to the diagonal of a Hessian, in units of its mean.", ()),
    "dry_run": ("Decide and report, write nothing.", (False, True)),
    "dtype": ("The dtype of what is read (`bf16`: bits in uint16) or made.", ()),
    "durable": ("Wait until the output is on the disk.", (False, True)),
    "ema_decay": ("How much of the averages of weights stays in each step.", ()),
    "eps": ("What is added to a denominator; of `threshold`: the largest magnitude that goes.", ()),
    "exclude": ("Globs of tensors that are left alone; they win.", ()),
    "exp_avg": ("The mean of gradients.", ()),
    "exp_avg_sq": ("The mean of squares of gradients.", ()),
    "format": ("The name of a format of codes; of `prune_file`: how zeros are stored.", ()),
    "grad": ("A gradient, or a list or dict of them.", ()),
    "grad_scale": ("Gradients are divided by it.", ()),
    "group_size": ("How many elements share a scale.", ()),
    "groups": ("What lives and dies together when a model is cropped.", ()),
    "hessian": ("The second derivative of a layer's squared error: a `Hessian` or an array.", ()),
    "include": ("Globs of tensors to take besides the default.", ()),
    "keep": ("What stays of the units of a group: a share (a float) or a number (an int).", ()),
    "keepdims": ("Axes that are reduced stay, with length 1.", (False, True)),
    "kept": ("The units that stay, ascending.", ()),
    "lr": ("The learning rate; of the classes a function of the step as well.", ()),
    "m": ("Of N:M: of how many consecutive weights `n` stay.", ()),
    "mask": ("Return which weights stay instead of the weights; of `apply_mask`: that.", (None, "bool", "bits")),
    "master": ("Float32 copies of parameters in 16 bits: kept (classes), or given (steps).", ()),
    "max_memory": ("The most bytes for data: a number, or a text such as `64MiB`.", ()),
    "maximize": ("Ascend instead of descend.", (False, True)),
    "method": ("Which of several ways: of ranges, of pruning, of rounding weights.", ()),
    "model": ("A graph of an ONNX model.", ()),
    "momentum": ("How much of a direction or a range stays.", ()),
    "n": ("Of N:M: how many of `m` consecutive weights stay; of `num_threads`: how many threads.", ()),
    "name": ("The name of something.", ()),
    "nesterov": ("Nesterov's momentum.", (False, True)),
    "nonfinite": (
        "What becomes of NaN (and of infinities, where they have no place): refused; `saturate`: codes of zero and the "
        "limits; `largest`: NaN counts as larger than all; `remove`: units with it go first; `propagate`: taken as it "
        "is; `skip`: no step is made.",
        ("raise", "saturate", "largest", "remove", "propagate", "skip"),
    ),
    "norm": ("Which norm; of searched scales: the power of errors, 0.5 to 4.", (1, 2, "inf")),
    "offset": ("What is added: to codes times scale, or to the place of a unit.", ()),
    "onnx": ("Options of ONNX models alone.", ()),
    "out": ("What is written and returned; the input itself: in place.", ()),
    "out_path": ("The file or directory that is written.", ()),
    "overwrite": ("Replace what is there.", (False, True)),
    "param": ("A parameter, or a list or dict of them. Written.", ()),
    "params": ("Parameters: an array, a list, a dict, or groups with options of their own.", ()),
    "path": ("A file or directory that is read.", ()),
    "progress": ("Called as the work goes on.", ()),
    "q": ("A quantized array or its codes; of `quantile`: which.", ()),
    "rounding": ("What becomes of halves.", ("even", "away")),
    "rounding_seed": ("Round by chance, with this seed.", ()),
    "run": ("On which inputs ONNX models are run; None: not at all.", ()),
    "scale": ("What codes are multiplied by.", ()),
    "scale_dtype": ("What scales are rounded to.", (None, "float32", "float16", "bfloat16")),
    "scheme": ("How codes lie around zero.", ("symmetric", "asymmetric", "minmax")),
    "scope": (
        "Of what the same share goes: each tensor, row or group, or all together.",
        ("tensor", "row", "group", "global"),
    ),
    "search": ("How scales are found: by the plain formula, or those of least squared error.", (None, "mse")),
    "semantics": ("Whose formula of Adam.", ("torch", "keras", "optax")),
    "shape": ("The shape of an array.", ()),
    "signed": ("Whether codes have a sign.", (None, False, True)),
    "source_path": ("The model that is read.", ()),
    "sparsity": ("The share that becomes zero, from 0 to 1; of classes and schedules by steps as well.", ()),
    "state_bits": ("Bits of a number of an optimizer's state.", (32, 8, 4)),
    "state_min_size": ("Smaller parameters keep float32 states.", ()),
    "step": ("The number of this step; the first is 1.", ()),
    "steps": ("How many steps a schedule takes.", ()),
    "tensors": ("Tensors by name.", ()),
    "threads": ("Threads of this call; they never change a result.", ()),
    "units": ("How many units a group has.", ()),
    "verify": ("Read the output back before it takes its place.", (False, True)),
    "w": ("A weight.", ()),
    "weight_decay": ("How much weights shrink in a step.", ()),
    "weights": ("What errors of columns count.", ()),
    "x": ("An array of numbers.", ()),
    "x_stats": ("What went into a layer: `ColumnNorms`, `InputStats`, `Hessian` or an array.", ()),
    "zero_point": ("The code of zero.", ()),
    "allow_symlinks_under": ("External data may be links to files beneath this directory.", ()),
}
# Words of version 0.1 that no signature may have again, and what they are now.
FORMER = {
    "nan": "nonfinite",
    "error_if_nonfinite": "nonfinite",
    "group": "m, or group_size",
    "damp": "damping",
    "x_norm": "x_stats",
}
# All that has another form than in version 0.1, for the page.
CHANGES = (
    ("nan=", "nonfinite="),
    ("error_if_nonfinite=True", 'nonfinite="raise"'),
    ("keep=2, group=4", "n=2, m=4"),
    ("--keep 2:4 (prune)", "--n-of-m 2:4"),
    ("--nan", "--nonfinite"),
    ('scope="local", --scope local', 'scope="group", --scope group'),
    ("blocks(mask=True)", 'blocks(mask="bool")'),
    ("gptq(damp=)", "gptq(damping=)"),
    ("sparsegpt(block=)", "sparsegpt(block_size=)"),
    ("quantize_linear(block_size=)", "quantize_linear(group_size=)"),
    ("unpack(n=)", "unpack(length=)"),
    ("wanda(x_norm=)", "wanda(x_stats=)"),
    ("prune.cubic(step, sparsity=...)", "prune.cubic(sparsity, ...)(step)"),
    ('coding="float8", coding="four"', 'coding="minifloat", coding="dynamic4"'),
    ("Hessian.matrix()", "Hessian.second_derivative"),
    ("ColumnNorms.norm()", "ColumnNorms.norms"),
    ("Hessian.rows, ColumnNorms.rows", "Hessian.count, ColumnNorms.count"),
    ("GroupsArray.keep, GroupsArray.group", "GroupsArray.n, GroupsArray.m"),
)
SHARED = 4
"""A word that so many have needs a row."""


def public() -> dict[str, Callable[..., Any]]:
    """Every public function and class, by its name."""
    found: dict[str, Callable[..., Any]] = {}
    for module in MODULES:
        names = importlib.import_module(f"modelopt_rs{module}")
        for name in names.__all__:
            value = getattr(names, name)
            is_class = inspect.isclass(value)
            if inspect.isfunction(value) or (is_class and not issubclass(value, BaseException)):
                found[f"{module[1:]}.{name}".lstrip(".")] = value
    return found


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function, as `help` shows them."""
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        return []


def users() -> dict[str, list[str]]:
    """Which have a word, by word."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, function in public().items():
        for parameter in parameters(function):
            found[parameter.name].add(name.rpartition(".")[2])
    return {word: sorted(names) for word, names in found.items()}


def page() -> str:
    """The page."""
    lines = [
        "# Vocabulary",
        "",
        "An idea has one name in all functions, classes and commands (there with `--` and `-`). A test reads all",
        "signatures and holds this table, which is made from them.",
        "",
        "| word | meaning | values | in |",
        "| --- | --- | --- | --- |",
    ]
    found = users()
    for word, (meaning, values) in sorted(WORDS.items()):
        names = found.get(word, [])
        shown = ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"| `{word}` | {meaning} | {', '.join(f'`{each}`' for each in values)} | {shown} |")
    lines += ["", "## Former names", "", "They are taken until version 0.3, with a `DeprecationWarning`.", ""]
    lines += ["| version 0.1 | now |", "| --- | --- |"]
    lines += [f"| `{old}` | `{new}` |" for old, new in CHANGES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
