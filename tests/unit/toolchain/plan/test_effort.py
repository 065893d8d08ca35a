"""What stages take: in order, never less for more, and nearer to what was measured here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toolchain.plan.effort import Measured, StageNeed, Work
from toolchain.plan.plan import make_plan
from toolchain.recipe import load_recipe

CONFIGS = Path(__file__).parents[4] / "configs"
WORK = Work("quantize", "awq", "cpu", 6_291_456, 6_291_456, 14_688_768, 32_768)


def needs(
    *overrides: str, recipe: str = "demo-int4", measured: tuple[Measured, ...] = ()
) -> dict[str, StageNeed]:
    plan = make_plan(load_recipe(CONFIGS / f"{recipe}.yaml", list(overrides)), measured)
    return {need.stage: need for need in plan.stages}


def test_the_stages_of_each_flavour() -> None:
    assert list(needs()) == ["source", "quantize", "baseline", "gate", "engine"]
    engines = needs(recipe="llama70b-int4")
    assert list(engines) == ["source", "quantize", "baseline", "gate", "convert", "engine"]
    assert engines["engine"].gpu > engines["convert"].gpu == 0
    assert engines["engine"].basis == "published figures"
    assert list(needs("gates.perplexity=null")) == ["source", "quantize", "engine"]


def test_each_text_runs_the_source_and_all_of_them_the_checkpoint() -> None:
    kl = "gates.kl={dataset: file:models/demo/heldout.txt, windows: 2, max: 1.0}"
    plan = make_plan(load_recipe(CONFIGS / "demo-int4.yaml", [kl]))
    stages = [need.stage for need in plan.stages]
    assert stages == ["source", "quantize", "baseline", "baseline", "gate", "engine"]


def test_a_search_takes_a_run_for_each_candidate() -> None:
    search = "quantization.search={candidates: [awq, none], max_bits: 8}"
    mixed = needs("quantization.method=mixed", search)["quantize"]
    assert mixed.seconds > 2 * needs()["quantize"].seconds


def test_ranges_hold_what_is_likely() -> None:
    for need in needs(recipe="llama70b-int4").values():
        assert 0 < need.fastest < need.seconds < need.slowest


@pytest.mark.parametrize("more", ["samples", "seq_len"])
def test_more_text_takes_longer_and_more_memory(more: str) -> None:
    few, many = (needs(f"quantization.calibration.{more}={count}")["quantize"] for count in (128, 512))
    assert few.seconds < many.seconds
    assert few.host < many.host
    assert few.disk == many.disk


def test_llama_70b_is_quantized_in_a_layer_at_a_time() -> None:
    need = needs(recipe="llama70b-int4")["quantize"]
    assert need.host < 16 * 2**30  # not the 131 GiB of the model
    assert need.disk == pytest.approx(37.8 * 2**30, rel=0.01)


def test_on_a_gpu_the_layer_is_there() -> None:
    on_gpu = needs("quantization.device=cuda", recipe="llama8b-fp8")["quantize"]
    on_cpu = needs("quantization.device=cpu", recipe="llama8b-fp8")["quantize"]
    # Measured on an H100 with 128 x 2048 tokens, docs/benchmarks.md: fp8 64 s, 1.8 GB.
    assert on_gpu.gpu == pytest.approx(1.8e9, rel=0.6)
    assert on_cpu.gpu == 0
    assert on_gpu.host < on_cpu.host
    assert on_gpu.seconds < on_cpu.seconds / 10
    eight = Work("quantize", "fp8", "cuda", 6_979_321_856, 6_979_321_856, 0, 128 * 2048)
    assert eight.seconds == pytest.approx(64, rel=0.2)


@pytest.mark.parametrize(("runs", "spread"), [(1, 1.6), (3, 1.25)])
def test_earlier_runs_here_decide(runs: int, spread: float) -> None:
    plain = needs()["quantize"]
    assert plain.basis == "a rule of thumb: none of this size ran here"
    assert plain.slowest / plain.seconds == 3
    need = needs(measured=(Measured(WORK, 57.0, 123),) * runs)["quantize"]
    assert need.seconds == pytest.approx(57.0)
    assert need.slowest / need.seconds == pytest.approx(spread)
    assert need.host == 123
    assert need.basis == f"{runs} earlier run{'s' if runs > 1 else ''} here"


def test_the_range_holds_every_run() -> None:
    runs = tuple(Measured(WORK, seconds, 1) for seconds in (10.0, 11.0, 12.0, 40.0, 2.0))
    need = needs(measured=runs)["quantize"]
    assert (need.fastest, need.seconds, need.slowest) == pytest.approx((2, 11, 40))


def test_a_run_on_other_text_scales_by_the_rule() -> None:
    twice = replace(WORK, tokens=2 * WORK.tokens)
    need = needs(measured=(Measured(twice, 2 * twice.seconds, 123),))["quantize"]
    assert need.seconds == pytest.approx(2 * WORK.seconds)
    assert need.host != 123  # of that the rule says more


@pytest.mark.parametrize(
    "other", [replace(WORK, kind="gptq"), replace(WORK, device="cuda"), replace(WORK, weights=10**9)]
)
def test_runs_of_another_kind_or_size_say_nothing(other: Work) -> None:
    assert needs(measured=(Measured(other, 1.0, 1),)) == needs()
