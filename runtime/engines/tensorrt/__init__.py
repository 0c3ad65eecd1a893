"""What both kinds of TensorRT share: the build, its evidence and cache, and running engines without torch."""
