import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolchain.engine.tensorrt.checklist import check_checkpoint, require_sound
from toolchain.errors import ModelError
from toolchain.findings import errors

LAYER = "transformer.layers.0."


def edit_config(ranks: Path, **changes: Any) -> None:
    config = json.loads((ranks / "config.json").read_text())
    for name, value in changes.items():
        if isinstance(value, dict):
            config[name] = config.get(name, {}) | value
        else:
            config[name] = value
    (ranks / "config.json").write_text(json.dumps(config))


def edit(ranks: Path, rank: int, change: Any) -> None:
    file = ranks / f"rank{rank}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def told(ranks: Path, **options: Any) -> str:
    return "\n".join(str(finding) for finding in check_checkpoint(ranks, **options))


@pytest.mark.parametrize(
    ("family", "tp", "pp", "ep"),
    [("Llama", 2, 2, 1), ("Qwen2", 4, 1, 1), ("Qwen3", 2, 1, 1), ("Mixtral", 4, 1, 2), ("Qwen2Moe", 2, 1, 2),
     ("Qwen3Moe", 2, 2, 1)],
)  # fmt: skip
def test_nothing_is_found_where_nothing_is_wrong(
    make_ranks: Any, family: str, tp: int, pp: int, ep: int
) -> None:
    assert check_checkpoint(make_ranks(family, tp, pp, ep=ep)[1]) == []


def test_all_is_found_at_once(make_ranks: Any) -> None:
    _, ranks = make_ranks("Llama", 2, 1)

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{LAYER}mlp.fc.weight"]
        tensors["surplus"] = torch.zeros(1)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].half()
        tensors[f"{LAYER}attention.qkv.weight"] = tensors[f"{LAYER}attention.qkv.weight"][:-16].clone()

    edit(ranks, 1, damage)
    text = told(ranks)
    assert f"rank1.safetensors: 1 tensor is missing: {LAYER}mlp.fc.weight" in text
    assert "1 tensor is not part of the model: surplus" in text
    assert "lm_head.weight: it is F16, expected BF16" in text
    assert f"{LAYER}attention.qkv.weight: it is [48, 64], expected [64, 64]" in text
    with pytest.raises(ModelError, match="has 3 errors"):
        require_sound(ranks)


def test_values_are_read(make_ranks: Any) -> None:
    _, ranks = make_ranks("Llama", 2, 1)

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}mlp.proj.weight"][0, 0] = torch.nan
        tensors[f"{LAYER}input_layernorm.weight"][3] += 1

    edit(ranks, 1, damage)
    text = told(ranks)
    assert f"{LAYER}mlp.proj.weight: it holds 1 NaN or infinity" in text
    assert f"rank1.safetensors: {LAYER}input_layernorm.weight: it differs from rank 0's" in text
    assert check_checkpoint(ranks, values=False) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": {"secret": 1}}, "secret is no key of TensorRT-LLM's"),
        ({"quantization": {"quant_algo": "W4A16_AWQ"}}, "group_size: it is None"),
        ({"quantization": {"quant_algo": "INT3"}}, "INT3 is no quant_algo of TensorRT-LLM"),
        ({"quantization": {"quant_algo": "FP8", "exclude_modules": ["x"]}}, "lm_head is not excluded"),
        ({"quantization": {"quant_algo": "W8A16", "exclude_modules": ["lm_head"]}}, "it lacks"),
        ({"quantization": {"quant_algo": "MIXED_PRECISION"}}, "cannot read quant_cfg.json"),
        ({"quantization": {"kv_cache_quant_algo": "INT3"}}, "kv_cache_quant_algo: it is INT3"),
        ({"mapping": {"world_size": 3}}, "world_size: it is 3, and tp 2 x pp 1 x cp 1 is 2"),
        ({"mapping": {"tp_size": 3, "world_size": 3}}, "num_attention_heads: 4 does not divide by 3"),
        ({"mapping": {"pp_size": 3, "world_size": 6}}, "2 layers do not make 3 stages"),
        ({"mapping": {"tp_size": 1, "pp_size": 1, "world_size": 1}}, "no rank reads this file"),
        ({"intermediate_size": 95}, "its 95 channels do not divide by 2"),
        ({"position_embedding_type": "alibi"}, "it is 'alibi'"),
        ({"architecture": "Qwen3ForCausalLM"}, "qk_layernorm: it is not set"),
        ({"architecture": "GPT2"}, "the architecture GPT2 is not supported"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_a_wrong_configuration(make_ranks: Any, changes: dict[str, Any], message: str) -> None:
    _, ranks = make_ranks("Llama", 2, 1)
    edit_config(ranks, **changes)
    assert message in told(ranks)


def test_a_missing_and_a_truncated_file(make_ranks: Any) -> None:
    _, ranks = make_ranks("Llama", 2, 1)
    file = ranks / "rank1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "the weights file is truncated" in told(ranks)
    file.unlink()
    assert "rank1.safetensors: the file is missing" in told(ranks)


def test_a_version_that_builds_no_engines(make_ranks: Any) -> None:
    _, ranks = make_ranks("Llama", 1, 1)
    assert "TensorRT-LLM 1.4.0rc1 builds no engines" in told(ranks, target="1.4.0rc1")
    assert check_checkpoint(ranks, target="1.2.1") == []


def test_groups_must_be_whole_on_every_rank(make_ranks: Any) -> None:
    _, ranks = make_ranks("Llama", 2, 1)
    edit_config(ranks, quantization={"quant_algo": "W4A16_AWQ", "group_size": 64})
    text = told(ranks)
    assert "a rank's 48 input channels are no whole groups of 64" in text
    assert errors(check_checkpoint(ranks))


def test_weights_that_belong_to_one_gpu_are_told_and_not_judged(make_ranks: Any) -> None:
    _, ranks = make_ranks("Llama", 1, 1)
    edit_config(ranks, quantization={"quant_algo": "W8A16"})
    assert check_checkpoint(ranks) == []  # plain weights, for trtllm-build to quantize

    def process(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}mlp.fc.weight"] = torch.zeros(64, 96, dtype=torch.int8)
        tensors[f"{LAYER}mlp.fc.per_channel_scale"] = torch.ones(96, dtype=torch.bfloat16)

    edit(ranks, 0, process)
    (found,) = check_checkpoint(ranks)
    assert (found.level, found.what) == (
        "warning",
        f"the weights of 1 linears are int8 already: {LAYER}mlp.fc",
    )
    edit_config(ranks, quantization={"quant_algo": "W4A16_GPTQ"})
    (found,) = check_checkpoint(ranks)
    assert "as one kind of GPU wants them" in found.what
