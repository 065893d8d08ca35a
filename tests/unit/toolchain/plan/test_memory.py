import math

import pytest

from toolchain.model.families import expected_tensors
from toolchain.model.spec import ModelSpec
from toolchain.plan import memory


def spec(**changes) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    return ModelSpec.from_config(config | changes, "config.json")


def test_unquantized_weights_are_the_sum_of_the_tensors():
    expected = sum(2 * math.prod(shape) for shape in expected_tensors(spec()).values())
    assert memory.weight_bytes(spec()).total == expected
    assert memory.parameter_count(spec()) * 2 == expected


def test_a_tied_table_counts_once():
    tied = spec(tie_word_embeddings=True)
    assert memory.weight_bytes(tied).head == 0
    assert memory.parameter_count(spec()) - memory.parameter_count(tied) == 1000 * 256


def test_quantize_peak_does_not_grow_with_depth():
    assert memory.quantize_peak_bytes(spec(), {"awq"}, 8, 64) == memory.quantize_peak_bytes(
        spec(num_hidden_layers=60), "awq", 8, 64
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (200 * 2**20, "200 MiB"), (3 * 2**40, "3 TiB")],
)
def test_human_bytes(count, text):
    assert memory.human_bytes(count) == text


MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 128,
    "decoder_sparse_step": 2,
}


def test_weights_of_a_model_of_two_kinds_of_layers_are_the_sum_of_the_tensors():
    model = spec(**MOE)
    weights = memory.weight_bytes(model)
    assert weights.total == sum(2 * math.prod(shape) for shape in expected_tensors(model).values())
    dense, sparse = weights.linears[:2]
    assert weights.linears == (dense, sparse) * 3
    assert sparse - dense == 2 * 3 * 256 * (6 * 64 + 128 - 512)
    routers = 2 * 256 * (6 + 1)
    assert weights.other[1] - weights.other[0] == routers


def test_quantizing_experts_takes_one_of_them_and_what_the_others_have_become():
    few, many = spec(**MOE), spec(**MOE | {"num_experts": 1006})
    more = memory.quantize_peak_bytes(many, {"awq"}, 8, 64) - memory.quantize_peak_bytes(few, {"awq"}, 8, 64)
    expert = 3 * 256 * 64
    routers = 4 * 2 * 1000 * 256
    assert more < 1000 * expert * 0.6 + routers  # half a byte a weight, and scales
