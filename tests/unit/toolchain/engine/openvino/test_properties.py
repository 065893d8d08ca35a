from __future__ import annotations

import json

import numpy as np
import openvino
import openvino_genai as genai
import pytest

from toolchain.engine.openvino import plugin_properties
from toolchain.errors import PlanError

LAYERS, KV_HEADS, HEAD_DIM, BLOCKS, BLOCK = 2, 2, 32, 64, 32
ELEMENTS = 2 * LAYERS * KV_HEADS * HEAD_DIM * BLOCK * BLOCKS  # keys and values of the whole cache
# u8 stores a scale and a zero point with every group: for each channel of a block of keys, 2 x f32 over 32
# tokens; for each token of a value, 2 x f32 over the head.
U8_OVERHEAD = 1 + 8 / HEAD_DIM


def cache_bytes(pipeline):
    """What the cache takes. It is allocated by the first step."""
    handle = pipeline.add_request(0, openvino.Tensor(np.array([[1, 2, 3]])), genai.GenerationConfig())
    pipeline.step()
    handle.stop()
    return pipeline.get_metrics().cache_size_in_bytes


@pytest.mark.parametrize("kv_cache", ["auto", "f32", "f16", "u8"])
def test_exact_is_json_strings_and_asks_for_f32(kv_cache):
    properties = plugin_properties("exact", kv_cache, num_threads=3)
    assert json.loads(json.dumps(properties)) == properties
    assert all(isinstance(value, str) for value in properties.values())
    assert properties["INFERENCE_PRECISION_HINT"] == "f32"
    assert properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert properties["INFERENCE_NUM_THREADS"] == "3"


@pytest.mark.parametrize("kv_cache", ["f32", "f16"])
def test_fast_refuses_a_wide_cache(kv_cache):
    with pytest.raises(PlanError, match=f"a {kv_cache} cache is not to be had"):
        plugin_properties("fast", kv_cache)


@pytest.mark.parametrize(
    ("precision", "kv_cache", "bytes_each"),
    [
        ("exact", "auto", 4),
        ("exact", "f32", 4),
        ("exact", "f16", 2),
        ("exact", "u8", U8_OVERHEAD),
        ("fast", "auto", U8_OVERHEAD),
        ("fast", "u8", U8_OVERHEAD),
    ],
)
def test_the_cache_has_the_precision_asked_for(precision, kv_cache, bytes_each, tiny, pipeline_of):
    """By its bytes. The property itself reads back as set even where the plugin ignores it."""
    pipeline = pipeline_of(tiny("llama").build(), plugin_properties(precision, kv_cache), blocks=BLOCKS)
    assert cache_bytes(pipeline) == ELEMENTS * bytes_each


def test_the_trap_that_is_avoided(tiny, pipeline_of):
    """Under the ACCURACY hint the plugin accepts KV_CACHE_PRECISION, and keeps an f32 cache."""
    ignored = {"EXECUTION_MODE_HINT": "ACCURACY", "KV_CACHE_PRECISION": "u8"}
    pipeline = pipeline_of(tiny("llama").build(), ignored, blocks=BLOCKS)
    assert cache_bytes(pipeline) == ELEMENTS * 4


def test_fast_keeps_far_positions_apart(tiny, run_stateful):
    """bf16 has 8 bits for a position; the rotation must be computed in f32 whatever executes around it."""
    model = tiny("llama", max_position_embeddings=1024, initializer_range=0.1)
    ir_dir, ids = model.build(), np.random.default_rng(0).integers(0, 503, (1, 1000))
    exact = run_stateful(ir_dir, ids, [1000])
    error = np.linalg.norm(run_stateful(ir_dir, ids, [1000], "fast") - exact, axis=-1)[0]
    relative = error / np.linalg.norm(exact, axis=-1)[0]
    # Both are 0 on a CPU without bf16, where fast executes in f32 as well.
    assert relative[-100:].mean() <= 2 * relative[:100].mean()
