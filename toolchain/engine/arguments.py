"""What the two flavours without an engine of their own give their runtimes: checkpoint and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

VLLM_BLOCK = 16
"""Tokens in a block of vLLM's KV cache, its default on NVIDIA GPUs."""


def llm_api_arguments(recipe: Recipe, model: str) -> dict[str, Any]:
    """Arguments of `tensorrt_llm.LLM`; `model` is where the server finds the checkpoint."""
    engine, deploy = recipe.engine, recipe.deploy
    policy = "STATIC_BATCH" if deploy.batching == "static" else deploy.scheduler.upper()
    cache: dict[str, Any] = {
        "enable_block_reuse": engine.kv_cache.reuse,
        "free_gpu_memory_fraction": engine.kv_cache.free_gpu_mem_fraction,
        "max_tokens": engine.kv_cache.max_tokens,
        "dtype": "fp8" if recipe.quantization.kv_cache == "fp8" else None,
    }
    arguments: dict[str, Any] = {
        "model": model,
        "backend": "pytorch",
        "dtype": recipe.model.dtype,
        "tensor_parallel_size": recipe.parallelism.tp_size,
        "pipeline_parallel_size": recipe.parallelism.pp_size,
        "max_batch_size": engine.max_batch_size,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": engine.max_num_tokens,
        "enable_chunked_prefill": engine.chunked_prefill,
        "stream_interval": engine.stream_interval,
        "kv_cache_config": cache,
        "scheduler_config": {"capacity_scheduler_policy": policy},
    }
    return _merged(arguments, deploy.engine_args)


def vllm_arguments(recipe: Recipe, model: str) -> dict[str, Any]:
    """Arguments of vLLM's engine; `model` is where the server finds the checkpoint."""
    engine, tokens = recipe.engine, recipe.engine.kv_cache.max_tokens
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": recipe.model.dtype,
        "tensor_parallel_size": recipe.parallelism.tp_size,
        "pipeline_parallel_size": recipe.parallelism.pp_size,
        "max_num_seqs": engine.max_batch_size,
        "max_model_len": engine.max_seq_len,
        "max_num_batched_tokens": engine.max_num_tokens,
        "gpu_memory_utilization": engine.kv_cache.free_gpu_mem_fraction,
        "num_gpu_blocks_override": None if tokens is None else -(-tokens // VLLM_BLOCK),
        "enable_prefix_caching": engine.kv_cache.reuse,
        "enable_chunked_prefill": engine.chunked_prefill,
        "kv_cache_dtype": "fp8" if recipe.quantization.kv_cache == "fp8" else None,
    }
    return _merged(arguments, recipe.deploy.engine_args)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mappings key by key; what is None is left out, as the runtime's default."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return {
        name: _merged(value, {}) if isinstance(value, dict) else value
        for name, value in merged.items()
        if value is not None
    }
