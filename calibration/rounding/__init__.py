"""Rounding weights to INT8 codes: nearest, or compensating each error in the columns that follow (GPTQ)."""
