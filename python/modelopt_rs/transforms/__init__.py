"""What becomes of a tensor, tile by tile, in more than one operation."""
