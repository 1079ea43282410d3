"""What profiling found: spikes per module, spike tokens, massive activations per layer."""

from __future__ import annotations

from typing import ClassVar

from spikeexport.calibration.foundation.records import Artifact, Record
from spikeexport.calibration.records.model_id import CalibrationInfo, ModelId


class ModuleSpikes(Record):
    """Token-wise absmax S at the input of one linear (arXiv 2405.14428, section 3).

    Attributes:
        name: The checkpoint's module path, e.g. `model.layers.1.mlp.down_proj`.
        site: Name of the input site: the first of the linears that read the same tensor.
        max: Largest S over all calibration tokens.
        median: Mean over samples of the lower median of S.
        ratio: Mean over samples of max S / lower median S.
        tokens: Calibration tokens that reached the module, for an expert's of a mixture.
    """

    name: str
    site: str
    max: float
    median: float
    ratio: float
    tokens: int | None = None


class SpikeToken(Record):
    """A token whose S at a module's input is far above the sample's median.

    Attributes:
        id: Token id.
        text: The token, decoded.
        module: Module path where `value` was seen.
        value: Largest S of this token there.
        position: Position of that occurrence in its sample, BOS being 0.
        count: Occurrences of this token whose S was a spike at that module.
    """

    id: int
    text: str
    module: str
    value: float
    position: int
    count: int


class LayerActivations(Record):
    """Absolute values of the hidden state after one decoder layer (massive activations, Sun et al. 2024).

    Attributes:
        layer: Index of the decoder layer.
        max: Largest |h|.
        median: Median of |h|.
        massive: Number of values above 100 and at least 1000 x the median.
    """

    layer: int
    max: float
    median: float
    massive: int


class Profile(Artifact):
    """The result of `spikeexport profile`; modules are sorted by ratio, largest first."""

    KIND: ClassVar[str] = "profile"

    model: ModelId
    calibration: CalibrationInfo
    modules: tuple[ModuleSpikes, ...]
    spike_tokens: tuple[SpikeToken, ...]
    hidden_states: tuple[LayerActivations, ...]
    seconds: float
