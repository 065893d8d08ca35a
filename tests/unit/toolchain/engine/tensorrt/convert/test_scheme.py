"""What engines have no place for is refused before anything is written, with the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quantize.formats.base import LinearScheme, Scheme
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.convert.config import quant_config
from toolchain.engine.tensorrt.convert.layout import RankLayout
from toolchain.engine.tensorrt.convert.scheme import engine_scheme
from toolchain.errors import BuildError
from toolchain.model.families import linear_shapes
from toolchain.model.spec import load_spec

AWQ, FP8 = LinearScheme("W4A16_AWQ", 64), LinearScheme("FP8", bits=8)
WIDE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}

Make = Callable[..., Path]
Convert = Callable[..., dict[str, Any]]


@pytest.fixture
def make(tmp_path: Path, make_config: Callable[..., dict[str, Any]], make_checkpoint: Make) -> Make:
    """A function (family, scheme, options, **config) -> a random checkpoint; see `make_checkpoint`."""

    def build(
        family: str, scheme: LinearScheme | None, options: dict[str, Any] | None = None, **config: Any
    ) -> Path:
        return make_checkpoint(tmp_path / "source", make_config(family, **config), scheme, **(options or {}))

    return build


def refused(convert_to: Convert, source: Path, match: str, **layout: Any) -> BuildError:
    with pytest.raises(BuildError, match=match) as caught:
        convert_to(source, source.with_name("ranks"), **layout)
    assert not source.with_name("ranks").exists()
    return caught.value


def unsigned(zero: int) -> Callable[[str, QuantizedLinear], QuantizedLinear]:
    """As GPTQ's form has them: no pre-quant scale, and if need be zero points."""

    def change(name: str, linear: QuantizedLinear) -> QuantizedLinear:
        linear = replace(linear, pre_quant_scale=None, scales=linear.scales.bfloat16().float())
        if zero == 8:
            return linear
        codes = (linear.codes + 8).to(torch.uint8)
        return replace(linear, codes=codes, zero_points=torch.full_like(linear.scales, zero))

    return change


def test_symmetric_gptq_becomes_awq(make: Make, convert_to: Convert, same_weights: Any) -> None:
    options = {"form": "gptq", "change": unsigned(8)}
    source = make("llama", AWQ, options, **WIDE)
    convert_to(source, source.with_name("ranks"), tensor=2)
    ranks = same_weights(source, source.with_name("ranks"))
    assert ranks.config["quantization"]["quant_algo"] == "W4A16_AWQ"
    scale = ranks.files[0]["transformer.layers.0.attention.qkv.prequant_scaling_factor"]
    assert torch.equal(scale, torch.ones_like(scale))


def test_a_scale_per_channel_becomes_groups_that_repeat_it(
    make: Make, convert_to: Convert, same_weights: Any
) -> None:
    options = {"form": "compressed-tensors", "change": unsigned(8)}
    source = make("llama", LinearScheme("W4A16"), options, **WIDE)
    convert_to(source, source.with_name("ranks"), tensor=2)
    ranks = same_weights(source, source.with_name("ranks"))
    assert ranks.config["quantization"]["group_size"] == 64


def test_asymmetric_codes_are_refused(make: Make, convert_to: Convert) -> None:
    source = make("llama", replace(AWQ, zero_point=True), {"form": "gptq", "change": unsigned(7)}, **WIDE)
    error = refused(convert_to, source, "zero points")
    assert error.where == "model.layers.0.self_attn.q_proj"


def test_act_order_is_refused(make: Make, convert_to: Convert) -> None:
    def change(name: str, linear: QuantizedLinear) -> QuantizedLinear:
        linear = unsigned(8)(name, linear)
        return replace(linear, group_index=torch.arange(linear.in_features) % linear.scales.shape[1])

    options = {"form": "gptq", "change": change}
    source = make("llama", replace(AWQ, act_order=True), options, **WIDE)
    assert "consecutive channels" in str(refused(convert_to, source, "act-order, g_idx"))


def test_groups_of_32_are_refused(make: Make, convert_to: Convert) -> None:
    refused(convert_to, make("llama", LinearScheme("W4A16_AWQ", 32), **WIDE), "groups of 32 cannot be stored")


def test_w4a8_has_groups_of_128(make: Make, convert_to: Convert) -> None:
    error = refused(convert_to, make("llama", LinearScheme("W4A8_AWQ", 64), **WIDE), "groups of 64")
    assert "groups of 128" in str(error)


