"""ONNX Runtime on the CPU: lowering, and what its own optimiser really made of it."""
