"""The optimizers of `modelopt_rs.optim` as `torch.optim.Optimizer`, for tensors on the CPU.

They take the place of torch's: learning-rate schedulers, closures, hooks, `torch.amp.GradScaler` and parameter groups
work, and a `state_dict` can be loaded by torch's optimizer of the same name and the reverse. Tensors are stepped where
they are, without a copy.
"""

try:
    import torch
except ModuleNotFoundError as error:
    what = 'interop.torch: torch must be installed; pip install "modelopt_rs[torch]"'
    raise ModuleNotFoundError(what, name=error.name) from error

from modelopt_rs.interop.torch import optimizers
from modelopt_rs.interop.torch.optimizer import Common, Optimizer
from modelopt_rs.interop.torch.optimizers import *  # noqa: F403
from modelopt_rs.signatures import show_options

__all__ = ["Common", "Optimizer"]
__all__ += optimizers.__all__

del torch


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
