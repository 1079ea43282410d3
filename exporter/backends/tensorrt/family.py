"""The backend that TensorRT and TensorRT-RTX share: build in a subprocess, read back the truth, open the runner."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir
from spikeexport.backends.base import Backend, BuildOptions
from spikeexport.backends.manifest import Compiled, Target, load_manifest
from spikeexport.backends.signature import graph_signature
from spikeexport.backends.tensorrt.flavor import Flavor
from spikeexport.backends.tensorrt.gpus import ask_gpus
from spikeexport.backends.tensorrt.inspector_json import read_inspector
from spikeexport.backends.tensorrt.layer_log import read_layer_log
from spikeexport.backends.tensorrt.layers import EngineLayer
from spikeexport.backends.tensorrt.limits import max_positions
from spikeexport.backends.tensorrt.probe import probe
from spikeexport.backends.tensorrt.profiles import Limits
from spikeexport.backends.tensorrt.request import BuildAnswer, BuildRequest
from spikeexport.backends.tensorrt.subprocess_build import build_in_subprocess
from spikeexport.backends.tensorrt.truth import engine_truth
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.calibration.foundation.progress import say, warn
from spikeexport.graphs.tensorrt.findings import Finding
from spikeexport.graphs.tensorrt.lint import in_words, lint, reasons_by_module, reasons_by_node
from spikeexport.graphs.tensorrt.lowering import write_lowered
from spikeexport.graphs.tensorrt.roles import find_roles

if TYPE_CHECKING:
    from spikeexport.graphs.reading import PortableModel
    from spikeexport.runners.base import CausalRunner


_FIRST_WITH_FP8 = 8.9

_EXPECTED_WARNING = "Int64 binding"
"""Said for every decoder: token ids are int64."""


class TensorRtFamily(Backend):
    """One driver for both libraries; a subclass names its flavour."""

    flavor: ClassVar[Flavor]

    def why_unavailable(self) -> str | None:
        """Tries the library, and asks for a GPU where building needs one."""
        flavor = self.flavor
        found = probe(flavor)
        no_gpu = ask_gpus().why_none if flavor.needs_gpu else None
        if found.version is None and no_gpu:
            return (
                f"{flavor.title} builds on the machine that runs the engine: here there is {no_gpu}, and it is not "
                f"installed. On a machine with an NVIDIA GPU: {flavor.install}, then the same command again."
            )
        if not found.can_build:
            return found.why or f"{flavor.title} cannot be used: {flavor.install}."
        if no_gpu:
            return f"{flavor.title} {found.version} is installed, but there is {no_gpu}: run this where one answers."
        return None

    def why_cannot_run(self) -> str | None:
        """Asks for a GPU and tries the library's runtime."""
        answer = ask_gpus()
        if not answer.gpus:
            return f"{self.flavor.title} engines run on an NVIDIA GPU, and here there is {answer.why_none}."
        found = probe(self.flavor)
        return found.why if "runtime" not in found.done else None

    def build(self, portable: PortableModel, folder: Path, options: BuildOptions) -> Compiled:
        """See `Backend.build`."""
        prefix = len(portable.prefix.ids) if portable.prefix else 0
        limits = Limits.resolve(options, max_positions(portable.model), prefix)
        targets = options.compute_capabilities or self.flavor.default_targets
        planned = portable.plan.quantized_linears if portable.plan else ()
        _refuse_old_targets(portable, targets)
        findings = lint(portable.model, planned)
        for line in in_words(findings):
            say(f"lint: {line}")
        with tempfile.TemporaryDirectory(prefix=".lowered-", dir=folder.parent) as private:
            lowered = write_lowered(portable.path, Path(private))
            roles = find_roles(ir.load(lowered))
            request = self._request(lowered, folder, targets, limits, options)
            answer = _build_or_explain(request, findings)
        for message in answer.warnings:
            if _EXPECTED_WARNING not in message:
                warn(message)
        layers = _read_layers(folder, answer)
        truth = engine_truth(layers, roles, planned, reasons_by_module(findings), reasons_by_node(findings))
        versions = {self.flavor.module: answer.version}
        signature = graph_signature(portable.model.graph)
        return Compiled(truth=truth, target=self._target(targets, limits), versions=versions, signature=signature)

    def runner(self, folder: Path, **options: Any) -> CausalRunner:
        """See `Backend.runner`."""
        from spikeexport.backends.tensorrt.runner import open_runner

        return open_runner(self.flavor, folder, load_manifest(folder, self.name), **options)

    def _request(
        self, onnx: Path, folder: Path, targets: tuple[str, ...], limits: Limits, options: BuildOptions
    ) -> BuildRequest:
        cache = options.timing_cache
        if cache is not None and not self.flavor.needs_gpu:
            warn(
                f"{self.flavor.title} picks its kernels when an engine runs and keeps no timings: {cache} is not used."
            )
            cache = None
        return BuildRequest(
            backend=self.name,
            onnx=str(onnx.resolve()),
            folder=str(folder.resolve()),
            targets=targets,
            max_batch=limits.max_batch,
            max_seq=limits.max_seq,
            timing_cache=str(cache.resolve()) if cache else None,
            workspace_bytes=options.workspace_bytes,
        )

    def _target(self, targets: tuple[str, ...], limits: Limits) -> Target:
        if targets:
            where: Target = {"compute_capabilities": list(targets)}
        else:
            gpus = ask_gpus().gpus
            if not gpus:
                raise BackendError("The GPU that the engine was built on no longer answers: build again.")
            where = {"device": gpus[0].name, "compute_capabilities": [gpus[0].compute_capability]}
        return {**where, "max_batch": limits.max_batch, "max_seq": limits.max_seq}


def _refuse_old_targets(portable: PortableModel, targets: Sequence[str]) -> None:
    """Refuses FP8 linears for GPUs that have none, before a long build finds out.

    Raises:
        UsageError: Names the targets.
    """
    eighths = [item.linear for item in portable.plan.excluded if item.precision == "fp8"] if portable.plan else []
    old = [target for target in targets if float(target) < _FIRST_WITH_FP8]
    if eighths and old:
        raise UsageError(
            f"--compute-capability {', '.join(old)} has no FP8, which {eighths[0]}"
            f"{f' and {len(eighths) - 1} more' if len(eighths) > 1 else ''} is stored in: leave it out, or export with "
            "another --excluded-precision."
        )


def _build_or_explain(request: BuildRequest, findings: Sequence[Finding]) -> BuildAnswer:
    """Builds; when the library refuses, adds what the lint knows to be refused, with the cure."""
    try:
        return build_in_subprocess(request)
    except BackendError as error:
        known = [finding for finding in findings if finding.effect == "refused"]
        if not known:
            raise
        first = known[0]
        more = f" (and {len(known) - 1} more)" if len(known) > 1 else ""
        raise BackendError(f"{error} Known to be refused: {first.node}: {first.why}; {first.cure}{more}.") from error


def _read_layers(folder: Path, answer: BuildAnswer) -> tuple[EngineLayer, ...]:
    text = (folder / answer.report).read_text(encoding="utf-8")
    return read_layer_log([text], answer.version) if answer.report_form == "log" else read_inspector(text)
