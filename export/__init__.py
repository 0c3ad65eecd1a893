"""Checkpoint → graphs: torch and diffusers in, a bundle of ONNX graphs out."""
