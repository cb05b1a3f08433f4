"""Guests: optimizers for torch and Keras (`interop.torch`, `interop.keras`), cropped models for transformers.

`modelopt_rs.interop.transformers` loads models of the BERT family that lost heads.

Nothing is imported here: each imports its framework when it is imported itself.
"""
