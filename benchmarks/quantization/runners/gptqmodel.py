"""GPTQModel: GPTQ, groups in place ("" : ordered by group) or in the order of activations ("desc_act")."""

from __future__ import annotations

import os
from typing import Any

# Its default on a machine of two cores is one worker, with which its loader refuses to start.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))

import torch
from gptqmodel import GPTQModel
from gptqmodel.quantization import GPTQConfig

from benchmarks.quantization.runners.job import Job, run


def load(job: Job) -> Any:
    """The model, which GPTQModel keeps on the disk in part."""
    order = {"desc_act": True, "act_group_aware": False} if job.variant == "desc_act" else {"desc_act": False}
    config = GPTQConfig(bits=4, group_size=job.group_size, device="cpu", **order)
    return GPTQModel.load(job.model, config, dtype=getattr(torch, job.dtype))


def quantize(job: Job, model: Any) -> None:
    """In place."""
    rows = [row[None] for batch in job.batches() for row in batch]
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    model.quantize(data, batch_size=len(job.batches()[0]))


def save(job: Job, model: Any) -> None:
    """GPTQ v1."""
    model.save(job.out)


if __name__ == "__main__":
    run(load, quantize, save)
