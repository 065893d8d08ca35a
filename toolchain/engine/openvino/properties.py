"""How the CPU plugin is told which arithmetic is meant. Its defaults are not the checkpoint's.

Left alone the plugin executes in bf16 where the CPU has it, rounds activations to int8 and keeps the cache in
u8. Some requests it ignores without a word: under `EXECUTION_MODE_HINT=ACCURACY` a `KV_CACHE_PRECISION` has
no effect although the property reads back as set, so neither is used here.
"""

from __future__ import annotations

from typing import Any, Literal

from toolchain.errors import PlanError

Precision = Literal["exact", "fast"]
KvCache = Literal["auto", "f32", "f16", "u8"]


def plugin_properties(
    precision: Precision, kv_cache: KvCache, num_threads: int | None = None
) -> dict[str, Any]:
    """Properties for `openvino_genai.ContinuousBatchingPipeline` on "CPU"; strings, so that they are JSON.

    exact: f32 arithmetic on exactly the checkpoint's weights; the cache is f32 unless asked otherwise.

    fast: bf16 arithmetic where the CPU has it; elsewhere f32, with the inputs of int4 linears rounded to int8
    in groups of 32. The cache is u8, the one precision that both accept: bf16 execution refuses an f32 cache
    and silently makes bf16 of f16.

    Args:
        precision: "exact" or "fast".
        kv_cache: "auto", "f32", "f16" or "u8".
        num_threads: CPU threads; None leaves the choice to the plugin, which takes the physical cores.

    Raises:
        PlanError: the two cannot be had together.
    """
    if precision == "exact":
        cache = "f32" if kv_cache == "auto" else kv_cache
        properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    else:
        cache = "u8" if kv_cache == "auto" else kv_cache
        properties = {"EXECUTION_MODE_HINT": "PERFORMANCE", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
        if cache != "u8":
            raise PlanError(
                f"a {cache} cache is not to be had with engine.precision: fast",
                where="engine.kv_cache",
                why="fast executes in bf16 where it can, which refuses an f32 cache and makes bf16 of f16",
                fix="set the cache to auto or u8, or engine.precision to exact",
            )
    properties |= {"KEY_CACHE_PRECISION": cache, "VALUE_CACHE_PRECISION": cache}
    if num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = str(num_threads)
    return properties
