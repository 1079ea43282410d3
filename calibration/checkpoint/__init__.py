"""What a model is: where its files lie, whether they are whole, its tensors, tokenizer and torch model."""

from spikeexport.calibration.checkpoint.bos import bos_id
from spikeexport.calibration.checkpoint.checkpoint import Checkpoint
from spikeexport.calibration.checkpoint.opening import open_checkpoint
from spikeexport.calibration.checkpoint.torch_model import load_model

__all__ = ["Checkpoint", "bos_id", "load_model", "open_checkpoint"]
