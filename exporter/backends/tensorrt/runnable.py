"""Whether a built engine may be loaded here: the library's version and the GPU that it was built for."""

from __future__ import annotations

from pathlib import Path

from spikeexport.backends.manifest import EngineManifest
from spikeexport.backends.tensorrt.flavor import Flavor
from spikeexport.backends.tensorrt.gpus import Gpu, GpuAnswer, ask_gpus
from spikeexport.backends.tensorrt.probe import Probe, probe
from spikeexport.calibration.foundation.errors import BackendError


def require_runnable(flavor: Flavor, folder: Path, manifest: EngineManifest) -> Gpu:
    """Refuses to load an engine where it cannot run; returns the GPU that will run it.

    Raises:
        BackendError: No GPU answers, the library is missing, broken or of another version than the engine's, or no
            GPU has a compute capability that the engine was built for.
    """
    answer = ask_gpus()
    if answer.gpus:
        require_version(flavor, folder, manifest, probe(flavor))
    return require_gpu(flavor, folder, manifest, answer)


def require_version(flavor: Flavor, folder: Path, manifest: EngineManifest, found: Probe) -> None:
    """Refuses an engine that another version of the library built, or a library that does not start.

    Raises:
        BackendError: See above.
    """
    if found.why is not None or "runtime" not in found.done:
        raise BackendError(found.why or f"{flavor.title} cannot create its runtime: {flavor.install}.")
    built_with = manifest.versions.get(flavor.module)
    if built_with != found.version:
        raise BackendError(
            f"{folder} was built with {flavor.title} {built_with}, {found.version} is installed, and engines load only "
            f"in the version that built them: build it again, or pip install {flavor.module.replace('_', '-')}"
            f"=={built_with}."
        )


def require_gpu(flavor: Flavor, folder: Path, manifest: EngineManifest, answer: GpuAnswer) -> Gpu:
    """Returns the first GPU, which runs the engine.

    Raises:
        BackendError: There is none, or it has a compute capability that the engine was not built for.
    """
    targets = manifest.target.get("compute_capabilities", [])
    wanted = [str(target) for target in targets] if isinstance(targets, list) else []
    if not answer.gpus:
        raise BackendError(
            f"{folder} runs on an NVIDIA GPU of compute capability {' or '.join(wanted) or '(unknown)'}, and here "
            f"there is {answer.why_none}: `spikeexport inspect` shows what it holds; run it where such a GPU answers."
        )
    gpu = answer.gpus[0]
    if wanted and gpu.compute_capability not in wanted:
        raise BackendError(
            f"{folder} was built for compute capability {' or '.join(wanted)}, this GPU ({gpu.name}) has "
            f"{gpu.compute_capability}: build it again with --backend {flavor.backend}"
            f"{f' --compute-capability {gpu.compute_capability}' if flavor.default_targets else ' on this machine'}."
        )
    return gpu
