"""QFeM auto: as few exclusions as meet the target, ranked by local damage, under a budget of weight share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spikeexport.calibration.foundation.progress import track
from spikeexport.calibration.quality import Quality
from spikeexport.calibration.records.plan import TradeOff
from spikeexport.calibration.structure.sites import DecoderStructure

TARGET_KL = 0.01
"""Mean KL to the floating-point model, in nats, at which no further exclusion is sought."""


@dataclass(frozen=True)
class Exclusions:
    """The sites to leave unquantised, and what each step of the way there cost and gave."""

    sites: tuple[str, ...]
    trade_off: tuple[TradeOff, ...]


def rank(damage: Mapping[str, float], shares: Mapping[str, float], budget: float) -> tuple[str, ...]:
    """Orders sites that do damage by damage per weight share, and keeps those that fit the budget together."""
    chosen: list[str] = []
    spent = 0.0
    for site in sorted(damage, key=lambda name: -damage[name] / shares[name]):
        if damage[site] > 0 and spent + shares[site] <= budget + 1e-9:
            chosen.append(site)
            spent += shares[site]
    return tuple(chosen)


def choose_exclusions(
    structure: DecoderStructure,
    damage: Mapping[str, float],
    shares: Mapping[str, float],
    budget: float,
    forced: tuple[str, ...],
    measure: Callable[[frozenset[str]], Quality],
) -> Exclusions:
    """Adds sites in order of damage, doubling the step, until the target is met or the budget is spent.

    Args:
        structure: The model's sites.
        damage: Site -> local damage.
        shares: Site -> share of the decoder's weights.
        budget: Largest share to exclude.
        forced: Sites that the user excluded by hand; they do not count against the budget.
        measure: Quality of the whole model with a set of sites left unquantised, on held-out windows.
    """
    free = {site: value for site, value in damage.items() if site not in forced}
    order = rank(free, shares, budget)
    rows: list[TradeOff] = []
    for count in track(_steps(len(order)), "Trading exclusions against quality"):
        sites = (*forced, *order[:count])
        quality = measure(frozenset(sites))
        rows.append(_row(structure, sites, shares, quality))
        if quality.kl <= TARGET_KL:
            break
    return Exclusions((*forced, *order[: _fewest(rows, order, forced)]), tuple(rows))


def _steps(limit: int) -> list[int]:
    steps = [0, 1]
    while steps[-1] * 2 < limit:
        steps.append(steps[-1] * 2)
    return sorted({min(step, limit) for step in [*steps, limit]})


def _fewest(rows: list[TradeOff], order: tuple[str, ...], forced: tuple[str, ...]) -> int:
    """Returns how many sites of `order` the row with the smallest KL has; a row must earn its place by 2 %."""
    best = rows[0]
    for row in rows[1:]:
        if row.kl < 0.98 * best.kl:
            best = row
    return best.sites - len(forced)


def _row(
    structure: DecoderStructure, sites: tuple[str, ...], shares: Mapping[str, float], quality: Quality
) -> TradeOff:
    wanted = set(sites)
    linears = sum(len(site.linears) for site in structure.sites if site.name in wanted)
    return TradeOff(
        sites=len(sites),
        linears=linears,
        weight_share=sum(shares[site] for site in sites),
        kl=quality.kl,
        perplexity=quality.perplexity,
    )
