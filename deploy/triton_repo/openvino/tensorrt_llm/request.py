"""From the tensors of one Triton request to sequences that the engine can take, or a clear refusal.

Everything that could harm other requests inside the engine is refused here: GenAI takes token ids
outside the vocabulary, and answers a sequence that can never fit by dropping all the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from admission import BLOCK_TOKENS, blocks_for
from guides import Guide, InvalidGuideError, parse_guide
from messages import Sequence

MAX_STOP_WORDS = 128
MAX_STOP_TOKENS = 1024

Tensors = Mapping[str, np.ndarray]


class InvalidRequestError(ValueError):
    """The request cannot be served; the message says which input, why, and what would do."""


@dataclass(frozen=True)
class Limits:
    """What the engine and its cache can take."""

    vocab_size: int
    max_seq_len: int  # tokens of prompt and output together
    max_prompt_len: int  # below max_seq_len where prompts are not split over steps
    cache_blocks: int
    max_sequences: int
    guides: bool = False  # whether answers can be guided
    max_draft_len: int = 0  # tokens that a sequence may hold beyond its end, guessed in vain


@dataclass(frozen=True)
class Defaults:
    """What holds where a request is silent."""

    end_ids: tuple[int, ...]
    pad_id: int
    exclude_input_in_output: bool


@dataclass(frozen=True)
class ParsedRequest:
    """`sequences` in order of (batch row, return sequence)."""

    sequences: tuple[Sequence, ...]
    batch: int
    returns: int
    pad_id: int
    streaming: bool
    exclude_input: bool
    log_probs: bool
    perf_metrics: bool
    num_input_tokens: bool
    num_output_tokens: bool


# Inputs that the contract has and this engine cannot honour. An empty tensor, a false or a zero asks
# for nothing and passes; `lora_task_id` asks by being there.
UNSUPPORTED = {
    "bad_words_list": "bad words",
    "embedding_bias": "embedding bias",
    "beam_search_diversity_rate": "beam search",
    "runtime_top_p_min": "top-p decay",
    "runtime_top_p_reset_ids": "top-p decay",
    "encoder_input_features": "encoder-decoder models",
    "encoder_output_lengths": "encoder-decoder models",
    "decoder_input_ids": "encoder-decoder models",
    "decoder_input_lengths": "encoder-decoder models",
    "cross_attention_mask": "encoder-decoder models",
    "skip_cross_attn_blocks": "encoder-decoder models",
    "draft_input_ids": "draft tokens",
    "draft_logits": "draft tokens",
    "return_context_logits": "returning logits",
    "return_generation_logits": "returning logits",
    "prompt_embedding_table": "prompt tables",
    "prompt_table_extra_ids": "prompt tables",
    "prompt_vocab_size": "prompt tables",
    "mrope_rotary_cos_sin": "multimodal rotary embeddings",
    "mrope_position_deltas": "multimodal rotary embeddings",
    "lora_weights": "LoRA adapters",
    "lora_config": "LoRA adapters",
    "context_phase_params": "disaggregated serving",
    "lookahead_window_size": "lookahead decoding",
    "lookahead_ngram_size": "lookahead decoding",
    "lookahead_verification_set_size": "lookahead decoding",
}
# What those who ask the ensemble know an input as, where that is another name.
ENSEMBLE_NAMES = {
    "input_ids": "text_input",
    "input_lengths": "tokens of text_input",
    "request_output_len": "max_tokens",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "streaming": "stream",
    "stop_words_list": "stop_words",
    "bad_words_list": "bad_words",
    "embedding_bias": "embedding_bias_words",
    "decoder_input_ids": "decoder_text_input",
    "decoder_input_lengths": "decoder_text_input",
    "prompt_table_extra_ids": "prompt_table_extra_id",
}
# Inputs without effect here: they only matter to features above (draft_acceptance_threshold, len_penalty,
# early_stopping) or are hints for the cache (retention_*).


def parse_request(tensors: Tensors, limits: Limits, defaults: Defaults) -> ParsedRequest:
    """Read a request's tensors. Raises InvalidRequestError."""
    _refuse_unsupported(tensors)
    batch = _required(tensors, "input_ids").shape[0]
    read = _Reader(tensors, batch)
    returns = read.same("num_return_sequences", 1)
    if not 1 <= returns * batch <= limits.max_sequences:
        _invalid(
            "num_return_sequences",
            returns,
            f"{batch} prompt(s) times the sequences wanted of each must be 1 to {limits.max_sequences} "
            "(max_batch_size)",
        )
    streaming = bool(read.same("streaming", False))
    exclude_input = bool(read.same("exclude_input_in_output", defaults.exclude_input_in_output)) or streaming
    log_probs = bool(read.same("return_log_probs", False))
    sequences = []
    for row in range(batch):
        sequence = _sequence(read, row, limits, defaults, streaming, log_probs, not exclude_input)
        sequences += [_with_seed(sequence, index) for index in range(returns)]
    return ParsedRequest(
        sequences=tuple(sequences),
        batch=batch,
        returns=returns,
        pad_id=read.same("pad_id", defaults.pad_id),
        streaming=streaming,
        exclude_input=exclude_input,
        log_probs=log_probs,
        perf_metrics=bool(read.same("return_perf_metrics", False)),
        num_input_tokens=bool(read.same("return_num_input_tokens", False)),
        num_output_tokens=bool(read.same("return_num_output_tokens", False)),
    )


