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


@pytest.mark.parametrize("method", ["none", "int8_wo", "int4_wo"])
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
    ],
)
@pytest.mark.parametrize("flavour", ["tensorrt", "pytorch", "vllm"])
def test_fields_of_openvino_alone(path: str, fields: dict[str, Any], flavour: str) -> None:
    assert broken(engine={"flavour": flavour, **fields}) == [path]
    assert broken(engine=fields) == []


def test_a_default_written_out_is_no_clash() -> None:
    assert broken(engine={**GPU, "precision": "fast", "num_threads": None}) == []


def test_groups_of_32_have_no_gpu_kernel() -> None:
    quantization = {"method": "awq", "group_size": 32, "calibration": CALIBRATION}
    assert broken(quantization=quantization, engine=GPU) == ["quantization.group_size"]
    assert broken(quantization=quantization) == []
    assert broken(quantization={**quantization, "method": "none"}, engine=GPU) == []


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
