"""Which linear gets which method, and what cannot be, before any work."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.errors import PlanError
from toolchain.model.spec import ModelSpec
from toolchain.plan.quantization import PLAIN, Storage, published_storage, quantization_problems, storages
from toolchain.recipe.quantization import Quantization

CALIBRATION = {"dataset": "file:/c.txt", "seq_len": 64}


def spec(**changes: Any) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 576,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    }
    return ModelSpec.from_config(config | changes, "config.json")


def quant(**fields: Any) -> Quantization:
    return Quantization.model_validate({"method": "awq", "calibration": CALIBRATION} | fields)


def whats(quantization: Quantization, flavour: str = "openvino", **changes: Any) -> list[str]:
    return [problem.what for problem in quantization_problems(spec(**changes), quantization, flavour)]


def test_the_first_override_wins_and_exclusion_over_all() -> None:
    overrides = [
        {"modules": "*.layers.0.mlp.*", "method": "gptq", "group_size": 32},
        {"modules": "*.mlp.*", "method": "int8_wo"},
    ]
    found = storages(spec(), quant(exclude=["*.down_proj"], overrides=overrides), "awq")
    assert found["model.layers.0.mlp.up_proj"] == Storage("gptq", 32)
    assert found["model.layers.1.mlp.up_proj"] == Storage("int8_wo", 128)
    assert found["model.layers.0.mlp.down_proj"] == PLAIN
    assert found["model.layers.1.self_attn.o_proj"] == Storage("awq", 128)


def test_groups_that_do_not_divide_are_named_with_their_linears() -> None:
    (what,) = whats(quant())
    assert "mlp.down_proj has 576, for awq in groups of 128" in what
    assert "q_proj" not in what
    assert whats(quant(group_size=64)) == []
    assert whats(quant(exclude=["*.down_proj"])) == []
    assert whats(quant(overrides=[{"modules": "*.down_proj", "method": "awq", "group_size": 32}])) == []
    assert whats(quant(overrides=[{"modules": "*.down_proj", "method": "int8_wo"}])) == []


def test_every_candidate_of_a_search_must_divide() -> None:
    search = {"candidates": ["awq", "none"], "max_bits": 6.0}
    (what,) = whats(quant(method="mixed", search=search))
    assert "mlp.down_proj has 576" in what


@pytest.mark.parametrize(
    ("fields", "split"),
    [
        ({"exclude": ["*.q_proj"]}, "self_attn.q_proj and self_attn.k_proj and self_attn.v_proj"),
        ({"overrides": [{"modules": "*.0.mlp.up_proj", "method": "fp8"}]}, "mlp.gate_proj and mlp.up_proj"),
        (
            {"overrides": [{"modules": "*.up_proj", "method": "awq", "group_size": 128}]},
            "mlp.gate_proj and mlp.up_proj",
        ),
    ],
)
def test_gpu_kernels_compute_some_linears_as_one(fields: dict[str, Any], split: str) -> None:
    quantization = quant(group_size=64, **fields)
    (what,) = whats(quantization, "pytorch")
    assert what == f"overrides or exclusions split {split}"
    assert whats(quantization) == []


@pytest.mark.parametrize("pattern", ["*.self_attn.[qkv]_proj", "*.0.mlp.*_proj", "*.o_proj"])
def test_patterns_that_keep_them_together(pattern: str) -> None:
    assert whats(quant(group_size=64, overrides=[{"modules": pattern, "method": "fp8"}]), "vllm") == []


def test_the_experts_of_a_layer_are_one() -> None:
    moe = {
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": 512,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    one = quant(overrides=[{"modules": "*.experts.3.*", "method": "fp8"}])
    assert whats(one, "tensorrt", **moe) == ["overrides or exclusions split the experts"]
    assert whats(quant(overrides=[{"modules": "*.experts.*", "method": "fp8"}]), "tensorrt", **moe) == []
    search = {"candidates": ["fp8", "none"], "max_bits": 9.0}
    (what,) = whats(quant(method="mixed", search=search), "tensorrt", **moe)
    assert what == "a search does not cover the experts of MixtralForCausalLM"


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(PlanError, match=r"quantization\.overrides: '\*\.q_prj' matches no linear"):
        storages(spec(), quant(overrides=[{"modules": "*.q_prj", "method": "fp8"}]), "awq")


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_layer_is_never_quantized(tied: bool) -> None:
    model = spec(tie_word_embeddings=tied)
    assert quantization_problems(model, quant(group_size=64, exclude=["lm_head"]), "tensorrt") == []
    with pytest.raises(PlanError, match="lm_head cannot be quantized") as caught:
        storages(model, quant(overrides=[{"modules": "lm_head", "method": "int8_wo"}]), "awq")
    assert ("the embedding table again" in str(caught.value.why)) is tied


def test_a_quantized_source_is_taken_as_it_is_or_not_at_all() -> None:
    described = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}}
    (what,) = whats(quant(group_size=64), **described)
    assert what == "the model is quantized already (gptq), and would be quantized again"
    assert whats(quant(method="none"), **described) == []


def test_calibration_beyond_the_context() -> None:
    long = CALIBRATION | {"seq_len": 129}
    (what,) = whats(quant(group_size=64, calibration=long))
    assert what == "calibration sequences of 129 tokens exceed the model's context of 128"
    assert whats(quant(method="int8_wo", calibration=long)) == []  # not read


@pytest.mark.parametrize(
    ("described", "storage"),
    [
        (None, PLAIN),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, Storage("gptq", 64)),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, Storage("gptq", 128)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, Storage("gptq", 128)),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Storage("fp8")),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
            },
            Storage("int8_wo"),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            Storage("fp8"),
        ),
    ],
)
def test_how_published_checkpoints_are_stored(described: dict[str, Any] | None, storage: Storage) -> None:
    found = published_storage(described)
    assert (found.method, found.group) == (storage.method, storage.group)
