"""Builds one engine; runs in a subprocess, so that a native crash is an error message and the memory comes back.

Called as `python -m spikeexport.backends.tensorrt.worker REQUEST.json`. Prints the name of each phase on stdout.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from spikeexport.backends.tensorrt.config import create_config, load_timing_cache, save_timing_cache, set_targets
from spikeexport.backends.tensorrt.flavor import FLAVORS, Flavor, load_module
from spikeexport.backends.tensorrt.logger import BuildLog
from spikeexport.backends.tensorrt.network import create_network, input_shapes, parse_onnx
from spikeexport.backends.tensorrt.profiles import Limits, profile_shapes
from spikeexport.backends.tensorrt.request import ENGINE_NAME, RESULT_NAME, BuildAnswer, BuildRequest, ReportForm
from spikeexport.calibration.foundation.errors import BackendError, SpikeExportError
from spikeexport.calibration.foundation.files import explain_os_error


def build_engine(request: BuildRequest) -> BuildAnswer:
    """Builds the engine of `request` into its folder, with the report of its layers.

    Raises:
        BackendError: The library is missing or refuses the network.
        UsageError: A target that the library does not build for.
    """
    flavor = FLAVORS[request.backend]
    module = load_module(flavor)
    log = BuildLog(module)
    started = time.monotonic()
    builder = module.Builder(log.logger)
    network = create_network(module, builder)
    print("Reading the graph", flush=True)
    # The parser owns weights that the network points to.
    parser = parse_onnx(module, network, Path(request.onnx), log, flavor.title)
    config = _configure(module, builder, network, request)
    config.progress_monitor = monitor = _phase_printer(module)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{flavor.title} cannot build {Path(request.onnx).name}: {log.first_error()}.")
    del monitor, parser
    folder = Path(request.folder)
    (folder / ENGINE_NAME).write_bytes(memoryview(plan))
    if request.timing_cache:
        save_timing_cache(config, Path(request.timing_cache))
    report, form = _write_report(module, flavor, plan, log, folder)
    return BuildAnswer(
        version=module.__version__,
        report=report,
        report_form=form,
        seconds=time.monotonic() - started,
        warnings=tuple(dict.fromkeys(log.warnings)),
    )


def _configure(module: ModuleType, builder: Any, network: Any, request: BuildRequest) -> Any:
    limits = Limits(request.max_batch, request.max_seq)
    config = create_config(module, builder, profile_shapes(input_shapes(network), limits), request.workspace_bytes)
    set_targets(module, config, request.targets)
    if request.timing_cache:
        load_timing_cache(config, Path(request.timing_cache))
    return config


def _write_report(module: ModuleType, flavor: Flavor, plan: Any, log: BuildLog, folder: Path) -> tuple[str, ReportForm]:
    """Writes what the library says about the layers: the log's list without a GPU, the inspector's JSON with one."""
    if not flavor.needs_gpu:
        (folder / "layers.txt").write_text("\n".join(log.reports), encoding="utf-8")
        return "layers.txt", "log"
    runtime = module.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{flavor.title} cannot load the engine that it built: {log.first_error()}.")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(module.LayerInformationFormat.JSON)
    (folder / "layers.json").write_text(text, encoding="utf-8")
    return "layers.json", "inspector"


def _phase_printer(module: ModuleType) -> Any:
    class PhasePrinter(module.IProgressMonitor):  # type: ignore[name-defined, misc]
        """Prints the name of each phase that has no parent or is long."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Called when a phase begins."""
            print(phase_name, flush=True)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Called after each step; True goes on."""
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Called when a phase ends."""

    return PhasePrinter()


def main(request_path: Path) -> None:
    """Reads the request, builds, and writes the answer beside the request."""
    request = BuildRequest.load(request_path)
    try:
        answer = build_engine(request)
    except SpikeExportError as error:
        answer = BuildAnswer(error=str(error), error_type=type(error).__name__)
    except OSError as error:
        explained = explain_os_error(error, Path(request.folder) / ENGINE_NAME)
        answer = BuildAnswer(error=str(explained), error_type=type(explained).__name__)
    answer.save(request_path.with_name(RESULT_NAME))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
