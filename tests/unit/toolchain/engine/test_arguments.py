"""From a recipe to the arguments of the LLM API and of vLLM: all of them known to the tables."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.data import load_table
from toolchain.engine.arguments import llm_api_arguments, vllm_arguments
from toolchain.recipe import Recipe
from toolchain.recipe.fields import fragment_at


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"schema": 1, "name": "r", "model": {"source": "o/n"}, **sections})


FULL = recipe(
    quantization={"kv_cache": "fp8"},
    parallelism={"tensor": 2, "pipeline": 2},
    engine={
        "flavour": "pytorch", "max_batch_size": 8, "max_seq_len": 4096, "max_num_tokens": 4096,
        "kv_cache": {"max_tokens": 9001, "free_gpu_mem_fraction": 0.5, "reuse": False}, "stream_interval": 4,
        "chunked_prefill": False,
    },
    deploy={
        "scheduler": "max_utilization",
        "engine_args": {"kv_cache_config": {"host_cache_size": 9}, "x": 1},
    },
)  # fmt: skip


def test_every_field_reaches_the_llm_api() -> None:
    assert llm_api_arguments(FULL, "/models/m") == {
        "model": "/models/m",
        "backend": "pytorch",
        "dtype": "auto",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_batch_size": 8,
        "max_seq_len": 4096,
        "max_num_tokens": 4096,
        "enable_chunked_prefill": False,
        "stream_interval": 4,
        "kv_cache_config": {
            "enable_block_reuse": False,
            "free_gpu_memory_fraction": 0.5,
            "max_tokens": 9001,
            "dtype": "fp8",
            "host_cache_size": 9,
        },
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
        "x": 1,
    }


def test_every_field_reaches_vllm() -> None:
    found = vllm_arguments(FULL, "/models/m")
    del found["kv_cache_config"], found["x"]
    assert found == {
        "model": "/models/m",
        "dtype": "auto",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_num_seqs": 8,
        "max_model_len": 4096,
        "max_num_batched_tokens": 4096,
        "gpu_memory_utilization": 0.5,
        "num_gpu_blocks_override": 563,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "kv_cache_dtype": "fp8",
    }


def test_a_static_batch_has_a_policy() -> None:
    static = recipe(engine={"flavour": "pytorch"}, deploy={"batching": "static"})
    policy = llm_api_arguments(static, "m")["scheduler_config"]["capacity_scheduler_policy"]
    assert policy == "STATIC_BATCH"


@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        ("llm_api_args", llm_api_arguments(recipe(), "m")),
        ("vllm_args", vllm_arguments(recipe(), "m")),
    ],
)
def test_the_table_knows_what_we_set_and_that_the_recipe_sets_it(
    table: str, arguments: dict[str, Any]
) -> None:
    def check(given: dict[str, Any], rows: dict[str, Any]) -> None:
        for name, value in given.items():
            if isinstance(value, dict):
                check(value, rows[name]["keys"])
            else:
                assert "recipe" in rows[name]

    check(arguments, load_table(table))


@pytest.mark.parametrize("table", ["llm_api_args", "vllm_args"])
def test_the_tables_are_well_formed(table: str) -> None:
    def check(rows: dict[str, Any]) -> None:
        for row in rows.values():
            assert set(row) <= {"recipe", "keys", "first", "before", "engine_only"}
            if "recipe" in row:
                assert fragment_at(tuple(row["recipe"].split("."))) is not None
            check(row.get("keys", {}))

    check(load_table(table))
