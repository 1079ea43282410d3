"""The `onnxruntime` backend: lowers the portable graph and runs it on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from spikeexport.backends.base import Backend, BuildOptions
from spikeexport.backends.manifest import Compiled, load_manifest
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.calibration.foundation.progress import say, warn
from spikeexport.runners.ort_session import import_onnxruntime

if TYPE_CHECKING:
    import onnx_ir as ir
    from spikeexport.graphs.onnxruntime.lowering import PassReport
    from spikeexport.graphs.reading import PortableModel
    from spikeexport.runners.base import CausalRunner

MODEL_NAME = "model.onnx"
"""The lowered graph inside a built folder; its weights lie beside it in `model.onnx.data`."""

PREFIX_NAME = "prefix.safetensors"
"""The baked prefix's keys and values, float32 [1, kv_heads, P, D], named `prefix.{layer}.key` and `.value`."""


class OnnxRuntimeBackend(Backend):
    """Lowers to u8 x s8 integer products, GroupQueryAttention and fused norms, in FP32 otherwise."""

    name: ClassVar[str] = "onnxruntime"
    lowers: ClassVar[bool] = True

    def why_unavailable(self) -> str | None:
        """Says what is missing to build here; see `Backend.why_unavailable`."""
        try:
            import_onnxruntime()
        except BackendError as error:
            return str(error)
        return None

    def build(self, portable: PortableModel, folder: Path, options: BuildOptions) -> Compiled:
        """Lowers `portable` into `folder`; see `Backend.build`.

        Args:
            portable: The exported graph; it is read anew and stays as it is.
            folder: Where to write.
            options: Batch and sequence limits are met by any size; GPU options are refused.

        Raises:
            UsageError: GPU options, or an unknown pass in `options.without`.
        """
        import onnx_ir as ir
        from spikeexport.backends.onnxruntime.phases import read_phases
        from spikeexport.backends.onnxruntime.truth import node_modules, optimized_graph, read_truth
        from spikeexport.graphs.onnxruntime.forms import write_forms
        from spikeexport.graphs.onnxruntime.lowering import lower
        from spikeexport.runners.engine_graphs import DECODE_NAME, HEAD_NAME

        _refuse_gpu_options(options)
        model = ir.load(portable.path)
        layers = sum(node.op_type == "Attention" for node in model.graph)
        prefix = prefix_arrays(model.graph)
        reports = lower(model, options.without, options.decode)
        shared = any(value.name == "seqlens_k" for value in model.graph.inputs)
        if shared and prefix:
            from safetensors.numpy import save

            (folder / PREFIX_NAME).write_bytes(save(prefix))
        forms = write_forms(model, folder / MODEL_NAME, (DECODE_NAME, HEAD_NAME), options.without, options.decode)
        reports = (*reports, *forms.reports)
        for report in reports:
            _say_report(report)
        planned = portable.plan.quantized_linears if portable.plan is not None else ()
        optimized = optimized_graph(folder / MODEL_NAME)
        truth = read_truth(optimized, planned, node_modules(model.graph), layers)
        phases = read_phases(forms, optimized, folder / DECODE_NAME)
        truth = truth.model_copy(update={"kernels": phases.kernels})
        _check_first_runs(_open_built(folder, portable, prefix if shared else None), portable.path.name)
        target = {**_target(reports, shared), **phases.words}
        return Compiled(truth=truth, target=target, versions=_versions())

    def runner(self, folder: Path, **options: Any) -> CausalRunner:
        """Opens a built folder; see `Backend.runner`.

        Args:
            folder: What `build` wrote.
            **options: Fields of `SessionSettings` (threads, spinning, prepacking, precise_int8) and `chunk`.
        """
        from spikeexport.runners.assets import Assets
        from spikeexport.runners.onnx_runner import OnnxRunner
        from spikeexport.runners.ort_engine_runner import EngineSettings, OrtEngineRunner
        from spikeexport.runners.ort_session import SessionSettings

        manifest = load_manifest(folder, self.name)
        _warn_of_another_version(folder, manifest.versions.get("onnxruntime"))
        assets = Assets(folder, manifest.prefix.ids if manifest.prefix is not None else ())
        chunk = options.pop("chunk", EngineSettings.chunk)
        settings = EngineSettings(SessionSettings(**options), chunk)
        if manifest.target.get("cache") == "shared":
            return OrtEngineRunner(folder / MODEL_NAME, assets, _read_prefix(folder), settings)
        return OnnxRunner(folder / MODEL_NAME, assets, settings.session, "all")


