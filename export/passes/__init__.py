"""Passes on traced graphs; each takes an onnx-ir model and returns how many places it changed."""
