"""Scores on question-answering tasks through lm-eval (EleutherAI's evaluation harness)."""
