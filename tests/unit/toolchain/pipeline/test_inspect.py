import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from toolchain.pipeline.inspect import TensorRow, inspect_checkpoint

DATA = Path(__file__).parents[3] / "data" / "quantized"


def test_it_is_told_how_a_checkpoint_is_quantized() -> None:
    assert inspect_checkpoint(DATA / "source/llama").quantization == {}
    assert inspect_checkpoint(DATA / "gptqmodel/gptq_desc_act").quantization == {
        "format": "gptq",
        "quant_algo": "W4A16_AWQ",
        "group_size": 32,
        "kv_cache_quant_algo": None,
        "schemes": [
            {
                "quant_algo": "W4A16_AWQ",
                "group_size": 32,
                "zero_point": False,
                "bits": 4,
                "act_order": True,
                "linears": 7,
            }
        ],
    }
    mixed = inspect_checkpoint(DATA / "modelopt/mixed").quantization
    assert mixed["quant_algo"] == "MIXED_PRECISION"
    assert {(scheme["quant_algo"], scheme["linears"]) for scheme in mixed["schemes"]} == {
        ("FP8", 3),
        ("W4A16_AWQ", 3),
    }
    assert inspect_checkpoint(DATA / "llmcompressor/fp8_kv").quantization["kv_cache_quant_algo"] == "FP8"


def test_of_a_form_that_cannot_be_read_the_tensors_are_shown_and_the_reason() -> None:
    facts = inspect_checkpoint(DATA / "llmcompressor/fp8_block")
    assert facts.quantization["quant_method"] == "compressed-tensors"
    assert "a scale for each block" in facts.quantization["unreadable"]
    assert facts.rows


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
