"""Defaults of planning that the command line shows; nothing heavy is imported here."""

from __future__ import annotations

MAX_EXCLUDED = 0.05
"""Share of the decoder's weights that may stay unquantised."""
