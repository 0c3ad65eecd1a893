"""What TensorRT's parser or builder would refuse or leave unfused, found in a graph on any machine, before any build."""
