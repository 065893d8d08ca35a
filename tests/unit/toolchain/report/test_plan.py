"""A plan as people see it: the formula, bars that add up, the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from toolchain.plan.plan import Plan, make_plan
from toolchain.recipe import load_recipe
from toolchain.report.memory import memory_svg
from toolchain.report.plan import BAR, alike, choice_rows, kv_formula, memory_lines

CONFIGS = Path(__file__).parents[4] / "configs"
SVG = "{http://www.w3.org/2000/svg}"


def planned(*overrides: str, recipe: str = "llama70b-int4") -> Plan:
    return make_plan(load_recipe(CONFIGS / f"{recipe}.yaml", list(overrides)))


def test_the_formula_has_the_models_numbers_and_the_mistake_beside_them() -> None:
    first, second, *_ = kv_formula(planned("quantization.kv_cache=auto"))
    assert first == ("2 x 80 layers x 8 KV heads x 128 x 2 bytes (bf16) = 320 KiB a token, 80 KiB on a rank")
    assert second == "(not the 2.5 MiB of 64 heads, a classic mistake: each 8 share one KV head)"
    (only, *_) = kv_formula(planned(recipe="demo-int4"))
    assert only == "2 x 8 layers x 2 KV heads x 64 x 1.19 bytes (u8) = 2.38 KiB a token"


def test_the_formula_tells_of_windows() -> None:
    mistral = "model.source=mistralai/Mistral-7B-Instruct-v0.1"
    plan = planned(mistral)
    assert "32 of 32 layers keep all tokens, although attention sees only a window of 4096 tokens" in (
        kv_formula(plan)
    )
    told = planned(mistral, "deploy.tensorrt_llm={max_attention_window_size: [4096]}")
    assert "32 of 32 layers keep no more than a window of 4096 tokens" in kv_formula(told)
    assert (told.fit.sequences(8192) or 0) // 2 == plan.fit.sequences(8192)


@pytest.mark.parametrize(
    "overrides", [("parallelism.tensor=2", "parallelism.pipeline=4"), ("engine.max_seq_len=512",)]
)
def test_bars_are_to_scale(overrides: tuple[str, ...]) -> None:
    plan = planned("engine.gpu=l40s", *overrides)
    bars = [line for line in memory_lines(plan) if "|" in line]
    groups = alike(plan.fit.ranks)
    assert len(bars) == len(groups)
    for bar, (name, _, rank) in zip(bars, groups, strict=True):
        drawn = bar.partition("|")[2].rstrip("|")
        assert bar.startswith(name)
        assert len(drawn) == BAR
        share = drawn.count("█") / BAR
        assert share == pytest.approx(rank.weights.total / (rank.capacity or 1), abs=1 / BAR)
        parts = (rank.weights.total, rank.activations, rank.runtime, rank.cache, rank.unused)
        assert sum(parts) == rank.capacity


def test_a_rank_that_does_not_fit_is_cut_off() -> None:
    plan = planned("engine.gpu=l4", "parallelism.tensor=1", "quantization.method=none")
    (bar,) = [line for line in memory_lines(plan) if "|" in line]
    assert bar == "rank 0 |" + "█" * BAR + ">"


def test_stages_that_are_alike_share_a_bar() -> None:
    plan = planned("engine.gpu=l40s", "parallelism.tensor=2", "parallelism.pipeline=4")
    assert [(group.name, group.layers) for group in alike(plan.fit.ranks)] == [
        ("rank 0-1", "layers 0-19"),
        ("rank 2-5", "20 layers each"),
        ("rank 6-7", "layers 60-79"),
    ]


def test_choices_are_few_and_in_order() -> None:
    rows = choice_rows(planned("quantization.method=auto", "parallelism.tensor=auto", "engine.gpu=h100"))
    assert rows[0][:3] == ["1", "w4a8_awq", "1 x 1"]
    assert len(rows) < 15
    assert {row[1] for row in rows} >= {"none", "fp8", "awq_gptq", "nvfp4"}
    assert {row[0] for row in rows if row[1] == "nvfp4"} == {"-"}


@pytest.mark.parametrize("gpu", ["l40s", "null", "l4"])
def test_the_picture_is_to_scale(gpu: str) -> None:
    plan = planned(f"engine.gpu={gpu}", "parallelism.tensor=2", "parallelism.pipeline=2")
    root = ElementTree.fromstring(memory_svg(plan))
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    titles = [str(rect.findtext(f"{SVG}title")) for rect in bars]
    assert sum(title.startswith("embedding: ") for title in titles) == 1
    assert sum(title.startswith("output layer: ") for title in titles) == 1
    layers = [rect for rect, title in zip(bars, titles, strict=True) if title.startswith("layers: ")]
    widths = {float(rect.attrib["width"]) for rect in layers}
    assert len(layers) == 2
    assert len(widths) == 1  # 40 layers each
    runtime = next(rect for rect, title in zip(bars, titles, strict=True) if title == "runtime: 2 GiB")
    ratio = plan.fit.ranks[0].weights.layers / 2**31
    assert widths.pop() / float(runtime.attrib["width"]) == pytest.approx(ratio, rel=0.01)
