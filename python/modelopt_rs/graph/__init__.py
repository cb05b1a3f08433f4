"""Operations on an `onnx_ir.Model`; they know no files."""
