"""A random Llama of a size that is served in earnest, for figures of speed: its answers mean nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

DEMO = Path(__file__).parents[1] / "models" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def random_llama(
    directory: Path,
    *,
    hidden: int,
    layers: int,
    intermediate: int,
    heads: int | None = None,
    kv_heads: int | None = None,
    seed: int = 0,
) -> None:
    """Write a bf16 Llama with random weights and the demo model's tokenizer, one layer in memory at a time.

    `hidden / heads` is the head size, by default 64, with four heads to a KV head. The vocabulary is the demo
    tokenizer's; the head is not tied.
    """
    import torch
    from safetensors.torch import save_file

    from toolchain.model.families import expected_tensors
    from toolchain.model.spec import load_spec

    heads = heads or hidden // 64
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((DEMO / "config.json").read_text())
    config |= {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads // 4,
        "head_dim": hidden // heads,
        "intermediate_size": intermediate,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name in TOKENIZER_FILES:
        if (DEMO / name).is_file():
            shutil.copy(DEMO / name, directory)
    generator = torch.Generator().manual_seed(seed)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    weight_map = {}
    shapes = expected_tensors(load_spec(directory))
    for name in shapes:
        shard = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        weight_map[name] = f"model-{shard}.safetensors"
    for file in dict.fromkeys(weight_map.values()):
        shards[file] = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if len(shapes[name]) == 1
            else (torch.randn(shapes[name], generator=generator) * shapes[name][1] ** -0.5).bfloat16()
            for name in weight_map
            if weight_map[name] == file
        }
        save_file(shards.pop(file), directory / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
