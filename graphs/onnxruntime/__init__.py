"""Lowering of the portable graph to the forms that ONNX Runtime runs fastest on a CPU: one small pass per form."""
