"""The `deploy.tensorrt_llm` section: parameters of Triton's tensorrtllm backend, by their own names.

What a recipe says elsewhere (batching, scheduler, KV cache, chunked prefill) is not repeated here. Which
version knows which parameter is in `toolchain/data/triton_parameters.yaml`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolchain.recipe.section import Section

Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[str, Field(min_length=1, max_length=1000)]
Group = Annotated[tuple[Annotated[int, Field(ge=0, le=1023)], ...], Field(min_length=1, strict=False)]
Choice = Annotated[tuple[Annotated[int, Field(ge=0, le=1023)], ...], Field(min_length=1, strict=False)]
Type = Literal["FP32", "FP16", "BF16"]


class Draft(Section):
    """The second engine of draft-target speculative decoding, served as `tensorrt_llm_draft`."""

    gpt_model_path: Place = Field(
        description="The draft's engine directory where the server runs. It shares the target's vocabulary."
    )
    kv_cache_free_gpu_mem_fraction: Fraction | None = Field(
        default=None,
        description="As engine.kv_cache.free_gpu_mem_fraction, for the draft: of what the engine loaded "
        "first leaves free. null: the same as the target's.",
    )
    gpu_device_ids: tuple[Group, ...] | None = Field(
        default=None,
        strict=False,
        description="GPUs of the draft, as deploy.tensorrt_llm.gpu_device_ids. null: those of its ranks.",
    )


class TensorRTLLM(Section):
    """Parameters of Triton's tensorrtllm backend. null: the backend's own default."""

    mode: Literal["leader", "orchestrator"] = Field(
        default="leader",
        description="leader: mpirun starts one server process a rank, and rank 0 answers. orchestrator: one "
        "server process, whose workers it spawns; several models or instances of one need it.",
    )
    spawn_processes: bool = Field(
        default=True,
        description="orchestrator: the server spawns its workers. false: mpirun has started them, and "
        "participant_ids names them.",
    )
    max_queue_delay_microseconds: Count = Field(
        default=0, description="How long Triton may hold a request to hand over several at once."
    )
    max_beam_width: Positive | None = Field(
        default=None, description="Widest beam of a request; at most what the engine was built for."
    )
    exclude_input_in_output: bool = Field(
        default=True, description="Leave the prompt out of output_ids when a request does not say."
    )
    gpt_model_path: Place | None = Field(
        default=None,
        description="The engine directory where the server runs. null: inside the repository, relative to "
        "its root, where the server must then be started (as what `llmbuild launch` writes does).",
    )
    encoder_model_path: Place | None = Field(
        default=None, description="Encoder's engine directory of an encoder-decoder model."
    )
    max_attention_window_size: tuple[Positive, ...] | None = Field(
        default=None, strict=False, description="Sliding window of each layer, in tokens; cycled."
    )
    sink_token_length: Count | None = Field(
        default=None, description="First tokens that the sliding window always keeps."
    )
    cross_kv_cache_fraction: Fraction | None = Field(
        default=None, description="Encoder-decoder only: part of the KV cache for cross attention."
    )
    kv_cache_host_memory_bytes: Count | None = Field(
        default=None, description="Host memory that takes blocks which the GPU has no room for, in bytes."
    )
    kv_cache_onboard_blocks: bool | None = Field(
        default=None, description="Copy such blocks back to the GPU before they are used."
    )
    enable_trt_overlap: bool | None = Field(
        default=None, description="Overlap host work with the GPU's; experimental."
    )
    cancellation_check_period_ms: Positive | None = Field(
        default=None, description="How often it looks for clients that have gone away, in ms."
    )
    stats_check_period_ms: Positive | None = Field(
        default=None, description="How often metrics are refreshed, in ms."
    )
    recv_poll_period_ms: Count | None = Field(
        default=None, description="Wait between looks for new requests on other ranks, in ms; 0: none."
    )
    iter_stats_max_iterations: Count | None = Field(
        default=None, description="Iterations whose statistics are kept."
    )
    request_stats_max_iterations: Count | None = Field(
        default=None, description="Iterations whose statistics by request are kept."
    )
    normalize_log_probs: bool | None = Field(
        default=None, description="Divide beam scores by length. Upstream's default is true."
    )
    gpu_device_ids: tuple[Group, ...] | None = Field(
        default=None,
        strict=False,
        description="GPUs of each instance, as [[0, 1], [2, 3]] for two instances of tensor parallelism 2. "
        "Several instances need the mode orchestrator.",
    )
    participant_ids: tuple[Count, ...] | None = Field(
        default=None, strict=False, description="MPI ranks that work for the model, without spawn_processes."
    )
    num_nodes: Positive | None = Field(default=None, description="Nodes that the ranks are spread over.")
    lora_cache_optimal_adapter_size: Positive | None = Field(
        default=None, description="Adapter size (LoRA rank) that the cache is laid out for."
    )
    lora_cache_max_adapter_size: Positive | None = Field(
        default=None, description="Largest adapter size that the cache takes."
    )
    lora_cache_gpu_memory_fraction: Fraction | None = Field(
        default=None, description="Part of the free GPU memory for LoRA adapters."
    )
    lora_cache_host_memory_bytes: Count | None = Field(
        default=None, description="Host memory for LoRA adapters, in bytes."
    )
    lora_prefetch_dir: Place | None = Field(
        default=None, description="Directory of adapters that are loaded at the start."
    )
    decoding_mode: (
        Literal[
            "auto",
            "top_k",
            "top_p",
            "top_k_top_p",
            "beam_search",
            "medusa",
            "redrafter",
            "lookahead",
            "eagle",
        ]
        | None
    ) = Field(default=None, description="How tokens are chosen. null: by max_beam_width.")
    executor_worker_path: Place = Field(
        default="/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        description="The program that the mode orchestrator spawns.",
    )
    lookahead_window_size: Positive | None = Field(default=None, description="Of lookahead decoding.")
    lookahead_ngram_size: Positive | None = Field(default=None, description="Of lookahead decoding.")
    lookahead_verification_set_size: Positive | None = Field(
        default=None, description="Of lookahead decoding."
    )
    medusa_choices: tuple[Choice, ...] | None = Field(
        default=None, strict=False, description="Medusa's tree, as [[0], [0, 0], [1]]."
    )
    eagle_choices: tuple[Choice, ...] | None = Field(
        default=None, strict=False, description="EAGLE's tree, as medusa_choices."
    )
    gpu_weights_percent: Fraction | None = Field(
        default=None, description="Part of the weights on the GPU, of an engine built with weight streaming."
    )
    enable_context_fmha_fp32_acc: bool | None = Field(
        default=None, description="Accumulate prompt attention in float32."
    )
    multi_block_mode: bool | None = Field(
        default=None, description="Share one sequence's attention among blocks of the GPU."
    )
    cuda_graph_mode: bool | None = Field(default=None, description="Replay decoding steps as CUDA graphs.")
    cuda_graph_cache_size: Count | None = Field(default=None, description="CUDA graphs that are kept.")
    speculative_decoding_fast_logits: bool | None = Field(
        default=None,
        description="Hand the draft's logits over between processes directly; needs the mode orchestrator "
        "without spawn_processes.",
    )
    guided_decoding_backend: Literal["xgrammar"] | None = Field(
        default=None,
        description="xgrammar: requests may name a grammar for their answer; its tokenizer info is made from "
        "tokenizer.json.",
    )
    xgrammar_tokenizer_info_path: Place | None = Field(
        default=None, description="Tokenizer info of your own where the server runs. null: the one made here."
    )
    logits_datatype: Type = Field(default="FP32", description="Of draft_logits and the logits returned.")
    encoder_input_features_data_type: Type = Field(default="FP16", description="Of encoder_input_features.")
    prompt_embedding_table_data_type: Type = Field(default="FP16", description="Of prompt_embedding_table.")
    draft: Draft | None = Field(
        default=None,
        description="Draft-target speculative decoding through tensorrt_llm_bls: requests with "
        "num_draft_tokens use it. The target's engine must be built with draft_tokens_external.",
    )
