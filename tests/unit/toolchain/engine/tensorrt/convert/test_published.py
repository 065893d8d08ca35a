"""Checkpoints that other tools wrote, cut into ranks: the very numbers of the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUANTIZED = Path(__file__).parents[6] / "tests" / "data" / "quantized"


@pytest.mark.parametrize(
    "name",
    [
        *(f"modelopt/{kind}" for kind in ("fp8_pc_pt", "int8_sq", "int8_wo", "nvfp4")),
        *(f"llmcompressor/{kind}" for kind in ("fp8_dynamic", "w8a8_static", "w8a16", "nvfp4")),
        "gptqmodel/gptq_8bit",
    ],
)
def test_ranks_of_a_published_checkpoint(
    name: str, tmp_path: Path, convert_to: Callable[..., dict[str, Any]], same_weights: Callable[..., Any]
) -> None:
    convert_to(QUANTIZED / name, tmp_path / "ranks", tensor=2)
    same_weights(QUANTIZED / name, tmp_path / "ranks")


@pytest.mark.parametrize(
    "name", ["modelopt/fp8", "modelopt/fp8_kv", "modelopt/mixtral_fp8", "llmcompressor/fp8_kv"]
)
def test_published_fp8_has_scales_of_its_own_for_each_linear(
    name: str, tmp_path: Path, convert_to: Callable[..., dict[str, Any]], same_weights: Callable[..., Any]
) -> None:
    """Linears that read one input get the largest of theirs; the others' codes are rounded once more."""
    convert_to(QUANTIZED / name, tmp_path / "ranks", tensor=2)
    same_weights(QUANTIZED / name, tmp_path / "ranks", rounded_to_fp8=True)
