"""The forms in which a graph has a quantized weight: one module each, and `choice`, which says which one is taken."""
