"""Weights of a graph in quantized forms; its activations stay floats."""
