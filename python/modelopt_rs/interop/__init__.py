"""Optimizers for other frameworks: `modelopt_rs.interop.torch` and `modelopt_rs.interop.keras`.

Nothing is imported here: each imports its framework when it is imported itself.
"""
