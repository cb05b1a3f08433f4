"""What the linear layers of a Hugging Face model read, while transformers runs it on texts: sums, never the values."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.containers.numpy_files import read_npz
from modelopt_rs.errors import OptionError, quote
from modelopt_rs.planning.calibration import Calibrate, repeatable
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms
from modelopt_rs.stream.model import Source
from modelopt_rs.transforms.sums import Sums

__all__ = ["ModuleInputs", "can_run", "linear_weights", "run_modules"]

LONGEST: Final = 2048  # tokens of a text
VOCABULARIES: Final = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
NONE: Final = "calibrate must have one or more samples, got none"
EXTRA: Final = "calibrate: a Hugging Face model is run by transformers"


def can_run(source: Source) -> bool:
    """Whether transformers can run a model: it is a Hugging Face directory, and says what it is."""
    return source.container == "checkpoint" and source.config is not None


def linear_weights(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return which weights are those of linear layers, by name the module; nothing is loaded.

    A base model's file under a head, and the reverse, differ by a prefix; some families have other names in files than
    in this version of transformers.

    Raises
    ------
    ImportError
        If torch and transformers aren't installed.
    """
    torch, transformers = _libraries()
    with torch.device("meta"):
        model = _class(transformers, path)(_config(transformers, path))
    linear = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    prefix, loaded = f"{model.base_model_prefix}.", _renaming(model)
    found = {}
    for name in names:
        plain = loaded(name).removesuffix(".weight")
        for each in (plain, prefix + plain, plain.removeprefix(prefix)):
            if name.endswith(".weight") and each in linear:
                found[name] = each
                break
    return found


def _renaming(model: Any) -> Callable[[str], str]:
    """Return what transformers calls a tensor of a file; before version 5 it calls it the same."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, apply_renamings
    except ImportError:
        return lambda name: name
    # What puts tensors together or turns them is no weight of a layer as it stands in the file.
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    return partial(apply_renamings, weight_renamings=renamings)


def run_modules(path: Path, modules: Mapping[str, str], given: Calibrate, visit: Callable[[str, Array], None]) -> None:
    """Run a model on samples, and hand on what its layers read.

    Parameters
    ----------
    path : Path
        The directory of the model, and of its tokenizer where samples are texts.
    modules : mapping
        By name of a weight its module: what `linear_weights` gives, or a part of it.
    given : path, mapping, iterable or callable
        A file of texts, one in a line; texts; or arrays by name of the model's inputs, with the batch in front.
    visit : callable
        Called with the name of a weight and rows of float32 (n, in), layer by layer, as often as there are samples.

    Raises
    ------
    OptionError, ValueError, TypeError
        If the samples are none, or don't fit the model.
    """
    torch, transformers = _libraries()
    model = _class(transformers, path).from_pretrained(path, dtype="auto", local_files_only=True).eval()
    layers = dict(model.named_modules())

    def hook(name: str) -> Callable[..., None]:
        def see(module: Any, inputs: Any) -> None:
            rows = inputs[0].detach().reshape(-1, module.in_features).to(torch.float32)
            visit(name, np.ascontiguousarray(rows.numpy()))

        return see

    hooks = [layers[module].register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        count = 0
        for feed in _feeds(torch, transformers, path, model.config, given):
            if model.config.is_encoder_decoder and "decoder_input_ids" not in feed and "input_ids" in feed:
                feed["decoder_input_ids"] = feed["input_ids"]
            with torch.no_grad(), _running():
                model(**feed)
            count += 1
    finally:
        for each in hooks:
            each.remove()
    if not count:
        raise OptionError(NONE)


class ModuleInputs:
    """Statistics of what goes into layers, collected when they are asked for, as `onnx.layer_statistics` has them.

    Parameters
    ----------
    path : Path
    modules : mapping
        By name of a weight its module, in the order in which they will be asked for.
    kind : type
        `ColumnNorms` or `Hessian`.
    columns : mapping
        By name of a weight how many inputs it has.
    given : path, mapping, iterable or callable
    max_memory : int
        For the sums: where those of all layers take more, the samples are run as often as it needs.
    """

    def __init__(
        self,
        path: Path,
        modules: Mapping[str, str],
        kind: type[ColumnNorms] | type[Hessian],
        columns: Mapping[str, int],
        given: Calibrate,
        max_memory: int,
    ) -> None:
        self._path, self._modules, self._kind, self._columns = path, modules, kind, columns
        self._given = repeatable(given)
        self._max_memory = max_memory
        _check_first(path, next(iter(_samples(self._given)), None))  # what can't be is refused before anything is read
        self._seen: dict[str, ColumnNorms | Hessian] = {}

    def of(self, name: str) -> Sequence[ColumnNorms | Hessian]:
        """Return the statistics of the inputs of a weight; of no rows where no sample reaches its layer.

        Raises
        ------
        ValueError
            If an input is not finite, or no sample reaches any layer.
        """
        if name not in self._seen:
            self._seen = {}  # let go before others are made
            self._seen = self._collect(self._together(name))
        if self._seen.keys() == self._modules.keys() and not any(each.count for each in self._seen.values()):
            raise ValueError(f"calibrate: no sample reaches a layer, as that of {quote(name)}; give other samples")
        return [self._seen[name]]

    def keep(self, names: Sequence[str]) -> None:
        """Collect those of these weights only; in this order they will be asked for."""
        self._modules = {name: self._modules[name] for name in names}

    def _together(self, name: str) -> list[str]:
        """Return what is collected in one pass: of this weight, and of those after it as far as memory goes."""
        names, found, room = list(self._modules), list[str](), self._max_memory
        for each in names[names.index(name) :]:
            # Float64, and the float32 rows that wait for it.
            size = 12 * self._columns[each] ** (2 if self._kind is Hessian else 1)
            if found and size > room:
                break
            room -= size
            found.append(each)
        return found

    def _collect(self, names: Sequence[str]) -> dict[str, ColumnNorms | Hessian]:
        seen = {name: Sums(self._kind()) for name in names}

        def visit(name: str, rows: Array) -> None:
            with _named(name):
                seen[name].add(rows)

        run_modules(self._path, {name: self._modules[name] for name in names}, self._given, visit)
        for name, sums in seen.items():
            with _named(name):
                sums.flush()
        return {name: sums.statistics for name, sums in seen.items()}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise what is wrong with the inputs of a layer with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"calibrate: what goes into {quote(name)}: {error}") from error


@contextmanager
def _running() -> Iterator[None]:
    """Say of what a model raises that a sample is what it raises it at."""
    try:
        yield
    except (RuntimeError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"calibrate: the model can't be run on a sample: {error}") from error


def _check_first(path: Path, sample: Any) -> None:
    """Refuse a sample that can't be what the model takes, by its names and shapes alone."""
    if sample is None:
        raise OptionError(NONE)
    transformers = _libraries()[1]
    if isinstance(sample, str):
        _tokenizer(transformers, path)
    elif isinstance(sample, Mapping):
        known = inspect.signature(_class(transformers, path).forward).parameters
        names = [name for name in sample if name not in known]
        if names or not sample:
            shown = ", ".join(map(quote, names)) or "none"
            inputs = quote("input_ids" if "input_ids" in known else next(iter(list(known)[1:]), ""))
            raise OptionError(f"calibrate must have arrays by name of the model's inputs, as {inputs}, got {shown}")
        if any(np.size(array) == 0 for array in sample.values()):
            raise OptionError(NONE)


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(f"{EXTRA}: pip install torch transformers") from error
    return torch, transformers


def _config(transformers: Any, path: Path) -> Any:
    """Return a configuration that transformers has a class for; it isn't to ask whether other code may run."""
    try:
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = "a model that transformers has a class for, which runs it: code of its own is never executed"
        raise OptionError(f"calibrate: {path} must be {text}, got {quote(str(error).splitlines()[0])}") from error


def _class(transformers: Any, path: Path) -> Any:
    """Return the class of a model: what its configuration names, else the base model's; never code of its own."""
    config = _config(transformers, path)
    named = getattr(transformers, (config.architectures or [""])[0] or "_", None)
    return named if named is not None else transformers.AutoModel._model_mapping[type(config)]


def _feeds(torch: Any, transformers: Any, path: Path, config: Any, given: Calibrate) -> Iterator[dict[str, Any]]:
    tokenizer = None
    for sample in _samples(given):
        if isinstance(sample, str):
            if tokenizer is None:
                tokenizer = _tokenizer(transformers, path)
            longest = min(getattr(config, "max_position_embeddings", None) or LONGEST, LONGEST)
            yield dict(tokenizer(sample, truncation=True, max_length=longest, return_tensors="pt"))
        elif isinstance(sample, Mapping):
            yield {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in sample.items()}
        else:
            raise TypeError(f"calibrate: samples must be texts or dicts of arrays, got {type(sample).__name__}")


def _samples(given: Calibrate) -> Iterable[Any]:
    if callable(given):
        return _samples(given())
    if isinstance(given, Mapping):
        return [given]
    if not isinstance(given, str | os.PathLike):
        return given
    path = Path(given)
    if path.suffix.lower() == ".npz":
        return [read_npz(path)]
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _tokenizer(transformers: Any, path: Path) -> Any:
    fix = "give arrays by name of the model's inputs, as {'input_ids': ...} or an .npz file"
    # Without any of its files transformers makes one of no words.
    if not any((path / name).exists() for name in VOCABULARIES):
        raise OptionError(f"calibrate: texts need a tokenizer in {path}, got none; {fix}")
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise OptionError(f"calibrate: texts need a tokenizer in {path}, got one that doesn't load; {fix}") from error
