"""What compiles a portable .onnx into something that runs fast: one sub-package per backend, listed in `registry`."""
