"""What the weights take at run time, measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from toolchain.engine.openvino import build_ir
from toolchain.model.spec import load_spec
from toolchain.plan.device import cpu_has_avx512
from toolchain.plan.memory import weight_bytes
from toolchain.plan.openvino import private_bytes
from toolchain.plan.plan import make_plan
from toolchain.plan.quantization import Storage
from toolchain.recipe import load_recipe

REPOSITORY = Path(__file__).parents[5]

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "method", "precisions"),
    [
        (None, "none", ("exact", "fast")),
        ("int4", "awq", ("exact", "fast")),
        ("int8", "int8_wo", ("exact",)),
        ("nvfp4", "nvfp4", ("exact",)),
        ("fp8", "fp8", ("exact",)),
    ],
    ids=["bf16", "int4", "int8", "nvfp4", "fp8"],
)
def test_the_plan_holds(scheme, method, precisions, tiny):
    """And narrow floating-point weights do not cost three times what they would as float32."""
    model = tiny("llama", torch.bfloat16, scheme, **WIDE)
    ir_dir, spec = model.build(), load_spec(model.directory)
    storage = Storage(method, GROUP_SIZE)
    weights = weight_bytes(spec, *storage)
    for precision in precisions:
        used, bf16 = measure(ir_dir, precision)
        expected = private_bytes(
            spec,
            weights,
            defaultdict(lambda: storage),
            precision=precision,
            bf16_cpu=bf16,
            avx512=cpu_has_avx512(),
        )
        assert 0.5 * expected < used < 1.1 * expected + RUNTIME


@pytest.mark.slow
@pytest.mark.skipif(cpu_has_avx512(), reason="what a layer takes with AVX512 has only an upper bound so far")
@pytest.mark.parametrize(("scheme", "method"), [(None, "none"), ("int4", "awq")], ids=["bf16", "int4"])
def test_what_more_layers_take_is_within_15_percent(scheme, method, tiny):
    """The difference of two depths: graph, libraries and activations, which depth leaves alike, fall out."""
    storage, used, expected = Storage(method, GROUP_SIZE), [], []
    for layers in (2, 8):
        model = tiny("llama", torch.bfloat16, scheme, **WIDE | {"num_hidden_layers": layers})
        ir_dir, spec = model.build(), load_spec(model.directory)
        used.append(measure(ir_dir, "exact")[0])
        weights = weight_bytes(spec, *storage)
        assigned = defaultdict(lambda: storage)
        expected.append(
            private_bytes(spec, weights, assigned, precision="exact", bf16_cpu=False, avx512=False)
        )
    assert used[1] - used[0] == pytest.approx(expected[1] - expected[0], rel=0.15)


CACHE_SCRIPT = """
import sys
import numpy as np
from toolchain.engine.openvino import plugin_properties
import openvino, openvino_genai as genai

ir_dir, precision, dtype, blocks = sys.argv[1:]
scheduler = genai.SchedulerConfig()
scheduler.num_kv_blocks = int(blocks)
pipeline = genai.ContinuousBatchingPipeline(ir_dir, scheduler, "CPU", plugin_properties(precision, dtype))
config = genai.GenerationConfig(max_new_tokens=2)
handle = pipeline.add_request(0, openvino.Tensor(np.ones((1, 32), np.int64)), config)
while pipeline.has_non_finished_requests():
    pipeline.step()
print(pipeline.get_metrics().cache_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype"), [("exact", "auto"), ("fast", "auto"), ("exact", "f16")])
def test_the_cache_of_the_demo_model_takes_what_is_planned(precision, dtype, tmp_path):
    build_ir(REPOSITORY / "models" / "demo", tmp_path / "ir")
    overrides = [f"engine.precision={precision}", f"engine.kv_cache.dtype={dtype}"]
    plan = make_plan(load_recipe(REPOSITORY / "configs" / "demo-bf16.yaml", overrides))
    blocks = 100
    found = subprocess.run(
        [sys.executable, "-c", CACHE_SCRIPT, str(tmp_path / "ir"), precision, dtype, str(blocks)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert plan.token_bytes * plan.fit.cache.block * blocks == pytest.approx(int(found.stdout), rel=0.15)
