"""The two models: their `config.json`, and their weights to and from `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model.tokenizer import CONTEXT, SPECIAL_TOKENS, VOCAB_SIZE, write_json

DEMO_LAYERS = 8
DRAFT_LAYERS = 2
END_OF_TEXT_ID, _, _, END_ID = range(len(SPECIAL_TOKENS))


def model_config(layers: int) -> dict[str, Any]:
    """`config.json` of a model with `layers` decoder layers.

    RoPE's base and the dtype stand under their older and their newer names, for transformers 4 and 5.
    Every dimension of every linear layer is a multiple of 128.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": [END_OF_TEXT_ID, END_ID],
        "pad_token_id": END_OF_TEXT_ID,
        "use_cache": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def new_model(layers: int, seed: int) -> LlamaForCausalLM:
    """A freshly initialized float32 model.

    Projections that write to the residual stream start smaller, by the number of times it is written to.
    """
    torch.manual_seed(seed)
    config = {
        k: v for k, v in model_config(layers).items() if k not in ("dtype", "torch_dtype", "rope_scaling")
    }
    model = LlamaForCausalLM(LlamaConfig(**config)).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.div_((2 * layers) ** 0.5)
    return model


def add_dropout(model: LlamaForCausalLM, probability: float) -> None:
    """Drop out what each attention and each MLP adds to the residual stream, while training."""

    def drop(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(output, probability, module.training)

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)


def save_model(weights: dict[str, torch.Tensor], layers: int, directory: Path) -> None:
    """Write config.json, generation_config.json and bf16 model.safetensors (tied embeddings once)."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", model_config(layers))
    generation = {
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": [END_OF_TEXT_ID, END_ID],
        "pad_token_id": END_OF_TEXT_ID,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
    }
    write_json(directory / "generation_config.json", generation)
    stored = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in sorted(weights.items())
        if name != "lm_head.weight"
    }
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})


def load_model(directory: Path, layers: int) -> LlamaForCausalLM:
    """The saved model: bf16 weights, executed in float32."""
    model = new_model(layers, seed=0)
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval()
