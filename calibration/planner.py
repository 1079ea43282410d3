"""The planner: from a model and a user's wishes to prefix, folds, scales and exclusions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from spikeexport.calibration.behind import Behind, measure_behind, measure_more
from spikeexport.calibration.damage import kl_damage
from spikeexport.calibration.exclusions import choose_exclusions
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.observe import SiteStatistics, observe_sites
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.plan_records import exclusions, input_sites, transform_tensors
from spikeexport.calibration.plan_windows import plan_windows
from spikeexport.calibration.profiler import profile_windows, warn_of_rare_experts
from spikeexport.calibration.qfem import linears_of, sites_at_least, sites_matching, weight_shares
from spikeexport.calibration.qfep.choose import search_prefix
from spikeexport.calibration.qfep.given import given_prefix
from spikeexport.calibration.records.model_id import CalibrationInfo
from spikeexport.calibration.records.plan import Plan, PlanTensors, Prefix, TradeOff, code_scales_name, codes_name
from spikeexport.calibration.rounding.round_plan import round_left_out, round_with_compensation, use_codes
from spikeexport.calibration.smoothing.apply import restore_all
from spikeexport.calibration.smoothing.points import FoldPoints, find_fold_points
from spikeexport.calibration.spikes import spike_ratio
from spikeexport.calibration.structure.sites import DecoderStructure, discover
from spikeexport.calibration.text.tokens import ordinary_tokens
from spikeexport.calibration.trial import Trial, make_trial, rotations_of
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


FIRST_WINDOWS = 16
"""Calibration windows behind BOS on which the paper's ratio is measured and a prefix is searched."""


