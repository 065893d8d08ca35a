"""Tiny random models of each family, as transformers makes and saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

# name -> (config class, what differs from TINY)
VARIANTS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama, tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama, attention bias": (LlamaConfig, {"attention_bias": True}),
    "llama, mlp bias": (LlamaConfig, {"mlp_bias": True}),
    "llama, multi-query": (LlamaConfig, {"num_key_value_heads": 1}),
    "llama, wide heads": (LlamaConfig, {"head_dim": 24}),
    "mistral": (MistralConfig, {}),
    "mistral, wide heads, no window": (MistralConfig, {"head_dim": 16, "sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen2, tied, windows": (
        Qwen2Config,
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 1,
        },
    ),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "qwen3, tied, bias": (Qwen3Config, {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 8}),
    "qwen3, layer types": (
        Qwen3Config,
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}

_QWEN_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

MOE_VARIANTS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "mixtral": (MixtralConfig, {"num_local_experts": 3}),
    "mixtral, one expert, window": (
        MixtralConfig,
        {"num_local_experts": 1, "num_experts_per_tok": 1, "sliding_window": 32, "head_dim": 16},
    ),
    "qwen2-moe": (Qwen2MoeConfig, _QWEN_EXPERTS | {"shared_expert_intermediate_size": 40}),
    "qwen2-moe, windows, every second layer, no bias": (
        Qwen2MoeConfig,
        _QWEN_EXPERTS
        | {
            "shared_expert_intermediate_size": 40,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 32,
            "max_window_layers": 3,
            "qkv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-moe": (Qwen3MoeConfig, _QWEN_EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3-moe, a dense layer, window, bias": (
        Qwen3MoeConfig,
        _QWEN_EXPERTS
        | {
            "head_dim": 16,
            "mlp_only_layers": [0],
            "use_sliding_window": True,
            "sliding_window": 32,
            "attention_bias": True,
        },
    ),
}


def _make_model(variant: str) -> PreTrainedModel:
    """A model of `variant` with random bfloat16 weights; the seed is fixed."""
    config_class, settings = (VARIANTS | MOE_VARIANTS)[variant]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_class(**TINY | settings), dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], PreTrainedModel]:
    """Makes the model of a variant."""
    return _make_model


@pytest.fixture(params=MOE_VARIANTS)
def moe_variant(request: pytest.FixtureRequest) -> str:
    """Every variant with experts in turn."""
    return str(request.param)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Every variant in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in one file. Not to be written to."""
    path = tmp_path_factory.mktemp("llama")
    _make_model("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def sharded_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in several shards with an index. Not to be written to."""
    path = tmp_path_factory.mktemp("sharded")
    _make_model("llama").save_pretrained(path, max_shard_size="10KB")
    return path
