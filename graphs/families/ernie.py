"""ERNIE 4.5: pairs of neighbouring channels are rotated."""

from __future__ import annotations

import dataclasses
from typing import Any

from spikeexport.graphs.families.correction import Correction


def _neighbouring_pairs(architecture: Any, hf_config: Any) -> Any:
    return dataclasses.replace(architecture, rope_interleave=True)


ERNIE = Correction(config=_neighbouring_pairs)
