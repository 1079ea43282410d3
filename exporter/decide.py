"""From a user's wishes, or a saved recipe, to a plan."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from spikeexport.calibration.foundation.errors import PlanError, UsageError
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.qfep.given import given_prefix
from spikeexport.calibration.records.plan import Plan, PlanTensors, load_plan
from spikeexport.graphs.quantize import check_activation_scale

if TYPE_CHECKING:
    from spikeexport.calibration.checkpoint import Checkpoint


def refuse_beside_recipe(options: PlanOptions) -> None:
    """A recipe holds all decisions: refuses any other that was made beside it.

    Raises:
        UsageError: Names the option.
    """
    changed = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
    if changed:
        raise UsageError(
            f"--recipe holds all decisions, so that --{changed[0].replace('_', '-')} contradicts it: leave it out, "
            "or export without --recipe."
        )


def read_recipe(checkpoint: Checkpoint, path: Path) -> tuple[Plan, PlanTensors]:
    """Reads a saved plan and checks that it was made for this checkpoint.

    Raises:
        PlanError: It cannot be read, belongs to another model, names a token that the vocabulary lacks, or holds an
            input scale that is not finite and > 0.
    """
    plan, tensors = load_plan(path)
    plan.model.require_same(checkpoint.model_id, f"The recipe {path}")
    _require_tokens(checkpoint, plan, path)
    for site in plan.sites:
        check_activation_scale(site.scale, f"{path}: {site.name}")
    return plan, tensors


def _require_tokens(checkpoint: Checkpoint, plan: Plan, path: Path) -> None:
    vocabulary = checkpoint.config.get_text_config().vocab_size
    for token in plan.prefix.ids if plan.prefix else ():
        if not 0 <= token < vocabulary:
            raise PlanError(
                f"{path}: the prefix holds token id {token}, the vocabulary ids 0 to {vocabulary - 1}: save the recipe "
                "again."
            )


def decide(checkpoint: Checkpoint, options: PlanOptions) -> tuple[Plan, PlanTensors]:
    """Makes the plan: measures and decides for INT8, or writes down that nothing is quantised.

    Raises:
        SpikeExportError: Calibration failed, or an option cannot be understood.
    """
    if options.weights == "fp":
        return plain_plan(checkpoint, options.qfep), {}
    from spikeexport.calibration.checkpoint import load_model
    from spikeexport.calibration.planner import make_plan

    return make_plan(checkpoint, load_model(checkpoint), options)


def plain_plan(checkpoint: Checkpoint, qfep: str) -> Plan:
    """Returns the plan that quantises nothing; it has a prefix only where `qfep` names one.

    Raises:
        UsageError: `qfep` is "ids:" with something else than ids of the vocabulary.
    """
    return Plan(
        model=checkpoint.model_id,
        calibration=None,
        prefix=given_prefix(checkpoint, qfep),
        folds=(),
        sites=(),
        excluded=(),
        alpha=None,
        weights="fp",
        decisions={"weights": "floating point: nothing is quantised"},
    )
