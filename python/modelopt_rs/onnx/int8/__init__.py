"""Layers of a graph that compute in int8: calibration, placement, corrections."""
