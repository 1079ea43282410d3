"""Phi-3 and Phi-4: queries, keys and values come from one linear, as in the checkpoint."""

from __future__ import annotations

from typing import Any

from onnxscript import nn
from spikeexport.graphs.families.correction import Correction


class FusedQkv(nn.Module):
    """qkv_proj: x [B, S, hidden] -> queries, keys and values side by side, [B, S, (heads + 2 kv_heads) D]."""

    def __init__(self, attention: Any) -> None:
        """Has the sizes of one of mobius's attentions."""
        super().__init__()
        self.sizes = [
            heads * attention.head_dim
            for heads in (attention.num_attention_heads, *[attention.num_key_value_heads] * 2)
        ]
        self.weight = nn.Parameter([sum(self.sizes), attention.hidden_size])

    def forward(self, op: Any, x: Any) -> Any:
        """Builds the product and its split into three."""
        product = op.MatMul(x, op.Transpose(self.weight, perm=[1, 0]))
        return op.Split(product, op.Constant(value_ints=self.sizes), axis=-1, _outputs=3)


def _fuse_qkv(module: Any, architecture: Any, hf_config: Any) -> None:
    for layer in module.model.layers:
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            del attention._modules[name]
        attention.qkv_proj = FusedQkv(attention)
        attention.q_proj, attention.k_proj, attention.v_proj = _parts(attention.qkv_proj)


def _parts(qkv: FusedQkv) -> tuple[Any, Any, Any]:
    """Returns what stands for q_proj, k_proj and v_proj: the product is built when the first is asked for."""
    built: list[Any] = []

    def query(op: Any, x: Any) -> Any:
        built[:] = qkv(op, x)
        return built[0]

    return query, lambda op, x: built[1], lambda op, x: built[2]


def _joined_again(state: dict[str, Any], hf_config: Any) -> dict[str, Any]:
    import torch

    kept = dict(state)
    for name in state:
        if name.endswith(".q_proj.weight"):
            parts = [kept.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            kept[name.replace(".q_proj.", ".qkv_proj.")] = _whole(parts) if _adjacent(parts) else torch.cat(parts)
    return kept


def _adjacent(parts: list[Any]) -> bool:
    ends = [part.data_ptr() + part.numel() * part.element_size() for part in parts]
    return all(part.is_contiguous() for part in parts) and ends[:-1] == [part.data_ptr() for part in parts[1:]]


def _whole(parts: list[Any]) -> Any:
    """Returns the mapped tensor that the parts are views of, one behind the other."""
    rows = sum(len(part) for part in parts)
    return parts[0].as_strided((rows, parts[0].shape[1]), parts[0].stride())


FUSED_QKV = Correction(module=_fuse_qkv, weights=_joined_again)
"""mobius splits the weight, so that its linears have other names than the checkpoint's and the PyTorch model's."""
