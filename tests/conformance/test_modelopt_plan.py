"""Planned weights of each rank beside the rank files that nvidia-modelopt writes."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from toolchain.model.spec import load_spec
from toolchain.plan.ranks import stage_weights
from toolchain.plan.stored import planned_weights
from toolchain.recipe.quantization import Quantization

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed", exc_type=ImportError)

pytestmark = pytest.mark.slow

PRESETS = {
    "none": None,
    "fp8": "FP8_DEFAULT_CFG",
    "awq": "INT4_AWQ_CFG",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A random Llama of two KV heads, and its directory."""
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=None,
        tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.config.architectures = ["LlamaForCausalLM"]
    directory = tmp_path_factory.mktemp("llama")
    model.save_pretrained(directory)
    return model, directory


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize(("tensor", "pipeline"), [(4, 1), (2, 2)])
def test_every_rank_within_5_percent(
    llama: tuple[Any, Path], method: str, tensor: int, pipeline: int, tmp_path: Path
) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    model, directory = copy.deepcopy(llama[0]), llama[1]
    if (preset := PRESETS[method]) is not None:
        tokens = torch.randint(1024, (2, 32), generator=torch.Generator().manual_seed(1))
        model = mtq.quantize(model, getattr(mtq, preset), lambda m: [m(row[None]) for row in tokens])
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model,
            "llama",
            torch.bfloat16,
            export_dir=tmp_path,
            inference_tensor_parallel=tensor,
            inference_pipeline_parallel=pipeline,
        )
    found = [(tmp_path / f"rank{rank}.safetensors").stat().st_size for rank in range(tensor * pipeline)]
    spec = load_spec(directory)
    weights = planned_weights(spec, Quantization.model_validate({"method": method}), "tensorrt")
    stages = stage_weights(spec, weights.layers, tensor, pipeline, flavour="tensorrt")
    assert [stage.total for stage in stages for _ in range(tensor)] == pytest.approx(found, rel=0.05)
