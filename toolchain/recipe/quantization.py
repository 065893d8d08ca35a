"""The `quantization` section: how the weights are made small, and what calibrates that."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolchain.recipe.section import Dataset, Section, Size
from toolchain.recipe.text import Text

Method = Literal[
    "none",
    "awq",
    "gptq",
    "awq_gptq",
    "fp8",
    "fp8_rowwise",
    "int8_sq",
    "int8_wo",
    "int4_wo",
    "w4a8_awq",
    "nvfp4",
]
GroupSize = Literal[32, 64, 128]
Form = Literal["auto", "modelopt", "gptq", "awq", "compressed-tensors"]

CALIBRATED_METHODS: frozenset[str] = frozenset(
    {"awq", "gptq", "awq_gptq", "fp8", "int8_sq", "w4a8_awq", "nvfp4"}
)
"""Methods that look at activations, and so cannot work without calibration text."""

VLLM_MODELOPT_METHODS: frozenset[str] = frozenset({"fp8", "fp8_rowwise", "nvfp4"})
"""What vLLM reads in ModelOpt's form; of integer weights it reads the other forms only."""

READ_BY: dict[str, frozenset[str]] = {
    "group_size": frozenset({"awq", "gptq", "awq_gptq", "w4a8_awq", "int4_wo"}),
    "symmetric": frozenset({"awq", "gptq", "awq_gptq", "int4_wo"}),
    "clip": frozenset({"awq", "gptq", "awq_gptq", "w4a8_awq"}),
    "act_order": frozenset({"gptq", "awq_gptq"}),
    "damp": frozenset({"gptq", "awq_gptq"}),
    "alpha": frozenset({"int8_sq"}),
}
"""The methods that read each field; for the others it means nothing."""


class Calibration(Text):
    """The text that stands for real traffic while scales are chosen."""

    dataset: Dataset = Field(
        description="The calibration text: file:PATH, relative to the recipe file (plain text, or .jsonl, "
        ".json or .parquet with `text` or `messages` in each record), or hf:OWNER/NAME, a data set of the "
        "Hugging Face Hub. Use text like that which the model will see. Whether it exists is found out by "
        "`build`, not by `validate`."
    )
    samples: int = Field(
        default=128,
        ge=1,
        le=65_536,
        description="Number of sequences packed from documents that are drawn from the data set. Time grows "
        "with it; quality seldom improves beyond 128.",
    )
    seq_len: int = Field(default=512, ge=1, le=131_072, description="Length of each sequence, in tokens.")
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed of the draw of documents. The same recipe and seed give the same bytes.",
    )


class Override(Section):
    """Another method for some of the linears."""

    modules: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        description="A linear's full name, or a pattern in which * matches any characters, as in "
        "*.mlp.down_proj. One that matches nothing is an error."
    )
    method: Method = Field(description="How they are quantized; none keeps the source precision.")
    group_size: GroupSize | None = Field(
        default=None, description="Their group size. null: quantization.group_size."
    )


class Search(Section):
    """The choice of a method for each group of linears, so that the model keeps to a budget."""

    candidates: Annotated[tuple[Method, ...], Field(min_length=2, max_length=8)] = Field(
        strict=False,
        description="The methods to choose from. none among them lets the most sensitive linears keep the "
        "source precision.",
    )
    max_bits: Annotated[float, Field(ge=1, le=32)] | None = Field(
        default=None,
        description="Budget: bits that a weight of the searched linears takes on average, scales included.",
    )
    max_size: Size | None = Field(
        default=None,
        description="Budget: the whole checkpoint's weights, with embedding and output layer, as 5GiB.",
    )
    max_kl: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Budget: mean KL divergence from the source in nats, measured on the text of gates.kl. "
        "The smallest model that keeps to it is looked for.",
    )


