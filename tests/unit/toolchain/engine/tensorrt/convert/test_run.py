"""Rank files stand for the very numbers of the checkpoint, whatever the family, form and cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantize.formats.base import LinearScheme

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
    facts = convert_to(source, tmp_path / "ranks", tensor=2, pipeline=2)
    ranks = same_weights(source, tmp_path / "ranks")
    assert facts["quant_algo"] == ranks.config["quantization"]["quant_algo"]
    assert facts["ranks"] == 4
