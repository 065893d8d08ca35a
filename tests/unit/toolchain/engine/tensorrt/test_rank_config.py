from pathlib import Path
from typing import Any

import pytest

from toolchain.engine.tensorrt.rank_config import RankMapping, parse_rank_config
from toolchain.errors import ModelError

CONFIG: dict[str, Any] = {
    "architecture": "MixtralForCausalLM",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "hidden_act": "swiglu",
    "moe_num_experts": 4,
    "moe_top_k": 2,
}


def parse(**changes: Any) -> Any:
    return parse_rank_config(CONFIG | changes, Path("ranks"))


def test_silent_fields_have_tensorrt_llms_defaults() -> None:
    config = parse()
    assert (config.spec.rms_norm_eps, config.spec.rope.theta, config.spec.num_key_value_heads) == (
        1e-5,
        1e4,
        4,
    )
    assert (config.spec.head_dim, config.spec.moe.num_experts) == (16, 4)
    assert config.mapping == RankMapping(1, 1, 1, 1, 1)
    assert (config.quant_algo, config.kv_cache_quant_algo, config.embedding_sharding) == (None, None, None)


@pytest.mark.parametrize(
    ("mapping", "moe"),
    [({}, (4, 1)), ({"moe_ep_size": 2}, (2, 2)), ({"moe_tp_size": 1}, (1, 4)), ({"moe_tp_size": -1}, (4, 1))],
)
def test_the_experts_division_is_derived(mapping: dict[str, int], moe: tuple[int, int]) -> None:
    found = parse(mapping={"tp_size": 4, "world_size": 4} | mapping).mapping
    assert (found.moe_tp, found.moe_ep) == moe


def test_layers_and_experts_are_dealt_out() -> None:
    mapping = RankMapping(4, 3, moe_tp=2, moe_ep=2)
    assert [mapping.layers(stage, 7) for stage in range(3)] == [range(0, 3), range(3, 5), range(5, 7)]
    assert [mapping.experts(rank, 8) for rank in range(4)] == [
        range(0, 4), range(4, 8), range(0, 4), range(4, 8)
    ]  # fmt: skip


def test_modules_are_excluded_by_pattern() -> None:
    fc, router = "transformer.layers.0.mlp.fc", "transformer.layers.0.mlp.router"
    config = parse(quantization={"quant_algo": "FP8"})
    assert (config.algo(fc), config.algo(router), config.algo("lm_head")) == ("FP8", None, None)
    config = parse(quantization={"quant_algo": "FP8", "exclude_modules": ["*fc"]})
    assert (config.algo(fc), config.algo(router)) == (None, "FP8")


def test_all_that_is_wrong_is_told() -> None:
    with pytest.raises(ModelError, match=r"2 fields are missing or wrong") as raised:
        parse(mapping={"tp_size": 0, "pp_size": "x"})
    assert "mapping.tp_size" in str(raised.value)
    with pytest.raises(ModelError, match="hidden_size"):
        parse(hidden_size=None)