def is_stop_request(tensors: Tensors) -> bool:
    """Whether the request only asks to stop the one with its id."""
    return "stop" in tensors and bool(tensors["stop"].any())


def _sequence(
    read: _Reader,
    row: int,
    limits: Limits,
    defaults: Defaults,
    streaming: bool,
    log_probs: bool,
    echo_text: bool,
) -> Sequence:
    prompt = _prompt(read, row, limits)
    max_tokens = _max_tokens(read, row, len(prompt), limits)
    min_tokens = read.integer("min_tokens", row, 0)
    if not 0 <= min_tokens <= max_tokens:
        _invalid(
            "min_tokens", min_tokens, f"must be 0 to request_output_len (max_tokens), which is {max_tokens}"
        )
    if read.integer("beam_width", row, 1) != 1:
        _invalid("beam_width", read.integer("beam_width", row, 1), "beam search is not supported; use 1")
    if read.number("runtime_top_p_decay", row, 1.0) not in (0.0, 1.0):
        raise InvalidRequestError("runtime_top_p_decay: this engine has no top-p decay; leave it out")
    end_id = read.integer("end_id", row, None)
    if end_id is None:
        end_ids = defaults.end_ids
    else:
        end_ids = (_token("end_id", end_id, limits),) if end_id != -1 else ()

    guide = _guide(read, row, limits)
    if guide is not None and (not end_ids or min_tokens):
        name = "min_tokens" if end_ids else "end_id"
        raise InvalidRequestError(f"{name}: a guided answer ends where its guide does; leave it out")

    in_range = read.in_range
    temperature = in_range("temperature", row, 1.0, lambda v: v >= 0, "must be 0 or more")
    top_k = read.integer("runtime_top_k", row, 0)
    if top_k < 0:
        _invalid("runtime_top_k", top_k, "must be 0 (all tokens) or more")
    top_p = in_range("runtime_top_p", row, 0.0, lambda v: 0 <= v <= 1, "must be 0 (off) to 1")
    # As upstream: without top_k and top_p, and with top_k 1, the likeliest token is taken.
    sample = temperature > 0 and top_k != 1 and (top_k > 1 or top_p > 0)
    return Sequence(
        prompt=prompt,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        end_ids=end_ids,
        stop_words=_stop_words(read, row, limits),
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p or 1.0,
        repetition_penalty=in_range("repetition_penalty", row, 1.0, lambda v: v > 0, "must be above 0"),
        presence_penalty=in_range("presence_penalty", row, 0.0, lambda v: -2 <= v <= 2, "must be -2 to 2"),
        frequency_penalty=in_range("frequency_penalty", row, 0.0, lambda v: -2 <= v <= 2, "must be -2 to 2"),
        seed=read.integer("seed", row, 0),
        log_probs=log_probs,
        streaming=streaming,
        echo_text=echo_text,
        guide=guide,
    )


def _guide(read: _Reader, row: int, limits: Limits) -> Guide | None:
    kind, text = (read.text(name, row) for name in ("guided_decoding_guide_type", "guided_decoding_guide"))
    if not kind:
        if text:
            raise InvalidRequestError("guided_decoding_guide_type is missing: it says what the guide is")
        return None
    if not limits.guides:
        raise InvalidRequestError(
            "guided_decoding_guide_type: this model was built without engine.guided_decoding"
        )
    try:
        return parse_guide(kind, text)
    except InvalidGuideError as problem:
        raise InvalidRequestError(str(problem)) from None


def _prompt(read: _Reader, row: int, limits: Limits) -> list[int]:
    tokens = _required(read.tensors, "input_ids")[row].reshape(-1)
    length = read.integer("input_lengths", row, None)
    if length is None:
        raise InvalidRequestError("input_lengths is missing")
    if not 0 <= length <= tokens.size:
        _invalid("input_lengths", length, f"input_ids has {tokens.size} tokens")
    tokens = tokens[:length]
    if not length:
        raise InvalidRequestError("input_ids (text_input): the prompt is empty; send at least one token")
    if tokens.min() < 0 or tokens.max() >= limits.vocab_size:
        worst = int(tokens.min() if tokens.min() < 0 else tokens.max())
        _invalid("input_ids", worst, f"the vocabulary has tokens 0 to {limits.vocab_size - 1}")
    if length > limits.max_prompt_len:
        _invalid("input_lengths", length, f"a prompt may have {limits.max_prompt_len} tokens")
    return tokens.tolist()