def test_what_engines_do_not_have_is_refused(make: Make, convert_to: Convert) -> None:
    def change(name: str, linear: QuantizedLinear) -> QuantizedLinear:
        codes = torch.ones(linear.codes.shape).to(torch.float8_e4m3fn)
        scales = torch.ones(codes.shape[0], codes.shape[1] // 16)
        return QuantizedLinear(codes, scales, bits=4, weight_scale_2=torch.tensor(1.0))

    source = make("llama", LinearScheme("W4A16_NVFP4", 16), {"change": change})
    refused(convert_to, source, "W4A16_NVFP4 cannot be stored")


def test_widths_that_the_loader_pads_are_refused(make: Make, convert_to: Convert) -> None:
    source = make("llama", AWQ, **(WIDE | {"intermediate_size": 192}))
    assert "192 x 128" in str(refused(convert_to, source, "are no multiples of 128", tensor=2))


def test_groups_that_a_rank_cannot_have_whole_are_refused(make: Make, convert_to: Convert) -> None:
    source = make("llama", LinearScheme("NVFP4", 16), intermediate_size=48)
    refused(convert_to, source, "groups of 16 do not divide the 24 input channels of a rank", tensor=2)


def test_members_of_a_module_must_be_alike(make: Make, convert_to: Convert) -> None:
    source = make("llama", FP8, {"exclude": ("k_proj",)})
    assert "together" in str(refused(convert_to, source, "are quantized differently"))


def test_experts_must_be_alike(make: Make, convert_to: Convert) -> None:
    refused(convert_to, make("mixtral", FP8, {"exclude": ("w2",)}), "experts of a layer are quantized diff")


def test_excluded_linears_stay_plain_in_every_stage(
    make: Make, convert_to: Convert, same_weights: Any
) -> None:
    source = make("llama", FP8, {"exclude": ("layers.1.mlp.down", "layers.3.mlp.down")}, num_hidden_layers=4)
    convert_to(source, source.with_name("ranks"), pipeline=2)
    ranks = same_weights(source, source.with_name("ranks"))
    excluded = ranks.config["quantization"]["exclude_modules"]
    assert excluded == ["lm_head", "transformer.layers.1.mlp.proj"]


def test_stages_that_differ_are_refused(make: Make, convert_to: Convert) -> None:
    source = make("llama", FP8, {"exclude": ("layers.1.mlp.down",)}, num_hidden_layers=4)
    error = refused(convert_to, source, "mlp.proj of layer 3 is not quantized like", pipeline=2)
    assert error.fix is not None
    assert "pipeline to 1" in error.fix
    convert_to(source, source.with_name("ranks"))


def test_uneven_stages_need_no_layer_that_is_not_there(
    make: Make, convert_to: Convert, same_weights: Any
) -> None:
    source = make("llama", FP8, {"exclude": ("layers.1.mlp.down",)}, num_hidden_layers=3)
    convert_to(source, source.with_name("ranks"), pipeline=2)
    same_weights(source, source.with_name("ranks"))


def excluded_of(ranks: Path) -> Any:
    return json.loads((ranks / "config.json").read_text())["quantization"]["exclude_modules"]


def test_w8a16_tells_all_that_it_leaves_alone(make: Make, convert_to: Convert) -> None:
    source = make("llama", LinearScheme("W8A16", bits=8), {"exclude": ("self_attn",)})
    convert_to(source, source.with_name("ranks"))
    excluded = excluded_of(source.with_name("ranks"))
    assert {"*lm_head", "*router", "*vocab_embedding"} < set(excluded)
    assert excluded[-2:] == ["transformer.layers.*.attention.qkv", "transformer.layers.*.attention.dense"]


def test_experts_are_excluded_as_one(make: Make, convert_to: Convert, same_weights: Any) -> None:
    source = make("mixtral", FP8, {"exclude": ("experts",)})
    convert_to(source, source.with_name("ranks"), tensor=2)
    assert excluded_of(source.with_name("ranks")) == [
        "lm_head",
        "transformer.layers.*.mlp",
        "*router",
        "*shared_expert_gate",
    ]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_fp8_scales_that_differ_become_the_largest(family: str, make: Make, convert_to: Convert) -> None:
    def change(name: str, linear: QuantizedLinear) -> QuantizedLinear:
        larger = name.endswith(("v_proj", "up_proj", "w3"))
        scale, codes = (0.05, linear.codes) if larger else (0.04, linear.codes)
        inputs = torch.tensor(0.3 if larger else 0.2)
        return replace(linear, scales=torch.full((1, 1), scale), codes=codes, input_scale=inputs)

    source = make(family, FP8, {"change": change})
    convert_to(source, source.with_name("ranks"), tensor=2)
    rank = load_file(source.with_name("ranks") / "rank0.safetensors")
    prefix = "transformer.layers.0.attention.qkv."
    assert rank[f"{prefix}weights_scaling_factor"].tolist() == pytest.approx([0.05])
    assert rank[f"{prefix}activation_scaling_factor"].tolist() == pytest.approx([0.3])
    original = QuantizedCheckpoint.open(source).linear("model.layers.0.self_attn.q_proj")
    assert isinstance(original, QuantizedLinear)
    stored = rank[f"{prefix}weight"][:32].float() * 0.05
    exact = original.dequantize()[:32]
    # Half a step of e4m3: 1/16 of the number, or 2^-10 of the scale among the smallest.
    assert bool(((stored - exact).abs() <= exact.abs() / 16 + 0.05 * 2**-10).all())
    if family == "llama":
        fc, gate = (
            rank[f"transformer.layers.0.mlp.{name}.weights_scaling_factor"] for name in ("fc", "gate")
        )
        assert torch.equal(fc, gate)


@pytest.mark.parametrize(
    ("algo", "field", "value", "match"),
    [
        (AWQ, "pre_quant_scale", torch.full((128,), 2.0), "have a pre_quant_scale each"),
        (LinearScheme("NVFP4", 16), "weight_scale_2", torch.tensor(0.7), "have a weight_scale_2 each"),
        (FP8, "input_scale", torch.tensor(0.0), "not a number above zero"),
        (FP8, "scales", torch.full((1, 1), float("nan")), "a scale is NaN or infinite"),
        (FP8, "scales", torch.zeros(1, 1), "scale of the weights is not above zero"),
        (FP8, "input_scale", None, "has no input_scale, which FP8 needs"),
        (AWQ, "pre_quant_scale", torch.full((128,), 1.001), "no number of bfloat16"),
    ],
)
def test_values_that_an_engine_cannot_use_are_refused(
    algo: LinearScheme, field: str, value: Any, match: str, make: Make, convert_to: Convert
) -> None:
    def change(name: str, linear: QuantizedLinear) -> QuantizedLinear:
        return replace(linear, **{field: value}) if name == "model.layers.1.self_attn.k_proj" else linear

    refused(convert_to, make("llama", algo, {"change": change}, **WIDE), match)


@pytest.mark.parametrize("which", ["w2", "w3"])
def test_experts_share_their_pre_quant_scale(which: str, make: Make, convert_to: Convert) -> None:
    def change(name: str, linear: QuantizedLinear) -> QuantizedLinear:
        pair = ("w1", "w3") if which == "w3" else ("w2",)
        other = "experts.2" in name and name.endswith(pair)
        return replace(linear, pre_quant_scale=torch.full((128,), 2.0)) if other else linear

    refused(
        convert_to, make("mixtral", AWQ, {"change": change}, **WIDE), "experts have a pre_quant_scale each"
    )


def test_codes_that_are_nan_are_refused(make: Make, convert_to: Convert) -> None:
    def change(name: str, linear: QuantizedLinear) -> QuantizedLinear:
        if name.endswith("0.mlp.down_proj"):
            linear.codes.view(torch.uint8)[3, 3] = 0xFF
        return linear

    error = refused(convert_to, make("llama", FP8, {"change": change}), "a weight is NaN")
    assert error.where == "model.layers.0.mlp.down_proj"


def test_linears_of_several_kinds_are_told_one_by_one(make: Make) -> None:
    spec = load_spec(make("llama", None, **WIDE))
    linears = {
        f"model.layers.{layer}.{name}": FP8 if "attn" in name else AWQ
        for layer in range(2)
        for name in linear_shapes(spec, layer)
    }
    layout = RankLayout(pipeline=2)
    scheme = engine_scheme(spec, Scheme(linears), layout)
    described = quant_config(scheme, layout)
    assert described["quant_algo"] == "MIXED_PRECISION"
    assert described["quantized_layers"]["transformer.layers.0.attention.qkv"] == {"quant_algo": "FP8"}
    assert described["quantized_layers"]["transformer.layers.0.mlp.fc"]["group_size"] == 64
    assert len(described["quantized_layers"]) == 5


@pytest.mark.parametrize(
    ("family", "config", "match"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0]}, "some layers have experts"),
        ("qwen3", {"attention_bias": True}, "o_proj has a bias"),
    ],
)
def test_variants_that_engines_do_not_have_are_refused(
    family: str, config: dict[str, Any], match: str, make: Make, convert_to: Convert
) -> None:
    refused(convert_to, make(family, None, **config), match)
