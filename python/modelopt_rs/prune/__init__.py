"""Pruning: weights that matter least become zeros, and what is zero is stored small."""

from modelopt_rs.prune.blocks import blocks
from modelopt_rs.prune.schedule import constant, cubic, linear
from modelopt_rs.prune.sparse import BitmaskArray, GroupsArray, compress, to_csr
from modelopt_rs.prune.unstructured import apply_mask, global_magnitude, magnitude, n_of_m, threshold
from modelopt_rs.prune.wanda import ColumnNorms, wanda

__all__ = [
    "BitmaskArray",
    "ColumnNorms",
    "GroupsArray",
    "apply_mask",
    "blocks",
    "compress",
    "constant",
    "cubic",
    "global_magnitude",
    "linear",
    "magnitude",
    "n_of_m",
    "threshold",
    "to_csr",
    "wanda",
]
