"""What the other tools wrote, read here: the weights are theirs to the bit.

ModelOpt's are float32, the product of codes and scales; those of the others are that product, rounded once to
16 bits as `dequantize` rounds it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantize.formats.base import LinearScheme
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError
from toolchain.model.spec import load_spec

DATA = Path(__file__).parents[3] / "data" / "quantized"
INT4 = LinearScheme("W4A16_AWQ", 32)
DIRECTORIES = {
    "modelopt/fp8": ("modelopt", LinearScheme("FP8", bits=8), None),
    "modelopt/fp8_kv": ("modelopt", LinearScheme("FP8", bits=8), "FP8"),
    "modelopt/fp8_pc_pt": ("modelopt", LinearScheme("FP8_PER_CHANNEL_PER_TOKEN", bits=8), None),
    "modelopt/w4a16_awq": ("modelopt", INT4, None),
    "modelopt/w4a8_awq": ("modelopt", LinearScheme("W4A8_AWQ", 32), None),
    "modelopt/int4_wo": ("modelopt", INT4, None),
    "modelopt/int8_sq": ("modelopt", LinearScheme("W8A8_SQ_PER_CHANNEL", bits=8), None),
    "modelopt/int8_wo": ("modelopt", LinearScheme("W8A16", bits=8), None),
    "modelopt/nvfp4": ("modelopt", LinearScheme("NVFP4", 16), None),
    "modelopt/mixed": ("modelopt", None, None),
    "modelopt/mixtral_fp8": ("modelopt", LinearScheme("FP8", bits=8), None),
    "llmcompressor/w4a16": ("compressed-tensors", INT4, None),
    "llmcompressor/w4a16_asym": (
        "compressed-tensors",
        LinearScheme("W4A16_AWQ", 32, zero_point=True),
        None,
    ),
    "llmcompressor/w4a16_gptq": ("compressed-tensors", INT4, None),
    "llmcompressor/w4a16_channel": ("compressed-tensors", LinearScheme("W4A16"), None),
    "llmcompressor/w8a16": ("compressed-tensors", LinearScheme("W8A16", bits=8), None),
    "llmcompressor/fp8": ("compressed-tensors", LinearScheme("FP8", bits=8), None),
    "llmcompressor/fp8_kv": ("compressed-tensors", LinearScheme("FP8", bits=8), "FP8"),
    "llmcompressor/fp8_dynamic": (
        "compressed-tensors",
        LinearScheme("FP8_PER_CHANNEL_PER_TOKEN", bits=8),
        None,
    ),
    "llmcompressor/w8a8": (
        "compressed-tensors",
        LinearScheme("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", bits=8),
        None,
    ),
    "llmcompressor/w8a8_static": ("compressed-tensors", LinearScheme("W8A8_SQ_PER_CHANNEL", bits=8), None),
    "gptqmodel/gptq": ("gptq", INT4, None),
    "gptqmodel/gptq_desc_act": ("gptq", LinearScheme("W4A16_AWQ", 32, act_order=True), None),
    "gptqmodel/gptq_asym": ("gptq", LinearScheme("W4A16_AWQ", 32, zero_point=True), None),
    "gptqmodel/gptq_v2": ("gptq", LinearScheme("W4A16_AWQ", 32, zero_point=True), None),
    "gptqmodel/gptq_8bit": ("gptq", LinearScheme("W8A16", bits=8), None),
    "gptqmodel/awq_gemm": ("awq", LinearScheme("W4A16_AWQ", 32, zero_point=True), None),
    "llmcompressor/nvfp4": ("compressed-tensors", LinearScheme("NVFP4", 16), None),
    "llmcompressor/nvfp4a16": ("compressed-tensors", LinearScheme("W4A16_NVFP4", 16), None),
}
REFUSED = {"llmcompressor/fp8_block": "a scale for each block of a weight has no place"}


def test_every_checkpoint_of_the_other_tools_is_looked_at() -> None:
    found = {
        f"{path.parent.parent.name}/{path.parent.name}" for path in DATA.glob("*/*/expected.safetensors")
    }
    assert found == DIRECTORIES.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", DIRECTORIES)
def test_it_is_read_to_the_weights_of_its_writer(name: str) -> None:
    form, scheme, kv_cache = DIRECTORIES[name]
    opened = QuantizedCheckpoint.open(DATA / name)
    opened.verify(load_spec(DATA / name))
    assert opened.form is not None
    assert opened.form.name == form
    assert opened.kv_cache_quant_algo == kv_cache
    if scheme is not None:
        assert opened.scheme.distinct == (scheme,)
    expected = load_file(DATA / name / "expected.safetensors")
    assert {f"{module}.weight" for module in opened.scheme.linears} == expected.keys()
    for weight_name, weight in expected.items():
        linear = opened.linear(weight_name.removesuffix(".weight"))
        assert isinstance(linear, QuantizedLinear)
        assert torch.equal(linear.dequantize(weight.dtype), weight), weight_name
    scales = opened.kv_scales("model.layers.0.")
    assert (scales is not None) == (kv_cache is not None)
    if scales is not None:
        assert all(scale.shape == () and scale.dtype == torch.float32 and scale > 0 for scale in scales)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]):
        QuantizedCheckpoint.open(DATA / name)


def test_a_mixture_is_told_apart_by_module() -> None:
    linears = QuantizedCheckpoint.open(DATA / "modelopt/mixed").scheme.linears
    assert linears["model.layers.0.self_attn.q_proj"] == LinearScheme("FP8", bits=8)
    assert linears["model.layers.0.mlp.down_proj"] == INT4
    assert "model.layers.0.self_attn.o_proj" not in linears


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(DATA / name, to / "copy"))


def test_tensors_that_do_not_belong_are_named(tmp_path: Path) -> None:
    """The very check of the source stage."""
    directory = copy("llmcompressor/w4a16", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=r"missing: model\.layers\.1\."):
        QuantizedCheckpoint.open(directory).verify(load_spec(directory))
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"(?s)down_proj.*weight_packed is \[64, 4\] where \[64, 8\]"):
        QuantizedCheckpoint.open(directory).verify(load_spec(directory))
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = ["re:.*self_attn.*"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has scales, but no group of the configuration"):
        QuantizedCheckpoint.open(directory)