def _warn_of_another_version(folder: Path, built_with: str | None) -> None:
    found = import_onnxruntime().__version__
    if built_with != found:
        warn(
            f"{folder} was built and tried with onnxruntime {built_with}, {found} is installed: it runs, but which "
            "linears are INT8 may have changed; build it again to know."
        )


def prefix_arrays(graph: ir.Graph) -> dict[str, np.ndarray]:
    """Returns the prefix's initializers `prefix.{layer}.key/value` as float32, or nothing."""
    return {
        name: value.const_value.numpy().astype(np.float32)
        for name, value in graph.initializers.items()
        if name.startswith("prefix.") and name.endswith((".key", ".value")) and value.const_value is not None
    }


def _open_built(folder: Path, portable: PortableModel, prefix: dict[str, np.ndarray] | None) -> CausalRunner:
    """Opens what was just written; `prefix` is None where the graph keeps past and present apart."""
    from spikeexport.runners.assets import Assets
    from spikeexport.runners.onnx_runner import OnnxRunner, assets_folder
    from spikeexport.runners.ort_engine_runner import OrtEngineRunner

    assets = Assets(assets_folder(portable.path), portable.prefix.ids if portable.prefix is not None else ())
    if prefix is None:
        return OnnxRunner(folder / MODEL_NAME, assets, optimization="all")
    return OrtEngineRunner(folder / MODEL_NAME, assets, in_order(prefix))


def _check_first_runs(runner: CausalRunner, name: str) -> None:
    """Checks each form alone: the two of one model differ by what quantising the inputs does."""
    from spikeexport.backends.onnxruntime.first_run import check_first_run
    from spikeexport.runners.ort_engine_runner import OrtEngineRunner

    if not isinstance(runner, OrtEngineRunner):
        check_first_run(runner, name)
        return
    for rows in (0, runner.max_positions):
        runner.settings = replace(runner.settings, decode_rows=rows)
        check_first_run(runner, name)


def in_order(prefix: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns the prefix in the order of the graph's past inputs: key and value of each layer."""
    return tuple(prefix[f"prefix.{layer}.{kind}"] for layer in range(len(prefix) // 2) for kind in ("key", "value"))


def _read_prefix(folder: Path) -> tuple[np.ndarray, ...]:
    """Returns the prefix that `build` wrote, in the order of the graph's past inputs, or nothing."""
    return in_order(read_prefix_arrays(folder))


def read_prefix_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Returns the prefix that `build` wrote beside a graph with a shared cache, by `prefix.{layer}.key/value`."""
    path = folder / PREFIX_NAME
    if not path.exists():
        return {}
    from safetensors.numpy import load_file

    return load_file(path)


def _refuse_gpu_options(options: BuildOptions) -> None:
    if options.compute_capabilities:
        raise UsageError("--compute-capability is for GPUs and onnxruntime builds for the CPU: leave it out.")
    if options.workspace_bytes is not None:
        raise UsageError("--workspace is for TensorRT and onnxruntime takes what its kernels need: leave it out.")
    if options.timing_cache is not None:
        raise UsageError("--timing-cache is for TensorRT and onnxruntime times no kernels: leave it out.")


def _say_report(report: PassReport) -> None:
    reasons = sorted({skip.why for skip in report.skips})
    more = f"; left alone: {'; '.join(reasons)}" if reasons else ""
    say(f"  {report.name}: {report.applied}{more}", level=1)


def _target(reports: tuple[PassReport, ...], shared: bool) -> dict[str, str | int | float | list[str]]:
    return {
        "device": "cpu",
        "compute": "fp32",
        "cache": "shared" if shared else "past/present",
        "passes": [f"{report.name} x {report.applied}" for report in reports],
        "skipped": sorted({f"{report.name}: {skip.why}" for report in reports for skip in report.skips}),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"onnxruntime": import_onnxruntime().__version__, "onnx-ir": version("onnx-ir")}
