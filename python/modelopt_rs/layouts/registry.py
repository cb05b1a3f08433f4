"""The layouts that are read: the one list of them."""

from typing import Final

from modelopt_rs.layouts.bitmask import SPARSE_BITMASK
from modelopt_rs.layouts.layout import Layout
from modelopt_rs.layouts.pack_quantized import METADATA_KEY
from modelopt_rs.layouts.packed_weight import PACK_QUANTIZED

__all__ = ["LAYOUTS", "METADATA_KEY"]

LAYOUTS: Final[tuple[Layout, ...]] = (PACK_QUANTIZED, SPARSE_BITMASK)
"""All layouts, each of which finds its own weights."""
