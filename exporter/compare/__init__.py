"""Comparing two subjects on the same tokens: at the logits, and layer by layer inside."""
