"""A trial and its statistics as the records of a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from spikeexport.calibration.input_transform import InputTransform
from spikeexport.calibration.observe import SiteStatistics
from spikeexport.calibration.records.plan import ExcludedPrecision, Exclusion, InputSite, PlanTensors
from spikeexport.calibration.smoothing.solve import SolvedFolds
from spikeexport.calibration.spikes import spike_ratio
from spikeexport.calibration.structure.sites import DecoderStructure
from spikeexport.calibration.trial import Trial, behind_folds, rotation_name, shift_name

FLOAT8_MAX = 448.0
"""Largest finite E4M3 value."""


def input_sites(
    structure: DecoderStructure, trial: Trial, statistics: Mapping[str, SiteStatistics], excluded: Collection[str]
) -> tuple[InputSite, ...]:
    """Returns the quantised inputs: all sites but the excluded ones."""
    transform = trial.quantizer.transform
    return tuple(
        InputSite(
            name=site.name,
            linears=site.linears,
            scale=trial.scales[site.name],
            ratio=spike_ratio(statistics[site.name].token_absmax),
            shift=shift_name(site.name) if transform(site.name).shift is not None else None,
            rotation=_rotation_name(transform(site.name)),
        )
        for site in structure.sites
        if site.name not in excluded
    )


def transform_tensors(sites: tuple[InputSite, ...], trial: Trial) -> PlanTensors:
    """Returns the tensors that the shifts and rotations of `sites` refer to."""
    tensors: PlanTensors = {}
    for site in sites:
        transform = trial.quantizer.transform(site.name)
        if site.shift is not None and transform.shift is not None:
            tensors[site.shift] = transform.shift.numpy()
        if site.rotation is not None and transform.rotation is not None:
            tensors[site.rotation] = transform.rotation.numpy()
    return tensors


def _rotation_name(transform: InputTransform) -> str | None:
    return None if transform.rotation is None else rotation_name(len(transform.rotation))


def exclusions(
    structure: DecoderStructure,
    folds: SolvedFolds,
    statistics: Mapping[str, SiteStatistics],
    why: Mapping[str, str],
    precision: ExcludedPrecision,
    sites: Collection[str],
) -> tuple[Exclusion, ...]:
    """Returns one exclusion for each linear of `sites`, in their order; `why` has no entry for those by hand.

    `folds` are those that are left without `sites`.
    """

    def float8_scale(site: str) -> float | None:
        if precision != "fp8":
            return None
        absmax = torch.from_numpy(statistics[site].channel_absmax)
        return float(behind_folds(site, absmax, folds).max()) / FLOAT8_MAX

    by_name = {site.name: site for site in structure.sites}
    return tuple(
        Exclusion(
            linear=linear,
            precision=precision,
            why=why.get(name, "excluded by hand"),
            scale=float8_scale(name),
            ratio=spike_ratio(statistics[name].token_absmax),
        )
        for name in sites
        for linear in by_name[name].linears
    )