class _Planner:
    def __init__(self, checkpoint: Checkpoint, model: nn.Module, options: PlanOptions) -> None:
        from spikeexport.calibration.checkpoint import bos_id

        self._checkpoint = checkpoint
        self._model = model
        self._options = options
        self._alpha, self._smoothing, self._rule = options.alpha, options.smoothing, wished_scale_rule(options)
        self._structure: DecoderStructure = discover(model)
        self._rotations = rotations_of(self._structure, self._smoothing)
        self._forced = sites_matching(self._structure, options.exclude)
        self._listed = listed_sites(self._structure, options)
        self._given = given_prefix(checkpoint, options.qfep)
        self._known = wished_profile(checkpoint, options)
        self._bos = bos_id(checkpoint)
        self._decisions: dict[str, str] = {}

    def plan(self) -> tuple[Plan, PlanTensors]:
        texts = plan_windows(self._checkpoint, self._model, self._options)
        windows, held_out, self._search_on = texts.fit, texts.held_out, texts.search
        self._sources = texts.by_source()
        points = find_fold_points(self._model, self._structure)
        behind, trial = self._choose_lead(windows, held_out, points)
        self._describe_smoothing(points)
        codes = self._round(behind, trial, windows, held_out)
        sites, alpha, trade_off = self._exclude(behind, trial, held_out)
        codes = self._codes_of_plan(codes, trial, sites)
        folds = trial.solved.without(sites)
        quantised = input_sites(self._structure, trial, behind.statistics, sites)
        plan = Plan(
            model=self._checkpoint.model_id,
            calibration=texts.info,
            prefix=self._prefix(behind.lead),
            folds=folds.folds,
            sites=quantised,
            excluded=exclusions(
                self._structure, folds, behind.statistics, self._why, self._options.excluded_precision, sites
            ),
            alpha=alpha,
            weights="int8",
            decisions=self._decisions,
            trade_off=trade_off,
            rounding="gptq" if codes else "nearest",
            largest_activation=behind.largest,
        )
        return plan, {**folds.tensors, **transform_tensors(quantised, trial), **codes}

    def _choose_lead(self, windows: np.ndarray, held_out: np.ndarray, points: FoldPoints) -> tuple[Behind, Trial]:
        # The paper's rule takes its ratios from every window.
        first, rest = _few_and_others(windows) if self._alpha is None else (windows, windows[:0])
        plain = self._measure(Lead(bos=self._bos), first, held_out)
        self._ratios = self._paper_ratios(plain.statistics)
        if self._options.qfep == "off":
            self._decisions["prefix"] = "off"
            behind = plain
        elif self._given is not None:
            behind = self._measure(Lead(prefix=self._given.ids), first, held_out)
            change = behind.loss - plain.loss
            self._decisions["prefix"] = f"given; changes the floating-point loss by {change:+.4f} nats"
        else:
            behind = self._search_lead(plain, first, held_out, points)
        return self._complete(behind, rest, points)

    def _search_lead(self, plain: Behind, first: np.ndarray, held_out: np.ndarray, points: FoldPoints) -> Behind:
        search = search_prefix(
            self._model, self._structure, first, self._search_on, held_out, plain.statistics, self._bos, plain.loss
        )
        self._decisions["prefix candidates"] = search.describe()
        if search.best is None:
            self._decisions["prefix"] = "none: no candidate keeps the floating-point loss on held-out windows"
            return plain
        behind = self._measure(Lead(prefix=search.best.candidate.ids), first, held_out)
        without, loss = self._quantised_loss(plain, held_out, points), self._quantised_loss(behind, held_out, points)
        figures = f"INT8 loss on held-out windows {loss:.4f} with it, {without:.4f} without"
        taken = loss < without
        self._decisions["prefix"] = f"{search.best.candidate.method if taken else 'none'}: {figures}"
        return behind if taken else plain

    def _quantised_loss(self, behind: Behind, held_out: np.ndarray, points: FoldPoints) -> float:
        """Loss of the INT8 model behind a lead, no input excluded; leaves the model as it was."""
        originals = {name: parameter.data for name, parameter in self._model.named_parameters()}
        quality = self._trial(behind, points).quality(self._model, held_out, behind.reference)
        restore_all(self._model, originals)
        return behind.loss_with(quality)

    def _complete(self, behind: Behind, rest: np.ndarray, points: FoldPoints) -> tuple[Behind, Trial]:
        """Measures the other windows, and the vocabulary, behind the lead that was chosen, and folds the model."""
        tokens = ordinary_tokens(self._checkpoint, self._model) if self._options.sweeps_vocabulary else None
        behind = measure_more(self._model, self._structure, behind, rest, tokens, self._rotations)
        warn_of_rare_experts(self._structure, behind.statistics)
        return behind, self._trial(behind, points)

    def _measure(self, lead: Lead, windows: np.ndarray, held_out: np.ndarray) -> Behind:
        if lead.prefix:
            description = "Measuring activations behind the prefix"
            statistics = observe_sites(
                self._model, self._structure, windows, lead, rotations=self._rotations, description=description
            )
        else:
            info = CalibrationInfo(sources=(), samples=len(windows), seqlen=windows.shape[1], seed=0, sha256="")
            _, statistics = profile_windows(
                self._checkpoint, self._model, self._structure, windows, lead, info, self._rotations
            )
        return measure_behind(self._model, self._structure, windows, held_out, lead, statistics)

    def _paper_ratios(self, statistics: dict[str, SiteStatistics]) -> dict[str, float]:
        if self._known is not None:
            known = {spikes.name: spikes.ratio for spikes in self._known.modules}
            return {site.name: known[site.name] for site in self._structure.sites}
        return {name: spike_ratio(site.token_absmax) for name, site in statistics.items()}

    def _trial(self, behind: Behind, points: FoldPoints) -> Trial:
        return make_trial(
            self._model,
            self._structure,
            behind.lead,
            behind.statistics,
            points,
            self._smoothing,
            sources=self._sources,
            rule=self._rule,
        )

    def _exclude(
        self, behind: Behind, trial: Trial, held_out: np.ndarray
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
        self, behind: Behind, trial: Trial, held_out: np.ndarray
    ) -> tuple[tuple[str, ...], float | None, tuple[TradeOff, ...]]:
        damage = kl_damage(
            self._model,
            self._structure,
            trial.quantizer,
            trial.scales,
            held_out,
            behind.lead,
            key_values=trial.key_values,
        )
        found = choose_exclusions(
            self._structure,
            damage,
            weight_shares(self._structure, self._model),
            self._options.max_excluded,
            self._forced,
            lambda sites: trial.quality(self._model, held_out, behind.reference, sites),
        )
        self._why = {site: f"KL {damage[site]:.2e} by itself" for site in found.sites}
        last = found.trade_off[-1]
        self._decisions["exclusions"] = (
            f"by their own KL within {self._options.max_excluded:.1%} of the weights: {len(found.sites)} inputs; KL on "
            f"held-out windows {found.trade_off[0].kl:.4f} without any, {last.kl:.4f} with {last.sites}"
        )
        return found.sites, None, found.trade_off

    def _round(self, behind: Behind, trial: Trial, windows: np.ndarray, held_out: np.ndarray) -> PlanTensors:
        wish = self._options.rounding
        if wish == "nearest":
            return {}
        nearest = trial.quality(self._model, held_out, behind.reference)
        kept = {linear: trial.quantizer.weight(linear) for linear in self._structure.linears}
        codes = round_with_compensation(
            self._model,
            self._structure,
            windows,
            behind.lead,
            transforms=trial.quantizer.transforms,
            key_values=trial.key_values,
        )
        use_codes(trial.quantizer, self._structure.linears, codes)
        compensated = trial.quality(self._model, held_out, behind.reference)
        taken = wish == "gptq" or compensated.kl < nearest.kl
        self._decisions["rounding"] = (
            f"{'gptq' if taken else 'nearest'}: KL on held-out windows {compensated.kl:.4f} with error compensation, "
            f"{nearest.kl:.4f} with nearest codes"
        )
        if taken:
            return codes
        for linear, weight in kept.items():
            trial.quantizer.set_weight(linear, weight)
        return {}

    def _codes_of_plan(self, codes: PlanTensors, trial: Trial, excluded: tuple[str, ...]) -> PlanTensors:
        """Excluded inputs lose their folds and rotations; weights that are not stored as INT8 have no codes."""
        if not codes:
            return codes
        sites = [site for site in self._structure.sites if site.name in excluded]
        codes = codes | round_left_out(sites, trial.quantizer, trial.solved, codes)
        if self._options.excluded_precision == "w8a16":
            return codes
        linears = linears_of(self._structure, excluded)
        unused = {name for linear in linears for name in (codes_name(linear), code_scales_name(linear))}
        return {name: tensor for name, tensor in codes.items() if name not in unused}

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


def _few_and_others(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits off `FIRST_WINDOWS`, evenly spaced: every kind of text has its part."""
    first = np.zeros(len(windows), dtype=bool)
    first[np.linspace(0, len(windows) - 1, min(FIRST_WINDOWS, len(windows))).round().astype(int)] = True
    return windows[first], windows[~first]
