"""What goes through an ONNX model while it runs, and how far quantized weights put it off."""
