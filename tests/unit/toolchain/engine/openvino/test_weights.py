from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from quantize.formats.checkpoint import QuantizedCheckpoint
from toolchain.engine.openvino import build_ir

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SCHEMES = (
    *("int4", "w4a8", "int8", "smoothquant", "fp8", "fp8-rowwise", "nvfp4"),
    *("gptq", "gptq-int8", "awq", "channels", "int8-zeros"),
)
MAX_LOGIT_DIFF = 5e-5
"""Largest difference of any logit, in f32. Logits are as large as 10; differences of 2e-5 are seen."""

DATA = Path(__file__).parents[4] / "data" / "quantized"
PUBLISHED = sorted(
    f"{path.parent.parent.name}/{path.parent.name}"
    for path in DATA.glob("*/*/expected.safetensors")
    if path.parent.name not in ("fp8_block", "mixtral_fp8")
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_equal_transformers_on_dequantized_weights(family, scheme, tiny, run_stateful):
    model = tiny(family, torch.bfloat16, scheme, num_hidden_layers=1)
    ids = np.random.default_rng(0).integers(0, 503, (1, 40))
    found = run_stateful(model.build(), ids, [39, 1])
    assert np.abs(found - model.logits(ids)).max() < MAX_LOGIT_DIFF


@pytest.mark.parametrize("name", PUBLISHED)
def test_checkpoints_of_other_tools_compute_what_their_writers_meant(name, tmp_path, run_stateful):
    source = QuantizedCheckpoint.open(DATA / name)
    weights = {
        tensor: source.read(tensor) for tensor in source.checkpoint.names if tensor.endswith(".weight")
    }
    for module in source.scheme.linears:
        weights[f"{module}.weight"] = source.linear(module).dequantize()
    config = transformers.LlamaConfig.from_pretrained(DATA / name)
    del config.quantization_config
    reference = transformers.LlamaForCausalLM(config).float().eval()
    reference.load_state_dict({tensor: values.float() for tensor, values in weights.items()}, strict=True)
    ids = np.random.default_rng(0).integers(0, 32, (2, 24))
    build_ir(DATA / name, tmp_path)
    with torch.no_grad():
        expected = reference(torch.as_tensor(ids)).logits.numpy()
    assert (
        np.abs(run_stateful(tmp_path, ids, [20, 1, 3]) - expected).max()
        < 1e-6 * np.abs(expected).max() + 1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_weights_are_the_checkpoints_values(dtype, tiny):
    """Widening is exact, and only an untied bf16 embedding stays as narrow as it was."""
    import openvino as ov

    model = tiny("llama", dtype)
    graph = ov.Core().read_model(model.build() / "openvino_model.xml")
    constants = {op.get_friendly_name(): op for op in graph.get_ops() if op.get_type_name() == "Constant"}
    for name, parameter in model.reference.named_parameters():
        stored = constants[name]
        if name == "model.embed_tokens.weight" and dtype == torch.bfloat16:
            assert stored.get_element_type() == ov.Type.bf16
            bits = stored.get_data(dtype=None).view(np.uint16).astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            assert stored.get_element_type() == ov.Type.f32
            values = stored.data
        np.testing.assert_array_equal(values, parameter.detach().numpy())
