"""`ModelSpec`: what the rest of the toolchain needs to know of a model, read from `config.json` alone."""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.model.rope import RopeSpec


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer in Hugging Face's words.

    Every field carries its `config.json` meaning; nothing is derived twice elsewhere. In particular
    `head_dim` need not be `hidden_size / num_attention_heads` (Qwen3, Mistral-Nemo).
    """

    architecture: str  # the class name in config.json, e.g. "LlamaForCausalLM"
    family: str  # llama | mistral | qwen2 | qwen3
    dtype: str  # "bfloat16" | "float16" | "float32": how the weights are stored
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    # One entry a layer: the window in tokens, None where the layer attends to everything.
    sliding_windows: tuple[int | None, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
