"""Quantized checkpoints, converted and verified: every algorithm that rank files hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize.driver import quantize_model
from quantize.methods.registry import make_method
from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.engine.tensorrt.verify.run import verify_ranks
from toolchain.engine.tensorrt.verify.scales import CACHE, scale_error
from toolchain.model.spec import load_spec
from toolchain.progress import Silent

DATA = Path(__file__).parents[5] / "data" / "quantized"


def ranks_of(checkpoint: Path, out: Path, **layout: Any) -> Path:
    work = out.with_name(f"{out.name}-work")
    convert(checkpoint, out, work, layout=RankLayout(**layout), progress=Silent())
    return out


EXPORTS = DATA.parent / "ranks" / "modelopt-0.37"


@pytest.mark.parametrize("name", ["Llama-W4A16_AWQ", "Mixtral-W4A16_AWQ", "Mixtral-NVFP4"])
def test_exports_of_modelopt_are_told_apart_by_nothing(name: str, tmp_path: Path) -> None:
    """Experts and AWQ's scales, as NVIDIA's tool writes them for Hugging Face."""
    source = EXPORTS / name / "checkpoint"
    found = verify_ranks(ranks_of(source, tmp_path / "ranks", tensor=2), source)
    assert found.problem is None, found
    assert found.allowed.is_rounding


@pytest.mark.parametrize("name", ["fp8_pc_pt", "int8_sq", "nvfp4"])
def test_codes_are_the_sources_to_the_bit(name: str, tmp_path: Path) -> None:
    found = verify_ranks(
        ranks_of(DATA / "modelopt" / name, tmp_path / "ranks", tensor=2), DATA / "modelopt" / name
    )
    assert found.problem is None
    assert found.allowed.is_rounding
    assert max(max(layer.attention, layer.mlp) for layer in found.layers) < 1e-5


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fp8_kv", "have FP8 scales of their own"),
        ("mixtral_fp8", "have FP8 scales of their own"),
        ("int8_wo", "weights are rounded to it"),
    ],
)
def test_what_an_engine_must_round_is_allowed_for(name: str, why: str, tmp_path: Path) -> None:
    found = verify_ranks(
        ranks_of(DATA / "modelopt" / name, tmp_path / "ranks", tensor=2), DATA / "modelopt" / name
    )
    assert found.problem is None
    assert why in found.allowed.why
    worst = max(max(layer.attention, layer.mlp) for layer in found.layers)
    assert found.allowed.value / 10 < worst < found.allowed.value


@pytest.fixture
def int4(make_ranks: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A plain model, and a checkpoint of it in groups of 64."""
    source, _ = make_ranks("Qwen3", 1, 1, hidden_size=128, intermediate_size=256, head_dim=32)
    method = make_method("int4_wo", group_size=64)
    assert method is not None
    quantize_model(source, tmp_path / "int4", tmp_path / "work", method=method, calibration=None)
    return source, tmp_path / "int4"


def test_int4_on_four_ranks(int4: tuple[Path, Path], tmp_path: Path) -> None:
    plain, quantized = int4
    ranks = ranks_of(quantized, tmp_path / "ranks", tensor=2, pipeline=2)
    found = verify_ranks(ranks, quantized)
    assert found.problem is None
    assert found.allowed.is_rounding
    assert max(max(layer.attention, layer.mlp) for layer in found.layers) < 1e-5
    beside_plain = verify_ranks(ranks, plain)
    assert beside_plain.problem is None
    assert "the ranks are W4A16_AWQ, the source is not quantized" in beside_plain.allowed.why
    assert max(layer.mlp for layer in beside_plain.layers) > 0.02


def test_a_wrong_scale_of_activations_is_named(tmp_path: Path) -> None:
    source = DATA / "modelopt" / "int8_sq"
    ranks = ranks_of(source, tmp_path / "ranks", tensor=2)
    for rank in range(2):
        file = ranks / f"rank{rank}.safetensors"
        tensors = load_file(file)
        tensors["transformer.layers.0.mlp.proj.activation_scaling_factor"] *= 1.01
        save_file(tensors, file)
    found = verify_ranks(ranks, source)
    assert found.diverging == ["layer 0, its scales of activations"]


def test_fused_linears_may_have_the_largest_scale() -> None:
    spec = load_spec(DATA / "source" / "llama")
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    source = {"self_attn.q_proj": one, "self_attn.k_proj": two, CACHE[0]: one, CACHE[1]: two}
    assert scale_error(spec, 0, {"self_attn.q_proj": 2.0, CACHE[0]: 2.0}, source) == 0
    assert scale_error(spec, 0, {"self_attn.k_proj": 1.0}, source) == 1
    assert scale_error(spec, 0, {CACHE[1]: 3.0}, source) == 0.5
    assert scale_error(spec, 0, {"self_attn.o_proj": 3.0}, source) == 0
