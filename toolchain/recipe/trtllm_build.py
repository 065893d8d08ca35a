"""The section `engine.build`: how `trtllm-build` compiles engines, in TensorRT-LLM's own words.

null leaves a flag out, so that trtllm-build decides. `data/build_flags.yaml` says which version knows which
flag; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolchain.recipe.section import LocalPath, Section, Slug

Executor = Literal["local", "docker", "podman", "slurm", "kubernetes"]
PluginDtype = Literal["auto", "float16", "float32", "bfloat16", "int32", "disable"]
Fp8Plugin = Literal["fp8", "disable"]

Count = Annotated[int, Field(ge=1, le=16_777_216)]
CountOrNone = Annotated[int, Field(ge=0, le=16_777_216)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]


class TrtllmBuild(Section):
    """Flags of trtllm-build beyond those that other fields give, and where it runs."""

    executor: Executor = Field(
        default="local",
        description="Where trtllm-build runs. local: the one on PATH. docker, podman: in NVIDIA's "
        "container of engine.version. slurm, kubernetes: `build` writes a job script and stops; submit it "
        "and build again.",
    )
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}$")] | None = Field(
        default=None,
        description="Container to build in, unless local; it must hold engine.version. null: the newest "
        "Triton container of that version, which is also what serves the engines.",
    )
    volume_claim: Slug | None = Field(
        default=None,
        description="kubernetes only: the PersistentVolumeClaim that is the store. null: the node's "
        "directory of the same path.",
    )
    timeout_minutes: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Longest time that trtllm-build may take. null: no limit."
    )
    workers: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="Ranks built at the same time, one on a GPU each. Host memory grows with it. null: "
        "all, as far as there are GPUs.",
    )
    input_timing_cache: LocalPath | None = Field(
        default=None,
        description="Timing cache to start from, such as artifacts/NAME/engine/model.cache of an earlier "
        "build: faster, and the same kernels are chosen again. A path that begins with ./ ../ / or ~/.",
    )
    max_input_len: Count | None = Field(
        default=None,
        description="Longest prompt, in tokens. Without effect while remove_input_padding and "
        "context_fmha are on; engine.max_seq_len limits prompt and answer together.",
    )
    max_beam_width: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="Widest beam search that a request may ask for. null: 1, none."
    )
    opt_num_tokens: Count | None = Field(
        default=None,
        description="Tokens in one step that kernels are chosen for; what a busy server sees. null: "
        "max_batch_size times max_beam_width. Not with multiple_profiles.",
    )
    max_prompt_embedding_table_size: CountOrNone | None = Field(
        default=None, description="Rows of a prompt-tuning table; above 0 turns prompt tuning on. null: 0."
    )
    profiling_verbosity: Literal["layer_names_only", "detailed", "none"] | None = Field(
        default=None,
        description="What the engine says of its layers. detailed: which kernels were chosen, for "
        "inspection. null: layer_names_only.",
    )
    strip_plan: bool = Field(
        default=False,
        description="Leave weights out of the engine that a refit puts back from the checkpoint.",
    )
    weight_sparsity: bool = Field(
        default=False, description="Use 2:4 sparse kernels. Only for weights that were pruned that way."
    )
    weight_streaming: bool = Field(
        default=False,
        description="Let weights stay in host memory and stream in: for models larger than the GPU, at a "
        "price.",
    )
    fast_build: bool = Field(
        default=False,
        description="Build faster and run a little slower. Not for weight-only int4 and int8 without "
        "plugins.",
    )
    monitor_memory: bool = Field(default=False, description="Write trtllm-build's memory use into its log.")
    enable_debug_output: bool = Field(
        default=False, description="Mark inner tensors as outputs, for debugging."
    )
    logits_dtype: Literal["float16", "float32"] | None = Field(
        default=None, description="Type of the logits. null: as the checkpoint says."
    )
    gather_context_logits: bool = Field(
        default=False, description="Let requests ask for the prompt's logits. Not with max_draft_len above 0."
    )
    lora_dir: tuple[LocalPath, ...] = Field(
        default=(),
        max_length=64,
        strict=False,
        description="Directories of LoRA weights; the first says which modules and rank. Needs lora_plugin.",
    )
    lora_ckpt_source: Literal["hf", "nemo"] | None = Field(
        default=None, description="Form of the LoRA weights. null: hf."
    )
    lora_target_modules: tuple[Word, ...] = Field(
        default=(),
        max_length=64,
        strict=False,
        description="Modules that take LoRA, in TensorRT-LLM's names (attn_q, attn_v, ...). Needs "
        "lora_plugin.",
    )
    max_lora_rank: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Largest rank of a LoRA module; decides workspace. null: 64."
    )
    speculative_decoding_mode: (
        Literal["draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle"]
        | None
    ) = Field(
        default=None,
        description="Speculative decoding that the engine is built for, as the target model. null: none.",
    )
    max_draft_len: CountOrNone | None = Field(
        default=None, description="Most draft tokens in a step. Needs speculative_decoding_mode. null: 0."
    )
    gpt_attention_plugin: PluginDtype | None = Field(
        default=None, description="The attention kernels; in-flight batching needs them. null: auto."
    )
    gemm_plugin: (
        Literal["auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"] | None
    ) = Field(
        default=None,
        description="cuBLASLt for matrix products; without it TensorRT's own. fp8 is for fp8 checkpoints "
        "at small batches. null: nvfp4 for method nvfp4, or else auto.",
    )
    gemm_swiglu_plugin: Fp8Plugin | None = Field(
        default=None,
        description="Gate, up and SwiGLU of an MLP in one kernel: fp8 on Hopper alone. null: disable.",
    )
    fp8_rowwise_gemm_plugin: PluginDtype | None = Field(
        default=None, description="Kernels for fp8_rowwise. null: as the checkpoint needs them."
    )
    lora_plugin: PluginDtype | None = Field(
        default=None, description="LoRA, with its type; auto is the model's. null: disable."
    )
    dora_plugin: bool | None = Field(default=None, description="DoRA beside LoRA. null: off.")
    moe_plugin: PluginDtype | None = Field(
        default=None, description="Kernels for mixtures of experts. null: auto."
    )
    nccl_plugin: PluginDtype | None = Field(
        default=None, description="Communication between GPUs. null: auto; off on one GPU."
    )
    low_latency_gemm_plugin: Fp8Plugin | None = Field(
        default=None, description="Matrix products for very small batches: fp8 alone. null: disable."
    )
    low_latency_gemm_swiglu_plugin: Fp8Plugin | None = Field(
        default=None, description="gemm_swiglu_plugin for very small batches. null: disable."
    )
    gemm_allreduce_plugin: Literal["float16", "bfloat16", "disable"] | None = Field(
        default=None, description="Matrix product and all-reduce in one kernel. null: disable."
    )
    context_fmha: bool | None = Field(
        default=None, description="Fused attention for prompts. Off only to look for errors. null: on."
    )
    remove_input_padding: bool | None = Field(
        default=None, description="Pack prompts without padding; in-flight batching needs it. null: on."
    )
    tokens_per_block: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="Tokens in a block of the paged KV cache. null: 32; 64 before 0.19.",
    )
    use_paged_context_fmha: bool | None = Field(
        default=None,
        description="Attention of prompts over the paged cache; engine.kv_cache.reuse and "
        "engine.chunked_prefill need it. null: on with a paged cache.",
    )
    use_fp8_context_fmha: bool | None = Field(
        default=None,
        description="Attention of prompts in fp8, where weights and KV cache are fp8. null: as "
        "trtllm-build has it.",
    )
    fuse_fp4_quant: bool | None = Field(
        default=None, description="Rounding to nvfp4 within the attention kernel. null: off."
    )
    multiple_profiles: bool | None = Field(
        default=None,
        description="Choose kernels for several sizes of a step: builds longer, often runs faster. null: "
        "off.",
    )
    norm_quant_fusion: bool | None = Field(
        default=None, description="Norm and the rounding after it in one kernel. null: off."
    )
    reduce_fusion: bool | None = Field(
        default=None, description="All-reduce, residual sum and norm in one kernel. null: off."
    )
    user_buffer: bool | None = Field(
        default=None, description="All-reduce without copies: fp8 Llama, with reduce_fusion. null: off."
    )
    use_fused_mlp: bool | None = Field(
        default=None, description="Gate and up of an MLP as one product; fp8 and unquantized. null: on."
    )
    pp_reduce_scatter: bool | None = Field(
        default=None, description="A faster pipeline of experts: Mixtral alone. null: off."
    )
