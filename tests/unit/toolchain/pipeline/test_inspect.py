import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from toolchain.pipeline.inspect import TensorRow, inspect_checkpoint


def test_layers_and_experts_are_folded_together(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3MoeForCausalLM"]}))
    tensors = {"model.norm.weight": torch.zeros(4)}
    for layer in (0, 1, 10):
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = torch.zeros(12, 4)
        for expert in (0, 11):
            tensors[f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"] = torch.zeros(8, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    facts = inspect_checkpoint(tmp_path)
    assert facts.architecture == "Qwen3MoeForCausalLM"
    assert sorted(facts.rows, key=lambda row: row.name) == [
        TensorRow("model.layers.*.mlp.experts.*.up_proj.weight", 6, "F32", (8, 4), 6 * 128),
        TensorRow("model.layers.*.mlp.gate.weight", 3, "F32", (12, 4), 3 * 192),
        TensorRow("model.norm.weight", 1, "F32", (4,), 16),
    ]
