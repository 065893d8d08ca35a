"""`preprocessing`: text to token ids, with the tensors of TensorRT-LLM's `inflight_batcher_llm`.

Tokenizes with Hugging Face `tokenizers` from `tokenizer.json` alone. Works for every engine flavour.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class InvalidRequestError(ValueError):
    """The request cannot be served; the message says which input and why."""


class TritonPythonModel:
    """The model as Triton's Python backend loads it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer that the parameter `tokenizer_dir` names, relative to the repository."""
        parameters = json.loads(args["model_config"])["parameters"]
        values = {key: entry["string_value"] for key, entry in parameters.items()}
        repository = Path(args["model_repository"]).parent
        self._tokenizer = Tokenizer.from_file(str(repository / values["tokenizer_dir"] / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._add_special_tokens = values["add_special_tokens"].lower() in ("true", "1")
        self._vocab_size = int(values["vocab_size"])
        self._end_ids = [int(token) for token in values["end_ids"].split(",") if token]
        self._supply_end_ids = values["supply_end_ids"].lower() in ("true", "1")
        self._pad_id = int(values["pad_id"])

    def execute(self, requests: list) -> list:
        """Answer each request for itself: one that fails does not touch the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: object) -> object:
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        try:
            outputs = self._tokenize(inputs)
        except InvalidRequestError as problem:
            error = pb_utils.TritonError(str(problem), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _tokenize(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        prompts = [self._encode(row[0], "text_input") for row in inputs["QUERY"]]
        batch = len(prompts)
        pad_id = _column(inputs, "PAD_ID", batch, self._pad_id)
        outputs = {
            "INPUT_ID": _padded(prompts, pad_id[:, 0]),
            "REQUEST_INPUT_LEN": np.array([[len(prompt)] for prompt in prompts], dtype=np.int32),
            "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"].astype(np.int32).reshape(batch, 1),
            "STOP_WORDS_IDS": self._stop_words(inputs, batch),
            "BAD_WORDS_IDS": self._words(inputs.get("BAD_WORDS_DICT"), batch, "bad_words"),
            "EMBEDDING_BIAS": self._embedding_bias(inputs, batch),
        }
        # Without a value the engine takes its own, if it has one.
        if "END_ID" in inputs:
            outputs["OUT_END_ID"] = inputs["END_ID"]
        elif self._supply_end_ids and self._end_ids:
            outputs["OUT_END_ID"] = np.full((batch, 1), self._end_ids[0], dtype=np.int32)
        if "PAD_ID" in inputs or self._supply_end_ids:
            outputs["OUT_PAD_ID"] = pad_id
        if "DECODER_QUERY" in inputs:
            decoder = [self._encode(row[0], "decoder_text_input") for row in inputs["DECODER_QUERY"]]
            outputs["DECODER_INPUT_ID"] = _padded(decoder, pad_id[:, 0])
            lengths = np.array([[len(prompt)] for prompt in decoder], dtype=np.int32)
            outputs["REQUEST_DECODER_INPUT_LEN"] = lengths
        if "PROMPT_TABLE_EXTRA_ID" in inputs:
            # One id a prompt token: those of the prompt table (beyond the vocabulary) carry the given id.
            ids = outputs["INPUT_ID"]
            extra = inputs["PROMPT_TABLE_EXTRA_ID"].reshape(batch, 1)
            outputs["OUT_PROMPT_TABLE_EXTRA_IDS"] = np.where(ids >= self._vocab_size, extra, 0).astype(
                np.uint64
            )
        return outputs

    def _encode(self, text: bytes, name: str) -> list[int]:
        tokens = self._tokenizer.encode(_decode(text, name), add_special_tokens=self._add_special_tokens).ids
        if not text or not tokens:
            raise InvalidRequestError(f"{name} is empty; send at least one character")
        return tokens

    def _stop_words(self, inputs: dict[str, np.ndarray], batch: int) -> np.ndarray:
        """The request's stop words; and for an engine that takes one end id, the others as words."""
        extra = [] if "END_ID" in inputs or not self._supply_end_ids else self._end_ids[1:]
        rows = inputs.get("STOP_WORDS_DICT")
        if rows is None and extra:
            rows = np.empty((batch, 0), dtype=object)
        return self._words(rows, batch, "stop_words", extra)

    def _words(self, rows: np.ndarray | None, batch: int, name: str, extra: Sequence[int] = ()) -> np.ndarray:
        """Pack words as upstream does: [batch, 2, n], all tokens in a row, and where each word ends.

        Tokens are padded with 0 and ends with -1. Each element is one word, whatever is in it; an empty
        one is none. `extra` are tokens that are words of their own in every row.
        """
        if rows is None:
            return np.empty((batch, 2, 0), dtype=np.int32)
        packed = [self._pack(row.reshape(-1).tolist(), name) for row in rows]
        for tokens, ends in packed:
            for token in extra:
                tokens.append(token)
                ends.append(len(tokens))
        longest = max(len(tokens) for tokens, _ in packed)
        result = np.zeros((batch, 2, longest), dtype=np.int32)
        result[:, 1] = -1
        for row, (tokens, ends) in enumerate(packed):
            result[row, 0, : len(tokens)] = tokens
            result[row, 1, : len(ends)] = ends
        return result

    def _pack(self, words: list[bytes], name: str) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        ends: list[int] = []
        for word in filter(None, words):
            text = _decode(word, name)
            tokens += self._tokenizer.encode(text, add_special_tokens=False).ids
            ends.append(len(tokens))
        return tokens, ends

    def _embedding_bias(self, inputs: dict[str, np.ndarray], batch: int) -> np.ndarray:
        """A bias for every token of the vocabulary, from words and their weights; [batch, 0] without."""
        words, weights = inputs.get("EMBEDDING_BIAS_WORDS"), inputs.get("EMBEDDING_BIAS_WEIGHTS")
        if words is None or weights is None:
            return np.empty((batch, 0), dtype=np.float32)
        if words.shape != weights.shape:
            raise InvalidRequestError(
                f"embedding_bias_words has shape {list(words.shape)}, embedding_bias_weights "
                f"{list(weights.shape)}: they must be the same"
            )
        bias = np.zeros((batch, self._vocab_size), dtype=np.float32)
        for row in range(batch):
            for word, weight in zip(words[row], weights[row], strict=True):
                text = _decode(word, "embedding_bias_words")
                bias[row, self._tokenizer.encode(text, add_special_tokens=False).ids] += weight
        return bias


def _decode(text: bytes, name: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{name} is not UTF-8: byte {error.start} {error.reason}") from None


def _column(inputs: dict[str, np.ndarray], name: str, batch: int, default: int) -> np.ndarray:
    return inputs.get(name, np.full((batch, 1), default, dtype=np.int32)).reshape(batch, 1)


def _padded(rows: list[list[int]], pad_ids: np.ndarray) -> np.ndarray:
    padded = np.empty((len(rows), max(map(len, rows))), dtype=np.int32)
    for index, row in enumerate(rows):
        padded[index] = pad_ids[index]
        padded[index, : len(row)] = row
    return padded
