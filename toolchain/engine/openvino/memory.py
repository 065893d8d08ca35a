"""How much memory the weights of a checkpoint take when OpenVINO's CPU plugin runs their IR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from toolchain.engine.openvino.properties import Precision
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import EMBEDDING, LM_HEAD
from toolchain.model.spec import load_spec

F32_LAYOUTS = 2.5
"""Copies of int4 codes in f32 execution: the plugin packs them anew for wider batches, and keeps them all."""


@dataclass(frozen=True)
class ResidentBytes:
    """Memory of the weights at run time, without cache, activations and libraries.

    Args:
        private: what the plugin packs for its kernels. It must fit in memory.
        mapped: pages of the weights' file that it reads. The kernel drops them when it needs to.
    """

    private: int
    mapped: int


def resident_bytes_estimate(checkpoint_dir: Path, precision: Precision) -> ResidentBytes:
    """Estimate the memory of the weights of `checkpoint_dir`, plain or W4A16_AWQ.

    A plain matrix is packed as f32 (exact) or bf16 (fast), int4 stays int4, and the embedding's rows are read
    from the file. `fast` is meant for a CPU with bf16; others execute it in f32, like `exact`.
    """
    spec, checkpoint = load_spec(checkpoint_dir), Checkpoint.open(checkpoint_dir)
    element = 4 if precision == "exact" else 2
    head = EMBEDDING if spec.tie_word_embeddings else LM_HEAD
    private = mapped = 0
    for name in checkpoint.names:
        nbytes, count = checkpoint.location(name).nbytes, math.prod(checkpoint.shape(name))
        if checkpoint.dtype(name) == "U8" or name.endswith(".weight_scale"):
            private += int(nbytes * (F32_LAYOUTS if precision == "exact" else 1))
            mapped += nbytes
        elif name == EMBEDDING != head:
            mapped += nbytes if checkpoint.dtype(name) == "BF16" else 4 * count
        elif name == head or name.endswith("_proj.weight"):
            private += element * count
            mapped += 4 * count
    return ResidentBytes(private, mapped)
