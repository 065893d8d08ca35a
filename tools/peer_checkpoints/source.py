"""The unquantized models that every tool starts from: random, a few kilobytes, the same everywhere.

Made from torch's generator alone: they do not depend on how a version of transformers initializes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SOURCES = ("llama", "mixtral")
VOCABULARY, INTERMEDIATE, HEADS, KV_HEADS = 32, 32, 4, 2
HIDDEN = {"llama": 64, "mixtral": 32}
EXPERTS = 4
SEED = 0

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}

_OWN: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
}


def write_source(directory: Path) -> None:
    """Write the bf16 model that the directory is named after, llama or mixtral, if it is not there."""
    if (directory / "config.json").is_file():
        return
    directory.mkdir(parents=True, exist_ok=True)
    kind = directory.name
    hidden = HIDDEN[kind]
    generator = torch.Generator().manual_seed(SEED)
    save_file(
        {name: _random(shape, generator) for name, shape in _shapes(kind, hidden).items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    config = _COMMON | _OWN[kind] | {"hidden_size": hidden, "head_dim": hidden // HEADS}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def calibration_tokens(count: int = 16, length: int = 32) -> Tensor:
    """Token ids, int64 [count, length]."""
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def tokenizer() -> Any:
    """A tokenizer of as many words as the models know, for tools that do not start without one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {str(index): index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), bos_token="1", eos_token="2"
    )


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Matrices of unit gain; norms far from one: input channels differ, as those of trained models do.

    Sums of uniform numbers pass for normal ones, and are the same bits on every processor.
    """
    if len(shape) == 1:
        values = torch.rand(shape, generator=generator) * 1.5 + 0.25
    else:
        a, b, c, d = torch.rand(4, *shape, generator=generator)
        values = (a + b + c + d - 2) * (3 / shape[1]) ** 0.5
    return values.to(torch.bfloat16)


def _shapes(kind: str, hidden: int) -> dict[str, tuple[int, ...]]:
    """Every tensor, by name."""
    head = hidden // HEADS
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (KV_HEADS * head, hidden),
        "self_attn.v_proj": (KV_HEADS * head, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        **(_mlp(hidden) if kind == "llama" else _experts(hidden)),
    }
    return {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        **{f"model.layers.0.{name}.weight": shape for name, shape in layer.items()},
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCABULARY, hidden),
    }


def _mlp(hidden: int) -> dict[str, tuple[int, ...]]:
    wide, narrow = (INTERMEDIATE, hidden), (hidden, INTERMEDIATE)
    return {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": narrow}


def _experts(hidden: int) -> dict[str, tuple[int, ...]]:
    wide, narrow = (INTERMEDIATE, hidden), (hidden, INTERMEDIATE)
    shapes: dict[str, tuple[int, ...]] = {"block_sparse_moe.gate": (EXPERTS, hidden)}
    for expert in range(EXPERTS):
        prefix = f"block_sparse_moe.experts.{expert}"
        shapes |= {f"{prefix}.w1": wide, f"{prefix}.w2": narrow, f"{prefix}.w3": wide}
    return shapes
