"""The tensors of a .gguf file under their Hugging Face names, dequantised one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spikeexport.calibration.checkpoint.gguf_header import GgufHeader, GgufTensor
from spikeexport.calibration.foundation.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class GgufTensors:
    """Reads a GGUF file's tensors the way transformers' own loader converts them.

    Attributes:
        leftovers: Tensors of the file that no parameter of the model takes; empty where `shapes` is None.
        shapes: Each Hugging Face tensor name and shape, in the model's order; None when the architecture merges or
            splits tensors, so that they cannot be converted one by one.
    """

    def __init__(self, file: Path, header: GgufHeader, config: PretrainedConfig) -> None:
        self._file = file
        self._mapped = np.memmap(file, mode="r")
        self.shapes: dict[str, tuple[int, ...]] | None = None
        self.leftovers: tuple[GgufTensor, ...] = ()
        if (kind := _processor_class(header.metadata["general.architecture"])) is not None:
            self._processor: Any = kind(config=config.to_dict())
            self._map_names(header, _meta_model(config))

    def _map_names(self, header: GgufHeader, model: PreTrainedModel) -> None:
        from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

        names = get_gguf_hf_weights_map(model, self._processor)
        mapped = [tensor for tensor in header.tensors if tensor.name in names]
        self._sources = {names[tensor.name]: tensor for tensor in mapped}
        unique = dict(model.named_parameters())
        tied = dict(model.named_parameters(remove_duplicate=False)).keys() - unique.keys()
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
        if shapes.keys() == self._sources.keys() and len(mapped) == len(shapes):
            self.shapes = shapes
            self.leftovers = tuple(tensor for tensor in header.tensors if tensor.name not in names)

    def read(self, name: str) -> np.ndarray:
        """Returns the tensor `name` (a key of `shapes`), float32.

        Raises:
            CheckpointError: Its quantisation is unknown here, or its shape isn't the configuration's.
        """
        assert self.shapes is not None, "only tensors that map one to one are read singly"
        source = self._sources[name]
        values = self._processor.process(weights=self.dequantize(source), name=source.name).weights
        if values.shape != self.shapes[name]:
            raise CheckpointError(
                f"{self._file}: tensor {source.name} has shape {list(values.shape)}, the file's own configuration "
                f"expects {list(self.shapes[name])}: the file is damaged or was converted wrongly."
            )
        return values

    def dequantize(self, tensor: GgufTensor) -> np.ndarray:
        """Returns the values of one of the file's tensors as they are stored, float32.

        Raises:
            CheckpointError: Its quantisation is unknown here.
        """
        from gguf import GGMLQuantizationType, dequantize
        from gguf.quants import quant_shape_to_byte_shape

        kind = GGMLQuantizationType(tensor.type_id)
        raw = self._mapped[tensor.start : tensor.start + tensor.size_bytes]
        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        try:
            if kind in plain:
                return dequantize(raw.view(plain[kind]).reshape(tensor.shape), kind)
            return dequantize(raw.reshape(quant_shape_to_byte_shape(tensor.shape, kind)), kind)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"{self._file}: tensor {tensor.name} ({kind.name}) cannot be dequantised ({one_line(error, 100)}): "
                "take another quantisation of the model, for example Q8_0 or F16."
            ) from error


def _processor_class(architecture: str) -> Any:
    """Returns the class that undoes llama.cpp's changes to a tensor, or None where transformers has another way."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    try:
        from transformers.integrations.gguf import is_gguf_arch_supported
    except ImportError:
        pass
    else:
        # Newer versions move architectures, one after the other, out of this table into a loader of another form.
        if is_gguf_arch_supported(architecture):
            return None
    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)


def _meta_model(config: PretrainedConfig) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
