"""The `engine` and `parallelism` sections: what runs the model, and within which limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolchain.recipe.section import Section, Slug
from toolchain.recipe.speculative import Speculative
from toolchain.recipe.trtllm_build import TrtllmBuild

Flavour = Literal["openvino", "tensorrt", "pytorch", "vllm"]
Precision = Literal["exact", "fast"]
KvCacheDtype = Literal["auto", "f32", "f16", "u8"]

MAX_TOKENS = 16_777_216
"""No published context, batch or cache comes near this; a larger number is a slip of the keyboard."""

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Ways = Annotated[int, Field(ge=1, le=64)] | Literal["auto"]


class Parallelism(Section):
    """Over how many GPUs one copy of the model is spread."""

    tensor: Ways = Field(
        default=1,
        description="GPUs that share every layer (tensor_parallel). Use within one node with NVLink, and "
        "only when the model does not fit one GPU or latency demands it. auto: as `plan` advises; the build "
        "records the number.",
    )
    pipeline: Ways = Field(
        default=1,
        description="Groups of layers on different GPUs (pipeline_parallel). Use across nodes or without "
        "a fast link. auto: as for tensor.",
    )
    gpus: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="GPUs that there are; what auto may spread a copy over. null: 8, as in one node.",
    )
    moe_tensor: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="tensorrt only, models with experts: GPUs that share every expert (moe_tp_size). null: "
        "tensor / moe_expert.",
    )
    moe_expert: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="tensorrt only, models with experts: groups of GPUs with experts of their own "
        "(moe_ep_size). null: tensor / moe_tensor, so 1 where neither is set.",
    )
    use_parallel_embedding: bool = Field(
        default=True,
        description="tensorrt only: split the embedding table over the GPUs that share a layer, too. false: "
        "each has all of it, which saves one exchange a step.",
    )
    embedding_sharding_dim: Literal[0, 1] = Field(
        default=0,
        description="tensorrt only: how the embedding table is split. 0: by tokens; 1: by channels.",
    )

    @property
    def tp_size(self) -> int:
        """`tensor`, once `auto` is resolved (`toolchain.plan.plan.make_plan` does that)."""
        return _resolved(self.tensor, "tensor")

    @property
    def pp_size(self) -> int:
        """`pipeline`, once `auto` is resolved."""
        return _resolved(self.pipeline, "pipeline")

    @property
    def world_size(self) -> int:
        """Number of ranks: tensor x pipeline, once `auto` is resolved."""
        return self.tp_size * self.pp_size


def _resolved(ways: int | Literal["auto"], field: str) -> int:
    if ways == "auto":
        raise ValueError(f"parallelism.{field} is auto: use the recipe that the plan resolved")
    return ways


class KvCache(Section):
    """The memory of past tokens: how it is kept, and how much of it there is."""

    paged: bool = Field(
        default=True, description="Keep the cache in blocks. In-flight batching and block reuse need it."
    )
    reuse: bool = Field(
        default=True,
        description="Reuse blocks of equal prompt beginnings (enable_kv_cache_reuse): system prompts cost"
        " once.",
    )
    free_gpu_mem_fraction: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Part of the GPU memory left after loading that the cache may take "
        "(kv_cache_free_gpu_mem_fraction). Lower it when something else shares the GPU.",
    )
    max_tokens: Tokens | None = Field(
        default=None,
        description="Capacity of the cache in tokens (max_tokens_in_paged_kv_cache). null: from "
        "free_gpu_mem_fraction on a GPU, enough for max_batch_size sequences of max_seq_len "
        "on a CPU.",
    )
    dtype: KvCacheDtype = Field(
        default="auto",
        description="openvino only: precision of the cache. auto follows engine.precision; u8 is a "
        "quarter of f32 and costs some accuracy. On a GPU, use quantization.kv_cache.",
    )


class Engine(Section):
    """Which runtime serves the model, and the limits it is built for."""

    flavour: Flavour = Field(
        default="openvino",
        description="openvino: any x86 CPU. tensorrt: compiled engines, NVIDIA GPU, TensorRT-LLM 0.17 to "
        "1.2. pytorch: TensorRT-LLM's LLM API, NVIDIA GPU, 1.0 and later. vllm: NVIDIA GPU, "
        "Triton's vLLM backend.",
    )
    version: (
        Annotated[
            str,
            Field(
                pattern=r"^[0-9]+(\.[0-9]+){1,3}([a-z0-9.+-]*)$",
                json_schema_extra={"patternErrorMessage": 'a version in quotes, such as "1.2.1"'},
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="Version of the runtime that will serve the model; an engine runs only on the version"
        " that built it. null: the version that llmbuild is tested with.",
    )
    precision: Precision = Field(
        default="fast",
        description="openvino only. fast: the plugin's best arithmetic for serving (16-bit execution and "
        "8-bit activations where the CPU has them). exact: fp32 execution of exactly the "
        "quantized weights, for checks.",
    )
    max_batch_size: int = Field(
        default=64,
        ge=1,
        le=65_536,
        description="Requests that run at the same time. Each needs KV cache; more than the traffic needs"
        " wastes memory.",
    )
    max_seq_len: Tokens | None = Field(
        default=None,
        description="Longest prompt and answer together, in tokens. null: the model's "
        "max_position_embeddings.",
    )
    max_num_tokens: Tokens = Field(
        default=2048,
        description="Tokens computed in one step over all requests. Larger favours long prompts, smaller "
        "keeps the gap between streamed tokens short.",
    )
    kv_cache: KvCache = Field(default_factory=KvCache, description="The KV cache.")
    chunked_prefill: bool = Field(
        default=True,
        description="Compute long prompts in pieces of max_num_tokens between the steps of other requests"
        " (enable_chunked_context).",
    )
    stream_interval: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="Tokens per streamed response, after the first. Raise it when the server spends its time "
        "on responses instead of tokens. null: 1 on a GPU; on openvino 1 to 8, as many as keep the cost of "
        "responses to about 5 % of the CPU's time, unless that would take longer than 150 ms.",
    )
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="openvino only: CPU threads of the engine. null: all physical cores."
    )
    gpu: Slug | None = Field(
        default=None,
        description="GPU to plan for, as h100, h200, l40s or a100-80gb. null: the one in this machine. The "
        "openvino flavour has no use for it.",
    )
    build: TrtllmBuild = Field(
        default_factory=TrtllmBuild,
        description="tensorrt only: how trtllm-build compiles the engines, and where.",
    )
    guided_decoding: bool = Field(
        default=False,
        description="openvino only: requests may ask for an answer that matches a JSON schema, a regular "
        "expression or a grammar. tensorrt has deploy.tensorrt_llm.guided_decoding_backend for it, pytorch "
        "and vllm deploy.engine_args.",
    )
    speculative: Speculative | None = Field(
        default=None,
        description="openvino only: speculative decoding; null: off. tensorrt has engine.build and "
        "deploy.tensorrt_llm.draft for it, pytorch and vllm deploy.engine_args.",
    )
