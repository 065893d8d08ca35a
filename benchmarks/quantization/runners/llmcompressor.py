"""llm-compressor: `oneshot` on a model of transformers, saved as compressed-tensors."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch.utils.data import DataLoader

from benchmarks.quantization.runners.job import Job, run

if not torch.accelerator.is_available():
    # AWQ pins memory for copies to a GPU, and fails where there is none (0.14.0.1). Nothing else hangs on it.
    IntermediatesCache.pin_memory = lambda *arguments, **options: None


def load(job: Job) -> Any:
    """The whole model."""
    return transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=job.dtype).eval()


def quantize(job: Job, model: Any) -> None:
    """In place. The batches are those of the job: the loader hands out one at a time."""
    rows = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in job.batches()]
    oneshot(
        model=model,
        processor=transformers.AutoTokenizer.from_pretrained(job.model),
        dataset=DataLoader(rows, batch_size=None),  # type: ignore[arg-type]
        num_calibration_samples=len(rows),
        recipe=_recipe(job),
    )


def save(job: Job, model: Any) -> None:
    """Compressed."""
    model.save_pretrained(job.out, save_compressed=True)


def _recipe(job: Job) -> list[Any]:
    common: dict[str, Any] = {"ignore": ["lm_head"]}
    if job.method == "fp8":
        return [QuantizationModifier(targets="Linear", scheme="FP8", **common)]
    if job.method == "int8_sq":
        weights = QuantizationArgs(num_bits=8, strategy="channel", symmetric=True)
        inputs = QuantizationArgs(num_bits=8, strategy="tensor", symmetric=True, dynamic=False)
        groups = {
            "group_0": QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
        }
        return [
            SmoothQuantModifier(smoothing_strength=0.5),
            QuantizationModifier(config_groups=groups, **common),
        ]
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=job.group_size, symmetric=True)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    rounding = QuantizationModifier if job.method == "awq" else GPTQModifier
    scaling = [AWQModifier()] if job.method != "gptq" else []
    return [*scaling, rounding(config_groups=groups, **common)]


if __name__ == "__main__":
    run(load, quantize, save)
