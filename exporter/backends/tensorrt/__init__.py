"""TensorRT, and everything that its sibling TensorRT-RTX shares with it: one driver, parameterised by the module."""
