"""Pruning: weights that matter least become zeros, what is zero is stored small, and structures are cropped."""

from modelopt_rs.prune.blocks import blocks
from modelopt_rs.prune.chains import Layer, chain_groups, mlp_groups
from modelopt_rs.prune.configuration import cropped_config
from modelopt_rs.prune.coupling import Group, Member
from modelopt_rs.prune.crop import CropReport, GroupReport, apply_crop, crop, plan_crop, take
from modelopt_rs.prune.importance import importance
from modelopt_rs.prune.repair import InputStats, compensate_bias, least_squares
from modelopt_rs.prune.schedule import constant, cubic, linear
from modelopt_rs.prune.sparse import BitmaskArray, GroupsArray, compress, to_csr
from modelopt_rs.prune.sparsegpt import Hessian, sparsegpt
from modelopt_rs.prune.training import PrunedOptimizer
from modelopt_rs.prune.transformers import transformer_groups
from modelopt_rs.prune.unstructured import apply_mask, global_magnitude, magnitude, n_of_m, threshold
from modelopt_rs.prune.wanda import ColumnNorms, wanda
from modelopt_rs.signatures import show_options

__all__ = [
    "BitmaskArray",
    "ColumnNorms",
    "CropReport",
    "Group",
    "GroupReport",
    "GroupsArray",
    "Hessian",
    "InputStats",
    "Layer",
    "Member",
    "PrunedOptimizer",
    "apply_crop",
    "apply_mask",
    "blocks",
    "chain_groups",
    "compensate_bias",
    "compress",
    "constant",
    "crop",
    "cropped_config",
    "cubic",
    "global_magnitude",
    "importance",
    "least_squares",
    "linear",
    "magnitude",
    "mlp_groups",
    "n_of_m",
    "plan_crop",
    "sparsegpt",
    "take",
    "threshold",
    "to_csr",
    "transformer_groups",
    "wanda",
]


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
