"""What each method costs the demo model in quality, on text that calibration did not see."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from quantize.algorithms.integer import quantize_groups
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from quantize.run import quantize_checkpoint
from toolchain.text.files import TextFiles

DEMO = Path(__file__).resolve().parents[2] / "models/demo"
SEQUENCES, LENGTH = 32, 256

# (better, worse, KL divergence of the better as a part of that of the worse).
# Calibration seed 0 gives 0.70, 0.63 and 0.94; with twice the tokens 0.67, 0.59 and 0.87. awq_gptq and gptq
# are not compared: on this model they differ by less than a change of damping moves either.
ORDER = [("awq", "nearest", 0.8), ("gptq", "nearest", 0.75), ("awq_gptq", "awq", 1.0)]
# The same of what the forms hold, weights alone: int8, fp8, fp4, int4. They give 0.09, 0.09 and 0.47.
FORMS = [("int8_wo", "fp8_rowwise", 0.2), ("fp8_rowwise", "nvfp4", 0.2), ("nvfp4", "nearest", 0.7)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def divergences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Mean KL(source || quantized) in nats of each method, 32 x 256 tokens of calibration."""
    found = {"nearest": divergence(nearest())}
    for method in ("awq", "gptq", "awq_gptq", "int8_wo", "fp8_rowwise", "nvfp4"):
        found[method] = divergence(quantized(method, tmp_path_factory.mktemp(method)))
    return found


@pytest.mark.parametrize(("better", "worse", "part"), ORDER + FORMS, ids=lambda value: str(value))
def test_methods_stand_in_this_order(
    better: str, worse: str, part: float, divergences: dict[str, float]
) -> None:
    assert divergences[better] < part * divergences[worse], divergences


def quantized(
    method: str, root: Path, samples: int = 32, seed: int = 0, group_size: int = 128
) -> dict[str, torch.Tensor]:
    """The weights that the quantized demo model stands for, float32."""
    quantize_checkpoint(
        DEMO,
        root / "out",
        root / "work",
        config={
            "method": method,
            "group_size": group_size,
            "calibration": {"samples": samples, "seq_len": LENGTH, "seed": seed},
        },
        calibration_text=TextFiles.local(DEMO / "calibration.jsonl"),
    )
    checkpoint = QuantizedCheckpoint.open(root / "out")
    weights = {}
    for name in source().state_dict():
        linear = checkpoint.linear(name.removesuffix(".weight")) if "_proj.weight" in name else None
        if isinstance(linear, QuantizedLinear):
            weights[name] = linear.dequantize()
        elif name in checkpoint.checkpoint:
            weights[name] = checkpoint.read(name).float()
    return weights


def nearest() -> dict[str, torch.Tensor]:
    """The same with every weight rounded to nearest."""
    weights = source().state_dict()
    for name in weights:
        if "_proj.weight" in name:
            codes, scales = quantize_groups(weights[name], 128, torch.bfloat16)
            weights[name] = QuantizedLinear(codes, scales, bits=4).dequantize()
    return weights


@torch.inference_mode()
def divergence(weights: dict[str, torch.Tensor]) -> float:
    """Mean KL(source || model of these weights) over the held-out text, in nats a token."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    model.load_state_dict(weights, strict=False)
    total = 0.0
    for tokens, expected in zip(heldout().split(4), source_logits(), strict=True):
        found = model(tokens).logits.log_softmax(dim=-1)
        total += float(torch.nn.functional.kl_div(found, expected, reduction="sum", log_target=True))
    return total / heldout().numel()


@cache
def source() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@cache
def heldout() -> torch.Tensor:
    """int64 [SEQUENCES, LENGTH]."""
    ids = (
        Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        .encode((DEMO / "heldout.txt").read_text("utf-8"))
        .ids
    )
    return torch.tensor(ids[: SEQUENCES * LENGTH]).view(SEQUENCES, LENGTH)


@cache
@torch.inference_mode()
def source_logits() -> list[torch.Tensor]:
    """Log probabilities of the source model, four sequences each."""
    return [source()(tokens).logits.log_softmax(dim=-1) for tokens in heldout().split(4)]
