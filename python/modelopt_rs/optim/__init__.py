"""Optimizers on NumPy arrays, in place: one pass over a parameter, its gradient and its states.

Functions (`adam_step` ...) step one array or a list of arrays; objects (`Adam` ...) hold parameters with their states.
"""

from modelopt_rs.optim import optimizers, schedule
from modelopt_rs.optim.adafactor import adafactor_step
from modelopt_rs.optim.adagrad import adadelta_step, adagrad_step, rmsprop_step
from modelopt_rs.optim.adam import adam_step, adamax_step, adamw_step, nadam_step, radam_step
from modelopt_rs.optim.average import accumulate_step, ema_step, global_norm
from modelopt_rs.optim.derived import add_step_functions
from modelopt_rs.optim.layerwise import lamb_step
from modelopt_rs.optim.matrix_optimizers import Adafactor, Muon
from modelopt_rs.optim.muon import muon_step
from modelopt_rs.optim.optimizer import Optimizer
from modelopt_rs.optim.optimizers import *  # noqa: F403
from modelopt_rs.optim.result import StepResult
from modelopt_rs.optim.sgd import lion_step, sgd_step
from modelopt_rs.optim.state import BlockState
from modelopt_rs.signatures import show_options

__all__ = [
    "Adafactor",
    "BlockState",
    "Muon",
    "Optimizer",
    "StepResult",
    "accumulate_step",
    "adadelta_step",
    "adafactor_step",
    "adagrad_step",
    "adam_step",
    "adamax_step",
    "adamw_step",
    "ema_step",
    "global_norm",
    "lamb_step",
    "lion_step",
    "muon_step",
    "nadam_step",
    "radam_step",
    "rmsprop_step",
    "schedule",
    "sgd_step",
]
__all__ += optimizers.__all__
add_step_functions(globals(), optimizers.__all__)


def __dir__() -> list[str]:
    """Without the modules that these come from."""
    return sorted(__all__)


show_options(globals())
