"""Tiny random models of each family, saved as Hugging Face folders with a small real tokenizer."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

SAMPLE_TEXT = Path(__file__).with_name("sample_text.txt")
VOCAB_SIZE = 384
PAD, BOS, EOS = 0, 1, 2

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
    "use_cache": True,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "ministral": ("MinistralConfig", {"head_dim": 16}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "phi3": ("Phi3Config", {}),
    "gemma": ("GemmaConfig", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64, "tie_word_embeddings": True},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64, "tie_word_embeddings": True},
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}),
    "granitemoe": (
        "GraniteMoeConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "logits_scaling": 2.0},
    ),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "cohere": ("CohereConfig", {"logit_scale": 0.5, "tie_word_embeddings": True}),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.5, "sliding_window": 64, "tie_word_embeddings": True}),
}
"""Family -> configuration class of transformers and what it needs beside the sizes."""


def tiny_llama(folder: Path, *, seed: int = 0, **config_overrides: Any) -> Path:
    """Writes a tiny Llama (grouped-query attention, untied) and its tokenizer into `folder`."""
    return tiny_family("llama", folder, seed=seed, **config_overrides)


def tiny_family(name: str, folder: Path, *, seed: int = 0, **config_overrides: Any) -> Path:
    """Writes a tiny random model of the family `name` (a key of FAMILIES) and its tokenizer into `folder`."""
    return _save(_random_model(name, seed, config_overrides), folder)


def plant_spike(
    folder: Path, token_id: int, *, layer: int = 1, ratio: float = 1000.0, seed: int = 0, **config_overrides: Any
) -> Path:
    """Writes a tiny Llama in which one token spikes at the input of one down_proj.

    A hidden channel is reserved for the token: only its embedding fills it, no other weight writes to it, and one row
    of that layer's gate and up projection reads nothing else. So the spike is `ratio` times the median token-wise
    absmax of the other tokens there, on every occurrence, and no other token or module is touched.

    Args:
        folder: Where to write.
        token_id: The token that spikes.
        layer: The decoder layer whose `mlp.down_proj` sees the spike.
        ratio: Its token-wise absmax over the median of the others'.
        seed: Seed of the random weights.
        **config_overrides: Fields of LlamaConfig.
    """
    import torch

    model = _random_model("llama", seed, config_overrides)
    channel, row = 5, 7
    with torch.no_grad():
        model.model.embed_tokens.weight[:, channel] = 0
        model.model.embed_tokens.weight[token_id, channel] = 1.0
        for block in model.model.layers:
            block.self_attn.o_proj.weight[channel] = 0
            block.mlp.down_proj.weight[channel] = 0
        mlp = model.model.layers[layer].mlp
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[row] = 0
            projection.weight[row, channel] = 30.0
        spike, median = _spike_and_median(model, mlp, token_id)
        # Far above zero SiLU is the identity, so that scaling `up` alone scales the spike alike.
        mlp.up_proj.weight[row] *= ratio * median / spike
        mlp.down_proj.weight[:, row] /= ratio
    return _save(model, folder)


def long_text(characters: int = 40_000, seed: int = 0) -> str:
    """Returns the sample text's sentences in seeded random order, repeated up to about that many characters."""
    sentences = SAMPLE_TEXT.read_text(encoding="utf-8").replace("\n", " ").split(". ")
    order, parts, size = random.Random(seed), [], 0
    while size < characters:
        parts.append(order.choice(sentences) + order.choice([". ", ". ", ".\n"]))
        size += len(parts[-1])
    return "".join(parts)


def token_id(text: str) -> int:
    """Returns the id of `text`, which has to be exactly one token of the tiny tokenizer."""
    ids = _trained_tokenizer().encode(text, add_special_tokens=False).ids
    assert len(ids) == 1, f"{text!r} is {len(ids)} tokens of the tiny tokenizer"
    return ids[0]


def save_tokenizer(folder: Path) -> None:
    """Writes the tiny tokenizer (byte-level BPE; adds BOS) into `folder`."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=_trained_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def _random_model(name: str, seed: int, config_overrides: dict[str, Any]) -> Any:
    import torch
    import transformers

    config_class, needed = FAMILIES[name]
    config = getattr(transformers, config_class)(**{**_SIZES, **needed, **config_overrides})
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Norm weights and biases start as ones and zeros, behind which a mistake could hide.
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
    finally:
        torch.random.set_rng_state(generator)
    return model


def _spike_and_median(model: Any, mlp: Any, token_id: int) -> tuple[float, float]:
    import torch

    seen: list[torch.Tensor] = []
    hook = mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].abs().amax(-1)[0]))
    others = [token for token in range(3, VOCAB_SIZE) if token != token_id]
    ids = torch.tensor([[BOS, *others[:100], token_id, *others[100:200]]])
    model(ids)
    hook.remove()
    return float(seen[0][101]), float(seen[0].median())


def _save(model: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@cache
def _trained_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE_TEXT.read_text(encoding="utf-8")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer
