"""config.json says of the model what its Hugging Face configuration says, in TensorRT-LLM's words."""

from collections.abc import Callable
from typing import Any

import pytest

from quantize.formats.base import Scheme
from toolchain.engine.tensorrt.convert import RankLayout
from toolchain.engine.tensorrt.convert.config import quant_config, rank_config
from toolchain.engine.tensorrt.convert.scheme import engine_scheme
from toolchain.model.spec import ModelSpec

Config = Callable[..., dict[str, Any]]


def converted(config: dict[str, Any], **layout: Any) -> dict[str, Any]:
    spec, own = ModelSpec.from_config(config, "here"), RankLayout(**layout)
    return rank_config(spec, config, own, engine_scheme(spec, Scheme({}), own), config["dtype"])


def test_a_plain_llama(make_config: Config) -> None:
    config = converted(make_config("llama", vocab_size=97, attention_bias=True), tensor=2, pipeline=2)
    assert config["architecture"] == "LlamaForCausalLM"
    assert (config["vocab_size"], config["head_size"], config["hidden_act"]) == (97, 16, "silu")
    assert (config["attn_bias"], config["mlp_bias"], config["qk_layernorm"]) == (True, False, False)
    assert config["mapping"] == {"world_size": 4, "tp_size": 2, "pp_size": 2}
    assert config["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": None}
    assert "qwen_type" not in config
    assert "moe" not in config


@pytest.mark.parametrize(("family", "biases", "norms"), [("qwen2", True, False), ("qwen3", False, True)])
def test_a_qwen(family: str, biases: bool, norms: bool, make_config: Config) -> None:
    config = converted(make_config(family))
    assert (config["qwen_type"], config["attn_bias"], config["qk_layernorm"]) == (family, biases, norms)


@pytest.mark.parametrize(
    ("family", "changes", "mode"),
    [("mixtral", {}, 1), ("qwen2_moe", {}, 0), ("qwen3_moe", {"norm_topk_prob": True}, 1)],
)
def test_experts(family: str, changes: dict[str, Any], mode: int, make_config: Config) -> None:
    config = converted(make_config(family, **changes), tensor=2, moe_expert=2)
    assert config["hidden_act"] == "swiglu"
    moe = config["moe"]
    assert (moe["num_experts"], moe["top_k"], moe["normalization_mode"]) == (4, 2, mode)
    assert moe["shared_expert_intermediate_size"] == (64 if family == "qwen2_moe" else 0)
    assert (config["mapping"]["moe_tp_size"], config["mapping"]["moe_ep_size"]) == (1, 2)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, None),
        ({"rope_type": "default"}, None),
        ({"type": "linear", "factor": 2.0}, {"type": "linear", "rope_type": "linear", "factor": 2.0}),
        (
            {"rope_type": "yarn", "factor": 4.0},
            {
                "type": "yarn",
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_the_kind_of_rope_is_said_under_both_names(
    scaling: dict[str, Any] | None, expected: dict[str, Any] | None, make_config: Config
) -> None:
    assert converted(make_config("llama", rope_scaling=scaling))["rotary_scaling"] == expected


def test_rope_as_transformers_5_has_it(make_config: Config) -> None:
    config = make_config("llama")
    config.pop("rope_theta")
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    found = converted(config | {"rope_parameters": parameters})
    assert found["rotary_base"] == 5e5
    assert found["rotary_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 2.0}


def test_quant_cfg_of_one_kind_lists_nothing(make_config: Config) -> None:
    spec = ModelSpec.from_config(make_config("llama"), "here")
    scheme = engine_scheme(spec, Scheme({}, (), "FP8"), RankLayout())
    assert quant_config(scheme, RankLayout()) == {
        "quant_algo": None,
        "kv_cache_quant_algo": "FP8",
        "quantized_layers": {},
    }
