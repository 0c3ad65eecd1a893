"""Graphs → quantized graphs: calibration, recipes, and the passes that insert Q/DQ. No torch."""
