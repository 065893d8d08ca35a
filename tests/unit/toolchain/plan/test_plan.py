import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.errors import PlanError
from toolchain.plan.plan import make_plan
from toolchain.recipe import load_recipe

CONFIGS = Path(__file__).parents[4] / "configs"


def planned(name: str, *overrides: str):
    return make_plan(load_recipe(CONFIGS / f"{name}.yaml", list(overrides)))


def test_llama_70b_int4_on_four_ranks():
    plan = planned("llama70b-int4", "engine.gpu=h100")
    assert plan.problems == []
    assert plan.parameters == 70_553_706_496  # as its model card counts them
    assert plan.weights.source.total == 2 * plan.parameters
    # 80 layers of 855,638,016 linear weights: half a byte each, one f32 scale for 128 of them.
    assert plan.weights.stored.total == (
        80 * 855_638_016 * (64 + 4) // 128 + 2 * (2 * 128256 * 8192) + 2 * (161 * 8192)
    )
    assert 0.25 < plan.fit.fullest.weights.total / plan.weights.stored.total < 0.27
    # GQA: 8 KV heads, two of them on each of four ranks, 2 x 80 layers x 2 x 128 elements.
    elements = 2 * 80 * 2 * 128
    assert plan.fit.token_bytes == elements * {"bf16": 2, "fp8": 1}[plan.fit.cache.dtype]
    assert (plan.fit.tokens or 0) > 100_000


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_recipe_plans(name):
    plan = planned(name)
    assert plan.problems == []
    assert plan.to_json()["model"]["layers"] > 0


def test_bf16_does_not_fit_one_small_gpu():
    plan = planned("llama8b-fp8", "engine.gpu=l4", "quantization.method=none", "quantization.kv_cache=auto")
    with pytest.raises(PlanError, match="does not fit"):
        planned(
            "llama8b-fp8", "engine.gpu=l4", "quantization.method=none", "engine.max_seq_len=131072"
        ).check()
    assert plan.fit.fullest.weights.total == pytest.approx(8.03e9 * 2, rel=0.01)


def test_fp8_has_no_kernel_on_ampere():
    plan = planned("llama8b-fp8", "engine.gpu=a100-80g")
    with pytest.raises(PlanError, match="fp8 has no kernel on a100-80g"):
        plan.check()
    assert "l40s" in str(plan.problems[0].fix)


def test_unknown_gpu_names_the_nearest():
    with pytest.raises(PlanError, match="did you mean h100"):
        planned("llama70b-int4", "engine.gpu=h10").check()


def test_groupwise_int4_needs_padded_multiples():
    # Qwen2.5-7B: 18944 = 148 x 128, and 148 does not divide by 8; neither do 28 heads.
    plan = planned("qwen2.5-7b-gptq", "parallelism.tensor=8", "engine.gpu=h100")
    whats = [problem.what for problem in plan.problems]
    assert any("28 attention heads cannot be split 8 ways" in what for what in whats)
    assert any("mlp.down_proj is 3584 x 18944" in what for what in whats)


def planned_with_experts(source: str, *overrides: str):
    return planned("llama70b-int4", "engine.gpu=h100", f"model.source={source}", *overrides)


