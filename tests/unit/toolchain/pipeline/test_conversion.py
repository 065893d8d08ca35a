"""The convert stage: when there is one, and what stops a build before its first stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from toolchain.errors import BuildError, PlanError
from toolchain.pipeline.build import build_recipe
from toolchain.pipeline.conversion import convert_stages, rank_layout
from toolchain.pipeline.store import Store
from toolchain.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[4]
DEMO, QUANTIZED = ROOT / "models" / "demo", ROOT / "tests" / "data" / "quantized"


def recipe(*overrides: str) -> Recipe:
    """The plain demo model on the tensorrt flavour."""
    path = ROOT / "configs" / "demo-bf16.yaml"
    plain = ["engine.max_num_tokens=2048", "engine.precision=fast", "gates={}"]
    return load_recipe(path, ["engine.flavour=tensorrt", *plain, *overrides])


def test_only_the_tensorrt_flavour_has_the_stage() -> None:
    assert [stage.name for stage in convert_stages(recipe(), DEMO)] == ["convert"]
    assert convert_stages(recipe("engine.flavour=vllm"), DEMO) == []


def test_the_recipe_decides_the_layout() -> None:
    own = recipe("parallelism.tensor=2", "parallelism.pipeline=4", "parallelism.embedding_sharding_dim=1")
    layout = rank_layout(own)
    assert (layout.tensor, layout.pipeline, layout.embedding_sharding_dim) == (2, 4, 1)
    (stage,) = convert_stages(own, DEMO)
    assert stage.config["layout"] == layout.to_json()
    (other,) = convert_stages(recipe("parallelism.tensor=2"), DEMO)
    assert stage.key({"quantize": "a"}) != other.key({"quantize": "a"})


def test_a_cut_that_cannot_be_stops_before_any_work() -> None:
    with pytest.raises(PlanError, match="4 attention heads cannot be split 8 ways"):
        convert_stages(recipe("parallelism.tensor=8"), DEMO)


def test_a_method_whose_result_cannot_be_stored_stops_before_any_work() -> None:
    own = recipe("quantization.method=int4_wo", "quantization.group_size=128", "parallelism.tensor=4")
    with pytest.raises(BuildError, match="are no multiples of 512"):
        convert_stages(own, DEMO)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gptqmodel/gptq_asym", "zero points"),
        ("gptqmodel/gptq_desc_act", "act-order"),
        ("gptqmodel/gptq", "groups of 32 cannot be stored"),
        ("llmcompressor/w8a8", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN cannot be stored"),
        ("llmcompressor/nvfp4a16", "W4A16_NVFP4 cannot be stored"),
        ("modelopt/w4a16_awq", "groups of 32 cannot be stored"),
    ],
)
def test_a_published_checkpoint_that_cannot_be_stored_stops_before_any_work(name: str, match: str) -> None:
    with pytest.raises(BuildError, match=match):
        convert_stages(recipe(), QUANTIZED / name)


def test_an_fp8_cache_without_calibration_has_scales_of_one(tmp_path: Path) -> None:
    built = build_recipe(
        recipe("quantization.kv_cache=fp8", "parallelism.tensor=2"),
        out=tmp_path,
        until="convert",
        store=Store.open(tmp_path / "store"),
    )
    rank = load_file(built.artifact / "convert" / "rank1.safetensors")
    assert rank["transformer.layers.7.attention.kv_cache_scaling_factor"].tolist() == [1.0]
    assert '"kv_cache_quant_algo": "FP8"' in (built.artifact / "convert" / "config.json").read_text()
