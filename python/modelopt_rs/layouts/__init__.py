"""A weight as named tensors: layouts are found, decoded and encoded; one view shows any of them as plain floats."""
