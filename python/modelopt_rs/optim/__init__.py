"""Optimizer steps on NumPy arrays, in place: one pass over a parameter, its gradient and its states."""

from modelopt_rs.optim.adafactor import adafactor_step
from modelopt_rs.optim.adagrad import adadelta_step, adagrad_step, rmsprop_step
from modelopt_rs.optim.adam import adam_step, adamax_step, adamw_step, nadam_step, radam_step
from modelopt_rs.optim.layerwise import lamb_step
from modelopt_rs.optim.muon import muon_step
from modelopt_rs.optim.sgd import lion_step, sgd_step

__all__ = [
    "adadelta_step",
    "adafactor_step",
    "adagrad_step",
    "adam_step",
    "adamax_step",
    "adamw_step",
    "lamb_step",
    "lion_step",
    "muon_step",
    "nadam_step",
    "radam_step",
    "rmsprop_step",
    "sgd_step",
]
