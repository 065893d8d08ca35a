"""nvidia-modelopt: `mtq.quantize` on a model of transformers, `export_hf_checkpoint`."""

from __future__ import annotations

import copy
from typing import Any

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint

from benchmarks.quantization.runners.job import Job, run

_ALGORITHMS: dict[str, Any] = {
    "awq": {"method": "awq_lite", "alpha_step": 0.1},
    "awq_full": {"method": "awq_full", "alpha_step": 0.1},
    "gptq": {"method": "gptq", "layerwise": {"enable": True}},
}


def load(job: Job) -> Any:
    """The whole model, as ModelOpt wants it."""
    return transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=job.dtype).eval()


def quantize(job: Job, model: Any) -> None:
    """In place."""
    batches = job.batches()

    @torch.inference_mode()
    def forward(module: Any) -> None:
        for batch in batches:
            module(batch)

    mtq.quantize(model, _config(job), forward)


def save(job: Job, model: Any) -> None:
    """ModelOpt's unified form."""
    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=job.out)


def _config(job: Job) -> dict[str, Any]:
    presets: dict[str, dict[str, Any]] = {"fp8": mtq.FP8_DEFAULT_CFG, "int8_sq": mtq.INT8_SMOOTHQUANT_CFG}
    if job.method in presets:
        return presets[job.method]
    config: dict[str, Any] = copy.deepcopy(mtq.INT4_AWQ_CFG)
    for entry in config["quant_cfg"]:
        blocks = (entry.get("cfg") or {}).get("block_sizes")
        if blocks:
            blocks[-1] = job.group_size
    config["algorithm"] = _ALGORITHMS[job.variant or job.method]
    return config


if __name__ == "__main__":
    run(load, quantize, save)
