"""Exclusion lists as published with arXiv 2405.14428: [[module, ratio], ...], largest ratio first."""

from __future__ import annotations

from pathlib import Path

from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.foundation.records import read_json
from spikeexport.calibration.structure.published_names import map_published_names
from spikeexport.calibration.structure.sites import DecoderStructure, Site


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

    Names are mapped by `map_published_names`. A router is never quantised, so its entry asks for nothing.

    Raises:
        PlanError: The file is malformed, or names a linear that the model does not have.
    """
    published = dict(read_published(path))
    mapped = map_published_names(published, structure.linears)
    if mapped.routers:
        say(f"Routers stay floating point anyway: {', '.join(mapped.routers)}", level=1)
    if mapped.unknown:
        raise PlanError(
            f"{path} names {mapped.unknown[0]}, which this model of {len(structure.layers)} layers does not have (its "
            f"linears look like {structure.linears[-1]}): the list is for another model."
        )
    found: dict[str, float] = {}
    for name, linear in mapped.linears.items():
        found.setdefault(structure.site_of(linear).name, published[name])
    return found


def first_last_sites(structure: DecoderStructure, count: int) -> tuple[str, ...]:
    """Returns the inputs of the down projections of the first and last `count` layers (arXiv 2504.21553)."""
    depth = len(structure.layers)

    def at_an_end(site: Site) -> bool:
        return site.layer < count or site.layer >= depth - count

    return tuple(site.name for site in structure.sites if site.role == "down" and at_an_end(site))
