"""The checkpoint as a PyTorch model that reads its weights from the mapped files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spikeexport.calibration.checkpoint.checkpoint import Checkpoint
from spikeexport.calibration.checkpoint.loading_report import require_complete
from spikeexport.calibration.checkpoint.quiet import quiet_transformers
from spikeexport.calibration.foundation.errors import CheckpointError, one_line
from spikeexport.calibration.foundation.progress import track

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, *, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Loads the checkpoint for inference on the CPU.

    Weights whose dtype and layout are the model's stay views of the mapped files; the rest is cast or merged into
    memory. Experts that transformers keeps in one parameter become linears with the checkpoint's names. The model is
    in eval mode and no parameter asks for a gradient.

    Args:
        checkpoint: An opened checkpoint.
        dtype: The parameters' dtype, `torch.float32` when None.
        attn_implementation: "sdpa", "eager" (which exposes attention weights), or None for transformers' own choice:
            "sdpa" wherever the architecture has it.

    Raises:
        CheckpointError: A weight is missing, left over, of another shape than the configuration says, or holds NaN
            or infinite values; the message names it.
    """
    import torch
    from spikeexport.calibration.structure.experts import separate_experts

    check_finite(checkpoint)
    model, report = _from_pretrained(checkpoint, dtype or torch.float32, attn_implementation)
    require_complete(checkpoint.folder, report)
    separate_experts(model, checkpoint.config.model_type)
    return model.requires_grad_(False).eval()


def check_finite(checkpoint: Checkpoint) -> None:
    """Reads every floating-point tensor once per opened checkpoint and refuses NaN and infinite values.

    Raises:
        CheckpointError: Names the first tensor that holds one.
    """
    import torch

    if checkpoint.checked:
        return
    for name in track(checkpoint.tensor_names(), "Checking weights"):
        tensor = checkpoint.read_tensor(name)
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        extremes = torch.stack(torch.aminmax(tensor)).float()
        if not torch.isfinite(extremes).all():
            found = "NaN" if extremes.isnan().any() else "infinite"
            raise CheckpointError(
                f"{checkpoint.store.entries[name].file}: tensor {name} holds {found} values, expected finite weights: "
                "the checkpoint is damaged; download or convert it again."
            )
    checkpoint.checked.add("finite")


def _from_pretrained(
    checkpoint: Checkpoint, dtype: torch.dtype, attn_implementation: str | None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=checkpoint.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.folder} cannot be loaded as {checkpoint.config.model_type} "
            f"({type(error).__name__}: {one_line(error, 240)}): config.json and the weights do not belong together."
        ) from error
    return loaded
