"""Which model a profile or a plan belongs to, and on what text it was calibrated."""

from __future__ import annotations

from spikeexport.calibration.foundation.errors import PlanError
from spikeexport.calibration.foundation.records import Record


class ModelId(Record):
    """Identity of a checkpoint.

    Attributes:
        name: What the user called it: a folder, a hub id or a .gguf file, without machine-specific parents.
        model_type: transformers' `model_type`, for example "llama".
        layers: Number of decoder layers.
        fingerprint: Hash of the configuration and of every tensor's name, shape, dtype and sampled content
            (16 hexadecimal digits); equal for a GGUF file and for nothing else.
    """

    name: str
    model_type: str
    layers: int
    fingerprint: str

    def require_same(self, other: ModelId, what: str) -> None:
        """Refuses to apply `what` (made for `self`) to the model `other`.

        Raises:
            PlanError: The fingerprints differ.
        """
        if self.fingerprint != other.fingerprint:
            raise PlanError(
                f"{what} was made for {self.name} ({self.model_type}, {self.layers} layers, fingerprint "
                f"{self.fingerprint}), not for {other.name} ({other.model_type}, {other.layers} layers, fingerprint "
                f"{other.fingerprint}): make it again for this model."
            )


class CalibrationInfo(Record):
    """The text that statistics were taken on.

    Attributes:
        sources: What the user named: files, dataset ids or "self".
        samples: Number of token sequences.
        seqlen: Tokens per sequence, without BOS or prefix.
        seed: Seed of sampling.
        sha256: Hash of the token ids.
    """

    sources: tuple[str, ...]
    samples: int
    seqlen: int
    seed: int
    sha256: str
