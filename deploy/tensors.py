"""The tensors of TensorRT-LLM's `inflight_batcher_llm` repository: names, types, shapes, optionality.

Clients written for that repository find the same tensors here, whichever engine answers. Source: the
`config.pbtxt` templates of TensorRT-LLM 0.17 to 1.2. Variable dimensions are -1; the batch
dimension is not listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model.

    Attributes:
        name: as clients know it.
        type: Triton's name without TYPE_: INT32, FP32, STRING, ...
        dims: without the batch dimension.
        scalar: one value a batch row, which the model sees without the last dimension (`reshape: []`).
        ragged: requests of different lengths may be batched.
        optional: for inputs: a request may leave it out.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    scalar: bool = False
    ragged: bool = False
    optional: bool = True


def _scalars(kind: str, *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, kind, (1,), scalar=True) for name in names)


def _ragged(kind: str, dims: tuple[int, ...], *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, kind, dims, ragged=True) for name in names)


def _plain(kind: str, dims: tuple[int, ...], *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, kind, dims) for name in names)


def _required(kind: str, dims: tuple[int, ...], *names: str, scalar: bool = False) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, kind, dims, scalar=scalar, optional=False) for name in names)


ENGINE_INPUTS: tuple[Tensor, ...] = (
    *_ragged("INT32", (-1,), "input_ids"),
    *_ragged("FP16", (-1, -1), "encoder_input_features"),
    *_scalars("INT32", "encoder_output_lengths"),
    *_required("INT32", (1,), "input_lengths", "request_output_len", scalar=True),
    *_scalars("INT32", "num_return_sequences"),
    *_ragged("INT32", (-1,), "draft_input_ids", "decoder_input_ids"),
    *_scalars("INT32", "decoder_input_lengths"),
    *_ragged("FP32", (-1, -1), "draft_logits"),
    *_scalars("FP32", "draft_acceptance_threshold"),
    *_scalars("INT32", "end_id", "pad_id"),
    *_ragged("INT32", (2, -1), "stop_words_list", "bad_words_list"),
    *_ragged("FP32", (-1,), "embedding_bias"),
    *_scalars("INT32", "beam_width"),
    *_scalars("FP32", "temperature"),
    *_scalars("INT32", "runtime_top_k"),
    *_scalars("FP32", "runtime_top_p", "runtime_top_p_min", "runtime_top_p_decay"),
    *_scalars("INT32", "runtime_top_p_reset_ids"),
    *_scalars("FP32", "len_penalty"),
    *_scalars("BOOL", "early_stopping"),
    *_scalars("FP32", "repetition_penalty", "beam_search_diversity_rate"),
    *_scalars("FP32", "presence_penalty", "frequency_penalty"),
    *_scalars("INT32", "min_tokens"),
    *_scalars("UINT64", "seed"),
    *_scalars("BOOL", "return_log_probs", "return_context_logits", "return_generation_logits"),
    *_scalars("BOOL", "return_perf_metrics", "exclude_input_in_output", "stop", "streaming"),
    *_scalars("BOOL", "return_num_input_tokens", "return_num_output_tokens"),
    *_ragged("FP16", (-1, -1), "prompt_embedding_table"),
    *_ragged("UINT64", (-1,), "prompt_table_extra_ids"),
    *_scalars("INT32", "prompt_vocab_size"),
    *_ragged("BOOL", (-1, -1), "cross_attention_mask"),
    *_plain("FP32", (-1,), "mrope_rotary_cos_sin"),
    *_plain("INT64", (1,), "mrope_position_deltas"),
    *_scalars("UINT64", "lora_task_id"),
    *_ragged("FP16", (-1, -1), "lora_weights"),
    *_ragged("INT32", (-1, 3), "lora_config"),
    *_ragged("UINT8", (-1,), "context_phase_params"),
    *_ragged("BOOL", (1,), "skip_cross_attn_blocks"),
    *_ragged("INT32", (-1,), "retention_token_range_starts", "retention_token_range_ends"),
    *_ragged("INT32", (-1,), "retention_token_range_priorities", "retention_token_range_durations_ms"),
    *_ragged("INT32", (1,), "retention_decode_priority", "retention_decode_duration_ms"),
    *_ragged("STRING", (1,), "guided_decoding_guide_type", "guided_decoding_guide"),
    *_ragged("INT32", (1,), "lookahead_window_size", "lookahead_ngram_size"),
    *_ragged("INT32", (1,), "lookahead_verification_set_size"),
)
"""Inputs of `tensorrt_llm`."""

EXTRA_OUTPUTS: tuple[Tensor, ...] = (
    *_plain("FP32", (-1,), "cum_log_probs"),
    *_plain("FP32", (-1, -1), "output_log_probs", "context_logits"),
    *_plain("FP32", (-1, -1, -1), "generation_logits"),
    *_plain("INT32", (1,), "batch_index", "sequence_index"),
    *_plain("INT32", (1,), "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks"),
    *_plain("INT32", (1,), "kv_cache_alloc_total_blocks"),
    *_plain("INT64", (1,), "arrival_time_ns", "first_scheduled_time_ns"),
    *_plain("INT64", (1,), "first_token_time_ns", "last_token_time_ns"),
    *_plain("FP32", (1,), "acceptance_rate"),
    *_plain("INT32", (1,), "total_accepted_draft_tokens", "total_draft_tokens"),
    *_plain("INT32", (1,), "num_input_tokens", "num_output_tokens"),
)
"""Outputs of `tensorrt_llm` that `ensemble` and `tensorrt_llm_bls` pass on."""

ENGINE_OUTPUTS: tuple[Tensor, ...] = (
    *_plain("INT32", (-1, -1), "output_ids"),
    *_plain("INT32", (-1,), "sequence_length"),
    *EXTRA_OUTPUTS,
    *_plain("UINT8", (-1,), "context_phase_params"),
)
"""Outputs of `tensorrt_llm`."""

TEXT_OUTPUT = Tensor("text_output", "STRING", (-1,))
FINISH_REASON = Tensor("finish_reason", "STRING", (-1,))
"""Ours: `stop` or `length`, with the last response of a sequence."""

PREPROCESSING_INPUTS: tuple[Tensor, ...] = (
    *_required("STRING", (1,), "QUERY"),
    *_plain("STRING", (1,), "DECODER_QUERY"),
    *_required("INT32", (1,), "REQUEST_OUTPUT_LEN"),
    *_plain("STRING", (-1,), "BAD_WORDS_DICT", "STOP_WORDS_DICT", "EMBEDDING_BIAS_WORDS"),
    *_plain("FP32", (-1,), "EMBEDDING_BIAS_WEIGHTS"),
    *_plain("INT32", (1,), "END_ID", "PAD_ID"),
    *_plain("UINT64", (1,), "PROMPT_TABLE_EXTRA_ID"),
)

PREPROCESSING_OUTPUTS: tuple[Tensor, ...] = (
    *_plain("INT32", (-1,), "INPUT_ID"),
    *_plain("INT32", (1,), "REQUEST_INPUT_LEN"),
    *_plain("INT32", (-1,), "DECODER_INPUT_ID"),
    *_plain("INT32", (1,), "REQUEST_DECODER_INPUT_LEN"),
    *_plain("INT32", (2, -1), "BAD_WORDS_IDS", "STOP_WORDS_IDS"),
    *_plain("FP32", (-1,), "EMBEDDING_BIAS"),
    *_plain("INT32", (-1,), "REQUEST_OUTPUT_LEN"),
    *_plain("INT32", (1,), "OUT_END_ID", "OUT_PAD_ID"),
    *_plain("UINT64", (-1,), "OUT_PROMPT_TABLE_EXTRA_IDS"),
)

POSTPROCESSING_INPUTS: tuple[Tensor, ...] = (
    *_required("INT32", (-1, -1), "TOKENS_BATCH"),
    *_required("INT32", (-1,), "SEQUENCE_LENGTH"),
)

POSTPROCESSING_OUTPUTS: tuple[Tensor, ...] = (*_plain("STRING", (-1,), "OUTPUT"),)

TEXT_INPUTS: tuple[Tensor, ...] = (
    *_required("STRING", (1,), "text_input"),
    *_plain("STRING", (1,), "decoder_text_input"),
    *_required("INT32", (1,), "max_tokens"),
    *_plain("INT32", (1,), "num_return_sequences"),
    *_plain("STRING", (-1,), "bad_words", "stop_words"),
    *_plain("BOOL", (1,), "exclude_input_in_output"),
    *_plain("INT32", (1,), "end_id", "pad_id", "top_k"),
    *_plain("FP32", (1,), "top_p", "temperature", "length_penalty", "repetition_penalty"),
    *_plain("FP32", (1,), "presence_penalty", "frequency_penalty"),
    *_plain("INT32", (1,), "min_tokens"),
    *_plain("UINT64", (1,), "seed"),
    *_plain("BOOL", (1,), "return_log_probs", "return_context_logits", "return_generation_logits"),
    *_plain("BOOL", (1,), "return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens"),
    *_plain("INT32", (1,), "beam_width"),
    *_plain("BOOL", (1,), "stream"),
    *_plain("FP16", (-1, -1), "prompt_embedding_table"),
    *_plain("UINT64", (1,), "prompt_table_extra_id"),
    *_plain("INT32", (1,), "prompt_vocab_size"),
    *_plain("STRING", (-1,), "embedding_bias_words"),
    *_plain("FP32", (-1,), "embedding_bias_weights"),
    *_plain("UINT64", (1,), "lora_task_id"),
    *_plain("FP16", (-1, -1), "lora_weights"),
    *_plain("INT32", (-1, 3), "lora_config"),
    *_plain("STRING", (1,), "guided_decoding_guide_type", "guided_decoding_guide"),
)
"""Inputs of `ensemble` and `tensorrt_llm_bls`."""

DRAFT_INPUTS: tuple[Tensor, ...] = (
    *_plain("INT32", (1,), "num_draft_tokens"),
    *_plain("BOOL", (1,), "use_draft_logits"),
)
"""Further inputs of `tensorrt_llm_bls`: speculative decoding with a draft model."""

TO_PREPROCESSING: dict[str, str] = {
    "QUERY": "text_input",
    "DECODER_QUERY": "decoder_text_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
    "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
}
"""Input of `preprocessing` -> input of `ensemble`."""

FROM_PREPROCESSING: dict[str, str] = {
    "input_ids": "INPUT_ID",
    "input_lengths": "REQUEST_INPUT_LEN",
    "decoder_input_ids": "DECODER_INPUT_ID",
    "decoder_input_lengths": "REQUEST_DECODER_INPUT_LEN",
    "request_output_len": "REQUEST_OUTPUT_LEN",
    "stop_words_list": "STOP_WORDS_IDS",
    "bad_words_list": "BAD_WORDS_IDS",
    "embedding_bias": "EMBEDDING_BIAS",
    "end_id": "OUT_END_ID",
    "pad_id": "OUT_PAD_ID",
    "prompt_table_extra_ids": "OUT_PROMPT_TABLE_EXTRA_IDS",
}
"""Input of `tensorrt_llm` -> output of `preprocessing`."""

STRAIGHT_TO_ENGINE: dict[str, str] = {
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "streaming": "stream",
} | {
    name: name
    for name in (
        "num_return_sequences",
        "exclude_input_in_output",
        "temperature",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "min_tokens",
        "seed",
        "return_log_probs",
        "return_context_logits",
        "return_generation_logits",
        "return_perf_metrics",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "beam_width",
        "prompt_embedding_table",
        "prompt_vocab_size",
        "lora_task_id",
        "lora_weights",
        "lora_config",
        "guided_decoding_guide_type",
        "guided_decoding_guide",
    )
}
"""Input of `tensorrt_llm` -> input of `ensemble`, for what needs no preprocessing."""


def varied(
    tensors: Iterable[Tensor], types: Mapping[str, str], names: Mapping[str, str] | None = None
) -> tuple[Tensor, ...]:
    """`tensors` with other types, and other names, for those that have one in the maps (by present name)."""
    names = names or {}
    return tuple(
        replace(tensor, type=types.get(tensor.name, tensor.type), name=names.get(tensor.name, tensor.name))
        for tensor in tensors
    )
