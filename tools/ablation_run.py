"""Makes the plan of each row of the ablation table and judges it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablation_rows import Row
from spikeexport.calibration.checkpoint import bos_id, load_model, open_checkpoint
from spikeexport.calibration.fakequant import Bits, FakeQuantizer
from spikeexport.calibration.forward import KeyValues, Lead
from spikeexport.calibration.foundation.progress import say
from spikeexport.calibration.options import PlanOptions
from spikeexport.calibration.planned import planned
from spikeexport.calibration.planner import make_plan
from spikeexport.calibration.qfem import weight_shares
from spikeexport.calibration.quality import Quality, Reference, evaluate
from spikeexport.calibration.records.plan import Plan, PlanTensors
from spikeexport.calibration.smoothing.apply import restore_all
from spikeexport.calibration.structure.sites import discover
from spikeexport.calibration.text import evaluation_windows
from spikeexport.calibration.text.reading import join_documents, read_text


class Bench:
    """One model, one text; FP32 is measured once with BOS, and once for each prefix that a row chooses."""

    def __init__(
        self, model: str, text: str, windows: int, seqlen: int, calibration: tuple[str, ...], samples: int | None = None
    ) -> None:
        """Opens the model and measures it in FP32."""
        self._checkpoint = open_checkpoint(model)
        self._model = load_model(self._checkpoint)
        self._originals = {name: parameter.data for name, parameter in self._model.named_parameters()}
        self._structure = discover(self._model)
        self._shares = weight_shares(self._structure, self._model)
        joined = join_documents(read_text(text))
        self._windows = evaluation_windows(self._checkpoint.tokenizer(), joined, seqlen, windows)
        self._calibration = calibration
        self._samples = samples
        self._plans: dict[PlanOptions, tuple[Plan, PlanTensors, float]] = {}
        self._bos = Lead(bos=bos_id(self._checkpoint))
        kept: list = []
        self._fp32 = {self._bos: evaluate(self._model, self._windows, self._bos, keep=kept)}
        self._reference = Reference(kept)
        self.name = self._checkpoint.model_id.name
        self.protocol: dict[str, Any] = {
            "windows": windows,
            "seqlen": seqlen,
            "calibration": [Path(source).name for source in calibration],
            "fp32": self._fp32[self._bos].perplexity,
        }

    def run(self, row: Row) -> dict[str, Any]:
        """Makes the row's plan and measures it; KL is taken to the original behind BOS, whatever the plan's lead."""
        say(f"== {row.name}")
        plan, tensors, seconds = self._plan(row)
        lead = Lead(prefix=plan.prefix.ids) if plan.prefix else self._bos
        quality = self._quality(row, plan, tensors, lead)
        if lead not in self._fp32:
            self._fp32[lead] = evaluate(self._model, self._windows, lead)
        excluded = set(plan.excluded_linears)
        out = [site.name for site in self._structure.sites if excluded & set(site.linears)]
        return {
            "name": row.name,
            "exportable": row.exportable,
            "bits": list(row.bits),
            "perplexity": quality.perplexity,
            "ratio_bos": math.exp(quality.loss - self._fp32[self._bos].loss),
            "ratio_prefix": math.exp(quality.loss - self._fp32[lead].loss),
            "kl": quality.kl,
            "excluded": len(excluded),
            "excluded_share": sum(self._shares[site] for site in out),
            "worst_ratio": max(site.ratio or 0.0 for site in plan.sites),
            "prefix": list(plan.prefix.ids) if plan.prefix else [],
            "seconds": seconds,
            "decisions": plan.decisions,
        }

    def _plan(self, row: Row) -> tuple[Plan, PlanTensors, float]:
        """Returns a row's plan and the seconds that it took; rows with equal wishes share it."""
        options = PlanOptions(calibration=self._calibration, samples=self._samples, **row.wishes)
        if options not in self._plans:
            start = time.perf_counter()
            plan, tensors = make_plan(self._checkpoint, self._model, options)
            restore_all(self._model, self._originals)
            self._plans[options] = plan, tensors, time.perf_counter() - start
        return self._plans[options]

    def _quality(self, row: Row, plan: Plan, tensors: PlanTensors, lead: Lead) -> Quality:
        with self._quantised(row, plan, tensors) as key_values:
            return evaluate(self._model, self._windows, lead, reference=self._reference, key_values=key_values)

    @contextmanager
    def _quantised(self, row: Row, plan: Plan, tensors: PlanTensors) -> Iterator[KeyValues | None]:
        if row.per_token:
            with FakeQuantizer(self._model, self._structure).active(dict.fromkeys(self._shares)):
                yield None
            return
        with planned(self._model, self._structure, plan, tensors, bits=Bits(*row.bits)) as key_values:
            yield key_values
