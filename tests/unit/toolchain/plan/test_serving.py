"""Which version takes what `deploy` says."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.data import load_table
from toolchain.plan.serving import runtime_version, serving_problems
from toolchain.recipe import Recipe
from toolchain.recipe.triton import TensorRTLLM


def problems(version: str | None, flavour: str = "tensorrt", **deploy: Any) -> list[str]:
    recipe = {
        "schema": 1, "name": "r", "model": {"source": "o/n"}, "deploy": deploy,
        "engine": {"flavour": flavour, "version": version},
    }  # fmt: skip
    return [str(problem) for problem in serving_problems(Recipe.model_validate(recipe))]


def test_the_table_names_parameters() -> None:
    assert set(load_table("triton_parameters")) <= set(TensorRTLLM.model_fields)


@pytest.mark.parametrize("version", ["0.19.0", "1.2.1", None])
def test_versions_that_know_a_parameter(version: str | None) -> None:
    assert problems(version, tensorrt_llm={"num_nodes": 2}) == []


def test_one_that_does_not() -> None:
    assert problems("0.18.2") == []
    (problem,) = problems("0.18.2", tensorrt_llm={"num_nodes": 2, "cuda_graph_mode": True})
    assert problem.startswith("deploy.tensorrt_llm.num_nodes: Triton's backend of TensorRT-LLM 0.18.2 has no")
    assert "set engine.version to 0.19.0 or newer" in problem


def test_without_a_version_the_newest_container_serves() -> None:
    vllm = {"schema": 1, "name": "r", "model": {"source": "o/n"}, "engine": {"flavour": "vllm"}}
    newest = list(load_table("vllm_releases")["tags"].values())[-1]
    assert runtime_version(Recipe.model_validate(vllm)) == newest


def test_arguments_that_the_runtime_knows() -> None:
    args = {"kv_cache_config": {"host_cache_size": 1 << 30}, "cuda_graph_config": {"enable_padding": True}}
    assert problems("1.2.0", "pytorch", engine_args=args) == []
    assert (
        problems("0.11.0", "vllm", engine_args={"enforce_eager": True, "speculative_config": {"x": 1}}) == []
    )


@pytest.mark.parametrize(
    ("flavour", "version", "args", "message"),
    [
        (
            "pytorch",
            "1.2.0",
            {"cuda_graphs": {}},
            "engine_args.cuda_graphs: TensorRT-LLM 1.2.0 is not known to",
        ),
        ("pytorch", "1.2.0", {"cuda_graph_confg": {}}, "write `cuda_graph_config`"),
        ("pytorch", "1.2.0", {"kv_cache_config": {"tokens": 1}}, "an argument kv_cache_config.tokens"),
        ("pytorch", "1.2.0", {"kv_cache_config": {"max_tokens": 1}}, "set engine.kv_cache.max_tokens"),
        ("pytorch", "1.2.0", {"kv_cache_config": 7}, "kv_cache_config is no mapping"),
        ("pytorch", "1.2.0", {"tensor_parallel_size": 2}, "set parallelism.tensor"),
        ("pytorch", "1.2.0", {"quant_config": {}}, "belongs to compiled engines"),
        ("pytorch", "1.1.0", {"orchestrator_type": "ray"}, "versions since 1.2 have it"),
        ("vllm", "0.11.0", {"disable_log_requests": True}, "versions before 0.11 have it"),
        ("vllm", "0.11.0", {"gpu_memory_utilisation": 1}, "write `gpu_memory_utilization`"),
    ],
)
def test_arguments_that_it_does_not(flavour: str, version: str, args: dict[str, Any], message: str) -> None:
    (problem,) = problems(version, flavour, engine_args=args)
    assert message in problem
