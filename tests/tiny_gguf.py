"""Tiny .gguf files, written from tiny Hugging Face folders the way llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_models import BOS, EOS, PAD


def write_tiny_gguf(
    folder: Path,
    file: Path,
    *,
    quantization: str = "Q8_0",
    leave_out: str | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes the tiny Llama or Qwen3-MoE in `folder` as `file`.

    Args:
        folder: Made by tiny_llama or tiny_family("qwen3_moe", ...).
        file: Where to write.
        quantization: GGUF type of the matrices; vectors stay F32.
        leave_out: GGUF name of a tensor to leave out.
        extra: More tensors, by GGUF name, as F32.
    """
    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    arch = {"llama": "llama", "qwen3_moe": "qwen3moe"}[config.model_type]
    writer = gguf.GGUFWriter(file, arch)
    _write_metadata(writer, config)
    _write_tokenizer(writer, folder)
    for name, values in (*(extra or {}).items(), *_gguf_tensors(model, arch)):
        if name != leave_out:
            kind = gguf.GGMLQuantizationType[quantization if values.ndim > 1 else "F32"]
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_metadata(writer: Any, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "qwen3_moe":
        writer.add_key_length(config.head_dim)
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_tokenizer(writer: Any, folder: Path) -> None:
    import gguf

    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = {PAD, BOS, EOS}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL for index in range(len(tokens))]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)


def _gguf_tensors(model: Any, arch: str) -> list[tuple[str, np.ndarray]]:
    import gguf

    config = model.config
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = []
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if ".experts." in name:
            found += _expert_tensors(name, values)
            continue
        stem, suffix = name.rsplit(".", 1)
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = _permuted(values, heads)
        found.append((f"{names.get_name(stem)}.{suffix}", values))
    return found


def _expert_tensors(name: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    block = f"blk.{name.split('.')[2]}"
    if name.endswith("down_proj"):
        return [(f"{block}.ffn_down_exps.weight", values)]
    gate, up = np.split(values, 2, axis=1)
    return [(f"{block}.ffn_gate_exps.weight", gate), (f"{block}.ffn_up_exps.weight", up)]


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Interleaves the two rotary halves of each head, as llama.cpp's converter does for Llama."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