def _max_tokens(read: _Reader, row: int, prompt: int, limits: Limits) -> int:
    max_tokens = read.integer("request_output_len", row, None)
    if max_tokens is None:
        raise InvalidRequestError("request_output_len (max_tokens) is missing")
    if max_tokens <= 0:
        _invalid("request_output_len", max_tokens, "must be 1 or more")
    if prompt + max_tokens > limits.max_seq_len:
        raise InvalidRequestError(
            f"the prompt has {prompt} tokens and request_output_len (max_tokens) is {max_tokens}: together "
            f"more than max_seq_len, which is {limits.max_seq_len}; shorten one of them"
        )
    if blocks_for(prompt + max_tokens + limits.max_draft_len) > limits.cache_blocks:
        raise InvalidRequestError(
            f"the prompt has {prompt} tokens and request_output_len (max_tokens) is {max_tokens}: together "
            f"more than the KV cache holds, which is {limits.cache_blocks * BLOCK_TOKENS} tokens"
        )
    return max_tokens


def _stop_words(read: _Reader, row: int, limits: Limits) -> tuple[tuple[int, ...], ...]:
    """Unpack upstream's [2, n]: all words' tokens in a row, and where each ends, padded with -1."""
    packed = read.tensors.get("stop_words_list")
    if packed is None or packed.size == 0:
        return ()
    if packed.ndim != 3 or packed.shape[1] != 2:
        _invalid("stop_words_list", list(packed.shape), "its shape must be [batch, 2, n]")
    tokens, ends = packed[row].tolist()
    ends = [end for end in ends if end >= 0]
    if len(ends) > MAX_STOP_WORDS or len(tokens) > MAX_STOP_TOKENS:
        raise InvalidRequestError(
            f"stop_words_list (stop_words): {len(ends)} stop words in {len(tokens)} tokens; at most "
            f"{MAX_STOP_WORDS} words and {MAX_STOP_TOKENS} tokens are taken"
        )
    words, start = [], 0
    for end in ends:
        if not start <= end <= len(tokens):
            _invalid("stop_words_list", end, "the second row must hold the words' ends, in rising order")
        if end > start:
            words.append(tuple(_token("stop_words_list", token, limits) for token in tokens[start:end]))
        start = end
    return tuple(words)


class _Reader:
    """Values of the optional inputs, one a batch row."""

    def __init__(self, tensors: Tensors, batch: int) -> None:
        self.tensors = tensors
        self._batch = batch

    def value(self, name: str, row: int, default: Any) -> Any:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.size == 0:
            return default
        if tensor.size != self._batch:
            _invalid(name, list(tensor.shape), f"one value for each of {self._batch} prompt(s) is expected")
        value = tensor.reshape(-1)[row]
        return value.item() if isinstance(value, np.generic) else value

    def integer(self, name: str, row: int, default: Any) -> Any:
        return self.value(name, row, default)

    def text(self, name: str, row: int) -> str:
        """A text; the empty one where there is none."""
        value = self.value(name, row, b"")
        try:
            return value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"{name} is not UTF-8: byte {error.start} {error.reason}") from None

    def number(self, name: str, row: int, default: float) -> float:
        value = float(self.value(name, row, default))
        if not math.isfinite(value):
            _invalid(name, value, "must be a finite number")
        return value

    def in_range(
        self, name: str, row: int, default: float, holds: Callable[[float], bool], rule: str
    ) -> float:
        value = self.number(name, row, default)
        if not holds(value):
            _invalid(name, value, rule)
        return value

    def same(self, name: str, default: Any) -> Any:
        """A value that must be the same in all rows, because it shapes the response."""
        values = {self.value(name, row, default) for row in range(self._batch)}
        if len(values) > 1:
            _invalid(name, sorted(values), "must be the same for all prompts of a request")
        return values.pop()


def _with_seed(sequence: Sequence, index: int) -> Sequence:
    """The same sequence with a random stream of its own."""
    if index == 0:
        return sequence
    return Sequence(**{**vars(sequence), "seed": (sequence.seed + index) % 2**64})


def _refuse_unsupported(tensors: Tensors) -> None:
    if "lora_task_id" in tensors:
        raise InvalidRequestError("lora_task_id: this engine does not support LoRA adapters; leave it out")
    for name, feature in UNSUPPORTED.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.size and any(tensor.reshape(-1).tolist()):
            raise InvalidRequestError(
                f"{_known_as(name)}: this engine does not support {feature}; leave it out"
            )


def _required(tensors: Tensors, name: str) -> np.ndarray:
    if name not in tensors:
        raise InvalidRequestError(f"{_known_as(name)} is missing")
    return tensors[name]


def _token(name: str, token: int, limits: Limits) -> int:
    if not 0 <= token < limits.vocab_size:
        _invalid(name, token, f"the vocabulary has tokens 0 to {limits.vocab_size - 1}")
    return token


def _invalid(name: str, value: object, rule: str) -> NoReturn:
    raise InvalidRequestError(f"{_known_as(name)} is {value}: {rule}")


def _known_as(name: str) -> str:
    """`name`, with the ensemble's name for it where that is another."""
    return f"{name} ({ENSEMBLE_NAMES[name]})" if name in ENSEMBLE_NAMES else name
