"""The layouts, each of which finds its own weights, and which of them holds a named format: the one list of them."""

from typing import Final

from modelopt_rs.errors import OptionError
from modelopt_rs.layouts.bitmask import SPARSE_BITMASK
from modelopt_rs.layouts.bitsandbytes import BITSANDBYTES
from modelopt_rs.layouts.float_quantized import FLOAT_QUANTIZED, FOREIGN_FLOAT8
from modelopt_rs.layouts.fp4_packed import MXFP4, NVFP4
from modelopt_rs.layouts.layout import Layout, WritableLayout
from modelopt_rs.layouts.pack_quantized import METADATA_KEY
from modelopt_rs.layouts.packed_encoder import PACK_QUANTIZED

__all__ = ["FORMATS", "LAYOUTS", "METADATA_KEY", "layout_of"]

WRITABLE: Final[tuple[WritableLayout, ...]] = (PACK_QUANTIZED, FLOAT_QUANTIZED, MXFP4, NVFP4, BITSANDBYTES)
LAYOUTS: Final[tuple[Layout, ...]] = (*WRITABLE, FOREIGN_FLOAT8, SPARSE_BITMASK)
"""All that are read."""

FORMATS: Final = tuple(format for layout in WRITABLE for format in layout.formats)
"""The named formats that a layout holds."""


def layout_of(format: str | None) -> WritableLayout:
    """Return the layout that holds a named format, or uniform codes.

    Raises
    ------
    OptionError
        If none does.
    """
    if format is None:
        return PACK_QUANTIZED
    for layout in WRITABLE:
        if format in layout.formats:
            return layout
    raise OptionError(f"format must be one of {', '.join(FORMATS)}, which files have a layout for, got {format!r}")