def test_mixtral_int4_on_two_ranks():
    plan = planned_with_experts("mistralai/Mixtral-8x7B-Instruct-v0.1", "parallelism.tensor=2")
    assert plan.problems == []
    assert plan.parameters == 46_702_792_704  # as its model card counts them
    # A layer: 8 experts of 3 x 4096 x 14336, attention, a router of 8 x 4096 and two norms in bf16.
    linears = 32 * (8 * 3 * 4096 * 14336 + 2 * 4096 * (4096 + 1024))
    other = 2 * (32 * (8 * 4096 + 2 * 4096) + 4096)
    tables = 2 * (2 * 32000 * 4096)
    assert plan.weights.stored.total == linears * (64 + 4) // 128 + other + tables
    assert plan.fit.fullest.weights.total == (
        (linears * (64 + 4) // 128 + tables) // 2 + other + 2 * 32 * 8 * 4096  # routers are float32 there
    )


def test_qwen3_moe():
    plan = planned_with_experts("Qwen/Qwen3-30B-A3B", "parallelism.tensor=1", "quantization.method=fp8")
    assert plan.problems == []
    assert plan.parameters == 30_532_122_624  # as its model card counts them
    split = planned_with_experts("Qwen/Qwen3-30B-A3B", "parallelism.tensor=4")
    (problem,) = [problem for problem in split.problems if "down_proj" in problem.what]
    assert "mlp.experts.*.down_proj is 2048 x 768" in problem.what
    whats = [p.what for p in planned_with_experts("Qwen/Qwen3-30B-A3B", "parallelism.tensor=5").problems]
    assert "768 moe_intermediate_size cannot be split 5 ways" in whats
    assert not any("6144" in what for what in whats)  # no layer has that MLP


def test_the_openvino_flavour_refuses_experts():
    with pytest.raises(PlanError, match="openvino flavour does not run MixtralForCausalLM"):
        planned("mistral7b-int4-cpu", "model.source=mistralai/Mixtral-8x7B-Instruct-v0.1").check()


def test_context_longer_than_the_model():
    with pytest.raises(PlanError, match="exceeds the model's 32768 positions"):
        planned("qwen2.5-7b-gptq", "engine.max_seq_len=40000").check()


def test_a_dtype_that_the_model_is_not_stored_in():
    with pytest.raises(PlanError, match="stored in bfloat16, not in float16"):
        planned("llama8b-fp8", "model.dtype=float16").check()


def test_cache_that_does_not_fit_host_memory(monkeypatch):
    monkeypatch.setattr("toolchain.plan.device.host_memory", lambda: 8 * 2**30)
    monkeypatch.setattr("toolchain.plan.fit.cpu_executes_bf16", lambda: True)
    with pytest.raises(PlanError, match="does not fit 8 GiB of host memory"):
        planned("mistral7b-int4-cpu", "engine.max_batch_size=256", "engine.kv_cache.max_tokens=null").check()


def test_weight_only_at_high_batch_is_noted():
    assert any("weight-only" in note for note in planned("llama70b-int4", "engine.gpu=h100").notes)


def test_overrides_are_planned_method_by_method():
    overrides = 'quantization.overrides=[{modules: "*.down_proj", method: fp8}]'
    plan = planned("llama70b-int4", "engine.gpu=h100", overrides)
    assert plan.problems == []
    four, eight = plan.weights.by_method["awq"], plan.weights.by_method["fp8"]
    assert (four.linears, eight.linears) == (80 * 6, 80)
    assert eight.stored == 80 * (8192 * 28672 + 4)
    assert four.bits == 4.25
    assert plan.weights.stored.total - four.stored - eight.stored == 2 * (2 * 128256 * 8192) + 2 * (
        161 * 8192
    )
    assert plan.to_json()["methods"]["fp8"]["linears"] == 80


def test_a_search_is_planned_by_its_budget():
    search = "quantization.search={candidates: [awq, none], max_bits: 6}"
    plan = planned("llama70b-int4", "engine.gpu=h100", "quantization.method=mixed", search)
    assert plan.problems == []
    tables = 2 * (2 * 128256 * 8192) + 2 * (161 * 8192)
    assert plan.weights.stored.total - tables == pytest.approx(80 * 855_638_016 * 6 / 8, rel=1e-6)
    # The budget is that of the linears searched: attention in bf16 does not count.
    plain = planned(
        "llama70b-int4", "engine.gpu=h100", "quantization.method=mixed", search.replace("6}", "5}"),
        'quantization.exclude=["*.self_attn.*"]',
    )  # fmt: skip
    assert plain.problems == []
    attention = 2 * 8192 * 8192 + 2 * 8192 * 1024
    linears = 80 * (attention * 2 + (855_638_016 - attention) * 5 / 8)
    assert plain.weights.stored.total - tables == pytest.approx(linears, rel=1e-6)
    with pytest.raises(PlanError, match=r"cannot be met: .* 4\.25 bits a weight"):
        planned(
            "llama70b-int4", "quantization.method=mixed", search.replace("max_bits: 6", "max_size: 30GiB")
        ).check()


def test_a_pattern_that_matches_nothing_is_a_problem_of_the_plan():
    with pytest.raises(PlanError, match="matches no linear"):
        planned("llama70b-int4", 'quantization.overrides=[{modules: "*.fc1", method: fp8}]').check()


def test_a_tied_table_is_told():
    plan = planned("demo-int4")
    assert (
        any("lm_head is the embedding table" in note for note in plan.notes) == plan.spec.tie_word_embeddings
    )


def sequences(*overrides: str) -> int:
    return planned("llama70b-int4", "engine.gpu=h100", *overrides).fit.sequences(4096) or 0


@settings(max_examples=25, deadline=None)
@given(
    tensor=st.sampled_from([1, 2, 4]),
    batch=st.sampled_from([1, 8, 64]),
    tokens=st.sampled_from([2048, 8192]),
    method=st.sampled_from(["awq", "fp8", "none"]),
)
def test_more_of_one_thing_never_leaves_more_of_another(
    tensor: int, batch: int, tokens: int, method: str
) -> None:
    def fits(tensor: int = tensor, batch: int = batch, tokens: int = tokens, method: str = method) -> int:
        return sequences(
            f"parallelism.tensor={tensor}", f"engine.max_batch_size={batch}",
            f"engine.max_num_tokens={tokens}", f"quantization.method={method}",
        )  # fmt: skip

    assert fits(batch=8 * batch) <= fits() <= fits(tensor=2 * tensor)
    assert fits(tokens=2 * tokens) <= fits()
    assert fits(method="none") <= fits() <= fits(method="awq")


def test_longer_sequences_are_fewer() -> None:
    counts = planned("llama70b-int4", "engine.gpu=h100").sequence_counts()
    assert list(counts) == [8192, 2048, 512]
    assert sorted(counts.values(), key=lambda count: count or 0) == list(counts.values())


def test_a_sharded_model_that_fits_one_gpu_is_told_of() -> None:
    notes = planned("llama70b-int4", "engine.gpu=h200").notes
    assert any("the model fits one h200" in note and "4 copies" in note for note in notes)
    assert not any("fits one" in note for note in planned("llama70b-int4", "engine.gpu=l40s").notes)


def test_experts_may_be_split_where_channels_may_not() -> None:
    split = ("parallelism.tensor=8", "quantization.method=none", "quantization.calibration=null")
    by_channels = planned_with_experts("Qwen/Qwen3-30B-A3B", *split)
    assert by_channels.problems == []  # 768 / 8
    ways = ("parallelism.tensor=32", *split[1:])
    whats = [problem.what for problem in planned_with_experts("Qwen/Qwen3-30B-A3B", *ways).problems]
    assert whats == []
    uneven = planned_with_experts("Qwen/Qwen3-30B-A3B", *ways, "parallelism.moe_expert=32")
    assert uneven.problems == []


def test_a_stage_that_this_machine_cannot_hold_is_told_of(monkeypatch) -> None:
    monkeypatch.setattr("toolchain.plan.plan.host_memory", lambda: 4 * 2**30)
    notes = planned("llama70b-int4").notes
    assert any("the stage quantize needs" in note and "this machine has 4 GiB" in note for note in notes)


def test_a_draft_has_weights_and_a_cache_of_its_own() -> None:
    alone, guessing = planned("demo-int4").fit, planned("demo-speculative").fit
    # The demo's draft: 2 of its 8 layers, the table and the output layer again, in 16 bits.
    assert guessing.token_bytes == alone.token_bytes * 10 / 8
    assert guessing.fullest.weights.total > alone.fullest.weights.total + 4 * 4096 * 256
    assert guessing.wanted == alone.wanted + 32 * 4
    assert (
        guessing.sequence_bytes(guessing.ranks[0], 512) == alone.sequence_bytes(alone.ranks[0], 512) * 10 // 8
    )


def test_a_draft_that_cannot_guess_for_the_model() -> None:
    other = "engine.speculative.source=Qwen/Qwen2.5-7B-Instruct"
    with pytest.raises(PlanError, match="152064 tokens in its vocabulary, the model 4096"):
        planned("demo-speculative", other).check()


def test_more_stages_than_layers() -> None:
    over = ("engine.flavour=vllm", "engine.gpu=l4", "parallelism.pipeline=16", "engine.precision=fast")
    with pytest.raises(PlanError, match="8 layers cannot be split 16 ways"):
        planned("demo-bf16", *over).check()


@pytest.mark.parametrize("kind", ["yarn", "longrope", "llama3"])
def test_whatever_the_rotary_embedding_a_model_can_be_planned(kind: str, tmp_path: Path) -> None:
    config = json.loads((CONFIGS.parent / "models/demo/config.json").read_text())
    del config["rope_parameters"]
    factors = [1.0] * 32
    config["rope_scaling"] = {
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        "longrope": {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 4.0},
        "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 256},
    }[kind]  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert planned("demo-int4", f"model.source={tmp_path}").problems == []