class Quantization(Section):
    """How weights, and possibly activations and KV cache, are quantized."""

    method: Literal[Method, "mixed", "auto"] = Field(
        default="none",
        description="none keeps the source precision. awq, gptq and awq_gptq store 4-bit weights and "
        "compute in 16 bits: smallest, and fastest at low concurrency. They cost the same to serve: awq "
        "scales the input channels that matter, gptq rounds with error feedback, awq_gptq does both. "
        "w4a8_awq computes in fp8. fp8 and nvfp4 quantize activations too: best at high concurrency on "
        "GPUs that have them; fp8_rowwise has a scale for each output channel and each token. int8_sq is "
        "SmoothQuant for GPUs without fp8. int8_wo and int4_wo round weights to nearest, without "
        "calibration. mixed takes the method of each group of linears from search. auto: as `plan` advises "
        "for the GPU and max_batch_size; the build records the method.",
    )
    group_size: GroupSize = Field(
        default=128,
        description="Weights along the input dimension that share one scale (awq, gptq, awq_gptq, int4_wo, "
        "w4a8_awq). Smaller is more exact and larger on disk; 32 runs on the openvino flavour only.",
    )
    symmetric: bool = Field(
        default=True,
        description="4-bit codes around zero (awq, gptq, awq_gptq, int4_wo). false adds a zero point to each "
        "group: a little more exact, for openvino and vllm; TensorRT-LLM has no kernels for it.",
    )
    clip: bool = Field(
        default=True,
        description="Search for the range of each group of 4-bit weights (awq, gptq, awq_gptq, w4a8_awq). "
        "false takes the largest weight: faster, and less exact.",
    )
    act_order: bool = Field(
        default=True,
        description="gptq and awq_gptq: round the columns with the largest inputs first. It costs nothing to "
        "serve, as groups stay consecutive channels.",
    )
    damp: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.01,
        description="gptq and awq_gptq: what is added to the diagonal of the inputs' Gram matrix, as a part "
        "of its mean. Raise it when there is little calibration text.",
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="int8_sq: how much of the activations' range moves into the weights, from 0 to 1. "
        "null: searched for each group of linears.",
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
        description="Modules left unquantized; * matches any characters, as in model.layers.0.*. lm_head "
        "and the embedding always are.",
    )
    overrides: tuple[Override, ...] = Field(
        default=(),
        strict=False,
        description="Other methods for some linears; the first that matches a linear wins. What exclude "
        "matches stays unquantized.",
    )
    search: Search | None = Field(
        default=None,
        description="How method mixed chooses. Give candidates and exactly one of max_bits, max_size and "
        "max_kl.",
    )
    calibration: Calibration | None = Field(
        default=None,
        description="The calibration text. Every method but none, fp8_rowwise, int8_wo and int4_wo needs it, "
        "and so does an int8 KV cache.",
    )
    format: Form = Field(
        default="auto",
        description="File form of the checkpoint. TensorRT-LLM reads modelopt alone, openvino all, and vLLM "
        "all but integer weights in modelopt. auto: modelopt, or compressed-tensors where that does not do.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where quantization computes. auto: a GPU if there is one. The device is part of the "
        "result: CPU and GPU agree in all but a few codes of ten thousand.",
    )
    hidden_states_memory: Size | None = Field(
        default=None,
        description="Host memory that the calibration set's activations may take, as 16GiB; beyond it they "
        "are kept on the disk. null: no limit. The result is the same.",
    )
    provider: Literal["native", "modelopt"] = Field(
        default="native",
        description="Who quantizes: llmbuild itself, one decoder layer in memory at a time (native), or "
        "NVIDIA ModelOpt with the whole model in memory (modelopt).",
    )

    @property
    def methods(self) -> frozenset[str]:
        """Every method that some linear may get, but none."""
        found: set[str] = {self.method, *(override.method for override in self.overrides)}
        if self.search is not None:
            found.update(self.search.candidates)
        return frozenset(found - {"none", "mixed", "auto"})

    @property
    def calibrates(self) -> bool:
        """Whether the calibration text has a part in the result."""
        looks = bool(self.methods & CALIBRATED_METHODS) or self.search is not None
        return self.calibration is not None and (looks or self.kv_cache != "auto")

    def file_form(self, flavour: str) -> str:
        """`format` with auto decided for an engine flavour."""
        if self.format != "auto":
            return self.format
        foreign = flavour == "vllm" and not self.methods <= VLLM_MODELOPT_METHODS
        return "compressed-tensors" if foreign or not self.symmetric else "modelopt"
