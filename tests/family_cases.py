"""Configurations with unlike features, at least two a family, in which graphs are compared with Hugging Face."""

from __future__ import annotations

from typing import Any

_ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 32}
_LLAMA3 = {**_ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {**_ROPE, "rope_type": "yarn", "factor": 4.0}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def _longrope(pairs: int, partial: float = 1.0) -> dict[str, Any]:
    """Factors of Phi-3's kind: a short and a long list, one value per rotated pair of channels."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
        "long_factor": [2.0 + 0.5 * pair for pair in range(pairs)],
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": partial,
    }


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "grouped heads, llama3 rope": {"rope_parameters": _LLAMA3},
        "one KV head, all biases, tied": {
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        "full heads, odd sizes, linear rope": {
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 18,
            "hidden_size": 60,
            "intermediate_size": 97,
            "vocab_size": 391,
            "rope_parameters": _LINEAR,
        },
        "yarn rope": {"rope_parameters": _YARN},
    },
    "smollm3": {
        "layers without rope": {"no_rope_layer_interval": 2},
        "biases, tied, yarn rope": {
            "no_rope_layer_interval": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": _YARN,
        },
        "sliding window": {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [1, 0, 1]},
    },
    "mistral": {
        "no window, head_dim of its own": {"sliding_window": None, "head_dim": 20},
        "sliding window, full heads": {"sliding_window": 8, "num_key_value_heads": 4},
    },
    "ministral": {
        "alternating window": {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "no window, one KV head": {
            "layer_types": ["full_attention"] * 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
        },
    },
    "mixtral": {
        "2 of 4 experts": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        "1 of 3 experts, window, full heads": {
            "num_local_experts": 3,
            "num_experts_per_tok": 1,
            "sliding_window": 8,
            "num_key_value_heads": 4,
        },
    },
    "qwen2_moe": {
        "shared expert": {"num_experts": 4, "num_experts_per_tok": 2},
        "normalised top-k, a dense layer": {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    },
    "qwen3_moe": {
        "normalised top-k": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
        "raw top-k, a dense layer, biases": {
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "mlp_only_layers": [0],
            "attention_bias": True,
        },
    },
    "olmoe": {
        "q/k norms": {},
        "clipped q/k/v, normalised top-k": {"clip_qkv": 0.8, "norm_topk_prob": True, "num_key_value_heads": 4},
    },
    "granitemoe": {
        "multipliers": {"attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
        "tied, attention bias": {"tie_word_embeddings": True, "attention_bias": True, "num_experts_per_tok": 1},
    },
    "gemma": {
        "wide heads, one KV head": {"head_dim": 32, "num_key_value_heads": 1},
        "attention bias, full heads": {"num_key_value_heads": 4, "attention_bias": True},
    },
    "gemma2": {
        "soft caps, alternating window": {
            "sliding_window": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "no caps, scaled queries": {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 40,
            "head_dim": 24,
        },
    },
    "gemma3_text": {
        "two rope bases, alternating window": {"sliding_window": 8},
        "linear rope on full layers": {
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 40,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    },
    "qwen2": {
        "q/k/v biases, tied": {"tie_word_embeddings": True},
        "window from a layer on, yarn rope": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "rope_parameters": _YARN,
        },
    },
    "qwen3": {
        "q/k norms": {"head_dim": 16},
        "head_dim of its own, attention bias, tied": {
            "head_dim": 24,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    },
    "phi3": {
        "fused layouts, sliding window": {"sliding_window": 8},
        "longrope": {
            "rope_parameters": _longrope(8),
            "original_max_position_embeddings": 64,
            "num_key_value_heads": 4,
        },
        "longrope, partial, tied": {
            "rope_parameters": _longrope(6, 0.75),
            "original_max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
    },
    "stablelm": {
        "partial rotary, q/k/v biases": {"use_qkv_bias": True},
        "parallel block, q/k norms": {
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    },
    "olmo2": {
        "norms after": {},
        "full heads, attention bias": {"num_key_value_heads": 4, "attention_bias": True},
    },
    "granite": {
        "multipliers": {
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.2,
        },
        "all biases, tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    },
    "cohere": {
        "parallel block, tied": {},
        "q/k norms, attention bias": {"use_qk_norm": True, "attention_bias": True, "num_key_value_heads": 4},
    },
    "cohere2": {
        "windows with rope, full layers without": {"sliding_window": 8},
        "attention bias": {
            "attention_bias": True,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    },
}
"""Family -> what a configuration has -> fields of the configuration class."""


def all_cases() -> list[tuple[str, str]]:
    """Returns (family, configuration) of every case."""
    return [(family, label) for family, cases in CASES.items() for label in cases]
