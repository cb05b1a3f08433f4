"""Which part of what torch.save has saved is the model, and how its tensors are named."""

from collections.abc import Iterator
from typing import Any, Final

from modelopt_rs.containers.torch_pickle import NumpyArray, StoredTensor
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError, quote

__all__ = ["AVERAGES", "state_dict"]

# Under which keys training scripts save the model, beside its optimizer and other things.
_WRAPPERS: Final = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
# Under which they save means of the weights over the steps (EMA), beside the model or alone: timm's, torchvision's and
# many others'. Of both the model is taken, and the warning of what is left out names the means.
AVERAGES: Final = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "averaged_model")
_TRAINING: Final = ("optim", "lr_sched", "sched")  # how the keys of what else is saved begin
# What DistributedDataParallel puts before every name, and Lightning's Fabric.
_PREFIXES: Final = ("module.", "_forward_module.")
# And what torch.compile, FullyShardedDataParallel and checkpointed activations put before that of any module in it.
_WITHIN: Final = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_MAX_DEPTH = 64
_MAX_VISITS = 2_000_000


def state_dict(
    value: Any, *, unwrap: bool, max_tensors: int, max_names: int
) -> tuple[dict[str, StoredTensor], dict[str, int]]:
    """Return the tensors of a model by name, and how many arrays under which keys are left out.

    Parameters
    ----------
    value : object
        What was saved: a state dict, or a dict with one.
    unwrap : bool
        Whether a state dict is looked for under the keys that scripts use, and prefixes of all names are dropped.
    max_tensors : int
        The most tensors to accept.
    max_names : int
        The most bytes of all names.

    Raises
    ------
    FormatError
        If two tensors get one name, or one a name that is no text. `LimitError`: it is over a limit.
        `UnsupportedError`: there is no tensor.
    """
    walk = _Walk(max_tensors, max_names)
    left_out: dict[str, int] = {}
    while unwrap and isinstance(value, dict):
        inside = _inside(value, walk)
        if inside is None:
            break
        for key, other in value.items():
            if key != inside:
                _leave_out(left_out, str(key), other, walk)
        value = value[inside]
    if unwrap and isinstance(value, dict):
        for key in [key for key, each in value.items() if _is_of_training(key, each)]:
            _leave_out(left_out, key, value[key], walk)
            value = {name: other for name, other in value.items() if name != key}
    tensors: dict[str, StoredTensor] = {}
    for name, each in walk.arrays({"tensor": value} if isinstance(value, StoredTensor) else value):
        if isinstance(each, NumpyArray):
            left_out[name] = 1
        elif name in tensors:
            raise FormatError(f"two tensors are named {quote(name)}")
        else:
            tensors[name] = each
    if not tensors:
        raise UnsupportedError("no tensor is in what was saved; save a state_dict()")
    return (_short(tensors) if unwrap else tensors), left_out


def _inside(value: dict[Any, Any], walk: "_Walk") -> str | None:
    """Return the key under which the state dict stands; None where this is one."""
    for key in _WRAPPERS:
        if _holds(value.get(key), walk):
            return key
    # A part of a model may be called so, but not beside nothing else.
    others = [key for key, each in value.items() if not _is_of_training(key, each) and _holds(each, walk)]
    return others[0] if len(others) == 1 and others[0] in AVERAGES else None


def _holds(value: Any, walk: "_Walk") -> bool:
    return isinstance(value, dict) and next(walk.arrays(value), None) is not None


def _is_of_training(key: Any, value: Any) -> bool:
    """Whether it is what else training saves: by its key, or as optimizers of torch say it, whatever it is called."""
    if isinstance(value, dict) and {"state", "param_groups"} <= value.keys():
        return True
    return isinstance(value, dict | list) and isinstance(key, str) and key.lower().startswith(_TRAINING)


def _leave_out(left_out: dict[str, int], key: str, value: Any, walk: "_Walk") -> None:
    n = sum(1 for _ in walk.arrays({key: value}))
    if n:
        left_out[key] = n


def _short(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Drop what wrappers of modules have put into all names; where two would become one, all stay as they are."""
    inner = {".".join(part for part in name.split(".") if part not in _WITHIN) or name: name for name in tensors}
    if len(inner) == len(tensors):
        tensors = {short: tensors[name] for short, name in inner.items()}
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) and name != prefix for name in tensors):
            tensors = {name.removeprefix(prefix): each for name, each in tensors.items()}
    return tensors


class _Walk:
    """Looks through nested containers, in bounded time: a pickle can hold one in itself, or in itself many times."""

    def __init__(self, max_tensors: int, max_names: int) -> None:
        self._max_tensors, self._max_names = max_tensors, max_names
        self._visits = 0

    def arrays(self, value: Any) -> Iterator[tuple[str, StoredTensor | NumpyArray]]:
        """Yield tensors and arrays with their names: keys and indices, with points between."""
        found = length = 0
        for name, each in self._below(value, "", 0):
            found, length = found + 1, length + len(name)
            if found > self._max_tensors:
                raise LimitError(f"more tensors than max_tensors={self._max_tensors:,}")
            if length > self._max_names:
                raise LimitError(f"the tensors' names have more bytes than max_header={self._max_names:,}")
            yield name, each

    def _below(self, value: Any, name: str, depth: int) -> Iterator[tuple[str, StoredTensor | NumpyArray]]:
        self._visits += 1 + (len(value) if isinstance(value, dict | list | tuple) else 0)
        if self._visits > _MAX_VISITS:
            raise LimitError(f"what was saved has more than {_MAX_VISITS:,} parts")
        if isinstance(value, StoredTensor | NumpyArray):
            yield name, value
            return
        if not isinstance(value, dict | list | tuple):
            return
        if depth == _MAX_DEPTH:
            raise FormatError("what was saved nests too deep")
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(each, StoredTensor | NumpyArray | dict | list | tuple):
                continue
            yield from self._below(each, f"{name}.{_text(key)}" if name else _text(key), depth + 1)


def _text(key: Any) -> str:
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise UnsupportedError(f"a tensor's key must be text or a whole number, got {quote(repr(key))}")
    text = str(key)
    if len(text) > 64 << 10:
        raise LimitError(f"a tensor's name has {len(text):,} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"the name {quote(text)} has no UTF-8") from None
    return text
