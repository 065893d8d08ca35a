"""Figures of the plan; that they hold is measured in `engine/openvino/test_memory.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toolchain.data import load_table
from toolchain.model.spec import ModelSpec
from toolchain.plan import openvino
from toolchain.plan.memory import weight_bytes
from toolchain.plan.plan import make_plan
from toolchain.plan.quantization import Storage
from toolchain.recipe import load_recipe

CONFIGS = Path(__file__).parents[4] / "configs"
LAYERS, HIDDEN, INNER, VOCAB, KV = 2, 128, 256, 503, 64
MATRICES = LAYERS * (2 * HIDDEN * HIDDEN + 2 * KV * HIDDEN + 3 * HIDDEN * INNER)
ROWS = LAYERS * (HIDDEN + 2 * KV + HIDDEN + 2 * INNER + HIDDEN)
TABLE = VOCAB * HIDDEN


@pytest.fixture
def spec() -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    return ModelSpec.from_config(config, "config.json")


def estimate(spec, method, precision="exact", bf16_cpu=True, share=1.0):
    storage, weights = Storage(method, 32), weight_bytes(spec, method, 32)
    weights = replace(weights, linears=tuple(int(share * count) for count in weights.linears))
    assigned = {
        f"model.layers.{layer}.{name}": storage
        for layer in range(LAYERS)
        for name in (
            *(f"self_attn.{which}_proj" for which in "qkvo"),
            *(f"mlp.{which}_proj" for which in ("gate", "up", "down")),
        )
    }
    return openvino.private_bytes(spec, weights, assigned, precision=precision, bf16_cpu=bf16_cpu)


def test_every_kind_of_tensor_counts(spec):
    int4 = MATRICES // 2 + 4 * MATRICES // 32
    assert estimate(spec, "awq", "fast", True) == int4 + 2 * TABLE
    assert estimate(spec, "awq", "fast", False) == int(2.5 * int4) + 4 * TABLE
    assert estimate(spec, "awq", "exact", True) == int(2.5 * int4) + 4 * TABLE
    assert estimate(spec, "int8_wo") == int(2.5 * (MATRICES + 4 * ROWS)) + 4 * TABLE
    assert estimate(spec, "nvfp4") == int(2.5 * (MATRICES // 2 + 4 * MATRICES // 16)) + 4 * TABLE
    for method in ("none", "fp8", "fp8_rowwise"):
        assert estimate(spec, method) == 4 * (MATRICES + TABLE)
        assert estimate(spec, method, "fast", True) == 2 * (MATRICES + TABLE)


def test_a_budget_bounds_the_linears(spec):
    assert estimate(spec, "awq", share=0.5) - 4 * TABLE == (estimate(spec, "awq") - 4 * TABLE) // 2


def planned(*overrides):
    recipe = load_recipe(CONFIGS / "demo-int4.yaml", list(overrides))
    return make_plan(recipe)


@pytest.mark.parametrize("method", sorted(load_table("formats")))
def test_every_method_is_planned_for_the_cpu(method):
    """Those that the CPU does not run as GPUs do are told of."""
    calibration = [] if method not in ("none",) else ["quantization.calibration=null"]
    plan = planned(f"quantization.method={method}", *calibration)
    assert plan.problems == []
    assert plan.fit.fullest.weights.total > 0
    assert any("no fp8 kernels" in note for note in plan.notes) == (method in ("fp8", "fp8_rowwise"))
    rounded = method in ("fp8", "fp8_rowwise", "w4a8_awq", "int8_sq", "nvfp4")
    assert any("activations are not rounded" in note for note in plan.notes) == rounded
