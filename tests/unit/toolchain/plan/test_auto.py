"""What `auto` comes to, and that the plan's recipe is one that anybody could have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.plan.auto import published_speed
from toolchain.plan.plan import Plan, make_plan
from toolchain.recipe import dump_recipe, load_recipe

CONFIGS = Path(__file__).parents[4] / "configs"
ALL_OPEN = ("parallelism.tensor=auto", "parallelism.pipeline=auto", "quantization.method=auto")
LLAMA_8B = "model.source=meta-llama/Llama-3.1-8B-Instruct"
NO_TEXT = "quantization.calibration=null"


def planned(*overrides: str, recipe: str = "llama70b-int4") -> Plan:
    return make_plan(load_recipe(CONFIGS / f"{recipe}.yaml", list(overrides)))


def chosen(plan: Plan) -> tuple[str, int, int]:
    split = plan.resolved.parallelism
    return plan.resolved.quantization.method, split.tp_size, split.pp_size


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        # Fits one GPU with room: not sharded, and fp8 is faster than 16 bits at batch 64.
        ("h200x4", ("fp8", 1, 1)),
        # fp8 leaves no room for 64 requests on one H100; four bits with fp8 arithmetic do.
        ("h100x8", ("w4a8_awq", 1, 1)),
        # Ampere has no fp8; 16 bits need four GPUs, and nothing shows that int8 weights are slower.
        ("a100-80gx8", ("int8_wo", 2, 1)),
        ("b200x8", ("nvfp4", 1, 1)),
    ],
)
def test_llama_70b(gpus: str, expected: tuple[str, int, int]) -> None:
    gpu, _, count = gpus.rpartition("x")
    off = () if gpu != "a100-80g" else ("quantization.kv_cache=auto",)
    plan = planned(*ALL_OPEN, f"engine.gpu={gpu}", f"parallelism.gpus={count}", *off)
    assert plan.problems == []
    assert chosen(plan) == expected


def test_a_fast_link_decides_between_tensor_and_pipeline() -> None:
    wide = ("parallelism.tensor=auto", "parallelism.pipeline=auto", "quantization.method=none", NO_TEXT)
    plain = (*wide, "engine.max_batch_size=8", "parallelism.gpus=4", "engine.max_seq_len=4096")
    with_link = planned(*plain, "engine.gpu=a100-80g", "quantization.kv_cache=auto")
    assert chosen(with_link) == ("none", 2, 1)
    assert "tensor over NVLink" in with_link.choices[0].reason
    without = planned(*plain, "engine.gpu=l40s")
    assert chosen(without) == ("none", 1, 4)
    assert without.choices[0].reason == "4 GPUs: no NVLink, so pipeline"


def test_several_nodes_are_joined_by_pipeline() -> None:
    plan = planned(
        "parallelism.tensor=auto", "parallelism.pipeline=auto", "quantization.method=none", NO_TEXT,
        "engine.gpu=a100-40g", "quantization.kv_cache=auto", "parallelism.gpus=16",
        "engine.max_batch_size=512",
    )  # fmt: skip
    assert chosen(plan) == ("none", 8, 2)
    assert "16 GPUs in 2 nodes: tensor within, pipeline between" in plan.choices[0].reason


def test_int4_is_told_to_lose_at_high_batch_and_wins_at_low() -> None:
    many = planned(*ALL_OPEN, LLAMA_8B, "engine.gpu=a100-80g", "quantization.kv_cache=auto")
    assert chosen(many) == ("none", 1, 1)
    (int4,) = [c for c in many.choices if (c.method, c.gpus) == ("awq_gptq", 1)]
    assert "weight-only int4 loses to 16-bit at high batch" in int4.reason
    one = planned(
        *ALL_OPEN, LLAMA_8B, "engine.gpu=a100-80g", "quantization.kv_cache=auto", "engine.max_batch_size=1"
    )
    assert chosen(one) == ("awq_gptq", 1, 1)


def test_without_calibration_text_only_methods_that_need_none() -> None:
    plan = planned(*ALL_OPEN, LLAMA_8B, "engine.gpu=h100", NO_TEXT)
    assert chosen(plan) == ("fp8_rowwise", 1, 1)
    assert {choice.method for choice in plan.choices} == {"none", "fp8_rowwise", "int8_wo", "int4_wo"}


def test_a_quantized_source_is_taken_as_it_is() -> None:
    source = "model.source=hugging-quants/Meta-Llama-3.1-8B-Instruct-GPTQ-INT4"
    plan = planned("quantization.method=auto", NO_TEXT, source, "parallelism.tensor=1", "engine.gpu=h100",
                   "model.dtype=auto")  # fmt: skip
    assert {choice.method for choice in plan.choices} == {"none"}


def test_the_cpu_flavour_has_one_rank_and_its_own_methods() -> None:
    plan = planned(*ALL_OPEN, recipe="demo-int4")
    assert chosen(plan) == ("awq_gptq", 1, 1)
    assert {choice.method for choice in plan.choices} == {"none", "int8_wo", "awq_gptq"}


def test_the_resolved_recipe_loads_as_it_is(tmp_path: Path) -> None:
    plan = planned(*ALL_OPEN, LLAMA_8B, "engine.gpu=h100", "quantization.group_size=64")
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(plan.resolved))
    assert "auto" not in written.read_text().replace("dtype: auto", "").replace("format: auto", "").replace(
        "device: auto", ""
    )
    again = load_recipe(written)
    assert again == plan.resolved
    assert again.quantization.group_size == 128  # fp8 does not read it
    assert make_plan(again).fit == plan.fit


def test_nothing_that_fits_names_what_comes_nearest() -> None:
    plan = planned(*ALL_OPEN, "engine.gpu=l4", "parallelism.gpus=1")
    assert not any(choice.works for choice in plan.choices)
    with pytest.raises(PlanError, match="one sequence of 8192 tokens does not fit: 22 GiB of l4"):
        plan.check()


def test_auto_needs_a_gpu_to_decide_for() -> None:
    with pytest.raises(PlanError, match="auto needs to know the GPU"):
        planned(*ALL_OPEN, "engine.gpu=null").check()


@pytest.mark.parametrize(
    ("fixed", "splits"),
    [
        (("parallelism.pipeline=3", "parallelism.tensor=auto"), {(1, 3), (2, 3)}),  # none fills 8 GPUs
        (("parallelism.pipeline=auto", "parallelism.tensor=4"), {(4, 1), (4, 2)}),
        (("parallelism.pipeline=auto", "parallelism.tensor=16"), {(16, 1)}),
    ],
)
def test_what_is_fixed_stays(fixed: tuple[str, ...], splits: set[tuple[int, int]]) -> None:
    plan = planned(*fixed, "engine.gpu=h100")
    assert {(choice.tensor, choice.pipeline) for choice in plan.choices} == splits


def test_rules_that_nothing_can_keep() -> None:
    mixtral = "model.source=mistralai/Mixtral-8x7B-Instruct-v0.1"
    with pytest.raises(PlanError, match=r"moe_tensor times moe_expert is not parallelism\.tensor"):
        planned(mixtral, "parallelism.tensor=auto", "parallelism.moe_tensor=4", "parallelism.moe_expert=4",
                "engine.gpu=h100")  # fmt: skip


def test_experts_of_their_own_leave_the_split_to_match() -> None:
    mixtral = "model.source=mistralai/Mixtral-8x7B-Instruct-v0.1"
    plan = planned(mixtral, "parallelism.tensor=auto", "parallelism.moe_expert=4", "engine.gpu=h100")
    assert {choice.tensor for choice in plan.choices} == {4, 8}
    assert chosen(plan) == ("awq", 4, 1)


def test_more_ranks_than_gpus() -> None:
    with pytest.raises(PlanError, match="4 ranks do not fit 2 GPUs"):
        planned("parallelism.gpus=2").check()


def test_unresolved_numbers_are_not_used_by_accident() -> None:
    recipe = load_recipe(CONFIGS / "llama70b-int4.yaml", ["parallelism.tensor=auto"])
    with pytest.raises(
        ValueError, match=r"parallelism\.tensor is auto: use the recipe that the plan resolved"
    ):
        _ = recipe.parallelism.world_size


@pytest.mark.parametrize(
    ("method", "generation", "batch", "speed"),
    [
        ("none", "Hopper", 1, 1.0),
        ("fp8_rowwise", "Hopper", 64, 1.30),
        ("gptq", "Hopper", 32, 0.75),
        ("gptq", "Hopper", 7, 1.33),
        ("nvfp4", "Blackwell", 9, 1.89),
        ("nvfp4", "Blackwell", 8, None),
        ("int8_wo", "Ampere", 7, 1.48),
        ("int8_wo", "Ampere", 8, None),
        ("int4_wo", "Hopper", 4096, 0.83),
        ("int8_sq", "Hopper", 64, None),
        ("fp8", None, 64, None),
    ],
)
def test_published_speed(method: str, generation: str | None, batch: int, speed: float | None) -> None:
    assert published_speed(method, generation, batch) == speed


def test_the_table_of_speeds_is_of_generations_that_are_known() -> None:
    generations = {row["generation"] for row in load_table("gpus").values()} | {"cpu"}
    assert set(load_table("throughput")) == generations
    methods = set(load_table("formats")) | {"int4"}
    for row in load_table("throughput").values():
        assert set(row) <= methods
