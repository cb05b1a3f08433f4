"""Operations on the graph of an ONNX model, and runs of models in onnxruntime. Needs the extra `onnx`."""
