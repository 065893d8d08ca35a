"""What the weights take at run time, measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from toolchain.model.spec import load_spec
from toolchain.plan.memory import openvino_private_bytes, weight_bytes

WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "vocab_size": 8192,
    "initializer_range": 0.02,
}

SCRIPT = """
import json, sys
import numpy as np
from toolchain.engine.openvino import plugin_properties
import openvino, openvino_genai as genai

def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

ir_dir, precision = sys.argv[1:]
before = private()
scheduler = genai.SchedulerConfig()
scheduler.num_kv_blocks = 8
pipeline = genai.ContinuousBatchingPipeline(ir_dir, scheduler, "CPU", plugin_properties(precision, "auto"))
config = genai.GenerationConfig(max_new_tokens=4)
for index, length in enumerate((32, 20, 60)):
    handle = pipeline.add_request(index, openvino.Tensor(np.ones((1, length), np.int64)), config)
while pipeline.has_non_finished_requests():
    pipeline.step()
used = private() - before - pipeline.get_metrics().cache_size_in_bytes
bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
print(json.dumps([used, bf16]))
"""

GROUP_SIZE = 32
RUNTIME = 96 << 20
"""Bytes beside the weights: libraries' data, activations, scratch."""


def measure(ir_dir, precision):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ir_dir), precision],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return json.loads(result.stdout)


def estimate(model, int4, precision, bf16_cpu):
    spec = load_spec(model.directory)
    weights = weight_bytes(spec, "awq" if int4 else "none", GROUP_SIZE)
    return openvino_private_bytes(spec, weights, quantized=int4, precision=precision, bf16_cpu=bf16_cpu)


def test_estimate_counts_every_kind_of_tensor(tiny):
    model = tiny("llama", torch.bfloat16, True)
    layers, hidden, inner, vocab, kv = 2, 128, 256, 503, 64
    matrices = layers * (2 * hidden * hidden + 2 * kv * hidden + 3 * hidden * inner)
    codes_and_scales = matrices // 2 + 4 * matrices // GROUP_SIZE
    table = vocab * hidden
    assert estimate(model, True, "fast", True) == codes_and_scales + 2 * table
    assert estimate(model, True, "fast", False) == int(2.5 * codes_and_scales) + 4 * table
    assert estimate(model, True, "exact", True) == int(2.5 * codes_and_scales) + 4 * table
    assert estimate(model, False, "fast", True) == 2 * (matrices + table)


@pytest.mark.slow
@pytest.mark.parametrize("int4", [False, True], ids=["bf16", "int4"])
def test_estimate_holds_and_16_bits_do_not_cost_three_times_their_size(int4, tiny):
    model = tiny("llama", torch.bfloat16, int4, **WIDE)
    ir_dir = model.build()
    stored = (model.directory / "model.safetensors").stat().st_size
    for precision in ("exact", "fast"):
        used, bf16 = measure(ir_dir, precision)
        expected = estimate(model, int4, precision, bf16)
        assert used < 1.1 * expected + RUNTIME
        assert used > 0.5 * expected
        if not int4:
            assert used < 2 * stored + RUNTIME
