"""Defaults that the command line shows and the Python functions use; nothing heavy is imported here."""

from __future__ import annotations

SEQLEN = 512
"""Tokens per window of evaluation text."""

WINDOWS = 16
"""Windows that `compare` looks at, and that are sampled where no text is named."""

LAYER_WINDOWS = 2
"""Windows on which `compare` looks inside."""

GENERATIONS = 3
"""Windows whose beginnings `compare` has both subjects continue."""

MAX_NEW_TOKENS = 128
"""Most tokens of a generation."""

SELF_TEXT = "self"
"""Name of text that is sampled from the model or subject itself."""

BENCH_PREFILL = 128
"""Prompt tokens that `bench` measures."""

BENCH_DECODE = 32
"""Steps behind the prompt that `bench` measures."""

BENCH_ROUNDS = 7
"""Measured rounds of `bench`."""

MIN_INT8_COVERAGE = 0.95
"""Least share of the planned linears that `build` wants to be INT8."""
