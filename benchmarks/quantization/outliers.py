"""The demo model, computing the same, with outlier channels such as large models have and small ones lack.

In each layer one channel in fifty of every norm, of v_proj and of up_proj is multiplied by 8, 16 or 32, and
what reads it divided by that: powers of two, so nothing is rounded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_SHARE = 50
_NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def with_outliers(source: Path, directory: Path) -> None:
    """Write the model in `source`, a Llama, to `directory` with outlier channels."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    plain: dict[str, Tensor] = load_file(source / "model.safetensors")
    tensors = {name: tensor.float() for name, tensor in plain.items()}
    generator = torch.Generator().manual_seed(0)

    def drawn(channels: int) -> Tensor:
        factors = torch.ones(channels)
        chosen = torch.randperm(channels, generator=generator)[: max(1, channels // _SHARE)]
        factors[chosen] = 2.0 ** torch.randint(3, 6, (len(chosen),), generator=generator)
        return factors

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."

        def weight(name: str, prefix: str = prefix) -> Tensor:
            return tensors[f"{prefix}{name}.weight"]

        for norm, readers in _NORMS.items():
            factors_I = drawn(len(weight(norm)))
            weight(norm).mul_(factors_I)
            for reader in readers:
                weight(reader).div_(factors_I)
        factors_I = drawn(weight("mlp.up_proj").shape[0])
        weight("mlp.up_proj").mul_(factors_I.unsqueeze(1))
        weight("mlp.down_proj").div_(factors_I)
        factors_KD = drawn(weight("self_attn.v_proj").shape[0]).view(kv_heads, 1, -1)
        weight("self_attn.v_proj").mul_(factors_KD.reshape(-1, 1))
        weight("self_attn.o_proj").div_(factors_KD.expand(kv_heads, heads // kv_heads, -1).flatten())
    stored = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
