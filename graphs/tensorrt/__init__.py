"""What TensorRT makes of a graph: a lint of patterns, and lowerings that serve its compiler."""
