"""Rank files stand for the very numbers of the checkpoint, whatever the family, form and cut."""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantize.formats.base import LinearScheme
from toolchain.errors import BuildError

SCHEMES = {
    "none": None,
    "W8A16": LinearScheme("W8A16", bits=8),
    "W4A16_AWQ": LinearScheme("W4A16_AWQ", 64),
    "W4A8_AWQ": LinearScheme("W4A8_AWQ", 128),
    "FP8": LinearScheme("FP8", bits=8),
    "FP8_PER_CHANNEL_PER_TOKEN": LinearScheme("FP8_PER_CHANNEL_PER_TOKEN", bits=8),
    "W8A8_SQ_PER_CHANNEL": LinearScheme("W8A8_SQ_PER_CHANNEL", bits=8),
    "NVFP4": LinearScheme("NVFP4", 16),
}
FAMILIES = ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe"]

SPARSE = ["mixtral", "qwen2_moe", "qwen3_moe"]
NOT_OF_EXPERTS = ["FP8_PER_CHANNEL_PER_TOKEN", "W8A8_SQ_PER_CHANNEL"]

# Widths that every algorithm can be cut 2 ways in.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "head_dim": 64,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
}


@pytest.mark.parametrize("algo", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_algorithm(
    family: str,
    algo: str,
    tmp_path: Path,
    make_config: Callable[..., dict[str, Any]],
    make_checkpoint: Callable[..., Path],
    convert_to: Callable[..., dict[str, Any]],
    same_weights: Callable[..., Any],
) -> None:
    source = make_checkpoint(tmp_path / "source", make_config(family, **WIDE), SCHEMES[algo])
    if algo in NOT_OF_EXPERTS and family in SPARSE:
        with pytest.raises(BuildError, match=f"experts cannot be stored as {algo}"):
            convert_to(source, tmp_path / "ranks", tensor=2, pipeline=2)
        return
    facts = convert_to(source, tmp_path / "ranks", tensor=2, pipeline=2)
    ranks = same_weights(source, tmp_path / "ranks")
    assert facts["quant_algo"] == ranks.config["quantization"]["quant_algo"]
    assert facts["ranks"] == 4


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A model of any family and small odd sizes, an algorithm, and a way to cut it that must work."""
    family = draw(st.sampled_from(FAMILIES))
    unfit = ["W4A8_AWQ", *(NOT_OF_EXPERTS if family in SPARSE else [])]
    algo = draw(st.sampled_from([name for name in SCHEMES if name not in unfit]))
    tensor = draw(st.sampled_from([1, 2, 3, 4]))
    kv_heads = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8) if n % tensor == 0 or tensor % n == 0]))
    heads = math.lcm(kv_heads, tensor) * draw(st.sampled_from([1, 2]))
    step = {"NVFP4": 16, "W4A16_AWQ": 64 * tensor}.get(algo, 1)
    head_dim = draw(st.sampled_from([2, 6, 16])) if step == 1 else 64 if step > 16 else 16
    if algo == "W4A16_AWQ":  # the width of qkv and of o_proj's input must be a multiple of 64 a rank
        heads, kv_heads = max(heads, tensor), max(kv_heads, tensor)
        heads = math.lcm(heads, kv_heads)
    expert_ranks = draw(st.sampled_from([n for n in (1, 2, 3, 4) if tensor % n == 0]))
    layers = draw(st.integers(1, 4))
    config = {
        "vocab_size": draw(st.integers(1, 40)),
        "hidden_size": step * tensor * draw(st.integers(1, 2)) if step < 64 else step,
        "intermediate_size": step * tensor * draw(st.integers(1, 2)) if step < 64 else step,
        "moe_intermediate_size": step * tensor,
        "shared_expert_intermediate_size": step * tensor,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["bfloat16", "float16"])),
        "num_experts": 2 * expert_ranks,
        "num_local_experts": 2 * expert_ranks,
    }
    if family == "llama":
        config |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    layout = {
        "tensor": tensor,
        "pipeline": draw(st.integers(1, layers)),
        "use_parallel_embedding": draw(st.booleans()),
        "embedding_sharding_dim": draw(st.sampled_from([0, 1])),
    }
    if family in SPARSE:
        layout |= {"moe_expert": expert_ranks}
    kv_cache = draw(st.sampled_from([None, "FP8", "INT8"]))
    return {"family": family, "algo": algo, "config": config, "layout": layout, "kv_cache": kv_cache}


@pytest.mark.slow
@given(case=cases())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sizes_and_cuts(
    case: dict[str, Any],
    make_config: Callable[..., dict[str, Any]],
    make_checkpoint: Callable[..., Path],
    convert_to: Callable[..., dict[str, Any]],
    same_weights: Callable[..., Any],
) -> None:
    with TemporaryDirectory() as name:
        config = make_config(case["family"], **case["config"])
        source = make_checkpoint(
            Path(name) / "source", config, SCHEMES[case["algo"]], kv_cache=case["kv_cache"]
        )
        convert_to(source, Path(name) / "ranks", **case["layout"])
        ranks = same_weights(source, Path(name) / "ranks")
        for stage in range(ranks.pp):
            for rank in ranks.files[stage * ranks.tp : (stage + 1) * ranks.tp]:
                scales = [key for key in rank if key.endswith("attention.kv_cache_scaling_factor")]
                layers = {key.split(".")[2] for key in rank if ".layers." in key}
                assert len(scales) == (len(layers) if case["kv_cache"] else 0)
