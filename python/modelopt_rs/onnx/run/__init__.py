"""Models in onnxruntime: inputs, sessions, pairs of runs, errors of outputs, latency."""
