"""Pruning that removes: importance of slices, what lives and dies together, cropping and repair."""

from modelopt_rs.prune.chains import Layer, chain_groups, mlp_groups
from modelopt_rs.prune.coupling import Group, Member
from modelopt_rs.prune.crop import CropReport, GroupReport, apply_crop, crop, plan_crop, take
from modelopt_rs.prune.importance import importance
from modelopt_rs.prune.repair import InputStats, compensate_bias, least_squares
from modelopt_rs.prune.transformers import cropped_config, transformer_groups

__all__ = [
    "CropReport",
    "Group",
    "GroupReport",
    "InputStats",
    "Layer",
    "Member",
    "apply_crop",
    "chain_groups",
    "compensate_bias",
    "crop",
    "cropped_config",
    "importance",
    "least_squares",
    "mlp_groups",
    "plan_crop",
    "take",
    "transformer_groups",
]
