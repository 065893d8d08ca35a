"""From the tensors of a Triton request to what TensorRT-LLM's `LLM.generate_async` takes, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

Tensors = Mapping[str, np.ndarray]

# Inputs that the contract has and this model does not pass on. An empty tensor, a false or a zero asks for
# nothing; `lora_task_id` asks by being there.
UNSUPPORTED = {
    "beam_search_diversity_rate": "beam search",
    "len_penalty": "beam search",
    "encoder_input_features": "encoder-decoder models",
    "decoder_input_ids": "encoder-decoder models",
    "cross_attention_mask": "encoder-decoder models",
    "draft_input_ids": "draft tokens",
    "draft_logits": "draft tokens",
    "return_context_logits": "returning logits",
    "return_generation_logits": "returning logits",
    "return_perf_metrics": "performance metrics",
    "prompt_embedding_table": "prompt tables",
    "prompt_table_extra_ids": "prompt tables",
    "mrope_rotary_cos_sin": "multimodal rotary embeddings",
    "lora_weights": "LoRA adapters as tensors",
    "lora_config": "LoRA adapters as tensors",
    "context_phase_params": "disaggregated serving",
    "lookahead_window_size": "lookahead decoding",
}
# guided_decoding_guide_type -> the field of GuidedDecodingParams; json has no guide.
GUIDES = {
    "json": "json_object",
    "json_schema": "json",
    "regex": "regex",
    "ebnf_grammar": "grammar",
    "structural_tag": "structural_tag",
}
PASSED = {  # our input -> SamplingParams
    "temperature": "temperature",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "runtime_top_p_min": "top_p_min",
    "runtime_top_p_decay": "top_p_decay",
    "runtime_top_p_reset_ids": "top_p_reset_ids",
}
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "seed")


class InvalidRequestError(ValueError):
    """The request cannot be served; the message says which input and why."""


@dataclass(frozen=True)
class Defaults:
    """What holds where a request is silent."""

    vocab_size: int
    end_ids: tuple[int, ...]
    pad_id: int
    exclude_input_in_output: bool


@dataclass(frozen=True)
class Prompt:
    """One row of a request.

    Args:
        tokens: of the prompt.
        sampling: arguments of SamplingParams. `guided_decoding` holds arguments of GuidedDecodingParams and
            `embedding_bias` a numpy array.
    """

    tokens: list[int]
    sampling: dict[str, Any]


@dataclass(frozen=True)
class ParsedRequest:
    """A request: `prompts`, each answered by `returns` sequences."""

    prompts: tuple[Prompt, ...]
    returns: int
    pad_id: int
    streaming: bool
    exclude_input: bool
    log_probs: bool
    num_input_tokens: bool
    num_output_tokens: bool


def is_stop_request(tensors: Tensors) -> bool:
    """Whether the request only asks to stop the one with its id."""
    return "stop" in tensors and bool(tensors["stop"].any())


def parse_request(tensors: Tensors, defaults: Defaults, decode: Callable[[list[int]], str]) -> ParsedRequest:
    """Read a request's tensors.

    Args:
        tensors: by name, with the batch dimension.
        defaults: where the request is silent.
        decode: tokens to text; the LLM API takes stop and bad words of several tokens as text.

    Raises:
        InvalidRequestError: it cannot be served.
    """
    _refuse_unsupported(tensors)
    batch = _required(tensors, "input_ids", "text_input").shape[0]
    returns = int(_same(tensors, "num_return_sequences", batch, 1))
    if returns < 1:
        _invalid("num_return_sequences", returns, "must be 1 or more")
    streaming = bool(_same(tensors, "streaming", batch, False))
    exclude = bool(_same(tensors, "exclude_input_in_output", batch, defaults.exclude_input_in_output))
    log_probs = bool(_same(tensors, "return_log_probs", batch, False))
    prompts = [
        Prompt(
            tokens=_prompt(tensors, row, defaults.vocab_size),
            sampling=_sampling(tensors, row, batch, returns, defaults, decode)
            | ({"logprobs": 1} if log_probs else {}),
        )
        for row in range(batch)
    ]
    return ParsedRequest(
        prompts=tuple(prompts),
        returns=returns,
        pad_id=int(_same(tensors, "pad_id", batch, defaults.pad_id)),
        streaming=streaming,
        exclude_input=exclude or streaming,
        log_probs=log_probs,
        num_input_tokens=bool(_same(tensors, "return_num_input_tokens", batch, False)),
        num_output_tokens=bool(_same(tensors, "return_num_output_tokens", batch, False)),
    )


def _sampling(
    tensors: Tensors,
    row: int,
    batch: int,
    returns: int,
    defaults: Defaults,
    decode: Callable[[list[int]], str],
) -> dict[str, Any]:
    def value(name: str, default: Any = None) -> Any:
        return _value(tensors, name, row, batch, default)

    max_tokens = value("request_output_len")
    if max_tokens is None or max_tokens < 1:
        _invalid("request_output_len (max_tokens)", max_tokens, "must be 1 or more")
    if value("beam_width", 1) != 1:
        _invalid("beam_width", value("beam_width"), "beam search is not served here; use 1")
    sampling: dict[str, Any] = {"max_tokens": max_tokens, "n": returns}
    sampling |= {name: value(name) for name in PENALTIES if value(name) is not None}
    top_k, top_p = value("runtime_top_k", 0), value("runtime_top_p", 0.0)
    # As upstream: without top_k and top_p, and with top_k 1, the likeliest token is taken.
    if value("temperature", 1.0) > 0 and top_k != 1 and (top_k > 1 or top_p > 0):
        sampling |= {theirs: value(ours) for ours, theirs in PASSED.items() if value(ours)}
    sampling |= _ends(value("end_id"), defaults)
    stop, bad = (_words(tensors, name, row) for name in ("stop_words_list", "bad_words_list"))
    # The API tells words of one token and words of text apart.
    singles = sampling.pop("stop_token_ids") + [word[0] for word in stop if len(word) == 1]
    texts = {"stop": [decode(word) for word in stop if len(word) > 1], "stop_token_ids": singles}
    texts["bad"] = [decode(word) for word in bad if len(word) > 1]
    texts["bad_token_ids"] = [word[0] for word in bad if len(word) == 1]
    sampling |= {name: words for name, words in texts.items() if words}
    bias = tensors.get("embedding_bias")
    if bias is not None and bias.size:
        sampling["embedding_bias"] = bias[row].reshape(-1)
    kind = value("guided_decoding_guide_type")
    if kind:
        sampling["guided_decoding"] = _guide(kind, value("guided_decoding_guide", b""))
    return sampling


def _ends(end_id: int | None, defaults: Defaults) -> dict[str, Any]:
    """End of a sequence: the API takes one end id; others go as stop tokens. -1: none."""
    if end_id == -1:
        return {"ignore_eos": True, "stop_token_ids": []}
    ends = defaults.end_ids if end_id is None else (end_id,)
    found: dict[str, Any] = {"pad_id": defaults.pad_id, "stop_token_ids": list(ends[1:])}
    return found | ({"end_id": ends[0]} if ends else {})


def _guide(kind: bytes, guide: bytes) -> dict[str, Any]:
    name = kind.decode("utf-8", "replace")
    if name not in GUIDES:
        _invalid("guided_decoding_guide_type", name, f"must be one of {', '.join(GUIDES)}")
    if name == "json":
        return {"json_object": True}
    if not guide:
        _invalid("guided_decoding_guide", "empty", f"{name} needs one")
    return {GUIDES[name]: guide.decode("utf-8", "replace")}


def _words(tensors: Tensors, name: str, row: int) -> list[list[int]]:
    """Unpack upstream's [2, n]: all words' tokens in a row, and where each ends, padded with -1."""
    packed = tensors.get(name)
    if packed is None or packed.size == 0:
        return []
    if packed.ndim != 3 or packed.shape[1] != 2:
        _invalid(name, list(packed.shape), "its shape must be [batch, 2, n]")
    tokens, ends = packed[row].tolist()
    words, start = [], 0
    for end in (end for end in ends if end >= 0):
        if not start <= end <= len(tokens):
            _invalid(name, end, "the second row must hold the words' ends, in rising order")
        if end > start:
            words.append(tokens[start:end])
        start = end
    return words


def _prompt(tensors: Tensors, row: int, vocab_size: int) -> list[int]:
    tokens = tensors["input_ids"][row].reshape(-1)
    length = int(_required(tensors, "input_lengths", "text_input").reshape(-1)[row])
    if not 0 < length <= tokens.size:
        _invalid("input_lengths", length, f"input_ids (text_input) has {tokens.size} tokens")
    tokens = tokens[:length]
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        worst = int(tokens.min() if tokens.min() < 0 else tokens.max())
        _invalid("input_ids", worst, f"the vocabulary has tokens 0 to {vocab_size - 1}")
    return tokens.tolist()


def _value(tensors: Tensors, name: str, row: int, batch: int, default: Any) -> Any:
    tensor = tensors.get(name)
    if tensor is None or tensor.size == 0:
        return default
    if tensor.size != batch:
        _invalid(name, list(tensor.shape), f"one value for each of {batch} prompt(s) is expected")
    found = tensor.reshape(-1)[row]
    return found if isinstance(found, bytes) else found.item()


def _same(tensors: Tensors, name: str, batch: int, default: Any) -> Any:
    """A value that must be the same in all rows, because it shapes the response."""
    values = {_value(tensors, name, row, batch, default) for row in range(batch)}
    if len(values) > 1:
        _invalid(name, sorted(values), "must be the same for all prompts of a request")
    return values.pop()


def _refuse_unsupported(tensors: Tensors) -> None:
    if "lora_task_id" in tensors:
        raise InvalidRequestError("lora_task_id: LoRA adapters are not served here; leave it out")
    for name, feature in UNSUPPORTED.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.size and any(tensor.reshape(-1).tolist()):
            raise InvalidRequestError(f"{name}: {feature} are not served here; leave it out")


def _required(tensors: Tensors, name: str, known_as: str) -> np.ndarray:
    if name not in tensors:
        raise InvalidRequestError(f"{name} ({known_as}) is missing")
    return tensors[name]


def _invalid(name: str, value: object, rule: str) -> NoReturn:
    raise InvalidRequestError(f"{name} is {value}: {rule}")
