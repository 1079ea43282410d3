"""Exclusion lists as published with arXiv 2405.14428: [[module, ratio], ...], largest ratio first."""

from __future__ import annotations

import re
from pathlib import Path

from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.foundation.records import read_json
from spikeexport.calibration.structure.roles import role_of
from spikeexport.calibration.structure.sites import DecoderStructure, Site

_ROUTER = re.compile(r"\.(gate|router)$")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def read_published(path: Path) -> tuple[tuple[str, float], ...]:
    """Reads a list of (module, ratio).

    Raises:
        PlanError: It is not a list of pairs of a module's name and a ratio above 0.
    """
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise PlanError(f"{path}: expected a list of [module, ratio] pairs, found {type(data).__name__}.")
    for index, entry in enumerate(data):
        pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        if not pair or isinstance(entry[1], bool) or not isinstance(entry[1], (int, float)) or not entry[1] > 0:
            raise PlanError(f"{path}: entry {index} is {entry!r}, expected [module, ratio above 0].")
    return tuple((name, float(ratio)) for name, ratio in data)


def published_sites(structure: DecoderStructure, path: Path) -> dict[str, float]:
    """Returns the sites that a published list leaves unquantised, with their ratios there.

    Names may lack the `model.` in front and may be an older module layout's (`block_sparse_moe.experts.3.w2`): layer,
    expert and role decide. A router is never quantised, so its entry asks for nothing.

    Raises:
        PlanError: The file is malformed, or names a linear that the model does not have.
    """
    found: dict[str, float] = {}
    for name, ratio in read_published(path):
        if _ROUTER.search(name):
            say(f"{name} is a router, which stays floating point anyway", level=1)
            continue
        site = next((site for site in structure.sites if any(_same(name, linear) for linear in site.linears)), None)
        if site is None:
            raise PlanError(
                f"{path} names {name}, which this model of {len(structure.layers)} layers does not have (its linears "
                f"look like {structure.linears[-1]}): the list is for another model."
            )
        found.setdefault(site.name, ratio)
    return found


def first_last_sites(structure: DecoderStructure, count: int) -> tuple[str, ...]:
    """Returns the inputs of the down projections of the first and last `count` layers (arXiv 2504.21553)."""
    depth = len(structure.layers)

    def at_an_end(site: Site) -> bool:
        return site.layer < count or site.layer >= depth - count

    return tuple(site.name for site in structure.sites if site.role == "down" and at_an_end(site))


def _same(published: str, linear: str) -> bool:
    if linear == published or linear.endswith(f".{published}"):
        return True
    keys = [(_number(_LAYER, name), _number(_EXPERT, name), role_of(name)) for name in (published, linear)]
    return keys[0] == keys[1] and keys[0][2] is not None and keys[0][1] is not None


def _number(pattern: re.Pattern[str], name: str) -> int | None:
    match = pattern.search(name)
    return int(match.group(1)) if match else None
