"""The builder's configuration: targets, profiles, verbosity, timing cache, workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from spikeexport.backends.tensorrt.profiles import ShapeRange
from spikeexport.calibration.foundation.errors import BackendError, UsageError, one_line


def create_config(
    module: ModuleType, builder: Any, profiles: Sequence[Mapping[str, ShapeRange]], workspace_bytes: int | None
) -> Any:
    """Creates a configuration with detailed layer reports and one optimisation profile per entry of `profiles`.

    No precision flag is set: the network is strongly typed.

    Raises:
        BackendError: The library refuses a profile.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace_bytes)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, span in shapes.items():
            profile.set_shape(name, span.minimum, span.optimum, span.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"The builder refuses the shapes {shapes}: choose other --max-batch and --max-seq.")
    return config


def set_targets(module: ModuleType, config: Any, targets: Sequence[str]) -> None:
    """Sets the compute capabilities that an engine is built for ahead of time.

    Args:
        module: The library.
        config: Its builder configuration.
        targets: Such as "8.9"; empty leaves the library's own choice (the GPU at hand).

    Raises:
        UsageError: The library builds for the GPU at hand only, or a target is none that it knows.
    """
    if not targets:
        return
    known = getattr(module, "ComputeCapability", None)
    if known is None or not hasattr(config, "set_compute_capability"):
        raise UsageError("TensorRT builds for the GPU at hand: --compute-capability belongs to --backend tensorrt-rtx.")
    members = dict(known.__members__)
    capabilities = [members.get(f"SM{target.replace('.', '')}") for target in targets]
    if None in capabilities:
        wrong = targets[capabilities.index(None)]
        choice = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM"))
        raise UsageError(f"--compute-capability {wrong} is none that this version builds for: choose from {choice}.")
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)


def load_timing_cache(config: Any, path: Path) -> None:
    """Attaches the timing cache of `path` (a new one when there is no file) so that kernels are not timed again.

    Raises:
        BackendError: The file is no timing cache of this library's version and GPU.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BackendError(f"The timing cache {path} cannot be read ({one_line(error)}).") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"{path} is no timing cache of this version and GPU: delete it, or name another with --timing-cache."
        )


def save_timing_cache(config: Any, path: Path) -> None:
    """Writes the timings back, atomically.

    Raises:
        SpikeExportError: The file system refused.
    """
    from spikeexport.calibration.foundation.files import staged_outputs

    with staged_outputs(path) as staging:
        (staging / path.name).write_bytes(bytes(config.get_timing_cache().serialize()))
