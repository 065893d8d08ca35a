"""`config.json` of both transformers generations -> ModelSpec."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolchain.errors import ModelError
from toolchain.model.moe import MoeSpec
from toolchain.model.rope import RopeSpec
from toolchain.model.spec import FAMILIES, ModelSpec, load_spec

# As published, in the words of transformers 4: Llama-3.1-8B-Instruct, Mistral-7B-v0.1, Qwen2.5-7B, Qwen3-4B.
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# Mixtral-8x7B-v0.1, Qwen1.5-MoE-A2.7B, Qwen3-30B-A3B.
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
QWEN2_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PUBLISHED = {
    "llama": LLAMA31,
    "mistral": MISTRAL,
    "qwen2": QWEN25,
    "qwen3": QWEN3,
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
}


def read(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return ModelSpec.from_config(config | changes, "config.json")


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def test_llama_31() -> None:
    assert read(LLAMA31) == ModelSpec(
        architecture="LlamaForCausalLM",
        family="llama",
        dtype="bfloat16",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
        rope=RopeSpec(
            "llama3", 500000.0, 128, 131072, 8192, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
        ),
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=(None,) * 32,
        bos_token_id=128000,
        eos_token_ids=(128001, 128008, 128009),
        pad_token_id=None,
    )


def test_families_differ_where_their_classes_do() -> None:
    mistral, qwen2, qwen3 = read(MISTRAL), read(QWEN25), read(QWEN3)
    assert mistral.sliding_windows == (4096,) * 32
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias) == (True, False, False)
    assert qwen2.sliding_windows == (None,) * 28
    assert (qwen3.qk_norm, qwen3.head_dim, qwen3.tie_word_embeddings) == (True, 128, True)
    assert [read(config).family for config in PUBLISHED.values()] == list(FAMILIES.values())


def test_spec_of_a_saved_model_agrees_with_transformers(
    variant: str, make_model: Any, tmp_path: Path
) -> None:
    model = make_model(variant)
    model.save_pretrained(tmp_path)
    spec, config = load_spec(tmp_path), model.config
    assert spec.dtype == "bfloat16"
    for name in (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"),
        *("bos_token_id", "pad_token_id"),
    ):
        assert getattr(spec, name) == getattr(config, name), name
    attention = [layer.self_attn for layer in model.model.layers]
    assert spec.head_dim == attention[0].head_dim
    assert (spec.qkv_bias, spec.o_bias) == (
        attention[0].q_proj.bias is not None,
        attention[0].o_proj.bias is not None,
    )
    assert spec.qk_norm == hasattr(attention[0], "q_norm")
    if spec.family == "mistral":
        assert set(spec.sliding_windows) == {config.sliding_window}
    else:
        assert spec.sliding_windows == tuple(getattr(module, "sliding_window", None) for module in attention)


def test_experts_of_published_models() -> None:
    assert read(MIXTRAL).moe == MoeSpec(8, 2, 14336, 0, True, (True,) * 32)
    assert read(QWEN2_MOE).moe == MoeSpec(60, 4, 1408, 5632, False, (True,) * 24)
    assert read(QWEN3_MOE).moe == MoeSpec(128, 8, 768, 0, True, (True,) * 48)
    assert read(QWEN3).moe is None
    assert not read(QWEN3).is_sparse(0)


def test_spec_of_a_saved_model_with_experts_agrees_with_transformers(
    moe_variant: str, make_model: Any, tmp_path: Path
) -> None:
    model = make_model(moe_variant)
    model.save_pretrained(tmp_path)
    spec, config = load_spec(tmp_path), model.config
    assert spec.moe is not None
    assert spec.rope.theta == config.rope_parameters["rope_theta"]
    for index, layer in enumerate(model.model.layers):
        block = layer.mlp
        assert spec.is_sparse(index) == hasattr(block, "experts")
        assert spec.qkv_bias == (layer.self_attn.q_proj.bias is not None)
        assert spec.o_bias == (layer.self_attn.o_proj.bias is not None)
        assert spec.qk_norm == hasattr(layer.self_attn, "q_norm")
        if not spec.is_sparse(index):
            continue
        assert spec.moe.num_experts == block.experts.num_experts
        assert spec.moe.moe_intermediate_size == block.experts.intermediate_dim
        assert spec.moe.num_experts_per_tok == block.gate.top_k
        assert spec.moe.norm_topk_prob == getattr(block.gate, "norm_topk_prob", True)
        shared = block.shared_expert.gate_proj.out_features if hasattr(block, "shared_expert") else 0
        assert spec.moe.shared_expert_intermediate_size == shared
    if spec.family == "qwen2_moe":
        kinds = [kind == "sliding_attention" for kind in config.layer_types]
        assert spec.sliding_windows == tuple(config.sliding_window if kind else None for kind in kinds)
    else:
        assert set(spec.sliding_windows) == {config.sliding_window}


@pytest.mark.parametrize("base", [MIXTRAL, QWEN2_MOE, QWEN3_MOE], ids=["mixtral", "qwen2-moe", "qwen3-moe"])
def test_silence_about_experts_means_the_class_default(base: dict[str, Any]) -> None:
    import transformers

    name = base["architectures"][0].replace("ForCausalLM", "Config")
    default = getattr(transformers, name)()
    told = ("expert", "moe_", "topk", "theta", "decoder_sparse", "mlp_only", "model_type")
    silent = read({key: value for key, value in base.items() if not any(word in key for word in told)})
    assert silent.moe is not None
    assert silent.rope.theta == default.rope_parameters["rope_theta"]
    assert silent.moe.num_experts_per_tok == default.num_experts_per_tok
    experts = default.num_local_experts if silent.family == "mixtral" else default.num_experts
    assert silent.moe.num_experts == experts
    width = base["intermediate_size"] if silent.family == "mixtral" else default.moe_intermediate_size
    assert silent.moe.moe_intermediate_size == width
    assert silent.moe.norm_topk_prob == getattr(default, "norm_topk_prob", True)
    shared = getattr(default, "shared_expert_intermediate_size", 0)
    assert silent.moe.shared_expert_intermediate_size == shared
    assert all(silent.moe.sparse_layers)


def test_which_layers_are_sparse() -> None:
    def sparse(**changes: Any) -> list[bool]:
        moe = read(QWEN3_MOE, num_hidden_layers=4, **changes).moe
        assert moe is not None
        return list(moe.sparse_layers)

    assert sparse(decoder_sparse_step=2) == [False, True, False, True]
    assert sparse(decoder_sparse_step=2, mlp_only_layers=[3]) == [False, True, False, False]
    assert sparse(mlp_only_layers=None) == [True] * 4
    assert sparse(mlp_only_layers=[0, 9]) == [False, True, True, True]


def test_an_unused_window_may_be_zero() -> None:
    assert read(QWEN2_MOE, sliding_window=0).sliding_windows == (None,) * 24
    windows = read(QWEN2_MOE, num_hidden_layers=5, use_sliding_window=True, max_window_layers=3)
    assert windows.sliding_windows == (32768, None, 32768, None, None)
    with pytest.raises(ModelError, match="sliding_window must be an integer from 1"):
        read(QWEN2_MOE, sliding_window=0, use_sliding_window=True)


def test_both_generations_name_the_number_of_experts() -> None:
    for config, name in ((QWEN3_MOE, "num_experts"), (MIXTRAL, "num_local_experts")):
        other = {"num_experts": "num_local_experts", "num_local_experts": "num_experts"}[name]
        assert read(without(config, name), **{other: config[name]}) == read(config)


def test_both_generations_of_transformers_read_alike() -> None:
    new = without(LLAMA31, "torch_dtype", "rope_theta", "rope_scaling") | {
        "dtype": "bfloat16",
        "rope_parameters": LLAMA31["rope_scaling"] | {"rope_theta": 500000.0},
    }
    assert read(new) == read(LLAMA31)


def test_silence_means_the_class_default() -> None:
    old = without(LLAMA31, "num_key_value_heads", "rope_scaling", "rope_theta", "torch_dtype", "bos_token_id")
    spec = read(
        without(old, "eos_token_id", "attention_bias", "mlp_bias", "tie_word_embeddings", "hidden_act")
    )
    assert (spec.num_key_value_heads, spec.dtype) == (32, "float32")
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (2,), None)
    assert (spec.rope.kind, spec.rope.theta, spec.tie_word_embeddings) == ("default", 10000.0, False)
    assert read(without(QWEN25, "bos_token_id", "eos_token_id")).eos_token_ids == ()
    assert read(without(QWEN3, "head_dim")).head_dim == 128
    assert read(without(MISTRAL, "sliding_window")).sliding_windows[0] == 4096


@pytest.mark.parametrize("config", [QWEN25, QWEN3], ids=["qwen2", "qwen3"])
def test_windows_of_qwen(config: dict[str, Any]) -> None:
    small = config | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 64}
    assert read(small, max_window_layers=2).sliding_windows == (None, None, 64)
    assert read(small, max_window_layers=0).sliding_windows == (64, 64, 64)
    assert read(small, max_window_layers=28).sliding_windows == (None, None, None)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(small, layer_types=kinds).sliding_windows == (64, None, 64)
    full = ["full_attention"] * 3
    assert read(small, layer_types=full, use_sliding_window=False).sliding_windows == (None,) * 3


def test_biases_of_llama_follow_their_flags() -> None:
    spec = read(LLAMA31, attention_bias=True, mlp_bias=True)
    assert (spec.qkv_bias, spec.o_bias, spec.mlp_bias) == (True, True, True)
    # Classes that have no such flag ignore it.
    assert read(MISTRAL, attention_bias=True).o_bias is False
    assert read(QWEN25, attention_bias=True).o_bias is False


def test_end_tokens_of_generation_config_are_added(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN25))
    assert load_spec(tmp_path).eos_token_ids == (151645,)
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    assert load_spec(tmp_path).eos_token_ids == (151645, 151643)
    generation.write_text(json.dumps({"eos_token_id": 7}))
    assert load_spec(tmp_path).eos_token_ids == (151645, 7)
    generation.write_text(json.dumps({}))
    assert load_spec(tmp_path).eos_token_ids == (151645,)
    generation.write_text(json.dumps({"eos_token_id": "end"}))
    with pytest.raises(ModelError, match="must be a token id or a list of them, not 'end'"):
        load_spec(tmp_path)


def test_quantization_config_is_kept_verbatim() -> None:
    quantization = {"quant_method": "modelopt", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    spec = read(LLAMA31, quantization_config=quantization)
    assert spec.quantization == quantization
    assert read(LLAMA31).quantization is None
    assert len({spec, read(LLAMA31, quantization_config=quantization)}) == 1


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (
            ["Qwen2_5ForCausalLM"],
            "Qwen2_5ForCausalLM is not supported.*nearest by name is Qwen2ForCausalLM",
        ),
        (
            ["GemmaForCausalLM"],
            "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3.*MixtralForCausalLM",
        ),
        (["GPT2LMHeadModel"], "GPT2LMHeadModel is not supported"),
        (None, "no model architecture is named"),
        ([], "no model architecture is named"),
        ("LlamaForCausalLM", "no model architecture is named"),
        ([3], "no model architecture is named"),
    ],
)
def test_unknown_architecture(named: Any, expected: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){expected}"):
        read(LLAMA31, architectures=named)


def test_all_problems_come_together() -> None:
    config = without(LLAMA31, "vocab_size", "num_hidden_layers") | {
        "hidden_size": "4096",
        "rms_norm_eps": None,
        "num_attention_heads": 0,
        "torch_dtype": "int8",
        "hidden_act": "gelu",
        "rope_scaling": {"rope_type": "linear"},
        "tie_word_embeddings": "yes",
    }
    with pytest.raises(ModelError, match="9 fields are missing or wrong") as caught:
        read(config)
    for text in (
        "vocab_size is missing",
        "num_hidden_layers is missing",
        "rms_norm_eps is missing",
        "hidden_size must be an integer from 1 to 2147483647, not '4096'",
        "num_attention_heads must be an integer from 1 to 2147483647, not 0",
        "torch_dtype must be one of bfloat16, float16, float32, not 'int8'",
        "hidden_act must be silu (the gate of SwiGLU), not 'gelu'",
        "rope_scaling.factor is missing",
        "tie_word_embeddings must be true or false, not 'yes'",
    ):
        assert text in (caught.value.why or "")
    assert caught.value.where == "config.json"


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        (LLAMA31, {"num_key_value_heads": 5}, r"\(5\) must divide num_attention_heads \(32\)"),
        (LLAMA31, {"hidden_size": 4097}, "head_dim is missing, and 32 heads do not divide hidden_size 4097"),
        (LLAMA31, {"model_type": "qwen2"}, "model_type must be 'llama' beside LlamaForCausalLM"),
        (LLAMA31, {"head_dim": 127}, "must be an even number from 2 to 127, not 127"),
        (
            LLAMA31,
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor must be 1: LlamaForCausalLM rotates",
        ),
        (LLAMA31, {"eos_token_id": [1, "a"]}, "eos_token_id must be a token id or a list of them"),
        (LLAMA31, {"eos_token_id": -1}, "eos_token_id must be a token id or a list of them, not -1"),
        (
            LLAMA31,
            {"num_hidden_layers": True},
            "num_hidden_layers must be an integer from 1 to 10000, not True",
        ),
        (LLAMA31, {"num_hidden_layers": 10**12}, "num_hidden_layers must be an integer from 1 to 10000"),
        (LLAMA31, {"quantization_config": "awq"}, "quantization_config must be a JSON object, not 'awq'"),
        (without(MISTRAL, "num_key_value_heads"), {}, "num_key_value_heads is missing"),
        (
            QWEN3,
            {"layer_types": ["full_attention"]},
            "layer_types must be a list of 36 entries.* not 1 entries",
        ),
        (QWEN3, {"layer_types": ["linear_attention"] * 36}, "may hold full_attention and sliding_attention"),
        (QWEN3, {"layer_types": ["sliding_attention"] * 36}, "sliding_window must be set and switched on"),
        (MIXTRAL, {"num_experts_per_tok": 9}, r"num_experts_per_tok \(9\) exceeds the 8 experts"),
        (MIXTRAL, {"num_local_experts": 0}, "num_local_experts must be an integer from 1"),
        (QWEN3_MOE, {"mlp_only_layers": "0"}, "mlp_only_layers must be a list of layer numbers, not '0'"),
        (QWEN3_MOE, {"mlp_only_layers": [True]}, "mlp_only_layers must be a list of layer numbers"),
        (QWEN3_MOE, {"decoder_sparse_step": 0}, "decoder_sparse_step must be an integer from 1"),
        (QWEN2_MOE, {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size must be an"),
    ],
)
def test_a_wrong_field_is_named(base: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError, match=f"(?s)1 field is missing or wrong.*{expected}"):
        read(base, **changes)


def test_minus_one_is_no_padding() -> None:
    assert read(LLAMA31, pad_token_id=-1).pad_token_id is None
    assert read(LLAMA31, pad_token_id=0).pad_token_id == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read config.json: No such file"),
        (b"", "config.json is not valid JSON"),
        (b"{", "config.json is not valid JSON"),
        (b"\xff\xfe\x00", "config.json is not valid JSON"),
        (b"[" * 100_000, "config.json is not valid JSON"),
        (b"[]", "must hold a JSON object, not list"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "this is a Git LFS pointer"),
    ],
)
def test_unreadable_config(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=expected):
        load_spec(tmp_path)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such model directory"):
        load_spec(tmp_path / "absent")


WORDS = ["", "yarn", "dynamic", "longrope", "llama3", "rope_type", "factor", "rope_theta", "silu", "bfloat16"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(PUBLISHED)), st.data())
def test_no_value_of_any_field_escapes_as_another_error(family: str, data: st.DataObject) -> None:
    config = PUBLISHED[family]
    names = [*config, "rope_parameters", "layer_types", "head_dim", "sliding_window", "partial_rotary_factor"]
    changes = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=3))
    try:
        spec = read(config, **changes)
    except ModelError:
        return
    assert spec.rope.attention_factor > 0
    assert len(spec.sliding_windows) == spec.num_hidden_layers
    if spec.head_dim < 10_000:
        assert spec.rope.inv_freq(100_000).shape == (spec.head_dim // 2,)


def test_reading_a_spec_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, toolchain.model.spec, toolchain.model.checkpoint;"
        "print([name for name in ('torch', 'transformers', 'safetensors') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
