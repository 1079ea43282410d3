"""The planner: from a model and a user's wishes to prefix, folds, scales and exclusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.damage import local_damage
from spikeexport.calibration.exclusions import choose_exclusions
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.largest_value import largest_value
from spikeexport.calibration.observe import SiteStatistics, observe_sites
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.plan_records import exclusions, input_sites
from spikeexport.calibration.plan_windows import plan_windows
from spikeexport.calibration.profiler import profile_windows
from spikeexport.calibration.qfem import linears_of, sites_at_least, sites_matching, weight_shares
from spikeexport.calibration.qfep.choose import search_prefix
from spikeexport.calibration.qfep.given import given_prefix
from spikeexport.calibration.quality import Quality, Reference, evaluate
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.records.plan import Plan, PlanTensors, Prefix, TradeOff
from spikeexport.calibration.rounding.round_plan import round_with_compensation, use_codes
from spikeexport.calibration.smoothing.apply import restore_all
from spikeexport.calibration.smoothing.points import FoldPoints, find_fold_points
from spikeexport.calibration.spikes import spike_ratio
from spikeexport.calibration.structure.sites import DecoderStructure, discover
from spikeexport.calibration.trial import Trial, make_trial
from spikeexport.calibration.wishes import listed_sites, wished_profile, wished_scale_rule
from torch import nn

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint


def make_plan(checkpoint: Checkpoint, model: nn.Module, options: PlanOptions) -> tuple[Plan, PlanTensors]:
    """Measures the model and decides everything that export needs.

    Args:
        checkpoint: Where the model came from.
        model: Loaded in floating point. Its parameters' data are replaced by the folded ones.
        options: The user's wishes.

    Returns:
        The plan and the vectors of its folds.

    Raises:
        UsageError: An option cannot be understood, or an exclusion matches nothing.
        CalibrationError: The text or the statistics cannot be used.
        PlanError: The profile belongs to another model.
    """
    return _Planner(checkpoint, model, options).plan()


@dataclass(frozen=True)
class _Behind:
    """A lead with what was measured behind it."""

    lead: Lead
    statistics: dict[str, SiteStatistics]
    reference: Reference
    original: Quality
    largest: float


class _Planner:
    def __init__(self, checkpoint: Checkpoint, model: nn.Module, options: PlanOptions) -> None:
        from spikeexport.calibration.checkpoint import bos_id

        self._checkpoint = checkpoint
        self._model = model
        self._options = options
        self._alpha, self._smoothing, self._rule = options.alpha, options.smoothing, wished_scale_rule(options)
        self._structure: DecoderStructure = discover(model)
        self._forced = sites_matching(self._structure, options.exclude)
        self._listed = listed_sites(self._structure, options)
        self._given = given_prefix(checkpoint, options.qfep)
        self._known = wished_profile(checkpoint, options)
        self._bos = bos_id(checkpoint)
        self._decisions: dict[str, str] = {}

    def plan(self) -> tuple[Plan, PlanTensors]:
        texts = plan_windows(self._checkpoint, self._model, self._options)
        windows, held_out, self._search_on = texts.fit, texts.held_out, texts.search
        self._fit = windows
        points = find_fold_points(self._model, self._structure)
        behind, trial = self._choose_lead(windows, held_out, points)
        sites, alpha, trade_off = self._exclude(behind, trial, held_out)
        self._describe_smoothing(points)
        codes = self._round(behind, trial, sites, windows, held_out)
        plan = Plan(
            model=self._checkpoint.model_id,
            calibration=texts.info,
            prefix=self._prefix(behind.lead),
            folds=trial.solved.folds,
            sites=input_sites(self._structure, trial, behind.statistics, sites),
            excluded=exclusions(
                self._structure, trial, behind.statistics, self._why, self._options.excluded_precision, sites
            ),
            alpha=alpha,
            weights="int8",
            decisions=self._decisions,
            trade_off=trade_off,
            rounding="gptq" if codes else "nearest",
            largest_activation=behind.largest,
        )
        shifts = {site.shift: trial.shifts[site.name].numpy() for site in plan.sites if site.shift is not None}
        return plan, {**trial.solved.tensors, **shifts, **codes}

    def _choose_lead(self, windows: np.ndarray, held_out: np.ndarray, points: FoldPoints) -> tuple[_Behind, Trial]:
        plain = self._measure(Lead(bos=self._bos), windows, held_out)
        self._ratios = self._paper_ratios(plain.statistics)
        if self._options.qfep == "off":
            self._decisions["prefix"] = "off"
            return plain, self._trial(plain, points)
        if self._given is not None:
            behind = self._measure(Lead(prefix=self._given.ids), windows, held_out)
            change = behind.original.loss - plain.original.loss
            self._decisions["prefix"] = f"given; changes the floating-point loss by {change:+.4f} nats"
            return behind, self._trial(behind, points)
        return self._search_lead(plain, windows, held_out, points)

    def _search_lead(
        self, plain: _Behind, windows: np.ndarray, held_out: np.ndarray, points: FoldPoints
    ) -> tuple[_Behind, Trial]:
        search = search_prefix(
            self._model,
            self._structure,
            windows,
            self._search_on,
            held_out,
            plain.statistics,
            self._bos,
            plain.original.loss,
        )
        self._decisions["prefix candidates"] = search.describe()
        if search.best is None:
            self._decisions["prefix"] = "none: no candidate keeps the floating-point loss on held-out windows"
            return plain, self._trial(plain, points)
        behind = self._measure(Lead(prefix=search.best.candidate.ids), windows, held_out)
        originals = {name: parameter.data for name, parameter in self._model.named_parameters()}
        without = self._trial(plain, points).quality(self._model, held_out, plain.reference)
        restore_all(self._model, originals)
        trial = self._trial(behind, points)
        quality = trial.quality(self._model, held_out, behind.reference)
        figures = f"INT8 loss on held-out windows {quality.loss:.4f} with it, {without.loss:.4f} without"
        if quality.loss < without.loss:
            self._decisions["prefix"] = f"{search.best.candidate.method}: {figures}"
            return behind, trial
        self._decisions["prefix"] = f"none: {figures}"
        restore_all(self._model, originals)
        return plain, self._trial(plain, points)

    def _measure(self, lead: Lead, windows: np.ndarray, held_out: np.ndarray) -> _Behind:
        if lead.prefix:
            statistics = observe_sites(
                self._model, self._structure, windows, lead, description="Measuring activations behind the prefix"
            )
        else:
            info = CalibrationInfo(sources=(), samples=len(windows), seqlen=windows.shape[1], seed=0, sha256="")
            _, statistics = profile_windows(self._checkpoint, self._model, self._structure, windows, lead, info)
        log_probs: list = []
        original = evaluate(self._model, held_out, lead, keep=log_probs)
        largest = largest_value(self._model, self._structure, statistics, windows, lead)
        return _Behind(lead, statistics, Reference(log_probs), original, largest)

    def _paper_ratios(self, statistics: dict[str, SiteStatistics]) -> dict[str, float]:
        if self._known is not None:
            known = {spikes.name: spikes.ratio for spikes in self._known.modules}
            return {site.name: known[site.name] for site in self._structure.sites}
        return {name: spike_ratio(site.token_absmax) for name, site in statistics.items()}

    def _trial(self, behind: _Behind, points: FoldPoints) -> Trial:
        return make_trial(
            self._model,
            self._structure,
            behind.lead,
            behind.statistics,
            points,
            self._smoothing,
            windows=self._fit,
            rule=self._rule,
        )

    def _exclude(
        self, behind: _Behind, trial: Trial, held_out: np.ndarray
    ) -> tuple[tuple[str, ...], float | None, tuple[TradeOff, ...]]:
        if self._alpha is not None:
            by_ratio = sites_at_least(self._ratios, self._alpha)
            self._why = {site: f"ratio {self._ratios[site]:.4g} >= {self._alpha:g}" for site in by_ratio}
            self._decisions["exclusions"] = f"ratio >= {self._alpha:g}: {len(by_ratio)} inputs"
            return tuple(dict.fromkeys((*self._forced, *by_ratio))), self._alpha, ()
        if self._listed is not None:
            self._why = self._listed
            self._decisions["exclusions"] = f"{self._options.qfem}: {len(self._listed)} inputs"
            return tuple(dict.fromkeys((*self._forced, *self._listed))), None, ()
        if self._options.qfem == "off":
            self._why = {}
            self._decisions["exclusions"] = "off" if not self._forced else "by hand only"
            return self._forced, None, ()
        return self._exclude_by_damage(behind, trial, held_out)

    def _exclude_by_damage(
        self, behind: _Behind, trial: Trial, held_out: np.ndarray
    ) -> tuple[tuple[str, ...], float | None, tuple[TradeOff, ...]]:
        damage = local_damage(
            self._model,
            self._structure,
            trial.quantizer,
            trial.scales,
            held_out,
            behind.lead,
            key_values=trial.key_values,
            shifts=trial.shifts,
        )
        found = choose_exclusions(
            self._structure,
            damage,
            weight_shares(self._structure, self._model),
            self._options.max_excluded,
            self._forced,
            lambda sites: trial.quality(self._model, held_out, behind.reference, sites),
        )
        self._why = {site: f"local damage {damage[site]:.2e}" for site in found.sites}
        last = found.trade_off[-1]
        self._decisions["exclusions"] = (
            f"by local damage within {self._options.max_excluded:.1%} of the weights: {len(found.sites)} inputs; KL on "
            f"held-out windows {found.trade_off[0].kl:.4f} without any, {last.kl:.4f} with {last.sites}"
        )
        return found.sites, None, found.trade_off

    def _round(
        self, behind: _Behind, trial: Trial, excluded: tuple[str, ...], windows: np.ndarray, held_out: np.ndarray
    ) -> PlanTensors:
        wish = self._options.rounding
        if wish == "nearest":
            return {}
        left_out = frozenset(excluded)
        nearest = trial.quality(self._model, held_out, behind.reference, left_out)
        leave = linears_of(self._structure, excluded) if self._options.excluded_precision != "w8a16" else ()
        codes = round_with_compensation(
            self._model,
            self._structure,
            windows,
            behind.lead,
            shifts={site: z for site, z in trial.shifts.items() if site not in left_out},
            key_values=trial.key_values,
            leave=leave,
        )
        use_codes(trial.quantizer, self._structure.linears, codes)
        compensated = trial.quality(self._model, held_out, behind.reference, left_out)
        taken = wish == "gptq" or compensated.kl < nearest.kl
        self._decisions["rounding"] = (
            f"{'gptq' if taken else 'nearest'}: KL on held-out windows {compensated.kl:.4f} with error compensation, "
            f"{nearest.kl:.4f} with nearest codes"
        )
        return codes if taken else {}

    def _describe_smoothing(self, points: FoldPoints) -> None:
        method = self._smoothing
        self._decisions["smoothing"] = f"{method.name}:{method.alpha:g}" if method else "off"
        if method and points.left_out:
            self._decisions["folds left out"] = "; ".join(points.left_out)

    def _prefix(self, lead: Lead) -> Prefix | None:
        if not lead.prefix:
            return None
        if self._given is not None:
            return self._given
        return Prefix(ids=lead.prefix, text=self._checkpoint.tokenizer().decode(list(lead.prefix)))
