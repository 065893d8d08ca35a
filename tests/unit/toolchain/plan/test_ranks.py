"""Splitting a model over ranks: sums, copies, and what more ranks or tokens can only do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.data import load_table
from toolchain.model.families import expected_tensors
from toolchain.model.spec import ModelSpec
from toolchain.plan import memory, ranks
from toolchain.plan.ranks import Cache
from toolchain.plan.stored import planned_weights
from toolchain.recipe.quantization import Quantization

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
MOE = LLAMA | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 128,
    "decoder_sparse_step": 2,
}
CACHE = Cache("f16", 32)


def spec(config: Mapping[str, Any] = LLAMA, **changes: Any) -> ModelSpec:
    return ModelSpec.from_config(dict(config) | changes, "config.json")


def stages(
    model: ModelSpec, tensor: int = 1, pipeline: int = 1, method: str = "none", flavour: str = "pytorch"
) -> list[ranks.StageWeights]:
    quant = Quantization.model_validate({"method": method, "group_size": 64})
    weights = planned_weights(model, quant, flavour)
    return ranks.stage_weights(model, weights.layers, tensor, pipeline, flavour=flavour)


SPLITS = {"tensor": st.sampled_from([1, 2, 4, 8]), "pipeline": st.integers(1, 6)}
METHODS = st.sampled_from(["none", "int4_wo", "int8_wo", "fp8_rowwise", "nvfp4"])


@given(**SPLITS, method=METHODS, moe=st.booleans())
def test_ranks_together_hold_at_least_the_model(tensor: int, pipeline: int, method: str, moe: bool) -> None:
    model = spec(MOE if moe else LLAMA)
    found = stages(model, tensor, pipeline, method)
    whole = planned_weights(
        model, Quantization.model_validate({"method": method, "group_size": 64}), "pytorch"
    ).stored
    assert sum(stage.total for stage in found) * tensor >= whole.total
    assert [stage.begin for stage in found] == [0, *(stage.end for stage in found[:-1])]
    assert found[-1].end == 6
    assert max(stage.total for stage in found) <= whole.total


@given(**SPLITS, method=METHODS, moe=st.booleans())
def test_more_ranks_never_hold_more(tensor: int, pipeline: int, method: str, moe: bool) -> None:
    model = spec(MOE if moe else LLAMA)
    fullest = max(stage.total for stage in stages(model, tensor, pipeline, method))
    assert max(stage.total for stage in stages(model, 2 * tensor, pipeline, method)) <= fullest
    assert max(stage.total for stage in stages(model, tensor, pipeline + 1, method)) <= fullest


@pytest.mark.parametrize("config", [LLAMA, MOE], ids=["dense", "experts"])
def test_one_rank_holds_every_tensor(config: Mapping[str, Any]) -> None:
    model = spec(config)
    (stage,) = stages(model)
    assert stage.total == sum(2 * math.prod(shape) for shape in expected_tensors(model).values())
    assert stage.total == memory.weight_bytes(model).total


def test_keys_and_values_are_copied_beyond_their_heads() -> None:
    model = spec()
    two, eight = stages(model, 2)[0], stages(model, 8)[0]
    keys = 2 * 2 * (32 * 256)  # k_proj and v_proj of one head of 32, bf16
    queries, mlp = 2 * 2 * 256 * 256, 2 * 3 * 256 * 512
    norms = 2 * 2 * 256
    assert two.layers == 6 * (queries // 2 + mlp // 2 + keys + norms)
    assert eight.layers == 6 * (queries // 8 + mlp // 8 + keys + norms)
    assert ranks.token_bytes(model, CACHE) == 2 * 6 * 2 * 32 * 2
    assert ranks.token_bytes(model, CACHE, 2) == ranks.token_bytes(model, CACHE, 8) == 2 * 6 * 32 * 2


def test_the_ends_have_what_the_middle_has_not() -> None:
    first, *middle, last = stages(spec(vocab_size=1001), 4, 4)
    assert [(s.begin, s.end) for s in (first, *middle, last)] == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert (first.embedding, first.head) == (251 * 256 * 2, 0)  # 1001 rows over 4, padded
    assert (last.embedding, last.head) == (0, 251 * 256 * 2 + 256 * 2)
    assert all(stage.embedding == stage.head == 0 for stage in middle)


def test_a_tied_table_is_held_twice_where_the_ends_are_apart_or_engines_want_it() -> None:
    tied, table = spec(tie_word_embeddings=True), 1000 * 256 * 2
    assert stages(tied)[0].head == 512
    assert stages(tied, pipeline=2)[1].head == table + 512
    assert stages(tied, flavour="tensorrt")[0].head == table + 512


def test_routers_of_engines_are_float32() -> None:
    model = spec(MOE)
    wider = stages(model, flavour="tensorrt")[0].total - stages(model)[0].total
    assert wider == 3 * 2 * 256 * (6 + 1)  # three sparse layers


@given(
    dtype=st.sampled_from(sorted(memory.KV_DTYPE_BYTES)),
    tokens=st.integers(1, 4000),
    tensor=st.sampled_from([1, 2, 4]),
    windowed=st.booleans(),
)
def test_a_longer_sequence_takes_no_less_cache(dtype: str, tokens: int, tensor: int, windowed: bool) -> None:
    config = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 512 if windowed else None}
    model = spec(config)
    cache = Cache(dtype, 32, model.sliding_windows)
    taken = ranks.sequence_bytes(model, cache, tokens, tensor)
    assert taken <= ranks.sequence_bytes(model, cache, tokens + 1, tensor)
    assert taken >= ranks.sequence_bytes(model, cache, tokens, 2 * tensor)
    longest = ranks.sequence_bytes(model, cache, 512, tensor)
    if windowed:
        assert taken <= longest
    else:
        blocks = math.ceil(tokens / 32) * 32
        assert taken == math.ceil(ranks.token_bytes(model, cache, tensor) * blocks)


def test_only_windowed_layers_stop_at_the_window() -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    window = {"use_sliding_window": True, "sliding_window": 64, "layer_types": kinds}
    model = spec(LLAMA | {"architectures": ["Qwen2ForCausalLM"]}, **window)
    cache, token = Cache("f16", 32, model.sliding_windows), 2 * 2 * 32 * 2
    assert ranks.sequence_bytes(model, cache, 256) == token * 3 * (64 + 256)
    assert ranks.sequence_bytes(model, cache, 256, begin=0, end=1) == token * 64
    assert ranks.sequence_bytes(model, CACHE, 256) == token * 6 * 256


# As the model cards and papers count them, in millions.
PARAMETERS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8030.3,
    "meta-llama/Llama-3.1-70B-Instruct": 70553.7,
    "Qwen/Qwen2.5-72B-Instruct": 72706.2,
    "mistralai/Mistral-7B-Instruct-v0.1": 7241.7,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46702.8,
}
# 2 x layers x KV heads x head_dim x 2 bytes.
KV_BYTES = {
    "meta-llama/Llama-3.1-8B-Instruct": 128 * 1024,
    "meta-llama/Llama-3.1-70B-Instruct": 320 * 1024,
    "Qwen/Qwen2.5-72B-Instruct": 320 * 1024,
    "mistralai/Mistral-7B-Instruct-v0.1": 128 * 1024,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 128 * 1024,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models(name: str) -> None:
    model = ModelSpec.from_config(load_table("models")[name], name)
    assert memory.parameter_count(model) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.06)
    assert ranks.token_bytes(model, Cache("bf16", 32)) == KV_BYTES[name]
    if name.startswith("mistralai/Mixtral"):  # 12.9 B with embedding, output layer, routers and norms
        assert memory.active_count(model) / 1e9 == pytest.approx(12.6, abs=0.05)
    for tensor in (1, 2, 4, 8):
        (stage,) = stages(model, tensor)
        even = 2 * memory.parameter_count(model) / tensor
        assert stage.total == pytest.approx(even, rel=0.001)


def test_mistral_keeps_its_window_of_4096() -> None:
    model = ModelSpec.from_config(load_table("models")["mistralai/Mistral-7B-Instruct-v0.1"], "table")
    cache = Cache("bf16", 32, model.sliding_windows)
    assert ranks.sequence_bytes(model, cache, 32768) == 4096 * 128 * 1024
