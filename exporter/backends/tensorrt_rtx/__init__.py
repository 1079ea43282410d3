"""TensorRT-RTX: engines built ahead of time for given compute capabilities, without a GPU."""
