"""ONNX graphs: building the portable decoder and rewriting it for each backend."""
