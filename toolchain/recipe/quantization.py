"""The `quantization` section: how the weights are made small, and what calibrates that."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toolchain.recipe.section import Dataset, Section

Method = Literal[
    "none", "awq", "gptq", "awq_gptq", "fp8", "int8_sq", "int8_wo", "int4_wo", "w4a8_awq", "nvfp4"
]

CALIBRATED_METHODS: frozenset[Method] = frozenset(
    {"awq", "gptq", "awq_gptq", "fp8", "int8_sq", "w4a8_awq", "nvfp4"}
)
"""Methods that look at activations, and so cannot work without calibration text."""


class Calibration(Section):
    """The text that stands for real traffic while scales are chosen."""

    dataset: Dataset = Field(
        description="The calibration text: file:PATH, relative to the recipe file (plain text, or .jsonl "
        "with a `text` key in each object), or hf:OWNER/NAME, a data set of the Hugging Face "
        "Hub. Use text like that which the model will see. Whether it exists is found out by "
        "`build`, not by `validate`."
    )
    samples: int = Field(
        default=128,
        ge=1,
        le=65_536,
        description="Number of sequences taken from the data set. Time grows with it; quality seldom "
        "improves beyond 128.",
    )
    seq_len: int = Field(default=512, ge=1, le=131_072, description="Length of each sequence, in tokens.")
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed of the choice of sequences. The same recipe and seed give the same bytes.",
    )

    @property
    def file(self) -> Path | None:
        """The local file, or None for a data set of the Hub."""
        return Path(self.dataset.removeprefix("file:")) if self.dataset.startswith("file:") else None


class Quantization(Section):
    """How weights, and possibly activations and KV cache, are quantized."""

    method: Method = Field(
        default="none",
        description="none keeps the source precision. awq, gptq and awq_gptq store 4-bit weights and "
        "compute in 16 bits: smallest, and fastest at low concurrency. They cost the same to serve: awq "
        "scales the input channels that matter, gptq rounds with error feedback, awq_gptq does both. "
        "w4a8_awq computes in fp8. fp8 and nvfp4 quantize activations too: best at high concurrency on "
        "GPUs that have them. int8_sq is SmoothQuant for GPUs without fp8. int8_wo and int4_wo round "
        "weights to nearest, without calibration.",
    )
    group_size: Literal[32, 64, 128] = Field(
        default=128,
        description="Weights along the input dimension that share one scale (awq, gptq, awq_gptq, "
        "w4a8_awq). Smaller is more exact and larger on disk; 32 runs on the openvino flavour only.",
    )
    kv_cache: Literal["auto", "fp8", "int8"] = Field(
        default="auto",
        description="Precision of the KV cache on a GPU. auto keeps the compute precision; fp8 halves the"
        " cache and is the largest single gain of throughput on H100-class GPUs. On openvino,"
        " use engine.kv_cache.dtype instead.",
    )
    exclude: tuple[str, ...] = Field(
        default=("lm_head",),
        strict=False,  # YAML gives a list; its elements are still checked strictly
        description="Modules left unquantized; * matches any characters, as in model.layers.0.*.",
    )
    calibration: Calibration | None = Field(
        default=None,
        description="The calibration text. Needed by every method but none, int8_wo and int4_wo, and by "
        "an int8 KV cache.",
    )
    provider: Literal["native", "modelopt"] = Field(
        default="native",
        description="Who quantizes: llmbuild itself, one decoder layer in memory at a time (native), or "
        "NVIDIA ModelOpt with the whole model in memory (modelopt).",
    )
