"""From options to what the planner works with: listed sites, the rule of scales, a profile of the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.published import first_last_sites, published_sites
from spikeexport.calibration.records.profile import Profile
from spikeexport.calibration.scales import ScaleRule
from spikeexport.calibration.structure.sites import DecoderStructure

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint


def listed_sites(structure: DecoderStructure, options: PlanOptions) -> dict[str, str] | None:
    """Returns the sites of a fixed rule or a published list with the reason of each, or None for other wishes.

    Raises:
        PlanError: The list is malformed or for another model.
    """
    if options.first_last is not None:
        sites = first_last_sites(structure, options.first_last)
        return dict.fromkeys(sites, f"down projection of the first or last {options.first_last} layers")
    if options.published is not None:
        found = published_sites(structure, options.published)
        return {site: f"published ratio {ratio:.4g}" for site, ratio in found.items()}
    return None


def wished_scale_rule(options: PlanOptions) -> ScaleRule | None:
    """Returns the wish; with "auto" absmax behind a smoothing and a percentile without, as each measures best."""
    if options.scales == "auto" and options.smoothing is None:
        return ScaleRule("percentile")
    return options.scale_rule


def wished_profile(checkpoint: Checkpoint, options: PlanOptions) -> Profile | None:
    """Reads the profile that the user gave, or returns None.

    Raises:
        PlanError: It cannot be read, or belongs to another model.
    """
    if options.profile is None:
        return None
    profile = Profile.load(options.profile)
    profile.model.require_same(checkpoint.model_id, f"The profile {options.profile}")
    return profile
