"""Fields that cannot stand together; each rule with a recipe that breaks it and one that just does not."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.recipe import Recipe
from toolchain.recipe.rules import violations

CALIBRATION = {"dataset": "file:/calib.txt"}
GPU = {"flavour": "tensorrt"}


def broken(**sections: Any) -> list[str]:
    recipe = Recipe.model_validate({"schema": 1, "name": "r", "model": {"source": "o/n"}, **sections})
    return [violation.path for violation in violations(recipe)]


def test_defaults_break_no_rule() -> None:
    assert broken() == []


@pytest.mark.parametrize("method", ["awq", "gptq", "awq_gptq", "fp8", "int8_sq", "w4a8_awq", "nvfp4"])
def test_calibrated_methods_need_calibration(method: str) -> None:
    assert broken(quantization={"method": method}) == ["quantization.method"]
    assert broken(quantization={"method": method, "calibration": CALIBRATION}) == []


@pytest.mark.parametrize("method", ["none", "int8_wo", "int4_wo", "fp8_rowwise"])
def test_other_methods_do_not(method: str) -> None:
    assert broken(quantization={"method": method}) == []


def test_an_int8_cache_needs_calibration() -> None:
    assert broken(quantization={"kv_cache": "int8"}, engine=GPU) == ["quantization.kv_cache"]
    assert broken(quantization={"kv_cache": "int8", "calibration": CALIBRATION}, engine=GPU) == []
    assert broken(quantization={"kv_cache": "fp8"}, engine=GPU) == []


@pytest.mark.parametrize("axis", ["tensor", "pipeline"])
def test_openvino_does_not_split(axis: str) -> None:
    assert broken(parallelism={axis: 2}) == [f"parallelism.{axis}"]
    assert broken(parallelism={axis: 2}, engine=GPU) == []


@pytest.mark.parametrize(
    "field",
    [
        {"moe_tensor": 1},
        {"moe_expert": 1},
        {"use_parallel_embedding": False},
        {"embedding_sharding_dim": 1},
    ],
)
def test_how_ranks_are_cut_is_for_tensorrt_alone(field: dict[str, Any]) -> None:
    (name,) = field
    assert broken(parallelism=field, engine={"flavour": "vllm"}) == [f"parallelism.{name}"]
    assert broken(parallelism=field, engine=GPU) == []


@pytest.mark.parametrize("sizes", [{"moe_tensor": 2, "moe_expert": 4}, {"moe_expert": 3}, {"moe_tensor": 8}])
def test_the_ranks_of_experts_are_those_of_attention(sizes: dict[str, int]) -> None:
    (found,) = broken(parallelism={"tensor": 4} | sizes, engine=GPU)
    assert found.startswith("parallelism.moe_")
    assert broken(parallelism={"tensor": 4, "moe_expert": 2}, engine=GPU) == []


def test_openvino_quantizes_its_own_cache() -> None:
    assert broken(quantization={"kv_cache": "fp8"}) == ["quantization.kv_cache"]
    assert broken(quantization={"kv_cache": "fp8"}, engine=GPU) == []


def test_a_gpu_recipe_goes_to_the_cpu_with_one_override() -> None:
    assert broken(engine={"gpu": "h100"}) == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("engine.precision", {"precision": "exact"}),
        ("engine.kv_cache.dtype", {"kv_cache": {"dtype": "u8"}}),
        ("engine.num_threads", {"num_threads": 2}),
        ("engine.guided_decoding", {"guided_decoding": True}),
        ("engine.speculative", {"speculative": {"method": "prompt_lookup"}}),
    ],
)
@pytest.mark.parametrize("flavour", ["tensorrt", "pytorch", "vllm"])
def test_fields_of_openvino_alone(path: str, fields: dict[str, Any], flavour: str) -> None:
    assert broken(engine={"flavour": flavour, **fields}) == [path]
    assert broken(engine=fields) == []


def test_a_draft_model_is_named_where_one_guesses_and_only_there() -> None:
    for speculative, expected in (
        ({"method": "draft_model"}, ["engine.speculative.method"]),
        ({"method": "draft_model", "source": "org/draft"}, []),
        ({"method": "prompt_lookup", "source": "org/draft"}, ["engine.speculative.source"]),
    ):
        assert broken(engine={"speculative": speculative}) == expected


def test_a_default_written_out_is_no_clash() -> None:
    assert broken(engine={**GPU, "precision": "fast", "num_threads": None}) == []


def test_groups_of_32_have_no_gpu_kernel() -> None:
    quantization = {"method": "awq", "group_size": 32, "calibration": CALIBRATION}
    assert broken(quantization=quantization, engine=GPU) == ["quantization.group_size"]
    assert broken(quantization=quantization) == []
    assert broken(quantization={**quantization, "method": "none"}, engine=GPU) == []


@pytest.mark.parametrize(
    ("field", "value", "deaf", "hears"),
    [
        ("group_size", 64, "fp8", "w4a8_awq"),
        ("symmetric", False, "int8_sq", "awq"),
        ("clip", False, "int4_wo", "awq_gptq"),
        ("act_order", False, "awq", "gptq"),
        ("damp", 0.1, "awq", "awq_gptq"),
        ("alpha", 0.5, "fp8", "int8_sq"),
    ],
)
def test_a_field_that_no_method_reads(field: str, value: Any, deaf: str, hears: str) -> None:
    base = {"calibration": CALIBRATION, field: value}
    assert broken(quantization=base | {"method": deaf}) == [f"quantization.{field}"]
    assert broken(quantization=base | {"method": hears}) == []
    assert broken(quantization=base | {"method": "none"}) == []
    heard = [{"modules": "*.down_proj", "method": hears}]
    assert broken(quantization=base | {"method": deaf, "overrides": heard}) == []


def test_an_override_reads_its_group_size_and_its_calibration() -> None:
    override = {"modules": "*.down_proj", "method": "fp8", "group_size": 64}
    quantization = {"method": "none", "overrides": [override]}
    assert broken(quantization=quantization) == ["quantization.overrides"] * 2
    override["method"], override["group_size"] = "awq", 32
    quantization["calibration"] = CALIBRATION  # type: ignore[assignment]
    assert broken(quantization=quantization) == []
    assert broken(quantization=quantization, engine=GPU) == ["quantization.overrides"]


def test_zero_points_need_a_target_and_a_form_that_have_them() -> None:
    quantization = {"method": "awq", "symmetric": False, "calibration": CALIBRATION}
    assert broken(quantization=quantization) == []
    assert broken(quantization=quantization, engine={"flavour": "vllm"}) == []
    assert broken(quantization=quantization, engine=GPU) == ["quantization.symmetric"]
    assert broken(quantization=quantization | {"format": "modelopt"}) == ["quantization.format"]


def test_tensorrt_llm_reads_modelopts_form_alone() -> None:
    quantization = {"method": "int4_wo", "format": "gptq"}
    for flavour in ("tensorrt", "pytorch"):
        assert broken(quantization=quantization, engine={"flavour": flavour}) == ["quantization.format"]
    for flavour in ("openvino", "vllm"):
        assert broken(quantization=quantization, engine={"flavour": flavour}) == []


def test_vllm_reads_no_integer_weights_in_modelopts_form() -> None:
    vllm = {"flavour": "vllm"}
    assert broken(quantization={"method": "int4_wo", "format": "modelopt"}, engine=vllm) == [
        "quantization.format"
    ]
    assert broken(quantization={"method": "fp8_rowwise", "format": "modelopt"}, engine=vllm) == []


def test_a_search_has_a_method_of_its_own_and_one_budget() -> None:
    base = {"method": "mixed", "calibration": CALIBRATION}
    search = {"candidates": ["awq", "none"]}
    assert broken(quantization=base) == ["quantization.method"]
    assert broken(quantization=base | {"search": search}) == ["quantization.search"]
    assert broken(quantization=base | {"search": search | {"max_bits": 5.0}}) == []
    assert broken(quantization=base | {"search": search | {"max_bits": 5.0, "max_size": "1GiB"}}) == [
        "quantization.search"
    ]
    alone = {"method": "awq", "calibration": CALIBRATION, "search": search | {"max_bits": 5.0}}
    assert broken(quantization=alone) == ["quantization.search"]
    fixed = base | {
        "search": search | {"max_size": "1GiB"},
        "overrides": [{"modules": "*.o_proj", "method": "fp8"}],
    }
    assert broken(quantization=fixed) == ["quantization.search.max_size"]
    twice = base | {"search": {"candidates": ["awq", "awq"], "max_bits": 5.0}}
    assert broken(quantization=twice) == ["quantization.search.candidates"]


def test_a_divergence_is_measured_on_the_gates_text() -> None:
    quantization = {
        "method": "mixed",
        "calibration": CALIBRATION,
        "search": {"candidates": ["awq", "none"], "max_kl": 0.02},
    }
    assert broken(quantization=quantization) == ["quantization.search.max_kl"]
    assert broken(quantization=quantization, gates={"kl": {"dataset": "file:/a", "max": 0.03}}) == []


def test_a_step_has_a_token_for_each_request() -> None:
    assert broken(engine={"max_batch_size": 65, "max_num_tokens": 64}) == ["engine.max_num_tokens"]
    assert broken(engine={"max_batch_size": 64, "max_num_tokens": 64}) == []


def test_without_chunks_a_step_holds_the_longest_prompt() -> None:
    engine = {"max_seq_len": 1024, "max_num_tokens": 1023, "chunked_prefill": False}
    assert broken(engine=engine) == ["engine.max_num_tokens"]
    assert broken(engine={**engine, "max_num_tokens": 1024}) == []
    assert broken(engine={**engine, "chunked_prefill": True}) == []


def test_the_cache_holds_the_longest_request() -> None:
    assert broken(engine={"max_seq_len": 512, "kv_cache": {"max_tokens": 511}}) == [
        "engine.kv_cache.max_tokens"
    ]
    assert broken(engine={"max_seq_len": 512, "kv_cache": {"max_tokens": 512}}) == []


def test_what_needs_a_paged_cache() -> None:
    assert broken(engine={"kv_cache": {"paged": False}}) == [
        "engine.kv_cache.reuse", "engine.chunked_prefill", "deploy.batching",
    ]  # fmt: skip
    static = {"kv_cache": {"paged": False, "reuse": False}, "chunked_prefill": False}
    assert broken(engine=static, deploy={"batching": "static"}) == []


def test_a_perplexity_gate_has_a_bound_and_text_of_its_own() -> None:
    assert broken(gates={"perplexity": {"dataset": "file:/a"}}) == ["gates.perplexity"]
    assert broken(gates={"perplexity": {"dataset": "file:/a", "max": 9.5}}) == []
    gates = {"perplexity": {"dataset": CALIBRATION["dataset"], "max_increase": "3%"}}
    assert broken(gates=gates, quantization={"calibration": CALIBRATION}) == ["gates.perplexity.dataset"]


def test_a_kl_gate_has_text_of_its_own_and_windows_without_gaps() -> None:
    kl = {"dataset": CALIBRATION["dataset"], "max": 0.1}
    assert broken(gates={"kl": kl}, quantization={"calibration": CALIBRATION}) == ["gates.kl.dataset"]
    kl = {"dataset": "file:/a", "max": 0.1, "window": 512}
    assert broken(gates={"kl": kl | {"stride": 512}}) == []
    assert broken(gates={"kl": kl | {"stride": 513}}) == ["gates.kl.stride"]


def test_held_out_text_may_be_another_split_of_the_calibration_set() -> None:
    train = {"dataset": "hf:o/n", "split": "train"}
    for changes, paths in (
        ({"split": "test"}, []),
        ({"subset": "other"}, []),
        ({"column": "article"}, ["gates.kl.dataset"]),
        ({"revision": "v2"}, ["gates.kl.dataset"]),
    ):
        kl = train | changes | {"max": 0.1}
        assert broken(gates={"kl": kl}, quantization={"calibration": train}) == paths


def test_a_local_file_has_no_splits() -> None:
    local = {"subset": "a", "split": "train", "revision": "v1", "column": "article"}
    names = ["subset", "split", "revision"]
    assert broken(quantization={"calibration": CALIBRATION | local}) == [
        f"quantization.calibration.{name}" for name in names
    ]
    gates = {"kl": {"dataset": "file:/a", "max": 1} | local, "perplexity": {"dataset": "file:/a", "max": 9}}
    assert broken(gates=gates) == [f"gates.kl.{name}" for name in names]
    assert broken(quantization={"calibration": local | {"dataset": "hf:o/n"}}) == []


@pytest.mark.parametrize(
    ("path", "build"),
    [
        ("image", {"image": "nvcr.io/x:1"}),
        ("volume_claim", {"executor": "docker", "volume_claim": "store"}),
        ("opt_num_tokens", {"opt_num_tokens": 512, "multiple_profiles": True}),
        ("gather_context_logits", {"gather_context_logits": True, "max_draft_len": 4,
                                   "speculative_decoding_mode": "draft_tokens_external"}),
        ("max_draft_len", {"max_draft_len": 4}),
        ("lora_dir", {"lora_dir": ["./lora"], "lora_plugin": "disable"}),
        ("max_lora_rank", {"max_lora_rank": 8}),
        ("dora_plugin", {"dora_plugin": True}),
        ("user_buffer", {"user_buffer": True}),
        (
            "low_latency_gemm_swiglu_plugin",
            {"low_latency_gemm_swiglu_plugin": "fp8", "gemm_swiglu_plugin": "fp8"},
        ),
    ],
)  # fmt: skip
def test_flags_of_trtllm_build_that_do_not_go_together(path: str, build: dict[str, Any]) -> None:
    assert broken(engine={**GPU, "build": build}) == [f"engine.build.{path}"]


@pytest.mark.parametrize(
    "build",
    [
        {"executor": "podman", "image": "nvcr.io/x:1"},
        {"executor": "kubernetes", "volume_claim": "store"},
        {"opt_num_tokens": 512, "multiple_profiles": False},
        {"lora_dir": ["./lora"], "lora_plugin": "auto", "max_lora_rank": 8, "dora_plugin": True},
        {"max_draft_len": 4, "speculative_decoding_mode": "draft_tokens_external"},
        {"user_buffer": True, "reduce_fusion": True},
    ],
)
def test_flags_of_trtllm_build_that_do(build: dict[str, Any]) -> None:
    assert broken(engine={**GPU, "build": build}) == []


def test_block_reuse_and_chunks_need_attention_over_the_paged_cache() -> None:
    off = {**GPU, "build": {"use_paged_context_fmha": False}}
    path = "engine.build.use_paged_context_fmha"
    assert broken(engine=off) == [path, path]
    assert broken(engine={**off, "kv_cache": {"reuse": False}, "chunked_prefill": False}) == []
    unpaged = {"kv_cache": {"paged": False, "reuse": False}, "chunked_prefill": False}
    on = {**GPU, "build": {"use_paged_context_fmha": True}, **unpaged}
    assert broken(engine=on, deploy={"batching": "static"}) == [path]


@pytest.mark.parametrize("flavour", ["openvino", "pytorch", "vllm"])
def test_only_tensorrt_has_engines_to_compile(flavour: str) -> None:
    assert broken(engine={"flavour": flavour, "build": {"max_beam_width": 2}}) == ["engine.build"]
    assert broken(engine={"flavour": flavour, "build": {}}) == []
