from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.methods.awq import Awq
from quantize.methods.gptq import Gptq
from quantize.selection import Override, assign_methods, check_shapes
from toolchain.errors import QuantizeError
from toolchain.model.selection import modules
from toolchain.model.spec import ModelSpec, load_spec


@pytest.fixture
def spec(save_model: Callable[..., Path]) -> ModelSpec:
    return load_spec(save_model())


def test_every_linear_is_quantized_unless_a_pattern_says_otherwise(spec: ModelSpec) -> None:
    assert len(assign_methods(spec, Awq(16), ["lm_head"])) == 14
    left = assign_methods(spec, Awq(16), ["*.1.mlp.up_proj", "*.o_proj"])
    assert len(left) == 11
    assert "model.layers.1.mlp.up_proj" not in left
    assert not [name for name in left if name.endswith("o_proj")]


def test_the_first_override_that_matches_wins_and_exclusion_before_all(spec: ModelSpec) -> None:
    overrides = [Override("*.down_proj", Gptq(16)), Override("model.layers.0.mlp.*", Awq(32))]
    found = assign_methods(spec, Awq(16), ["*.1.mlp.down_proj"], overrides)
    assert found["model.layers.0.mlp.down_proj"] == Gptq(16)
    assert "model.layers.1.mlp.down_proj" not in found
    assert found["model.layers.0.mlp.up_proj"] == Awq(32)
    assert found["model.layers.1.mlp.up_proj"] == Awq(16)


def test_overrides_alone_may_quantize(spec: ModelSpec) -> None:
    assert set(assign_methods(spec, None, [], [Override("*.0.mlp.*", Awq(16))])) == {
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    assert assign_methods(spec, None, []) == {}


def test_patterns_that_match_nothing_or_leave_nothing_are_errors(spec: ModelSpec) -> None:
    with pytest.raises(QuantizeError, match=r"quantization\.exclude: 'x' matches no linear"):
        assign_methods(spec, Awq(16), ["x"])
    with pytest.raises(QuantizeError, match=r"quantization\.overrides: lm_head cannot be quantized"):
        assign_methods(spec, Awq(16), [], [Override("lm_head", None)])
    with pytest.raises(QuantizeError, match="every linear of the model is excluded"):
        assign_methods(spec, Awq(16), [], [Override("*", None)])


def test_shapes_are_checked_for_what_is_quantized(spec: ModelSpec) -> None:
    check_shapes(spec, assign_methods(spec, Awq(32), []))
    with pytest.raises(QuantizeError, match=r"why: mlp.down_proj has 96 input channels, which groups of 64"):
        check_shapes(spec, assign_methods(spec, Awq(64), []))
    check_shapes(spec, assign_methods(spec, Awq(64), ["*.down_proj"]))
    with pytest.raises(QuantizeError, match="a group size of 0 is not possible"):
        check_shapes(spec, assign_methods(spec, Awq(0), []))


def test_routers_are_never_quantized(save_model: Callable[..., Path]) -> None:
    mixtral = load_spec(save_model("Mixtral", num_local_experts=3))
    gates = ["model.layers.0.block_sparse_moe.gate", "model.layers.1.block_sparse_moe.gate"]
    assert modules(mixtral)[0] == ["lm_head", "model.embed_tokens", *gates]
    every = assign_methods(mixtral, Awq(16), [])
    assert len(every) == 2 * (4 + 3 * 3)
    assert not every.keys() & set(gates)
    assert assign_methods(mixtral, Awq(16), ["*.gate"]) == every
    left = assign_methods(mixtral, Awq(16), ["*.1.block_sparse_moe.experts.2.*"])
    assert [name.rpartition(".")[2] for name in every if name not in left] == ["w1", "w3", "w2"]
    qwen = load_spec(save_model("Qwen2Moe", num_experts=3, mlp_only_layers=[1], num_experts_per_tok=1))
    assert modules(qwen)[0][2:] == ["model.layers.0.mlp.gate", "model.layers.0.mlp.shared_expert_gate"]


def test_shapes_of_experts_are_reported_once(save_model: Callable[..., Path]) -> None:
    widths = {"num_experts": 9, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "num_hidden_layers": 3}
    spec = load_spec(save_model("Qwen3Moe", **widths, mlp_only_layers=[0]))
    with pytest.raises(QuantizeError, match="do not divide into groups") as caught:
        check_shapes(spec, assign_methods(spec, Awq(32), []))
    expected = "mlp.experts.*.down_proj has 40 input channels, which groups of 32 do not divide"
    assert caught.value.why == expected
    check_shapes(spec, assign_methods(spec, Awq(32), ["*.experts.*.down_proj"]))
