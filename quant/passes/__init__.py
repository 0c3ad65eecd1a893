"""Passes that observe and quantize an onnx-ir model."""
